from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from gebt.graph import SPARSE_BELOW, Graph
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


def test_both_sides_and_one_side_are_the_same_undirected_graph(build):
    both = Graph.from_pyg(build((0, 1), (1, 0), (1, 2), (2, 1)))
    one = Graph.from_pyg(build((1, 0), (1, 2)), directed=False)
    assert both.fingerprint() == one.fingerprint()


def test_self_loops_are_stripped(build):
    graph = Graph.from_pyg(build((0, 0), (0, 1), (1, 0), (3, 3)))
    assert entries(graph) == [(0, 1, 1, 0), (1, 0, 1, 0)]


def test_of_duplicate_edges_the_first_is_kept(build):
    edges = (0, 1), (1, 0), (0, 1), (1, 0)
    weight = torch.tensor([2.0, 2.0, 7.0, 8.0])
    graph = Graph.from_pyg(build(*edges, edge_weight=weight))
    assert entries(graph) == [(0, 1, 2, 0), (1, 0, 2, 0)]
    directed = Graph.from_pyg(build((2, 3), (2, 3), edge_weight=weight[2:]))
    assert entries(directed) == [(3, 2, 7, 0)]


def test_unequal_weights_of_the_two_directions_make_a_graph_directed(build):
    data = build((0, 1), (1, 0), edge_weight=torch.tensor([1.0, 2.0]))
    graph = Graph.from_pyg(data)
    assert entries(graph) == [(0, 1, 2, 0), (1, 0, 1, 1)]


@pytest.mark.parametrize("shape", [(2,), (2, 1)])
@pytest.mark.parametrize("field", ["edge_weight", "edge_attr"])
def test_edge_weights_are_the_values(build, field, shape):
    weight = torch.tensor([3, 3]).view(shape)  # integers become the dtype of x
    graph = Graph.from_pyg(build((0, 1), (1, 0), **{field: weight}))
    assert graph.adjacency.value.tolist() == [3.0, 3.0]
    assert graph.adjacency.dtype == graph.x.dtype


def test_edge_attributes_of_several_columns_are_no_weights(build):
    graph = Graph.from_pyg(build((0, 1), (1, 0), edge_attr=torch.full((2, 3), 5.0)))
    assert graph.adjacency.value.tolist() == [1.0, 1.0]


def test_int32_edges_are_taken(build):
    data = build((0, 1), (1, 0), (2, 1), (1, 2))
    wide = Graph.from_pyg(data)
    data.edge_index = data.edge_index.int()
    narrow = Graph.from_pyg(data)
    assert narrow.fingerprint() == wide.fingerprint()
    assert narrow.link.dtype == wide.link.dtype == torch.int64


def test_the_order_of_the_edges_does_not_matter(data):
    expected = Graph.from_pyg(data).fingerprint()
    for _ in range(3):
        p = torch.randperm(data.edge_index.shape[1])
        data.edge_index = data.edge_index[:, p]
        assert Graph.from_pyg(data).fingerprint() == expected


def test_both_directions_carry_the_same_link_id(graph):
    n, pattern = graph.num_nodes, graph.adjacency.pattern
    link_of = torch.full((n, n), -1)
    link_of[pattern.row.long(), pattern.col.long()] = graph.link
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


NAN = torch.tensor([[1.0, 1, 1], [1, float("nan"), 1], [1, float("inf"), 1], [1, 1, 1]])
TEN_SPLITS = torch.zeros(4, 10, dtype=torch.bool)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"x": None}, r"`data.x` is missing.*`data.x = torch.eye\(data.num_nodes\)`"),
        ({"x": torch.ones(4)}, r"`data.x` must be \(nodes, features\), got \(4,\)"),
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
        ({"y": torch.zeros(4, 2).long()}, r"one integer class .* of shape \(4, 2\)"),
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
    with pytest.raises(ValueError, match="'train', got .'training'."):
        gebt.Graph.from_pyg(data, split={"training": torch.arange(3)})


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
    dense = gebt.Graph.from_pyg(data, directed=False).adjacency.to_dense()
    assert torch.equal(dense, dense.t())
    assert (dense[0, 1], dense[1, 2]) == (1, 5)
