"""An order of the nodes in which neighbours lie close together in memory."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gebt.kernels._choose import compiled, installed
from gebt.kernels._csr import entry_rows
from gebt.sparse.pattern import Pattern

_ROUNDS = 10
_LARGEST = 8192  # nodes of a community that still draws others: a few MB of features
_LABEL, _LOT, _MOST = 31, 12, 2**20 - 1  # bits of a label and a lot, the largest count
_LABELS = 2**_LABEL - 1
_ODD = 0x9E3779B97F4A7C15
_MANY = (
    1_000_000  # entries from which compiled loops gain more than importing them takes
)


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
    crow, col = pattern.crow.cpu(), pattern.col.cpu()
    degree = crow.diff().numpy()
    label = draw.permutation(n)
    fast = pattern.nnz >= _MANY and installed("numba")
    vote = _compiled_votes if fast else _votes
    for _ in range(_ROUNDS if pattern.nnz else 0):
        large = np.bincount(label, minlength=n) > _LARGEST
        salt = int(draw.integers(2**62))
        change = (draw.random(n) < 2 / 3) & (degree > 0)
        found = vote(crow, col, label, large, salt)
        label[change] = found[change]
    return torch.from_numpy(np.lexsort((-degree, label)))


def _votes(
    crow: Tensor,
    col: Tensor,
    label: NDArray[np.int64],
    large: NDArray[np.bool_],
    salt: int,
) -> NDArray[np.int64]:
    """(N,) per row the most frequent label that is not large, a random one of equals.

    Rows without entries get 0.
    """
    row = entry_rows(crow, col.numel()).numpy().astype(np.int64)
    pair = np.sort(row << _LABEL | label[col.numpy()])
    first = np.flatnonzero(np.diff(pair, prepend=-1))
    of_row, found = pair[first] >> _LABEL, pair[first] & _LABELS
    count = np.minimum(np.diff(first, append=pair.size), _MOST)
    count[large[found]] = 0
    # Lots are drawn for each row: one order for all lets one label flood the graph.
    lot = pair[first].view(np.uint64) * np.uint64(_ODD) + np.uint64(salt)
    lot ^= lot >> np.uint64(32)
    lot = (lot * np.uint64(_ODD) >> np.uint64(64 - _LOT)).view(np.int64)
    vote = (count << _LOT | lot) << _LABEL | found
    start = np.flatnonzero(np.diff(of_row, prepend=-1))
    best = np.zeros(large.size, dtype=np.int64)
    best[of_row[start]] = np.maximum.reduceat(vote, start) & _LABELS
    return best


def _compiled_votes(
    crow: Tensor,
    col: Tensor,
    label: NDArray[np.int64],
    large: NDArray[np.bool_],
    salt: int,
) -> NDArray[np.int64]:
    """`_votes` by a loop over rows, which needs no memory of the entries' size."""
    out = torch.empty(large.size, dtype=torch.int64)
    numbers = torch.tensor([salt, _ODD - 2**64, _LABEL, _LOT, _MOST])
    given = torch.from_numpy(label), torch.from_numpy(large)
    compiled("votes", crow, col, *given, numbers, out)
    return out.numpy()
