"""The spanning forest, and the ways round it, against a search for each path."""

import math
from itertools import pairwise

import pytest
import torch
from helpers import tiny

from gebt.models import GCN
from gebt.prune.criteria import Context, score_links


def forest(graph, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return score_links("forest", graph, Context(draw, GCN(1, 1, 1)))


def path(tree, start, end):
    """The nodes from one to another in a tree; None if it does not join them."""
    known = {start: None}
    for node in (todo := [start]):
        for link in tree:
            if node in link:
                [other] = link - {node}
                if other not in known:
                    known[other] = node
                    todo.append(other)
    if end not in known:
        return None
    nodes = [end]
    while nodes[-1] != start:
        nodes.append(known[nodes[-1]])
    return nodes


def test_on_a_ring_one_link_stays_outside_and_its_way_round_is_all_the_others():
    scores = forest(tiny([(0, 1), (1, 2), (2, 3), (3, 4), (4, 0)]))
    lowest, *rest = sorted(scores.tolist())
    assert lowest == pytest.approx(4 * (1 + math.log1p(math.sqrt(4))))
    assert rest == [pytest.approx(lowest + 1)] * 4


@pytest.mark.parametrize("seed", range(4))
def test_ways_round_and_how_they_share_links_as_a_search_finds_them(seed):
    draw = torch.Generator().manual_seed(seed)
    pairs = torch.randint(25, (34, 2), generator=draw).sort(1).values.unique(dim=0)
    pairs = [(a, b) for a, b in pairs.tolist() if a != b]
    graph = tiny(pairs, nodes=28)  # several components, and nodes alone
    scores = forest(graph, seed).tolist()
    links = [frozenset(pair) for pair in sorted(pairs)]
    inside = [link for link, s in zip(links, scores, strict=True) if s == max(scores)]
    outside = [
        pair for pair in zip(links, scores, strict=True) if pair[0] not in inside
    ]
    assert len(outside) > 3
    ways = {link: path(inside, *sorted(link)) for link, _ in outside}
    for link in inside:  # it is a forest: without the link its ends are apart
        rest = [other for other in inside if other != link]
        assert path(rest, *sorted(link)) is None
    used = {link: 0 for link in inside}
    for way in ways.values():  # it spans: there is a way round for every other link
        for step in pairwise(way):
            used[frozenset(step)] += 1
    for link, score in outside:
        steps = [used[frozenset(step)] for step in pairwise(ways[link])]
        norm = math.sqrt(sum(count**2 for count in steps))
        assert score == pytest.approx(len(steps) * (1 + math.log1p(norm)))


def test_the_forest_is_drawn_and_of_a_pruned_graph_of_what_is_left(graph):
    first, again, other = (forest(graph, seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first == first.max(), other == other.max())
    half = graph.keep_links(torch.arange(graph.num_links) % 2 == 0)
    assert (forest(half)[1::2] == 0).all()
    none = graph.keep_links(torch.zeros(graph.num_links, dtype=torch.bool))
    assert (forest(none) == 0).all()


def test_two_directions_of_a_directed_graph_are_each_others_way_round():
    scores = forest(tiny([(0, 1), (1, 0), (1, 2)], directed=True))
    assert sorted(scores.tolist())[0] == pytest.approx(1 * (1 + math.log1p(1)))
    assert int((scores == scores.max()).sum()) == 2
