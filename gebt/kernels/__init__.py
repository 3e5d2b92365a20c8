"""Sparse operations: a plain reference beside every fast version."""

from gebt.kernels._choose import backend
from gebt.kernels.dropout import dropout
from gebt.kernels.edge_softmax import edge_softmax
from gebt.kernels.sddmm import sddmm
from gebt.kernels.spmm import spmm
from gebt.kernels.times_sparse import times_sparse, times_sparse_pays

__all__ = [
    "backend",
    "dropout",
    "edge_softmax",
    "sddmm",
    "spmm",
    "times_sparse",
    "times_sparse_pays",
]
