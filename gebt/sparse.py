"""Sparse matrices: positions that are built once, values that can be learned.

The adjacency, bag-of-words features and their transposes are all this one type.
A `Pattern` holds positions and everything derived from them (the transpose, the
self-loops, the rows that a loss can see), each built at its first use and kept. A
`SparseMatrix` is a pattern with one value per entry.
"""

from collections.abc import Callable
from functools import cached_property
from threading import Lock
from typing import Any, TypeVar

import torch
from torch import Tensor

from gebt.kernels import spmm
from gebt.kernels._csr import entry_rows

T = TypeVar("T")
_changing = Lock()  # held while what is kept changes
_INT32_MAX = 2**31 - 1
_NEARLY_ALL = 0.9  # above this share of all rows, restricting to them saves nothing


class _Recent(dict[Any, Any]):
    """The results of the last few calls, by key; for any number of threads."""

    def get_or(self, key: Any, build: Callable[[], T]) -> T:
        found = self.get(key, self)
        if found is self:
            # What is kept must serve training too.
            with torch.inference_mode(False):
                found = build()
            with _changing:
                if len(self) >= 8:
                    del self[next(iter(self))]
                self[key] = found
        return found


class Pattern:
    """Positions of a sparse matrix, by compressed rows.

    Args:
        crow: (N + 1,) row starts.
        col: (E,) column of each entry. Both become int32 where that is enough.
        shape: (N, M).
        own: (N,) the column that stands for each row's own node; by default row i
            and column i are the same node.
    """

    def __init__(
        self,
        crow: Tensor,
        col: Tensor,
        shape: tuple[int, int],
        own: Tensor | None = None,
    ):
        fits = max(col.numel(), *shape) <= _INT32_MAX
        dtype = torch.int32 if fits else torch.int64
        self.crow = crow.to(dtype)
        self.col = col.to(dtype)
        self.shape = shape
        self.own = own
        self._recent = _Recent()

    @classmethod
    def from_sorted(cls, row: Tensor, col: Tensor, shape: tuple[int, int]) -> "Pattern":
        """From coordinates that are sorted by row."""
        crow = torch.zeros(shape[0] + 1, dtype=torch.int64, device=row.device)
        torch.cumsum(torch.bincount(row, minlength=shape[0]), 0, out=crow[1:])
        return cls(crow, col, shape)

    @property
    def nnz(self) -> int:
        """E, the number of entries."""
        return self.col.numel()

    @cached_property
    def row(self) -> Tensor:
        """(E,) the row of each entry."""
        with torch.inference_mode(False):
            return entry_rows(self.crow, self.nnz)

    @cached_property
    def edge_index(self) -> Tensor:
        """(2, E) int64, the source and target of each entry, as PyG has it."""
        with torch.inference_mode(False):
            return torch.stack([self.col, self.row]).long()

    @cached_property
    def transpose(self) -> tuple[Tensor, Tensor, Tensor]:
        """``(crow, col, order)``; its entry ``e`` is entry ``order[e]`` here."""
        with torch.inference_mode(False):
            col, order = self.col.sort(stable=True)
            row = self.row.index_select(0, order)
            turned = Pattern.from_sorted(col, row, (self.shape[1], self.shape[0]))
            return turned.crow, turned.col, order.to(self.col.dtype)

    def find(self, row: Tensor, col: Tensor) -> Tensor:
        """(K,) int64, where the positions (row, col) are entries; -1 if they are not.

        Args:
            row: (K,) int64.
            col: (K,) int64.
        """
        key, entry = self._sorted_keys
        inside = (row >= 0) & (row < self.shape[0]) & (col >= 0) & (col < self.shape[1])
        wanted = torch.where(inside, row * self.shape[1] + col, -1)
        # Past the last key is what no entry equals.
        place = torch.searchsorted(key, wanted)
        return torch.where(key[place] == wanted, entry[place], -1)

    @cached_property
    def _sorted_keys(self) -> tuple[Tensor, Tensor]:
        with torch.inference_mode(False):
            key, entry = (self.row.long() * self.shape[1] + self.col).sort(stable=True)
            end = key.new_tensor([torch.iinfo(key.dtype).max])
            return torch.cat([key, end]), torch.cat([entry, end])

    def with_diagonal(self) -> tuple["Pattern", Tensor]:
        """This square pattern with (i, i) added at each row's end; places of the old.

        Returns:
            The pattern of E + N entries, and (E,) where each old entry went.
        """
        return self._recent.get_or("diagonal", self._with_diagonal)

    def _with_diagonal(self) -> tuple["Pattern", Tensor]:
        n = self.shape[0]
        each = torch.arange(n, device=self.col.device, dtype=self.col.dtype)
        place = (torch.arange(self.nnz, device=self.col.device) + self.row).long()
        col = self.col.new_empty(self.nnz + n)
        col[place] = self.col
        col[(self.crow[1:] + each).long()] = each
        crow = self.crow + torch.cat([each, each.new_tensor([n])])
        return Pattern(crow, col, self.shape), place

    def repeat(self, times: int) -> "Pattern":
        """The block-diagonal pattern of ``times`` copies, one after the other."""
        return self._recent.get_or(("repeat", times), lambda: self._repeat(times))

    def _repeat(self, times: int) -> "Pattern":
        n, m = self.shape
        each = torch.arange(times, device=self.col.device)[:, None]
        crow = (self.crow[1:] + each * self.nnz).flatten()
        col = (self.col + each * m).flatten()
        own = None if self.own is None else (self.own + each * m).flatten()
        shape = (times * n, times * m)
        return Pattern(torch.cat([crow.new_zeros(1), crow]), col, shape, own)

    def select(self, entries: Tensor) -> "Pattern":
        """The pattern of some entries, given by ascending positions."""
        row = self.row.index_select(0, entries)
        return Pattern.from_sorted(row, self.col.index_select(0, entries), self.shape)

    def rows(self, nodes: Tensor) -> tuple["Pattern", Tensor]:
        """The pattern of some rows, in that order, and (E',) its entries here."""
        return self._recent.get_or(("rows", _Same(nodes)), lambda: self._rows(nodes))

    def _rows(self, nodes: Tensor) -> tuple["Pattern", Tensor]:
        start = self.crow.index_select(0, nodes).long()
        count = self.crow.index_select(0, nodes + 1).long() - start
        crow = torch.cat([count.new_zeros(1), count.cumsum(0)])
        entries = torch.arange(int(crow[-1]), device=crow.device)
        entries += (start - crow[:-1]).repeat_interleave(count)
        col = self.col.index_select(0, entries)
        shape = (nodes.numel(), self.shape[1])
        return Pattern(crow, col, shape), entries.to(self.col.dtype)

    def hops(
        self, nodes: Tensor, depth: int
    ) -> tuple[Tensor | None, list[tuple["Pattern", Tensor | None]]]:
        """The entries that ``depth`` products with this square matrix read.

        Args:
            nodes: (R,) the rows wanted of the last product.
            depth: how many times the matrix is applied.

        Returns:
            The rows of the first product's input that are read (None: all), and
            per product, first one first, a pattern over just the rows that it must
            compute and reads, with its entries' places here (None: all). A product
            reads at least the nodes whose rows it computes, at ``own``.
        """
        key = ("hops", _Same(nodes), depth)
        return self._recent.get_or(key, lambda: self._hops(nodes, depth))

    def _hops(
        self, nodes: Tensor, depth: int
    ) -> tuple[Tensor | None, list[tuple["Pattern", Tensor | None]]]:
        blocks: list[tuple[Pattern, Tensor | None]] = []
        wanted: Tensor | None = nodes
        for _ in range(depth):
            if wanted is None:
                blocks.append((self, None))
                continue
            block, entries = self._rows(wanted)
            read = torch.unique(torch.cat([block.col.long(), wanted]))
            if read.numel() < _NEARLY_ALL * self.shape[1]:
                place = torch.empty(self.shape[1], dtype=block.col.dtype)
                place = place.to(read.device)
                place[read] = torch.arange(
                    read.numel(), device=read.device, dtype=place.dtype
                )
                shape = (wanted.numel(), read.numel())
                own = place[wanted].long()
                block = Pattern(block.crow, place[block.col], shape, own)
                wanted = read
            else:
                block = Pattern(block.crow, block.col, block.shape, wanted)
                wanted = None
            blocks.append((block, entries))
        return wanted, blocks[::-1]

    def to(self, device: torch.device | str) -> "Pattern":
        """A copy on another device."""
        own = None if self.own is None else self.own.to(device)
        return Pattern(self.crow.to(device), self.col.to(device), self.shape, own)


class _Same:
    """A dictionary key that is equal only for the very same tensor, unchanged."""

    def __init__(self, tensor: Tensor):
        self.tensor = tensor
        self.version = None if tensor.is_inference() else tensor._version

    def __hash__(self) -> int:
        return id(self.tensor)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, _Same)
            and other.tensor is self.tensor
            and other.version == self.version
        )


class SparseMatrix:
    """A sparse matrix (N, M): ``matrix @ x`` is differentiable in values and in x.

    Args:
        pattern: the positions.
        value: (E,) floating; may require gradients.
        weight: (E,) which part of each value, as a factor, is the data's own edge
            weight; None where that is 1.
    """

    def __init__(self, pattern: Pattern, value: Tensor, weight: Tensor | None = None):
        if value.shape != (pattern.nnz,):
            raise ValueError(
                f"`value` must have one entry for each of the {pattern.nnz} positions, "
                f"got shape {tuple(value.shape)}."
            )
        self.pattern = pattern
        self.value = value
        self.weight = weight
        self._recent = _Recent()

    @classmethod
    def from_coo(
        cls, row: Tensor, col: Tensor, value: Tensor, shape: tuple[int, int]
    ) -> "SparseMatrix":
        """From coordinates in any order; repeated positions add up in products.

        Args:
            row: (E,) integers in [0, N).
            col: (E,) integers in [0, M).
            value: (E,) floating, differentiable.
            shape: (N, M).
        """
        for name, index, size in (("row", row, shape[0]), ("col", col, shape[1])):
            if index.shape != value.shape or index.is_floating_point():
                raise ValueError(
                    f"`{name}` must be integers of the shape of `value`, "
                    f"{tuple(value.shape)}; got {index.dtype} {tuple(index.shape)}."
                )
            if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < size:
                raise ValueError(
                    f"`{name}` must lie in [0, {size}), got "
                    f"{int(index.min())} to {int(index.max())}."
                )
        order = (row.long() * shape[1] + col).argsort(stable=True)
        pattern = Pattern.from_sorted(row[order].long(), col[order], shape)
        return cls(pattern, value.index_select(0, order))

    @classmethod
    def from_dense(cls, dense: Tensor) -> "SparseMatrix":
        """The non-zero entries of a dense matrix."""
        row, col = dense.nonzero(as_tuple=True)
        shape = (dense.shape[0], dense.shape[1])
        return cls(Pattern.from_sorted(row, col, shape), dense[row, col])

    @property
    def shape(self) -> tuple[int, int]:
        """(N, M)."""
        return self.pattern.shape

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the values."""
        return self.value.dtype

    @property
    def device(self) -> torch.device:
        """Where the values are."""
        return self.value.device

    def __repr__(self) -> str:
        n, m = self.shape
        return f"SparseMatrix({n} x {m}, {self.pattern.nnz} entries, {self.dtype})"

    def __matmul__(self, x: Tensor) -> Tensor:
        if x.dim() != 2 or x.shape[0] != self.shape[1]:
            raise ValueError(
                f"a sparse matrix of shape {self.shape} multiplies a tensor of shape "
                f"({self.shape[1]}, F), got {tuple(x.shape)}."
            )
        if x.dtype != self.dtype:
            raise ValueError(
                f"the sparse matrix is {self.dtype}, the tensor {x.dtype}. "
                "Convert one of them."
            )
        differentiates_x = torch.is_grad_enabled() and x.requires_grad
        transpose = self.pattern.transpose if differentiates_x else None
        pattern = self.pattern
        return spmm(pattern.crow, pattern.col, self.value, x.contiguous(), transpose)

    def with_value(self, value: Tensor) -> "SparseMatrix":
        """The same positions with other values (E,)."""
        return SparseMatrix(self.pattern, value, self.weight)

    def without_weight(self) -> "SparseMatrix":
        """The matrix of the factors beside the data's own edge weights.

        Such a factor is 1 where the edge weight is 0: nothing is known of it.
        """
        if self.weight is None:
            return self
        known = self.weight != 0
        factor = self.value / self.weight.where(known, 1)
        return SparseMatrix(self.pattern, factor.where(known, 1))

    def detach(self) -> "SparseMatrix":
        """The same matrix with constant values."""
        return self.with_value(self.value.detach())

    def derived(self, key: Any, build: Callable[[], T]) -> T:
        """``build()``, kept with this matrix as long as its values are constant."""
        if self.value.requires_grad or self.value.is_inference():
            return build()
        return self._recent.get_or((key, self.value._version), build)

    @property
    def own(self) -> Tensor | None:
        """(N,) the column that stands for each row's own node; None: row i for i."""
        return self.pattern.own

    def at_rows(self, v: Tensor) -> Tensor:
        """(E, ...) of each entry, what ``v`` (M, ...) has for its row's node."""
        if self.own is not None:
            v = v.index_select(0, self.own)
        return v.index_select(0, self.pattern.row)

    def at_columns(self, v: Tensor) -> Tensor:
        """(E, ...) of each entry, what ``v`` (M, ...) has for its column's node."""
        return v.index_select(0, self.pattern.col)

    def row_counts(self) -> Tensor:
        """(N,) the number of entries in each row."""
        return self.pattern.crow.diff()

    def repeat(self, times: int) -> "SparseMatrix":
        """The block-diagonal matrix of ``times`` copies, one after the other."""
        return SparseMatrix(self.pattern.repeat(times), self.value.repeat(times))

    def row_sum_of_magnitudes(self) -> Tensor:
        """(N,) the sum of |value| over each row: the degrees of an adjacency."""
        total = self.value.new_zeros(self.shape[0])
        return total.index_add(0, self.pattern.row, self.value.abs())

    def with_diagonal(self) -> "SparseMatrix":
        """This square matrix with an entry 1 added on each diagonal position."""
        pattern, place = self.pattern.with_diagonal()
        ones = self.value.new_ones(pattern.nnz)
        return SparseMatrix(pattern, ones.index_copy(0, place, self.value))

    def select(self, keep: Tensor) -> "SparseMatrix":
        """Only the entries that a boolean mask (E,) keeps."""
        entries = keep.nonzero().squeeze(1)
        value, weight = self.value.index_select(0, entries), self.weight
        if weight is not None:
            weight = weight.index_select(0, entries)
        return SparseMatrix(self.pattern.select(entries), value, weight)

    def select_columns(self, keep: Tensor) -> "SparseMatrix":
        """Only the columns that a boolean mask (M,) keeps, renumbered."""
        number = keep.cumsum(0) - 1
        kept = self.select(keep[self.pattern.col])
        shape = (self.shape[0], int(keep.sum()))
        pattern = Pattern(kept.pattern.crow, number[kept.pattern.col], shape)
        return SparseMatrix(pattern, kept.value)

    def rows(self, nodes: Tensor) -> "SparseMatrix":
        """The rows at ``nodes`` (R,), in that order."""

        def build() -> SparseMatrix:
            pattern, entries = self.pattern.rows(nodes)
            return SparseMatrix(pattern, self.value.index_select(0, entries))

        return self.derived(("rows", _Same(nodes)), build)

    def hops(
        self, nodes: Tensor | None, depth: int
    ) -> tuple[Tensor | None, list["SparseMatrix"]]:
        """``depth`` factors whose product gives the rows ``nodes`` of the power.

        With the returned ``read, factors``, ``(A @ A @ x)[nodes]`` equals
        ``factors[1] @ (factors[0] @ x[read])``, and no row is computed that
        nothing reads. This is how a model computes only what a loss looks at.

        Args:
            nodes: (R,) the rows wanted; None for all.
            depth: how many times the matrix is applied.

        Returns:
            The rows of ``x`` that are read (None: all of them) and the factors.
        """
        if nodes is None:
            return None, [self] * depth

        def build() -> tuple[Tensor | None, list[SparseMatrix]]:
            read, blocks = self.pattern.hops(nodes, depth)
            return read, [
                SparseMatrix(pattern, self.value.index_select(0, entries))
                if entries is not None
                else self
                for pattern, entries in blocks
            ]

        return self.derived(("hops", _Same(nodes), depth), build)

    def to_dense(self) -> Tensor:
        """(N, M) dense, for small matrices and tests."""
        dense = self.value.new_zeros(self.shape)
        at = (self.pattern.row.long(), self.pattern.col.long())
        return dense.index_put(at, self.value, accumulate=True)

    def to(self, device: torch.device | str) -> "SparseMatrix":
        """A copy on another device."""
        weight = None if self.weight is None else self.weight.to(device)
        return SparseMatrix(self.pattern.to(device), self.value.to(device), weight)
