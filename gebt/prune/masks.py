"""From scores to a boolean mask: exact counts, stable ties, no sort.

On a GPU nothing here waits for it, and no shape depends on the scores.
"""

import numpy as np
import torch
from torch import Tensor

from gebt._checks import check_ratio


def keep_top(scores: Tensor, prune_ratio: float) -> Tensor:
    """Mark the entries with the largest magnitude.

    Exactly ``n - int(prune_ratio * n)`` of the ``n`` entries are kept. Equal
    magnitudes are resolved by position, the first first, so equal inputs give
    equal masks; the detector depends on this.

    Args:
        scores: any shape, real.
        prune_ratio: share to drop, in [0, 1).

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
        return numpy_keep(scores, drop)
    if scores.is_cpu and scores.isnan().any():
        raise ValueError(NAN)
    many = scores.dtype == torch.float32 and scores.numel() >= _MANY
    return (counting_keep if many else reference_keep)(scores, drop)


def reference_keep(scores: Tensor, drop: int) -> Tensor:
    """Drop the ``drop`` smallest."""
    if drop == 0:
        return torch.ones_like(scores, dtype=torch.bool)
    magnitude = scores.abs().flatten()
    threshold = magnitude.kthvalue(drop + 1).values
    return _keep_from(magnitude, threshold, drop).view(scores.shape)


def counting_keep(scores: Tensor, drop: int) -> Tensor:
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
    threshold = bits.new_zeros(())
    for place in reversed(range(31)):
        higher = threshold + 2**place
        threshold = torch.where((bits < higher).sum() <= drop, higher, threshold)
    return _keep_from(bits, threshold, drop).view(scores.shape)


def _keep_from(magnitude: Tensor, threshold: Tensor, drop: int) -> Tensor:
    """Keep all but ``drop`` entries (n,), given the smallest magnitude that is kept.

    Of those equal to it the first few are kept, so that the count is exact.
    """
    above = magnitude > threshold
    equal = magnitude == threshold
    wanted = magnitude.numel() - drop - above.sum()
    return above | (equal & (equal.cumsum(0) <= wanted))


def numpy_keep(scores: Tensor, drop: int) -> Tensor:
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
        keep[np.flatnonzero(magnitude == threshold)[-surplus:]] = False
    return torch.from_numpy(keep).view(scores.shape)


_MANY = 2**18
"""Entries from which `counting_keep` reads and launches less than `kthvalue`'s one
block takes for some 20 passes; by counting bytes, not measured."""
NAN = (
    "`scores` holds NaN, which has no rank. Has the training diverged? "
    "Try a smaller learning rate."
)
