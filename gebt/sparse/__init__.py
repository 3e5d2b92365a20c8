"""Sparse matrices: positions that are built once, values that can be learned."""

from gebt.sparse.matrix import SparseMatrix
from gebt.sparse.pattern import Pattern

__all__ = ["Pattern", "SparseMatrix"]
