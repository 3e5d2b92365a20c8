"""What the models share: a linear map of sparse or dense features, and dropout."""

import math

import torch
from torch import Tensor, nn

from gebt.sparse import SparseMatrix

Features = Tensor | SparseMatrix


class Linear(nn.Module):
    """``x @ weight + bias`` for dense or sparse ``x``.

    The weight is (in, out), as the papers write X W: a row belongs to an input,
    and sparse features multiply it without a transposed copy.

    Args:
        in_width: F.
        out_width: H.
        bias: whether there is one; it starts at zero.
    """

    def __init__(self, in_width: int, out_width: int, *, bias: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(in_width, out_width))
        self.bias = nn.Parameter(torch.empty(out_width)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Glorot-uniform weight, zero bias."""
        limit = math.sqrt(6 / max(1, sum(self.weight.shape)))
        nn.init.uniform_(self.weight, -limit, limit)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Features) -> Tensor:
        """(N, F) to (N, H)."""
        out = x @ self.weight
        return out if self.bias is None else out + self.bias


def dropout(x: Features, p: float, training: bool) -> Features:
    """Dropout on every stored entry; entries that are not stored are zero anyway."""
    if not training or p == 0:
        return x
    if isinstance(x, SparseMatrix):
        return x.with_value(x.value * _keep_factor(x.value, p))
    return x * _keep_factor(x, p)


def _keep_factor(like: Tensor, p: float) -> Tensor:
    """0 with probability ``p``, else 1 / (1 - p), shaped and typed as ``like``.

    On CPU four entries share one draw of 64 bits: 16 bits decide each, so that
    ``p`` is rounded to a multiple of 2^-16. torch's own `bernoulli_` takes eight
    times as long there and was the largest cost of an epoch on Cora.
    """
    if like.device.type != "cpu":
        return torch.empty_like(like).bernoulli_(1 - p).div_(1 - p)
    words = torch.empty(-(-like.numel() // 4), dtype=torch.int64)
    bits = words.random_(-(2**63), None).view(torch.int16)[: like.numel()]
    dropped = round(p * 2**16)
    keep = (bits >= dropped - 2**15).view(like.shape)
    return keep.to(like.dtype).mul_(2**16 / (2**16 - dropped))


def take_rows(x: Features, nodes: Tensor | None) -> Features:
    """The rows at ``nodes``; all of them for None."""
    if nodes is None:
        return x
    return x.rows(nodes) if isinstance(x, SparseMatrix) else x.index_select(0, nodes)
