"""Propagation: a symmetric matrix between two diagonal ones, times a dense one.

``out = diag(left) (A + I) diag(right) x``, with I or without. A is its own transpose,
``A[i, j] = base * factor[link]``, and the two entries of a link are above and below
the diagonal. So the backward gathers each row of the gradient once for both
directions' inner products and for the gradient of x, and needs no transpose. Nothing
but the values is as large as the entries.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gebt.kernels._choose import (
    Implementation,
    asked_by_name,
    choose,
    compiled,
    never,
    refuses_numba,
    refuses_triton,
)
from gebt.kernels._csr import entry_rows
from gebt.kernels._register import observed
from gebt.kernels.sddmm import sddmm
from gebt.kernels.spmm import spmm

_LARGE = 30_000_000
"""Entries from which memory counts more than time. A search's epoch of 20 million, 64
columns, two threads, in turns with products written out: a third less memory, 2.5 GiB
against 3.7, and a tenth to a quarter more time, 3.9 to 4.5 s against 3.5 to 3.7. A
plain epoch takes half as much time again."""
_MOST = 0.3
"""Share of rows from which gathering zeros for the others is faster than asking for
each entry whether its row is one of them: with 54% 1.45 s, not 1.86, on 20 million."""


@dataclass(frozen=True, eq=False)
class Links:
    """A symmetric matrix (N, N) by its links.

    Attributes:
        crow: (N + 1,) row starts.
        col: (E,) columns.
        value: (E,) ``base * factor[link]``, constant for autograd.
        link: (E,) of each entry, or None where there are no factors.
        base: (E,) constant.
    """

    crow: Tensor
    col: Tensor
    value: Tensor
    link: Tensor | None = None
    base: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Part:
    """Only some rows of the product, from only some rows of x.

    Attributes:
        rows: (R,) the nodes wanted; None for all.
        row_place: (N,) int32, which of these a node is, or -1; None for all.
        columns: (S,) the nodes of x; None for all.
        column_place: (N,) as row_place.
    """

    rows: Tensor | None = None
    row_place: Tensor | None = None
    columns: Tensor | None = None
    column_place: Tensor | None = None


WHOLE = Part()


def propagate_pays(value: Tensor, entries: int | None = None) -> bool:
    """Whether the compiled loops run, and are faster than products written out.

    Args:
        value: (E,) of a matrix.
        entries: of the whole matrix, where this is of one rank's rows.
    """
    if asked_by_name() or observed():
        return False
    entries = value.numel() if entries is None else entries
    return refuses_numba(value, entries, least=_LARGE) is None


def reference_propagate(
    links: Links,
    left: Tensor | None,
    right: Tensor | None,
    loops: bool,
    part: Part,
    x: Tensor,
) -> Tensor:
    """The truth: all rows, by the product with the matrix."""
    x = _spread(x, part.columns, links)
    if right is not None:
        x = right[:, None] * x
    out = spmm(links.crow, links.col, links.value, x)
    if loops:
        out = out + x
    if left is not None:
        out = left[:, None] * out
    return out if part.rows is None else out.index_select(0, part.rows)


def numba_propagate(
    links: Links,
    left: Tensor | None,
    right: Tensor | None,
    loops: bool,
    part: Part,
    x: Tensor,
) -> Tensor:
    """Compiled loops over the rows that are wanted."""
    rows = links.crow.numel() - 1 if part.rows is None else part.rows.numel()
    out = x.new_empty(rows, x.shape[1])
    scales = _or_empty(x, left, right)
    maps = _or_empty(links.col, part.rows, part.column_place)
    matrix = links.crow, links.col, links.value
    own = x.new_tensor(float(loops))
    compiled("propagate", *matrix, *scales, *maps, own, x.contiguous(), out)
    return out


Gradients = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]
"""For left, right, factor and x."""


def reference_backward(
    links: Links,
    left: Tensor | None,
    right: Tensor | None,
    loops: bool,
    part: Part,
    x: Tensor,
    grad: Tensor,
    factors: int,
    needs_x: bool,
) -> Gradients:
    """The truth: one inner product per entry, added up at its link."""
    of_x = _spread(x, part.columns, links)
    grad = _spread(grad, part.rows, links)
    after = grad if left is None else left[:, None] * grad
    before = of_x if right is None else right[:, None] * of_x
    pull = spmm(links.crow, links.col, links.value, after)
    push = spmm(links.crow, links.col, links.value, before)
    if loops:
        pull, push = pull + after, push + before
    for_left = for_right = for_factor = None
    if links.link is not None and links.base is not None:
        inner = sddmm(links.crow, links.col, after, before)
        for_factor = x.new_zeros(factors)
        for_factor.index_add_(0, links.link, links.base * inner)
        for_left = None if left is None else (grad * push).sum(dim=1)
        for_right = None if right is None else (of_x * pull).sum(dim=1)
    for_x = pull if right is None else right[:, None] * pull
    if part.columns is not None:
        for_x = for_x.index_select(0, part.columns)
    return for_left, for_right, for_factor, for_x if needs_x else None


def numba_backward(
    links: Links,
    left: Tensor | None,
    right: Tensor | None,
    loops: bool,
    part: Part,
    x: Tensor,
    grad: Tensor,
    factors: int,
    needs_x: bool,
) -> Gradients:
    """One loop that gathers the gradient's rows, and one over numbers alone.

    Each inner product has a place of its own, so results repeat bit for bit.
    """
    learned = links.link is not None and links.base is not None
    rows, place = part.rows, part.row_place
    if rows is not None and rows.numel() > _MOST * (links.crow.numel() - 1):
        grad, place = _spread(grad, rows, links), None
    link, base = _or_empty(links.col, links.link)[0], _or_empty(x, links.base)[0]
    scales = _or_empty(x, left, right)
    own = x.new_tensor(float(loops))
    both = x.new_zeros(factors if learned else 0, 2)
    own_dot = x.new_zeros(links.crow.numel() - 1 if learned else 0)
    for_x = torch.empty_like(x) if needs_x else x.new_empty(0, 0)
    compiled(
        "propagate_backward",
        *(links.crow, links.col, link, links.value),
        *scales,
        *_or_empty(links.col, part.columns, place),
        *(own, x, grad, both, own_dot, for_x),
    )
    if not learned:
        return None, None, None, for_x if needs_x else None
    for_left, for_right = (torch.empty_like(scale) for scale in scales)
    for_factor = x.new_zeros(factors)
    compiled(
        "propagate_links",
        *(links.crow, links.col, link, base, links.value),
        *(*scales, own, both, own_dot, for_left, for_right, for_factor),
    )
    return (
        None if left is None else for_left,
        None if right is None else for_right,
        for_factor,
        for_x if needs_x else None,
    )


def triton_propagate(
    links: Links,
    left: Tensor | None,
    right: Tensor | None,
    loops: bool,
    part: Part,
    x: Tensor,
) -> Tensor:
    """Triton's product with the matrix, scaled before and after."""
    from gebt.kernels import _triton

    x = x.contiguous() if right is None else right[:, None] * x
    out = torch.empty_like(x)
    _triton.spmm(links.crow, links.col, links.value, x, out)
    if loops:
        out += x
    return out if left is None else out.mul_(left[:, None])


def triton_backward(
    links: Links,
    left: Tensor | None,
    right: Tensor | None,
    loops: bool,
    part: Part,
    x: Tensor,
    grad: Tensor,
    factors: int,
    needs_x: bool,
) -> Gradients:
    """One pass gathers the gradient's rows; of two addends a sum repeats bit for bit.

    The pass for both gradients of a product, over the transpose, which A is itself.
    """
    from gebt.kernels import _triton

    before = x if right is None else right[:, None] * x
    after = grad if left is None else left[:, None] * grad
    inner, pull = torch.empty_like(links.value), torch.empty_like(x)
    csr = links.crow, links.col
    _triton.spmm_backward(*csr, None, links.value, before, after, inner, pull)
    if loops:
        pull += after
    for_left = for_right = for_factor = None
    if links.link is not None and links.base is not None:
        for_factor = x.new_zeros(factors)
        for_factor.index_add_(0, links.link, links.base * inner)
        if left is not None:
            push = torch.empty_like(x)
            _triton.spmm(*csr, links.value, before, push)
            for_left = (grad * (push.add_(before) if loops else push)).sum(dim=1)
        if right is not None:
            for_right = (x * pull).sum(dim=1)
    for_x = (pull if right is None else pull.mul_(right[:, None])) if needs_x else None
    return for_left, for_right, for_factor, for_x


def _refuses_triton(
    links: Links, left: Any, right: Any, loops: Any, part: Part, x: Tensor, *_: Any
) -> str | None:
    if part.rows is not None or part.columns is not None:
        return "its kernels compute all rows"
    return refuses_triton("propagate", x, None)


def _spread(x: Tensor, nodes: Tensor | None, links: Links) -> Tensor:
    """(N, F) with zeros where there are no rows."""
    if nodes is None:
        return x
    whole = x.new_zeros(links.crow.numel() - 1, x.shape[1])
    return whole.index_copy(0, nodes.long(), x)


def _or_empty(like: Tensor, *given: Tensor | None) -> list[Tensor]:
    return [like.new_empty(0) if t is None else t for t in given]


def _refuses_numba(links: Links, *args: Any) -> str | None:
    return refuses_numba(args[4], links.col.numel(), least=0)  # it pays or is not asked


IMPLEMENTATIONS = (
    Implementation("numba", numba_propagate, _refuses_numba),
    Implementation("triton", triton_propagate, _refuses_triton),
    Implementation("torch", reference_propagate, never),
    Implementation("reference", reference_propagate, never),
)
BACKWARDS = (
    Implementation("numba", numba_backward, _refuses_numba),
    Implementation("triton", triton_backward, _refuses_triton),
    Implementation("torch", reference_backward, never),
    Implementation("reference", reference_backward, never),
)


class _Propagate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        links: Links,
        loops: bool,
        part: Part,
        left: Tensor | None,
        right: Tensor | None,
        factor: Tensor | None,
        x: Tensor,
    ) -> Tensor:
        args = links, left, right, loops, part, x
        ctx.save_for_backward(left, right, x)
        ctx.given = links, loops, part, 0 if factor is None else factor.numel()
        return choose("propagate", IMPLEMENTATIONS, *args)(*args)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        left, right, x = ctx.saved_tensors
        links, loops, part, factors = ctx.given
        args = links, left, right, loops, part, x.contiguous(), grad.contiguous()
        needs_x = ctx.needs_input_grad[-1]
        run = choose("propagate", BACKWARDS, *args)
        return None, None, None, *run(*args, factors, needs_x)


def propagate(
    links: Links,
    left: Tensor | None,
    right: Tensor | None,
    factor: Tensor | None,
    x: Tensor,
    *,
    loops: bool,
    part: Part = WHOLE,
) -> Tensor:
    """Multiply ``diag(left) (A + I) diag(right)`` by a dense matrix (N, F).

    Differentiable once in ``left``, ``right``, ``factor`` and ``x``.

    Args:
        links: the symmetric matrix A.
        left: (N,) factors of rows; None for 1.
        right: (N,) factors of columns; None for 1.
        factor: (L,) of the links' values, for its gradient; None where the values are
            constant, and then left and right must be, too.
        x: (N, F), or (S, F) of a part.
        loops: with I.
        part: which rows are wanted, and which of x there are.

    Returns:
        (N, F), or (R, F) of a part.
    """
    return _Propagate.apply(links, loops, part, left, right, factor, x)


def reference_magnitudes(links: Links) -> Tensor:
    """The truth: |value| of every entry, added up at its row."""
    total = links.value.new_zeros(links.crow.numel() - 1)
    row = entry_rows(links.crow, links.col.numel())
    return total.index_add(0, row, links.value.abs())


def numba_magnitudes(links: Links) -> Tensor:
    """One compiled loop."""
    out = links.value.new_empty(links.crow.numel() - 1)
    compiled("row_magnitudes", links.crow, links.value, out)
    return out


def reference_magnitudes_backward(links: Links, factors: int, grad: Tensor) -> Tensor:
    """The truth: what comes back to every entry, added up at its link."""
    assert links.link is not None and links.base is not None
    row = entry_rows(links.crow, links.col.numel())
    each = links.base * links.value.sign() * grad.index_select(0, row)
    return grad.new_zeros(factors).index_add_(0, links.link, each)


def numba_magnitudes_backward(links: Links, factors: int, grad: Tensor) -> Tensor:
    """One compiled loop; of both directions at once."""
    assert links.link is not None and links.base is not None
    out = grad.new_zeros(factors)
    arrays = links.crow, links.col, links.link, links.base, links.value
    compiled("row_magnitudes_backward", *arrays, grad, out)
    return out


def _refuses_magnitudes(links: Links, *args: Any) -> str | None:
    return refuses_numba(links.value, links.col.numel(), least=0)


MAGNITUDES = (
    Implementation("numba", numba_magnitudes, _refuses_magnitudes),
    Implementation("torch", reference_magnitudes, never),
    Implementation("reference", reference_magnitudes, never),
)
MAGNITUDES_BACKWARDS = (
    Implementation("numba", numba_magnitudes_backward, _refuses_magnitudes),
    Implementation("torch", reference_magnitudes_backward, never),
    Implementation("reference", reference_magnitudes_backward, never),
)


class _Magnitudes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, links: Links, factor: Tensor) -> Tensor:
        ctx.given = links, factor.numel()
        return choose("row_magnitudes", MAGNITUDES, links)(links)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        args = *ctx.given, grad.contiguous()
        return None, choose("row_magnitudes", MAGNITUDES_BACKWARDS, *args)(*args)


def row_magnitudes(links: Links, factor: Tensor) -> Tensor:
    """(N,) the sum of |value| over each row: the degrees.

    Differentiable once in ``factor`` (L,).
    """
    return _Magnitudes.apply(links, factor)
