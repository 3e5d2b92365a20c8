"""Dropout by a hash of seed, row and column: computed again where it is needed again.

Whether an entry is dropped depends on nothing else: not on which rows are there with
it, nor on how many ranks share them.
"""

from typing import Any

import torch
from torch import Generator, Tensor
from torch.autograd.function import once_differentiable

from gebt.kernels._choose import (
    Implementation,
    choose,
    compiled,
    never,
    refuses_numba,
)
from gebt.kernels.hashing import drawn_seed, entry_hashes, row_keys

_ENTRIES = 2**17
"""From so many on numba's loop is faster than torch's passes by more than importing
it takes in a training of some hundred epochs."""


def torch_dropout(x: Tensor, keys: Tensor, seed: Tensor, limit: int) -> Tensor:
    """The truth: each entry times 0 or ``1 / (1 - p)``."""
    keep = entry_hashes(keys, x.shape[1], seed) >= limit
    return x * keep.to(x.dtype).mul_(_scale(limit))


def numba_dropout(x: Tensor, keys: Tensor, seed: Tensor, limit: int) -> Tensor:
    """One compiled pass each way; saves nothing of the size of ``x``."""
    return _Dropout.apply(x, keys, seed, limit)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *how: Any) -> Tensor:
        ctx.how = how
        return _pass(x, *how)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _pass(grad, *ctx.how), None, None, None


def _pass(x: Tensor, keys: Tensor, seed: Tensor, limit: int) -> Tensor:
    x = x.contiguous()
    out = torch.empty_like(x)
    numbers = torch.tensor([int(seed), limit], dtype=torch.int32)
    compiled("dropout", x, keys, numbers, x.new_tensor(_scale(limit)), out)
    return out


def _refuses_numba(x: Tensor, *_: Any) -> str | None:
    return refuses_numba(x, x.numel(), least=_ENTRIES)


IMPLEMENTATIONS = (
    Implementation("numba", numba_dropout, _refuses_numba),
    Implementation("torch", torch_dropout, never),
    Implementation("reference", torch_dropout, never),
)


def dropout(
    x: Tensor,
    p: float,
    generator: Generator | None = None,
    keys: Tensor | None = None,
) -> Tensor:
    """Zero each entry with probability ``p``, divide the others by ``1 - p``.

    Which entries are dropped depends on one number that the generator draws, and on
    each one's row key and column; not on how it is computed.

    Args:
        x: (N, F), or (N,) as one column; floating.
        p: in [0, 1).
        generator: on the device of ``x``; by default torch's own.
        keys: (N,) int32 what each row is known by, see `row_keys`; by default of its
            position.
    """
    limit = min(round(p * 2**32) - 2**31, 2**31 - 1)
    seed = drawn_seed(x.device, generator)
    columns = x if x.dim() == 2 else x.view(-1, 1)
    if keys is None:
        keys = row_keys(len(columns), x.device, None)
    operands = (columns, keys, seed, limit)
    return choose("dropout", IMPLEMENTATIONS, *operands)(*operands).view(x.shape)


def _scale(limit: int) -> float:
    return 2**32 / (2**31 - limit)
