"""Masks to and from torch.nn.utils.prune."""

import pytest
import torch
from helpers import built, same
from torch.nn.utils import prune
from torch_geometric.nn.models import GAT

import gebt
from gebt.integrations.prune import from_torch_prune, to_torch_prune
from gebt.prune.weights import apply_masks, prunable_weights


def random_masks(model):
    weights = prunable_weights(model)
    return {name: torch.rand(weight.shape) < 0.3 for name, weight in weights.items()}


@pytest.mark.parametrize("kind", ["gebt", "pyg"])
def test_torch_prunes_what_the_masks_drop_and_no_step_brings_it_back(kind, graph, data):
    model = built(graph) if kind == "gebt" else GAT(24, 8, 2, 3, heads=2)
    given = (graph.x, graph.adjacency if kind == "gebt" else data.edge_index)
    masks = random_masks(model)
    to_torch_prune(model, masks)
    assert same(from_torch_prune(model), masks)

    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(*given).square().sum().backward()
        optimizer.step()
    out = model.eval()(*given)
    for name in masks:
        module, _, parameter = name.rpartition(".")
        prune.remove(model.get_submodule(module), parameter)
    for name, mask in masks.items():
        weight = model.get_parameter(name)
        assert not weight[~mask].any() and weight[mask].all()
    torch.testing.assert_close(model(*given), out, rtol=0, atol=0)


def test_masks_that_torch_has_made_are_kept_by_train(graph):
    model = built(graph)
    prune.l1_unstructured(model.layers[0], "weight", 0.75)
    prune.random_unstructured(model.layers[0], "weight", 0.5)  # of what is left
    masks = from_torch_prune(model)
    assert [*masks] == ["layers.0.weight"]
    assert masks["layers.0.weight"].count_nonzero() == 24 * 16 // 8
    prune.remove(model.layers[0], "weight")
    gebt.train(model, graph, keep=masks, epochs=3)
    pruned = gebt.models.build_model(gebt.models.describe_model(model))
    pruned.load_state_dict(model.state_dict())
    apply_masks(pruned, masks)
    assert same(pruned.state_dict(), model.state_dict())
    assert from_torch_prune(model) == {}


def test_a_buffer_that_is_no_mask_is_none():
    model = torch.nn.Linear(2, 2)
    model.register_buffer("weight_mask", torch.ones(2, 2))
    assert from_torch_prune(model) == {}


def test_pruning_twice_is_refused(graph):
    model = built(graph)
    masks = random_masks(model)
    to_torch_prune(model, masks)
    with pytest.raises(ValueError, match="does not have.*weight_orig"):
        to_torch_prune(model, masks)


@pytest.mark.filterwarnings("ignore:the masks did not settle")
def test_what_torch_prunes_is_refused_where_a_file_could_not_be_read_again(
    graph, tmp_path
):
    model = built(graph)
    ticket = gebt.find_ticket(model, graph, epochs=2)
    small = ticket.open(model, graph)
    to_torch_prune(model, ticket.weight_masks)
    for refuses in (
        lambda: gebt.find_ticket(model, graph, epochs=2),
        lambda: gebt.compact(model, small),
        lambda: gebt.save_compact(tmp_path / "m.safetensors", model, small),
        lambda: gebt.export(tmp_path / "m.pt2", model, small),
    ):
        with pytest.raises(ValueError, match="pruned by `torch.nn.*utils.prune.remove"):
            refuses()
    for name in ticket.weight_masks:
        prune.remove(model.get_submodule(name.removesuffix(".weight")), "weight")
    fast, least = gebt.compact(model, small)
    expected = model.eval()(small.x, small.adjacency)
    torch.testing.assert_close(fast(least.x, least.adjacency), expected)
