"""NetworkX, SciPy and DGL: the same graph as from PyG's data."""

import networkx as nx
import numpy as np
import pytest
import torch
from helpers import tiny
from scipy import sparse

from gebt import Graph, SparseMatrix, train
from gebt.models import GCN

LINKS = [(0, 1), (1, 2), (2, 3), (0, 4), (3, 4)]
X = [[0.5, 1.0], [2.0, 3.0], [4.0, 5.5], [6.0, 7.0], [8.0, 9.0]]
SPLIT = {"train": [0, 1], "val": [2], "test": [3, 4]}


def named(directed=False, **weights):
    """The graph of `LINKS` in NetworkX, nodes called a to e."""
    graph = (nx.DiGraph if directed else nx.Graph)()
    parts = ["train", "train", "val", "test", "test"]
    for i, row in enumerate(X):
        kind = ("cat", "dog")[i % 2]
        graph.add_node("abcde"[i], x=row, kind=kind, split=parts[i], note=None)
    graph.add_edges_from([("abcde"[u], "abcde"[v]) for u, v in LINKS], **weights)
    return graph


@pytest.mark.parametrize("directed", [False, True])
def test_networkx_gives_the_graph_that_its_edges_give(directed):
    graph = Graph.from_networkx(named(directed), label="kind")
    peer = tiny(LINKS, X, directed=directed)
    assert torch.equal(graph.adjacency.to_dense(), peer.adjacency.to_dense())
    assert torch.equal(graph.x, peer.x)
    assert graph.num_links == peer.num_links == 5
    assert graph.y.tolist() == [0, 1, 0, 1, 0]
    assert [part.tolist() for part in vars(graph.split).values()] == [*SPLIT.values()]


def test_networkx_edges_may_have_weights():
    given = named(weight=2.5)
    graph = Graph.from_networkx(given, label="kind")
    assert (graph.adjacency.value == 2.5).all()
    del given["a"]["b"]["weight"]
    with pytest.raises(ValueError, match="edges' column 'weight' has None in row 1"):
        Graph.from_networkx(given, label="kind")


def test_a_generated_networkx_graph_is_trained_on():
    given = nx.karate_club_graph()
    degree = dict(given.degree())
    nx.set_node_attributes(given, degree, "degree")
    graph = Graph.from_networkx(given, label="club", seed=1)
    assert (graph.num_nodes, graph.num_links, graph.num_classes) == (34, 78, 2)
    assert graph.x.tolist() == [[degree[node]] for node in given.nodes]
    peer = nx.to_numpy_array(given)  # which has the weights
    assert np.array_equal(graph.adjacency.to_dense().numpy(), peer)
    train(GCN(1, 4, 2), graph, epochs=3)


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda g: g.nodes["b"].pop("x"), "'x' has None in row 2, but .0.5, 1.0. in"),
        (lambda g: g.nodes["b"].update(x=[1.0]), "'x' has .1.0. in row 2, but"),
        (lambda g: g.nodes["b"].update(x="n/a"), "'x' has 'n/a' in row 2, but"),
        (lambda g: g.remove_edges_from([*g.edges]), "`graph` has no edges"),
        (lambda g: g.nodes["b"].update(split="tset"), "'tset' in row 2"),
    ],
)
def test_what_does_not_fit_in_networkx_is_named(change, said):
    given = named()
    change(given)
    with pytest.raises(ValueError, match=said):
        Graph.from_networkx(given, label="kind")


@pytest.mark.parametrize("form", ["csr_array", "csc_matrix", "coo_array", "lil_array"])
def test_scipys_matrices_give_the_graph_of_their_entries(form):
    u, v = np.array(LINKS).T
    both = sparse.coo_array((np.ones(10), (np.r_[u, v], np.r_[v, u])), (5, 5))
    made = getattr(sparse, form)(both)
    y = np.array([0, 1, 0, 1, 0])
    graph = Graph.from_scipy(made, np.array(X, np.float32), y, split=SPLIT)
    peer = Graph.from_pyg(
        {"x": torch.tensor(X), "edge_index": np.stack([u, v]), "y": y}, directed=False
    )
    assert graph.fingerprint() == peer.fingerprint()
    assert graph.split.test.tolist() == [3, 4]


def test_scipys_entries_are_edges_from_row_to_column_with_weights():
    made = sparse.coo_array(([2.0, 3.0, 0.0], ([0, 1, 2], [1, 2, 0])), (3, 3))
    graph = Graph.from_scipy(made, torch.eye(3))
    assert graph.num_links == 2
    assert graph.adjacency.to_dense().tolist() == [[0, 0, 0], [2, 0, 0], [0, 3, 0]]


def test_scipys_sparse_features_stay_sparse():
    x = sparse.random_array((5, 40), density=0.1, rng=np.random.default_rng(0))
    made = sparse.csr_array(nx.to_scipy_sparse_array(nx.cycle_graph(5)))
    graph = Graph.from_scipy(made, x.astype(np.float32).tocsc())
    assert isinstance(graph.x, SparseMatrix)
    assert np.array_equal(graph.x.to_dense().numpy(), x.toarray().astype(np.float32))


@pytest.mark.parametrize(
    "adjacency, said",
    [
        (np.eye(3), "must be a sparse matrix of SciPy, got a ndarray"),
        (sparse.eye_array(3, 4), r"must be square, got \(3, 4\)"),
        (sparse.eye_array(4), r"has no links|lie in \[0, 3\)"),
    ],
)
def test_what_is_no_adjacency_is_refused(adjacency, said):
    with pytest.raises(ValueError, match=said):
        Graph.from_scipy(adjacency, torch.eye(3))


def test_other_things_are_no_graphs_of_theirs():
    for read in (Graph.from_networkx, Graph.from_dgl):
        with pytest.raises(ValueError, match="`graph` must be .*, got a int"):
            read(3)


def test_dgls_graphs_give_the_graph_of_their_edges():
    try:
        import dgl
    except (ImportError, OSError) as error:
        pytest.skip(f"needs DGL, whose wheels are for older releases of torch: {error}")
    u, v = np.array(LINKS).T
    given = dgl.graph((np.r_[u, v], np.r_[v, u]))
    given.ndata["feat"] = torch.tensor(X)
    given.ndata["label"] = torch.tensor([0, 1, 0, 1, 0])
    given.ndata["train_mask"] = torch.arange(5) < 2
    graph = Graph.from_dgl(given)
    peer = tiny(LINKS, X)
    assert torch.equal(graph.adjacency.to_dense(), peer.adjacency.to_dense())
    assert graph.split.train.tolist() == [0, 1]
    with pytest.raises(ValueError, match=r"`x` is 'f', but `graph.ndata` has \['feat"):
        Graph.from_dgl(given, x="f")
