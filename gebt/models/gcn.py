"""The graph convolutional network of Kipf and Welling (ICLR 2017)."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gebt.models._layers import Features, dropout, take_rows, wide_product
from gebt.sparse import SparseMatrix


def gcn_norm(adjacency: SparseMatrix) -> SparseMatrix:
    """``D^-1/2 (A + I) D^-1/2`` with D the sum of |value| over a row, plus 1.

    Differentiable in the values, through the degrees too. Kept with the adjacency
    while its values are constant.
    """

    def build() -> SparseMatrix:
        scale = (adjacency.row_sum_of_magnitudes() + 1).rsqrt()
        looped = adjacency.with_diagonal()
        left = scale.index_select(0, looped.pattern.row)
        right = scale.index_select(0, looped.pattern.col)
        return looped.with_value(left * looped.value * right)

    return adjacency.derived("gcn_norm", build)


class GCNLayer(nn.Module):
    """``A (X W + c) + b``; c, the inner bias, is there only after compaction.

    The weight is (in, out), as the paper writes X W: a row belongs to an input, and
    sparse features multiply it without a transposed copy.
    """

    def __init__(self, in_width: int, out_width: int, *, inner_bias: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(in_width, out_width))
        self.bias = nn.Parameter(torch.empty(out_width))
        self.inner_bias = nn.Parameter(torch.empty(out_width)) if inner_bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Glorot-uniform weight, zero biases."""
        limit = math.sqrt(6 / max(1, sum(self.weight.shape)))
        nn.init.uniform_(self.weight, -limit, limit)
        nn.init.zeros_(self.bias)
        if self.inner_bias is not None:
            nn.init.zeros_(self.inner_bias)

    def forward(self, x: Features, adjacency: SparseMatrix) -> Tensor:
        """(M, F) and a normalised (N, M) to (N, H)."""
        out = adjacency @ wide_product(x, self.weight, self.inner_bias)
        width = self.bias.shape[0]
        # In place, as no gradient needs the product: a fresh (N, H) costs page faults.
        return (
            out.add_(self.bias) if out.shape[1] == width else out[:, :width] + self.bias
        )


class GCN(nn.Module):
    """GCN with ReLU between layers and dropout before each, features included.

    Args:
        num_features: F.
        hidden: width of the hidden layer, or a sequence with the width of each.
        num_classes: C.
        dropout: share of entries dropped before each layer during training.
        inner_bias: add one inside each product with A; only `compact` asks.
    """

    def __init__(
        self,
        num_features: int,
        hidden: int | Sequence[int],
        num_classes: int,
        *,
        dropout: float = 0.5,
        inner_bias: bool = False,
    ):
        super().__init__()
        if not 0 <= dropout < 1:
            raise ValueError(f"`dropout` must lie in [0, 1), got {dropout}.")
        self.hidden = [hidden] if isinstance(hidden, int) else list(hidden)
        self.dropout = dropout
        self.inner_bias = inner_bias
        widths = [num_features, *self.hidden, num_classes]
        self.layers = nn.ModuleList(
            GCNLayer(a, b, inner_bias=inner_bias)
            for a, b in zip(widths, widths[1:], strict=False)
        )

    def gcn_layers(self) -> list[GCNLayer]:
        """The layers, first one first."""
        return [layer for layer in self.layers if isinstance(layer, GCNLayer)]

    @property
    def arguments(self) -> dict[str, Any]:
        """What this model was built with, for files that must rebuild it."""
        return {
            "num_features": self.gcn_layers()[0].weight.shape[0],
            "hidden": self.hidden,
            "num_classes": self.gcn_layers()[-1].weight.shape[1],
            "dropout": self.dropout,
            "inner_bias": self.inner_bias,
        }

    def forward(
        self, x: Features, adjacency: SparseMatrix, rows: Tensor | None = None
    ) -> Tensor:
        """Class scores before the softmax.

        Args:
            x: (N, F) features, dense or sparse.
            adjacency: (N, N) without self-loops, not normalised.
            rows: (R,) the nodes wanted, None for all; nothing that they do not
                depend on is computed.

        Returns:
            (R, C), or (N, C).
        """
        read, hops = gcn_norm(adjacency).hops(rows, len(self.layers))
        h: Any = take_rows(x, read)
        for depth, (layer, hop) in enumerate(zip(self.layers, hops, strict=True)):
            if depth:
                h = h.relu_()
            h = layer(dropout(h, self.dropout, self.training), hop)
        return h
