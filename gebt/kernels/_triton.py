"""GPU kernels in Triton; imported at the first call that wants them.

A program takes one row of the matrix and walks over its entries in tiles: gather the
rows of the dense operand that they name, add them up, multiply them with the row's
own. A row of more than `LONG` entries would keep one program busy long after all
others are done, so it only leaves its number at the chunks of `LONG` entries that it
overlaps; a second kernel walks over those, a third adds up what it found, in order.
There are no atomics: results repeat bit for bit. Nothing waits for the GPU.

Sums are in float32, in float64 for float64. Offsets are int64: E * F may be large.
Triton's interpreter (TRITON_INTERPRET=1) runs the same kernels on CPU, for tests.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

LONG = 256
"""Entries above which a row is cut into chunks of as many."""
_WIDEST = 256  # columns a program takes; a wider operand is cut
_TILE = 1024  # numbers that a warp holds at once, 32 in each lane
_SUMS = 512  # where it holds as many sums beside them: more wait for registers
_MOST_ENTRIES = 32  # of a tile: most rows of a graph are shorter
_MARKS = 128  # chunks that a long row marks at once


@triton.jit
def _walk(
    row: tl.tensor,
    start: tl.tensor,
    stop: tl.tensor,
    f: tl.tensor,
    col: tl.tensor,
    order: tl.tensor,
    value: tl.tensor,
    x: tl.tensor,
    own: tl.tensor,
    dot: tl.tensor,
    F: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_F: tl.constexpr,
    SUM: tl.constexpr,
) -> tl.tensor:
    """Columns ``f`` of the sum of value * x[col] over entries start to stop.

    On the way, ``dot[e] = <own[row], x[col[e]]>`` over these columns. Without
    ``value`` the sum is zero, without ``dot`` there are no inner products, and with
    ``order`` entry e has its value and inner product at ``order[e]``.
    """
    wide = f < F
    total = tl.zeros((BLOCK_E, BLOCK_F), dtype=SUM)
    if dot is not None:
        mine = tl.load(own + row * F + f, mask=wide, other=0).to(SUM)
    for first in range(start, stop, BLOCK_E):
        e = first + tl.arange(0, BLOCK_E)
        inside = e < stop
        j = tl.load(col + e, mask=inside, other=0).to(tl.int64)
        both = inside[:, None] & wide[None, :]
        theirs = tl.load(x + j[:, None] * F + f[None, :], mask=both, other=0).to(SUM)
        place = e
        if order is not None:
            place = tl.load(order + e, mask=inside, other=0).to(tl.int64)
        if value is not None:
            weight = tl.load(value + place, mask=inside, other=0).to(SUM)
            total += weight[:, None] * theirs
        if dot is not None:
            product = tl.sum(theirs * mine[None, :], axis=1)
            tl.store(dot + place, product.to(dot.dtype.element_ty), mask=inside)
    return tl.sum(total, axis=0)


@triton.jit
def _rows(
    crow: tl.tensor,
    col: tl.tensor,
    order: tl.tensor,
    value: tl.tensor,
    x: tl.tensor,
    own: tl.tensor,
    out: tl.tensor,
    dot: tl.tensor,
    owner: tl.tensor,
    entries: tl.tensor,
    F: tl.constexpr,
    CHUNK: tl.constexpr,
    MARKS: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_F: tl.constexpr,
    SUM: tl.constexpr,
) -> None:
    """Program (row, block of columns): the row, if it is not long."""
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1).to(tl.int64)
    start = tl.load(crow + row).to(tl.int64)
    stop = tl.load(crow + row + 1).to(tl.int64)
    if owner is not None:
        if stop - start > CHUNK:
            # Piece 2c of chunk c is of the row that it begins with, piece 2c + 1 of
            # one that starts later and is long, so goes on into the next chunk.
            for first in range(start // CHUNK, (stop - 1) // CHUNK + 1, MARKS):
                chunk = first + tl.arange(0, MARKS)
                piece = 2 * chunk + tl.where(chunk * CHUNK < start, 1, 0)
                tl.store(owner + piece, row.to(tl.int32), mask=chunk * CHUNK < stop)
            stop = start
    f = block * BLOCK_F + tl.arange(0, BLOCK_F)
    if dot is not None:
        dot += block * entries
    total = _walk(
        row, start, stop, f, col, order, value, x, own, dot, F, BLOCK_E, BLOCK_F, SUM
    )
    if out is not None:
        tl.store(out + row * F + f, total.to(out.dtype.element_ty), mask=f < F)


@triton.jit
def _pieces(
    crow: tl.tensor,
    col: tl.tensor,
    order: tl.tensor,
    value: tl.tensor,
    x: tl.tensor,
    own: tl.tensor,
    carry: tl.tensor,
    dot: tl.tensor,
    owner: tl.tensor,
    entries: tl.tensor,
    F: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_F: tl.constexpr,
    SUM: tl.constexpr,
) -> None:
    """Program (piece, block of columns): what of a long row lies in one chunk."""
    piece = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1).to(tl.int64)
    row = tl.load(owner + piece).to(tl.int64)
    if row >= 0:
        begin = piece // 2 * CHUNK
        start = tl.maximum(tl.load(crow + row).to(tl.int64), begin)
        stop = tl.minimum(tl.load(crow + row + 1).to(tl.int64), begin + CHUNK)
        f = block * BLOCK_F + tl.arange(0, BLOCK_F)
        if dot is not None:
            dot += block * entries
        total = _walk(
            row,
            start,
            stop,
            f,
            col,
            order,
            value,
            x,
            own,
            dot,
            F,
            BLOCK_E,
            BLOCK_F,
            SUM,
        )
        if carry is not None:
            tl.store(carry + piece * F + f, total, mask=f < F)


@triton.jit
def _finish(
    crow: tl.tensor,
    owner: tl.tensor,
    carry: tl.tensor,
    out: tl.tensor,
    F: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_F: tl.constexpr,
    SUM: tl.constexpr,
) -> None:
    """Program (piece, block of columns): the long row whose first piece it is."""
    piece = tl.program_id(0).to(tl.int64)
    row = tl.load(owner + piece).to(tl.int64)
    if row >= 0:
        chunk = piece // 2
        if tl.load(crow + row) // CHUNK == chunk:
            count = (tl.load(crow + row + 1).to(tl.int64) - 1) // CHUNK - chunk + 1
            f = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
            total = tl.zeros((BLOCK_E, BLOCK_F), dtype=SUM)
            for first in range(0, count, BLOCK_E):
                k = first + tl.arange(0, BLOCK_E)
                at = tl.where(k == 0, piece, 2 * (chunk + k))
                both = (k < count)[:, None] & (f < F)[None, :]
                total += tl.load(
                    carry + at[:, None] * F + f[None, :], mask=both, other=0
                )
            found = tl.sum(total, axis=0)
            tl.store(out + row * F + f, found.to(out.dtype.element_ty), mask=f < F)


@triton.jit
def _softmax(
    crow: tl.tensor,
    score: tl.tensor,
    out: tl.tensor,
    n: tl.tensor,
    ROWS: tl.constexpr,
    SHORT: tl.constexpr,
    TILE: tl.constexpr,
    SUM: tl.constexpr,
) -> None:
    """Program: the short ones of its rows at once, the others one after the other."""
    begin = tl.program_id(0).to(tl.int64) * ROWS
    row = begin + tl.arange(0, ROWS)
    start = tl.load(crow + row, mask=row < n, other=0).to(tl.int64)
    stop = tl.load(crow + row + 1, mask=row < n, other=0).to(tl.int64)
    length = stop - start
    short = (length > 0) & (length <= SHORT)
    e = start[:, None] + tl.arange(0, SHORT)[None, :]
    inside = (e < stop[:, None]) & short[:, None]
    given = tl.load(score + e, mask=inside, other=float("-inf")).to(SUM)
    # Where there is nothing: neither -inf - (-inf) nor 0 / 0.
    top = tl.where(short, tl.max(given, axis=1), 0.0)
    weight = tl.exp(given - top[:, None])
    total = tl.where(short, tl.sum(weight, axis=1), 1.0)
    share = weight / total[:, None]
    tl.store(out + e, share.to(out.dtype.element_ty), mask=inside)
    if tl.max(length, axis=0) > SHORT:
        for i in range(begin, tl.minimum(begin + ROWS, n)):
            first = tl.load(crow + i).to(tl.int64)
            last = tl.load(crow + i + 1).to(tl.int64)
            if last - first > SHORT:
                _softmax_of_long_row(first, last, score, out, TILE, SUM)


@triton.jit
def _softmax_of_long_row(
    start: tl.tensor,
    stop: tl.tensor,
    score: tl.tensor,
    out: tl.tensor,
    TILE: tl.constexpr,
    SUM: tl.constexpr,
) -> None:
    tops = tl.full((TILE,), float("-inf"), dtype=SUM)
    for first in range(start, stop, TILE):
        e = first + tl.arange(0, TILE)
        given = tl.load(score + e, mask=e < stop, other=float("-inf")).to(SUM)
        tops = tl.maximum(tops, given)
    top = tl.max(tops, axis=0)
    totals = tl.zeros((TILE,), dtype=SUM)
    for first in range(start, stop, TILE):
        e = first + tl.arange(0, TILE)
        given = tl.load(score + e, mask=e < stop, other=float("-inf")).to(SUM)
        totals += tl.exp(given - top)
    total = tl.sum(totals, axis=0)
    for first in range(start, stop, TILE):
        e = first + tl.arange(0, TILE)
        given = tl.load(score + e, mask=e < stop, other=float("-inf")).to(SUM)
        share = tl.exp(given - top) / total
        tl.store(out + e, share.to(out.dtype.element_ty), mask=e < stop)


@triton.jit
def _softmax_backward(
    crow: tl.tensor,
    weight: tl.tensor,
    grad: tl.tensor,
    out: tl.tensor,
    n: tl.tensor,
    ROWS: tl.constexpr,
    SHORT: tl.constexpr,
    TILE: tl.constexpr,
    SUM: tl.constexpr,
) -> None:
    """Program: as `_softmax`."""
    begin = tl.program_id(0).to(tl.int64) * ROWS
    row = begin + tl.arange(0, ROWS)
    start = tl.load(crow + row, mask=row < n, other=0).to(tl.int64)
    stop = tl.load(crow + row + 1, mask=row < n, other=0).to(tl.int64)
    length = stop - start
    e = start[:, None] + tl.arange(0, SHORT)[None, :]
    inside = (e < stop[:, None]) & (length <= SHORT)[:, None]
    share = tl.load(weight + e, mask=inside, other=0).to(SUM)
    push = tl.load(grad + e, mask=inside, other=0).to(SUM)
    pull = share * (push - tl.sum(share * push, axis=1)[:, None])
    tl.store(out + e, pull.to(out.dtype.element_ty), mask=inside)
    if tl.max(length, axis=0) > SHORT:
        for i in range(begin, tl.minimum(begin + ROWS, n)):
            first = tl.load(crow + i).to(tl.int64)
            last = tl.load(crow + i + 1).to(tl.int64)
            if last - first > SHORT:
                _backward_of_long_row(first, last, weight, grad, out, TILE, SUM)


@triton.jit
def _backward_of_long_row(
    start: tl.tensor,
    stop: tl.tensor,
    weight: tl.tensor,
    grad: tl.tensor,
    out: tl.tensor,
    TILE: tl.constexpr,
    SUM: tl.constexpr,
) -> None:
    totals = tl.zeros((TILE,), dtype=SUM)
    for first in range(start, stop, TILE):
        e = first + tl.arange(0, TILE)
        share = tl.load(weight + e, mask=e < stop, other=0).to(SUM)
        totals += share * tl.load(grad + e, mask=e < stop, other=0).to(SUM)
    total = tl.sum(totals, axis=0)
    for first in range(start, stop, TILE):
        e = first + tl.arange(0, TILE)
        share = tl.load(weight + e, mask=e < stop, other=0).to(SUM)
        push = tl.load(grad + e, mask=e < stop, other=0).to(SUM)
        pull = share * (push - total)
        tl.store(out + e, pull.to(out.dtype.element_ty), mask=e < stop)


INTERPRETED = not any(isinstance(f, triton.JITFunction) for f in (tl.sum, _rows))
"""Whether these kernels, and what they use of Triton's, run in its interpreter."""


def spmm(
    crow: Tensor, col: Tensor, value: Tensor, x: Tensor, out: Tensor, long: int = LONG
) -> None:
    """``out[i] = sum of value[e] * x[col[e]]`` over the entries of row i."""
    _launch(crow, col, x, value=value, out=out, long=long)


def sddmm(
    crow: Tensor,
    col: Tensor,
    left: Tensor,
    right: Tensor,
    out: Tensor,
    long: int = LONG,
) -> None:
    """``out[e] = <left[i], right[col[e]]>`` over the entries of row i."""
    _launch(crow, col, right, own=left, dot=out, long=long)


def spmm_backward(
    crow: Tensor,
    col: Tensor,
    order: Tensor | None,
    value: Tensor,
    x: Tensor,
    grad: Tensor,
    for_value: Tensor,
    for_x: Tensor,
    long: int = LONG,
) -> None:
    """Both gradients of an spmm in one pass over its transpose's entries.

    Row j of the transpose gathers ``grad[i]`` once, for ``for_x[j]``, the sum of
    ``value * grad[i]``, and for ``for_value = <grad[i], x[j]>`` of the entry (i, j),
    whose place is ``order[e]``; without an order its own here.
    """
    given = {"order": order, "value": value, "own": x}
    _launch(crow, col, grad, **given, out=for_x, dot=for_value, long=long)


def _launch(
    crow: Tensor,
    col: Tensor,
    x: Tensor,
    *,
    long: int,
    order: Tensor | None = None,
    value: Tensor | None = None,
    own: Tensor | None = None,
    out: Tensor | None = None,
    dot: Tensor | None = None,
) -> None:
    n, entries, width = crow.numel() - 1, col.numel(), x.shape[1]
    block = min(triton.next_power_of_2(max(width, 1)), _WIDEST)
    blocks = triton.cdiv(width, block)
    sums = torch.promote_types(x.dtype, torch.float32)
    dots = dot
    if dot is not None and blocks != 1:  # each block of columns has its own
        dots = x.new_empty(blocks, entries, dtype=sums)
    owner = carry = None
    pieces = 0
    if entries > long:
        pieces = 2 * triton.cdiv(entries, long)
        owner = torch.full((pieces,), -1, dtype=torch.int32, device=x.device)
        if out is not None:
            carry = x.new_empty(pieces, width, dtype=sums)

    numbers = _TILE if out is None else _SUMS

    def tile(warps: int) -> dict[str, Any]:
        shape = {
            "BLOCK_E": warps * min(numbers // block, _MOST_ENTRIES),
            "BLOCK_F": block,
        }
        return {"F": width, "CHUNK": long, **shape, **_options(x, warps)}

    if n and blocks:
        first, last = (crow, col, order, value, x, own), (dots, owner, entries)
        with torch.cuda.device_of(x):
            _rows[(n, blocks)](*first, out, *last, MARKS=_MARKS, **tile(1))
            if pieces:
                _pieces[(pieces, blocks)](*first, carry, *last, **tile(4))
            if carry is not None:
                _finish[(pieces, blocks)](crow, owner, carry, out, **tile(4))
    if dot is not None and dots is not None and dots is not dot:
        dot.copy_(dots.sum(dim=0))


def _options(x: Tensor, warps: int) -> dict[str, Any]:
    """What every kernel is compiled with."""
    sums = tl.float64 if x.dtype == torch.float64 else tl.float32
    # Triton 3.10 will fuse no multiplication with an addition unless it is told to.
    return {"SUM": sums, "num_warps": warps, "enable_fp_fusion": True}


def edge_softmax(crow: Tensor, score: Tensor, out: Tensor) -> None:
    """Softmax over the entries of each row."""
    _launch_softmax(_softmax, crow, score, out)


def edge_softmax_backward(
    crow: Tensor, weight: Tensor, grad: Tensor, out: Tensor
) -> None:
    """``out[e] = weight[e] * (grad[e] - sum of weight * grad over the row)``."""
    _launch_softmax(_softmax_backward, crow, weight, grad, out)


def _launch_softmax(kernel: Any, crow: Tensor, *operands: Tensor) -> None:
    n, entries = crow.numel() - 1, operands[0].numel()
    if entries == 0:
        return
    # Most rows of a graph have fewer than twice the mean of entries.
    twice = triton.next_power_of_2(2 * triton.cdiv(entries, n))
    short = min(max(twice, 16), _TILE)
    rows = _TILE // short
    shape = {"ROWS": rows, "SHORT": short, "TILE": _TILE}
    with torch.cuda.device_of(operands[0]):
        grid = (triton.cdiv(n, rows),)
        kernel[grid](crow, *operands, n, **shape, **_options(operands[0], 4))
