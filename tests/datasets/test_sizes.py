"""Sizes that are told before a graph is loaded: they must be those of the graph."""

import pytest
from helpers import call_gebt
from torch import Tensor

import gebt
from gebt._registry import DATASETS
from gebt.datasets import find_root
from gebt.datasets.sizes import SIZES, Size, size_of

_LOADED = ("digits", "imports", "cora", "citeseer", "minesweeper", "tolokers")


@pytest.mark.parametrize("name", _LOADED)
def test_a_size_is_the_graphs(name):
    if not DATASETS.find(name).on_disk(find_root()):
        pytest.skip(f"needs {name} below $GEBT_DATA")
    graph, size = gebt.load(name), SIZES[name]
    assert (graph.num_nodes, graph.num_links) == (size.nodes, size.links)
    assert graph.num_features == size.features
    stored = None if isinstance(graph.x, Tensor) else graph.x.pattern.nnz
    assert stored == size.stored
    train = graph.split.train.numel()
    assert size.train == train or (size.train is None and train == size.nodes // 2)


def test_sizes_are_of_graphs_that_there_are():
    assert SIZES.keys() <= {*DATASETS}


def test_a_size_may_be_given_in_numbers_or_be_a_drawn_graphs():
    assert size_of("100,300,7") == Size(100, 300, 7)
    drawn = size_of("synthetic:N=1000,E=4000,F=8,split=20-30-50")
    assert drawn == Size(1000, 4000, 8, train=200)
    assert size_of("tolokers:split=3") == SIZES["tolokers"]


@pytest.mark.parametrize(
    "name, words",
    [
        ("pubmed", "'pubmed' is not known before it is loaded. Give nodes, links and"),
        ("edges.csv", "'edges.csv' is not known"),
        ("3,4,1", "`E` must be at most 3, got 4"),
        ("3,2,0", "`F` must be at least 1, got 0"),
        ("3,2", "'3,2' is not N,E,F: three whole numbers"),
    ],
)
def test_what_is_not_known_says_what_to_give(name, words):
    with pytest.raises(ValueError, match=words):
        size_of(name)


@pytest.mark.slow
def test_gebt_plan_prints_memory_and_time_of_each_kind(capsys):
    assert call_gebt("plan", "2000,8000,16", "--hidden", 8) == 0
    said = capsys.readouterr().out
    for words in ("2,000 nodes", "hidden 8", "search epoch", "iB", " ms", "It fits"):
        assert words in said
    assert call_gebt("plan", "coar") == 2
    assert "Did you mean 'cora'?" in capsys.readouterr().err
    for text in ("5,3", "100,200,", "1e5,3,4", "1000000000000000,5,5"):
        assert call_gebt("plan", text) == 2
        assert "three whole numbers" in capsys.readouterr().err
    assert call_gebt("plan", "2000,8000,16", "--hidden", 0) == 2
