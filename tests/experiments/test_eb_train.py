"""EB-Train's method: what it yields, what it counts, and its page."""

from dataclasses import replace

import pytest
import torch

import gebt
from gebt._registry import EXPERIMENTS, MODELS
from gebt.experiments.channels import CNN, _batches, eb_train, eb_train_images
from gebt.experiments.methods import Setting
from gebt.experiments.run import Options, Recorder, retrain, search
from gebt.experiments.runner import KEY, _epoch_macs
from gebt.experiments.studies import DEEP, VARIANTS
from gebt.learn.tasks import NodeClassification
from gebt.learn.training import new_model

TASK = NodeClassification()


@pytest.fixture
def setting(graph):
    recipe = VARIANTS[DEEP].changed(epochs=8, hidden=8, patience=0)
    return Setting(graph, TASK, recipe, 0.25, 0.5, seed=1, quick=True)


def test_ticket_random_channels_and_low_precision_are_as_small(setting):
    found = list(eb_train(setting))
    kinds = ["ticket", "random channels", "ticket by bfp8"]
    assert [outcome.links for outcome in found] == kinds
    widths = [outcome.model.arguments["hidden"] for outcome in found]
    assert widths[0] == widths[1] and {sum(w) for w in widths} == {20}
    for outcome in found:
        assert outcome.epochs == max(1, 8 - outcome.ticket.epoch)
        assert outcome.graph.links_kept == 468 - int(0.25 * 468)
    beside = {row["links"]: row for row in found[0].beside}
    assert [*beside] == ["bf16", "bfp8", "other dropout"]
    assert all(0.5 <= row["equal_links"] <= 1 for row in beside.values())
    small = replace(setting, graph_ratio=0.0)
    macs = [
        _epoch_macs(setting, setting.graph, model=model)
        for model in (small.model(), found[0].model)
    ]
    assert macs[1] < macs[0]


def test_a_cnn_goes_through_the_loop_in_batches_that_hold_each_node_once():
    graph = gebt.load("digits")
    seen = torch.cat([part.split.train for part in _batches(graph, 3, 0)])
    assert torch.equal(seen.sort().values, graph.split.train)
    other = torch.cat([part.split.train for part in _batches(graph, 3, 1)])
    assert not torch.equal(seen, other)
    recipe = CNN.changed(epochs=1, hidden=4)
    found = list(eb_train_images(Setting(graph, TASK, recipe, 0.0, 0.5, seed=0)))
    assert [outcome.links for outcome in found] == [
        "dense",
        "ticket",
        "random channels",
    ]
    assert found[1].drawn.epoch == 1 and not found[1].drawn.settled
    channels = [
        sum(m.num_features for m in o.model.modules() if hasattr(m, "num_features"))
        for o in found
    ]
    assert channels == [16, 8, 8]
    fast, _ = gebt.compact(found[1].model, graph)
    assert not fast.training


def test_a_cnn_of_digits_refuses_other_pixels():
    with pytest.raises(ValueError, match="reads 64 pixels, not 24"):
        CNN.new(24, 3)


def test_a_run_of_channels_is_slimmed_before_it_is_trained_on(graph):
    recipe = MODELS["gcn"].changed(hidden=8, epochs=12)
    options = Options(recipe, 0.2, 0.5, window=5, unit="channel", precision="bfp8")
    assert options.detector().options()["scale"] == "size"
    assert options.record()["unit"] == "channel"
    model = new_model(graph, recipe, TASK, 0)
    with pytest.warns(UserWarning):  # no norm; perhaps not settled
        ticket, _, _ = search(model, graph, TASK, options, 0)
    recorder = Recorder()
    with recorder.phase("search") as hook:
        pass
    assert hook
    run = retrain(ticket, model, graph, TASK, 5, recorder)
    assert run.model.arguments["hidden"][0] <= 4
    drawn = run.metrics.ticket
    assert drawn.weights == 24 * 8 + 8 * 3 and drawn.weights_kept == 24 * 4 + 4 * 3


def test_the_page_compares_channels_with_dense_random_and_joint_tickets():
    experiment = EXPERIMENTS["eb-train"]
    runs, links = [], []
    for seed in range(2):
        for job in experiment.jobs("toy", seed):
            row = dict(zip(KEY, job.key, strict=True))
            kinds = {
                "dense": ["all"],
                "joint-EB": ["learned", "random"],
                "eb-train": ["ticket", "random channels", "ticket by bfp8"],
            }[job.method]
            for n, kind in enumerate(kinds):
                runs.append(
                    row
                    | {"links": kind, "test": str(90 + n + seed), "epoch": "9"}
                    | {"settled": "True", "macs_executed": "1e6", "dense_ms": "4.0"}
                    | {"inference_ms": "2.0", "macs_training": "1e9"}
                )
            if job.method == "eb-train":
                equal = {"equal_links": "0.9", "equal_channels": "0.8"}
                links.append(row | {"links": "bfp8"} | equal)
    table, figure, equal = experiment.page("toy", {"runs": runs, "links": links})
    assert [row[1] for row in table.rows[:4]] == [
        "dense",
        "channels: ticket",
        "channels: random channels",
        "channels: ticket by bfp8",
    ]
    assert table.rows[2][6].startswith("-1.0") and table.rows[0][5] == "-"
    assert figure.draw().axes
    assert [row[3] for row in equal.rows] == ["-", "90.0 [90.0-90.0]"] * 2
    [images] = experiment.jobs("digits", 3)
    assert (images.model, images.method) == ("cnn", "eb-train-images")
