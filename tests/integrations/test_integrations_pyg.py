"""A ticket as a transform: PyG's layers give on the data what gebt's give on it."""

from shutil import copytree

import pytest
import torch
from helpers import built
from torch import nn
from torch_geometric.data import Data
from torch_geometric.datasets import Planetoid
from torch_geometric.nn import GCNConv
from torch_geometric.transforms import (
    AddSelfLoops,
    Compose,
    NormalizeFeatures,
    ToUndirected,
)
from torch_geometric.utils import contains_self_loops

import gebt
from gebt.integrations.pyg import ApplyTicket


class Net(nn.Module):
    """A plain PyG network."""

    def __init__(self, num_features, num_classes):
        super().__init__()
        self.first = GCNConv(num_features, 8)
        self.last = GCNConv(8, num_classes)

    def forward(self, x, edge_index, edge_weight=None):
        h = self.first(x, edge_index, edge_weight).relu()
        return self.last(h, edge_index, edge_weight)


def ticket_for(graph):
    """Drawn with link values that differ a lot."""
    model = built(graph, hidden=8)
    ticket = gebt.find_ticket(model, graph, graph_ratio=0.4, graph_lr=0.1, epochs=200)
    assert ticket.link_score.std() > 0.05 and ticket.link_score.min() > -1
    return ticket, model


def drawn(make_data, *, directed=False, weight=None):
    data = make_data()
    if directed:
        keep = torch.rand(data.num_edges) < 0.6
        data.edge_index = data.edge_index[:, keep]
    order = torch.randperm(data.num_edges)  # PyG's own order is not gebt's
    data.edge_index = data.edge_index[:, order]
    if weight:
        low, high = data.edge_index.sort(dim=0).values
        shape = (-1, 1) if weight == "edge_attr" else (-1,)
        data[weight] = (0.5 + (low * 7 + high * 3) % 11 / 10).view(shape)
    return data


@pytest.mark.parametrize("weight", [None, "edge_weight", "edge_attr"])
@pytest.mark.parametrize("directed", [False, True])
def test_pygs_layers_give_on_the_data_what_gebts_give_on_the_ticket(
    directed, weight, make_data
):
    data = drawn(make_data, directed=directed, weight=weight)
    graph = gebt.Graph.from_pyg(data)
    ticket, model = ticket_for(graph)
    small = ticket.open(model, graph)
    pruned = ApplyTicket(ticket)(data)
    assert pruned.num_edges == small.adjacency.pattern.nnz < data.num_edges
    assert pruned.validate() and pruned.num_nodes == data.num_nodes
    values = pruned[weight or "edge_weight"]
    assert (pruned.edge_weight is None) == (weight == "edge_attr")

    peer = Net(graph.num_features, 3)
    for conv, layer in zip((peer.first, peer.last), model.layers, strict=True):
        conv.lin.weight.data = layer.weight.detach().t().clone()
        conv.bias.data = layer.bias.detach().clone()
    with torch.no_grad():
        ours = model.eval()(small.x, small.adjacency)
        theirs = peer(pruned.x, pruned.edge_index, values)
        whole = peer(data.x, data.edge_index)
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)
    assert (theirs - whole).abs().max() > 0.1


def test_the_data_that_was_given_stays(data):
    data.edge_weight = torch.ones(data.num_edges)
    before = data.clone()
    ticket, _ = ticket_for(gebt.Graph.from_pyg(data))
    ApplyTicket(ticket)(data)
    assert data.keys() == before.keys()
    for key, value in before.items():
        assert torch.equal(data[key], value), key


def test_other_attributes_of_edges_go_with_them_and_all_else_stays(data):
    ticket, _ = ticket_for(gebt.Graph.from_pyg(data))
    data.edge_attr = data.edge_index.t().clone()  # integers: types, no weights
    data.name = "blocks"
    with pytest.warns(UserWarning, match="`data.edge_attr`.*is not used"):
        pruned = ApplyTicket(ticket)(data)
    assert torch.equal(pruned.edge_attr, pruned.edge_index.t())
    assert pruned.edge_weight.shape == (pruned.num_edges,)
    assert pruned.name == "blocks" and torch.equal(pruned.y, data.y)


def test_binary_links_leave_the_weights_as_they_are(make_data):
    data = drawn(make_data)
    ticket, model = ticket_for(gebt.Graph.from_pyg(data))
    binary = ApplyTicket(ticket, links="binary")
    learned = ApplyTicket(ticket)(data)
    assert binary(data).edge_weight is None
    assert torch.equal(binary(data).edge_index, learned.edge_index)
    with pytest.raises(ValueError, match="`links` must be one of 'learned', 'binary'"):
        ApplyTicket(ticket, links="all")


def test_self_loops_stay_and_their_weights_are_their_own(data):
    ticket, _ = ticket_for(gebt.Graph.from_pyg(data))
    looped = AddSelfLoops("edge_weight", fill_value=2.0)(
        Data(**data.to_dict(), edge_weight=torch.ones(data.num_edges))
    )
    with pytest.warns(UserWarning, match="120 self-loops"):
        pruned = ApplyTicket(ticket)(looped)
    loops = pruned.edge_index[0] == pruned.edge_index[1]
    assert loops.sum() == 120 and contains_self_loops(pruned.edge_index)
    assert (pruned.edge_weight[loops] == 2).all()
    without = ApplyTicket(ticket)(data)
    assert torch.equal(pruned.edge_index[:, ~loops], without.edge_index)
    assert torch.equal(pruned.edge_weight[~loops], without.edge_weight)


def test_it_composes_and_says_what_it_is(make_data):
    data = drawn(make_data, directed=True)
    graph = gebt.Graph.from_pyg(data, directed=False)
    ticket, _ = ticket_for(graph)
    both = Compose([ToUndirected(), ApplyTicket(ticket)])(data)
    assert both.is_undirected()
    assert both.num_edges == 2 * ticket.links_kept
    assert ticket.dataset["fingerprint"][:12] in repr(ApplyTicket(ticket))


def test_the_data_of_another_graph_is_refused(data, make_data):
    ticket, _ = ticket_for(gebt.Graph.from_pyg(data))
    apply = ApplyTicket(ticket)
    other = data.clone()
    other.edge_index = other.edge_index[:, 2:]
    for wrong in (other, make_data(seed=1), make_data(nodes=90)):
        with pytest.raises(ValueError, match=r"drawn on the graph.*Load the graph it"):
            apply(wrong)


@pytest.mark.parametrize("name", ["Cora", "CiteSeer"])
def test_gebts_graph_is_planetoids_with_normalised_features(
    name, planetoid_root, tmp_path
):
    copytree(planetoid_root / name / "raw", tmp_path / name / "raw")
    data = Planetoid(str(tmp_path), name, transform=NormalizeFeatures())[0]
    found = gebt.Graph.from_pyg(data).fingerprint()
    assert found == gebt.load(name.lower(), planetoid_root).fingerprint()


def test_several_kinds_of_nodes_are_refused(data):
    from torch_geometric.data import HeteroData

    ticket, _ = ticket_for(gebt.Graph.from_pyg(data))
    with pytest.raises(ValueError, match="several kinds of nodes"):
        ApplyTicket(ticket)(HeteroData())


def test_edges_that_are_listed_again_leave(make_data):
    data = drawn(make_data, weight="edge_weight")
    graph = gebt.Graph.from_pyg(data)
    ticket, model = ticket_for(graph)
    again = torch.arange(0, data.num_edges, 7)
    data.edge_index = torch.cat([data.edge_index, data.edge_index[:, again]], dim=1)
    data.edge_weight = torch.cat([data.edge_weight, 9 * data.edge_weight[again]])
    with pytest.warns(UserWarning, match="edges again"):
        small = ApplyTicket(ticket)(data)
    pruned = ticket.prune(graph)
    assert small.num_edges == pruned.adjacency.pattern.nnz
    target, source = small.edge_index[1], small.edge_index[0]
    entry = pruned.adjacency.pattern.find(target, source)
    torch.testing.assert_close(small.edge_weight, pruned.adjacency.value[entry])
