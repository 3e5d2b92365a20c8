"""Checkpoints: states as files, trainings that go on, and numbers kept."""

import json
import math
import signal
import time
import warnings

import numpy as np
import pytest
import torch
from helpers import built, header_of, same
from safetensors.torch import load, save
from torch import nn

from gebt import Fit, checkpoints, find_ticket, train, train_student
from gebt.files import hash_of
from gebt.learn.checkpoint import Clock, current, measured, packed, part, unpacked
from gebt.learn.loop import Learner, whole
from gebt.learn.tasks import NodeClassification
from gebt.learn.training import copy_state
from gebt.models import GCN
from gebt.prune.groups import Hook
from gebt.prune.penalties import ADMM
from gebt.tickets.recording import RecordingDetector


class Broken(Exception):
    """The power is gone."""


def breaking(at):
    """An ``on_epoch`` that breaks off after the epoch before one."""

    def on_epoch(epoch):
        if epoch.epoch == at:
            raise Broken

    return on_epoch


# ----------------------------------------------------------------------- states


def test_a_state_comes_back_as_it_was():
    state = {
        "a": torch.randn(3, 2),
        "masks": [{"x": torch.rand(4) > 0.5}, {}],
        0: (1, 2.5, "text", None, True, [-math.inf]),
        "whole": 2**70,
        "bits": torch.tensor([1.5, 2.5], dtype=torch.bfloat16),
    }
    tensors = {}
    found = unpacked(packed(state, tensors), tensors)
    assert found.keys() == state.keys()
    assert torch.equal(found["a"], state["a"]) and found["a"] is not state["a"]
    assert torch.equal(found["masks"][0]["x"], state["masks"][0]["x"])
    assert found[0] == state[0] and type(found[0][4]) is bool
    assert found["whole"] == 2**70 and found["bits"].dtype == torch.bfloat16
    assert math.isnan(unpacked(packed(math.nan, {}), {}))
    with pytest.raises(TypeError, match="holds no ndarray"):
        packed({"a": np.zeros(2)}, {})
    for hostile in ({"pickle": 1}, {"tensor": "5"}, {"items": [1]}, {"float": "x"}):
        with pytest.raises((ValueError, TypeError, LookupError)):
            unpacked(hostile, {})


# -------------------------------------------------------------------- trainings


def test_a_training_goes_on_bit_for_bit_and_tells_of_every_epoch_again(graph, tmp_path):
    model = built(graph)
    whole = train(model, graph, epochs=12, seed=2)
    told = []
    with pytest.raises(Broken), checkpoints(tmp_path / "c", every=4):
        train(built(graph), graph, epochs=12, seed=2, on_epoch=breaking(11))
    assert [path.name for path in (tmp_path / "c").iterdir()] == [
        "training-0.safetensors"
    ]
    again = built(graph)
    with checkpoints(tmp_path / "c", every=4) as journal:
        assert journal.resumed and current() is journal
        found = train(again, graph, epochs=12, seed=2, on_epoch=told.append)
    assert repr(found) == repr(whole)
    assert repr(told) == repr([*whole.history])
    assert same(copy_state(again), copy_state(model))
    assert not (tmp_path / "c").exists() and current() is None


class Noisy(nn.Module):
    """Batch norm, and dropout that is torch's own."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Linear(24, 8), nn.BatchNorm1d(8)
        self.drop, self.last = nn.Dropout(0.4), nn.Linear(8, 3)

    def forward(self, x, adjacency):
        return adjacency @ self.last(self.drop(self.norm(self.first(x)).relu()))


@pytest.mark.parametrize("at", [1, 5, 8])
@pytest.mark.parametrize("kind", ["plain", "admm", "parts", "noisy", "channels"])
def test_a_search_goes_on_bit_for_bit(graph, tmp_path, kind, at):
    options = {"graph_ratio": 0.3, "weight_ratio": 0.6, "epochs": 9}
    options["on_epoch"] = lambda epoch: None

    def search(**changes):
        torch.manual_seed(4)
        model = Noisy() if kind == "noisy" else GCN(24, 8, 3)
        detector = RecordingDetector(1e-9, compare="previous")
        how = {"detector": detector, "mask_weights": kind == "plain", **changes}
        if kind == "admm":
            how |= {"penalty": ADMM(0.05, prune_ratio=0.3), "alternate": True}
        if kind == "parts":
            how["parts"] = 3
        if kind == "channels":
            model = GCN(24, 8, 3, norm="batch")
            how |= {"unit": "channel", "precision": "bfp8"}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*(did not settle|never in a part)")
            return find_ticket(model, graph, **{**options, **how}), detector.pairs()

    whole, pairs = search()
    with pytest.raises(Broken), checkpoints(tmp_path, every=1):
        search(on_epoch=breaking(at + 1))
    with checkpoints(tmp_path, every=1):
        ticket, again = search()
    assert again == pairs and repr(ticket.distances) == repr(whole.distances)
    assert same(ticket.weights, whole.weights)
    for group, masks in whole.masks.items():
        assert same(ticket.masks[group], masks)
    assert torch.equal(ticket.link_score, whole.link_score)
    assert ticket.share_untouched == whole.share_untouched


class Ends(Hook):
    """Has seen enough after three epochs."""

    def __init__(self, breaks):
        self._breaks = breaks

    def after_epoch(self, epoch, loss):
        return epoch == 3

    def at_end(self):
        if self._breaks:
            raise Broken


def test_what_was_killed_between_its_last_epoch_and_its_end_is_over(graph, tmp_path):
    def learned(breaks):
        options = {"seed": 1, "hooks": [Ends(breaks)]}
        learner = Learner(built(graph), NodeClassification(), Fit(), **options)
        return learner, list(learner.epochs(whole(graph), 9))

    one, losses = learned(False)
    with pytest.raises(Broken), checkpoints(tmp_path, every=1):
        learned(True)
    with checkpoints(tmp_path, every=1):
        other, left = learned(False)
    assert (len(losses), left, other.epoch) == (3, [], 3)
    assert same(copy_state(other.model), copy_state(one.model))


def test_several_trainings_are_told_apart_by_their_order(graph, tmp_path):
    def both(on_epoch=None):
        first, second = built(graph), built(graph, seed=5)
        scores = [train(first, graph, epochs=4).val]
        with torch.no_grad():
            logits = first(graph.x, graph.adjacency)
        how = {"weight_ratio": 0.5, "epochs": 8, "on_epoch": on_epoch}
        student = train_student(second, graph, logits, **how)
        return [*scores, student.val], copy_state(second), dict(student.masks)

    scores, state, masks = both()
    with pytest.raises(Broken), checkpoints(tmp_path, every=3):
        both(breaking(5))
    assert len([*tmp_path.iterdir()]) == 2
    with checkpoints(tmp_path, every=3):
        found = both()
    assert found[0] == scores and same(found[1], state) and same(found[2], masks)


@pytest.mark.cuda
def test_on_a_gpu_all_goes_on_where_it_was(graph, tmp_path):
    graph = graph.to("cuda")

    def both(on_epoch=None):
        model = built(graph).cuda()
        with torch.no_grad():
            logits = model(graph.x, graph.adjacency)
        how = {"epochs": 8, "weight_ratio": 0.5, "on_epoch": on_epoch}
        student = train_student(model, graph, logits, **how)
        penalty = ADMM(0.05, prune_ratio=0.3)
        detector = RecordingDetector(1e-9)
        how |= {"penalty": penalty, "detector": detector, "epochs": 9}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*did not settle")
            ticket = find_ticket(model, graph, **how)
        return student, ticket, detector.pairs()

    student, ticket, pairs = both()
    for at in (5, 9):  # of the student, then of the search
        with pytest.raises(Broken), checkpoints(tmp_path, every=1):
            both(breaking(at))
    with checkpoints(tmp_path, every=1):
        again, drawn, seen = both()
    assert again.val == pytest.approx(student.val, abs=3)
    assert len(seen) == len(pairs)
    assert drawn.link_mask.device == ticket.link_mask.device
    assert (drawn.link_mask == ticket.link_mask).float().mean() > 0.9
    for name, weight in ticket.weights.items():
        torch.testing.assert_close(drawn.weights[name], weight, atol=0.02, rtol=0.05)


def test_another_training_is_refused_in_words(graph, tmp_path):
    with pytest.raises(Broken), checkpoints(tmp_path, every=1):
        train(built(graph), graph, epochs=4, on_epoch=breaking(3))
    for change, words in (
        ({"seed": 7}, "its seed is 0, here 7"),
        ({"epochs": 9}, "its fit is .*'epochs': 4.*, here .*'epochs': 9"),
    ):
        with pytest.raises(ValueError, match=f"another training: {words}.*delete it"):
            with checkpoints(tmp_path):
                train(built(graph), graph, **{"epochs": 4, **change})
    with pytest.raises(ValueError, match="its size is 451, here 143. Do what"):
        with checkpoints(tmp_path):
            train(built(graph, hidden=5), graph, epochs=4)


def test_a_file_that_is_not_whole_is_refused_in_words(graph, tmp_path):
    with pytest.raises(Broken), checkpoints(tmp_path, every=1):
        train(built(graph), graph, epochs=4, on_epoch=breaking(4))
    path = tmp_path / "training-0.safetensors"
    content = path.read_bytes()
    header, tensors = header_of(content), load(content)
    hostile = [content[:-5]]
    for name in tensors:
        other = {**tensors, name: tensors[name].flatten()[:1].clone()}
        if tensors[name].numel() > 1:
            words = {**header, "sha256": hash_of(other)}
            hostile.append(save(other, metadata={"gebt": json.dumps(words)}))
    for at in (0, 2):
        words = {**header, "state": {"items": header["state"]["items"][at : at + 2]}}
        hostile.append(save(tensors, metadata={"gebt": json.dumps(words)}))
    for bad in hostile:
        path.write_bytes(bad)
        with pytest.raises(ValueError, match="not a (whole|readable) training"):
            with checkpoints(tmp_path):
                train(built(graph), graph, epochs=4)
    path.write_bytes(content)
    with checkpoints(tmp_path):
        train(built(graph), graph, epochs=4)


def test_by_default_there_are_few_writes_and_little_is_lost(
    graph, tmp_path, monkeypatch
):
    """A clock that is set: an hour passes at epoch 5."""
    hours = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: 3600 * hours[0])

    def on_epoch(epoch):
        hours[0] += epoch.epoch == 5
        if epoch.epoch == 8:
            raise Broken

    with pytest.raises(Broken), checkpoints(tmp_path) as journal:
        train(built(graph), graph, epochs=3)
        assert not journal.good
        train(built(graph), graph, epochs=9, on_epoch=on_epoch)
    assert journal.good == f"of epoch 5, {tmp_path / 'training-1.safetensors'}"
    assert len([*tmp_path.iterdir()]) == 2  # what came before is there, too


def test_ctrl_c_waits_for_the_epoch_and_the_second_one_does_not(graph, tmp_path):
    seen = []

    def on_epoch(epoch):
        seen.append(epoch.epoch)
        if epoch.epoch == 3:
            signal.raise_signal(signal.SIGINT)
            seen.append("goes on")

    model = built(graph)
    with pytest.raises(KeyboardInterrupt), checkpoints(tmp_path) as journal:
        train(model, graph, epochs=9, on_epoch=on_epoch)
    assert seen == [1, 2, 3, "goes on"] and journal.good.startswith("of epoch 3, ")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    def twice(epoch):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("the second one waited")

    with pytest.raises(KeyboardInterrupt), checkpoints(tmp_path / "twice"):
        train(built(graph), graph, epochs=9, on_epoch=twice)
    with pytest.raises(KeyboardInterrupt), checkpoints(tmp_path / "outside"):
        signal.raise_signal(signal.SIGINT)
        pytest.fail("outside of a training it waited")


# --------------------------------------------------------------- numbers and parts


def test_what_was_measured_is_not_measured_again(tmp_path):
    draw = np.random.default_rng()

    def work(stop):
        found = [measured(lambda: draw.random(2).tolist()) for _ in range(stop)]
        if stop < 4:
            raise Broken
        return found

    with pytest.raises(Broken), checkpoints(tmp_path, every=1) as journal:
        work(3)
    kept = [*journal._found]
    with checkpoints(tmp_path, every=1):
        assert work(4)[:3] == kept
    assert measured(lambda: [1.0]) == [1.0]
    tmp_path.mkdir(exist_ok=True)
    (tmp_path / "measured.json").write_text('{"format": 2, "measured": [["x"]]}')
    with pytest.raises(ValueError, match="`measured` must be a list of lists of num"):
        with checkpoints(tmp_path):
            pass


def test_a_part_counts_by_itself_and_is_forgotten_when_it_is_over(graph, tmp_path):
    with pytest.raises(Broken), checkpoints(tmp_path, every=1):
        for seed in range(3):
            with part(f"seed-{seed}"):
                train(built(graph), graph, epochs=2, seed=seed)
                names = {path.name for path in tmp_path.iterdir()}
                assert names == {f"seed-{seed}-training-0.safetensors"}
                if seed == 1:
                    raise Broken
    with checkpoints(tmp_path, every=1), part("seed-1"):
        model = built(graph)
        train(model, graph, epochs=2, seed=1)
    whole = built(graph)
    train(whole, graph, epochs=2, seed=1)
    assert same(copy_state(model), copy_state(whole))


def test_only_checkpoints_are_deleted(graph, tmp_path):
    mine = tmp_path / "training.safetensors"
    mine.write_text("mine")
    with checkpoints(tmp_path, every=1):
        train(built(graph), graph, epochs=2)
        assert len([*tmp_path.iterdir()]) == 2
    assert [*tmp_path.iterdir()] == [mine]


def test_the_time_of_what_was_done_before_counts(graph, tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def on_epoch(epoch):
        now[0] += 100
        if epoch.epoch == 3:
            raise Broken

    with pytest.raises(Broken), checkpoints(tmp_path, every=1):
        train(built(graph), graph, epochs=5, on_epoch=on_epoch)
    with checkpoints(tmp_path, every=1):
        start = Clock.now()
        train(built(graph), graph, epochs=5)
        assert (Clock.now() - start).wall == 200


def test_weights_that_are_not_finite_are_no_good_checkpoint(graph, tmp_path):
    with pytest.raises(ValueError, match="last good checkpoint is of epoch 1, "):
        with checkpoints(tmp_path, every=1):
            train(built(graph, dropout=0.0), graph, epochs=9, lr=3e18)


def test_every_must_be_a_number_of_epochs(tmp_path):
    with pytest.raises(ValueError, match="`every`"):
        with checkpoints(tmp_path, every=0):
            pass
