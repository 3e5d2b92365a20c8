"""From scores to a boolean mask: exact counts, stable ties, no sort.

On a GPU nothing here waits for it, and no shape depends on the scores.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from gebt._checks import check_ratio

Ties = Callable[[Tensor], Tensor]
"""Given positions (k,) int64, an int32 each, all different: the least goes first."""


def keep_top(scores: Tensor, prune_ratio: float, ties: Ties | None = None) -> Tensor:
    """Mark the entries with the largest magnitude.

    Exactly ``n - int(prune_ratio * n)`` of the ``n`` entries are kept. Equal
    magnitudes are resolved by position, the first first, so equal inputs give
    equal masks; the detector depends on this.

    Args:
        scores: any shape, real.
        prune_ratio: share to drop, in [0, 1).
        ties: another way to resolve equal magnitudes.

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
    drop = int(prune_ratio * scores.numel())
    if scores.numel() == 0:
        return torch.ones_like(scores, dtype=torch.bool)
    if scores.is_cpu and scores.dtype != torch.bfloat16:
        return numpy_keep(scores, drop, ties)
    if scores.is_cpu and scores.isnan().any():
        raise ValueError(NAN)
    many = scores.dtype == torch.float32 and scores.numel() >= _MANY
    return (counting_keep if many else reference_keep)(scores, drop, ties)


def reference_keep(scores: Tensor, drop: int, ties: Ties | None = None) -> Tensor:
    """Drop the ``drop`` smallest."""
    if drop == 0:
        return torch.ones_like(scores, dtype=torch.bool)
    magnitude = scores.abs().flatten()
    threshold = magnitude.kthvalue(drop + 1).values
    return _keep_from(magnitude, threshold, drop, ties).view(scores.shape)


def counting_keep(scores: Tensor, drop: int, ties: Ties | None = None) -> Tensor:
    """`reference_keep` of many float32 on a GPU, where `kthvalue` uses one block.

    The bits of magnitudes are ordered as the magnitudes are. So the threshold's are
    found one by one, highest first: a bit is set if at most ``drop`` entries lie below
    the threshold that it would give. A count reads 4 bytes an entry, and writes and
    reads one; the 31 need no atomics, unlike a histogram, whose few bins that hold most
    scores would all be wanted at once.
    """
    if drop == 0:
        return torch.ones_like(scores, dtype=torch.bool)
    bits = scores.abs().flatten().view(torch.int32)
    threshold = _smallest_kept(bits, bits.new_zeros(()), 31, drop)
    return _keep_from(bits, threshold, drop, ties).view(scores.shape)


def _smallest_kept(
    numbers: Tensor, least: Tensor, places: int, drop: int | Tensor
) -> Tensor:
    """The smallest of integers (n,) from ``least`` on that is not among the dropped."""
    for place in reversed(range(places)):
        higher = least + 2**place
        least = torch.where((numbers < higher).sum() <= drop, higher, least)
    return least


def _keep_from(
    magnitude: Tensor, threshold: Tensor, drop: int, ties: Ties | None
) -> Tensor:
    """Keep all but ``drop`` entries (n,), given the smallest magnitude that is kept.

    Of those equal to it a few are kept, so that the count is exact.
    """
    equal = magnitude == threshold
    if ties is None:
        above = magnitude > threshold
        wanted = magnitude.numel() - drop - above.sum()
        return above | (equal & (equal.cumsum(0) <= wanted))
    below = magnitude < threshold
    limits = torch.iinfo(torch.int32)
    key = ties(torch.arange(magnitude.numel(), device=magnitude.device))
    key = key.masked_fill(~equal, limits.max)
    bar = _smallest_kept(key, key.new_tensor(limits.min), 32, drop - below.sum())
    return ~below & (key >= bar)


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


_MANY = 2**18
"""Entries from which `counting_keep` reads and launches less than `kthvalue`'s one
block takes for some 20 passes; by counting bytes, not measured."""
NAN = (
    "`scores` holds NaN, which has no rank. Has the training diverged? "
    "Try a smaller learning rate."
)
