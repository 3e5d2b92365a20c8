"""`Graph.from_pyg` against a loop over the edges, for any list of them."""

import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gebt import Graph

pytestmark = pytest.mark.slow


@st.composite
def lists_of_edges(draw, most=7):
    """How many nodes, edges with repeats and self-loops, and weights or None."""
    n = draw(st.integers(2, most))
    node = st.integers(0, n - 1)
    edges = draw(st.lists(st.tuples(node, node), min_size=1, max_size=20))
    if draw(st.booleans()):
        edges += [(b, a) for a, b in edges]  # mostly undirected
    weights = st.lists(st.integers(-2, 2), min_size=len(edges), max_size=len(edges))
    return n, edges, draw(st.none() | weights)


def graph_of(n, edges, weights, directed=None):
    data = {"x": torch.eye(n), "edge_index": torch.tensor(edges).t()}
    if weights is not None:
        data["edge_weight"] = torch.tensor(weights, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of self-loops and repeated edges
        return Graph.from_pyg(data, directed=directed)


def written_out(n, edges, weights, directed):
    """The truth: whether it is directed, and the weight of each (target, source)."""
    first: dict = {}
    pairs: dict = {}
    for (source, target), weight in zip(
        edges, weights or [1] * len(edges), strict=True
    ):
        if source != target:
            first.setdefault((target, source), weight)
            pairs.setdefault(frozenset((target, source)), weight)
    if directed is None:
        directed = any(first.get((s, t)) != weight for (t, s), weight in first.items())
    if not directed:
        ends = [tuple(pair) for pair in pairs]
        first = {e: pairs[frozenset(e)] for a, b in ends for e in ((a, b), (b, a))}
    return directed, first


def links_of(graph):
    """The link of each (target, source)."""
    pattern = graph.adjacency.pattern
    places = zip(pattern.row.tolist(), pattern.col.tolist(), strict=True)
    return dict(zip(places, graph.link.tolist(), strict=True))


@given(lists_of_edges(), st.sampled_from([None, True, False]))
def test_any_list_of_edges_becomes_the_matrix_that_it_says(given_edges, directed):
    n, edges, weights = given_edges
    directed_too, expected = written_out(n, edges, weights, directed)
    if not expected:
        with pytest.raises(ValueError, match="the graph has no links"):
            graph_of(n, edges, weights, directed)
        return
    graph = graph_of(n, edges, weights, directed)
    dense = torch.zeros(n, n)
    for place, weight in expected.items():
        dense[place] = weight
    assert torch.equal(graph.adjacency.to_dense(), dense)
    links = links_of(graph)
    assert list(links) == sorted(expected)  # every entry once, in order
    each = 1 if directed_too else 2
    assert graph.num_links == graph.links_kept == len(expected) / each
    ids, counts = torch.unique(graph.link, return_counts=True)
    assert ids.tolist() == list(range(graph.num_links))
    assert (counts == each).all()
    if not directed_too:
        assert all(links[s, t] == link for (t, s), link in links.items())


@given(lists_of_edges(), st.sampled_from([None, True, False]), st.randoms())
def test_other_numbers_for_the_nodes_give_the_same_graph(given_edges, directed, random):
    n, edges, weights = given_edges
    if not written_out(n, edges, weights, directed)[1]:
        return
    number = random.sample(range(n), n)
    moved = [(number[source], number[target]) for source, target in edges]
    one = graph_of(n, edges, weights, directed)
    other = graph_of(n, moved, weights, directed)
    order = torch.tensor(number)
    dense = other.adjacency.to_dense()[order][:, order]
    assert torch.equal(dense, one.adjacency.to_dense())
    ours, theirs = links_of(one), links_of(other)
    same_link = {(link, theirs[number[t], number[s]]) for (t, s), link in ours.items()}
    assert len(same_link) == one.num_links == other.num_links


@given(lists_of_edges(), st.data())
def test_reordering_keeps_every_link_and_restores_the_nodes(given_edges, data):
    n, edges, weights = given_edges
    if not written_out(n, edges, weights, None)[1]:
        return
    graph = graph_of(n, edges, weights)
    moved = graph.reorder()
    order = moved.order
    dense = graph.adjacency.to_dense()[order][:, order]
    assert torch.equal(moved.adjacency.to_dense(), dense)
    assert torch.equal(moved.restore(order), torch.arange(n))
    count = graph.num_links
    flags = st.lists(st.booleans(), min_size=count, max_size=count)
    keep = torch.tensor(data.draw(flags))
    kept = links_of(graph.keep_links(keep))
    ours = {place: link for place, link in links_of(graph).items() if keep[link]}
    assert kept == ours  # link ids stay those of the full graph
    places = order.tolist()
    theirs = links_of(moved.keep_links(keep))
    assert {(places[t], places[s]): link for (t, s), link in theirs.items()} == ours
