"""Unit tickets: which units leave, and what refuses to lose any."""

import pytest
import torch
from torch import nn

import gebt
from gebt.models import GAT, GCN, GIN, GraphSAGE, ResGCN
from gebt.prune.units import can_slim, slim, unit_scores


def test_behind_a_batch_norm_units_are_ranked_by_its_scale():
    torch.manual_seed(0)
    model = GCN(4, 4, 2, layers=2, norm="batch")
    with torch.no_grad():
        model.norms[0].weight.copy_(torch.tensor([0.1, -3.0, 2.0, 0.5]))
    small = slim(model, 0.5)
    assert torch.equal(small.norms[0].weight, model.norms[0].weight[1:3])
    assert torch.equal(small.layers[0].weight, model.layers[0].weight[:, 1:3])
    assert torch.equal(small.layers[1].weight, model.layers[1].weight[1:3])


def test_elsewhere_by_the_weights_into_and_out_of_them():
    model = GCN(1, 3, 1)
    with torch.no_grad():
        model.layers[0].weight.copy_(torch.tensor([[3.0, 1.0, 2.0]]))
        model.layers[1].weight.copy_(torch.tensor([[1.0], [4.0], [-3.0]]))
    [scores] = unit_scores(model)
    assert scores.tolist() == pytest.approx([3, 4, 6])
    assert slim(model, 0.4).layers[1].weight.flatten().tolist() == [4, -3]


@pytest.mark.parametrize("kind", [GCN, GIN, GraphSAGE])
@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.75])
def test_every_hidden_layer_loses_the_same_share(graph, kind, ratio):
    torch.manual_seed(1)
    model = kind(graph.num_features, [8, 5], 3, norm="batch")
    before = [p.clone() for p in model.parameters()]
    small = slim(model, ratio)
    kept = [8 - int(ratio * 8), 5 - int(ratio * 5)]
    assert [layer.width for layer in small.stacked()] == [*kept, 3]
    assert all(map(torch.equal, before, model.parameters()))
    assert gebt.train(small, graph, epochs=2).history


def test_of_gat_whole_heads_leave_the_smallest_first(graph):
    torch.manual_seed(2)
    model = GAT(24, 3, 3, heads=4, layers=3, residual=True, input_map=True)
    first, middle = model.stacked()[1:3]
    with torch.no_grad():
        for head, size in enumerate((2.0, 0.1, 3.0, 1.0)):
            for weight in first.weights():
                weight[:, 3 * head : 3 * head + 3] *= size
    small = slim(model, 0.5)
    assert small.arguments["heads"] == [1, 2, 2]  # the map has no heads
    assert small.arguments["hidden"] == [6, 3, 3]
    kept = [0, 1, 2, 6, 7, 8]
    ours = small.stacked()[1]
    assert torch.equal(ours.source, first.source[:, [0, 2]])
    assert torch.equal(ours.bias, first.bias[kept])
    rows = model.unit_scores()[0].topk(6).indices.sort().values
    assert torch.equal(ours.weight, first.weight[rows][:, kept])
    assert small.stacked()[2].weight.shape == (6, 6)
    assert middle.weight.shape == (12, 12)
    assert gebt.train(small, graph, epochs=2).history
    assert slim(model, 0.3).arguments["heads"] == [1, 3, 3]


def test_of_resgcn_the_same_channels_leave_everywhere(graph):
    torch.manual_seed(3)
    model = ResGCN(24, 4, 3, layers=3)
    with torch.no_grad():
        model.norms[0].weight.copy_(torch.tensor([0.0, 3.0, 1.0, 2.0]))
        model.norms[1].weight.copy_(torch.tensor([2.5, 0.0, 1.0, 2.0]))
    small = slim(model, 0.5)
    assert small.arguments["hidden"] == 2 and "reads" not in small.arguments
    for ours, whole in zip(small.layers, model.layers, strict=True):
        assert torch.equal(ours.weight, whole.weight[[1, 3]][:, [1, 3]])
    assert torch.equal(small.norms[0].weight, torch.tensor([3.0, 2.0]))
    assert gebt.train(small, graph, epochs=2).history


def test_what_cannot_lose_units_is_refused():
    folded = GAT(3, 2, 2, norm="batch").shrink()[0]
    for model in (folded, nn.Linear(2, 2)):
        assert not can_slim(model)
        with pytest.raises(ValueError, match="does not know the hidden units of a"):
            slim(model, 0.5)
    assert not can_slim(GCN(3, 4, 2, layers=1))  # it has none
    with pytest.raises(ValueError, match="`prune_ratio`.*got 1.0"):
        slim(GCN(3, 4, 2), 1.0)
