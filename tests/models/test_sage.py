"""GraphSAGE: against PyG's layer, the mean by hand."""

import pytest
import torch
from peers import assert_equals_pyg, double

from gebt import SparseMatrix
from gebt.models import GraphSAGE


@pytest.mark.parametrize("hidden", [[], [5], [17, 9]], ids=["1", "2", "3"])
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
def test_outputs_and_every_gradient_equal_pyg(make_graph, sparse, hidden):
    graph = double(make_graph(sparse=sparse))
    assert_equals_pyg(GraphSAGE(graph.num_features, hidden, 3), graph)


def test_the_mean_divides_by_the_links_kept_whatever_their_values_by_hand():
    # Node 0 reads 1 (value 3) and 2 (value 0); node 1 reads 0 (-2); node 2 nothing.
    row, col = torch.tensor([0, 0, 1]), torch.tensor([1, 2, 0])
    adjacency = SparseMatrix.from_coo(row, col, torch.tensor([3.0, 0, -2]), (3, 3))
    model = GraphSAGE(1, [], 1).eval()
    with torch.no_grad():
        model.layers[0].weight.fill_(1.0)
        model.layers[0].own_weight.fill_(0.1)
        model.layers[0].bias.fill_(0.5)
    out = model(torch.tensor([[10.0], [20.0], [30.0]]), adjacency)
    # 0.1 x own + mean + 0.5: 1 + 60 / 2 + 0.5; 2 - 20 + 0.5; 3 + 0.5.
    assert out.flatten().tolist() == [31.5, -17.5, 3.5]
    # A link that is dropped, rather than 0, no longer counts.
    kept = adjacency.select(torch.tensor([True, False, True]))
    out = model(torch.tensor([[10.0], [20.0], [30.0]]), kept)
    assert out.flatten().tolist() == [61.5, -17.5, 3.5]
