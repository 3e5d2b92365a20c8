from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from gebt.graph import Graph, LinkSplit, Split, join
from gebt.graph.from_pyg import SPARSE_BELOW
from gebt.models import GCN
from gebt.sparse import SparseMatrix


@pytest.fixture
def build() -> Callable[..., Any]:
    """A PyG ``Data`` of four nodes with three features, from a list of edges."""
    from torch_geometric.data import Data

    def make(*edges: tuple[int, int], **fields: Any) -> Any:
        index = torch.tensor(edges, dtype=torch.int64).view(-1, 2).t()
        x = torch.arange(1.0, 13.0).view(4, 3)
        return Data(**{"x": x, "edge_index": index, **fields})

    return make


def entries(graph: Graph) -> list[tuple[int, int, float, int]]:
    """(target, source, weight, link) of every entry."""
    pattern = graph.adjacency.pattern
    columns = pattern.row, pattern.col, graph.adjacency.value, graph.link
    return list(zip(*(c.tolist() for c in columns), strict=True))


def test_an_undirected_graph_has_one_link_per_pair(build):
    graph = Graph.from_pyg(build((0, 1), (2, 1), (1, 0), (1, 2)))
    assert entries(graph) == [(0, 1, 1, 0), (1, 0, 1, 0), (1, 2, 1, 1), (2, 1, 1, 1)]
    assert graph.num_links == graph.links_kept == 2
    assert (graph.num_nodes, graph.num_features) == (4, 3)
    assert repr(graph) == "Graph('graph', 4 nodes, 2 of 2 links, 3 features)"


def test_a_directed_graph_has_one_link_per_edge_and_rows_are_targets(build):
    graph = Graph.from_pyg(build((0, 1), (1, 0), (3, 2)))
    assert entries(graph) == [(0, 1, 1, 0), (1, 0, 1, 1), (2, 3, 1, 2)]
    assert graph.num_links == 3
    received = graph.adjacency @ graph.x
    assert torch.equal(received[2], graph.x[3])  # 3 sends to 2
    assert received[3].count_nonzero() == 0


def test_an_undirected_graph_can_be_scored_by_direction(build):
    graph = Graph.from_pyg(build((0, 1), (1, 0)), directed=True)
    assert entries(graph) == [(0, 1, 1, 0), (1, 0, 1, 1)]


def test_a_list_of_one_side_becomes_undirected_when_told_so(build):
    data = build((0, 1), (3, 1), edge_weight=torch.tensor([2.0, 5.0]))
    graph = Graph.from_pyg(data, directed=False)
    assert entries(graph) == [(0, 1, 2, 0), (1, 0, 2, 0), (1, 3, 5, 1), (3, 1, 5, 1)]
    assert Graph.from_pyg(data).num_links == 2  # undeclared: two directed edges


def test_joined_links_are_read_row_by_row_from_both_ends():
    low, high = torch.tensor([0, 0, 1]), torch.tensor([1, 3, 3])
    pattern, link = join(low, high, 4)
    assert pattern.crow.tolist() == [0, 2, 4, 4, 6]
    assert pattern.col.tolist() == [1, 3, 0, 3, 0, 1]
    assert link.tolist() == [0, 1, 0, 2, 1, 2]


def test_both_sides_and_one_side_are_the_same_undirected_graph(build):
    both = Graph.from_pyg(build((0, 1), (1, 0), (1, 2), (2, 1)))
    one = Graph.from_pyg(build((1, 0), (1, 2)), directed=False)
    assert both.fingerprint() == one.fingerprint()


def test_self_loops_are_stripped(build):
    with pytest.warns(UserWarning, match="^2 self-loops .* are dropped: .*`torch_geo"):
        graph = Graph.from_pyg(build((0, 0), (0, 1), (1, 0), (3, 3)))
    assert entries(graph) == [(0, 1, 1, 0), (1, 0, 1, 0)]


def test_of_duplicate_edges_the_first_is_kept(build):
    edges = (0, 1), (1, 0), (0, 1), (1, 0)
    weight = torch.tensor([2.0, 2.0, 7.0, 8.0])
    words = "`data.edge_index` lists {} edges again: the first of each is kept"
    with pytest.warns(UserWarning, match=words.format(2)):
        graph = Graph.from_pyg(build(*edges, edge_weight=weight))
    assert entries(graph) == [(0, 1, 2, 0), (1, 0, 2, 0)]
    with pytest.warns(UserWarning, match=words.format(1)):
        directed = Graph.from_pyg(build((2, 3), (2, 3), edge_weight=weight[2:]))
    assert entries(directed) == [(3, 2, 7, 0)]
    with pytest.warns(UserWarning, match=words.format(1)):
        Graph.from_pyg(build((0, 1), (1, 0), (1, 2), (1, 2)), directed=False)


def test_warnings_point_at_the_caller(build):
    data = build((0, 0), (0, 1), (0, 1), edge_attr=torch.ones(3, 2))
    with pytest.warns(UserWarning) as found:
        Graph.from_pyg(data)
    assert [w.filename for w in found] == [__file__] * 3


def test_unequal_weights_of_the_two_directions_make_a_graph_directed(build):
    data = build((0, 1), (1, 0), edge_weight=torch.tensor([1.0, 2.0]))
    graph = Graph.from_pyg(data)
    assert entries(graph) == [(0, 1, 2, 0), (1, 0, 1, 1)]


@pytest.mark.parametrize("shape", [(2,), (2, 1)])
@pytest.mark.parametrize("field", ["edge_weight", "edge_attr"])
def test_edge_weights_are_the_values(build, field, shape):
    dtype = torch.int64 if field == "edge_weight" else torch.float64
    weight = torch.tensor([3, 3], dtype=dtype).view(shape)  # becomes the dtype of x
    graph = Graph.from_pyg(build((0, 1), (1, 0), **{field: weight}))
    assert graph.adjacency.value.tolist() == [3.0, 3.0]
    assert graph.adjacency.dtype == graph.x.dtype


def test_edge_attributes_of_several_columns_are_no_weights(build):
    attributes = torch.full((2, 3), 5.0)
    words = r"`data.edge_attr`, torch.float32 of shape \(2, 3\), is not used: .* weight"
    with pytest.warns(UserWarning, match=words):
        graph = Graph.from_pyg(build((0, 1), (1, 0), edge_attr=attributes))
    assert graph.adjacency.value.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("shape", [(2,), (2, 1)])
def test_integer_edge_attributes_are_types_not_weights(build, shape):
    types = torch.tensor([2, 2]).view(shape)
    with pytest.warns(UserWarning, match="`data.edge_attr`, torch.int64 .* not used"):
        graph = Graph.from_pyg(build((0, 1), (1, 0), edge_attr=types))
    assert graph.adjacency.value.tolist() == [1.0, 1.0]


def test_edge_attributes_beside_a_weight_are_not_used(build):
    fields = {"edge_weight": torch.full((2,), 3.0), "edge_attr": torch.ones(2)}
    with pytest.warns(UserWarning, match="`data.edge_attr`, .* is not used"):
        graph = Graph.from_pyg(build((0, 1), (1, 0), **fields))
    assert graph.adjacency.value.tolist() == [3.0, 3.0]


def test_the_datas_own_weights_can_be_told_from_learned_values(build):
    edges = (0, 1), (1, 0), (1, 2), (2, 1), (2, 3), (3, 2)
    weight = torch.tensor([2.0, 2.0, 3.0, 3.0, 0.0, 0.0])
    full = Graph.from_pyg(build(*edges, edge_weight=weight), directed=True)
    untouched = full.adjacency.without_weight()
    assert untouched.value.tolist() == [1.0] * 6
    learned = torch.arange(6.0) / 7
    keep = torch.tensor([True] * 4 + [False] * 2)
    small = full.keep_links(keep, learned).to("cpu")
    torch.testing.assert_close(small.adjacency.without_weight().value, learned[:4])
    moved = small._renumbered(torch.tensor([3, 1, 0, 2]))
    found = moved.adjacency.without_weight().value[moved.link.argsort()]
    torch.testing.assert_close(found, learned[:4])
    plain = Graph.from_pyg(build(*edges)).adjacency
    assert plain.without_weight() is plain


def test_factors_of_weight_zero_have_finite_gradients(build):
    weight = torch.tensor([2.0, 0.0])
    full = Graph.from_pyg(build((0, 1), (2, 1), edge_weight=weight)).adjacency
    score = torch.ones(2, requires_grad=True)
    full.with_value(full.value * score).without_weight().value.sum().backward()
    assert score.grad.tolist() == [1.0, 0.0]


def test_int32_edges_are_taken(build):
    data = build((0, 1), (1, 0), (2, 1), (1, 2))
    wide = Graph.from_pyg(data)
    data.edge_index = data.edge_index.int()
    narrow = Graph.from_pyg(data)
    assert narrow.fingerprint() == wide.fingerprint()
    assert narrow.link.dtype == wide.link.dtype == torch.int32


def test_the_order_of_the_edges_does_not_matter(data):
    expected = Graph.from_pyg(data).fingerprint()
    for _ in range(3):
        p = torch.randperm(data.edge_index.shape[1])
        data.edge_index = data.edge_index[:, p]
        assert Graph.from_pyg(data).fingerprint() == expected


def test_both_directions_carry_the_same_link_id(graph):
    n, pattern = graph.num_nodes, graph.adjacency.pattern
    link_of = torch.full((n, n), -1)
    link_of[pattern.row.long(), pattern.col.long()] = graph.link.long()
    assert torch.equal(link_of, link_of.t())
    ids, count = graph.link.unique(return_counts=True)
    assert ids.tolist() == list(range(graph.num_links))
    assert (count == 2).all()


def test_relabelling_the_nodes_relabels_the_output(data):
    model = GCN(24, 8, 3).double().eval()
    data.x = data.x.double()
    new = torch.randperm(data.num_nodes)  # node i is called new[i]
    there = data.clone()
    there.x = torch.empty_like(data.x).index_copy(0, new, data.x)
    there.edge_index = new[data.edge_index]
    outputs = [model(g.x, g.adjacency) for g in map(Graph.from_pyg, (data, there))]
    torch.testing.assert_close(outputs[1][new], outputs[0], rtol=1e-10, atol=1e-10)


def with_density(share: float) -> Tensor:
    x = torch.zeros(100, 10)
    x.view(-1)[: round(share * 1000)] = 1 + torch.rand(round(share * 1000))
    return x


@pytest.mark.parametrize("layout", ["strided", "coo", "csr"])
def test_features_are_sparse_below_the_threshold_and_dense_above(build, layout):
    for share, sparse in ((SPARSE_BELOW - 0.01, True), (SPARSE_BELOW, False)):
        x = with_density(share)
        given = {
            "strided": x,
            "coo": x.to_sparse_coo(),
            "csr": x.to_sparse_csr(),
        }[layout]
        graph = Graph.from_pyg(build((0, 1), (1, 0), x=given))
        assert isinstance(graph.x, SparseMatrix) == sparse
        assert torch.equal(graph.x.to_dense(), x)
        assert (graph.num_nodes, graph.num_features) == (100, 10)


def test_sparse_and_dense_features_give_the_same_output(sparse_graph):
    assert isinstance(sparse_graph.x, SparseMatrix)
    model = GCN(24, 8, 3).eval()
    dense = model(sparse_graph.x.to_dense(), sparse_graph.adjacency)
    torch.testing.assert_close(model(sparse_graph.x, sparse_graph.adjacency), dense)


def test_integer_features_become_float_and_float64_stays(build):
    whole = build((0, 1), (1, 0), x=torch.ones(4, 3, dtype=torch.int64))
    assert Graph.from_pyg(whole).x.dtype == torch.float32
    double = Graph.from_pyg(build((0, 1), (1, 0), x=torch.ones(4, 3).double()))
    assert double.x.dtype == double.adjacency.dtype == torch.float64


def test_labels_and_masks_become_classes_and_indices(build):
    masks = {
        "train_mask": torch.tensor([True, False, True, False]),
        "val_mask": torch.tensor([False, True, False, False]),
        "test_mask": torch.tensor([False, False, False, True]),
    }
    y = torch.tensor([[0], [2], [1], [0]], dtype=torch.int32)
    graph = Graph.from_pyg(build((0, 1), (1, 0), y=y, **masks), name="four")
    assert graph.y.tolist() == [0, 2, 1, 0]
    assert graph.y.dtype == torch.int64
    assert graph.num_classes == 3
    assert graph.name == "four"
    split = graph.split
    assert [p.tolist() for p in (split.train, split.val, split.test)] == [
        [0, 2],
        [1],
        [3],
    ]


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.bool])
def test_several_labels_per_node_become_boolean(build, dtype):
    y = torch.tensor([[1, 0, 0], [0, 0, 0], [1, 1, 0], [0, 1, 0]])
    graph = Graph.from_pyg(build((0, 1), (1, 0), y=y.to(dtype)))
    assert graph.y.dtype == torch.bool
    assert torch.equal(graph.y, y.bool())
    assert graph.num_classes == 3  # the third, which no node has, included
    assert graph.to("cpu").y.dtype == torch.bool


def test_the_fingerprint_changes_with_several_labels(build):
    y = torch.eye(4)[:, :2]
    one, two = (
        Graph.from_pyg(build((0, 1), (1, 0), y=labels)) for labels in (y, 1 - y)
    )
    assert one.fingerprint() != two.fingerprint()


def test_a_given_split_replaces_the_masks_and_knows_ogb_s_name(build):
    data = build((0, 1), (1, 0), train_mask=torch.ones(4, dtype=torch.bool))
    given = {"train": torch.tensor([3]), "valid": torch.tensor([1, 0])}
    split = Graph.from_pyg(data, split=given).split
    assert split.train.tolist() == [3]
    assert split.val.tolist() == [1, 0]
    assert split.test.tolist() == []
    given = {"train": torch.tensor([3]), "val": torch.tensor([2], dtype=torch.int32)}
    split = Graph.from_pyg(data, split=given).split
    assert split.val.tolist() == [2]
    assert split.val.dtype == torch.int64


def test_a_graph_without_masks_or_labels_has_none(build):
    graph = Graph.from_pyg(build((0, 1), (1, 0)))
    assert graph.split is None and graph.y is None
    with pytest.raises(ValueError, match="the graph 'graph' has no labels"):
        _ = graph.num_classes


def test_keep_links_drops_both_directions_and_keeps_the_ids(build):
    edges = (0, 1), (1, 0), (1, 2), (2, 1), (2, 3), (3, 2)
    full = Graph.from_pyg(build(*edges, edge_weight=torch.full((6,), 2.0)))
    keep = torch.tensor([True, False, True])
    graph = full.keep_links(keep)
    assert entries(graph) == [(0, 1, 2, 0), (1, 0, 2, 0), (2, 3, 2, 2), (3, 2, 2, 2)]
    assert (graph.num_links, graph.links_kept) == (3, 2)
    assert "2 of 3 links" in repr(graph)
    scaled = full.keep_links(keep, torch.tensor([0.5, 9.0, -3.0]))
    assert scaled.adjacency.value.tolist() == [1.0, 1.0, -6.0, -6.0]
    assert full.links_kept == 3 and full.adjacency.value.tolist() == [2.0] * 6
    again = graph.keep_links(torch.tensor([False, True, True]))
    assert again.link.tolist() == [2, 2]


def test_keep_links_of_a_directed_graph_drops_one_direction(build):
    full = Graph.from_pyg(build((0, 1), (1, 0)), directed=True)
    graph = full.keep_links(torch.tensor([False, True]))
    assert entries(graph) == [(1, 0, 1, 1)]


def test_all_links_can_go(graph):
    none = graph.keep_links(torch.zeros(graph.num_links, dtype=torch.bool))
    assert none.adjacency.pattern.nnz == none.links_kept == 0
    assert torch.equal(none.adjacency.with_diagonal().to_dense(), torch.eye(120))


@pytest.mark.parametrize("sparse", [False, True])
def test_the_fingerprint_changes_with_the_graph(make_data, sparse):
    expected = Graph.from_pyg(make_data(sparse=sparse)).fingerprint()
    assert Graph.from_pyg(make_data(sparse=sparse)).fingerprint() == expected

    def changed(**changes: Any) -> str:
        data = make_data(sparse=sparse)
        for name, change in changes.items():
            data[name] = change(data)
        return Graph.from_pyg(data).fingerprint()

    def nudged(data: Any) -> Tensor:
        at = tuple(data.x.nonzero()[0])
        return data.x.index_put(at, data.x[at] + 1e-6)

    ones = torch.ones(make_data().num_edges)
    found = [
        changed(x=nudged),
        changed(x=lambda d: d.x.roll(1, dims=1)),
        changed(y=lambda d: d.y.roll(1)),
        changed(y=lambda d: None),
        changed(edge_index=lambda d: d.edge_index[:, 1:]),
        changed(edge_weight=lambda d: ones * 2),
        Graph.from_pyg(make_data(sparse=sparse), directed=True).fingerprint(),
    ]
    assert len({expected, *found}) == len(found) + 1
    assert changed(edge_weight=lambda d: ones) == expected


def test_the_fingerprint_does_not_change_with_split_or_name(graph):
    other = replace(graph, split=None, name="other")
    assert other.fingerprint() == graph.fingerprint()
    kept = graph.keep_links(torch.ones(graph.num_links, dtype=torch.bool))
    assert kept.fingerprint() == graph.fingerprint()


def test_dense_and_sparse_features_have_different_fingerprints(sparse_graph):
    dense = replace(sparse_graph, x=sparse_graph.x.to_dense())
    assert dense.fingerprint() != sparse_graph.fingerprint()


@pytest.mark.parametrize("sparse", [False, True])
def test_a_round_trip_to_a_device_changes_nothing(make_graph, sparse):
    graph = make_graph(sparse=sparse)
    there = graph.to("cpu")
    assert there.fingerprint() == graph.fingerprint()
    assert torch.equal(there.split.val, graph.split.val)
    assert (there.name, there.num_links) == (graph.name, graph.num_links)
    bare = replace(graph, split=None, y=None).to("cpu")
    assert bare.split is None and bare.y is None


@pytest.mark.cuda
def test_a_round_trip_to_cuda_changes_nothing(graph, sparse_graph):
    for here in (graph, sparse_graph):
        there = here.to("cuda")
        assert there.adjacency.device.type == there.link.device.type == "cuda"
        assert there.fingerprint() == here.fingerprint()
        assert there.to("cpu").fingerprint() == here.fingerprint()


@pytest.mark.cuda
def test_a_split_of_links_goes_to_cuda_whole(graph):
    here = graph.hold_out_links()
    there = here.to("cuda")
    assert isinstance(there.split, LinkSplit)
    assert {t.device.type for t in vars(there.split).values()} == {"cuda"}
    assert same_split(there.to("cpu").split, here.split)
    on_device = graph.to("cuda").hold_out_links()
    assert {t.device.type for t in vars(on_device.split).values()} == {"cuda"}
    assert same_split(on_device.to("cpu").split, here.split)
    assert on_device.fingerprint() == there.fingerprint() == here.fingerprint()


NAN = torch.tensor([[1.0, 1, 1], [1, float("nan"), 1], [1, float("inf"), 1], [1, 1, 1]])
TEN_SPLITS = torch.zeros(4, 10, dtype=torch.bool)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"x": None}, r"`data.x` is missing.*`data.x = torch.eye\(data.num_nodes\)`"),
        ({"x": torch.ones(4)}, r"`data.x` must be \(nodes, features\), got \(4,\)"),
        (
            {"x": torch.ones(4, 3).cfloat()},
            "must be real, got torch.complex64.*view",
        ),
        ({"x": [[1.0], [2.0, 3.0]]}, "`data.x` must be a tensor.* got a list"),
        ({"x": "words"}, "`data.x` must be a tensor, an array or .* got a str"),
        ({"y": ["a", "b", "a", "b"]}, "`data.y` must be .* a list of numbers"),
        ({"y": torch.zeros(4).cfloat()}, "one integer class .* got torch.complex64"),
        ({"edge_weight": torch.ones(2).cfloat()}, "`data.edge_weight` must be real"),
        ({"x": NAN}, "`data.x` must be finite, but 2 of its values.*Fill or drop"),
        ({"x": NAN.to_sparse_coo()}, "`data.x` must be finite, but 2 of its values"),
        (
            {"edge_index": None},
            r"`data.edge_index` must be .* shape \(2, edges\), got NoneType",
        ),
        ({"edge_index": torch.zeros(3, 2).long()}, r"\(2, edges\), got \(3, 2\)"),
        ({"edge_index": torch.zeros(2).long()}, r"\(2, edges\), got \(2,\)"),
        (
            {"edge_index": torch.zeros(2, 3)},
            r"`data.edge_index` must be int64 \(or int32\), got torch.float32",
        ),
        (
            {"edge_index": torch.tensor([[0, 1], [4, 0]])},
            r"`data.edge_index` must lie in \[0, 4\), .* got 0 to 4",
        ),
        (
            {"edge_index": torch.tensor([[0, -1], [1, 0]])},
            r"`data.edge_index` must lie in \[0, 4\), .* got -1 to 1",
        ),
        ({"edge_index": torch.empty(2, 0).long()}, "the graph has no links"),
        (
            {"edge_index": torch.tensor([[1], [1]])},
            "the graph has no links.*self-loops",
        ),
        (
            {"edge_weight": torch.ones(3)},
            "`data.edge_weight` must have one entry for each of the 2 edges, got 3",
        ),
        (
            {"edge_weight": torch.tensor([1.0, float("inf")])},
            "`data.edge_weight` must be finite",
        ),
        (
            {"y": torch.zeros(5).long()},
            "`data.y` must have one label for each of the 4 nodes of `data.x`, got 5",
        ),
        (
            {"y": torch.zeros(4)},
            r"`data.y` must be one integer class .* got torch.float32 of shape \(4,\)",
        ),
        ({"y": torch.zeros(4)[:, None]}, r"float32 of shape \(4,\)"),
        (
            {"y": torch.full((4, 2), 2)},
            r"labels \(nodes, C\) of 0 and 1; got torch.int64 of shape \(4, 2\)",
        ),
        ({"y": torch.full((4, 2), -1.0)}, "labels .* of 0 and 1; got torch.float32"),
        ({"y": torch.full((4, 2), float("nan"))}, "labels .* of 0 and 1; got"),
        ({"y": torch.zeros(5, 2)}, "one label for each of the 4 nodes .* got 5"),
        ({"y": torch.zeros(4, 2, 2)}, r"of 0 and 1; got .* of shape \(4, 2, 2\)"),
        (
            {"train_mask": TEN_SPLITS},
            r"`data.train_mask` must be boolean of shape \(4,\), got torch.bool "
            r"\(4, 10\). Of several splits, pick one",
        ),
        (
            {"train_mask": ~TEN_SPLITS[:, 0], "val_mask": torch.ones(4)},
            r"`data.val_mask` must be boolean .* got torch.float32",
        ),
    ],
)
def test_a_graph_that_cannot_be_taken_over_is_refused(build, fields, words):
    with pytest.raises(ValueError, match=words):
        Graph.from_pyg(build((0, 1), (1, 0), **fields))


@pytest.mark.parametrize("kind", ["arrays", "lists", "mapping"])
def test_arrays_lists_and_mappings_are_taken(make_data, kind):
    data = make_data(nodes=30)
    data.edge_weight = torch.full((data.num_edges,), 0.5)
    expected = Graph.from_pyg(data)
    fields = {name: data[name] for name in data.keys()}  # noqa: SIM118
    if kind == "arrays":
        fields = {name: t.numpy() for name, t in fields.items()}
        for array in fields.values():
            array.flags.writeable = False  # torch warns of those
    elif kind == "lists":
        fields = {name: t.tolist() for name, t in fields.items()}
    given = fields if kind == "mapping" else SimpleNamespace(**fields)
    graph = Graph.from_pyg(given)
    assert graph.fingerprint() == expected.fingerprint()
    assert torch.equal(graph.split.val, expected.split.val)
    split = {"train": [3, 1], "val": (), "test": data.y.numpy()[:2]}
    parts = vars(Graph.from_pyg(given, split=split).split)
    assert {n: t.tolist() for n, t in parts.items()} == {
        "train": [3, 1],
        "val": [],
        "test": [0, 1],
    }
    pairs = {"edge": [[0, 1]], "edge_neg": data.y.numpy()[None, :2]}
    links = Graph.from_pyg(given, split={"train": pairs, "test": pairs}).split
    assert links.test.tolist() == links.test_negative.tolist() == [[0, 1]]


def test_arrays_keep_their_precision(build):
    x = torch.ones(4, 3).double().numpy()
    assert Graph.from_pyg(build((0, 1), (1, 0), x=x)).x.dtype == torch.float64


def test_several_kinds_of_nodes_are_refused(build):
    from torch_geometric.data import HeteroData

    with pytest.raises(ValueError, match="is a HeteroData .* `data.to_homogeneous"):
        Graph.from_pyg(HeteroData())


@pytest.mark.parametrize("index", [[0, 4], [-1, 2]])
@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_a_split_outside_the_graph_is_refused(build, part, index):
    given = {"train": torch.tensor([0]), part: torch.tensor(index)}
    words = rf"the {part} split must hold node indices in \[0, 4\), got {index[0]} to"
    with pytest.raises(ValueError, match=words):
        Graph.from_pyg(build((0, 1), (1, 0)), split=given)


def test_keep_links_refuses_what_is_not_one_entry_per_link(graph):
    words = rf"must have one entry for each of the graph's {graph.num_links} links, got"
    per_edge = torch.ones(graph.link.numel(), dtype=torch.bool)
    with pytest.raises(ValueError, match=f"`keep` {words}"):
        graph.keep_links(per_edge)
    with pytest.raises(ValueError, match=f"`value` {words}"):
        graph.keep_links(per_edge[: graph.num_links], torch.ones(3))


def test_a_link_mask_that_is_not_boolean_is_refused(graph):
    with pytest.raises(ValueError, match="`keep` must be boolean.*int64"):
        graph.keep_links(torch.ones(graph.num_links, dtype=torch.int64))


def test_a_split_of_masks_or_without_training_nodes_is_refused(data):
    import gebt

    with pytest.raises(ValueError, match="train split must hold integer node indices"):
        gebt.Graph.from_pyg(data, split={"train": data.train_mask})
    with pytest.raises(ValueError, match="train split must be one list.* \\(1, 2\\)"):
        gebt.Graph.from_pyg(data, split={"train": [[0, 1]]})
    with pytest.raises(ValueError, match="'train', got .'training'."):
        gebt.Graph.from_pyg(data, split={"training": torch.arange(3)})
    with pytest.raises(ValueError, match="`split` must be a mapping .* got a tuple"):
        gebt.Graph.from_pyg(data, split=(torch.arange(3), torch.arange(3)))


def test_the_fingerprint_sees_an_empty_column_of_sparse_features(data):
    import gebt

    data.x = torch.eye(data.num_nodes)
    narrow = gebt.Graph.from_pyg(data).fingerprint()
    data.x = torch.nn.functional.pad(data.x, (0, 1))
    assert gebt.Graph.from_pyg(data).fingerprint() != narrow


def test_an_undirected_link_has_one_weight_the_first_listed(data):
    import gebt

    data.edge_index = torch.tensor([[0, 1, 2], [1, 0, 1]])
    data.edge_weight = torch.tensor([1.0, 2.0, 5.0])
    with pytest.warns(UserWarning, match="^1 edges have another weight"):
        graph = gebt.Graph.from_pyg(data, directed=False)
    dense = graph.adjacency.to_dense()
    assert torch.equal(dense, dense.t())
    assert (dense[0, 1], dense[1, 2]) == (1, 5)


# Links held out.


def same_split(a: LinkSplit, b: LinkSplit) -> bool:
    return all(torch.equal(t, vars(b)[name]) for name, t in vars(a).items())


def unordered(pairs: Tensor) -> list[tuple[int, int]]:
    return [(min(pair), max(pair)) for pair in pairs.tolist()]


def all_pairs(graph: Graph) -> set[tuple[int, int]]:
    pattern = graph.adjacency.pattern
    return set(unordered(torch.stack([pattern.col, pattern.row], dim=1)))


@pytest.mark.parametrize("shares", [(0.05, 0.1), (0.3, 0.01), (0.01, 0.4)])
@pytest.mark.parametrize("seed", [0, 1])
def test_parts_are_disjoint_and_hold_every_link(graph, shares, seed):
    held = graph.hold_out_links(*shares, seed=seed)
    parts = [unordered(p) for p in (held.split.train, held.split.val, held.split.test)]
    links = graph.num_links
    counts = [int(share * links) for share in shares]
    assert [len(part) for part in parts] == [links - sum(counts), *counts]
    together = [pair for part in parts for pair in part]
    assert len(set(together)) == links
    assert set(together) == all_pairs(graph)


@pytest.mark.parametrize("seed", [0, 1])
def test_negatives_are_different_pairs_that_the_full_graph_does_not_link(graph, seed):
    held = graph.hold_out_links(0.1, 0.2, seed=seed)
    count = int(0.1 * 468) + int(0.2 * 468)
    negative = [held.split.val_negative, held.split.test_negative]
    assert [tuple(pairs.shape) for pairs in negative] == [(count, 2)] * 2
    pairs = unordered(torch.cat(negative))
    assert len(set(pairs)) == 2 * count
    assert not set(pairs) & all_pairs(graph)
    assert all(a != b for a, b in pairs)
    # Drawn from everywhere, not from a corner.
    assert {node for pair in pairs for node in pair} > set(range(0, 120, 10))


def test_held_out_links_leave_the_adjacency_and_the_rest_is_numbered_anew(graph):
    held = graph.hold_out_links(0.1, 0.2)
    assert all_pairs(held) == set(unordered(held.split.train))
    dense = held.adjacency.to_dense()
    assert torch.equal(dense, dense.t())
    assert held.num_links == held.links_kept == len(held.split.train)
    assert held.link.unique().tolist() == list(range(held.num_links))
    # The pair at position i of the training links is link i.
    pattern = held.adjacency.pattern
    ends = torch.stack([pattern.col, pattern.row], dim=1)
    assert unordered(ends) == unordered(held.split.train[held.link])
    assert graph.links_kept == 468 and isinstance(graph.split, Split)
    assert (held.name, held.x) == (graph.name, graph.x)


def test_the_same_seed_holds_out_the_same_links(graph):
    state = torch.get_rng_state()
    one, two, other = (graph.hold_out_links(seed=seed) for seed in (3, 3, 4))
    assert same_split(one.split, two.split)
    assert one.fingerprint() == two.fingerprint() != other.fingerprint()
    for name, pairs in vars(one.split).items():
        assert not torch.equal(pairs, vars(other.split)[name]), name
    assert torch.equal(torch.get_rng_state(), state)


def test_a_directed_graphs_pairs_are_source_and_target(data):
    data.edge_index = data.edge_index[:, torch.rand(data.num_edges) < 0.7]
    graph = Graph.from_pyg(data, directed=True)
    held = graph.hold_out_links(0.1, 0.2)
    edges = [tuple(edge) for edge in data.edge_index.t().tolist()]
    positive = torch.cat([held.split.train, held.split.val, held.split.test])
    assert sorted(map(tuple, positive.tolist())) == sorted(edges)
    assert held.link.tolist() == list(range(held.num_links))
    negative = torch.cat([held.split.val_negative, held.split.test_negative])
    assert not set(unordered(negative)) & all_pairs(graph)


@pytest.mark.parametrize("directed", [False, True])
def test_held_out_links_leave_the_other_edge_weights_as_they_were(data, directed):
    low, high = data.edge_index.sort(dim=0).values
    data.edge_weight = ((low * 31 + high * 7) % 11 + 1).float()
    graph = Graph.from_pyg(data, directed=directed)
    held = graph.hold_out_links(0.2, 0.2)
    before, after = graph.adjacency.to_dense(), held.adjacency.to_dense()
    assert torch.equal(after, before * (after != 0))
    assert int(after.count_nonzero()) == held.adjacency.pattern.nnz
    assert after.unique().numel() > 10


@pytest.mark.parametrize(
    "shares",
    [(0.0, 0.1), (0.1, 0.0), (-0.1, 0.1), (0.5, 0.5), (0.9, 0.2), (0.002, 0.1)],
)
def test_shares_that_leave_a_part_empty_are_refused(graph, shares):
    words = (
        "`val` and `test` must be positive shares that add up to less than 1 and hold "
        f"at least one of 468 links each, got {shares[0]} and {shares[1]}"
    )
    with pytest.raises(ValueError, match=words):
        graph.hold_out_links(*shares)


@pytest.mark.parametrize("directed", [False, True])
def test_a_graph_without_enough_pairs_to_draw_is_refused(directed):
    """The complete graph, and the one with one edge for each pair of nodes."""
    from torch_geometric.data import Data

    data = Data(x=torch.ones(20, 2), edge_index=torch.triu_indices(20, 20, 1))
    graph = Graph.from_pyg(data, directed=directed)
    assert graph.num_links == 190
    words = "'graph' has too few pairs of nodes without a link to draw 24 from"
    with pytest.raises(ValueError, match=words):
        graph.hold_out_links(0.02, 0.05)


def test_half_of_the_pairs_without_a_link_can_be_drawn():
    from torch_geometric.data import Data

    # 40 links of 66 pairs leave 26: 12 negatives can be drawn, 14 cannot.
    pairs = torch.triu_indices(12, 12, 1)[:, :40]
    graph = Graph.from_pyg(Data(x=torch.ones(12, 2), edge_index=pairs), directed=False)
    held = graph.hold_out_links(0.075, 0.075)
    assert len(held.split.val_negative) + len(held.split.test_negative) == 12
    with pytest.raises(ValueError, match="to draw 14 from. Hold out fewer links"):
        graph.hold_out_links(0.1, 0.075)


def test_a_pruned_graph_holds_out_no_links(graph):
    pruned = graph.keep_links(torch.arange(graph.num_links) % 2 == 0)
    with pytest.raises(ValueError, match="already pruned: it has 234 of its 468 links"):
        pruned.hold_out_links()


def test_a_split_of_links_survives_keep_links_and_a_device(graph):
    held = graph.hold_out_links()
    for other in (
        held.to("cpu"),
        held.keep_links(torch.arange(held.num_links) % 2 == 0),
    ):
        assert isinstance(other.split, LinkSplit)
        assert same_split(other.split, held.split)


def ogb_split(**changes: Any) -> dict[str, Any]:
    pairs = torch.tensor([[0, 1], [2, 3]])
    parts: dict[str, Any] = {
        "train": {"edge": pairs, "weight": torch.ones(2), "year": torch.ones(2)},
        "valid": {"edge": pairs[:1], "edge_neg": pairs.flip(1)},
        "test": {"edge": pairs[1:].int(), "edge_neg": pairs[:1]},
    }
    for part, change in changes.items():
        parts[part] = parts[part] | change
    return parts


def test_ogbs_split_of_links_is_taken_over(build):
    split = Graph.from_pyg(build((0, 1), (1, 0)), split=ogb_split()).split
    assert isinstance(split, LinkSplit)
    assert {name: pairs.tolist() for name, pairs in vars(split).items()} == {
        "train": [[0, 1], [2, 3]],
        "val": [[0, 1]],
        "val_negative": [[1, 0], [3, 2]],
        "test": [[2, 3]],
        "test_negative": [[0, 1]],
    }
    assert {pairs.dtype for pairs in vars(split).values()} == {torch.int64}


def test_a_part_that_a_split_of_links_lacks_is_empty(build):
    given = {"train": {"edge": torch.tensor([[0, 1]])}}
    split = Graph.from_pyg(build((0, 1), (1, 0)), split=given).split
    assert split.val.shape == split.test_negative.shape == (0, 2)
    named = {**given, "val": {"edge": torch.tensor([[1, 2]])}}
    assert Graph.from_pyg(build((0, 1), (1, 0)), split=named).split.val.tolist() == [
        [1, 2]
    ]


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        (
            "train",
            {"edge": torch.tensor([[0, 4]])},
            r"'edge' of the train split must hold node indices in \[0, 4\), got 0 to 4",
        ),
        (
            "valid",
            {"edge_neg": torch.tensor([[-1, 2]])},
            r"'edge_neg' of the val split .* in \[0, 4\), got -1 to 2",
        ),
        (
            "test",
            {"edge": torch.tensor([[0, 1, 2], [1, 2, 3]])},
            r"'edge' of the test split must be integers of shape \(pairs, 2\), got "
            r"torch.int64 \(2, 3\)",
        ),
        ("test", {"edge": torch.tensor([0, 1])}, r"got torch.int64 \(2,\)"),
        ("valid", {"edge": torch.ones(1, 2)}, r"must be integers .* torch.float32"),
        ("valid", {"edge": torch.ones(1, 2).bool()}, r"integers .* got torch.bool"),
    ],
)
def test_a_split_of_links_that_does_not_fit_is_refused(build, part, change, words):
    with pytest.raises(ValueError, match=words):
        Graph.from_pyg(build((0, 1), (1, 0)), split=ogb_split(**{part: change}))


def test_two_weights_of_one_pair_are_told_where_one_is_lost(data):
    data.edge_weight = torch.rand(data.num_edges) + 0.5
    count = data.num_edges // 2
    with pytest.warns(
        UserWarning, match=f"^{count} edges have another weight.*directed"
    ):
        Graph.from_pyg(data, directed=False)
    Graph.from_pyg(data, directed=True)
    source, target = data.edge_index
    data.edge_weight = (1.0 + source + target).float()
    graph = Graph.from_pyg(data, directed=False)
    assert graph.num_links == count


def test_labels_that_are_all_negative_are_no_classes(graph):
    unknown = replace(graph, y=torch.full_like(graph.y, -1))
    with pytest.raises(ValueError, match="all labels are negative"):
        unknown.num_classes  # noqa: B018


def test_features_of_eight_bits_become_float32(data):
    data.x = data.x.to(torch.float8_e4m3fn)
    assert Graph.from_pyg(data).x.dtype == torch.float32
