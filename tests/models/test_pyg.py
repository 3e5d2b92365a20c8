"""gebt.models.pyg: users' own PyG models, searched and translated as they are."""

from copy import deepcopy

import pytest
import torch
from peers import close, double, edge_index, shaken, turned
from torch import Tensor, nn
from torch_geometric.nn import GATConv, GCNConv, MessagePassing, models

import gebt
from gebt import compact
from gebt.models import GCN, GraphSAGE, adapt, describe_model, translate

UNWEIGHTED = {
    "GIN": lambda: models.GIN(24, 6, 2, 3),
    "GraphSAGE": lambda: models.GraphSAGE(24, 6, 2, 3),
    "GAT": lambda: models.GAT(24, 6, 2, 3, heads=2),
}
"""PyG models that take no edge weight, or ignore it."""


class TwoLayers(nn.Module):
    """What a user writes; takes no edge weight."""

    def __init__(self, **options):
        super().__init__()
        self.first = GCNConv(24, 6, **options)
        self.second = GATConv(6, 3)

    def forward(self, x, edge_index):
        return self.second(self.first(x, edge_index).relu(), edge_index)


class Deaf(nn.Module):
    """Takes an edge weight and ignores all edges."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(24, 3)

    def forward(self, x, edge_index, edge_weight=None):
        return self.linear(x)


class Scaled(nn.Module):
    """Reads the edges; its parameters are one-dimensional."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(24))

    def forward(self, x, edge_index, edge_weight):
        messages = edge_weight[:, None] * x[edge_index[0]]
        near = torch.zeros_like(x).index_add(0, edge_index[1], messages)
        return (near * self.scale)[:, :3]


def learned(model, graph) -> tuple[Tensor, Tensor]:
    """Outputs of a model and the gradient of the link values."""
    value = graph.adjacency.value.detach().clone().requires_grad_()
    out = model(graph.x, graph.adjacency.with_value(value))
    draw = torch.Generator().manual_seed(5)
    weigh = torch.randn(out.shape, generator=draw, dtype=out.dtype)
    (grad,) = torch.autograd.grad((out * weigh).sum(), value)
    return out.detach(), grad


def ones(graph):
    value = torch.ones_like(graph.adjacency.value)
    return graph.adjacency.with_value(value)


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
def test_link_gradients_of_an_adapted_gcn_equal_those_of_gebts(make_graph, sparse):
    graph = double(make_graph(sparse=sparse))
    peer = shaken(models.GCN(24, 6, 2, 3))
    model = GCN(24, 6, 3).double().eval()
    with torch.no_grad():
        for layer, conv in zip(model.layers, peer.convs, strict=True):
            layer.weight.copy_(turned(conv.lin.weight))
            layer.bias.copy_(conv.bias)
    for ours, theirs in zip(
        learned(model, graph), learned(adapt(peer), graph), strict=True
    ):
        close(ours, theirs)


@pytest.mark.parametrize("name", UNWEIGHTED)
def test_values_of_one_change_nothing_and_no_hook_stays(make_graph, name):
    graph = double(make_graph())
    model = shaken(UNWEIGHTED[name]())
    expected = model(graph.x, edge_index(graph))
    adapted = adapt(model)
    close(adapted(graph.x, ones(graph)), expected)
    learned(adapted, graph)
    assert torch.equal(model(graph.x, edge_index(graph)), expected)
    assert not hooks(model)


def hooks(model) -> list:
    layers = [m for m in model.modules() if isinstance(m, MessagePassing)]
    return [h for layer in layers for h in layer._message_forward_hooks.values()]


@pytest.mark.parametrize("name", ["GIN", "GraphSAGE"])
def test_where_all_values_are_zero_no_message_is_left(make_graph, name):
    graph = double(make_graph())
    model = shaken(UNWEIGHTED[name]())
    none = graph.adjacency.with_value(torch.zeros_like(graph.adjacency.value))
    expected = model(graph.x, torch.empty(2, 0, dtype=torch.int64))
    close(adapt(model)(graph.x, none), expected)


def test_a_link_of_value_zero_is_as_good_as_removed_where_messages_add_up(make_graph):
    graph = double(make_graph())
    model = shaken(UNWEIGHTED["GIN"]())
    cut = graph.link == graph.link[0]
    assert cut.sum() == 2  # both directions
    weights = graph.adjacency.with_value((~cut).double())
    expected = model(graph.x, edge_index(graph)[:, ~cut])
    close(adapt(model)(graph.x, weights), expected)
    assert not torch.isclose(expected, model(graph.x, edge_index(graph))).all()


def test_values_count_after_gats_softmax_and_self_loops_count_one_by_hand():
    # Attention vectors of zero: node 0 averages itself, node 1 and node 2, in thirds.
    model = models.GAT(1, 1, 1).eval()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    nn.init.ones_(model.convs[0].lin.weight)
    row, col = torch.tensor([0, 0]), torch.tensor([1, 2])
    adjacency = gebt.SparseMatrix.from_coo(row, col, torch.tensor([0.0, 0.5]), (3, 3))
    out = adapt(model)(torch.tensor([[3.0], [600.0], [60.0]]), adjacency)
    torch.testing.assert_close(out, torch.tensor([[11.0], [600.0], [60.0]]))


@pytest.mark.parametrize("name", UNWEIGHTED)
def test_every_link_gets_a_gradient(make_graph, name):
    graph = double(make_graph())
    _, grad = learned(adapt(shaken(UNWEIGHTED[name]())), graph)
    assert (grad != 0).double().mean() > 0.9


@pytest.mark.parametrize("name", UNWEIGHTED)
def test_link_gradients_are_those_of_finite_differences(make_graph, name):
    graph = double(make_graph(nodes=12))
    adapted = adapt(shaken(UNWEIGHTED[name]()))

    def forward(value):
        return adapted(graph.x, graph.adjacency.with_value(value))

    value = graph.adjacency.value.clone().requires_grad_()
    assert torch.autograd.gradcheck(forward, (value,))


def test_hooks_are_gone_after_an_error(make_graph):
    graph = double(make_graph())
    adapted = adapt(shaken(TwoLayers()))
    with pytest.raises(RuntimeError):
        adapted(graph.x[:, :5], graph.adjacency)
    assert not hooks(adapted)


@pytest.mark.parametrize("name", ["own", *UNWEIGHTED])
def test_an_adapted_model_is_searched_retrained_and_used_as_before(graph, name):
    model = (UNWEIGHTED | {"own": TwoLayers})[name]()
    adapted = adapt(model)
    assert describe_model(adapted)["class"] == f"adapted {type(model).__name__}"
    ticket = gebt.find_ticket(adapted, graph, weight_ratio=0.5)
    assert ticket.link_score.std() > 0
    small = ticket.open(adapted, graph)
    assert small.links_kept == graph.num_links - int(0.2 * graph.num_links)
    gebt.train(adapted, small, keep=ticket.weight_masks, epochs=30)
    assert gebt.evaluate(adapted, small) > 60
    for name, mask in ticket.weight_masks.items():
        weight = model.get_parameter(name.removeprefix("model."))
        assert not weight[~mask].any()
    assert model(graph.x, edge_index(graph)).shape == (120, 3)
    assert not hooks(model)


class WithBatch(TwoLayers):
    def forward(self, x, edge_index, batch):
        return super().forward(x, edge_index)


class FromData(TwoLayers):
    def forward(self, data):
        return super().forward(data.x, data.edge_index)


class Transposed(TwoLayers):
    def forward(self, x, adj_t):
        return super().forward(x, adj_t)


class RequiredWeight(TwoLayers):
    def forward(self, x, edge_index, edge_weight):
        return self.first(x, edge_index, edge_weight)


class OptionalBatch(TwoLayers):
    def forward(self, x, edge_index, batch=None, *, scale=1.0):
        return scale * super().forward(x, edge_index)


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (WithBatch, "x, edge_index, batch"),
        (FromData, "data"),
        (Transposed, "x, adj_t"),
    ],
)
def test_another_forward_is_refused(kind, arguments):
    words = rf"{kind.__name__} has forward\({arguments}\); gebt calls forward\(x, edge"
    with pytest.raises(ValueError, match=words):
        adapt(kind())


@pytest.mark.parametrize("kind", [RequiredWeight, OptionalBatch])
def test_a_required_edge_weight_and_optional_arguments_are_taken(make_graph, kind):
    graph = double(make_graph())
    _, grad = learned(adapt(kind().double()), graph)
    assert grad.count_nonzero() > 0


def test_a_layer_that_caches_is_refused_by_name():
    with pytest.raises(ValueError, match="^first is a GCNConv with `cached=True`"):
        adapt(TwoLayers(cached=True))


def test_a_model_that_links_cannot_reach_is_refused():
    class Plain(nn.Linear):
        def forward(self, x, edge_index):
            return super().forward(x)

    words = "Plain takes no edge weight and has no PyG `MessagePassing` layer"
    with pytest.raises(ValueError, match=words):
        adapt(Plain(24, 3))


def test_a_layer_that_sends_fewer_messages_than_there_are_edges_is_refused(make_graph):
    class Dropping(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = models.GraphSAGE(24, 3, 1)

        def forward(self, x, edge_index):
            return self.conv(x, edge_index[:, 1:])

    graph = double(make_graph())
    count = graph.adjacency.pattern.nnz
    words = f"a SAGEConv sends {count - 1} messages over {count} edges"
    with pytest.raises(ValueError, match=words):
        adapt(Dropping().double())(graph.x, graph.adjacency)


def test_a_model_that_ignores_its_edges_is_found_out(graph):
    with pytest.raises(ValueError, match="no link received a gradient: the outputs of"):
        gebt.find_ticket(adapt(Deaf()), graph)
    gebt.find_ticket(adapt(Deaf()), graph, graph_ratio=0)  # its weights can be pruned


def test_a_model_without_matrices_cannot_be_pruned_and_says_so(graph):
    with pytest.raises(ValueError, match="has nothing to prune: none of its") as error:
        gebt.find_ticket(adapt(Scaled()), graph)
    assert "\n" not in str(error.value)
    gebt.find_ticket(adapt(Scaled()), graph, weight_ratio=0)  # its links can


PLAIN = [
    (kind, depth, options)
    for kind in (models.GCN, models.GraphSAGE)
    for depth in (1, 2, 4)
    for options in ({}, {"bias": False}, {"dropout": 0.5})
]


@pytest.mark.parametrize(("kind", "depth", "options"), PLAIN)
def test_pygs_gcn_and_graphsage_translate_exactly(make_graph, kind, depth, options):
    graph = double(make_graph())
    adapted = adapt(shaken(kind(24, 7, depth, 3, **options)))
    before = deepcopy(adapted.state_dict())
    expected = adapted(graph.x, graph.adjacency)
    translated = translate(adapted.model)
    assert type(translated) is {models.GCN: GCN, models.GraphSAGE: GraphSAGE}[kind]
    assert translated.dropout == options.get("dropout", 0.0)
    close(translated.eval()(graph.x, graph.adjacency), expected)
    fast, small = compact(adapted, graph)
    assert type(fast) is type(translated) and not fast.training
    close(fast(small.x, small.adjacency), expected)
    with torch.no_grad():
        for parameter in (*translated.parameters(), *fast.parameters()):
            parameter.add_(1)
    assert all(torch.equal(w, before[n]) for n, w in adapted.state_dict().items())


def test_a_pruned_pyg_model_compacts_to_a_smaller_one(graph):
    adapted = adapt(models.GraphSAGE(24, 16, 2, 3))
    ticket = gebt.find_ticket(adapted, graph, weight_ratio=0.97)
    small = ticket.open(adapted, graph)
    fast, smaller = compact(adapted, small)
    assert fast.arguments["hidden"][0] < 16
    assert smaller.num_features < 24
    adapted.eval()
    out = fast(smaller.x, smaller.adjacency)
    torch.testing.assert_close(out, adapted(small.x, small.adjacency))


def test_a_lazy_model_translates_once_it_has_its_shapes(make_graph):
    graph = double(make_graph())
    adapted = adapt(models.GCN(-1, 7, 2, 3).double())
    expected = adapted(graph.x, graph.adjacency)
    fast, small = compact(adapted, graph)
    assert isinstance(fast, GCN)
    close(fast(small.x, small.adjacency), expected)


class Pooled(models.GCN):
    def forward(self, x, edge_index, edge_weight=None):
        return super().forward(x, edge_index, edge_weight).softmax(dim=1)


OTHERS = {
    "elu": lambda: models.GCN(24, 7, 2, 3, act="elu"),
    "no-act": lambda: models.GCN(24, 7, 2, 3, act=None),
    "act-first": lambda: models.GCN(24, 7, 2, 3, act_first=True, norm="BatchNorm"),
    "norm": lambda: models.GCN(24, 7, 2, 3, norm="BatchNorm"),
    "jk-last": lambda: models.GCN(24, 7, 2, 3, jk="last"),
    "jk-cat": lambda: models.GraphSAGE(24, 7, 2, 3, jk="cat"),
    "improved": lambda: models.GCN(24, 7, 2, 3, improved=True),
    "not-normalised": lambda: models.GCN(24, 7, 2, 3, normalize=False),
    "no-loops": lambda: models.GCN(24, 7, 2, 3, add_self_loops=False),
    "gcn-max": lambda: models.GCN(24, 7, 2, 3, aggr="max"),
    "gcn-reversed": lambda: models.GCN(24, 7, 2, 3, flow="target_to_source"),
    "sage-normalised": lambda: models.GraphSAGE(24, 7, 2, 3, normalize=True),
    "sage-max": lambda: models.GraphSAGE(24, 7, 2, 3, aggr="max"),
    "sage-sum": lambda: models.GraphSAGE(24, 7, 2, 3, aggr="sum"),
    "sage-project": lambda: models.GraphSAGE(24, 7, 2, 3, project=True),
    "sage-no-root": lambda: models.GraphSAGE(24, 7, 2, 3, root_weight=False),
    "sage-reversed": lambda: models.GraphSAGE(24, 7, 2, 3, flow="target_to_source"),
    "subclass": lambda: Pooled(24, 7, 2, 3),
    "GIN": UNWEIGHTED["GIN"],
    "GAT": UNWEIGHTED["GAT"],
    "own": TwoLayers,
}


@pytest.mark.parametrize("name", OTHERS)
def test_any_other_model_stays_an_adapted_copy_with_the_same_outputs(data, name):
    # Directed, with weights: reversed messages make a difference.
    data.edge_index = data.edge_index[:, data.edge_index[0] < data.edge_index[1]]
    graph = double(gebt.Graph.from_pyg(data))
    adapted = adapt(shaken(OTHERS[name]()))
    assert translate(adapted.model) is None
    expected = adapted(graph.x, graph.adjacency)
    fast, small = compact(adapted.train(), graph)
    assert type(fast) is type(adapted) and fast is not adapted
    assert fast.model is not adapted.model
    assert adapted.training and not fast.training
    assert torch.equal(fast(small.x, small.adjacency), expected)


@pytest.mark.parametrize("kind", [models.GCN, models.GraphSAGE])
def test_negative_link_values_stay_with_pygs_model(make_graph, kind):
    # PyG's degrees are sums of values, gebt's of magnitudes.
    graph = double(make_graph())
    value = graph.adjacency.value.clone()
    value[::50] *= -0.1
    graph = gebt.Graph(
        graph.x, graph.adjacency.with_value(value), graph.link, graph.num_links
    )
    adapted = adapt(shaken(kind(24, 7, 2, 3)))
    expected = adapted(graph.x, graph.adjacency)
    fast, small = compact(adapted, graph)
    assert type(fast) is type(adapted)
    close(fast(small.x, small.adjacency), expected)
