"""Searches in few bits: rounding that is right on average, and the same tickets."""

import pytest
import torch
from torch import nn

import gebt
from gebt.learn.precision import BlockFloat, block_float, lowered
from gebt.models import GCN
from gebt.sparse import SparseMatrix


def drawing(seed=0):
    return torch.Generator().manual_seed(seed)


def test_entries_are_multiples_of_a_step_that_each_row_has_of_its_own():
    x = torch.tensor([[1.5, -0.30, 0.001], [0.011, 0.003, 0.0], [0.0, 0.0, 0.0]])
    found = block_float(x, drawing())
    steps = torch.tensor([[2.0**-6], [2.0**-13], [1.0]])  # 2^(e - 7), x < 2^e
    whole = found / steps
    assert torch.equal(whole, whole.round()) and whole.abs().max() <= 127
    assert ((found - x).abs() < steps).all()
    assert not found[2].any()


def test_a_vector_is_one_block_and_nothing_stays_nothing():
    x = torch.tensor([1.0, 0.002])
    assert block_float(x, drawing())[1] in (0.0, 2.0**-6)
    assert block_float(torch.empty(0, 3), drawing()).shape == (0, 3)


def test_rounding_is_right_on_average_and_exact_where_it_can_be():
    draw, x = drawing(1), torch.tensor([[1.0, 0.1, -0.7771]])
    mean = torch.stack([block_float(x, draw) for _ in range(4000)]).mean(dim=0)
    assert torch.allclose(mean, x, atol=1e-3)
    kept = torch.tensor([[1.0, 0.5, -0.75, 0.015625]])
    assert torch.equal(block_float(kept, draw), kept)


def test_weights_gradients_and_activations_are_all_rounded():
    torch.manual_seed(0)
    model, x = (
        nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)),
        torch.rand(9, 6),
    )
    before = [p.clone() for p in model.parameters()]

    def is_rounded(tensor):
        again = block_float(tensor, drawing(5))
        return torch.equal(again, tensor)

    seen = []
    with lowered(model, "bfp8", seed=3) as [rounding]:
        assert all(is_rounded(p) for p in model.parameters())
        assert not any(map(torch.equal, before, model.parameters()))
        model[2].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        out = model(x)
        out.square().sum().backward()
        assert is_rounded(seen[0]) and is_rounded(out)
        assert not all(is_rounded(p.grad) for p in model.parameters())
        rounding.after_backward()
        assert all(is_rounded(p.grad) for p in model.parameters())
        model.eval()
        assert not is_rounded(model(torch.rand(50, 6)))
    assert not any(module._forward_hooks for module in model.modules())


def test_rounding_goes_on_where_its_state_was_taken():
    torch.manual_seed(0)
    rounding = BlockFloat(nn.Linear(4, 4), 7)
    state = rounding.state_dict()
    first = block_float(torch.ones(8, 8) / 3, rounding._draw)
    rounding.load_state_dict(state)
    assert torch.equal(block_float(torch.ones(8, 8) / 3, rounding._draw), first)


def test_in_bf16_the_model_is_as_it_was_afterwards(graph):
    model = GCN(graph.num_features, 8, 3, norm="batch").eval()
    exact = model(graph.x, graph.adjacency)
    with lowered(model, "bf16", 0) as hooks:
        low = model(graph.x, graph.adjacency)
        assert hooks == [] and low.dtype == torch.float32
    assert 0 < (low - exact).abs().max() < 0.1
    assert torch.equal(model(graph.x, graph.adjacency), exact)


def test_a_sparse_product_stays_in_the_matrixs_precision_under_autocast():
    matrix = SparseMatrix.from_coo(
        torch.tensor([0, 1]), torch.tensor([1, 0]), torch.tensor([0.1, 0.2]), (2, 2)
    )
    x = torch.rand(2, 3, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="the sparse matrix is torch.float32"):
        matrix @ x
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(matrix @ x, matrix @ x.float())


@pytest.mark.parametrize("precision", ["bf16", "bfp8"])
@pytest.mark.parametrize("unit", ["element", "channel"])
def test_tickets_in_few_bits_are_those_of_full_precision(graph, precision, unit):
    def drawn(**options):
        torch.manual_seed(0)
        model = GCN(graph.num_features, 16, graph.num_classes, norm="batch")
        how = {"graph_ratio": 0.3, "weight_ratio": 0.5, "unit": unit, "epochs": 100}
        return gebt.find_ticket(model, graph, seed=1, **how, **options)

    full, low, again = (drawn(), *(drawn(precision=precision) for _ in range(2)))
    assert full.options["unit"] == unit and "precision" not in full.options
    assert low.options["precision"] == precision
    for group in full.masks:
        masks = [
            torch.cat([m.flatten() for m in t.masks[group].values()])
            for t in (full, low, again)
        ]
        assert torch.equal(masks[1], masks[2])
        assert (masks[0] == masks[1]).float().mean() > 0.8


def test_another_precision_is_refused(graph):
    with pytest.raises(ValueError, match="`precision` must be one of 'full', 'bf16'"):
        gebt.find_ticket(GCN(24, 8, 3), graph, precision="fp4")


def test_denormal_numbers_stay_finite():
    x = torch.tensor([[1e-44, 0.0], [3e-40, -2e-40]])
    assert block_float(x, torch.Generator()).isfinite().all()


def test_a_layer_may_give_a_tuple(graph):
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.GRU(graph.num_features, 8, batch_first=True)
            self.head = nn.Linear(8, 3)

        def forward(self, x, adjacency):
            out, _ = self.layer((adjacency @ x)[:, None])
            return self.head(out[:, 0])

    options = {"detector": gebt.MaskDistanceDetector(2), "epochs": 5}
    ticket = gebt.find_ticket(Recurrent(), graph, precision="bfp8", **options)
    assert ticket.settled


def test_weights_that_shall_stay_are_not_rounded(graph):
    model = GCN(graph.num_features, 8, 3)
    how = {"update_weights": False, "weight_ratio": 0.0}
    with pytest.raises(ValueError, match="rounds the weights in place"):
        gebt.find_ticket(model, graph, precision="bfp8", **how)
