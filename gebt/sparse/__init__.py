"""Sparse matrices: positions that are built once, values that can be learned."""

from gebt.sparse.matrix import SparseMatrix
from gebt.sparse.pattern import Pattern
from gebt.sparse.scaled import Scaled

__all__ = ["Pattern", "Scaled", "SparseMatrix"]
