"""Paired differences that say when there is none."""

import math

import numpy as np
import pytest
from scipy.stats import ttest_rel

from gebt.report.comparison import (
    Difference,
    against,
    best_by_validation,
    paired,
    spread,
)


def test_the_worked_example_by_hand():
    # Gaps 1, 2, 3: mean 2, standard error 1 / sqrt(3), t(0.975, 2) = 4.302653.
    found = paired({"0": 81, "1": 82, "2": 83}, {"0": 80, "1": 80, "2": 80})
    assert (found.mean, found.n) == (2, 3)
    assert found.half_width == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert str(found) == "no difference (+2.0 ± 2.5)"


@pytest.mark.parametrize("n", [2, 3, 10, 40])
def test_the_interval_is_that_of_scipys_paired_t_test(n):
    draw = np.random.RandomState(n)
    ours, theirs = 80 + draw.randn(n), 79.5 + draw.randn(n)
    found = paired(_by_seed(ours), _by_seed(theirs))
    test = ttest_rel(ours, theirs)
    low, high = test.confidence_interval(0.95)
    assert found.mean - found.half_width == pytest.approx(low, rel=1e-9)
    assert found.mean + found.half_width == pytest.approx(high, rel=1e-9)
    assert found.is_one == (test.pvalue < 0.05)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("mean", "half_width", "is_one"),
    [
        (1.0, 0.999, True),
        (1.0, 1.0, False),  # an interval that ends at zero holds it
        (1.0, 1.001, False),
        (0.0, 0.0, False),
        (2.0, 0.0, True),  # equal gaps
    ],
)
def test_no_difference_is_said_exactly_when_the_interval_holds_zero(
    mean, half_width, is_one, sign
):
    difference = Difference(sign * mean, half_width, 5)
    assert difference.is_one is is_one
    assert ("no difference" in str(difference)) is not is_one


def test_the_sign_is_ours_minus_theirs():
    assert str(paired({"0": 3, "1": 5}, {"0": 1, "1": 3})) == "+2.0 ± 0.0"
    assert str(paired({"0": 1, "1": 3}, {"0": 3, "1": 5})) == "-2.0 ± 0.0"


def test_pairs_are_matched_by_seed_not_by_order():
    ours = {"2": 72, "0": 70, "1": 71, "9": 0}
    theirs = {"0": 69, "1": 70, "2": 71, "5": 100}
    assert paired(ours, theirs) == Difference(1, 0, 3)


def test_one_shared_seed_gives_its_gap_and_never_a_verdict():
    found = paired({"0": 81.0, "1": 70.0}, {"0": 80.0, "7": 1.0})
    assert (found.mean, found.n) == (1, 1)
    assert math.isnan(found.half_width)
    assert not found.is_one
    assert str(found) == "+1.0 (n = 1)"


@pytest.mark.parametrize("theirs", [{}, {"1": 80.0}])
def test_no_shared_seed_gives_none(theirs):
    assert paired({"0": 81.0}, theirs) is None


def test_no_text_shows_a_negative_zero():
    assert "-0.0" not in str(Difference(-0.04, 0.01, 5))
    assert "-0.0" not in str(Difference(-0.04, math.nan, 1))
    assert "-0.0" not in str(Difference(-0.04, 1.0, 5))


@pytest.mark.parametrize(
    ("values", "digits", "text"),
    [
        ([], 1, "-"),
        ([81.25], 1, "81.2"),
        ([81.25], 2, "81.25"),
        ([80.0, 82.0], 1, "81.0 ± 1.4"),  # n - 1: the sample's deviation
        ([1.0, 2.0, 3.0], 2, "2.00 ± 1.00"),
    ],
)
def test_spread_is_mean_and_sample_standard_deviation(values, digits, text):
    assert spread(values, digits) == text


def _row(seed, val, test, dense):
    return {"seed": seed, "val": val, "test": test, "dense": dense}


def test_the_best_by_validation_is_chosen_for_each_seed_and_never_on_test():
    rows = [_row("0", "70.0", "60.0", "1"), _row("0", "71.0", "50.0", "2")]
    rows += [_row("1", "80.0", "40.0", "3"), _row("1", "80.0", "90.0", "4")]
    assert best_by_validation(rows) == [rows[1], rows[2]]  # the first of equal ones
    assert best_by_validation([]) == []


def test_differences_to_another_column_are_paired_by_seed_too():
    rows = [_row("0", "1", "60.0", "50.0"), _row("1", "1", "70.0", "60.0")]
    assert against(rows, rows, "dense") == "+10.0 ± 0.0"
    assert against(rows, rows) == "no difference (+0.0 ± 0.0)"
    assert against(rows, [], "dense") == "-"


def _by_seed(values):
    return {str(seed): float(value) for seed, value in enumerate(values)}
