"""CPU loops that numba compiles; imported at the first call that wants them.

Compiled once for each dtype, then cached on disk. A row is summed by one thread in a
fixed order, so results do not depend on the number of threads. Rows of the dense
operand are fetched some entries ahead: a graph's columns are as good as random, and
without that the loops wait for memory most of the time.
"""

from math import exp
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, prange, types
from numba.core import cgutils
from numba.extending import intrinsic

from gebt.kernels.hashing import COLUMN, FIRST, SECOND

_AHEAD = 8  # entries; 4 to 16 are about as good


def _prefetch(typing_context: Any, array: Any, row: Any, column: Any) -> Any:
    """Ask for the cache line of ``array[row, column]``; nothing waits for it."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        given = context.make_array(array)(context, builder, args[0])
        kinds = zip(args[1:], signature.args[1:], strict=True)
        place = [context.cast(builder, v, kind, types.intp) for v, kind in kinds]
        pointer = cgutils.get_item_pointer(
            context, builder, array, given, place, wraparound=False
        )
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        prefetch = cgutils.get_or_insert_function(
            builder.module, kind, "llvm.prefetch.p0"
        )
        read, keep, data = (ir.Constant(number, value) for value in (0, 3, 1))
        builder.call(prefetch, [builder.bitcast(pointer, byte), read, keep, data])
        return context.get_dummy_value()

    return types.void(array, row, column), generate


_fetch: Any = intrinsic(_prefetch)


@njit(parallel=True, fastmath=True, cache=True, nogil=True)
def spmm(crow: Any, col: Any, value: Any, x: Any, out: Any) -> None:
    """``out[i] = sum of value[e] * x[col[e]]`` over the entries of row i."""
    width, last, line = x.shape[1], col.size - 1, 64 // x.itemsize
    for i in prange(crow.size - 1):
        for f in range(width):
            out[i, f] = 0
        for e in range(crow[i], crow[i + 1]):
            later = col[min(e + _AHEAD, last)]
            for f in range(0, width, line):
                _fetch(x, later, f)
            weight, j = value[e], col[e]
            for f in range(width):
                out[i, f] += weight * x[j, f]


@njit(parallel=True, fastmath=True, cache=True, nogil=True)
def sddmm(crow: Any, col: Any, left: Any, right: Any, out: Any) -> None:
    """``out[e] = <left[i], right[col[e]]>`` over the entries of row i."""
    width, last, line = right.shape[1], col.size - 1, 64 // right.itemsize
    for i in prange(crow.size - 1):
        for e in range(crow[i], crow[i + 1]):
            later = col[min(e + _AHEAD, last)]
            for f in range(0, width, line):
                _fetch(right, later, f)
            j = col[e]
            total = right.dtype.type(0)
            for f in range(width):
                total += left[i, f] * right[j, f]
            out[e] = total


@njit(parallel=True, fastmath=True, cache=True, nogil=True)
def propagate(
    crow: Any,
    col: Any,
    value: Any,
    left: Any,
    right: Any,
    nodes: Any,
    place: Any,
    loops: Any,
    x: Any,
    out: Any,
) -> None:
    """``out[r] = left[i] * (sum of value[e] * right[j] * x[j] + right[i] * x[i])``.

    Over the entries of row i = nodes[r]; node j is row place[j] of x. Empty arrays are
    factors of 1, and all nodes in order.
    """
    width, last, line = x.shape[1], col.size - 1, 64 // x.itemsize
    own = loops.item()
    for r in prange(out.shape[0]):
        i = np.int64(nodes[r]) if nodes.size else np.int64(r)
        at = np.int64(place[i]) if place.size else i
        weight = own * right[i] if right.size else own
        for f in range(width):
            out[r, f] = weight * x[at, f] if own else own
        for e in range(crow[i], crow[i + 1]):
            later = np.int64(col[min(e + _AHEAD, last)])
            if place.size:
                later = np.int64(place[later])
            if later >= 0:
                for f in range(0, width, line):
                    _fetch(x, later, f)
            j = np.int64(col[e])
            weight = value[e] * right[j] if right.size else value[e]
            at = np.int64(place[j]) if place.size else j
            for f in range(width):
                out[r, f] += weight * x[at, f]
        if left.size:
            weight = left[i]
            for f in range(width):
                out[r, f] *= weight


@njit(parallel=True, fastmath=True, cache=True, nogil=True)
def propagate_backward(
    crow: Any,
    col: Any,
    link: Any,
    value: Any,
    left: Any,
    right: Any,
    nodes: Any,
    place: Any,
    loops: Any,
    x: Any,
    grad: Any,
    both: Any,
    own_dot: Any,
    out: Any,
) -> None:
    """The gradient for x of `propagate` with a symmetric matrix, and inner products.

    Row s of x is node i = nodes[s], node j is row place[j] of the gradient, or none of
    them where that is negative. Each entry's ``<grad[j], x[i]>`` goes to
    ``both[link, 0]``, if j > i, else to ``both[link, 1]``; ``own_dot[i] = <grad[i],
    x[i]>``. Without links there are no inner products, without ``out`` no gradient.
    """
    width, last, line = x.shape[1], col.size - 1, 64 // x.itemsize
    own = loops.item()
    for s in prange(x.shape[0]):
        i = np.int64(nodes[s]) if nodes.size else np.int64(s)
        at = np.int64(place[i]) if place.size else i
        if out.size:
            weight = own * left[i] if left.size else own
            for f in range(width):
                out[s, f] = weight * grad[at, f] if own and at >= 0 else own - own
        if link.size and at >= 0:
            total = x.dtype.type(0)
            for f in range(width):
                total += grad[at, f] * x[s, f]
            own_dot[i] = total
        for e in range(crow[i], crow[i + 1]):
            later = np.int64(col[min(e + _AHEAD, last)])
            if place.size:
                later = np.int64(place[later])
            if later >= 0:
                for f in range(0, width, line):
                    _fetch(grad, later, f)
            if link.size:
                _fetch(both, np.int64(link[min(e + 2 * _AHEAD, last)]), 0)
            j = np.int64(col[e])
            at = np.int64(place[j]) if place.size else j
            if at >= 0:
                if link.size:
                    total = x.dtype.type(0)
                    for f in range(width):
                        total += grad[at, f] * x[s, f]
                    both[np.int64(link[e]), 0 if j > i else 1] = total
                if out.size:
                    weight = value[e] * left[j] if left.size else value[e]
                    for f in range(width):
                        out[s, f] += weight * grad[at, f]
        if out.size and right.size:
            weight = right[i]
            for f in range(width):
                out[s, f] *= weight


@njit(parallel=True, fastmath=True, cache=True, nogil=True)
def propagate_links(
    crow: Any,
    col: Any,
    link: Any,
    base: Any,
    value: Any,
    left: Any,
    right: Any,
    loops: Any,
    both: Any,
    own_dot: Any,
    for_left: Any,
    for_right: Any,
    for_factor: Any,
) -> None:
    """From the inner products of `propagate_backward` all gradients but that for x."""
    last, own = col.size - 1, loops.item()
    one = own_dot.dtype.type(1)
    for i in prange(crow.size - 1):
        lefts = left[i] if left.size else one
        rights = right[i] if right.size else one
        to_left, to_right = own * rights * own_dot[i], own * lefts * own_dot[i]
        for e in range(crow[i], crow[i + 1]):
            _fetch(both, np.int64(link[min(e + 2 * _AHEAD, last)]), 0)
            j, k = np.int64(col[e]), np.int64(link[e])
            above = 1 if j > i else 0
            theirs, ours = both[k, 1 - above], both[k, above]
            their_left = left[j] if left.size else one
            their_right = right[j] if right.size else one
            # theirs is <grad[j], x[i]>, of the message from i; ours that from j.
            to_right += value[e] * their_left * theirs
            to_left += value[e] * their_right * ours
            if above:
                there = their_left * rights * theirs
                for_factor[k] = base[e] * (there + lefts * their_right * ours)
        if left.size:
            for_left[i] = to_left
        if right.size:
            for_right[i] = to_right


@njit(parallel=True, cache=True, nogil=True)
def votes(crow: Any, col: Any, label: Any, large: Any, numbers: Any, out: Any) -> None:
    """Per row the most frequent label, see `gebt.sparse.order`."""
    salt, odd = np.uint64(numbers[0]), np.uint64(numbers[1])
    bits, of_lot, most = numbers[2], numbers[3], numbers[4]
    down = np.uint64(64 - of_lot)
    for i in prange(crow.size - 1):
        start, stop = np.int64(crow[i]), np.int64(crow[i + 1])
        near = np.empty(stop - start, np.int64)
        for e in range(start, stop):
            near[e - start] = label[col[e]]
        near.sort()
        best, k = np.int64(0), 0
        while k < near.size:
            here, first = near[k], k
            while k < near.size and near[k] == here:
                k += 1
            count = 0 if large[here] else min(k - first, most)
            lot = np.uint64(np.int64(i) << bits | here) * odd + salt
            lot = (lot ^ (lot >> np.uint64(32))) * odd >> down
            vote = (count << of_lot | np.int64(lot)) << bits | here
            best = max(best, vote)
        out[i] = best & ((1 << bits) - 1)


@njit(parallel=True, cache=True, nogil=True)
def row_magnitudes(crow: Any, value: Any, out: Any) -> None:
    """``out[i] = sum of |value[e]|`` over the entries of row i."""
    for i in prange(crow.size - 1):
        total = value.dtype.type(0)
        for e in range(crow[i], crow[i + 1]):
            total += abs(value[e])
        out[i] = total


@njit(parallel=True, cache=True, nogil=True)
def row_magnitudes_backward(
    crow: Any, col: Any, link: Any, base: Any, value: Any, grad: Any, out: Any
) -> None:
    """The gradient for each link's factor, at its entry above the diagonal."""
    for i in prange(crow.size - 1):
        for e in range(crow[i], crow[i + 1]):
            j = np.int64(col[e])
            if j > i:
                both = grad[i] + grad[j]
                out[np.int64(link[e])] = base[e] * np.sign(value[e]) * both


@njit(parallel=True, cache=True, nogil=True)
def edge_softmax(crow: Any, score: Any, out: Any) -> None:
    """Softmax over the entries of each row."""
    for i in prange(crow.size - 1):
        start, stop = crow[i], crow[i + 1]
        if start < stop:
            top = score[start:stop].max()
            total = score[start] - score[start]
            for e in range(start, stop):
                out[e] = exp(score[e] - top)
                total += out[e]
            for e in range(start, stop):
                out[e] /= total


@njit(parallel=True, cache=True, nogil=True)
def edge_softmax_backward(crow: Any, weight: Any, grad: Any, out: Any) -> None:
    """``out[e] = weight[e] * (grad[e] - sum of weight * grad over the row)``."""
    for i in prange(crow.size - 1):
        start, stop = crow[i], crow[i + 1]
        if start < stop:
            total = weight[start] * grad[start]
            for e in range(start + 1, stop):
                total += weight[e] * grad[e]
            for e in range(start, stop):
                out[e] = weight[e] * (grad[e] - total)


@njit(parallel=True, cache=True, nogil=True)
def dropout(x: Any, keys: Any, numbers: Any, scale: Any, out: Any) -> None:
    """``x`` times ``scale`` where the hash of `kernels.dropout` is large, else times 0.

    ``numbers`` are the seed, and from where on a hash is large.
    """
    seed, least, factor = numbers[0], numbers[1], scale.item()
    for i in prange(x.shape[0]):
        key = keys[i] ^ seed
        for f in range(x.shape[1]):
            # As `entry_hashes`; numba's own product of int32 would have 64 bits.
            h = np.int32(np.int32(key + f * COLUMN) * FIRST)
            h = np.int32((h ^ ((h >> 15) & 0x1FFFF)) * SECOND)
            out[i, f] = x[i, f] * (factor if h >= least else factor - factor)


_BLOCK = 64


@njit(parallel=True, fastmath=True, cache=True, nogil=True)
def times_sparse(x: Any, crow: Any, col: Any, value: Any, bias: Any, out: Any) -> None:
    """``out[i, j] = bias[j] + sum of value[e] * x[i, col[e]]`` over the entries of j.

    64 rows at a time, transposed: one weight then multiplies 64 numbers side by side.
    Four weights a pass, so that the sums are loaded and stored a quarter as often.
    """
    n, inputs = x.shape
    outputs = crow.size - 1
    for block in prange((n + _BLOCK - 1) // _BLOCK):
        start = block * _BLOCK
        rows = min(_BLOCK, n - start)
        turned = np.zeros((inputs, _BLOCK), x.dtype)
        sums = np.empty((outputs, _BLOCK), x.dtype)
        total = np.empty(_BLOCK, x.dtype)
        for f in range(inputs):
            for i in range(rows):
                turned[f, i] = x[start + i, f]
        for j in range(outputs):
            for i in range(_BLOCK):
                total[i] = bias[j]
            e, stop = crow[j], crow[j + 1]
            while e + 4 <= stop:
                a, b, c, d = col[e], col[e + 1], col[e + 2], col[e + 3]
                va, vb, vc, vd = value[e], value[e + 1], value[e + 2], value[e + 3]
                for i in range(_BLOCK):
                    total[i] += (
                        va * turned[a, i]
                        + vb * turned[b, i]
                        + vc * turned[c, i]
                        + vd * turned[d, i]
                    )
                e += 4
            while e < stop:
                a, va = col[e], value[e]
                for i in range(_BLOCK):
                    total[i] += va * turned[a, i]
                e += 1
            for i in range(_BLOCK):
                sums[j, i] = total[i]
        for i in range(rows):
            for j in range(outputs):
                out[start + i, j] = sums[j, i]
