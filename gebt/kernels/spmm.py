"""SpMM: a sparse matrix times a dense one, ``out[i] = sum_e value[e] * x[col[e]]``.

The matrix is given by compressed rows: entry ``e`` of row ``i`` lies in
``crow[i] <= e < crow[i + 1]``. The gradient for ``x`` is the same product with
the transpose, whose rows the caller passes so that they are built once; the
gradient for ``value`` is an SDDMM. Memory is O(E + N F), never N x N or E x F.
"""

from typing import Any

import torch
from torch import Tensor

from gebt.kernels._choose import (
    Implementation,
    asked_by_name,
    choose,
    compiled,
    installed,
    never,
    refuses_csr,
    refuses_numba,
    refuses_triton,
)
from gebt.kernels._csr import Transpose, csr, entry_rows
from gebt.kernels._register import observed, register
from gebt.kernels.sddmm import sddmm


def reference_spmm(crow: Tensor, col: Tensor, value: Tensor, x: Tensor) -> Tensor:
    """The truth: one message per entry, added up at its row."""
    out = x.new_zeros(crow.numel() - 1, x.shape[1])
    return out.index_add(0, entry_rows(crow, col.numel()), value[:, None] * x[col])


def torch_spmm(crow: Tensor, col: Tensor, value: Tensor, x: Tensor) -> Tensor:
    """Torch's CSR product (MKL on CPU, cuSPARSE on CUDA)."""
    if col.numel() == 0 or x.shape[1] == 0:
        return x.new_zeros(crow.numel() - 1, x.shape[1])
    return csr(crow, col, value, x.shape[0]) @ x


def bag_spmm(crow: Tensor, col: Tensor, value: Tensor, x: Tensor) -> Tensor:
    """A row is a weighted bag of rows of ``x``: torch's `embedding_bag`.

    Its CPU kernel is compiled for the width at run time. Against MKL's CSR product:
    1 to 1.7 times as fast on Cora with 7 to 16 columns, 2 to 4 times with more
    columns or on 2.3 million entries.
    """
    # Detached: for operands that take gradients torch also builds what its own
    # backward would read.
    x, value = x.detach(), value.detach()
    return torch.embedding_bag(x, col, crow, False, 0, False, value, True)[0]


def numba_spmm(crow: Tensor, col: Tensor, value: Tensor, x: Tensor) -> Tensor:
    """Compiled loops over rows that fetch ahead."""
    out = x.new_empty(crow.numel() - 1, x.shape[1])
    compiled("spmm", crow, col, value, x, out)
    return out


def triton_spmm(crow: Tensor, col: Tensor, value: Tensor, x: Tensor) -> Tensor:
    """A program per row; repeats bit for bit."""
    from gebt.kernels import _triton

    out = x.new_empty(crow.numel() - 1, x.shape[1])
    _triton.spmm(crow, col, value.contiguous(), x.contiguous(), out)
    return out


def torch_sparse_spmm(crow: Tensor, col: Tensor, value: Tensor, x: Tensor) -> Tensor:
    """The compiled operation of the torch-sparse package; wants int64 positions."""
    import torch_sparse  # noqa: F401  (registers the operation)

    run = torch.ops.torch_sparse.spmm_sum
    # Detached: its own backward, which would read a transpose, does not run.
    value, x = value.detach(), x.detach()
    return run(None, crow.long(), col.long(), value, None, None, x)


def _refuses_torch_sparse(*args: Tensor) -> str | None:
    if not asked_by_name():
        return "it was slower than torch's own kernels wherever it was measured"
    if not installed("torch_sparse"):
        return "torch-sparse is not installed: pip install 'gebt[ext]'"
    return None


def _refuses_bag(crow: Tensor, col: Tensor, value: Tensor, x: Tensor) -> str | None:
    if not x.is_cpu or x.dtype != torch.float32:
        return f"embedding_bag is fast for float32 on CPU, not {x.dtype} on {x.device}"
    if col.numel() == 0 or x.shape[1] == 0:
        return "embedding_bag needs at least one entry and one column"
    return None


IMPLEMENTATIONS = (
    Implementation("bag", bag_spmm, _refuses_bag),
    Implementation(
        "numba",
        numba_spmm,
        lambda crow, col, value, x: refuses_numba(x, col.numel()),
    ),
    Implementation(
        "triton",
        triton_spmm,
        lambda crow, col, value, x: refuses_triton("spmm", x, refuses_csr(x)),
    ),
    Implementation("torch", torch_spmm, lambda crow, col, value, x: refuses_csr(x)),
    Implementation("torch-sparse", torch_sparse_spmm, _refuses_torch_sparse),
    Implementation("reference", reference_spmm, never),
)


def _run(crow: Tensor, col: Tensor, value: Tensor, x: Tensor, *_: Any) -> Tensor:
    run = choose("spmm", IMPLEMENTATIONS, crow, col, value, x)
    return run(crow, col, value, x)


def _fake(crow: Tensor, col: Tensor, value: Tensor, x: Tensor, *_: Any) -> Tensor:
    return x.new_empty(crow.shape[0] - 1, x.shape[1])


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    crow, col, value, x, t_crow, t_col, t_order, t_value = ctx.saved_tensors
    _, _, needs_value, needs_x, *_ = ctx.needs_input_grad
    grad = grad.contiguous()
    for_value = for_x = None
    if needs_value and needs_x and t_order is not None and not observed():
        run = choose("spmm", IMPLEMENTATIONS, t_crow, t_col, value, grad)
        if run is triton_spmm:
            both = triton_backward(t_crow, t_col, t_order, value, x, grad)
            return None, None, *both, None, None, None, None
    if needs_value:
        for_value = sddmm(crow, col, grad, x)
    if needs_x:
        if t_order is None:
            raise ValueError("spmm needs `transpose` for the gradient of `x`.")
        if t_value is None:
            t_value = value.index_select(0, t_order)
        for_x = spmm(t_crow, t_col, t_value, grad)
    return None, None, for_value, for_x, None, None, None, None


def triton_backward(
    crow: Tensor, col: Tensor, order: Tensor, value: Tensor, x: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients for ``value`` and ``x`` from one pass over the transpose.

    An sddmm and an spmm would gather as many rows each.
    """
    from gebt.kernels import _triton

    value, x = value.contiguous(), x.contiguous()
    both = torch.empty_like(value), torch.empty_like(x)
    _triton.spmm_backward(crow, col, order, value, x, grad, *both)
    return both


def _flops(crow: Any, col: Any, value: Any, x: Any, *_: Any, **__: Any) -> int:
    return 2 * col[0] * x[1]


_spmm = register(
    "spmm(Tensor crow, Tensor col, Tensor value, Tensor x,"
    " Tensor? t_crow, Tensor? t_col, Tensor? t_order, Tensor? t_value=None) -> Tensor",
    run=_run,
    fake=_fake,
    backward=_backward,
    flops=_flops,
)


def spmm(
    crow: Tensor,
    col: Tensor,
    value: Tensor,
    x: Tensor,
    transpose: Transpose | None = None,
    transposed: Tensor | None = None,
) -> Tensor:
    """Multiply a sparse matrix (N, M) by a dense one (M, F).

    Differentiable once in ``value`` and in ``x``.

    Args:
        crow: (N + 1,) row starts, int32 or int64.
        col: (E,) columns, same dtype.
        value: (E,) entries, same dtype as ``x``.
        x: (M, F).
        transpose: ``(crow, col, order)`` of the transposed matrix, entry ``e`` of
            which is entry ``order[e]`` of this one; needed for ``x``'s gradient.
        transposed: (E,) the entries in the transpose's order, ``value[order]``, where
            they are constant and known: a backward gathers them otherwise.

    Returns:
        (N, F).
    """
    return _spmm(crow, col, value, x, *(transpose or (None, None, None)), transposed)
