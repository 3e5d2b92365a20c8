"""Every model by name builds and trains; bad numbers are refused."""

from dataclasses import replace

import pytest
import torch

import gebt
from gebt._registry import MODELS
from gebt.learn.tasks import TASKS, task_for
from gebt.learn.training import new_model
from gebt.models import CLASSES, GCN, describe_model
from gebt.models.recipe import TITLES, row
from gebt.options import Fit
from gebt.prune.weights import ModelPruner, prunable_weights

NAMES = ["gcn", "gcn-res", "gat", "gin", "sage", "resgcn7", "resgcn14", "resgcn28"]
NAMES += ["super", "super-res"]


@pytest.fixture(scope="module")
def digits():
    return gebt.load("digits")


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_builds_and_trains_two_epochs(digits, name):
    recipe = MODELS.find(name).changed(epochs=2, hidden=8)
    task = task_for(digits)
    model = new_model(digits, recipe, task, seed=1)
    assert describe_model(model)["class"] in CLASSES
    assert describe_model(model)["arguments"]["dropout"] == recipe.dropout
    done = gebt.train(model, digits, fit=recipe.fit, seed=1, task=task)
    assert len(done.history) == 2
    assert gebt.evaluate(model, digits) > 0
    fresh = new_model(digits, recipe, task, seed=1)
    for key, weight in prunable_weights(model).items():
        assert not torch.equal(weight, fresh.get_parameter(key)), key


@pytest.mark.parametrize("name", NAMES[:6])
def test_no_layer_of_a_recipes_ticket_loses_all_of_its_weights(sparse_graph, name):
    """Many features into few units: where one ranking would empty the first layer."""
    wide = torch.randn(sparse_graph.num_nodes, 600)
    graph = replace(sparse_graph, x=wide)
    recipe = MODELS.find(name).changed(epochs=1)
    model = new_model(graph, recipe, task_for(graph), seed=1)
    masks = ModelPruner(model, 0.9, scope=recipe.scope).masks()
    for key, mask in masks.items():
        assert mask.any(), key


def test_the_recipes_are_those_promised_and_know_their_names():
    assert list(MODELS) == NAMES
    assert all(recipe.model == name for name, recipe in MODELS.items())
    assert MODELS["gcn"].build is GCN


@pytest.mark.parametrize("name", ["GCN", "Sage", "ResGCN7"])
def test_names_are_found_in_any_case(name):
    assert MODELS.find(name) is MODELS[name.lower()]


@pytest.mark.parametrize("layers", [7, 14, 28])
def test_a_resgcns_name_is_its_depth(layers):
    model = MODELS.find(f"resgcn{layers}").build(3, 4, 2, dropout=0.1)
    assert describe_model(model)["arguments"]["layers"] == layers


def test_the_gcn_is_trained_as_the_library_does_by_default():
    """`gebt run` and `gebt.train` of a GCN agree without any option."""
    import inspect

    recipe = MODELS["gcn"]
    assert recipe.fit == Fit()
    assert inspect.signature(GCN).parameters["dropout"].default == recipe.dropout


@pytest.mark.parametrize(
    ("name", "near"),
    [("gatt", "gat"), ("graphsage", "sage"), ("resgcn", "resgcn7"), ("gcnn", "gcn")],
)
def test_an_unknown_model_lists_those_there_are_and_suggests_the_nearest(name, near):
    words = f"no model '{name}'; gebt knows {', '.join(NAMES)}. Did you mean '{near}'"
    with pytest.raises(ValueError, match=words):
        MODELS.find(name)


def test_a_model_like_no_other_is_answered_without_a_guess():
    with pytest.raises(ValueError, match=r"no model 'xyz'; gebt knows .* super-res\.$"):
        MODELS.find("xyz")


@pytest.mark.parametrize(
    ("name", "values", "rule"),
    [
        ("hidden", [0, -1], "must be at least 1"),
        ("dropout", [1.0, 1.5, -0.1, float("nan")], r"must lie in \[0, 1\)"),
        ("lr", [0.0, -0.01, float("nan")], "must be positive"),
        ("weight_decay", [-5e-4, float("nan")], "must not be negative"),
        ("epochs", [0, -1], "must be at least 1"),
    ],
)
def test_numbers_out_of_range_are_refused_by_name(name, values, rule):
    for value in values:
        with pytest.raises(ValueError, match=f"`{name}` {rule}, got {value}"):
            MODELS["gat"].changed(**{name: value})


def test_the_smallest_numbers_allowed_are_allowed():
    MODELS["sage"].changed(hidden=1, dropout=0.0, weight_decay=0.0, epochs=1)


def test_a_recipe_as_a_row_holds_its_numbers():
    cells = dict(zip(TITLES, row(MODELS["gcn"]), strict=True))
    assert cells["--model"] == "gcn"
    numbers = "hidden 16, dropout 0.5, lr 0.01, weight decay 0.0005 on the first layer"
    assert cells["trained with, unless told otherwise"].startswith(numbers)
    drops = {name: row(recipe)[-1] for name, recipe in MODELS.items()}
    units = [name for name in NAMES if "hidden units" in drops[name]]
    supernets = ["super", "super-res"]
    assert units == ["gcn", "gcn-res", "gat", "gin", "sage", *supernets]
    assert "heads" in drops["gat"] and "channels" in drops["resgcn7"]


@pytest.mark.parametrize("task", TASKS.values())
def test_a_model_is_as_wide_as_its_task_needs(graph, task):
    known = replace(graph, y=graph.y[:, None] == torch.arange(3))
    model = new_model(known, MODELS["gcn"], task(), seed=0)
    wide = model(graph.x, graph.adjacency).shape[1]
    # One number; two coarse classes beside the three.
    other = {"link-prediction": 64, "regression": 1, "hierarchical": 5}
    assert wide == other.get(task.name, 3)
