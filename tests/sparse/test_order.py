from itertools import combinations

import pytest
import torch

import gebt
from gebt.graph import Graph
from gebt.models import GCN
from gebt.sparse import Pattern
from gebt.sparse.order import community_order


def pattern_of(pairs: list[tuple[int, int]], n: int) -> Pattern:
    row, col = torch.tensor(sorted(pairs + [(b, a) for a, b in pairs])).t()
    return Pattern.from_sorted(row, col, (n, n))


def test_communities_come_one_after_the_other_each_with_its_hub_first():
    draw = torch.Generator().manual_seed(1)
    name = torch.randperm(90, generator=draw).tolist()  # of node i
    hubs = name[::15]
    pairs = list(zip(hubs, [*hubs[1:], hubs[0]], strict=True))
    for start in range(0, 90, 15):
        pairs += combinations(name[start : start + 15], 2)
    order = community_order(pattern_of(pairs, 90)).tolist()
    assert sorted(order) == list(range(90))
    community = [name.index(node) // 15 for node in order]
    assert sum(a != b for a, b in zip(community, community[1:], strict=False)) == 5
    assert set(order[::15]) == set(hubs)


def test_equal_seeds_give_equal_orders_and_lonely_nodes_are_kept():
    pattern = pattern_of([(0, 5), (5, 9), (2, 3)], 12)
    one, two = community_order(pattern, 3), community_order(pattern, 3)
    assert torch.equal(one, two)
    assert one.sort().values.tolist() == list(range(12))
    assert community_order(Pattern(torch.zeros(5), torch.zeros(0), (4, 4))).numel() == 4


@pytest.mark.parametrize("sparse", [False, True])
def test_a_reordered_graph_is_the_same_graph(make_graph, sparse):
    graph = make_graph(sparse=sparse)
    moved = graph.reorder().reorder(seed=1)
    assert not torch.equal(moved.order, torch.arange(graph.num_nodes))
    assert moved.fingerprint() == graph.fingerprint()
    assert moved.to("cpu").fingerprint() == graph.fingerprint()
    model = GCN(graph.num_features, 8, 3).double().eval()
    x, there = (
        g.x.with_value(g.x.value.double()) if sparse else g.x.double()
        for g in (graph, moved)
    )
    outputs = [
        model(features, g.adjacency.with_value(g.adjacency.value.double()))
        for features, g in ((x, graph), (there, moved))
    ]
    torch.testing.assert_close(moved.restore(outputs[1]), outputs[0])
    assert graph.restore(outputs[0]) is outputs[0]
    assert torch.equal(moved.restore(moved.y), graph.y)
    for part in ("train", "val", "test"):
        nodes = moved.order[getattr(moved.split, part)]
        assert torch.equal(nodes, getattr(graph.split, part))


def test_the_compiled_loop_finds_the_same_order(monkeypatch):
    pattern = gebt.load("synthetic:N=3000,E=20000,F=4,C=30").adjacency.pattern
    expected = community_order(pattern, seed=5)
    monkeypatch.setattr("gebt.sparse.order._MANY", 0)
    assert torch.equal(community_order(pattern, seed=5), expected)
    assert not torch.equal(community_order(pattern, seed=6), expected)


def test_a_pattern_renumbered_block_by_block_is_the_same(monkeypatch):
    pattern = gebt.load("synthetic:N=300,E=2000,F=4,C=30").adjacency.pattern
    order = torch.randperm(300)
    expected, entries = pattern.renumbered(order)
    old = pattern.edge_index.index_select(1, entries)
    assert torch.equal(order[expected.edge_index], old)
    key = expected.row.long() * 300 + expected.col
    assert bool((key.diff() > 0).all())
    monkeypatch.setattr("gebt.sparse.pattern.BLOCK", 7)
    again, same = pattern.renumbered(order)
    assert torch.equal(again.col, expected.col)
    assert torch.equal(same, entries)


def test_neighbours_lie_closer_after_reordering():
    graph = gebt.load("synthetic:N=4000,E=20000,F=4,C=100")

    def distance(graph: Graph) -> float:
        pattern = graph.adjacency.pattern
        return float((pattern.row - pattern.col).abs().double().median())

    assert distance(graph.reorder()) < 0.7 * distance(graph)


def test_a_ticket_drawn_on_one_order_opens_on_the_other(graph, tmp_path):
    moved = graph.reorder()
    torch.manual_seed(0)
    model = GCN(graph.num_features, 8, 3)
    ticket = gebt.find_ticket(model, moved, epochs=30)
    small = ticket.open(model, graph)
    assert small.links_kept == int(ticket.link_mask.sum())
    with torch.no_grad():
        expected = model.eval()(small.x, small.adjacency)
    there = ticket.open(model, moved)
    gebt.save_compact(tmp_path / "compact", *gebt.compact(model, there))
    fast, compacted = gebt.load_compact(tmp_path / "compact")
    with torch.no_grad():
        found = compacted.restore(fast(compacted.x, compacted.adjacency))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_split_of_links_moves_with_the_nodes(graph):
    held = graph.hold_out_links()
    moved = held.reorder()
    for name, pairs in vars(moved.split).items():
        assert torch.equal(moved.order[pairs], getattr(held.split, name)), name
