"""From scores to a boolean mask: exact counts, stable ties.

On a GPU nothing here waits for it, and no shape depends on the scores.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from gebt._checks import check_ratio

Ties = Callable[[Tensor], Tensor]
"""Given positions (k,) int64, an int32 each, all different: the least goes first."""
Total = Callable[[Tensor], Tensor]
"""Given counts, int64, their sums over all ranks."""


def keep_top(
    scores: Tensor,
    prune_ratio: float,
    ties: Ties | None = None,
    total: Total | None = None,
) -> Tensor:
    """Mark the entries with the largest magnitude.

    Exactly ``n - int(prune_ratio * n)`` of the ``n`` entries are kept. Equal
    magnitudes are resolved by position, the first first, so equal inputs give
    equal masks; the detector depends on this.

    Args:
        scores: any shape, real.
        prune_ratio: share to drop, in [0, 1).
        ties: another way to resolve equal magnitudes.
        total: where these scores are one rank's, what adds up counts of all ranks; the
            ratio is of all their entries. All ranks call together, with ``ties`` that
            differ over all entries.

    Returns:
        Boolean mask shaped like ``scores``; True means kept.

    Raises:
        ValueError: if ``prune_ratio`` is outside [0, 1), or a score on CPU is NaN. On
            a GPU that would be waiting for it: `find_ticket` looks for NaN once an
            epoch, with all else that it copies to the host.

    Source: You et al. 2022, Sec. 3.2, magnitude pruning.
    """
    check_ratio("prune_ratio", prune_ratio)
    scores = scores.detach()
    if total is not None:
        if ties is None:
            raise ValueError("`total` needs `ties`: positions of ranks do not compare.")
        number = torch.tensor(scores.numel(), device=scores.device)
        return shared_keep(scores, int(prune_ratio * int(total(number))), ties, total)
    drop = int(prune_ratio * scores.numel())
    if scores.numel() == 0:
        return torch.ones_like(scores, dtype=torch.bool)
    if scores.is_cpu and scores.dtype != torch.bfloat16:
        return numpy_keep(scores, drop, ties)
    if scores.is_cpu and scores.isnan().any():
        raise ValueError(NAN)
    return reference_keep(scores, drop, ties)


def removed_after(ratio: float, done: int, rounds: int) -> float:
    """Share removed after some of the rounds, each removing as much of what remains."""
    return ratio if done == rounds else 1 - (1 - ratio) ** (done / rounds)


def reference_keep(scores: Tensor, drop: int, ties: Ties | None = None) -> Tensor:
    """Drop the ``drop`` smallest.

    By two sorts: an H100 orders 60 million scores in 3 ms, and counting how many lie
    below each bit's threshold took it 18.
    """
    if drop == 0:
        return torch.ones_like(scores, dtype=torch.bool)
    magnitude = scores.abs().flatten()
    threshold = magnitude.sort().values[drop]
    equal = magnitude == threshold
    if ties is None:
        above = magnitude > threshold
        wanted = magnitude.numel() - drop - above.sum()
        return (above | (equal & (equal.cumsum(0) <= wanted))).view(scores.shape)
    below = magnitude < threshold
    key = ties(torch.arange(magnitude.numel(), device=magnitude.device))
    key = key.masked_fill(~equal, torch.iinfo(torch.int32).max)
    bar = key.sort().values.index_select(0, (drop - below.sum()).view(1))
    return (~below & (key >= bar)).view(scores.shape)


def numpy_keep(scores: Tensor, drop: int, ties: Ties | None = None) -> Tensor:
    """`reference_keep` on CPU: numpy selects and compares 5 times as fast there."""
    magnitude = np.abs(scores.numpy()).reshape(-1)
    if magnitude.dtype.kind == "i":  # the lowest integer is its own magnitude there
        magnitude = magnitude.view(f"u{magnitude.itemsize}")
    ordered = np.partition(magnitude, drop)
    if magnitude.dtype.kind == "f" and np.isnan(ordered[drop:].max()):
        raise ValueError(NAN)  # NaN is ordered last
    threshold = ordered[drop]
    keep = magnitude >= threshold
    surplus = np.count_nonzero(keep) - (magnitude.size - drop)
    if surplus:
        equal = np.flatnonzero(magnitude == threshold)
        if ties is not None:
            key = ties(torch.from_numpy(equal)).numpy()
            equal = equal[np.argpartition(-key.astype(np.int64), -surplus)]
        keep[equal[-surplus:]] = False
    return torch.from_numpy(keep).view(scores.shape)


def shared_keep(scores: Tensor, drop: int, ties: Ties, total: Total) -> Tensor:
    """`reference_keep` of many ranks' float32 or float64 together: sums of counts only.

    Each rank sorts the bits of its magnitudes, once. The threshold's come digit by
    digit, highest first: how many of all lie below each of 256
    candidates decides the next 8 bits. Of the entries equal to it the same finds the
    tie's.
    """
    wide = scores.dtype == torch.float64
    magnitude = scores.abs().flatten().view(torch.int64 if wide else torch.int32)
    threshold, below = _shared_least(magnitude, 64 if wide else 32, drop, total)
    equal = (magnitude == threshold).nonzero().squeeze(1)
    key = ties(equal).long() + 2**31
    bar, _ = _shared_least(key, 33, drop - below, total)
    keep = magnitude > threshold
    keep[equal] = key >= bar
    return keep.view(scores.shape)


def _shared_least(
    numbers: Tensor, places: int, drop: int, total: Total
) -> tuple[Tensor, int]:
    """The smallest kept of all ranks' integers (n,), and how many lie below it.

    Args:
        numbers: (n,) not negative.
        places: how many bits they have, the sign among them.
        drop: how many of all go, those that are smallest.
        total: adds up over ranks.
    """
    if numbers.is_cpu:  # numpy sorts 10 times as fast there
        ordered = torch.from_numpy(np.sort(numbers.numpy()))
    else:
        ordered = numbers.sort().values
    least, count = numbers.new_zeros(()), 0
    places -= 1
    while places:
        digit = (places - 1) % 8 + 1
        places -= digit
        steps = torch.arange(2**digit, dtype=numbers.dtype, device=numbers.device)
        bars = least + (steps << places)
        below = total(torch.searchsorted(ordered, bars))
        at = int((below <= drop).sum()) - 1
        least, count = bars[at], int(below[at])
    return least, count


NAN = (
    "`scores` holds NaN, which has no rank. Has the training diverged? "
    "Try a smaller learning rate."
)
