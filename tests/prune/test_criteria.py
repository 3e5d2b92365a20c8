"""Link scores of every criterion by hand, and a user's own."""

import math
from dataclasses import replace

import pytest
import torch
from helpers import tiny

import gebt
from gebt.models import GCN
from gebt.prune.criteria import Context, in_rounds, score_links
from gebt.prune.masks import keep_top


def scored(graph, name, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return score_links(name, graph, Context(generator, GCN(1, 1, 1)))


def ends(graph):
    """(L, 2) nodes of each link; of a directed one source and target."""
    found = torch.empty(graph.num_links, 2, dtype=torch.int64)
    pattern = graph.adjacency.pattern
    found[graph.link.flip(0)] = (
        torch.stack([pattern.col, pattern.row], 1).long().flip(0)
    )
    return found


def test_random_scores_are_seeded_and_one_a_link(graph):
    first, again, other = (scored(graph, "random", seed) for seed in (3, 3, 4))
    assert first.shape == (graph.num_links,)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.unique().numel() > 0.99 * first.numel()


def test_degree_scores_of_a_star_with_a_tail_by_hand():
    # 0 joins 1, 2 and 3; 3 joins 4. Degrees 3, 1, 1, 2, 1.
    graph = tiny([(0, 1), (0, 2), (0, 3), (3, 4)])
    low = [3**-0.5, 1.0, 1.0, 2**-0.5, 1.0]
    around = [
        (low[0] + low[1] + low[2] + low[3]) / 4,
        (low[1] + low[0]) / 2,
        (low[2] + low[0]) / 2,
        (low[3] + low[0] + low[4]) / 3,
        (low[4] + low[3]) / 2,
    ]
    expected = [around[a] * around[b] for a, b in [(0, 1), (0, 2), (0, 3), (3, 4)]]
    found = scored(graph, "degree")
    # Up to one factor for all, which ranks nothing.
    torch.testing.assert_close(found / found[0], torch.tensor(expected) / expected[0])
    assert int(found.argmax()) == 3  # between the two of fewest neighbours around


def test_low_degree_scores_of_a_star_with_a_tail_by_hand():
    # 0 joins 1, 2 and 3; 3 joins 4. Degrees 3, 1, 1, 2, 1.
    graph = tiny([(0, 1), (0, 2), (0, 3), (3, 4)])
    expected = torch.tensor([4 / 3, 4 / 3, 1 / 3 + 1 / 2, 3 / 2])
    torch.testing.assert_close(scored(graph, "low-degree"), expected)
    there = tiny([(0, 1), (2, 1), (1, 0)], directed=True)  # messages into 1, 1, 0
    assert sorted(scored(there, "low-degree").tolist()) == [0.5, 0.5, 1.0]


def test_similarity_is_the_cosine_of_the_ends_plus_one():
    x = [[1.0, 0.0], [2.0, 0.0], [0.0, 3.0], [-1.0, 0.0], [1.0, 1.0], [0.0, 0.0]]
    pairs = [(0, 1), (0, 2), (0, 3), (0, 4), (0, 5)]
    found = scored(tiny(pairs, x), "similarity")
    expected = torch.tensor([2.0, 1.0, 0.0, 1 + math.sqrt(0.5), 1.0])
    torch.testing.assert_close(found, expected)


def test_similarity_is_the_same_for_sparse_features(sparse_graph):
    assert isinstance(sparse_graph.x, gebt.SparseMatrix)
    dense = replace(sparse_graph, x=sparse_graph.x.to_dense())
    found = [scored(g, "similarity") for g in (sparse_graph, dense)]
    torch.testing.assert_close(*found)
    x = dense.x / dense.x.norm(dim=1, keepdim=True).clamp(min=1e-12)
    a, b = ends(dense).t()
    torch.testing.assert_close(found[0], 1 + (x[a] * x[b]).sum(1))


@pytest.mark.parametrize("seed", range(5))
def test_k_neighbour_keeps_a_link_of_every_node_as_long_as_the_ratio_allows(
    graph, seed
):
    scores = scored(graph, "k-neighbour", seed)
    firsts = int((scores >= 1).sum())  # some node's first link
    assert graph.num_nodes / 2 <= firsts <= graph.num_nodes
    kept = ends(graph)[keep_top(scores, 1 - firsts / graph.num_links)]
    assert kept.unique().numel() == graph.num_nodes
    # As many random links leave some node alone: the promise is not empty.
    random = scored(graph, "random", seed)
    kept = ends(graph)[keep_top(random, 1 - firsts / graph.num_links)]
    assert kept.unique().numel() < graph.num_nodes


def test_k_neighbour_scores_a_link_by_the_better_of_its_two_places():
    star = tiny([(0, 1), (0, 2), (0, 3), (0, 4)])
    # Every link is the only one of its leaf, whatever its place at the centre.
    assert scored(star, "k-neighbour").min() >= 1


def test_k_neighbour_orders_each_nodes_links_at_random():
    ring = tiny([(i, (i + d) % 30) for i in range(30) for d in (1, 2, 3)])
    first, again, other = (scored(ring, "k-neighbour", seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first >= 1, other >= 1)


@pytest.mark.parametrize(
    "criterion",
    ["random", "degree", "low-degree", "similarity", "k-neighbour", "forest"],
)
def test_scores_fit_a_directed_graph_with_isolated_nodes(criterion):
    graph = tiny([(0, 1), (2, 1), (1, 0), (3, 0)], nodes=6, directed=True)
    scores = scored(graph, criterion)
    assert scores.shape == (4,)
    assert scores.isfinite().all() and (scores >= 0).all()


def test_in_a_directed_graph_every_node_keeps_an_incoming_link():
    graph = tiny([(0, 2), (1, 2), (3, 2), (0, 1), (2, 1)], directed=True)
    kept = ends(graph)[scored(graph, "k-neighbour") >= 1]
    assert sorted(kept[:, 1].tolist()) == [1, 2]


def test_an_unknown_criterion_is_refused_with_those_there_are(graph):
    with pytest.raises(ValueError, match="there is no criterion 'luck'.*k-neighbour"):
        scored(graph, "luck")
    with pytest.raises(ValueError, match="Did you mean 'degree'"):
        gebt.find_ticket(GCN(24, 4, 3), graph, criterion="degre")
    with pytest.raises(ValueError, match="links are learned by a search"):
        scored(graph, "learned")


# --------------------------------------------------------------------- in rounds


def chosen_by(graph, score, ratio, seed=0, rounds=12):
    context = Context(torch.Generator().manual_seed(seed), GCN(1, 1, 1), ratio)
    return in_rounds(graph, context, score, rounds)


def test_rounds_choose_as_many_links_as_stay_the_best_first():
    ring = tiny([(i, (i + 1) % 10) for i in range(10)])
    seen = []

    def score(chosen):
        seen.append(chosen.tolist())
        return torch.arange(10.0)

    places = chosen_by(ring, score, 0.3, rounds=3)
    assert places.tolist() == [0, 0, 0, 1, 2, 3, 4, 5, 6, 7]
    assert [sum(each) for each in seen] == [0, 2, 4]
    assert seen[2] == [False] * 6 + [True] * 4


def test_later_rounds_know_what_was_chosen_before():
    ring = tiny([(i, (i + 1) % 10) for i in range(10)])

    def far_from_all_chosen(chosen):
        near = chosen | chosen.roll(1) | chosen.roll(-1)
        return torch.arange(10.0) - 20 * near

    places = chosen_by(ring, far_from_all_chosen, 0.7, rounds=3)
    assert places.nonzero().squeeze(1).tolist() == [5, 7, 9]


def test_rounds_draw_lots_between_equal_links_and_choose_none_that_is_gone(graph):
    half = graph.keep_links(torch.arange(graph.num_links) % 2 == 0)

    def alike(chosen):
        return torch.zeros(graph.num_links)

    first, again, other = (chosen_by(half, alike, 0.7, seed) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first > 0, other > 0)
    assert (first[1::2] == 0).all()
    assert int((first > 0).sum()) == graph.num_links - int(0.7 * graph.num_links)
    every = chosen_by(half, alike, 0.0)  # more than there are
    assert torch.equal(every > 0, torch.arange(graph.num_links) % 2 == 0)


# ------------------------------------------------------------- those of users


@pytest.fixture
def register(own_registries):
    """`gebt.criterion`, of which nothing is left after the test."""
    return gebt.criterion


def test_a_users_criterion_is_searched_with_kept_and_saved(register, graph, tmp_path):
    @register("late")
    def late(graph, context):
        assert context.model is model
        return torch.arange(graph.num_links) - 7.0  # the last ones; negative, too

    model = GCN(graph.num_features, 8, 3)
    ticket = gebt.find_ticket(
        model, graph, graph_ratio=0.25, weight_ratio=0.5, criterion="late"
    )
    gone = int(0.25 * graph.num_links)
    assert not ticket.link_mask[:gone].any() and ticket.link_mask[gone:].all()
    assert (ticket.link_score == 1).all() and ticket.share_untouched == 0
    assert ticket.settled and ticket.options["criterion"] == "late"
    assert {d["graph"] for d in ticket.distances[1:]} == {0.0}
    ticket.save(tmp_path / "t.safetensors")
    again = gebt.Ticket.load(tmp_path / "t.safetensors")
    small = again.open(model, graph)
    assert (small.adjacency.value == 1).all()
    assert small.links_kept == graph.num_links - gone


def test_links_that_are_gone_already_are_never_kept(register, graph):
    half = graph.keep_links(torch.arange(graph.num_links) % 2 == 0)
    register("all-alike")(lambda graph, _: torch.full((graph.num_links,), -1.0))
    options = {"criterion": "all-alike", "weight_ratio": 0.5, "epochs": 40}
    model = GCN(graph.num_features, 8, 3)
    ticket = gebt.find_ticket(model, half, graph_ratio=0.7, **options)
    assert ticket.links_kept == graph.num_links - int(0.7 * graph.num_links)
    assert not ticket.link_mask[1::2].any()
    ticket = gebt.find_ticket(model, half, graph_ratio=0.0, **options)
    assert torch.equal(ticket.link_mask, torch.arange(graph.num_links) % 2 == 0)
    with pytest.raises(ValueError, match="already pruned"):
        gebt.find_ticket(model, half, graph_ratio=0.4, **options)


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        (lambda graph, _: torch.ones(3), r"one score for each of the \d+ links"),
        (lambda graph, _: [1.0] * graph.num_links, "must give a tensor"),
        (lambda graph, _: torch.full((graph.num_links,), torch.nan), "finite scores"),
    ],
)
def test_scores_that_rank_nothing_are_refused(register, graph, scores, words):
    register("broken")(scores)
    with pytest.raises(ValueError, match=words):
        gebt.find_ticket(GCN(24, 4, 3), graph, criterion="broken")


def test_names_of_our_own_and_of_odd_case_are_refused(register):
    with pytest.raises(ValueError, match="'degree' is gebt's own"):
        register("degree")(lambda graph, _: None)
    with pytest.raises(ValueError, match="of lower-case letters, .*got 'Mine'"):
        register("Mine")(lambda graph, _: None)


def test_a_penalty_needs_learned_scores(graph):
    penalty = gebt.ADMM(prune_ratio=0.2)
    with pytest.raises(ValueError, match="`penalty` pulls learned scores"):
        gebt.find_ticket(GCN(24, 4, 3), graph, criterion="random", penalty=penalty)


def test_the_same_seed_draws_the_same_random_links(graph):
    masks = [
        gebt.find_ticket(
            GCN(24, 8, 3), graph, criterion="random", weight_ratio=0.5, seed=seed
        ).link_mask
        for seed in (1, 1, 2)
    ]
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])
