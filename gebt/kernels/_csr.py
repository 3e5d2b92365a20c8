"""Compressed rows as torch sees them."""

import warnings

import torch
from torch import Tensor

Transpose = tuple[Tensor, Tensor, Tensor]
"""``(crow, col, order)``: entry ``e`` of the transpose is entry ``order[e]``."""

with warnings.catch_warnings():
    # torch says once per process that CSR is in beta; said here, to nobody.
    warnings.simplefilter("ignore")
    torch.sparse_csr_tensor(
        torch.tensor([0, 0]),
        torch.tensor([], dtype=torch.long),
        torch.tensor([]),
        (1, 1),
    )


def csr(crow: Tensor, col: Tensor, value: Tensor, num_cols: int) -> Tensor:
    """A torch CSR tensor over these very arrays; nothing is copied or checked."""
    return torch.sparse_csr_tensor(
        crow, col, value, (crow.numel() - 1, num_cols), check_invariants=False
    )


def entry_rows(crow: Tensor, entries: int) -> Tensor:
    """(E,) the row of every entry, in the dtype of ``crow``.

    E is given, not read from ``crow``: a GPU would have to be waited for.
    """
    rows = torch.arange(crow.numel() - 1, device=crow.device, dtype=crow.dtype)
    return rows.repeat_interleave(crow.diff(), output_size=entries)
