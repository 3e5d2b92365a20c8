"""Graph attention network (Velickovic et al., ICLR 2018)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import elu_, leaky_relu

from gebt.kernels import edge_softmax
from gebt.models._layers import (
    Features,
    cut,
    dropout,
    glorot_,
    read_features,
    wide_product,
)
from gebt.models._stack import Stack
from gebt.models.recipe import register
from gebt.options import Fit
from gebt.sparse import SparseMatrix


class GATLayer(nn.Module):
    """Per head ``P X W`` with P an attention over each row's kept entries.

    ``P = value * softmax(leaky_relu(X W a_target [row] + X W a_source [col]))``. The
    heads are one block-diagonal matrix, so that memory is O(E heads + N H).

    Args:
        in_width: F.
        out_width: H of each head.
        heads: K.
        concat: put the heads side by side, else average them.
        dropout: share of the attention dropped during training.

    Attributes:
        weight: (F, K H).
        source, target: (1, K, H), three-dimensional as in PyG: never pruned.
        bias: (K H,), or (H,) for the average.
    """

    def __init__(
        self, in_width: int, out_width: int, heads: int, *, concat: bool, dropout: float
    ):
        super().__init__()
        self.heads = heads
        self.concat = concat
        self.dropout = dropout
        self.weight = nn.Parameter(torch.empty(in_width, heads * out_width))
        self.source = nn.Parameter(torch.empty(1, heads, out_width))
        self.target = nn.Parameter(torch.empty(1, heads, out_width))
        self.bias = nn.Parameter(torch.empty(out_width * (heads if concat else 1)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Glorot-uniform weight and attention, zero bias; as PyG does."""
        glorot_(self.weight, *self.weight.shape)
        glorot_(self.source, *self.source.shape[1:])
        glorot_(self.target, *self.target.shape[1:])
        nn.init.zeros_(self.bias)

    def forward(self, x: Features, looped: SparseMatrix) -> Tensor:
        """(M, F) and (N, M) with self-loops to (N, K H), or (N, H)."""
        heads, width = self.source.shape[1:]
        z = cut(wide_product(x, self.weight, None), heads * width)
        z = z.reshape(-1, heads, width).transpose(0, 1).contiguous()
        source = (z @ self.source.permute(1, 2, 0)).squeeze(2)
        target = (z @ self.target.permute(1, 2, 0)).squeeze(2)
        blocks = looped.repeat(heads)
        score = blocks.at_columns(source.flatten()) + blocks.at_rows(target.flatten())
        share: Any = edge_softmax(blocks.pattern.crow, leaky_relu(score, 0.2))
        share = dropout(share * blocks.value, self.dropout, self.training)
        out = blocks.with_value(share) @ z.flatten(0, 1)
        out = out.view(heads, -1, width)
        out = out.transpose(0, 1).flatten(1) if self.concat else out.mean(dim=0)
        return out + self.bias


class GAT(Stack[GATLayer]):
    """GAT with ELU between layers.

    Args:
        num_features: F.
        hidden: width of each head of the hidden layer.
        num_outputs: C, classes or width of the embedding.
        heads: of the hidden layer, side by side.
        output_heads: of the last layer, averaged.
        dropout: share dropped during training, of the entries before each layer,
            features included, and of the attention.
    """

    drops = "features"  # every unit is read, by the attention

    def __init__(
        self,
        num_features: int,
        hidden: int,
        num_outputs: int,
        *,
        heads: int = 8,
        output_heads: int = 1,
        dropout: float = 0.6,
    ):
        self.arguments = {
            "num_features": num_features,
            "hidden": hidden,
            "num_outputs": num_outputs,
            "heads": heads,
            "output_heads": output_heads,
            "dropout": dropout,
        }
        first = GATLayer(num_features, hidden, heads, concat=True, dropout=dropout)
        last = GATLayer(
            heads * hidden, num_outputs, output_heads, concat=False, dropout=dropout
        )
        super().__init__([first, last], [], dropout)

    def matrix(self, adjacency: SparseMatrix) -> SparseMatrix:
        """``A + I``."""
        return adjacency.derived("looped", adjacency.with_diagonal)

    def activation(self, h: Tensor) -> Tensor:
        """ELU."""
        return elu_(h)

    def shrink(self) -> tuple[nn.Module, Tensor]:
        """Without the features that no weight reads; (F,) those that one does."""
        return read_features(self, "layers.0.weight")

    def paper_macs(self, nodes: int, entries: int, kept: int) -> int:
        """``N w + heads E F``, the paper's having 8 heads of 16 units."""
        built = self.arguments
        return nodes * kept + built["heads"] * entries * built["num_features"]


register(
    "gat",
    GAT,
    about="GAT of two layers, 8 heads, then 1",
    source="Velickovic et al. 2018; epochs of PyG's example",
    hidden=8,
    dropout=0.6,
    fit=Fit(lr=0.005, weight_decay=5e-4, decay="all", epochs=200),
)
