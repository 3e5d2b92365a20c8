"""Run Triton's kernels in its interpreter where there is no GPU to run them."""

import os

import torch

if not torch.cuda.is_available():
    # Read when Triton is imported, which `gebt.kernels` does by way of torch.
    os.environ.setdefault("TRITON_INTERPRET", "1")
