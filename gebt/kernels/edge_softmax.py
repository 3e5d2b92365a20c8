"""Edge softmax: a softmax over the entries of each row of a sparse matrix.

``out[e] = exp(score[e]) / sum of exp(score) over the entries of e's row``: how graph
attention turns scores of edges into weights. Memory is O(E).
"""

from typing import Any

import torch
from torch import Tensor

from gebt.kernels._choose import (
    Implementation,
    choose,
    compiled,
    never,
    refuses_numba,
    refuses_triton,
)
from gebt.kernels._csr import entry_rows
from gebt.kernels._register import register


def reference_edge_softmax(crow: Tensor, score: Tensor) -> Tensor:
    """The truth: one dense softmax per row."""
    rows = score.split(crow.diff().tolist())
    # With an empty part before them: there may be no rows.
    return torch.cat([score[:0], *(row.softmax(dim=0) for row in rows)])


def torch_edge_softmax(crow: Tensor, score: Tensor) -> Tensor:
    """From torch's segments, shifted by each row's largest score."""
    row = entry_rows(crow, score.numel())
    top = torch.segment_reduce(score, "max", offsets=crow)
    weight = (score - top.index_select(0, row)).exp_()
    total = torch.zeros_like(top).index_add_(0, row, weight)
    return weight.div_(total.index_select(0, row))


def numba_edge_softmax(crow: Tensor, score: Tensor) -> Tensor:
    """One compiled loop over rows."""
    out = torch.empty_like(score)
    compiled("edge_softmax", crow, score.contiguous(), out)
    return out


def triton_edge_softmax(crow: Tensor, score: Tensor) -> Tensor:
    """Several short rows to a program."""
    from gebt.kernels import _triton

    out = torch.empty_like(score)
    _triton.edge_softmax(crow, score.contiguous(), out)
    return out


def _refuses_numba(crow: Tensor, score: Tensor, *_: Tensor) -> str | None:
    return refuses_numba(score, score.numel())


def _refuses_triton(crow: Tensor, score: Tensor, *_: Tensor) -> str | None:
    return refuses_triton("edge_softmax", score, None)


IMPLEMENTATIONS = (
    Implementation("numba", numba_edge_softmax, _refuses_numba),
    Implementation("triton", triton_edge_softmax, _refuses_triton),
    Implementation("torch", torch_edge_softmax, never),
    Implementation("reference", reference_edge_softmax, never),
)


def _run(crow: Tensor, score: Tensor) -> Tensor:
    return choose("edge_softmax", IMPLEMENTATIONS, crow, score)(crow, score)


def _fake(crow: Tensor, score: Tensor) -> Tensor:
    return torch.empty_like(score)


def torch_backward(crow: Tensor, weight: Tensor, grad: Tensor) -> Tensor:
    """The gradient for the scores, given the softmax."""
    row = entry_rows(crow, weight.numel())
    pull = weight * grad
    total = weight.new_zeros(crow.numel() - 1).index_add_(0, row, pull)
    return pull - weight * total.index_select(0, row)


def numba_backward(crow: Tensor, weight: Tensor, grad: Tensor) -> Tensor:
    """One compiled loop over rows."""
    out = torch.empty_like(weight)
    compiled("edge_softmax_backward", crow, weight, grad.contiguous(), out)
    return out


def triton_backward(crow: Tensor, weight: Tensor, grad: Tensor) -> Tensor:
    """Several short rows to a program."""
    from gebt.kernels import _triton

    out = torch.empty_like(weight)
    _triton.edge_softmax_backward(crow, weight, grad.contiguous(), out)
    return out


BACKWARDS = (
    Implementation("numba", numba_backward, _refuses_numba),
    Implementation("triton", triton_backward, _refuses_triton),
    Implementation("torch", torch_backward, never),
    Implementation("reference", torch_backward, never),
)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    crow, weight = ctx.saved_tensors
    run = choose("edge_softmax", BACKWARDS, crow, weight, grad)
    return None, run(crow, weight, grad)


def _flops(crow: Any, score: Any, **_: Any) -> int:
    return 0  # no products: like torch's own softmax


_edge_softmax = register(
    "edge_softmax(Tensor crow, Tensor score) -> Tensor",
    run=_run,
    fake=_fake,
    backward=_backward,
    flops=_flops,
    saves=lambda inputs, output: (inputs[0], output),
)


def edge_softmax(crow: Tensor, score: Tensor) -> Tensor:
    """Softmax over the entries of each row.

    Differentiable once in ``score``.

    Args:
        crow: (N + 1,) row starts, int32 or int64.
        score: (E,) of the entries, row by row.

    Returns:
        (E,) positive weights that add up to 1 in every row that has entries.
    """
    return _edge_softmax(crow, score)
