"""An order of the nodes in which neighbours lie close together in memory."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gebt.sparse import Pattern

_ROUNDS = 6
_BELOW = 2**31  # labels take the lower bits of a vote, its count the upper ones


def community_order(pattern: Pattern, seed: int = 0) -> Tensor:
    """Nodes community by community, each with its hubs first.

    Communities come from label propagation (Raghavan et al. 2007): a node takes the
    label most frequent among its neighbours, in rounds in which two thirds of the
    nodes, drawn at random, change.

    Args:
        pattern: (N, N), its rows the neighbours.
        seed: for the draws.

    Returns:
        (N,) int64 on CPU, a permutation of the nodes.
    """
    n = pattern.shape[0]
    draw = np.random.default_rng(seed)
    row = pattern.row.cpu().numpy().astype(np.int64)
    col = pattern.col.cpu().numpy()
    degree = np.bincount(row, minlength=n)
    label = draw.permutation(n)
    for _ in range(_ROUNDS if row.size else 0):
        found = _most_frequent(row, label[col], n, draw)
        change = (draw.random(n) < 2 / 3) & (degree > 0)
        label[change] = found[change]
    return torch.from_numpy(np.lexsort((-degree, label)))


def _most_frequent(
    row: NDArray[np.int64],
    label: NDArray[np.int64],
    n: int,
    draw: np.random.Generator,
) -> NDArray[np.int64]:
    """(n,) per row its most frequent label, a random one of several; else 0."""
    # Shuffled numbers for the labels, so that the largest of equals is a random one.
    shuffled = draw.permutation(n)
    pair = np.sort(row * _BELOW + shuffled[label])
    first = np.flatnonzero(np.diff(pair, prepend=-1))
    count = np.diff(first, append=pair.size)
    votes = count * _BELOW + pair[first] % _BELOW
    of_row = pair[first] // _BELOW
    start = np.flatnonzero(np.diff(of_row, prepend=-1))
    best = np.zeros(n, dtype=np.int64)
    back = np.empty(n, dtype=np.int64)
    back[shuffled] = np.arange(n)
    best[of_row[start]] = back[np.maximum.reduceat(votes, start) % _BELOW]
    return best
