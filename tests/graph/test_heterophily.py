"""Homophily and label informativeness, by hand and as published."""

import os
from dataclasses import replace
from math import log
from pathlib import Path

import pytest
import torch

from gebt import load
from gebt.datasets import DATASETS
from gebt.graph import Graph, heterophily


def graph_of(links, y, directed=False) -> Graph:
    n = len(y)
    data = {"x": torch.eye(n), "edge_index": list(zip(*links, strict=True)), "y": y}
    return Graph.from_pyg(data, directed=directed)


PATH = [(0, 1), (1, 2), (2, 3)]


def test_two_alike_of_three_links():
    # Classes a a b b on a path: p_aa = p_bb = 1/3, p_ab = p_ba = 1/6, q = 1/2.
    found = heterophily(graph_of(PATH, [0, 0, 1, 1]))
    assert (found.mean_degree, found.classes) == (1.5, 2)
    assert found.homophily == pytest.approx(2 / 3)
    assert found.adjusted == pytest.approx((2 / 3 - 1 / 2) / (1 / 2))
    mutual = 2 / 3 * log(4 / 3) + 1 / 3 * log(2 / 3)
    assert found.informativeness == pytest.approx(mutual / log(2))
    assert found.facts() == {
        "mean degree": "1.5",
        "classes": "2",
        "edge homophily": "0.67",
        "adjusted homophily": "0.33",
        "label informativeness": "0.08",
    }


def test_a_class_counts_by_its_links_not_by_its_nodes():
    # A star: its middle is one node of four, and half of all ends.
    star = [(0, 1), (0, 2), (0, 3)]
    found = heterophily(graph_of(star, [0, 1, 1, 0]))
    assert found.homophily == pytest.approx(1 / 3)
    chance = (2 / 3) ** 2 + (1 / 3) ** 2  # q = (4/6, 2/6)
    assert found.adjusted == pytest.approx((1 / 3 - chance) / (1 - chance))


def test_opposites_that_always_attract_tell_all():
    found = heterophily(graph_of(PATH, [0, 1, 0, 1]))
    assert found.homophily == 0
    assert found.adjusted == pytest.approx(-1)
    assert found.informativeness == pytest.approx(1)


def test_links_that_pay_no_heed_to_classes_tell_nothing():
    # A ring a a b b: one link within each class, two between them.
    ring = heterophily(graph_of([(0, 1), (1, 2), (2, 3), (3, 0)], [0, 0, 1, 1]))
    assert (ring.homophily, ring.adjusted) == (0.5, 0)
    assert ring.informativeness == pytest.approx(0)
    assert ring.facts()["label informativeness"] == "0.00"  # not -0.00


def test_a_directed_graph_is_taken_both_ways():
    links = [(0, 1), (1, 2), (0, 2), (3, 2)]
    y = [0, 0, 1, 1]
    one_way, both = (heterophily(graph_of(links, y, d)) for d in (True, False))
    assert (one_way.mean_degree, both.mean_degree) == (1, 2)
    assert one_way.homophily == pytest.approx(both.homophily)
    assert one_way.adjusted == pytest.approx(both.adjusted)
    assert one_way.informativeness == pytest.approx(both.informativeness)


def test_nodes_without_a_class_are_left_out():
    found = heterophily(graph_of([*PATH, (3, 4)], [0, 0, 1, 1, -1]))
    whole = heterophily(graph_of(PATH, [0, 0, 1, 1]))
    assert found.mean_degree == 1.6
    assert found.adjusted == whole.adjusted


def test_what_is_not_known_is_none():
    graph = graph_of(PATH, [0, 0, 1, 1])
    assert heterophily(replace(graph, y=None)).facts() == {"mean degree": "1.5"}
    several = heterophily(replace(graph, y=torch.ones(4, 3, dtype=torch.bool)))
    assert (several.classes, several.homophily) == (3, None)
    one = heterophily(graph_of(PATH, [0, 0, 0, 0]))
    assert (one.homophily, one.adjusted, one.informativeness) == (1, None, None)
    none = graph.keep_links(torch.zeros(3, dtype=torch.bool))
    assert heterophily(none).facts() == {"mean degree": "0.0", "classes": "2"}
    apart = heterophily(graph_of(PATH, [0, -1, 1, -1]))
    assert (apart.classes, apart.homophily) == (2, None)


@pytest.mark.parametrize(
    "name, adjusted, informativeness",
    [
        ("cora", 0.77, 0.59),
        ("citeseer", 0.67, 0.45),
        ("tolokers", 0.09, 0.01),
        ("minesweeper", 0.01, 0.00),
    ],
)
def test_real_graphs_have_the_published_numbers(name, adjusted, informativeness):
    given = os.environ.get("GEBT_DATA")
    if not given or not DATASETS[name].on_disk(Path(given)):
        pytest.skip(f"set GEBT_DATA to a folder with {name} (it is {given!r})")
    found = heterophily(load(name, given))
    assert round(found.adjusted, 2) == adjusted
    assert round(found.informativeness, 2) == informativeness
