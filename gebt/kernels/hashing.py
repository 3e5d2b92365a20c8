"""Random numbers that are computed, not drawn: each from a seed and what it is for.

So nothing is kept of them, and it does not matter which are asked for together: all
rows at once, in blocks, or each where it lies.
"""

import torch
from torch import Generator, Tensor

FIRST, SECOND = 0x7FEB352D, -0x7B935975
COLUMN = -0x61C88647  # odd: the golden ratio's part of 2^32


def mixed(x: Tensor) -> Tensor:
    """Integers of 32 bits, mixed: different for different ones, and as good as random.

    Source: lowbias32 of Wellons 2018.
    """
    x = x.to(torch.int32)
    x = (x ^ _shifted(x, 16)).mul_(FIRST)
    x = x.bitwise_xor_(_shifted(x, 15)).mul_(SECOND)
    return x.bitwise_xor_(_shifted(x, 16))


def entry_hashes(keys: Tensor, columns: int, seed: Tensor) -> Tensor:
    """(N, F) int32, of which only the upper bits are as good as random.

    Keys are mixed already, so that less is enough than `mixed` does.

    Args:
        keys: (N,) int32, see `row_keys`.
        columns: F.
        seed: int32 of no dimension.
    """
    column = torch.arange(columns, dtype=torch.int32, device=keys.device)
    x = (keys ^ seed)[:, None] + column.mul_(COLUMN)
    x = x.mul_(FIRST)
    return x.bitwise_xor_(_shifted(x, 15)).mul_(SECOND)


def hashed(ids: Tensor, seed: int | Tensor) -> Tensor:
    """A random number of 32 bits for each id; for different ids different ones.

    Args:
        ids: (n,) integers; of those of 64 bits the lower 32 count.
        seed: any integer; or int32 of no dimension, drawn.

    Returns:
        (n,) int32, from -2^31 on.
    """
    return mixed(mixed(ids).bitwise_xor_(_word(seed)))


def drawn_seed(device: torch.device, generator: Generator | None) -> Tensor:
    """A seed for hashes, int32 of no dimension; a GPU is not waited for."""
    seed = torch.empty((), dtype=torch.int32, device=device)
    return seed.random_(-(2**31), 2**31 - 1, generator=generator)


def row_keys(rows: int, device: torch.device, nodes: Tensor | None) -> Tensor:
    """(rows,) int32, what `dropout` knows a row by: its node, else its position."""
    if nodes is None:
        nodes = torch.arange(rows, dtype=torch.int32, device=device)
    return mixed(nodes)


def _word(seed: int | Tensor) -> int | Tensor:
    """32 bits of a seed; neighbouring seeds get unlike ones (splitmix64)."""
    if isinstance(seed, Tensor):
        return seed
    z = (seed + 1) * 0x9E3779B97F4A7C15 % 2**64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    return (z >> 32) - 2**31


def column_keys(keys: Tensor, columns: Tensor) -> Tensor:
    """(E,) int32, what single entries are known by, of their rows' keys and columns."""
    return keys + columns.to(torch.int32) * COLUMN


def _shifted(x: Tensor, places: int) -> Tensor:
    """To the right, without the sign."""
    return (x >> places).bitwise_and_(2 ** (32 - places) - 1)
