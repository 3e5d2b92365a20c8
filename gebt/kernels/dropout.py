"""Dropout: the same bits, applied in four passes or in one."""

from typing import Any

import numpy as np
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

_BITS = 16  # decide each entry, so `p` is rounded to a multiple of 2^-16
_LARGE = 2**20  # entries from which numpy's generator is faster, seeding included


def torch_dropout(x: Tensor, bits: Tensor, dropped: int) -> Tensor:
    """The truth: each entry times 0 or ``1 / (1 - p)``."""
    keep = (bits >= _limit(dropped)).view(x.shape)
    return x * keep.to(x.dtype).mul_(_scale(dropped))


def numba_dropout(x: Tensor, bits: Tensor, dropped: int) -> Tensor:
    """One compiled pass each way; saves the bits, half the bytes of the factors."""
    return _Dropout.apply(x, bits, dropped)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bits: Tensor, dropped: int) -> Tensor:
        ctx.save_for_backward(bits)
        ctx.dropped = dropped
        return _pass(x, bits, dropped)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (bits,) = ctx.saved_tensors
        return _pass(grad, bits, ctx.dropped), None, None


def _pass(x: Tensor, bits: Tensor, dropped: int) -> Tensor:
    x = x.contiguous()
    out = torch.empty_like(x)
    limit, scale = torch.tensor(_limit(dropped)), x.new_tensor(_scale(dropped))
    compiled("dropout", x.view(-1), bits, limit, scale, out.view(-1))
    return out


def _refuses_numba(x: Tensor, *_: Any) -> str | None:
    return refuses_numba(x, x.numel(), least=_LARGE)


IMPLEMENTATIONS = (
    Implementation("numba", numba_dropout, _refuses_numba),
    Implementation("torch", torch_dropout, never),
    Implementation("reference", torch_dropout, never),
)


def dropout(x: Tensor, p: float, generator: Generator | None = None) -> Tensor:
    """Zero each entry with probability ``p``, divide the others by ``1 - p``.

    Four entries share one draw of 64 bits: 16 bits decide each. torch's own
    `bernoulli_` takes eight times as long on CPU. Which entries are dropped depends on
    the generator alone, not on how it is computed.

    Args:
        x: any shape, floating.
        p: in [0, 1).
        generator: on the device of ``x``; by default torch's own.
    """
    dropped = min(round(p * 2**_BITS), 2**_BITS - 1)
    bits = _draw(x.numel(), x.device, generator)
    return choose("dropout", IMPLEMENTATIONS, x, bits, dropped)(x, bits, dropped)


def _draw(n: int, device: torch.device, generator: Generator | None) -> Tensor:
    """(n,) int16."""
    if n < _LARGE or device.type != "cpu":
        words = torch.empty(-(-n // 4), dtype=torch.int64, device=device)
        words.random_(-(2**63), None, generator=generator)
    else:
        seed = int(torch.empty((), dtype=torch.int64).random_(generator=generator))
        drawn = np.random.SFC64(seed).random_raw(-(-n // 4))
        words = torch.from_numpy(drawn.view(np.int64))
    return words.view(torch.int16)[:n]


def _limit(dropped: int) -> int:
    return dropped - 2 ** (_BITS - 1)


def _scale(dropped: int) -> float:
    return 2**_BITS / (2**_BITS - dropped)
