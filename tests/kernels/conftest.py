"""Run Triton's kernels in its interpreter where there is no GPU to run them."""

import os
from importlib.metadata import version
from importlib.util import find_spec

import torch


def interpreter_runs() -> bool:
    """Whether Triton is here and its interpreter fits NumPy.

    Until 3.6 it takes arrays of one element for numbers, which NumPy deprecates and
    from 2.4 on refuses.
    """
    if find_spec("triton") is None:
        return False
    return tuple(map(int, version("triton").split(".")[:2])) >= (3, 7)


if not torch.cuda.is_available() and interpreter_runs():
    # Read when Triton is imported, which `gebt.kernels` does by way of torch.
    os.environ.setdefault("TRITON_INTERPRET", "1")
