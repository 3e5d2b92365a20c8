"""A dense matrix times a sparse one, as a pruned weight is: for inference.

The sparse matrix is given by the compressed rows of its transpose: output j reads the
inputs ``col[e]`` with ``crow[j] <= e < crow[j + 1]``.
"""

from typing import Any

import torch
from torch import Tensor

from gebt.kernels._choose import (
    Implementation,
    choose,
    compiled,
    installed,
    never,
    refuses_numba,
)
from gebt.kernels._csr import entry_rows
from gebt.kernels._register import register

_NARROWEST, _DENSEST = 128, 0.15


def times_sparse_pays(weight: Tensor) -> bool:
    """Whether a weight (K, H) is faster as a sparse one.

    Measured against MKL on 169,343 rows, two threads: 1.3 to 1.6 times as fast with 90%
    zeros from (128, 128) to (256, 256), as fast with 80%, slower at (256, 40) and
    (64, 64): ``benchmarks/results/weights-2-threads.csv``.
    """
    if not weight.is_cpu or weight.is_inference():
        return False
    if weight.dtype not in (torch.float32, torch.float64):
        return False
    narrow = min(weight.shape) < _NARROWEST
    dense = weight.count_nonzero() > _DENSEST * weight.numel()
    return not narrow and not dense and installed("numba")


def reference_times_sparse(
    x: Tensor, crow: Tensor, col: Tensor, value: Tensor, bias: Tensor
) -> Tensor:
    """The truth: the matrix written out."""
    weight = value.new_zeros(x.shape[1], crow.numel() - 1)
    place = (col.long(), entry_rows(crow, col.numel()).long())
    return x @ weight.index_put(place, value, accumulate=True) + bias


def numba_times_sparse(
    x: Tensor, crow: Tensor, col: Tensor, value: Tensor, bias: Tensor
) -> Tensor:
    """Compiled loops over blocks of 64 rows, transposed to lie in the cache."""
    out = x.new_empty(x.shape[0], crow.numel() - 1)
    compiled("times_sparse", x.contiguous(), crow, col, value, bias, out)
    return out


def _refuses_numba(x: Tensor, crow: Tensor, *_: Tensor) -> str | None:
    entries = x.shape[0] * (crow.numel() - 1)
    return refuses_numba(x, entries)


IMPLEMENTATIONS = (
    Implementation("numba", numba_times_sparse, _refuses_numba),
    Implementation("torch", reference_times_sparse, never),
    Implementation("reference", reference_times_sparse, never),
)


def _run(*args: Tensor) -> Tensor:
    return choose("times_sparse", IMPLEMENTATIONS, *args)(*args)


def _fake(x: Tensor, crow: Tensor, *_: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], crow.shape[0] - 1)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    raise NotImplementedError("times_sparse is for inference: it has no gradient.")


def _flops(x: Any, crow: Any, col: Any, *_: Any, **__: Any) -> int:
    return 2 * x[0] * col[0]


times_sparse = register(
    "times_sparse(Tensor x, Tensor crow, Tensor col, Tensor value, Tensor bias)"
    " -> Tensor",
    run=_run,
    fake=_fake,
    backward=_backward,
    flops=_flops,
)
times_sparse.__doc__ = """Multiply a dense matrix (N, K) by a sparse one (K, H).

Args:
    x: (N, K) dense.
    crow: (H + 1,) where each output's entries begin, as `Pattern` has them.
    col: (E,) which input each entry reads.
    value: (E,) of the sparse matrix.
    bias: (H,) added to every row.

Returns:
    (N, H) dense. It has no gradient: it is for inference.
"""
