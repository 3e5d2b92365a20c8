"""`keep_top` against a sort of Python numbers, for any scores of any dtype."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gebt import ModelPruner, keep_top
from gebt.prune.masks import reference_keep

pytestmark = pytest.mark.slow

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
INTEGERS = [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64]
RATIOS = st.floats(0, 1, exclude_max=True)
SHAPES = st.lists(st.integers(0, 6), max_size=3)


@st.composite
def some_scores(draw, dtypes=(*FLOATS, *INTEGERS, torch.bool)):
    """Of any shape; many are equal, some as large as the dtype has."""
    dtype, shape = draw(st.sampled_from(dtypes)), draw(SHAPES)
    if dtype == torch.bool:
        number = st.booleans()
    elif dtype in INTEGERS:
        least, most = torch.iinfo(dtype).min, torch.iinfo(dtype).max
        small = st.integers(max(least, -2), 2)
        number = small | st.sampled_from([least, most]) | st.integers(least, most)
    else:
        number = st.integers(-2, 2) | st.floats(width=16, allow_nan=False)
    size = math.prod(shape)
    numbers = draw(st.lists(number, min_size=size, max_size=size))
    return torch.tensor(numbers, dtype=dtype).view(shape)


def kept_of(scores, ratio):
    """The truth: the places in order of falling magnitude, the first first."""
    numbers = [abs(number) for number in scores.flatten().tolist()]
    order = sorted(range(len(numbers)), key=lambda place: -numbers[place])
    kept = torch.zeros(len(numbers), dtype=torch.bool)
    kept[order[: len(numbers) - int(ratio * len(numbers))]] = True
    return kept.view(scores.shape)


@given(some_scores(), RATIOS)
def test_the_largest_are_kept_and_of_equal_ones_the_first(scores, ratio):
    assert torch.equal(keep_top(scores, ratio), kept_of(scores, ratio))


@given(some_scores(FLOATS), RATIOS)
def test_what_a_gpu_runs_keeps_the_same(scores, ratio):
    drop = int(ratio * scores.numel())
    expected = kept_of(scores, ratio)
    if scores.numel():
        assert torch.equal(reference_keep(scores, drop), expected)


@given(some_scores(), RATIOS, RATIOS)
def test_a_higher_ratio_revives_nothing(scores, one, other):
    more, fewer = (keep_top(scores, ratio) for ratio in sorted([one, other]))
    assert not (fewer & ~more).any()


@given(st.permutations(range(12)), st.integers(0, 2**12 - 1), RATIOS)
def test_distinct_scores_take_their_bits_along_and_signs_do_not_count(
    order, signs, ratio
):
    scores, order = torch.arange(1.0, 13), torch.tensor(order)
    turned = torch.tensor([1 - 2 * (signs >> i & 1) for i in range(12)])
    moved = keep_top((turned * scores)[order], ratio)
    assert torch.equal(moved, keep_top(scores, ratio)[order])


@given(st.lists(some_scores(FLOATS[2:3]), min_size=1, max_size=3), RATIOS)
def test_all_weights_of_a_model_are_ranked_as_one(weights, ratio):
    weights = [weight.reshape(-1, 1) for weight in weights if weight.numel()]
    if not weights:
        return
    model = torch.nn.ParameterList(weights)
    found = ModelPruner(model, ratio).masks()
    assert [found[name].shape for name, _ in model.named_parameters()] == [
        weight.shape for weight in weights
    ]
    assert torch.equal(torch.cat([*found.values()]), kept_of(torch.cat(weights), ratio))
