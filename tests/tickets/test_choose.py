"""The cheapest ticket within a tolerance: what is tried, what holds, what not."""

import math
from dataclasses import replace

import pytest
import torch
from helpers import same

import gebt
from gebt import find_cheapest
from gebt._registry import MODELS
from gebt.tickets.choose import LINKS, WEIGHTS, usual_criteria

pytestmark = pytest.mark.slow

RECIPE = MODELS["gcn"].changed(epochs=40, hidden=8)


@pytest.fixture(scope="module")
def noisy():
    """A graph of many links, of which few would do."""
    return gebt.load("synthetic:N=400,E=8000,F=16,C=4,split=30-30-40,seed=1")


@pytest.fixture(scope="module")
def choice(noisy):
    return find_cheapest(noisy, recipe=RECIPE, max_drop=2.0, seed=3)


def test_the_answer_is_the_fastest_that_holds(choice):
    dense, *tickets = choice.frontier
    assert (dense.criterion, dense.val) == ("dense", choice.dense_val)
    timed = [each for each in tickets if each.ms is not None]
    holding = [each for each in timed if each.val >= choice.dense_val - 2.0]
    assert choice.chosen in holding
    assert choice.chosen.share == min(each.share for each in holding) < 1
    assert sum(each.chosen for each in choice.frontier) == 1


def test_every_criterion_is_scored_at_every_share_and_the_best_is_timed(choice):
    names = usual_criteria(gebt.NodeClassification())
    assert {"voi", "random", "low-degree"} < {*names}
    last = choice.frontier[-1 - len(names) * (len(LINKS) - 1) :]
    assert {each.weight_ratio for each in last} == {choice.chosen.weight_ratio}
    assert last[0].criterion == "all" and {each.criterion for each in last[1:]} == {
        *names
    }
    for ratio in LINKS:
        mine = [each for each in last if each.graph_ratio == ratio]
        [timed] = [each for each in mine if each.ms is not None]
        assert timed.val == max(each.val for each in mine)


def test_more_weights_stay_only_where_fewer_do_not_do(choice):
    tried = list(dict.fromkeys(each.weight_ratio for each in choice.frontier[1:]))
    assert tried == [*WEIGHTS][: len(tried)]
    for ratio in tried[:-1]:
        mine = [each for each in choice.frontier[1:] if each.weight_ratio == ratio]
        assert all(each.val < choice.dense_val - 2.0 for each in mine)


def test_what_is_given_back_fits_together(noisy, choice, tmp_path):
    assert gebt.evaluate(choice.model, choice.graph, "val") == choice.val
    assert choice.val == max(choice.chosen.val, choice.chosen.retrained)
    assert gebt.evaluate(choice.dense, noisy, "val") == choice.dense_val
    low, high = choice.interval
    assert low <= choice.val - choice.dense_val <= high
    kept = noisy.num_links - int(choice.chosen.graph_ratio * noisy.num_links)
    assert choice.ticket.links_kept == kept
    model, small = choice.masked
    with torch.no_grad():
        whole, compact = (
            model(small.x, small.adjacency),
            choice.model(choice.graph.x, choice.graph.adjacency),
        )
    torch.testing.assert_close(whole, compact, rtol=1e-4, atol=1e-4)
    # The ticket is one as any other: saved, opened, retrained.
    choice.ticket.save(tmp_path / "t.safetensors")
    ticket = gebt.Ticket.load(tmp_path / "t.safetensors")
    again = RECIPE.new(noisy.num_features, noisy.num_classes)
    opened = ticket.open(again, noisy)
    assert gebt.evaluate(again, opened, "val") == choice.chosen.val
    done = gebt.train(again, opened, fit=RECIPE.fit, seed=3)
    assert done.val == choice.chosen.retrained
    if done.val > choice.chosen.val:
        assert same(again.state_dict(), model.state_dict())


def test_the_test_nodes_are_never_looked_at(noisy, choice):
    other = noisy.y.clone()
    other[noisy.split.test] = (other[noisy.split.test] + 1) % 4
    blind = find_cheapest(replace(noisy, y=other), recipe=RECIPE, max_drop=2.0, seed=3)
    ours, theirs = (
        [replace(c, ms=None, reference_ms=None, chosen=False) for c in found.frontier]
        for found in (choice, blind)
    )
    assert ours == theirs


def test_nothing_can_be_removed_is_an_answer(noisy):
    """Where the tolerance asks for more than the dense model's score."""
    found = find_cheapest(noisy, recipe=RECIPE, max_drop=0.0, criteria=["random"])
    if found.ticket is None:
        assert found.model is found.dense and found.graph is noisy
        assert found.ticket is None and found.interval == (0.0, 0.0)
    else:
        assert found.chosen.val >= found.dense_val
    # One link a node at most, features without a signal: no link is to spare.
    n = torch.arange(60)
    edges = torch.stack([n, n + 60])
    x = torch.zeros(120, 2)
    x[n, n % 2] = 1
    split = {"train": n[:20] + 60, "val": n[20:40] + 60, "test": n[40:] + 60}
    data = {"x": x, "y": torch.cat([n, n]) % 2, "edge_index": edges}
    pairs = gebt.Graph.from_pyg(data, split=split, directed=False)
    recipe = RECIPE.changed(dropout=0.0, lr=0.05)
    found = find_cheapest(pairs, recipe=recipe, criteria=["random"])
    assert found.dense_val == 100.0
    assert found.chosen.graph_ratio == 0


def test_epochs_are_told_by_phase(noisy):
    phases = []
    find_cheapest(
        noisy,
        recipe=RECIPE.changed(epochs=2),
        criteria=["degree"],
        on_epoch=lambda phase, epoch: phases.append((phase, epoch.epoch)),
    )
    assert phases[:2] == [("dense", 1), ("dense", 2)]
    assert phases[2:5] == [("student", 1), ("student", 2), ("student", 3)]


def test_links_are_predicted_as_well(graph):
    found = find_cheapest(
        graph,
        recipe=RECIPE.changed(epochs=3),
        criteria=["random"],
        task=gebt.LinkPrediction(k=3, width=4),
    )
    assert all(math.isnan(end) for end in found.interval)
    assert found.graph.num_links < graph.num_links  # some are held out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_drop": -0.1}, "`max_drop` must not be negative, got -0.1"),
        ({"max_drop": float("nan")}, "`max_drop` must not be negative, got nan"),
        ({"recipe": "gnc"}, "there is no model 'gnc'.*Did you mean 'gcn'"),
        ({"criteria": ["luck"]}, "there is no criterion 'luck'"),
    ],
)
def test_what_cannot_be_is_refused(graph, options, words):
    with pytest.raises(ValueError, match=words):
        find_cheapest(graph, **options)


def test_without_validation_nodes_it_says_what_it_needs(graph):
    none = replace(graph.split, val=graph.split.val[:0])
    with pytest.raises(ValueError, match="nothing to validate on.*`data.val_mask`"):
        find_cheapest(replace(graph, split=none))
