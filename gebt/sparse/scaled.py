"""A matrix between two diagonal ones that is never written out."""

from typing import Any, Self

from torch import Tensor

from gebt.kernels import Part
from gebt.sparse.matrix import SparseMatrix


class Scaled:
    """``diag(left) (A + I) diag(right)``, or A alone in the middle: for products only.

    Where A is large that saves a second pattern, with the diagonal, and a second set
    of values. A product is written with A's own, so that A may be spread over ranks;
    gradients reach its values and, where they depend on them, both scales.

    Args:
        matrix: A (N, M), or anything that multiplies as a `SparseMatrix` does and has
            its ``shape``, ``dtype``, ``own``, ``nodes``, ``of_nodes`` and ``hops``.
        left: (N,) factors of the rows, None for 1.
        right: (M,) factors of the columns, None for 1.
        loops: with I: each row adds its own node as a link of weight 1 would.
        part: which rows and columns are meant, of an A that is its own transpose.
    """

    def __init__(
        self,
        matrix: Any,
        left: Tensor | None = None,
        right: Tensor | None = None,
        *,
        loops: bool,
        part: Part | None = None,
    ):
        self.matrix = matrix
        self.left = left
        self.right = right
        self.loops = loops
        self.part = part

    @property
    def shape(self) -> tuple[int, int]:
        """(N, M)."""
        n, m = self.matrix.shape
        if self.part is None:
            return n, m
        rows, columns = self.part.rows, self.part.columns
        return (
            n if rows is None else rows.numel(),
            m if columns is None else columns.numel(),
        )

    @property
    def dtype(self) -> Any:
        """The dtype of the values."""
        return self.matrix.dtype

    @property
    def own(self) -> Tensor | None:
        """(N,) the column that stands for each row's own node; None: row i for i."""
        part = self.part
        if part is None or part.rows is None:
            return self.matrix.own
        if part.column_place is None:
            return part.rows
        return part.column_place.index_select(0, part.rows)

    @property
    def nodes(self) -> Tensor | None:
        """(N,) which of the graph's nodes each row is; None: row i is node i."""
        if self.part is None or self.part.rows is None:
            return self.matrix.nodes
        return self.of_nodes(self.part.rows)

    def of_nodes(self, rows: Tensor) -> Tensor:
        """(R,) which of the graph's nodes some rows of A are."""
        return self.matrix.of_nodes(rows)

    def __matmul__(self, x: Tensor) -> Tensor:
        if self.part is not None or self._fused():
            how: Any = {"loops": self.loops, "part": self.part or Part()}
            return self.matrix.propagate(self.left, self.right, x, **how)
        if self.right is not None:
            x = self.right[:, None] * x
        out = self.matrix @ x
        if self.loops:
            out = out.add_(x if self.own is None else x.index_select(0, self.own))
        return out if self.left is None else self.left[:, None] * out

    def _fused(self) -> bool:
        """Whether one kernel multiplies by all three."""
        return isinstance(self.matrix, SparseMatrix) and self.matrix.fused

    def hops(
        self, nodes: Tensor | None, depth: int
    ) -> tuple[Tensor | None, list[Self]]:
        """`SparseMatrix.hops`, with the factors of the rows and columns that are left.

        Args:
            nodes: (R,) the rows wanted; None for all.
            depth: how many times the matrix is applied.
        """
        if nodes is not None and self._fused() and nodes.unique().numel() == len(nodes):
            read, parts = self.matrix.reach(nodes, depth)
            of = self.matrix, self.left, self.right
            return read, [type(self)(*of, loops=self.loops, part=p) for p in parts]
        read, blocks = self.matrix.hops(nodes, depth)
        factors, columns = [], read
        for block in blocks:
            rows = columns
            if block.own is not None:
                rows = block.own if columns is None else columns[block.own]
            left, right = _at(self.left, rows), _at(self.right, columns)
            factors.append(type(self)(block, left, right, loops=self.loops))
            columns = rows
        return read, factors


def _at(factors: Tensor | None, nodes: Tensor | None) -> Tensor | None:
    """A scale at some nodes, or at all; there may be none."""
    if factors is None or nodes is None:
        return factors
    return factors.index_select(0, nodes)
