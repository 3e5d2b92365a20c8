"""Dropout by a hash of seed, row and column: computed again where it is needed again.

Whether an entry is dropped depends on nothing else: not on which rows are there with
it, nor on how many ranks share them.
"""

from collections.abc import Iterator
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

_ROWS = 2**14  # that are multiplied together, so that what is dropped fits the caches


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


class Dropped:
    """``dropout(x, p)``, not written out: `product` drops from a few rows at a time.

    Attributes:
        x: (N, F) floating.
        how: the keys of its rows (N,), the seed, and from where on a hash is large.
    """

    def __init__(self, x: Tensor, keys: Tensor, seed: Tensor, limit: int):
        self.x = x
        self.how = keys, seed, limit

    @property
    def shape(self) -> torch.Size:
        """(N, F)."""
        return self.x.shape

    def written_out(self) -> Tensor:
        """(N, F)."""
        operands = self.x, *self.how
        return choose("dropout", IMPLEMENTATIONS, *operands)(*operands)

    def index_select(self, dim: int, rows: Tensor) -> "Dropped":
        """Some rows."""
        keys, seed, limit = self.how
        x, keys = self.x.index_select(dim, rows), keys.index_select(0, rows)
        return Dropped(x, keys, seed, limit)

    def product(self, weight: Tensor) -> Tensor:
        """``dropout(x, p) @ weight``, (N, H); differentiable once in both.

        The backward drops again, so that of all that is as large as ``x`` only itself
        is kept, which may lie in a file.
        """
        return _Product.apply(self.x, weight, *self.how)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, *how: Any) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.how = how
        out = x.new_empty(x.shape[0], weight.shape[1])
        for at in _blocks(x):
            torch.mm(_part(x, at, *how), weight, out=out[at])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, *_ = ctx.needs_input_grad
        for_x = torch.empty_like(x) if needs_x else None
        for_weight = torch.zeros_like(weight) if needs_weight else None
        for at in _blocks(x):
            if for_weight is not None:
                for_weight.addmm_(_part(x, at, *ctx.how).t(), grad[at])
            if for_x is not None:
                keys, seed, limit = ctx.how
                pull = grad[at] @ weight.t(), keys[at], seed, limit
                for_x[at] = choose("dropout", IMPLEMENTATIONS, *pull)(*pull)
        return for_x, for_weight, None, None, None


def _blocks(x: Tensor) -> Iterator[slice]:
    for start in range(0, x.shape[0], _ROWS):
        yield slice(start, start + _ROWS)


def _part(x: Tensor, at: slice, keys: Tensor, seed: Tensor, limit: int) -> Tensor:
    operands = x[at], keys[at], seed, limit
    return choose("dropout", IMPLEMENTATIONS, *operands)(*operands)


def lazy_dropout(
    x: Tensor,
    p: float,
    generator: Generator | None = None,
    keys: Tensor | None = None,
) -> Dropped:
    """`dropout` of a matrix, to be multiplied: see `Dropped`."""
    if keys is None:
        keys = row_keys(len(x), x.device, None)
    return Dropped(x, keys, drawn_seed(x.device, generator), _limit(p))


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
    seed = drawn_seed(x.device, generator)
    columns = x if x.dim() == 2 else x.view(-1, 1)
    if keys is None:
        keys = row_keys(len(columns), x.device, None)
    operands = (columns, keys, seed, _limit(p))
    return choose("dropout", IMPLEMENTATIONS, *operands)(*operands).view(x.shape)


def _limit(p: float) -> int:
    return min(round(p * 2**32) - 2**31, 2**31 - 1)


def _scale(limit: int) -> float:
    return 2**32 / (2**31 - limit)
