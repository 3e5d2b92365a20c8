"""Scores of outputs, in percent."""

import torch
from torch import Tensor


def roc_auc(score: Tensor, positive: Tensor) -> float:
    """Area under the ROC curve in percent: how often a positive outranks a negative.

    Ties count half.

    Args:
        score: (R,).
        positive: (R,) boolean.

    Returns:
        Percent; NaN unless both kinds are there.
    """
    _, which, count = torch.unique(score, return_inverse=True, return_counts=True)
    middle = count.cumsum(0) - (count - 1).double() / 2
    number = int(positive.count_nonzero())
    others = positive.numel() - number
    if number == 0 or others == 0:
        return float("nan")
    ranks = middle.index_select(0, which[positive]).sum()
    return 100 * (float(ranks) - number * (number + 1) / 2) / (number * others)


def average_precision(score: Tensor, positive: Tensor) -> float:
    """Mean precision at the places of the positives, best score first, in percent.

    Equal scores count as one place, as in scikit-learn.

    Args:
        score: (R,).
        positive: (R,) boolean.

    Returns:
        Percent; NaN where there are no positives.
    """
    order = score.argsort(descending=True)
    score, positive = score[order], positive[order]
    last = torch.ones_like(positive)  # of each run of equal scores
    last[:-1] = score[1:] != score[:-1]
    found = positive.cumsum(0)[last].double()
    place = last.nonzero().squeeze(1) + 1
    number = int(positive.count_nonzero())
    if number == 0:
        return float("nan")
    gained = found.diff(prepend=found.new_zeros(1))
    return 100 * float((gained * found / place).sum()) / number


def hits(linked: Tensor, negative: Tensor, k: int) -> float:
    """Percent of links scored above the ``k``-th best negative; 100 if fewer than k.

    Args:
        linked: (P,) scores of the held-out links.
        negative: (Q,) scores of pairs that are not linked.
        k: how many negatives a link may be outranked by, plus one.

    Source: Hu et al. 2020, Open Graph Benchmark, ``Evaluator("ogbl-collab")``.
    """
    if negative.numel() < k:
        return 100.0
    bar = negative.topk(k).values[-1]
    return 100 * int((linked > bar).count_nonzero()) / linked.numel()
