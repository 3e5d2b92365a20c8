"""What is learned of classes in order, their tickets, transfer, and the page of it."""

from dataclasses import replace

import pytest
import torch
from helpers import same

import gebt
from gebt import Ordinal, absolute_error, freeze, transfer
from gebt._registry import EXPERIMENTS
from gebt.experiments.in_order import (
    ALONE,
    CHANCE,
    FROZEN,
    TARGETS,
    ordered,
    targets,
    transferred,
)
from gebt.experiments.methods import Setting
from gebt.experiments.runner import KEY, _run
from gebt.experiments.studies import VARIANTS, WIDE
from gebt.learn.tasks import NodeClassification
from gebt.learn.training import evaluate, new_model, train

SMALL = "synthetic:N=200,E=900,F=16,C=6,split=20-30-50,seed=3,ordinal=1"


@pytest.fixture(scope="module")
def setting():
    recipe = VARIANTS[WIDE].changed(epochs=4, hidden=8)
    graph, task = gebt.load(SMALL), NodeClassification()
    return Setting(graph, task, recipe, 0.5, 0.9, seed=1, quick=True)


def test_every_target_is_learned_by_the_same_recipe(setting):
    found = {outcome.links: outcome for outcome in targets(setting)}
    assert [*found] == [*TARGETS]
    for name, outcome in found.items():
        assert outcome.task is TARGETS[name]
        model = new_model(setting.graph, setting.recipe, outcome.task, seed=1)
        given = {"fit": setting.recipe.fit, "seed": 1, "task": outcome.task}
        assert train(model, setting.graph, **given).val == outcome.val
        assert same(model.state_dict(), outcome.model.state_dict())


def test_plain_classification_is_node_classification(setting):
    outcome = next(targets(setting))
    plain = new_model(setting.graph, setting.recipe, setting.task, seed=1)
    setting.train(plain, setting.graph)
    assert same(plain.state_dict(), outcome.model.state_dict())
    of = outcome.model, setting.graph
    assert evaluate(*of, task=setting.task) == evaluate(*of, task=outcome.task)


def test_tickets_have_the_ratios_and_controls(setting):
    found = list(ordered(setting))
    assert [each.links for each in found] == ["learned", "random", "all", CHANCE]
    assert all(isinstance(each.task, Ordinal) for each in found)
    assert [each.graph.links_kept for each in found] == [450, 450, 900, 450]


def test_a_ticket_comes_from_the_next_graph_and_frozen_keeps_its_weights(setting):
    found = {outcome.links: outcome for outcome in transferred(setting)}
    kinds = {"ticket", "random"}
    assert found.keys() == {ALONE, *kinds, *(kind + FROZEN for kind in kinds)}
    graph, task = setting.graph, Ordinal()
    name = SMALL.replace("seed=3", "seed=4").replace("20-30-50", "54-18-28")
    there = replace(setting, graph=gebt.load(name), task=task)
    ticket = there.search(there.model())
    moved = transfer(ticket, graph)
    model = there.model()
    small = moved.open(model, graph)
    freeze(model)
    there.train(model, small)
    assert same(model.state_dict(), found["ticket" + FROZEN].model.state_dict())
    below = "layers.0.weight"
    kept = ticket.weights[below] * ticket.weight_masks[below]
    assert torch.equal(model.get_parameter(below).detach(), kept)
    fresh = found["random" + FROZEN].model.get_parameter(below)
    assert not torch.equal(fresh.detach(), kept)
    assert torch.equal(fresh.detach() != 0, ticket.weight_masks[below])
    for outcome in found.values():
        assert outcome.graph.links_kept == graph.num_links


def test_rows_have_the_error_and_pages_compare_it():
    ordinal = EXPERIMENTS["ordinal"]
    assert all(name.endswith("ordinal=1") for name in ordinal.graphs)
    jobs = ordinal.jobs(SMALL, 0)
    assert [job.method for job in jobs] == ["targets", "ordered", "transferred"]
    assert len(ordinal.jobs("digits", 0)) == 2  # no other graph to come from
    assert {(job.graph_ratio, job.weight_ratio) for job in jobs[1:]} == {(0.5, 0.9)}
    rows = []
    for seed in range(2):
        for job in ordinal.jobs(SMALL, seed):
            names = {"targets": TARGETS, "ordered": ("learned", CHANCE)}
            for n, links in enumerate(names.get(job.method, (ALONE, "ticket"))):
                row = {key: str(v) for key, v in zip(KEY, job.key, strict=True)}
                row |= {"links": links, "test": str(60 - n), "cpu_seconds": "1.0"}
                rows.append(row | {"absolute_error": str(0.5 + 0.01 * n)})
    dense, pruned, moved, figure = ordinal.page(SMALL, {"runs": rows})
    assert figure.draw().axes
    assert [row[0] for row in dense.rows] == [*TARGETS]
    # Ordinal is the third: two below the first, and two hundredths further off.
    assert dense.rows[0][2] == "0.50 ± 0.00"
    assert dense.rows[0][3].startswith("-2.0") and dense.rows[0][4].startswith("+0.02")
    assert dense.rows[2][3] == dense.rows[2][4] == "-"
    assert [row[0] for row in pruned.rows] == [
        "dense",
        "ticket",
        "random links and weights, from scratch",
    ]
    assert [row[0] for row in moved.rows] == [ALONE, "ticket"]


def test_a_job_writes_the_error_of_what_it_scores():
    [job, *_] = EXPERIMENTS["ordinal"].jobs(SMALL, 0)
    rows = _run((job, None, True, {"epochs": 2, "hidden": 4}))["runs"]
    assert [row["links"] for row in rows] == [*TARGETS]
    for row, outcome in zip(rows, targets(_setting(job)), strict=True):
        of = outcome.model, outcome.graph
        error = absolute_error(*of, task=outcome.task)
        assert row["absolute_error"] == round(error, 4)
        assert row["test"] == round(evaluate(*of, task=outcome.task), 3)


def _setting(job):
    recipe = VARIANTS[WIDE].changed(epochs=2, hidden=4)
    return Setting(gebt.load(SMALL), NodeClassification(), recipe, 0.0, 0.0, job.seed)
