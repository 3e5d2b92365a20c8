"""GCN and GIN: against PyG's layers, normalisation by hand."""

import pytest
import torch
from peers import SMALL, StackPeer, assert_equals_pyg, double, edge_index, shaken

from gebt import SparseMatrix
from gebt.models import GCN, GIN, gcn_norm


@pytest.mark.parametrize("hidden", [[], [5], [17, 9]], ids=["1", "2", "3"])
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("kind", [GCN, GIN])
def test_outputs_and_every_gradient_equal_pyg(make_graph, kind, sparse, hidden):
    graph = double(make_graph(sparse=sparse))
    assert isinstance(graph.x, SparseMatrix) == sparse
    assert_equals_pyg(kind(graph.num_features, hidden, 3), graph)


def test_gcn_equals_pyg_in_float32_without_edge_weights(graph):
    model = GCN(graph.num_features, 16, 3).eval()
    peer = StackPeer(model).float()
    expected = peer(graph.x, edge_index(graph), None)
    out = model(graph.x, graph.adjacency)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


def test_gcn_norm_of_a_path_with_an_isolated_node_by_hand():
    # 0 - 1 with weight 3; node 2 alone. Degrees 4, 4, 1.
    one_way = torch.tensor([0, 1])
    path = SparseMatrix.from_coo(
        one_way, one_way.flip(0), torch.tensor([3.0, 3.0]), (3, 3)
    )
    expected = torch.tensor([[0.25, 0.75, 0], [0.75, 0.25, 0], [0, 0, 1.0]])
    torch.testing.assert_close(gcn_norm(path).to_dense(), expected)


def test_gcn_norm_takes_magnitudes_for_the_degrees():
    at = torch.tensor([0, 1])
    path = SparseMatrix.from_coo(at, at.flip(0), torch.tensor([-3.0, -3.0]), (2, 2))
    expected = torch.tensor([[0.25, -0.75], [-0.75, 0.25]])
    torch.testing.assert_close(gcn_norm(path).to_dense(), expected)


def test_gin_sums_a_node_and_its_weighted_neighbours_by_hand():
    # 0 <-3- 1 and 1 <-2- 0; node 2 alone. One layer, identity plus a bias.
    at = torch.tensor([0, 1])
    adjacency = SparseMatrix.from_coo(at, at.flip(0), torch.tensor([3.0, -2.0]), (3, 3))
    model = GIN(1, [], 1).eval()
    with torch.no_grad():
        model.layers[0].weight.fill_(1.0)
        model.layers[0].bias.fill_(0.5)
    out = model(torch.tensor([[1.0], [10.0], [100.0]]), adjacency)
    assert out.flatten().tolist() == [31.5, 8.5, 100.5]


@pytest.mark.parametrize("name", ["GCN", "GIN"])
def test_nodes_without_links_go_through_the_weights_alone(graph, name):
    lonely = graph.keep_links(torch.zeros(graph.num_links, dtype=torch.bool))
    model = shaken(SMALL[name](graph.num_features, 3)).float()
    expected = graph.x
    for depth, layer in enumerate(model.layers):
        expected = (expected.relu() if depth else expected) @ layer.weight + layer.bias
    torch.testing.assert_close(model(lonely.x, lonely.adjacency), expected)
