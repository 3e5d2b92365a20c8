"""Sparse operations: a plain reference beside every fast version."""

from gebt.kernels._choose import backend
from gebt.kernels.dropout import Dropped, dropout, lazy_dropout
from gebt.kernels.edge_softmax import edge_softmax
from gebt.kernels.propagate import (
    Links,
    Part,
    propagate,
    propagate_pays,
    row_magnitudes,
)
from gebt.kernels.sddmm import sddmm
from gebt.kernels.spmm import spmm
from gebt.kernels.times_sparse import times_sparse, times_sparse_pays

__all__ = [
    "Dropped",
    "Links",
    "Part",
    "backend",
    "dropout",
    "edge_softmax",
    "lazy_dropout",
    "propagate",
    "propagate_pays",
    "row_magnitudes",
    "sddmm",
    "spmm",
    "times_sparse",
    "times_sparse_pays",
]
