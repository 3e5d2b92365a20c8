"""What the models share: dropout, row selection and products of sparse features."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from gebt.sparse import SparseMatrix

Features = Tensor | SparseMatrix


def widen(weight: Tensor, x: Features) -> Tensor:
    """Pad a narrow (F, H) weight or (H,) bias to 16 columns where that is faster.

    Whoever multiplies by it cuts the result back to H columns. Measured with MKL at
    (3327, 16) @ (16, 7): 187 us as it is, 45 us padded; the gradient for the weight
    162 us and 31 us.
    """
    width = weight.shape[-1]
    if width >= 16 or isinstance(x, SparseMatrix) or not x.is_cpu or x.shape[1] > 64:
        return weight
    return pad(weight, (0, 16 - width))


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
