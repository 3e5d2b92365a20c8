"""SDDMM: a dense product sampled at given positions.

``value[e] = <left[row[e]], right[col[e]]>``: the gradient of ``A @ x`` for the
entries of A, with ``left`` the gradient of the output and ``right = x``.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from gebt.kernels._choose import (
    Implementation,
    choose,
    compiled,
    never,
    refuses_csr,
    refuses_numba,
    refuses_triton,
)
from gebt.kernels._csr import Transpose, csr, entry_rows
from gebt.kernels._register import register

_NARROWEST = 8  # sampled_addmm at width 7 takes 12 times as long as at width 8


def reference_sddmm(crow: Tensor, col: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """The truth: one inner product per position."""
    return (left[entry_rows(crow, col.numel())] * right[col]).sum(dim=-1)


def torch_sddmm(crow: Tensor, col: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Torch's `sampled_addmm`, padded where it is slow."""
    if col.numel() == 0 or left.shape[1] == 0:
        return left.new_zeros(col.numel())
    if left.shape[1] < _NARROWEST:
        by = (0, _NARROWEST - left.shape[1])
        left, right = pad(left, by), pad(right, by)
    # beta = 0 does not keep a NaN of the input out, so the input is zeros.
    zeros = csr(crow, col, left.new_zeros(col.numel()), right.shape[0])
    return torch.sparse.sampled_addmm(zeros, left, right.t(), beta=0.0).values()


def _refuses_torch(
    crow: Tensor, col: Tensor, left: Tensor, right: Tensor
) -> str | None:
    if col.numel() > left.shape[0] * right.shape[0]:
        return "torch takes no more entries than there are positions"
    return refuses_csr(left)


def numba_sddmm(crow: Tensor, col: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Compiled loops over rows that fetch ahead."""
    out = left.new_empty(col.numel())
    compiled("sddmm", crow, col, left.contiguous(), right.contiguous(), out)
    return out


def triton_sddmm(crow: Tensor, col: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """A program per row; repeats bit for bit."""
    from gebt.kernels import _triton

    out = left.new_empty(col.numel())
    _triton.sddmm(crow, col, left.contiguous(), right.contiguous(), out)
    return out


IMPLEMENTATIONS = (
    Implementation(
        "numba",
        numba_sddmm,
        lambda crow, col, left, right: refuses_numba(right, col.numel()),
    ),
    Implementation(
        "triton",
        triton_sddmm,
        lambda crow, col, left, right: refuses_triton("sddmm", left, refuses_csr(left)),
    ),
    Implementation("torch", torch_sddmm, _refuses_torch),
    Implementation("reference", reference_sddmm, never),
)


def _run(crow: Tensor, col: Tensor, left: Tensor, right: Tensor, *_: Any) -> Tensor:
    run = choose("sddmm", IMPLEMENTATIONS, crow, col, left, right)
    return run(crow, col, left, right)


def _fake(crow: Tensor, col: Tensor, left: Tensor, right: Tensor, *_: Any) -> Tensor:
    return left.new_empty(col.shape[0])


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    crow, col, left, right, t_crow, t_col, t_order = ctx.saved_tensors
    _, _, needs_left, needs_right, *_ = ctx.needs_input_grad
    spmm = torch.ops.gebt.spmm
    grad = grad.contiguous()
    for_left = for_right = None
    if needs_left:
        for_left = spmm(crow, col, grad, right, None, None, None)
    if needs_right:
        if t_order is None:
            raise ValueError("sddmm needs `transpose` for the gradient of `right`.")
        ordered = grad.index_select(0, t_order)
        for_right = spmm(t_crow, t_col, ordered, left, None, None, None)
    return None, None, for_left, for_right, None, None, None


def _flops(crow: Any, col: Any, left: Any, right: Any, *_: Any, **__: Any) -> int:
    return 2 * col[0] * left[1]


_sddmm = register(
    "sddmm(Tensor crow, Tensor col, Tensor left, Tensor right,"
    " Tensor? t_crow, Tensor? t_col, Tensor? t_order) -> Tensor",
    run=_run,
    fake=_fake,
    backward=_backward,
    flops=_flops,
)


def sddmm(
    crow: Tensor,
    col: Tensor,
    left: Tensor,
    right: Tensor,
    transpose: Transpose | None = None,
) -> Tensor:
    """Inner products of rows of ``left`` and ``right`` at the given positions.

    Differentiable once in ``left`` and in ``right``.

    Args:
        crow: (N + 1,) row starts, int32 or int64.
        col: (E,) columns, same dtype.
        left: (N, F).
        right: (M, F), same dtype.
        transpose: as for `spmm`; needed for the gradient of ``right``.

    Returns:
        (E,) values, in the order of ``col``.
    """
    return _sddmm(crow, col, left, right, *(transpose or (None, None, None)))
