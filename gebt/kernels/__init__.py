"""Sparse operations: a plain reference beside every fast version."""

from gebt.kernels._choose import backend
from gebt.kernels.sddmm import sddmm
from gebt.kernels.spmm import spmm

__all__ = ["backend", "sddmm", "spmm"]
