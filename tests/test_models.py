"""gebt.models: the GCN against PyG's, rows, dropout, descriptions."""

import pytest
import torch
from torch import nn

from gebt import Graph, SparseMatrix
from gebt.models import GCN, build_model, describe_model, gcn_norm
from gebt.models._layers import dropout


class PyGStack(nn.Module):
    """The same network out of PyG's layers, holding a gebt model's weights."""

    def __init__(self, model: GCN):
        super().__init__()
        from torch_geometric.nn import GCNConv

        self.convs = nn.ModuleList()
        for layer in model.layers:
            conv = GCNConv(*layer.weight.shape).to(layer.weight.dtype)
            conv.lin.weight.data = layer.weight.detach().t().clone()
            conv.bias.data = layer.bias.detach().clone()
            self.convs.append(conv)

    def forward(self, x, edge_index, edge_weight=None):
        for depth, conv in enumerate(self.convs):
            x = conv(x.relu() if depth else x, edge_index, edge_weight)
        return x


def dense(x):
    return x.to_dense() if isinstance(x, SparseMatrix) else x


def double(graph: Graph) -> Graph:
    """The graph in float64, with random positive edge weights."""
    draw = torch.Generator().manual_seed(3)
    count = graph.adjacency.pattern.nnz
    weight = 0.2 + torch.rand(count, generator=draw, dtype=torch.float64)
    x = graph.x
    x = x.with_value(x.value.double()) if isinstance(x, SparseMatrix) else x.double()
    adjacency = graph.adjacency.with_value(weight)
    return Graph(x, adjacency, graph.link, graph.num_links, graph.y, graph.split)


def edge_index(graph: Graph) -> torch.Tensor:
    pattern = graph.adjacency.pattern
    return torch.stack([pattern.col, pattern.row]).long()


@pytest.mark.parametrize("hidden", [[], [5], [17, 9]], ids=["1", "2", "3"])
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
def test_gcn_equals_pyg_in_output_and_every_gradient(make_graph, hidden, sparse):
    graph = double(make_graph(sparse=sparse))
    assert isinstance(graph.x, SparseMatrix) == sparse
    model = GCN(graph.num_features, hidden, 3, dropout=0.5).double().eval()
    for layer in model.layers:
        nn.init.normal_(layer.bias)
    peer = PyGStack(model)
    ours = graph.adjacency.value.requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    out = model(graph.x, graph.adjacency)
    expected = peer(dense(graph.x), edge_index(graph), theirs)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)

    weigh = torch.randn_like(expected)
    (out * weigh).sum().backward()
    (expected * weigh).sum().backward()
    assert ours.grad.count_nonzero() > 0
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-10, atol=1e-10)
    for layer, conv in zip(model.layers, peer.convs, strict=True):
        for a, b in (
            (layer.weight.grad, conv.lin.weight.grad.t()),
            (layer.bias.grad, conv.bias.grad),
        ):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_gcn_passes_a_gradient_to_dense_features(make_graph):
    graph = double(make_graph())
    model = GCN(graph.num_features, 5, 3).double().eval()
    ours, theirs = (graph.x.clone().requires_grad_() for _ in range(2))
    model(ours, graph.adjacency).square().sum().backward()
    out = PyGStack(model)(theirs, edge_index(graph), graph.adjacency.value)
    out.square().sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-10, atol=1e-10)


def test_gcn_equals_pyg_in_float32_without_edge_weights(graph):
    model = GCN(graph.num_features, 16, 3).eval()
    expected = PyGStack(model)(graph.x, edge_index(graph))
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


def test_isolated_nodes_depend_on_themselves_alone(graph):
    lonely = graph.keep_links(torch.zeros(graph.num_links, dtype=torch.bool))
    model = GCN(graph.num_features, 8, 3).eval()
    w, v = (layer.weight for layer in model.layers)
    expected = (graph.x @ w).relu() @ v
    torch.testing.assert_close(model(lonely.x, lonely.adjacency), expected)


@pytest.mark.parametrize("hidden", [[], [5], [17, 9]], ids=["1", "2", "3"])
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("wanted", [[7], [31, 2, 119, 2], None], ids=str)
def test_rows_are_the_rows_of_the_full_output(make_graph, hidden, sparse, wanted):
    # Few links, so that two hops do not reach everything.
    graph = double(make_graph(sparse=sparse, p_in=0.01, p_out=0.001))
    model = GCN(graph.num_features, hidden, 3).double().eval()
    rows = graph.split.train if wanted is None else torch.tensor(wanted)
    weigh = torch.randn(rows.numel(), 3, dtype=torch.float64)
    results = []
    for choose in (True, False):
        value = graph.adjacency.value.detach().clone().requires_grad_()
        adjacency = graph.adjacency.with_value(value)
        if choose:
            out = model(graph.x, adjacency, rows)
        else:
            out = model(graph.x, adjacency)[rows]
        parameters = [value, *model.parameters()]
        grads = torch.autograd.grad((out * weigh).sum(), parameters)
        results.append((out, *grads))
    for mine, full in zip(*results, strict=True):
        torch.testing.assert_close(mine, full, rtol=1e-10, atol=1e-10)


def test_rows_are_right_after_the_values_changed_in_place(graph):
    # The row blocks are kept with the adjacency; a stale one must not be used.
    model = GCN(graph.num_features, 4, 3).eval()
    rows = torch.tensor([3, 50])
    adjacency = graph.adjacency.with_value(graph.adjacency.value.clone())
    before = model(graph.x, adjacency, rows)
    adjacency.value.mul_(0.1)
    after = model(graph.x, adjacency, rows)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, model(graph.x, adjacency)[rows])


def test_sparse_and_dense_features_agree(sparse_graph):
    model = GCN(sparse_graph.num_features, 16, 3).eval()
    sparse = model(sparse_graph.x, sparse_graph.adjacency)
    full = model(sparse_graph.x.to_dense(), sparse_graph.adjacency)
    torch.testing.assert_close(sparse, full, rtol=1e-5, atol=1e-5)


def test_relabelling_the_nodes_relabels_the_output(graph):
    model = GCN(graph.num_features, 8, 3).eval()
    new = torch.randperm(graph.num_nodes)
    old = new.argsort()
    pattern = graph.adjacency.pattern
    moved = SparseMatrix.from_coo(
        new[pattern.row], new[pattern.col], graph.adjacency.value, pattern.shape
    )
    out = model(graph.x[old], moved)
    expected = model(graph.x, graph.adjacency)[old]
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_drops_its_share_scales_the_rest_and_is_unbiased(p):
    n = 400_000
    out = dropout(torch.ones(n // 100, 100), p, True)
    dropped = (out == 0).double().mean()
    five_sigma = 5 * (p * (1 - p) / n) ** 0.5
    assert abs(dropped - p) < five_sigma + 2**-16
    kept = out[out != 0]
    # p is rounded to a multiple of 2^-16.
    torch.testing.assert_close(
        kept, torch.full_like(kept, 1 / (1 - p)), rtol=2e-4, atol=0
    )
    assert abs(out.double().mean() - 1) < five_sigma / (1 - p) + 1e-6


def test_dropout_is_independent_across_entries():
    out = dropout(torch.ones(100_000, 4), 0.5, True) != 0
    pairs = (out[:, 0] & out[:, 1]).double().mean()
    assert abs(pairs - 0.25) < 0.01
    assert not torch.equal(out[:, 0], out[:, 1])


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7])
def test_dropout_takes_sizes_that_are_no_multiple_of_four(size):
    out = dropout(torch.ones(size, 1), 0.5, True)
    assert out.shape == (size, 1)
    assert set(out.flatten().tolist()) <= {0.0, 2.0}


def test_dropout_repeats_with_the_seed_only():
    x = torch.randn(50, 20)
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(dropout(x, 0.5, True))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_dropout_reaches_sparse_features_and_their_gradient(sparse_graph):
    x = sparse_graph.x
    value = x.value.detach().clone().requires_grad_()
    out = dropout(x.with_value(value), 0.5, True)
    assert out.pattern is x.pattern
    share = float((out.value == 0).float().mean())
    assert 0.3 < share < 0.7
    out.value.sum().backward()
    assert torch.equal(value.grad != 0, out.value != 0)


def test_dropout_does_nothing_in_evaluation_mode_or_at_zero(graph, sparse_graph):
    for x in (graph.x, sparse_graph.x):
        assert dropout(x, 0.5, False) is x
        assert dropout(x, 0.0, True) is x


def test_gcn_drops_features_too(graph):
    # One layer without hidden units: only dropout on the features can matter.
    model = GCN(graph.num_features, [], 3, dropout=0.5).train()
    first, second = (model(graph.x, graph.adjacency) for _ in range(2))
    assert not torch.allclose(first, second)
    model.eval()
    first, second = (model(graph.x, graph.adjacency) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("p", [-0.1, 1, 1.5])
def test_gcn_refuses_a_dropout_out_of_range(p):
    with pytest.raises(ValueError, match=r"`dropout` must lie in \[0, 1\), got"):
        GCN(4, 4, 2, dropout=p)


def test_hidden_is_one_width_or_a_sequence_of_them():
    assert [m.weight.shape for m in GCN(9, 5, 2).layers] == [(9, 5), (5, 2)]
    assert [m.weight.shape for m in GCN(9, (5, 4), 2).layers] == [
        (9, 5),
        (5, 4),
        (4, 2),
    ]
    assert [m.weight.shape for m in GCN(9, [], 2).layers] == [(9, 2)]
    assert GCN(9, (5, 4), 2).hidden == [5, 4]


@pytest.mark.parametrize("inner_bias", [False, True])
def test_a_description_rebuilds_the_model(graph, inner_bias):
    import json

    model = GCN(graph.num_features, (6, 5), 3, dropout=0.3, inner_bias=inner_bias)
    description = json.loads(json.dumps(describe_model(model)))
    again = build_model(description)
    assert describe_model(again) == describe_model(model)
    again.load_state_dict(model.state_dict())
    outputs = [m.eval()(graph.x, graph.adjacency) for m in (model, again)]
    assert torch.equal(*outputs)


def test_only_gebts_own_models_are_rebuilt():
    description = describe_model(nn.Linear(2, 2))
    assert description == {"class": "Linear", "arguments": None}
    with pytest.raises(ValueError, match="cannot rebuild a model of class 'Linear'"):
        build_model(description)
    with pytest.raises(ValueError, match="cannot rebuild a model of class None"):
        build_model({})
