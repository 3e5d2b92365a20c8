"""Users' own PyG models, searched and translated as they are."""

import pickle
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from threading import Barrier

import pytest
import torch
from peers import close, double, edge_index, shaken, turned
from torch import Tensor, nn
from torch_geometric import EdgeIndex, utils
from torch_geometric.data import Data
from torch_geometric.nn import (
    CGConv,
    DeepGCNLayer,
    GATConv,
    GCNConv,
    GENConv,
    GINEConv,
    MessagePassing,
    NNConv,
    SAGEConv,
    Sequential,
    SuperGATConv,
    models,
    to_hetero,
)

import gebt
from gebt import compact
from gebt.models import GAT, GCN, GraphSAGE, adapt, describe_model, translate

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
def test_values_of_one_change_nothing_and_the_model_stays_as_it_was(make_graph, name):
    graph = double(make_graph())
    model = shaken(UNWEIGHTED[name]())
    expected = model(graph.x, edge_index(graph))
    adapted = adapt(model)
    close(adapted(graph.x, ones(graph)), expected)
    learned(adapted, graph)
    assert torch.equal(model(graph.x, edge_index(graph)), expected)


class Reordered(nn.Module):
    """Sums of messages; ``change`` makes the edges that its layers see."""

    def __init__(self, change=lambda edges: edges):
        super().__init__()
        self.convs = nn.ModuleList(
            [SAGEConv(24, 6, aggr="sum"), GCNConv(6, 6), GATConv(6, 3, heads=2)]
        )
        self.change = change

    def forward(self, x, edge_index):
        edge_index = self.change(edge_index)
        for conv in self.convs:
            x = conv(x, edge_index)
        return x


def alike(change) -> tuple[nn.Module, nn.Module]:
    """Two models of equal weights: one sees the edges as given, one changes them."""
    plain, other = Reordered(), Reordered(change)
    shaken(plain)
    other.double().load_state_dict(plain.state_dict())
    return adapt(plain), adapt(other.eval())


def one_way(data) -> gebt.Graph:
    """Directed, with random values, some pairs in both directions."""
    draw = torch.Generator().manual_seed(1)
    keep = torch.rand(data.num_edges, generator=draw) < 0.6
    data.edge_index = data.edge_index[:, keep]
    return double(gebt.Graph.from_pyg(data, directed=True))


ORDERS = {
    "coalesce": utils.coalesce,
    "sorted by target": lambda e: utils.sort_edge_index(e, sort_by_row=False),
    "turned round": lambda e: e.flip(1),
    "shuffled": lambda e: e[:, torch.randperm(e.shape[1])],
}


@pytest.mark.parametrize("order", ORDERS)
def test_each_link_keeps_its_value_where_a_model_reorders_its_edges(data, order):
    graph = one_way(data)
    plain, other = alike(ORDERS[order])
    for ours, theirs in zip(learned(other, graph), learned(plain, graph), strict=True):
        close(ours, theirs)


def test_to_undirected_changes_nothing_where_both_directions_are_links(data):
    graph = double(gebt.Graph.from_pyg(data, directed=True))
    plain, other = alike(utils.to_undirected)
    for ours, theirs in zip(learned(other, graph), learned(plain, graph), strict=True):
        close(ours, theirs)


def test_self_loops_count_one_wherever_a_model_puts_them(data):
    graph = one_way(data)
    loops = torch.arange(graph.num_nodes).repeat(2, 1)
    _, last = alike(lambda e: torch.cat([e, loops], dim=1))
    first = deepcopy(last)
    first.model.change = lambda e: torch.cat([loops, e], dim=1)
    for ours, theirs in zip(learned(first, graph), learned(last, graph), strict=True):
        close(ours, theirs)
    conv = first.model.convs[0]
    first.model.convs = first.model.convs[:1]
    looped = graph.adjacency.to_dense() + torch.eye(graph.num_nodes)
    expected = conv.lin_l(looped @ graph.x) + conv.lin_r(graph.x)
    close(first(graph.x, graph.adjacency), expected)


def test_edges_that_a_model_leaves_out_or_repeats_keep_their_values(data):
    graph = one_way(data)
    odd = torch.arange(graph.link.numel()) % 2 == 1
    _, adapted = alike(lambda e: e[:, odd].repeat(1, 2))
    conv = adapted.model.convs[0]
    adapted.model.convs = adapted.model.convs[:1]
    kept = graph.adjacency.select(odd).to_dense()
    expected = conv.lin_l(2 * kept @ graph.x) + conv.lin_r(graph.x)
    close(adapted(graph.x, graph.adjacency), expected)


class Bipartite(Reordered):
    def forward(self, x, edge_index):
        few = edge_index[:, edge_index[1] < 50]
        return self.convs[0]((x, x[:50]), few)


class Pooling(Reordered):
    def forward(self, x, edge_index):
        few = edge_index[:, (edge_index < 50).all(dim=0)]
        return self.convs[0](x[:50], few)


REFUSED = {
    "made undirected": (
        lambda: Reordered(utils.to_undirected),
        r"a SAGEConv sends messages along \d+ edges that the graph does not have, "
        r"such as \d+ -> \d+: .*`Graph.from_pyg\(data, directed=False\)`",
    ),
    "reversed": (lambda: Reordered(lambda e: e.flip(0)), "edges that the graph does"),
    "torch's sparse": (
        lambda: Reordered(
            lambda e: torch.sparse_coo_tensor(e, torch.ones(e.shape[1]), (120, 120))
        ),
        "a SAGEConv is given its edges as a Tensor, torch.sparse_coo, so gebt cannot",
    ),
    "EdgeIndex": (
        lambda: Reordered(lambda e: EdgeIndex(e, sparse_size=(120, 120))),
        "a SAGEConv is given its edges as a EdgeIndex, torch.strided, so gebt cannot",
    ),
    "bipartite": (Bipartite, "sends messages among 50 nodes, but the graph has 120"),
    "pooled": (Pooling, "sends messages among 50 nodes, but the graph has 120"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_messages_whose_links_cannot_be_told_are_refused(data, name):
    make, words = REFUSED[name]
    graph = one_way(data)
    with pytest.raises(ValueError, match=words):
        adapt(make().double())(graph.x, graph.adjacency)


class Meeting(nn.Module):
    """All threads are inside its forward at once."""

    def __init__(self, threads):
        super().__init__()
        self.conv = SAGEConv(24, 3)
        self.barrier = Barrier(threads, timeout=30)

    def forward(self, x, edge_index):
        self.barrier.wait()
        x = self.conv(x, edge_index)
        self.barrier.wait()
        return x


def test_one_model_serves_several_threads_each_with_its_own_graph(make_graph):
    graph = double(make_graph())
    model = Meeting(3).double()
    adapted = adapt(model).eval()
    values = [graph.adjacency.value * factor for factor in (1.0, 0.5, -2.0)]
    matrices = [graph.adjacency.with_value(value) for value in values]
    # One with fewer edges, too.
    matrices[2] = matrices[2].select(torch.arange(graph.link.numel()) % 3 > 0)
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda matrix: adapted(graph.x, matrix), matrices))
    model.barrier = Barrier(1)
    for out, matrix in zip(found, matrices, strict=True):
        assert torch.equal(out, adapted(graph.x, matrix))
    assert not torch.allclose(found[0], found[1])


def test_a_model_used_on_its_own_beside_an_adapted_forward_is_unchanged(make_graph):
    graph = double(make_graph())
    model = Meeting(2).double()
    adapted = adapt(model).eval()
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(adapted, graph.x, graph.adjacency)
        alone = model(graph.x, edge_index(graph))
    model.barrier = Barrier(1)
    assert torch.equal(alone, model(graph.x, edge_index(graph)))
    assert torch.equal(running.result(), adapted(graph.x, graph.adjacency))


def test_adapting_twice_or_sharing_a_layer_multiplies_once(make_graph):
    graph = double(make_graph())
    model = shaken(UNWEIGHTED["GIN"]())
    expected = adapt(model)(graph.x, graph.adjacency)
    for again in (adapt(model), adapt(deepcopy(model))):
        assert torch.equal(again(graph.x, graph.adjacency), expected)


@pytest.mark.parametrize("copy", [deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
@pytest.mark.parametrize("name", UNWEIGHTED)
def test_copies_of_a_model_and_of_its_adapted_form_work(make_graph, name, copy):
    graph = double(make_graph())
    model = shaken(UNWEIGHTED[name]())
    adapted = adapt(model)
    expected = adapted(graph.x, graph.adjacency)
    assert torch.equal(copy(adapted)(graph.x, graph.adjacency), expected)
    alone = copy(model)(graph.x, edge_index(graph))
    assert torch.equal(alone, model(graph.x, edge_index(graph)))


def test_a_layer_that_is_replaced_later_is_weighed_too(make_graph):
    graph = double(make_graph())
    model = shaken(models.GraphSAGE(24, 6, 2, 3))
    expected = adapt(model)(graph.x, graph.adjacency)
    other = adapt(models.GraphSAGE(24, 6, 2, 3).double().eval())
    other.model.convs = deepcopy(shaken(models.GraphSAGE(24, 6, 2, 3)).convs)
    other.model.load_state_dict(model.state_dict())
    assert torch.equal(other(graph.x, graph.adjacency), expected)


@pytest.mark.filterwarnings("ignore:Guards may run slower:RuntimeWarning")
def test_a_compiled_adapted_model_weighs_its_messages(make_graph):
    graph = double(make_graph())
    adapted = adapt(shaken(UNWEIGHTED["GIN"]()))
    compiled = torch.compile(adapted, backend="eager")
    out = compiled(graph.x, graph.adjacency)
    assert torch.equal(out, adapted(graph.x, graph.adjacency))
    inner = TwoLayers()
    inner.first = torch.compile(inner.first, backend="eager")
    with pytest.raises(
        ValueError, match="^first is compiled: PyG leaves out the hooks"
    ):
        adapt(inner)


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


def test_after_an_error_the_model_is_as_it_was(make_graph):
    graph = double(make_graph())
    adapted = adapt(shaken(TwoLayers()))
    expected = adapted.model(graph.x, edge_index(graph))
    with pytest.raises(RuntimeError):
        adapted(graph.x[:, :5], graph.adjacency)
    assert torch.equal(adapted.model(graph.x, edge_index(graph)), expected)


def with_weights(data) -> Data:
    draw = torch.Generator().manual_seed(4)
    data = data.clone()
    low, high = data.edge_index.sort(dim=0).values
    weight = torch.rand(120 * 120, generator=draw)[low * 120 + high]
    data.edge_weight = weight.where(weight > 0.1, 0)  # some of them 0
    return data


@pytest.mark.parametrize("name", ["own", *UNWEIGHTED])
def test_edge_weights_that_a_model_does_not_take_are_not_applied(data, name):
    model = shaken((UNWEIGHTED | {"own": TwoLayers})[name]())
    data.x = data.x.double()
    graph = gebt.Graph.from_pyg(with_weights(data))
    assert graph.adjacency.value.unique().numel() > 100
    adapted = adapt(model)
    expected = model(data.x, data.edge_index)
    close(adapted(graph.x, graph.adjacency), expected)
    for fast, small in (compact(adapted, graph), compact(adapted, graph.reorder())):
        close(small.restore(fast(small.x, small.adjacency)), expected)
    # Of a ticket's graph the learned values reach it, the weights do not.
    keep = torch.arange(graph.num_links) % 3 > 0
    learned = 0.5 + torch.rand(graph.num_links, dtype=torch.float64)
    weights = graph.keep_links(keep, learned)
    plain = gebt.Graph.from_pyg(data).keep_links(keep, learned)
    known = weights.adjacency.value != 0
    same = adapted(plain.x, plain.adjacency.select(known))
    close(adapted(weights.x, weights.adjacency.select(known)), same)
    fast, small = compact(adapted, weights)
    close(fast(small.x, small.adjacency), adapted(weights.x, weights.adjacency))


def test_edge_weights_reach_a_model_that_takes_them(data):
    model = shaken(models.GCN(24, 6, 2, 3))
    data = with_weights(data)
    data.x = data.x.double()
    graph = gebt.Graph.from_pyg(data)
    expected = model(data.x, data.edge_index, data.edge_weight.double())
    adapted = adapt(model)
    close(adapted(graph.x, graph.adjacency), expected)
    fast, small = compact(adapted, graph)
    assert isinstance(fast, GCN)
    close(fast(small.x, small.adjacency), expected)


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


def test_a_layer_that_repeats_its_messages_in_the_backward_is_refused():
    layer = DeepGCNLayer(SAGEConv(24, 24), block="plain", ckpt_grad=True)
    model = Sequential("x, edge_index", [(layer, "x, edge_index -> x")])
    with pytest.raises(ValueError, match="is a DeepGCNLayer with `ckpt_grad=True`"):
        adapt(model)


def test_a_model_that_links_cannot_reach_is_refused():
    class Plain(nn.Linear):
        def forward(self, x, edge_index):
            return super().forward(x)

    words = "Plain takes no edge weight and has no PyG `MessagePassing` layer"
    with pytest.raises(ValueError, match=words):
        adapt(Plain(24, 3))


class Halved(MessagePassing):
    def forward(self, x, edge_index):
        return self.propagate(edge_index, x=x)

    def message(self, x_j):
        return x_j[::2]


class Paired(Halved):
    def message(self, x_j):
        return x_j, x_j


@pytest.mark.parametrize(
    ("kind", "sent"), [(Halved, r"\d+ messages"), (Paired, "a tuple")]
)
def test_a_layer_whose_messages_are_not_one_per_edge_is_refused(graph, kind, sent):
    with pytest.raises(ValueError, match=f"a {kind.__name__} sends {sent} over 936"):
        adapt(kind())(graph.x, graph.adjacency)


class WithEdges(nn.Module):
    """Hands edge features on to its layer."""

    def __init__(self, conv):
        super().__init__()
        self.conv = conv

    def forward(self, x, edge_index, edge_attr=None):
        return self.conv(x, edge_index, edge_attr)


class WithoutEdges(WithEdges):
    def forward(self, x, edge_index):
        return self.conv(x, edge_index, torch.ones(edge_index.shape[1], 2))


class FromWeights(WithEdges):
    def forward(self, x, edge_index, edge_weight):
        return self.conv(x, edge_index, edge_weight[:, None])


def gine(width=2):
    return GINEConv(nn.Linear(24, 3), edge_dim=width)


@pytest.mark.parametrize(
    "conv",
    [
        gine,
        lambda: GATConv(24, 3, edge_dim=2),
        lambda: GENConv(24, 3, edge_dim=2),
        lambda: NNConv(24, 3, nn.Linear(2, 72)),
        lambda: CGConv(24, dim=2),
    ],
)
@pytest.mark.parametrize("kind", [WithEdges, WithoutEdges])
def test_a_layer_that_reads_edge_features_is_refused_by_name(kind, conv):
    layer = conv()
    words = f"^conv is a {type(layer).__name__} that reads edge features, which gebt"
    with pytest.raises(ValueError, match=words):
        adapt(kind(layer))


def test_pygs_own_model_with_edge_features_is_refused():
    with pytest.raises(ValueError, match="^convs.0 is a GATConv that reads edge feat"):
        adapt(models.GAT(24, 6, 2, 3, edge_dim=2))


def test_a_layer_that_reads_edge_weights_as_features_is_taken(make_graph):
    graph = double(make_graph())
    _, grad = learned(adapt(shaken(FromWeights(gine(1)))), graph)
    assert grad.count_nonzero() > 0


def test_a_required_edge_attr_is_refused_and_an_optional_one_warned_of(graph):
    class Requires(WithEdges):
        def forward(self, x, edge_index, edge_attr):
            return super().forward(x, edge_index, edge_attr)

    with pytest.raises(ValueError, match="edge_attr.; gebt calls .* without edge feat"):
        adapt(Requires(gine()))
    words = "WithEdges takes an `edge_attr`, which gebt does not keep"
    model = WithEdges(GCNConv(24, 3))
    with pytest.warns(UserWarning, match=words) as found:
        adapted = adapt(model)
    assert found[0].filename == __file__
    assert adapted(graph.x, graph.adjacency).shape == (120, 3)


@pytest.mark.parametrize(
    ("output", "got"),
    [
        (lambda x: (x, x), "got a tuple"),
        (lambda x: {"x": x}, "got a dict"),
        (lambda x: x.mean(dim=0), r"got a Tensor \(3,\)"),
    ],
)
def test_outputs_that_are_not_one_row_per_node_are_refused(graph, output, got):
    class Wrapped(TwoLayers):
        def forward(self, x, edge_index):
            return output(super().forward(x, edge_index))

    words = f"Wrapped must give one tensor with a row .* 120 nodes, {got}.*Wrap it"
    with pytest.raises(ValueError, match=words):
        gebt.find_ticket(adapt(Wrapped()), graph)


def test_a_model_of_several_kinds_of_nodes_is_refused():
    kinds = ["a", "b"], [("a", "to", "b"), ("b", "to", "a")]
    model = to_hetero(models.GraphSAGE(24, 6, 2, 3), kinds)
    with pytest.raises(ValueError, match="made by PyG's `to_hetero` .*homogeneous"):
        adapt(model)


def test_a_sparse_buffer_is_refused_unless_it_is_not_kept(graph, tmp_path):
    for persistent in (True, False):
        model = TwoLayers()
        model.register_buffer("eye", torch.eye(3).to_sparse(), persistent=persistent)
        if persistent:
            words = "^'eye' of the state of TwoLayers is torch.sparse_coo, not a dense"
            with pytest.raises(ValueError, match=words):
                adapt(model)
    ticket = gebt.find_ticket(adapt(model), graph, weight_ratio=0.5)
    ticket.save(tmp_path / "ticket")
    assert ticket.open(adapt(model), graph).links_kept < graph.num_links


def test_a_model_that_keeps_tensors_of_its_last_forward_can_be_compacted(graph):
    layers = [(SuperGATConv(24, 3, is_undirected=True), "x, edge_index -> x")]
    adapted = adapt(Sequential("x, edge_index", layers))
    adapted(graph.x, graph.adjacency).sum().backward()
    with pytest.raises(RuntimeError, match="deepcopy"):
        deepcopy(adapted)
    fast, small = compact(adapted, graph)
    out = fast(small.x, small.adjacency)
    assert torch.equal(out, adapted.eval()(graph.x, graph.adjacency))
    assert out.requires_grad


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
PER_NODE = {"norm": "layer_norm", "norm_kwargs": {"mode": "node"}}
PLAIN += [
    (models.GCN, 3, {"norm": "batch_norm"}),
    (models.GCN, 1, {"norm": "batch_norm", "jk": "last"}),
    (models.GCN, 3, PER_NODE),
    (models.GraphSAGE, 2, PER_NODE | {"jk": "last"}),
    (models.GraphSAGE, 3, {"norm": "batch_norm"}),
    (models.GraphSAGE, 2, {"jk": "last"}),
]
ELU = {"act": "elu", "heads": 7}
PLAIN += [
    (models.GAT, 1, ELU),
    (models.GAT, 2, ELU | {"dropout": 0.5}),
    (models.GAT, 4, ELU | {"bias": False}),
    (models.GAT, 3, ELU | {"residual": True, "norm": "batch_norm"}),
    (models.GAT, 2, ELU | {"residual": True, "jk": "last"} | PER_NODE),
    (models.GAT, 2, {"act": "elu"}),
]


@pytest.mark.parametrize(("kind", "depth", "options"), PLAIN)
def test_pygs_own_models_translate_exactly(make_graph, kind, depth, options):
    graph = double(make_graph())
    adapted = adapt(shaken(kind(24, 7, depth, 3, **options)))
    before = deepcopy(adapted.state_dict())
    expected = adapted(graph.x, graph.adjacency)
    translated = translate(adapted.model)
    ours = {models.GCN: GCN, models.GraphSAGE: GraphSAGE, models.GAT: GAT}
    assert type(translated) is ours[kind]
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


ELU_2 = {"act": "elu", "heads": 2}
OTHERS = {
    "elu": lambda: models.GCN(24, 7, 2, 3, act="elu"),
    "no-act": lambda: models.GCN(24, 7, 2, 3, act=None),
    "act-first": lambda: models.GCN(24, 7, 2, 3, act_first=True, norm="BatchNorm"),
    "graph-norm": lambda: models.GCN(24, 7, 2, 3, norm="LayerNorm"),
    "instance-norm": lambda: models.GCN(24, 7, 2, 3, norm="InstanceNorm"),
    "batch-norm": lambda: models.GCN(
        24, 7, 2, 3, norm="BatchNorm", norm_kwargs={"affine": False}
    ),
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
    "GAT": UNWEIGHTED["GAT"],  # with ReLU
    "elu-alpha": lambda: models.GAT(24, 6, 2, 3, **ELU_2, act_kwargs={"alpha": 0.5}),
    "gat-v2": lambda: models.GAT(24, 6, 2, 3, **ELU_2, v2=True),
    "gat-mean": lambda: models.GAT(24, 6, 2, 3, **ELU_2, concat=False),
    "gat-slope": lambda: models.GAT(24, 6, 2, 3, **ELU_2, negative_slope=0.1),
    "gat-no-loops": lambda: models.GAT(24, 6, 2, 3, **ELU_2, add_self_loops=False),
    "gat-max": lambda: models.GAT(24, 6, 2, 3, **ELU_2, aggr="max"),
    "gat-reversed": lambda: models.GAT(24, 6, 2, 3, **ELU_2, flow="target_to_source"),
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


@pytest.mark.parametrize("reentrant", [False, True])
def test_messages_repeated_in_the_backward_are_refused(make_graph, reentrant):
    from torch.utils.checkpoint import checkpoint

    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.lift = nn.Linear(24, 6)
            self.conv = models.GraphSAGE(6, 6, 1, 3)

        def forward(self, x, edge_index):
            h = self.lift(x)
            return checkpoint(self.conv, h, edge_index, use_reentrant=reentrant)

    graph = make_graph()
    model = Checkpointed()
    adapted = adapt(model)
    with pytest.raises(
        ValueError, match="SAGEConv repeats its messages in the backwar"
    ):
        adapted(graph.x, graph.adjacency).sum().backward()
    # By itself the model may.
    model(graph.x, graph.adjacency.pattern.edge_index).sum().backward()
    assert model.lift.weight.grad is not None
