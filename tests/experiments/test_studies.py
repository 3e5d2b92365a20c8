"""What one set of weights is worth on every criterion's links."""

from dataclasses import replace

import pytest
import torch
from helpers import same

import gebt
from gebt._registry import MODELS
from gebt.experiments.methods import Setting
from gebt.experiments.studies import (
    ALL_LINKS,
    ASKED,
    CRITERIA,
    DRAWN,
    LEARNED,
    NO_LINKS,
    OTHERS,
    OWN_PATH,
    PERMUTED,
    SHARES,
    STUDIES,
    VARIANTS,
    Answers,
    _halves,
    drawn,
    student,
)
from gebt.learn.student import student_of, train_student
from gebt.learn.tasks import NodeClassification
from gebt.learn.training import evaluate, new_model, train
from gebt.prune.links import links_by
from gebt.prune.weights import prunable_weights

EPOCHS = 6
TASK = NodeClassification()


@pytest.fixture
def setting(graph):
    recipe = MODELS["gcn"].changed(epochs=EPOCHS, hidden=8)
    return Setting(graph, TASK, recipe, 0.4, 0.5, seed=1, quick=True)


def test_a_student_is_scored_on_every_criterion_at_every_share(setting):
    dense, whole = student(replace(setting, graph_ratio=0.0))
    assert (dense.links, whole.links, dense.beside) == ("dense", "all", ())
    names = (*CRITERIA, LEARNED, PERMUTED, ASKED, OTHERS)
    expected = {(name, share) for name in names for share in SHARES}
    expected |= {(ALL_LINKS, 0.0), (NO_LINKS, 1.0)}
    found = [(row["links"], row["share"]) for row in whole.beside]
    assert len(found) == len(expected) and set(found) == expected


def test_a_ratio_of_links_is_the_one_share(setting):
    *_, whole = student(setting)
    assert {row["share"] for row in whole.beside} == {0.0, 0.4, 1.0}


def by_hand(setting):
    """The dense model and its student, step by step."""
    graph, recipe = setting.graph, setting.recipe
    dense = new_model(graph, recipe, TASK, seed=1)
    train(dense, graph, fit=recipe.fit, seed=1)
    model = new_model(graph, recipe, TASK, seed=1)
    model.load_state_dict(dense.state_dict())
    answers = dense(graph.x, graph.adjacency)
    how = {"weight_ratio": 0.5, "fit": student_of(recipe.fit), "seed": 1}
    train_student(model, graph, answers, **how)
    return dense, model


def test_rows_are_the_students_scores_with_nothing_retrained(setting):
    first, second = student(setting)
    dense, model = by_hand(setting)
    assert same(first.model.state_dict(), dense.state_dict())
    assert same(second.model.state_dict(), model.state_dict())
    graph = setting.graph
    rows = {row["links"]: row for row in second.beside}
    none = torch.zeros(graph.num_links, dtype=torch.bool)
    kept = {NO_LINKS: none, ALL_LINKS: ~none}
    for name in CRITERIA:
        links = links_by(name, graph, model, 0.4, 1, TASK)
        kept[name] = links.masks()["link"]
    for name, keep in kept.items():
        small = graph.keep_links(keep)
        for part in ("val", "test"):
            score = pytest.approx(evaluate(model, small, part), abs=1e-3)
            assert rows[name][part] == score
        score = pytest.approx(evaluate(dense, graph), abs=1e-3)
        assert rows[name]["dense"] == score
    assert len({rows[name]["test"] for name in (*CRITERIA, NO_LINKS)}) > 2


def test_students_keep_as_many_weights_as_promised(setting):
    *_, whole = student(setting)
    weights = prunable_weights(whole.model).values()
    total = sum(weight.numel() for weight in weights)
    assert sum(int(w.count_nonzero()) for w in weights) == total - int(0.5 * total)


def test_dense_models_train_for_200_epochs_unless_it_is_quick(setting):
    quick, _ = student(setting)
    assert quick.full_epochs == EPOCHS
    slow, _ = student(replace(setting, quick=False))
    assert slow.full_epochs == 200


def test_permuted_beliefs_choose_other_links_of_the_same_model(setting):
    *_, whole = student(setting)
    model, graph = whole.model, setting.graph
    order = torch.randperm(graph.num_nodes, generator=torch.Generator().manual_seed(1))
    told = Answers(model, lambda out: out[order])
    right, wrong = (
        links_by("voi", graph, each, 0.4, 1).masks()["link"] for each in (model, told)
    )
    assert right.sum() == wrong.sum() and not torch.equal(right, wrong)
    small = graph.keep_links(wrong)
    [row] = [row for row in whole.beside if row["links"] == PERMUTED]
    assert row["test"] == pytest.approx(evaluate(model, small), abs=1e-3)


def test_of_half_of_the_nodes_none_is_trained_on_and_both_halves_are_scored(graph):
    asked, parts = _halves(graph, torch.Generator().manual_seed(0))
    others = ~asked.squeeze(1)
    assert others[graph.split.train].all()
    for part in ("val", "test"):
        nodes = getattr(graph.split, part)
        mine, theirs = (getattr(parts[n].split, part) for n in (ASKED, OTHERS))
        assert 0 < mine.numel() < nodes.numel()
        assert torch.equal(torch.cat([mine, theirs]).sort().values, nodes.sort().values)
        assert asked[mine].all() and others[theirs].all()


def test_what_is_not_asked_has_no_gradient(graph, setting):
    model = setting.model()
    asked = torch.zeros(graph.num_nodes, 1, dtype=torch.bool)
    asked[3] = True
    told = Answers(model, lambda out: torch.where(asked, out, out.detach()))
    value = torch.ones_like(graph.adjacency.value, requires_grad=True)
    out = told.eval()(graph.x, graph.adjacency.with_value(value))
    assert torch.equal(out, model(graph.x, graph.adjacency))
    [all_of_it] = torch.autograd.grad(out.square().sum(), value, retain_graph=True)
    [of_three] = torch.autograd.grad(out[3].square().sum(), value)
    assert torch.equal(all_of_it, of_three) and of_three.any()


def test_own_paths_are_a_variant_of_gcn():
    model = VARIANTS[OWN_PATH].new(5, 3)
    names = [name for name, _ in model.named_parameters() if "own_weight" in name]
    assert len(names) == 2
    assert VARIANTS[OWN_PATH].fit == MODELS["gcn"].fit


def test_drawn_weights_are_one_searchs_on_several_links(setting):
    outcomes = list(drawn(replace(setting, draw=3)))
    assert [outcome.links for outcome in outcomes] == [*DRAWN]
    tickets = {id(outcome.ticket) for outcome in outcomes}
    assert len(tickets) == 1
    ticket = outcomes[0].ticket
    assert ticket.epoch == 3
    links = setting.graph.num_links
    for outcome in outcomes:
        assert outcome.graph.links_kept == links - int(0.4 * links)
        for name, mask in ticket.weight_masks.items():
            assert not prunable_weights(outcome.model)[name][~mask].any()
        val = gebt.evaluate(outcome.model, outcome.graph, "val")
        assert outcome.val == pytest.approx(val)
    masks = {o.links: o.graph.link.unique() for o in outcomes}
    assert torch.equal(masks[LEARNED], ticket.link_mask.nonzero().flatten())
    searched = setting.model()
    searched.load_state_dict(dict(ticket.weights))
    for name in DRAWN[1:]:
        keep = links_by(name, setting.graph, searched, 0.4, 1).masks()["link"]
        assert torch.equal(masks[name], keep.nonzero().flatten())
    assert not torch.equal(masks["voi"], masks["random"])


# Two are of graphs of their own, and tested with those.
@pytest.mark.parametrize(
    "study", [s for s in STUDIES if s not in ("eb-train-images", "transferred")]
)
def test_a_study_repeats_under_its_seed(study, setting):
    if study == "supertickets":
        supernet = MODELS["super"].changed(epochs=EPOCHS, hidden=2)
        setting = replace(setting, graph_ratio=0.0, recipe=supernet)
    first, again = (list(STUDIES[study](setting)) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        assert same(one.model.state_dict(), other.model.state_dict())
        assert [drop(row) for row in one.beside] == [drop(row) for row in other.beside]


def drop(row):
    return {name: value for name, value in row.items() if name != "cpu_seconds"}
