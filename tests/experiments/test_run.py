"""What `gebt run` does for one seed, step by step."""

import warnings
from dataclasses import replace

import pytest
import torch
from helpers import same

from gebt import LinkPrediction, LinkSplit, MultiLabel, NodeClassification, train
from gebt._registry import MODELS
from gebt.experiments.run import (
    Options,
    Recorder,
    collect,
    retrain,
    run_seed,
    search,
)
from gebt.learn.tasks import prepare
from gebt.learn.training import copy_state, new_model

TASK = NodeClassification()


def options(model="gcn", **changes):
    recipe = MODELS[model].changed(**{"hidden": 8, "epochs": 6} | changes)
    return Options(recipe, weight_ratio=0.5, threshold=2)


def test_preparing_for_link_prediction_holds_out_the_same_links_each_time(graph):
    one, two = (prepare(graph, LinkPrediction()) for _ in range(2))
    assert isinstance(one.split, LinkSplit)
    assert one.fingerprint() == two.fingerprint() != graph.fingerprint()
    assert one.num_links == 468 - int(0.05 * 468) - int(0.1 * 468)


def test_a_split_of_links_that_is_there_is_kept(graph):
    held = graph.hold_out_links(0.1, 0.2, seed=5)
    assert prepare(held, LinkPrediction()) is held


def test_preparing_for_other_tasks_changes_nothing(graph):
    assert prepare(graph, TASK) is graph


def test_a_graph_that_does_not_fit_the_task_is_refused(graph):
    with pytest.raises(ValueError, match="one class per node"):
        prepare(graph, MultiLabel())
    with pytest.raises(ValueError, match="Hits@500 needs at least 500 negative pairs"):
        prepare(graph, LinkPrediction(k=500))


def test_a_new_model_is_the_seeds_and_leaves_torchs_random_state_alone(graph):
    state = torch.get_rng_state()
    recipe = MODELS["gat"]
    one, two, other = (new_model(graph, recipe, TASK, seed) for seed in (3, 3, 4))
    assert same(copy_state(one), copy_state(two))
    assert not same(copy_state(one), copy_state(other))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"graph_ratio": 1.0}, "`graph_ratio` is the share"),
        ({"weight_ratio": -0.1}, "`weight_ratio` is the share"),
        ({"threshold": 0.0}, "threshold"),
        ({"window": 0}, "window"),
    ],
)
def test_options_out_of_range_are_refused_at_birth(changes, words):
    with pytest.raises(ValueError, match=words):
        Options(**changes)


def test_options_are_recorded_as_numbers_and_names():
    recorded = options("sage", dropout=0.25).record()
    assert recorded == {
        "model": "sage",
        "hidden": 8,
        "dropout": 0.25,
        "lr": 0.01,
        "weight_decay": 2e-3,
        "scope": "global",
        "decay": "all",
        "epochs": 6,
        "patience": 0,
        "graph_ratio": 0.2,
        "weight_ratio": 0.5,
        "threshold": 2,
        "window": 3,
        "parts": 1,
        "unit": "element",
        "precision": "full",
        "criterion": "learned",
    }


@pytest.mark.parametrize("decay", ["first", "all"])
def test_a_ticket_is_retrained_as_it_was_searched(graph, decay):
    chosen = options(lr=0.03, weight_decay=0.2, decay=decay, dropout=0.0)
    model = new_model(graph, chosen.recipe, TASK, 5)
    ticket, _, _ = search(model, graph, TASK, chosen, 5)
    assert ticket.options["lr"] == 0.03 and ticket.options["decay"] == decay
    recorder = Recorder()
    done = retrain(ticket, model, graph, TASK, 4, recorder)

    again = new_model(graph, chosen.recipe, TASK, 0)
    by_hand = train(
        again,
        ticket.open(again, graph),
        keep=ticket.weight_masks,
        epochs=4,
        lr=0.03,
        weight_decay=0.2,
        decay=decay,
        seed=5,
    )
    assert [row["loss"] for row in recorder.rows] == [e.loss for e in by_hand.history]
    assert same(copy_state(model), copy_state(again))
    assert done.metrics.retrained.val == by_hand.val
    assert [row["phase"] for row in recorder.rows] == ["retrain"] * 4


def test_the_search_begins_where_dense_training_does(graph):
    """Same weights and dropout: until a mask is used the losses are the same."""
    done = run_seed(graph, TASK, options(), seed=2)
    first = {row["phase"]: row["loss"] for row in reversed(done.history)}
    assert first["search"] == pytest.approx(first["dense"], rel=1e-5)


@pytest.mark.parametrize("kind", ["multi-label", "link-prediction"])
def test_one_seed_of_every_task_is_trained_searched_retrained_and_measured(graph, kind):
    task = {"multi-label": MultiLabel(), "link-prediction": LinkPrediction(k=10)}[kind]
    if kind == "multi-label":
        graph = replace(graph, y=graph.y[:, None] != torch.arange(3))
    graph = prepare(graph, task)
    chosen = options(epochs=20)
    runs = [run_seed(graph, task, chosen, seed) for seed in (0, 1)]
    record = collect(graph, task, chosen.record(), [run.metrics for run in runs])
    assert (record.task, record.metric) == (task.name, task.metric(graph))
    for run in runs:
        for scores in (run.metrics.dense, run.metrics.retrained):
            assert 0 < scores.val <= 100 and 0 < scores.test <= 100
        assert run.ticket.options["task"]["name"] == kind
        assert run.ticket.links_kept == graph.num_links - int(0.2 * graph.num_links)
    best = max(run.metrics.retrained.val for run in runs)
    assert runs[record.best].metrics.retrained.val == best


def test_a_run_without_validation_nodes_is_measured_all_the_same(graph):
    empty = torch.empty(0, dtype=torch.int64)
    bare = replace(graph, split=replace(graph.split, val=empty))
    done = run_seed(bare, TASK, options(), seed=0)
    assert done.metrics.dense.val is None and done.metrics.retrained.val is None
    assert done.metrics.dense.test > 0
    assert collect(bare, TASK, {}, [done.metrics, done.metrics]).best == 0


def test_the_same_seed_gives_the_same_run(graph, tmp_path):
    for name in ("a", "b"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            run_seed(graph, TASK, options(), seed=7).save(tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
