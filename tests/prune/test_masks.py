import numpy as np
import pytest
import torch

from gebt.prune.masks import (
    check_ratio,
    keep_top,
    numpy_keep,
    reference_keep,
)


@pytest.mark.parametrize(
    ("scores", "ratio", "kept"),
    [
        ([0.1, -0.9, 0.5, 0.2], 0.5, [False, True, True, False]),
        ([0.1, -0.9, 0.5, 0.2], 0.25, [False, True, True, True]),
        ([0.1, -0.9, 0.5, 0.2], 0.75, [False, True, False, False]),
        ([0.1, -0.9, 0.5, 0.2], 0.2, [True, True, True, True]),  # int(0.8) is 0
        ([3.0], 0.9, [True]),
        ([0.0, -0.0, 0.0, 1.0], 0.5, [True, False, False, True]),
        ([-1.0, 1.0, -1.0, 1.0], 0.5, [True, True, False, False]),
        ([float("inf"), 1.0, -float("inf"), 2.0], 0.5, [True, False, True, False]),
    ],
)
def test_keep_top_by_hand(scores, ratio, kept):
    mask = keep_top(torch.tensor(scores), ratio)
    assert mask.dtype == torch.bool
    assert mask.tolist() == kept


@pytest.mark.parametrize("ratio", [0.0, 0.2, 0.5, 0.9])
def test_keep_top_keeps_exactly_the_promised_count_when_all_scores_tie(ratio):
    mask = keep_top(torch.ones(101), ratio)
    assert mask.sum() == 101 - int(ratio * 101)


@pytest.mark.parametrize("ratio", [0.0, 0.001, 0.3, 0.5, 0.77, 0.999])
@pytest.mark.parametrize("size", [1, 2, 7, 100, 1001])
def test_the_count_is_exact(size, ratio):
    mask = keep_top(torch.randn(size).round(decimals=1), ratio)
    assert int(mask.sum()) == size - int(ratio * size) > 0


@pytest.mark.parametrize("drop", [1, 2, 3])
def test_of_equal_magnitudes_the_first_are_kept(drop):
    scores = torch.tensor([2.0, -1.0, 1.0, 5.0, -1.0, 1.0])
    tied = [1, 2, 4, 5]
    expected = torch.ones(6, dtype=torch.bool)
    expected[tied[-drop:]] = False
    assert torch.equal(keep_top(scores, (drop + 0.1) / 6), expected)


def test_raising_the_ratio_never_revives_an_entry():
    scores = torch.randn(997).round(decimals=1)  # about 60 values: many ties
    before = keep_top(scores, 0)
    for percent in range(1, 100):
        after = keep_top(scores, percent / 100)
        assert not (after & ~before).any()
        before = after


def test_equal_inputs_give_equal_masks():
    scores = torch.randn(500).round(decimals=1)
    assert torch.equal(keep_top(scores, 0.5), keep_top(scores.clone(), 0.5))


def test_sign_and_scale_do_not_matter():
    scores = torch.randn(500)
    mask = keep_top(scores, 0.5)
    assert torch.equal(keep_top(-scores, 0.5), mask)
    assert torch.equal(keep_top(4 * scores, 0.5), mask)


def test_no_kept_magnitude_is_below_a_dropped_one():
    scores = torch.randn(500)
    mask = keep_top(scores, 0.37)
    assert scores[mask].abs().min() > scores[~mask].abs().max()


def test_the_mask_has_the_shape_of_the_scores_and_ranks_them_row_by_row():
    scores = torch.tensor([[1.0, 4.0], [3.0, 2.0]])
    assert keep_top(scores, 0.5).tolist() == [[False, True], [True, False]]
    assert keep_top(scores.t(), 0.5).tolist() == [[False, True], [True, False]]
    assert keep_top(torch.ones(2, 3, 4), 0.5).shape == (2, 3, 4)
    ties = torch.ones(2, 3).t()  # position is that of the transposed tensor
    assert keep_top(ties, 0.5).tolist() == [[True, True], [True, False], [False, False]]


def test_no_scores_give_an_empty_mask():
    mask = keep_top(torch.empty(0), 0.5)
    assert mask.dtype == torch.bool and mask.shape == (0,)


def test_a_score_that_requires_a_gradient_is_left_alone():
    score = torch.nn.Parameter(torch.tensor([1.0, -3.0, 2.0]))
    mask = keep_top(score, 0.5)
    assert not mask.requires_grad
    mask[:] = False
    assert score.tolist() == [1.0, -3.0, 2.0]


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32]
)
def test_every_real_dtype_is_ranked(dtype):
    scores = torch.tensor([3, -5, 1, 3, 0], dtype=dtype)
    assert keep_top(scores, 0.6).tolist() == [True, True, False, False, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
@pytest.mark.parametrize("values", [2, 5, 50, 10**6])
def test_numpy_keep_is_the_reference(dtype, values):
    for size in (2, 13, 256, 4001):
        magnitude = torch.randint(values, (size,)).to(dtype)
        for drop in {1, size // 3, size // 2, size - 1} - {0}:
            fast, slow = numpy_keep(magnitude, drop), reference_keep(magnitude, drop)
            assert torch.equal(fast, slow)
            assert int(slow.sum()) == size - drop


SPECIAL = [0.0, -0.0, 1e-45, -1e-45, 1e-40, 1.2e-38, 3.4e38, float("inf")]
HARD = {
    "normal": lambda n: torch.randn(n),
    "near 1, as link scores are": lambda n: 1 + 0.01 * torch.randn(n),
    "of a few values": lambda n: torch.randn(n).round(decimals=1),
    "all equal": lambda n: torch.full((n,), -0.7),
    "all zero": lambda n: torch.zeros(n),
    "all infinite": lambda n: torch.full((n,), float("inf")),
    "half of them 1": lambda n: torch.where(torch.rand(n) < 0.5, 1, torch.rand(n)),
    "of any bits": lambda n: torch.randint(2**31, (n,)).int().view(torch.float32),
    "the smallest and largest": lambda n: torch.tensor(SPECIAL)[torch.randint(8, (n,))],
}


@pytest.mark.parametrize("kind", HARD)
def test_numpy_keep_is_the_reference_of_hard_scores(kind):
    for size in (1, 2, 3, 31, 257, 1000, 4001):
        scores = HARD[kind](size)
        scores = torch.where(scores.isnan(), -2, scores)
        drops = {int(share * size) for share in (0, 0.001, 0.2, 0.5, 0.9, 0.999)}
        for drop in drops | {size - 1}:
            found = reference_keep(scores, drop)
            assert int(found.sum()) == size - drop
            assert torch.equal(found, numpy_keep(scores, drop))


def test_the_reference_keeps_the_shape_and_the_scores():
    scores = torch.randn(6, 5).t()
    before = scores.clone()
    assert torch.equal(reference_keep(scores, 11), numpy_keep(scores, 11))
    assert torch.equal(scores, before)


def test_where_there_is_nan_the_reference_does_not_raise():
    """On a GPU the loops look for it, once an epoch."""
    scores = torch.tensor([1.0, float("nan"), -2.0, 3.0])
    assert reference_keep(scores, 2).shape == (4,)


def test_the_reference_is_a_stable_sort():
    magnitude = torch.randint(9, (300,)).float()
    order = (-magnitude).argsort(stable=True)
    for drop in (1, 100, 299):
        expected = torch.zeros(300, dtype=torch.bool)
        expected[order[: 300 - drop]] = True
        assert torch.equal(reference_keep(magnitude, drop), expected)


@pytest.mark.parametrize("keep", [numpy_keep, reference_keep])
@pytest.mark.parametrize("drop", [0, 1, 100, 299])
def test_a_rule_for_ties_decides_which_of_equal_magnitudes_go(keep, drop):
    scores = torch.randint(-4, 5, (300,)).float()
    key = (torch.randperm(300) - 150).int()
    key[0] = torch.iinfo(torch.int32).min
    least_first = sorted(
        range(300), key=lambda i: (float(scores[i].abs()), int(key[i]))
    )
    expected = torch.ones(300, dtype=torch.bool)
    expected[least_first[:drop]] = False
    assert torch.equal(keep(scores, drop, lambda at: key[at]), expected)


@pytest.mark.parametrize("ratio", [0.0, 0.5])
@pytest.mark.parametrize("at", [0, 5, 9])
def test_nan_is_refused(at, ratio):
    scores = torch.ones(10)
    scores[at] = float("nan")
    with pytest.raises(ValueError, match="`scores` holds NaN.*smaller learning rate"):
        keep_top(scores, ratio)


@pytest.mark.parametrize("ratio", [-0.1, 1.0, 90, float("nan")])
def test_a_ratio_outside_its_range_is_refused(ratio):
    words = rf"`prune_ratio` is the share to remove.* \[0, 1\), got {ratio}"
    with pytest.raises(ValueError, match=words):
        keep_top(torch.ones(10), ratio)
    with pytest.raises(ValueError, match="`graph_ratio` is the share"):
        check_ratio("graph_ratio", ratio)


def test_check_ratio_returns_the_ratio():
    assert check_ratio("graph_ratio", 0.3) == 0.3


def test_the_scores_are_not_changed():
    scores = torch.tensor([3.0, -1.0, 2.0])
    seen = scores.numpy()  # shares memory: a partition in place would show
    keep_top(scores.abs(), 0.5)
    numpy_keep(scores, 1)
    assert np.array_equal(seen, [3.0, -1.0, 2.0])


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_cuda_gives_the_same_mask(dtype):
    scores = torch.randn(4001).round(decimals=1).to(dtype)
    for ratio in (0.0, 0.2, 0.5, 0.9):
        there = keep_top(scores.cuda(), ratio)
        assert there.is_cuda
        assert torch.equal(there.cpu(), keep_top(scores, ratio))


@pytest.mark.cuda
@pytest.mark.parametrize("kind", HARD)
def test_cuda_gives_the_same_mask_of_many(kind):
    scores = HARD[kind](2**18 + 13)
    scores = torch.where(scores.isnan(), -2, scores)
    for ratio in (0.0, 0.2, 0.5, 0.999):
        there = keep_top(scores.cuda(), ratio)
        assert torch.equal(there.cpu(), keep_top(scores, ratio))


@pytest.mark.cuda
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("size", [1000, 2**18])
def test_cuda_does_not_wait_for_the_mask(size):
    scores = torch.randn(size, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        keep_top(scores, 0.5)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.cuda
@pytest.mark.parametrize("size", [1000, 2**18])
def test_a_cuda_graph_can_hold_the_mask(size):
    scores = torch.randn(size, device="cuda")
    keep_top(scores, 0.5)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        mask = keep_top(scores, 0.5)
    for _ in range(3):
        scores.normal_()
        graph.replay()
        assert torch.equal(mask.cpu(), keep_top(scores.cpu(), 0.5))


def test_one_score_alone_and_the_lowest_integer_have_a_rank():
    assert torch.equal(keep_top(torch.tensor(3.0), 0.9), torch.tensor(True))
    scores = torch.tensor([127, -128, 5], dtype=torch.int8)
    assert keep_top(scores, 0.7).tolist() == [False, True, False]
