"""A pattern with one value per entry: the adjacency, features, transposes."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from gebt.kernels import (
    Links,
    Part,
    propagate,
    propagate_pays,
    row_magnitudes,
    spmm,
)
from gebt.sparse.pattern import Pattern, Recent, Same

T = TypeVar("T")


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
        self._value = value
        self.weight = weight
        self._recent = Recent()

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
    def value(self) -> Tensor:
        """(E,) of each entry."""
        return self._value

    @property
    def factored(self) -> bool:
        """Whether a model had better use `Scaled` than write out scaled values."""
        return self.fused

    @property
    def symmetric(self) -> bool:
        """Whether the matrix is known to be its own transpose.

        Looked up once while the values are constant; where they take gradients a link's
        two directions are known to be equal only after `times`.
        """
        if self._value.requires_grad:
            return False
        return self.derived("symmetric", lambda: self.pattern.mirrors(self._value))

    @property
    def fused(self) -> bool:
        """Whether one kernel multiplies by it and a scale on either side."""
        return propagate_pays(self._value) and self.symmetric

    @property
    def factor(self) -> Tensor | None:
        """(L,) what each link's weight is multiplied with, after `times`."""
        return None

    @property
    def links(self) -> Links:
        """The entries as the kernels of symmetric matrices want them."""
        return Links(self.pattern.crow, self.pattern.col, self._value)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the values."""
        return self._value.dtype

    @property
    def device(self) -> torch.device:
        """Where the values are."""
        return self._value.device

    def __repr__(self) -> str:
        n, m = self.shape
        return f"SparseMatrix({n} x {m}, {self.pattern.nnz} entries, {self.dtype})"

    def __matmul__(self, x: Tensor) -> Tensor:
        if x.dim() != 2 or x.shape[0] != self.shape[1]:
            raise ValueError(
                f"a sparse matrix of shape {self.shape} multiplies a tensor of shape "
                f"({self.shape[1]}, F), got {tuple(x.shape)}."
            )
        if x.dtype != self.dtype and torch.is_autocast_enabled(x.device.type):
            x = x.to(self.dtype)  # as autocast does for what is not done in 16 bits
        if x.dtype != self.dtype:
            raise ValueError(
                f"the sparse matrix is {self.dtype}, the tensor {x.dtype}. "
                "Convert one of them."
            )
        pattern = self.pattern
        transpose = transposed = None
        if torch.is_grad_enabled() and x.requires_grad:
            transpose = pattern.transpose
            if not self.value.requires_grad:
                transposed = self.derived("transposed", self._transposed)
        operands = (pattern.crow, pattern.col, self.value, x.contiguous())
        return spmm(*operands, transpose, transposed)

    def _transposed(self) -> Tensor:
        """(E,) the values in the order of the transpose, kept as each backward asks."""
        return self.value.index_select(0, self.pattern.transpose[2])

    def with_value(self, value: Tensor) -> "SparseMatrix":
        """The same positions with other values (E,)."""
        return SparseMatrix(self.pattern, value, self.weight)

    def times(self, factor: Tensor, link: Tensor) -> "SparseMatrix":
        """Each value times its link's factor, differentiable in these.

        Args:
            factor: (L,) floating.
            link: (E,) integers in [0, L), which link each entry is.
        """
        return _Product(self, factor, link)

    def of_links(self, values: Tensor, link: Tensor) -> Tensor:
        """(E, ...) of each entry, what ``values`` (L, ...) has for its link."""
        # Not values[link]: this gradient repeats bit for bit on several threads.
        return values.index_select(0, link)

    def by_links(self, edge: Tensor, link: Tensor, links: int, how: str) -> Tensor:
        """(L,) from entries (E,), each link's ``"sum"`` or ``"amax"`` and 0."""
        none = edge.new_zeros(links)
        return none.scatter_reduce(0, link.long(), edge, how)

    def propagate(
        self,
        left: Tensor | None,
        right: Tensor | None,
        x: Tensor,
        *,
        loops: bool,
        part: Part,
    ) -> Tensor:
        """`kernels.propagate`, where this is `fused`."""
        return propagate(
            self.links, left, right, self.factor, x, loops=loops, part=part
        )

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
        parts = self._parts()
        if any(part.requires_grad or part.is_inference() for part in parts):
            return build()
        versions = tuple(part._version for part in parts)
        return self._recent.get_or((key, versions), build)

    def _parts(self) -> tuple[Tensor, ...]:
        """What the values depend on."""
        return (self._value,)

    @property
    def own(self) -> Tensor | None:
        """(N,) the column that stands for each row's own node; None: row i for i."""
        return self.pattern.own

    @property
    def nodes(self) -> Tensor | None:
        """(N,) which of the graph's nodes each row is; None: row i is node i."""
        return self.pattern.nodes

    def of_nodes(self, rows: Tensor) -> Tensor:
        """(R,) which of the graph's nodes some rows are."""
        return self.pattern.of_nodes(rows)

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

        return self.derived(("rows", Same(nodes)), build)

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

        return self.derived(("hops", Same(nodes), depth), build)

    def reach(self, nodes: Tensor, depth: int) -> tuple[Tensor | None, list[Part]]:
        """`Pattern.reach`."""
        return self.pattern.reach(nodes, depth)

    def to_dense(self) -> Tensor:
        """(N, M) dense, for small matrices and tests."""
        dense = self.value.new_zeros(self.shape)
        at = (self.pattern.row.long(), self.pattern.col.long())
        return dense.index_put(at, self.value, accumulate=True)

    def to(self, device: torch.device | str) -> "SparseMatrix":
        """A copy on another device."""
        weight = None if self.weight is None else self.weight.to(device)
        return SparseMatrix(self.pattern.to(device), self.value.to(device), weight)


class _Product(SparseMatrix):
    """Each value times its link's factor, written out when it is asked for.

    A propagation needs the values, but not to differentiate each: that takes as much
    again for every step between the factors and them.
    """

    def __init__(self, matrix: SparseMatrix, factor: Tensor, link: Tensor):
        super().__init__(matrix.pattern, matrix.value, matrix.weight)
        self._matrix = matrix
        self._factor = factor
        self._link = link
        self._differentiable: Tensor | None = None
        self._links: Links | None = None

    @property
    def value(self) -> Tensor:
        """(E,), differentiable in the factors."""
        if self._differentiable is None:
            self._differentiable = self._multiply(self._factor)
        return self._differentiable

    @property
    def symmetric(self) -> bool:
        """Whether the matrix was, and each link's two directions have one factor."""
        return self._matrix.symmetric and self.pattern.pairs(self._link)

    @property
    def factor(self) -> Tensor | None:
        """(L,)."""
        return self._factor

    @property
    def links(self) -> Links:
        """With what each value is the product of."""
        if self._links is None:
            value = self._multiply(self._factor.detach())
            csr = self.pattern.crow, self.pattern.col
            self._links = Links(*csr, value, self._link, self._value)
        return self._links

    def _multiply(self, factor: Tensor) -> Tensor:
        # index_select, not factor[link]: its gradient repeats bit for bit on
        # several threads.
        return self._value * factor.index_select(0, self._link).to(self.dtype)

    def _parts(self) -> tuple[Tensor, ...]:
        return (self._value, self._factor)

    def detach(self) -> SparseMatrix:
        """The same matrix with constant values."""
        return _Product(self._matrix.detach(), self._factor.detach(), self._link)

    def row_sum_of_magnitudes(self) -> Tensor:
        """(N,) the sum of |value| over each row: the degrees of an adjacency."""
        if self.factored:
            return row_magnitudes(self.links, self._factor)
        return super().row_sum_of_magnitudes()
