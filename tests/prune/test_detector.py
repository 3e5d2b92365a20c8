import io

import pytest
import torch
from helpers import run_python
from torch import Tensor

from gebt.prune.detector import MaskDistanceDetector, Reading


def bits(text: str) -> Tensor:
    """ "110" is [True, True, False]."""
    return torch.tensor([c == "1" for c in text])


def joints(detector: MaskDistanceDetector, *masks: str) -> list[float]:
    return [detector.update({"graph": bits(m)}).joint for m in masks]


def random_mask(size: int, kept: int) -> Tensor:
    return torch.zeros(size, dtype=torch.bool).index_fill(
        0, torch.randperm(size)[:kept], True
    )


NAN = pytest.approx(float("nan"), nan_ok=True)


# Masks 11000000, 10100000, 00110000: kept 2 of 8; Hamming distances to the one
# before 2, 2; from the third to the first 4.
@pytest.mark.parametrize(
    ("scale", "second", "third"),
    [
        ("reachable", 2 / 4, 4 / 4),  # of 2 kept, all can change: 2 * 2
        ("kept", 2 / 4, 4 / 4),
        ("size", 2 / 8, 4 / 8),
        ("first", 1.0, 4 / 2),
    ],
)
def test_each_scale_by_hand(scale, second, third):
    detector = MaskDistanceDetector(scale=scale, window=2)
    found = joints(detector, "11000000", "10100000", "00110000")
    assert found == [NAN, second, third]


@pytest.mark.parametrize(
    ("scale", "expected"),
    [("reachable", 1.0), ("kept", 1 / 3), ("size", 2 / 4), ("first", 1.0)],
)
def test_scales_differ_where_most_is_kept(scale, expected):
    # Of 4, 3 are kept: at most 2 positions can differ, the dropped one and its place.
    assert joints(MaskDistanceDetector(scale=scale), "1110", "0111")[1] == (
        pytest.approx(expected)
    )


def test_reachable_takes_both_masks_counts_into_account():
    # 1 kept, then 2 kept: they can differ in 3 of 8, and here they do.
    assert joints(MaskDistanceDetector(), "10000000", "01100000")[1] == 1.0
    # 7 kept, then 6: dropped are 1 and 2, so again 3.
    assert joints(MaskDistanceDetector(), "01111111", "10011111")[1] == 1.0


def test_compare_window_takes_the_largest_distance_to_each_of_the_last_masks():
    # d(3, 2) = 2 and d(3, 1) = 4 of 4; the fourth returns to the first.
    detector = MaskDistanceDetector(window=2, compare="window")
    found = joints(detector, "11000000", "10100000", "00110000", "11000000", "11000000")
    assert found == [NAN, 0.5, 1.0, 1.0, 1.0]
    assert joints(detector, "11000000") == [0.0]


def test_compare_previous_queues_distances_of_consecutive_masks():
    detector = MaskDistanceDetector(window=2, compare="previous")
    found = joints(detector, "11000000", "10100000", "00110000", "00110000", "00110000")
    assert found == [NAN, 0.5, 0.5, 0.5, 0.0]


def test_a_slow_drift_settles_previous_but_not_window():
    size = 200
    masks = [torch.arange(size).roll(i) < 50 for i in range(12)]  # 2 of 100 a step
    settled = {}
    for compare in ("window", "previous"):
        detector = MaskDistanceDetector(0.03, 3, compare=compare)
        readings = [detector.update({"graph": m}) for m in masks]
        settled[compare] = [r.settled for r in readings]
    assert not any(settled["window"])  # 3 steps are 0.06
    assert settled["previous"] == [False] * 3 + [True] * 9


@pytest.mark.parametrize("compare", ["window", "previous"])
@pytest.mark.parametrize("window", [1, 2, 5])
def test_a_constant_mask_settles_once_the_window_is_full(window, compare):
    detector = MaskDistanceDetector(window=window, compare=compare)
    settled = [detector.update({"graph": bits("1100")}).settled for _ in range(8)]
    assert settled == [epoch > window for epoch in range(1, 9)]


def test_settling_needs_the_whole_window_below_the_threshold():
    detector = MaskDistanceDetector(0.6, 2, compare="previous")
    masks = "11000000", "00110000", "00110000", "10100000", "10100000"
    settled = [detector.update({"graph": bits(m)}).settled for m in masks]
    # distances: none, 1, 0, 0.5, 0
    assert settled == [False, False, False, True, True]


def test_the_threshold_itself_is_not_below_it():
    detector = MaskDistanceDetector(0.5, 1)
    joints(detector, "11000000", "10100000")
    assert detector.history[-1].joint == 0.5
    assert not detector.settled


def test_settling_can_end_again():
    detector = MaskDistanceDetector(window=1)
    joints(detector, "1100", "1100")
    assert detector.settled
    joints(detector, "0011")
    assert not detector.settled


@pytest.mark.parametrize(("combine", "joint"), [("sum", 1.5), ("mean", 0.75)])
def test_groups_are_added_or_averaged(combine, joint):
    detector = MaskDistanceDetector(combine=combine)
    detector.update({"graph": bits("1100"), "weights": bits("11000000")})
    reading = detector.update({"graph": bits("0011"), "weights": bits("10100000")})
    assert reading.distances == {"graph": 1.0, "weights": 0.5}
    assert reading.joint == joint


def test_joint_is_the_largest_sum_not_the_sum_of_the_largest():
    detector = MaskDistanceDetector(window=2, compare="previous")
    detector.update({"a": bits("1100"), "b": bits("1100")})
    detector.update({"a": bits("0011"), "b": bits("1100")})  # 1, 0
    reading = detector.update({"a": bits("0011"), "b": bits("0011")})  # 0, 1
    assert reading.distances == {"a": 1.0, "b": 1.0}
    assert reading.joint == 1.0


@pytest.mark.parametrize(
    ("watch", "joint"), [(["graph"], 1.0), ("graph", 1.0), (["weights"], 0.5)]
)
def test_watch_names_the_groups_that_count(watch, joint):
    detector = MaskDistanceDetector(watch=watch, combine="mean")
    detector.update({"graph": bits("1100"), "weights": bits("11000000")})
    reading = detector.update({"graph": bits("0011"), "weights": bits("10100000")})
    assert reading.distances == {"graph": 1.0, "weights": 0.5}
    assert reading.joint == joint


def test_a_mask_that_cannot_change_is_not_watched():
    detector = MaskDistanceDetector(combine="mean")
    for graph in ("1100", "0011"):
        reading = detector.update({"graph": bits(graph), "weights": bits("1111")})
    assert reading.distances == {"graph": 1.0, "weights": 0.0}
    assert reading.joint == 1.0  # the mean over graph alone


@pytest.mark.parametrize("warmup", [0, 3, 6])
def test_readings_of_the_warmup_cannot_settle(warmup):
    detector = MaskDistanceDetector(window=2, warmup=warmup)
    settled = [detector.update({"graph": bits("10")}).settled for _ in range(8)]
    assert settled == [epoch > max(2, warmup) for epoch in range(1, 9)]


def test_a_first_distance_of_zero_is_no_divisor():
    detector = MaskDistanceDetector(scale="first", compare="previous", window=1)
    found = joints(detector, "11000000", "11000000", "10100000", "00011000", "00011000")
    assert found == [NAN, 0.0, 1.0, 4 / 2, 0.0]


@pytest.mark.parametrize("scale", ["reachable", "kept", "size"])
def test_a_distance_is_symmetric_and_zero_on_itself(scale):
    for kept in (1, 3, 9):
        a, b = random_mask(10, kept), random_mask(10, kept)
        found = []
        for pair in ((a, b), (b, a), (a, a)):
            detector = MaskDistanceDetector(scale=scale)
            found.append([detector.update({"g": m}).joint for m in pair][1])
        assert found[0] == found[1]
        assert found[2] == 0


def test_a_reachable_distance_lies_in_0_1_and_both_ends_are_reached():
    found = []
    for size in (2, 3, 10):
        for _ in range(200):
            detector = MaskDistanceDetector()
            for kept in torch.randint(1, size, (2,)).tolist():
                reading = detector.update({"g": random_mask(size, kept)})
            found.append(reading.joint)
    assert min(found) == 0 and max(found) == 1


def test_masks_are_copied():
    detector, mask = MaskDistanceDetector(), bits("1100")
    detector.update({"graph": mask})
    mask.logical_not_()
    assert detector.update({"graph": mask}).joint == 1.0


def test_a_mapping_of_masks_is_one_concatenated_mask():
    split, whole = MaskDistanceDetector(), MaskDistanceDetector()
    for _ in range(5):
        a, b = random_mask(12, 4), random_mask(6, 3)
        parts = {"first": a.view(3, 4), "second": b.view(2, 3)}
        ours = split.update({"weights": parts})
        theirs = whole.update({"weights": torch.cat([a, b])})
        assert ours.distances == pytest.approx(theirs.distances, nan_ok=True)
        assert ours.joint == pytest.approx(theirs.joint, nan_ok=True)


def test_masks_that_are_not_contiguous_are_read_in_their_own_order():
    detector = MaskDistanceDetector()
    mask = bits("110000").view(2, 3)
    detector.update({"g": mask})
    assert detector.update({"g": mask.t().contiguous().t()}).joint == 0.0


def test_the_history_tells_what_each_update_found():
    detector = MaskDistanceDetector(window=1)
    assert detector.history == [] and not detector.settled
    readings = [detector.update({"graph": bits(m)}) for m in ("1100", "1100", "1010")]
    assert detector.history == readings
    assert readings[1] == Reading(2, {"graph": 0.0}, 0.0, True)
    assert readings[2] == Reading(3, {"graph": 0.5}, 0.5, False)
    with pytest.raises(AttributeError):
        readings[1].settled = False  # type: ignore[misc]


def test_a_loop_of_three_lines():
    scores = torch.linspace(0, 1, 100)
    detector = MaskDistanceDetector(threshold=0.1, window=3)
    for epoch in range(1, 101):
        scores = scores + torch.randn(100) / epoch**2
        if detector.update({"mine": scores > scores.median()}).settled:
            break
    assert 3 < epoch < 100
    assert detector.history[-1].epoch == epoch


@pytest.mark.slow
def test_the_detector_runs_without_importing_pyg():
    code = """
import sys, torch
from gebt import MaskDistanceDetector
detector = MaskDistanceDetector()
for _ in range(4):
    reading = detector.update({"graph": torch.tensor([True, False])})
assert reading.settled
assert not {"torch_geometric", "sklearn", "safetensors"} & set(sys.modules)
print("done")
"""
    assert run_python(code) == "done\n"


@pytest.mark.parametrize("compare", ["window", "previous"])
@pytest.mark.parametrize("scale", ["reachable", "first"])
@pytest.mark.parametrize("stop", [0, 1, 2, 5])
def test_a_restored_detector_reads_what_an_uninterrupted_one_does(stop, scale, compare):
    options = {"scale": scale, "compare": compare, "watch": ["graph"], "warmup": 2}
    updates = [
        {"graph": random_mask(9, 4), "weights": {"a": random_mask(8, 2).view(2, 4)}}
        for _ in range(8)
    ]
    whole, early = (MaskDistanceDetector(**options) for _ in range(2))
    for masks in updates:
        whole.update(masks)
    for masks in updates[:stop]:
        early.update(masks)

    file = io.BytesIO()
    torch.save(early.state_dict(), file)
    file.seek(0)
    late = MaskDistanceDetector(**options)
    late.load_state_dict(torch.load(file, weights_only=True))
    for masks in updates[stop:]:
        late.update(masks)

    assert len(late.history) == len(whole.history) == 8
    for ours, theirs in zip(late.history, whole.history, strict=True):
        assert (ours.epoch, ours.settled) == (theirs.epoch, theirs.settled)
        assert ours.joint == pytest.approx(theirs.joint, nan_ok=True)
        assert ours.distances == pytest.approx(theirs.distances, nan_ok=True)


def test_a_restored_detector_still_checks_its_groups():
    early, late = MaskDistanceDetector(), MaskDistanceDetector()
    early.update({"graph": bits("1100")})
    late.load_state_dict(early.state_dict())
    with pytest.raises(ValueError, match="same groups and shapes"):
        late.update({"graph": bits("11000")})


def test_a_state_does_not_change_with_its_detector():
    detector = MaskDistanceDetector()
    detector.update({"graph": bits("1100")})
    state = detector.state_dict()
    detector.update({"graph": bits("0011")})
    late = MaskDistanceDetector()
    late.load_state_dict(state)
    assert late.update({"graph": bits("1100")}).joint == 0.0
    assert len(state["history"]) == 1


def test_a_state_of_other_options_is_refused():
    state = MaskDistanceDetector(0.2, 5).state_dict()
    words = r"other options .*'threshold': \(0.2, 0.1\), 'window': \(5, 3\)"
    with pytest.raises(ValueError, match=words):
        MaskDistanceDetector().load_state_dict(state)


@pytest.mark.parametrize(
    ("mask", "seen"),
    [
        (torch.ones(3), "torch.float32"),
        (torch.ones(3, dtype=torch.uint8), "torch.uint8"),
        ([True, False], "list"),
    ],
)
def test_a_mask_that_is_not_boolean_is_refused(mask, seen):
    with pytest.raises(TypeError, match=rf"`masks\['graph'\]` must be .* got {seen}"):
        MaskDistanceDetector().update({"graph": mask})
    with pytest.raises(TypeError, match=rf"`masks\['weights'\]\['a'\]` .* got {seen}"):
        MaskDistanceDetector().update({"weights": {"a": mask}})


@pytest.mark.parametrize(
    "masks",
    [
        {"graph": bits("11000")},
        {"graph": bits("1100").view(2, 2)},
        {"graph": bits("1100"), "weights": bits("10")},
        {"links": bits("1100")},
        {"graph": {"a": bits("1100")}},
    ],
)
def test_changed_groups_or_shapes_are_refused(masks):
    detector = MaskDistanceDetector()
    detector.update({"graph": bits("1100")})
    words = r"expected \{'graph': \(4,\)\}, got .*Start a new detector"
    with pytest.raises(ValueError, match=words):
        detector.update(masks)
    assert len(detector.history) == 1
    assert detector.update({"graph": bits("1100")}).joint == 0.0  # goes on unharmed


def test_a_watched_group_that_is_missing_is_refused():
    detector = MaskDistanceDetector(watch=["graph", "weights"])
    with pytest.raises(ValueError, match=r"`watch` names \['weights'\], but .*'graph'"):
        detector.update({"graph": bits("10")})


@pytest.mark.parametrize("text", ["1111", "0000"])
def test_masks_that_can_never_change_are_refused(text):
    words = "no watched mask can change: .*ratio above 0"
    with pytest.raises(ValueError, match=words):
        MaskDistanceDetector().update({"graph": bits(text)})
    detector = MaskDistanceDetector(watch=["graph"])
    with pytest.raises(ValueError, match=words):
        detector.update({"graph": bits(text), "weights": bits("10")})


def test_no_masks_are_refused():
    with pytest.raises(ValueError, match="`masks` is empty"):
        MaskDistanceDetector().update({})
    with pytest.raises(ValueError, match=r"`masks\['weights'\]` has no masks in it"):
        MaskDistanceDetector().update({"weights": {}})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"threshold": 0}, "`threshold` must be positive, got 0"),
        ({"threshold": float("nan")}, "`threshold` must be positive, got nan"),
        ({"window": 0}, "`window` must be at least 1, got 0"),
        ({"warmup": -1}, "`warmup` must not be negative, got -1"),
        ({"scale": "max"}, "`scale` must be one of 'reachable', .*, got 'max'"),
        ({"compare": "last"}, "`compare` must be one of 'window', 'previous'"),
        ({"combine": "max"}, "`combine` must be one of 'sum', 'mean', got 'max'"),
    ],
)
def test_bad_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        MaskDistanceDetector(**options)


@pytest.mark.cuda
@pytest.mark.parametrize("compare", ["window", "previous"])
def test_cuda_reads_the_same(compare):
    here, there = (MaskDistanceDetector(compare=compare) for _ in range(2))
    for _ in range(6):
        masks = {"graph": random_mask(50, 20), "weights": random_mask(30, 3)}
        ours = here.update(masks)
        theirs = there.update({name: m.cuda() for name, m in masks.items()})
        assert ours.distances == pytest.approx(theirs.distances, nan_ok=True)
        assert ours.joint == pytest.approx(theirs.joint, nan_ok=True)


def test_groups_in_another_order_are_the_same_groups():
    a, b = torch.rand(50) > 0.5, torch.rand(9) > 0.5
    detector = MaskDistanceDetector()
    detector.update({"graph": a, "weights": b})
    assert detector.update({"weights": b, "graph": a}).joint == 0


def test_a_state_survives_torch_save_with_its_safe_defaults(tmp_path):
    def masks(step):
        generator = torch.Generator().manual_seed(step)
        part = torch.rand(7, 3, generator=generator) > 0.5
        return {
            "graph": torch.rand(6000, generator=generator) > 0.3,
            "weights": {"a": part, "b": part[0]},
        }

    whole, half = MaskDistanceDetector(), MaskDistanceDetector()
    for step in range(4):
        whole.update(masks(step))
        half.update(masks(step))
    torch.save(half.state_dict(), tmp_path / "state.pt")
    again = MaskDistanceDetector()
    again.load_state_dict(torch.load(tmp_path / "state.pt"))
    for step in range(4, 8):
        assert again.update(masks(step)) == whole.update(masks(step))


def test_watching_nothing_is_refused():
    with pytest.raises(ValueError, match="`watch` is empty"):
        MaskDistanceDetector(watch=())
