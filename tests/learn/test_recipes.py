"""Recipes by name, and the one that validation chooses."""

from dataclasses import replace

import pytest
import torch

import gebt
from gebt._registry import MODELS
from gebt.learn import recipes
from gebt.learn.checkpoint import Clock
from gebt.learn.recipes import (
    TUNED,
    best_looks,
    choose_dense,
    recipes_for,
    train_dense,
)
from gebt.learn.tasks import NodeClassification

TASK = NodeClassification()
SHORT = MODELS["gcn"].changed(epochs=12, hidden=16)


def test_a_name_gives_a_models_own_recipe_or_the_papers(graph):
    assert recipes_for("sage", graph, TASK) == [MODELS["sage"]]
    assert recipes_for("paper", graph, TASK) == [MODELS["gcn"]]
    several = recipes_for("auto", graph, TASK)
    assert [each.model for each in several] == ["gcn", "gcn", "gcn-res", "gcn-res"]
    assert all(each.fit.patience for each in several)
    assert len({(each.model, each.dropout) for each in several}) == 4
    with pytest.raises(ValueError, match="there is no model 'atuo'"):
        recipes_for("atuo", graph, TASK)


def test_links_are_predicted_by_the_recipe_for_links(graph):
    for name in ("auto", "paper", "gcn"):
        [found] = recipes_for(name, graph, gebt.LinkPrediction())
        assert (found.hidden, found.fit.weight_decay) == (128, 0)
    with pytest.raises(ValueError, match="no published settings for link-prediction"):
        recipes_for("tuned", replace(graph, name="cora"), gebt.LinkPrediction())


def test_published_settings_build_models_and_name_their_source(graph):
    for name, recipe in TUNED.items():
        other = replace(graph, name=f"{name}:split=3")
        assert recipes_for("tuned", other, TASK) == [recipe]
        assert "et al." in recipe.source
        with torch.no_grad():
            out = recipe.new(24, 3).eval()(graph.x, graph.adjacency)
        assert out.shape == (graph.num_nodes, 3)


def test_what_is_far_behind_after_a_few_epochs_is_given_up(graph):
    never = SHORT.changed(lr=1e-9)
    kept = best_looks([never, SHORT], graph, TASK, 0)
    assert kept == [SHORT]
    assert best_looks([never], graph, TASK, 0) == [never]  # nothing to compare


def test_what_links_are_worth(graph, monkeypatch):
    every, none = recipes.links_worth(graph, TASK)
    assert every == train_dense(MODELS["gcn"], graph, TASK, 0).val > none > 0
    for part in ("train", "val"):
        empty = {part: graph.split.val[:0]}
        bare = replace(graph, split=replace(graph.split, **empty))
        assert recipes.links_worth(bare, TASK) is None
    assert recipes.links_worth(graph, gebt.LinkPrediction()) is None
    monkeypatch.setattr(recipes, "_MOST", 8)
    assert recipes.links_worth(graph, TASK) is None  # too large


def test_without_validation_nodes_nothing_is_chosen(graph):
    none = replace(graph, split=replace(graph.split, val=graph.split.val[:0]))
    with pytest.raises(ValueError, match="nothing to validate on, by which one of sev"):
        choose_dense([SHORT, SHORT.changed(lr=0.1)], none, TASK, seed=0)


def test_a_dearer_model_is_taken_only_where_it_is_better(graph):
    again = SHORT.changed(dropout=0.49)
    found = choose_dense([SHORT, again], graph, TASK, seed=2)
    plain, other = (train_dense(each, graph, TASK, 2) for each in (SHORT, again))
    assert found.recipe == (again if other.val > plain.val + 0.5 else SHORT)
    assert found.val == gebt.evaluate(found.model, graph, "val")
    slow = SHORT.changed(lr=1e-9)
    assert choose_dense([slow, SHORT], graph, TASK, seed=2).recipe == SHORT


def test_models_with_own_paths_are_made_deeper_as_long_as_it_pays(graph, monkeypatch):
    monkeypatch.setattr(recipes, "_WORTH", -101.0)  # whatever the score
    own = MODELS["gcn-res"].changed(epochs=2, hidden=4)
    found = choose_dense([own, own.changed(dropout=0.4)], graph, TASK, seed=0)
    assert found.recipe.build.keywords["layers"] == 12
    monkeypatch.setattr(recipes, "_WORTH", 101.0)
    found = choose_dense([own, own.changed(dropout=0.4)], graph, TASK, seed=0)
    assert found.recipe.build == own.build
    # One that was asked for by name stays as it is.
    monkeypatch.setattr(recipes, "_WORTH", -101.0)
    assert choose_dense([own], graph, TASK, seed=0).recipe == own


def test_what_takes_too_many_operations_is_not_tried_unasked(graph, monkeypatch):
    never, wide = SHORT.changed(lr=1e-9), SHORT.changed(hidden=64)
    # Dense features: a node's inputs times outputs, and the entries times outputs.
    macs = graph.num_nodes * (24 * 64 + 64 * 3)
    macs += graph.adjacency.pattern.nnz * (64 + 3)
    monkeypatch.setattr(recipes, "_MOST", macs)
    assert choose_dense([never, wide], graph, TASK, seed=0).recipe == wide
    monkeypatch.setattr(recipes, "_MOST", macs - 1)
    assert choose_dense([never, wide], graph, TASK, seed=0).recipe == never
    assert choose_dense([wide], graph, TASK, seed=0).recipe == wide


def test_a_clock_adds_and_subtracts():
    a, b = Clock(1.0, 2.0), Clock(4.0, 6.0)
    assert b - a == Clock(3.0, 4.0) and a + b == Clock(5.0, 8.0)
    start = Clock.now()
    assert (Clock.now() - start).wall >= 0
