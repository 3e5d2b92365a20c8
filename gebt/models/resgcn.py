"""Deep residual GCN with softmax aggregation (Li et al., DeeperGCN, 2020)."""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from gebt._checks import check_dropout
from gebt.models._layers import (
    Features,
    cut,
    dropout,
    glorot_,
    read_features,
    take_rows,
    wide_product,
)
from gebt.models._recompute import recomputed
from gebt.models.recipe import register
from gebt.options import Fit
from gebt.sparse import SparseMatrix

_EPSILON = 1e-7  # added to every message, as DeeperGCN does


def softmax_aggregate(h: Tensor, adjacency: SparseMatrix) -> Tensor:
    """Per channel, the mean of the neighbours weighted by their softmax.

    ``out[i] = sum_j value[i, j] exp(h[j]) h[j] / sum_j exp(h[j])`` over the entries of
    row i: two SpMMs, and no message is ever materialised. A row without entries
    gives 0. The exponent is shifted by each channel's maximum over all nodes and
    ends 79 below it in float32 (700 in float64), so that sums stay clear of 0: a row
    all of whose neighbours lie lower than that gives their plain mean.

    Args:
        h: (M, H).
        adjacency: (N, M).

    Returns:
        (N, H).
    """
    lowest = math.log(torch.finfo(h.dtype).tiny) + 8
    weight = (h - h.detach().amax(dim=0)).clamp(min=lowest).exp()
    ones = adjacency.derived("ones", lambda: _ones(adjacency))
    total = ones @ weight
    total = total.clamp(min=torch.finfo(h.dtype).tiny)
    return (adjacency @ (weight * h)) / total


def _ones(adjacency: SparseMatrix) -> SparseMatrix:
    return adjacency.with_value(torch.ones_like(adjacency.value.detach()))


class DenseLayer(nn.Module):
    """``X W + b``; the weight is (in, out)."""

    def __init__(self, in_width: int, out_width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(in_width, out_width))
        self.bias = nn.Parameter(torch.empty(out_width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Glorot-uniform weight, zero bias."""
        glorot_(self.weight, *self.weight.shape)
        nn.init.zeros_(self.bias)

    def forward(self, x: Features) -> Tensor:
        """(N, F) to (N, H)."""
        return cut(wide_product(x, self.weight, self.bias), self.bias.shape[0])


class GENLayer(DenseLayer):
    """``(aggregate(relu(X) + eps) + X) W + b``: PyG's ``GENConv`` with one map."""

    def __init__(self, width: int):
        super().__init__(width, width)

    def forward(self, x: Tensor, adjacency: SparseMatrix) -> Tensor:  # type: ignore[override]
        """(N, H) and (N, N) to (N, H)."""
        return super().forward(softmax_aggregate(relu(x) + _EPSILON, adjacency) + x)


class ResGCN(nn.Module):
    """A deep GCN of pre-activation residual blocks: norm, ReLU, dropout, layer, add.

    DeeperGCN's ``res+`` order, as PyG's ``DeepGCNLayer``: an encoder, one plain layer,
    ``layers - 1`` blocks, and norm, ReLU, dropout and a linear map to the outputs.
    Batch normalisation over all nodes of the graph.

    Args:
        num_features: F.
        hidden: H, the width of every layer.
        num_outputs: C, classes or width of the embedding.
        layers: K, of graph layers.
        dropout: share dropped before each layer during training.
        recompute: keep no activations of the blocks for the backward, compute them
            again there; for graphs whose activations do not fit in memory.
    """

    drops = "features"  # every unit is read, by the residual connection

    def __init__(
        self,
        num_features: int,
        hidden: int,
        num_outputs: int,
        *,
        layers: int = 7,
        dropout: float = 0.5,
        recompute: bool = False,
    ):
        super().__init__()
        if layers < 1:
            raise ValueError(f"`layers` must be at least 1, got {layers}.")
        check_dropout("dropout", dropout)
        self.arguments = {
            "num_features": num_features,
            "hidden": hidden,
            "num_outputs": num_outputs,
            "layers": layers,
            "dropout": dropout,
            "recompute": recompute,
        }
        self.dropout = dropout
        self.recompute = recompute
        self.encoder = DenseLayer(num_features, hidden)
        self.layers = nn.ModuleList(GENLayer(hidden) for _ in range(layers))
        self.norms = nn.ModuleList(nn.BatchNorm1d(hidden) for _ in range(layers))
        self.output = DenseLayer(hidden, num_outputs)

    def forward(
        self, x: Features, adjacency: SparseMatrix, rows: Tensor | None = None
    ) -> Tensor:
        """Outputs per node: class scores before the softmax, or embeddings.

        Args:
            x: (N, F) features, dense or sparse.
            adjacency: (N, N) without self-loops, not normalised.
            rows: (R,) the nodes wanted, None for all. The norms need every node, so
                only the last map is spared.

        Returns:
            (R, C), or (N, C).
        """
        h = self.layers[0](self.encoder(x), adjacency)
        for norm, layer in zip(self.norms[:-1], self.layers[1:], strict=True):
            block = partial(self._block, norm, layer, adjacency)
            h = recomputed(block, h, norm) if self.recompute else block(h)
        return self.output(take_rows(self._before(self.norms[-1], h), rows))

    def shrink(self) -> tuple[nn.Module, Tensor]:
        """Without the features that no weight reads; (F,) those that one does."""
        return read_features(self, "encoder")

    def paper_macs(self, nodes: int, entries: int, kept: int) -> int:
        """``K E H / 2 + N ((K - 1) H^2 + H C)``, the encoder not counted.

        The second term times the share of weights kept.
        """
        depth, (width, outputs) = len(self.layers), self.output.weight.shape
        weights = sum(p.numel() for p in self.parameters() if p.dim() == 2)
        dense = nodes * ((depth - 1) * width**2 + width * outputs)
        return depth * entries * width // 2 + round(kept / weights * dense)

    def _block(
        self, norm: nn.Module, layer: nn.Module, adjacency: SparseMatrix, h: Tensor
    ) -> Tensor:
        return h + layer(self._before(norm, h), adjacency)

    def _before(self, norm: nn.Module, h: Tensor) -> Any:
        return dropout(relu(norm(h)), self.dropout, self.training)


for _layers in (7, 14, 28):
    register(
        f"resgcn{_layers}",
        partial(ResGCN, layers=_layers),
        about=f"ResGCN of {_layers} layers, softmax aggregation",
        source="You et al. 2022",
        hidden=128,
        dropout=0.5,
        fit=Fit(lr=0.01, weight_decay=0.0, decay="all", epochs=500),
        # In one ranking the encoder of many features, whose weights start
        # smallest, would lose all of them, and the model its input.
        scope="layer",
    )
