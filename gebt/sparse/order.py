"""An order of the nodes in which neighbours lie close together in memory."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gebt.sparse import Pattern

_ROUNDS = 10
_LARGEST = 8192  # nodes of a community that still draws others: a few MB of features
_LABEL, _LOT, _MOST = 31, 12, 2**20 - 1  # bits of a label and a lot, the largest count
_LABELS = 2**_LABEL - 1


def community_order(pattern: Pattern, seed: int = 0) -> Tensor:
    """Nodes community by community, each with its hubs first.

    Communities come from label propagation (Raghavan et al. 2007): a node takes the
    label most frequent among its neighbours, in rounds in which two thirds of the
    nodes, drawn at random, change. Labels of more than 8,192 nodes, too many for the
    caches, draw no others.

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
        large = np.bincount(label, minlength=n) > _LARGEST
        found = _most_frequent(row, label[col], large, draw)
        change = (draw.random(n) < 2 / 3) & (degree > 0)
        label[change] = found[change]
    return torch.from_numpy(np.lexsort((-degree, label)))


def _most_frequent(
    row: NDArray[np.int64],
    label: NDArray[np.int64],
    large: NDArray[np.bool_],
    draw: np.random.Generator,
) -> NDArray[np.int64]:
    """(N,) per row the most frequent label that is not large, a random one of equals.

    Rows without entries get 0.
    """
    pair = np.sort(row << _LABEL | label)
    first = np.flatnonzero(np.diff(pair, prepend=-1))
    of_row, found = pair[first] >> _LABEL, pair[first] & _LABELS
    count = np.minimum(np.diff(first, append=pair.size), _MOST)
    count[large[found]] = 0
    # Lots are drawn for each row: one order for all lets one label flood the graph.
    lot = draw.integers(0, 1 << _LOT, first.size)
    vote = (count << _LOT | lot) << _LABEL | found
    start = np.flatnonzero(np.diff(of_row, prepend=-1))
    best = np.zeros(large.size, dtype=np.int64)
    best[of_row[start]] = np.maximum.reduceat(vote, start) & _LABELS
    return best
