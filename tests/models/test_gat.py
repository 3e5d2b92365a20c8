"""GAT: against PyG's layer, attention by hand, memory."""

import math

import pytest
import torch
from peers import StackPeer, assert_equals_pyg, double, edge_index, largest_saved_tensor
from torch import nn

from gebt import SparseMatrix
from gebt.models import GAT


@pytest.mark.parametrize("output_heads", [1, 3])
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
def test_outputs_and_every_gradient_equal_pyg(make_graph, sparse, output_heads):
    graph = double(make_graph(sparse=sparse))
    model = GAT(graph.num_features, 5, 3, heads=4, output_heads=output_heads)
    assert_equals_pyg(model, graph)


def test_values_multiply_the_attention_after_its_softmax_by_hand():
    # Two heads that copy x; attention on the source alone: log 3 at node 1, else 0.
    # Node 0 reads itself and node 1 (value 0.5): 1/4 x 4 + 0.5 x 3/4 x 8 = 4.
    adjacency = SparseMatrix.from_coo(
        torch.tensor([0]), torch.tensor([1]), torch.tensor([0.5]), (2, 2)
    )
    model = GAT(2, 1, 1, heads=2).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        first, last = model.layers
        first.weight.copy_(torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
        first.source[0, :, 0] = math.log(3) / 8
        first.target[0, :, 0] = 0.0
        last.weight.fill_(0.5)
    x = torch.tensor([[4.0, 0.0], [8.0, 0.0]])
    hidden = first(x, model.matrix(adjacency))
    share = 3**0.5  # exp(log 3 / 8 x 4) at node 0 itself; 3 at node 1
    expected = (share * 4 + 0.5 * 3 * 8) / (share + 3)
    torch.testing.assert_close(hidden[0], torch.tensor([expected, expected]))
    torch.testing.assert_close(hidden[1], torch.tensor([8.0, 8.0]))


def test_no_tensor_of_edges_times_features_is_kept_for_the_backward(make_graph):
    # 9,702 edges; 32 features and heads of 32 units.
    graph = double(make_graph(nodes=101, features=32, p_in=1.0, p_out=1.0))
    edges = graph.adjacency.pattern.nnz
    value = graph.adjacency.value.requires_grad_()
    model = GAT(32, 32, 32, heads=4, dropout=0.5).double().train()

    def forward():
        return model(graph.x, graph.adjacency)

    # Per edge and head some numbers, and (N, 4 x 32) hidden features.
    assert largest_saved_tensor(forward) <= 4 * (edges + graph.num_nodes)
    assert 4 * (edges + graph.num_nodes) < edges * 32
    peer = StackPeer(model)
    theirs = largest_saved_tensor(lambda: peer(graph.x, edge_index(graph), value))
    assert theirs >= edges * 32, "the check must see such a tensor where there is one"


def test_attention_is_dropped_in_training_only(graph):
    model = GAT(graph.num_features, 4, 3, dropout=0.5)
    layer, looped = model.layers[0], model.matrix(graph.adjacency)
    layer.train()  # the layer alone drops attention, not its input
    first, second = (layer(graph.x, looped) for _ in range(2))
    assert not torch.allclose(first, second)
    layer.eval()
    assert torch.equal(*(layer(graph.x, looped) for _ in range(2)))


def test_weights_are_pruned_and_attention_vectors_are_not():
    from gebt.prune.weights import prunable_weights

    model = GAT(7, 4, 3, heads=2)
    assert list(prunable_weights(model)) == ["layers.0.weight", "layers.1.weight"]
    assert isinstance(model.layers[0].source, nn.Parameter)
