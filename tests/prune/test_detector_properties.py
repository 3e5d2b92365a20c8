"""The detector against its definition written out, for any masks and options."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gebt import MaskDistanceDetector

pytestmark = pytest.mark.slow

OPTIONS = st.fixed_dictionaries(
    {
        "threshold": st.sampled_from([0.05, 0.3, 2.0]),
        "window": st.integers(1, 4),
        "scale": st.sampled_from(["reachable", "kept", "size", "first"]),
        "compare": st.sampled_from(["window", "previous"]),
        "combine": st.sampled_from(["sum", "mean"]),
        "watch": st.sampled_from([None, ["graph"], ["graph", "weights"]]),
        "warmup": st.integers(0, 3),
    }
)


@st.composite
def mask(draw, size, kept=None):
    """That keeps some and drops some."""
    kept = draw(st.integers(1, size - 1)) if kept is None else kept
    order = draw(st.permutations(range(size)))
    return torch.zeros(size, dtype=torch.bool).index_fill(
        0, torch.tensor(order[:kept]), True
    )


@st.composite
def updates(draw, most=8):
    """What a search shows a detector: links, and weights in two pieces."""
    links, *sizes = (draw(st.integers(2, 20)) for _ in range(3))
    found = []
    for _ in range(draw(st.integers(1, most))):
        pieces = {f"layer.{i}": draw(mask(size)) for i, size in enumerate(sizes)}
        found.append({"graph": draw(mask(links)), "weights": pieces})
    return found


def reading(scale, *masks):
    """The last distance when these masks are shown one by one."""
    detector = MaskDistanceDetector(window=1, scale=scale)
    return [detector.update({"graph": m}).joint for m in masks][-1]


@given(st.data(), st.integers(2, 70))
def test_a_distance_is_symmetric_zero_on_itself_and_at_most_one(data, size):
    a, b = data.draw(mask(size)), data.draw(mask(size))
    assert reading("reachable", a, a) == 0
    assert 0 <= reading("reachable", a, b) <= 1
    assert (reading("reachable", a, b) == 0) == torch.equal(a, b)
    for scale in ("reachable", "size", "first"):
        assert reading(scale, a, b) == reading(scale, b, a)
    alike = data.draw(mask(size, kept=int(a.sum())))
    assert reading("kept", a, alike) == reading("kept", alike, a)


@given(st.integers(2, 70), st.data())
def test_the_largest_distance_that_can_be_reached_is_one(size, data):
    kept = data.draw(st.integers(1, size - 1))
    first = torch.arange(size) < kept
    far = torch.arange(size) >= size - kept
    assert reading("reachable", first, far) == 1


@given(updates(), OPTIONS)
def test_a_reading_is_what_the_definition_says(shown, options):
    detector = MaskDistanceDetector(**options)
    window, groups = options["window"], ("graph", "weights")
    flat = [
        {"graph": masks["graph"], "weights": torch.cat([*masks["weights"].values()])}
        for masks in shown
    ]
    first: dict = {}

    def distance(name, one, two):
        now, then = flat[one][name], flat[two][name]
        far, size = int((now ^ then).sum()), now.numel()
        kept = int(now.sum() + then.sum())
        if options["scale"] == "first" and far:
            return far / first.setdefault(name, far)
        per = {"reachable": min(kept, 2 * size - kept), "kept": 2 * int(now.sum())}
        return far / per.get(options["scale"], size)

    queue: list = []
    for epoch, masks in enumerate(shown):
        found = detector.update(masks)
        back = window if options["compare"] == "window" else 1
        others = range(max(0, epoch - back), epoch)
        new = [{name: distance(name, epoch, o) for name in groups} for o in others]
        queue = new if options["compare"] == "window" else [*queue, *new][-window:]
        watched = options["watch"] or groups
        joint = max((sum(d[g] for g in watched) for d in queue), default=None)
        if joint is None:
            assert found.joint != found.joint and not found.settled
            continue
        joint /= len(watched) if options["combine"] == "mean" else 1
        assert found.joint == joint
        assert found.distances == {g: max(d[g] for d in queue) for g in groups}
        below = len(queue) == window and joint < options["threshold"]
        assert found.settled == (below and epoch + 1 > options["warmup"])


@settings(max_examples=60)
@given(updates(), OPTIONS, st.data())
def test_a_detector_restored_at_any_point_goes_on_as_the_unbroken_one(
    shown, options, data
):
    unbroken = MaskDistanceDetector(**options)
    stop = data.draw(st.integers(0, len(shown)))
    for masks in shown[:stop]:
        unbroken.update(masks)
    state = copy.deepcopy(unbroken.state_dict())
    restored = MaskDistanceDetector(**options)
    restored.load_state_dict(state)
    for masks in shown[stop:]:
        assert repr(unbroken.update(masks)) == repr(restored.update(masks))
    assert repr(restored.history) == repr(unbroken.history)
    assert restored.settled == unbroken.settled
