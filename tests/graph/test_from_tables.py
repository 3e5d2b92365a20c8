"""A graph from columns: the same from every library, and what is refused."""

import logging

import numpy as np
import pytest
import torch

from gebt import Graph

N = 40
DRAW = np.random.default_rng(0)
LOW, HIGH = np.triu_indices(N, 1)
KEPT = np.sort(DRAW.permutation(LOW.size)[:90])
X = DRAW.normal(size=(N, 3)).astype(np.float32)
EDGES = {"source": LOW[KEPT], "target": HIGH[KEPT], "note": ["x"] * 90}
NODES = {
    "id": np.arange(N),
    **{f"f{k}": X[:, k] for k in range(3)},
    "title": [f"the {chr(97 + i % 26)}" for i in range(N)],
    "kind": [("dog", "cat", "eel")[i % 3] for i in range(N)],
}


def frame(library):
    if library is None:
        return dict
    module = pytest.importorskip(library, reason=f"needs {library}")
    return module.table if library == "pyarrow" else module.DataFrame


@pytest.fixture
def peer():
    """What `from_pyg` makes of the same tensors."""
    y = torch.tensor([(1, 0, 2)[i % 3] for i in range(N)])
    index = np.stack([EDGES["source"], EDGES["target"]])
    data = {"x": torch.from_numpy(X), "edge_index": index, "y": y}
    return Graph.from_pyg(data, directed=False).fingerprint()


@pytest.mark.parametrize("library", [None, "pandas", "polars", "pyarrow"])
@pytest.mark.parametrize("ids", ["numbers", "text", "others"])
def test_every_librarys_columns_and_all_ids_make_the_same_graph(library, ids, peer):
    def named(nodes):
        if ids == "text":
            return [f"n{i}" for i in nodes]
        return nodes if ids == "numbers" else 7 * np.asarray(nodes) - 100

    edges = {name: named(EDGES[name]) for name in ("source", "target")}
    make = frame(library)
    nodes = {**NODES, "id": named(NODES["id"])}
    graph = Graph.from_tables(make(edges), make(nodes), label="kind")
    assert graph.fingerprint() == peer


def test_the_order_of_the_nodes_is_the_tables():
    order = np.random.default_rng(1).permutation(N)
    nodes = {name: np.asarray(column)[order] for name, column in NODES.items()}
    moved = Graph.from_tables(EDGES, nodes, label="kind")
    graph = Graph.from_tables(EDGES, NODES, label="kind")
    assert torch.equal(moved.x, graph.x[order])
    dense = graph.adjacency.to_dense()[order][:, order]
    assert torch.equal(moved.adjacency.to_dense(), dense)


def test_columns_are_found_by_name_or_place():
    given = {"f": X, "Node": NODES["id"], "y": np.arange(N) % 2}
    edges = {"Weight": np.full(90, 0.5), "Target": HIGH[KEPT], "SOURCE": LOW[KEPT]}
    graph = Graph.from_tables(edges, given, label="y", directed=True)
    assert graph.num_features == 3 and graph.num_links == 90
    assert (graph.adjacency.value == 0.5).all()
    pattern = graph.adjacency.pattern
    there = zip(pattern.col.tolist(), pattern.row.tolist(), strict=True)
    assert {*there} == {*zip(LOW[KEPT].tolist(), HIGH[KEPT].tolist(), strict=True)}
    first_two = Graph.from_tables(
        {"a": LOW[KEPT], "b": HIGH[KEPT]}, {"whatever": NODES["id"], "f": X}
    )
    assert (first_two.num_links, first_two.y, first_two.split) == (90, None, None)


def test_classes_split_and_left_out_columns_are_told(caplog):
    caplog.set_level(logging.INFO, "gebt")
    graph = Graph.from_tables(EDGES, NODES, label="kind")
    told = [record.getMessage() for record in caplog.records]
    assert told == [
        "columns of text are no features: title",
        "classes of 'kind': 0 = cat, 1 = dog, 2 = eel",
        "split at random, 60%, 20% and 20% of each class, by the seed 0: train 24, val "
        "7, test 9",
    ]
    assert torch.cat([*vars(graph.split).values()]).unique().numel() == N
    other = Graph.from_tables(EDGES, NODES, label="kind", seed=3)
    assert not torch.equal(other.split.val, graph.split.val)


@pytest.mark.parametrize(
    "labels, y",
    [
        (["10", "9", "", "10"], [1, 0, -1, 1]),
        ([10, 9, -1, 10], [1, 0, -1, 1]),
        ([10.0, 9.0, np.nan, 10.0], [1, 0, -1, 1]),
        (["b", "a", None, "b"], [1, 0, -1, 1]),
        ([True, False, True, True], [1, 0, 1, 1]),
        ([0, 1, 2, 0], [0, 1, 2, 0]),
    ],
)
def test_labels_become_classes_in_their_order(labels, y):
    nodes = {"id": [0, 1, 2, 3], "x": [1.0, 2, 3, 4], "c": labels}
    edges = {"source": [0, 1], "target": [1, 2]}
    graph = Graph.from_tables(edges, nodes, label="c")
    assert graph.y.tolist() == y
    parts = torch.cat([*vars(graph.split).values()]).sort().values.tolist()
    assert parts == [i for i in range(4) if y[i] >= 0]


def test_a_split_column_is_the_split():
    parts = ["Train", "valid", "test", "", "val", "train"]
    nodes = {"id": range(6), "x": X[:6], "c": [0, 1, 0, 1, 1, 0], "split": parts}
    edges = {"source": [0, 1], "target": [1, 2]}
    split = Graph.from_tables(edges, nodes, label="c").split
    assert [part.tolist() for part in vars(split).values()] == [[0, 5], [1, 4], [2]]
    with pytest.raises(ValueError, match="by number, 2, but the nodes have one"):
        Graph.from_tables(edges, nodes, label="c", seed=2)


def changed(column, row, value):
    held = [*np.asarray(NODES[column]).tolist()]
    held[row] = value
    return {column: held}


@pytest.mark.parametrize(
    "edges, nodes, said",
    [
        (
            {"target": np.where(KEPT == KEPT[5], 99, HIGH[KEPT])},
            {},
            "1 of the edges' column 'target' name nodes that the nodes' column 'id' "
            "lacks, the first 99 in row 6",
        ),
        ({"source": ["a"] * 90}, {}, "names nodes as 'a', the nodes' .* as 0: one is"),
        ({"source": LOW[KEPT] + 0.5}, {}, "'source' has [0-9.]+ in row 1, where the"),
        ({"source": [None] * 90}, {}, "'source' has None in row 1, where the name"),
        (
            {},
            changed("id", 7, 3),
            "the node 3 is in the node table twice, in row 4",
        ),
        ({}, {"id": ["n"] * N}, "one is text|'n' is in the node table twice"),
        ({}, changed("f1", 4, float("nan")), "'f1' has nan in row 5, which is missing"),
        ({}, changed("f1", 4, "n/a"), "'f1' has 'n/a' in row 5, where numbers belong"),
        ({}, changed("f1", 4, ""), "'f1' has '' in row 5, where numbers belong"),
        ({}, changed("f1", 4, 1e300), "'f1' has 1e.300 in row 5"),
        ({}, {"kind": [None] * N}, "'kind' has no label in any row"),
        ({}, {"kind": np.arange(N) / 4}, "'kind' has 0.25 in row 2: classes are whole"),
        (
            {},
            {"split": ["trian"] * N},
            "'split' has 'trian' in row 1: it must be",
        ),
        ({}, {"split": ["val"] * N}, "'split' has no node to train on"),
        (
            {},
            {**changed("kind", 2, ""), "split": ["train"] * N},
            "the node in row 3 is in the part 'train' but has no label",
        ),
        ({}, {"f0": X[:-1, 0]}, "the columns of `nodes` differ in length"),
    ],
)
def test_what_does_not_fit_is_named_with_row_and_value(edges, nodes, said):
    with pytest.raises(ValueError, match=said):
        Graph.from_tables({**EDGES, **edges}, {**NODES, **nodes}, label="kind")


def test_a_label_that_is_not_there_names_the_nearest():
    with pytest.raises(ValueError, match="'knd', but the .* Did you mean 'kind'"):
        Graph.from_tables(EDGES, NODES, label="knd")


@pytest.mark.parametrize(
    "edges, nodes, said",
    [
        ({"source": [1]}, NODES, "`edges` has one column, 'source': it needs two"),
        ({}, NODES, "`edges` has no columns"),
        (3, NODES, "`edges` must be a table: .* got a int"),
        (EDGES, {"id": [], "x": []}, "`nodes` has no rows"),
        (EDGES, {"id": NODES["id"]}, "no column of numbers, besides id"),
    ],
)
def test_what_is_no_table_is_refused(edges, nodes, said):
    with pytest.raises(ValueError, match=said):
        Graph.from_tables(edges, nodes)
