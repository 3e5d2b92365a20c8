"""Sizes kept exactly, communities, hubs, and a seed that repeats."""

import pytest
import torch
from helpers import run_python

import gebt
from gebt import Graph, Split
from gebt.datasets.synthetic import Synthetic

SMALL = "synthetic:N=2000,E=12000,F=32,C=5"


@pytest.fixture(scope="module")
def small():
    return gebt.load(SMALL)


@pytest.fixture(scope="module")
def tenth():
    """As many links a node as arxiv-like, a tenth of its nodes."""
    return gebt.load("synthetic:N=16934,E=116624,F=4,C=40")


def homophily(graph):
    pattern = graph.adjacency.pattern
    return float((graph.y[pattern.row] == graph.y[pattern.col]).double().mean())


@pytest.mark.parametrize(
    "n, e, f, c",
    [
        (2000, 12_000, 32, 5),
        (500, 499, 3, 2),  # fewer links than nodes
        (40, 400, 2, 3),  # half of all pairs
        (40, 779, 2, 3),  # all pairs but one
        (40, 780, 2, 40),  # all pairs; a class for every node
        (2, 1, 1, 2),
    ],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_sizes_are_exact(n, e, f, c, seed):
    graph = gebt.load(f"synthetic:N={n},E={e},F={f},C={c},seed={seed}")
    assert graph.x.shape == (n, f) and graph.x.dtype == torch.float32
    assert graph.num_links == graph.links_kept == e
    assert graph.y.unique().tolist() == list(range(c))
    pattern = graph.adjacency.pattern
    assert (pattern.row != pattern.col).all()
    pairs = torch.stack([pattern.row, pattern.col], dim=1)
    assert pairs.unique(dim=0).shape[0] == 2 * e


def test_it_is_the_graph_that_from_pyg_makes_of_its_edges(small):
    from torch_geometric.data import Data

    pattern = small.adjacency.pattern
    mixed = torch.randperm(pattern.nnz)
    data = Data(x=small.x, y=small.y, edge_index=pattern.edge_index[:, mixed])
    assert Graph.from_pyg(data).fingerprint() == small.fingerprint()


def test_two_thirds_of_the_links_stay_within_a_class(small, tenth):
    assert homophily(small) == pytest.approx(0.65, abs=1e-3)
    assert homophily(tenth) == pytest.approx(0.65, abs=1e-3)


def test_degrees_have_a_heavy_tail_and_no_node_is_left_out(small, tenth):
    for graph in (small, tenth):
        degree = graph.adjacency.pattern.crow.diff().double()
        assert degree.min() >= 1
        assert degree.max() > 10 * degree.mean()
        assert degree.median() < 0.75 * degree.mean()
    # Straight in a log-log plot: ten times fewer nodes reach 10 ** 0.75 as many.
    above = [float(degree.quantile(1 - share)) for share in (0.1, 0.01, 0.001)]
    assert 3 < above[1] / above[0] < 7 and 3 < above[2] / above[1] < 7


def test_classes_are_unequal_and_in_random_order(tenth):
    size = tenth.y.bincount()
    assert (size.diff() <= 0).all()
    assert 0.15 < float(size[0]) / tenth.num_nodes < 0.25
    assert float(size[0] / size[-1]) > 20
    half = tenth.num_nodes // 2
    first = tenth.y[:half].bincount(minlength=40) / tenth.y.bincount()
    assert ((first[:5] - 0.5).abs() < 0.05).all()
    degree = tenth.adjacency.pattern.crow.diff().double()
    assert degree[:half].mean() == pytest.approx(float(degree[half:].mean()), rel=0.1)


def test_nodes_are_split_as_told(small):
    assert isinstance(small.split, Split)
    parts = [small.split.train, small.split.val, small.split.test]
    assert [p.numel() for p in parts] == [1080, 360, 560]
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(2000))
    assert all((p.diff() > 0).all() for p in parts)
    few = gebt.load("synthetic:N=1000,split=8-2-90").split
    assert [p.numel() for p in (few.train, few.val, few.test)] == [80, 20, 900]


def test_features_are_noise_with_a_little_of_the_class(small):
    assert float(small.x.mean()) == pytest.approx(0, abs=0.05)
    assert float(small.x.std()) == pytest.approx(1, abs=0.05)
    mean = torch.stack([small.x[small.y == c].mean(dim=0) for c in range(5)])
    length = mean.norm(dim=1)
    assert ((length > 0.6) & (length < 1.6)).all()


def test_links_tell_what_features_do_not(small):
    def test_accuracy(graph):
        torch.manual_seed(0)
        model = gebt.models.GCN(32, 32, 5, dropout=0.2)
        gebt.train(model, graph, epochs=30, weight_decay=0)
        return gebt.evaluate(model, graph, "test")

    with_links = test_accuracy(small)
    without = test_accuracy(small.keep_links(torch.zeros(12_000, dtype=torch.bool)))
    largest = 100 * float(small.y[small.split.test].bincount().max()) / 560
    assert with_links > 75
    assert with_links > without + 20
    assert without > largest - 5  # features alone are worth no less than a guess


CHILD = """
import sys, torch, gebt
for threads in (1, 2):
    torch.set_num_threads(threads)
    print(gebt.load(sys.argv[1]).fingerprint())
"""


@pytest.mark.slow
def test_a_fresh_process_draws_the_same_on_any_number_of_threads(small):
    assert run_python(CHILD, SMALL).split() == [small.fingerprint()] * 2


def test_it_is_the_same_on_every_machine(small):
    pattern = small.adjacency.pattern
    assert int((pattern.row.long() * pattern.col.long()).sum()) == 24319025628
    assert int((small.y * torch.arange(2000)).sum()) == 2742522
    assert int(small.split.train.sum()) == 1079188
    # To the last bit: sums of bytes, scaled by exactly rounded operations.
    assert small.x[0, :3].tolist() == [
        0.7986660003662109,
        -1.226030707359314,
        -0.9319082498550415,
    ]


def test_other_seeds_are_other_graphs(small):
    other = gebt.load(SMALL + ",seed=1")
    assert not torch.equal(other.y, small.y)
    assert not torch.equal(other.adjacency.pattern.col, small.adjacency.pattern.col)
    assert homophily(other) == pytest.approx(0.65, abs=1e-3)


def test_the_name_loads_the_same_graph(small):
    assert small.name == "synthetic:N=2000,E=12000,F=32,C=5,split=54-18-28,seed=0"
    again = gebt.load(small.name)
    assert again.name == small.name
    assert again.fingerprint() == small.fingerprint()
    assert torch.equal(again.split.train, small.split.train)


def test_keys_come_in_any_order_and_may_be_missing():
    assert Synthetic.parse("") == Synthetic()
    assert Synthetic.parse("N=9") == Synthetic(nodes=9, links=36, classes=9)
    assert Synthetic.parse("n=2_000") == Synthetic(nodes=2000, links=10_000)
    odd = Synthetic.parse(" seed=3, C=4 ,split=10-0-90,F=7,E=5,N=100,")
    assert odd == Synthetic(
        nodes=100, links=5, features=7, classes=4, split=(10, 0, 90), seed=3
    )
    assert Synthetic.parse(odd.name.partition(":")[2]) == odd


@pytest.mark.parametrize(
    "spec, message",
    [
        (
            "N=10,K=3",
            "'K' is not known: .* any of these keys, synthetic:N=…,E=…",
        ),
        ("2000", "'2000' is not known"),
        ("N=10,n=11", "'n' is given twice"),
        ("N=1e5", "graph's N must be a whole number, got '1e5'"),
        ("N=", "graph's N must be a whole number, got ''"),
        ("split=a-b-c", "split must be three whole numbers, got 'a-b-c'"),
        ("split=54-18", "split must be three percentages .* got 54-18"),
        ("split=0-50-50", "split must be three percentages .* got 0-50-50"),
        ("split=-1-50-51", "split must be three whole numbers, got '-1-50-51'"),
        ("N=10,E=46", r"E \(links between 10 nodes\) .* at most 45, got 46"),
        ("E=0", r"E \(links between 10000 nodes\) must be at least 1 .* got 0"),
        ("N=9,C=10", r"N \(nodes, of every class one\) must be at least 10 .* got 9"),
        ("N=1", r"N \(nodes, of every class one\) must be at least 2 .* got 1"),
        ("N=9999999999", "at most 2147483647, got 9999999999"),
        ("C=1", r"C \(classes\) must be at least 2, got 1"),
        ("F=0", r"F \(features\) must be at least 1, got 0"),
        ("seed=-1", "seed .* must be at least 0 and at most 4294967295, got -1"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(spec, message):
    with pytest.raises(ValueError, match=message) as error:
        gebt.load(f"synthetic:{spec}")
    assert "\n" not in str(error.value)


# Classes in order.

ORDERED = "synthetic:N=2000,E=12000,F=32,C=5,ordinal=1"


@pytest.fixture(scope="module")
def ordered():
    return gebt.load(ORDERED)


def test_classes_in_order_are_of_a_size_and_linked_to_neighbours(ordered):
    assert ordered.name == "synthetic:N=2000,E=12000,F=32,C=5,split=54-18-28,seed=0" + (
        ",ordinal=1"
    )
    assert torch.equal(gebt.load(ordered.name).x, ordered.x)
    assert (ordered.y.bincount() == 400).all()
    pattern = ordered.adjacency.pattern
    away = (ordered.y[pattern.row] - ordered.y[pattern.col]).abs().bincount()
    assert away[0] / away.sum() == pytest.approx(0.65, abs=1e-3)
    assert away[:2].sum() == away.sum() == 24_000


def test_features_of_neighbouring_classes_are_alike_and_of_the_ends_opposite(ordered):
    mean = torch.stack([ordered.x[ordered.y == c].mean(dim=0) for c in range(5)])
    alike = torch.nn.functional.cosine_similarity(mean, mean[:1])
    assert (alike.diff() < 0).all() and alike[-1] < -0.5


def test_another_seed_is_another_graph_with_the_same_directions(ordered):
    other = gebt.load(ORDERED + ",seed=1")
    assert not torch.equal(other.x, ordered.x)
    means = [
        torch.stack([graph.x[graph.y == c].mean(dim=0) for c in range(5)])
        for graph in (ordered, other)
    ]
    alike = torch.nn.functional.cosine_similarity(*means)
    assert (alike > 0.6).all()


def test_they_are_the_same_on_every_machine(ordered):
    pattern = ordered.adjacency.pattern
    assert int((pattern.row.long() * pattern.col.long()).sum()) == 24505011000
    assert ordered.x[0, :3].tolist() == [
        0.48829424381256104,
        -0.055672720074653625,
        2.1529109477996826,
    ]
    with pytest.raises(ValueError, match=r"ordinal .* at most 1, got 2"):
        gebt.load("synthetic:ordinal=2")
