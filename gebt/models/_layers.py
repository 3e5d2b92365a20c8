"""What the models share: dropout, row selection, norms, products of sparse features."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, pad

from gebt import kernels, randomness
from gebt.kernels.hashing import row_keys
from gebt.sparse import SparseMatrix

Features = Tensor | SparseMatrix
_MANY = 2**24
"""Entries from which a copy with some dropped is not worth its memory. On fewer, whose
copies the caches or at least the allocator keep, it is faster."""


def glorot_(weight: Tensor, fan_in: int, fan_out: int) -> None:
    """Fill with Glorot and Bengio's uniform numbers."""
    limit = math.sqrt(6 / max(1, fan_in + fan_out))
    with torch.no_grad():
        weight.uniform_(-limit, limit, generator=randomness.stream(weight.device))


def wide_product(x: Any, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x @ weight + bias`` with columns of zeros added where that is faster.

    Whoever calls it cuts the result back to H columns, by `cut`. On CPU narrow
    operands are padded. Measured with MKL at (3327, 16) @ (16, 7): 187 us as it is,
    45 us with 16 columns; the gradient for the weight 162 us and 31 us. And with 5 to
    7 columns of ``x`` that gradient differs between one thread and two, with 8 it does
    not.

    Args:
        x: (N, F), dense or sparse.
        weight: (F, H).
        bias: (H,) or None.

    Returns:
        (N, H) or wider.
    """
    if isinstance(x, kernels.Dropped):
        out = x.product(pad(weight, (0, max(0, 16 - weight.shape[1]))))
        return (
            out if bias is None else out.add_(pad(bias, (0, out.shape[1] - len(bias))))
        )
    if isinstance(x, Tensor) and x.is_cpu and x.shape[1] <= 64:
        rows, columns = max(0, 8 - x.shape[1]), max(0, 16 - weight.shape[1])
        if rows:
            x = pad(x, (0, rows))
        if rows or columns:
            weight = pad(weight, (0, columns, 0, rows))
        if bias is not None and columns:
            bias = pad(bias, (0, columns))
    if bias is None or isinstance(x, SparseMatrix):
        out = x @ weight
        return out if bias is None else out + bias
    return torch.addmm(bias, x, weight)


class SparseWeight:
    """A weight (F, H) as it is now, by its non-zero entries.

    Changes through ``weight.data``, which torch does not count, are not noticed.
    """

    def __init__(self, weight: Tensor):
        self.columns = SparseMatrix.from_dense(weight.detach().t())
        self.version = weight._version

    def stands_for(self, weight: Tensor) -> bool:
        """Whether `product` may replace the product with the weight."""
        same = self.columns.value
        return (
            not torch.is_grad_enabled()
            and weight._version == self.version
            and (weight.dtype, weight.device) == (same.dtype, same.device)
        )

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """``x @ weight + bias``, (N, H), without a gradient."""
        if bias is None:
            bias = x.new_zeros(self.columns.shape[0])
        pattern = self.columns.pattern
        columns = (pattern.crow, pattern.col, self.columns.value)
        return kernels.times_sparse(x, *columns, bias)


def cut(wide: Tensor, width: int) -> Tensor:
    """The first columns; no view of all, which autograd would copy to write into."""
    return wide if wide.shape[1] == width else wide[:, :width]


def dropout(
    x: Features,
    p: float,
    training: bool,
    nodes: Tensor | None = None,
    *,
    lazy: bool = False,
) -> Any:
    """Dropout on every stored entry; entries that are not stored are zero anyway.

    Args:
        x: (N, F).
        p: share that is dropped.
        training: nothing is dropped unless this is set.
        nodes: (N,) which of the graph's nodes the rows of a tensor are: each is dropped
            from as it would be among all. By default row i is node i.
        lazy: it is to be multiplied only, and need not be written out.

    Returns:
        As ``x``, or `kernels.Dropped` of a large tensor.
    """
    if not training or p == 0:
        return x
    draw = randomness.stream(x.device)
    if isinstance(x, SparseMatrix):
        return x.with_value(kernels.dropout(x.value, p, draw, x.pattern.keys))
    keys = None if nodes is None else row_keys(len(x), x.device, nodes)
    if lazy and x.is_cpu and x.numel() >= _MANY and x.shape[1] >= 8:
        return kernels.lazy_dropout(x, p, draw, keys)
    return kernels.dropout(x, p, draw, keys)


def written_out(x: Any) -> Any:
    """Features that were to be dropped from lazily, as a tensor."""
    return x.written_out() if isinstance(x, kernels.Dropped) else x


class LayerNorm(nn.Module):
    """Each row to mean 0 and variance 1, then a factor and a term for each unit.

    Where compaction has dropped units that were the same in every row, mean and
    variance count them still.

    Args:
        width: H.
        over: how many units mean and variance are of; by default H.

    Attributes:
        weight, bias: (H,).
        over: a number.
        absent: (2,) the mean of the units that are not there and the sum of their
            squared distances from it; None where all are there.
    """

    absent: Tensor | None

    def __init__(self, width: int, over: int | None = None):
        super().__init__()
        self.over = width if over is None else over
        if self.over < width:
            raise ValueError(
                f"a layer norm of {width} units cannot be over {self.over}: it must be "
                "over as many or more."
            )
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("absent", torch.zeros(2) if self.over > width else None)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H) to (N, H)."""
        width = self.weight.shape[0]
        if width == 0:
            return x
        if self.absent is None:
            return layer_norm(x, (width,), self.weight, self.bias, EPSILON)
        variance, mean = torch.var_mean(x, dim=1, correction=0, keepdim=True)
        gone = self.over - width
        apart = self.absent[0] - mean
        squares = width * variance + self.absent[1]
        squares = squares + width * gone / self.over * apart.square()
        scale = (squares / self.over + EPSILON).rsqrt()
        centred = x - (mean + gone / self.over * apart)
        return torch.addcmul(self.bias, centred * scale, self.weight)

    def without(self, live: Tensor, constant: Tensor) -> "LayerNorm":
        """The same norm of fewer units.

        Args:
            live: (H,) which units stay.
            constant: (H,) what the others are, in every row.
        """
        gone = constant[~live]
        if self.absent is not None:
            # As many units as were gone before, at their mean; their spread adds up.
            count = self.over - live.numel()
            before = self.absent[0].expand(count)
            gone, extra = torch.cat([gone, before]), self.absent[1]
        else:
            extra = gone.new_zeros(())
        small = LayerNorm(int(live.sum()), self.over).to(self.weight)
        small.weight.copy_(self.weight[live])
        small.bias.copy_(self.bias[live])
        if small.absent is not None:
            mean = gone.mean()
            small.absent.copy_(
                torch.stack([mean, (gone - mean).square().sum() + extra])
            )
        return small


EPSILON = 1e-5  # added to a variance: torch's and PyG's default


def take_rows(x: Features, nodes: Tensor | None) -> Features:
    """The rows at ``nodes``; all of them for None."""
    if nodes is None:
        return x
    if isinstance(x, SparseMatrix):
        return x.rows(nodes)
    return x.index_select(0, nodes)
