"""Run Triton's kernels in its interpreter where there is no GPU to run them."""

import os
from importlib.metadata import version
from importlib.util import find_spec

import torch


def interpreter_runs() -> bool:
    """Whether Triton is here and its interpreter fits NumPy.

    Triton 3.6's takes arrays of one element for numbers, which NumPy 2.4 refuses;
    3.7's does not.
    """
    if find_spec("triton") is None:
        return False
    triton, numpy = (
        tuple(map(int, version(name).split(".")[:2])) for name in ("triton", "numpy")
    )
    return triton >= (3, 7) or numpy < (2, 4)


if not torch.cuda.is_available() and interpreter_runs():
    # Read when Triton is imported, which `gebt.kernels` does by way of torch.
    os.environ.setdefault("TRITON_INTERPRET", "1")
