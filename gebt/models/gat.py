"""Graph attention network (Velickovic et al., ICLR 2018)."""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import elu_, leaky_relu

from gebt._checks import check_count
from gebt.kernels import edge_softmax
from gebt.models._layers import (
    Features,
    cut,
    dropout,
    glorot_,
    read_features,
    take_rows,
    wide_product,
)
from gebt.models._stack import Norm, Stack, not_plain, widths_between
from gebt.models.recipe import register
from gebt.options import Fit
from gebt.sparse import SparseMatrix


class GATLayer(nn.Module):
    """Per head ``P X W``, P an attention over each row's kept entries; ``X V`` beside.

    ``P = value * softmax(leaky_relu(X W a_target [row] + X W a_source [col]))``. The
    heads are one block-diagonal matrix, so that memory is O(E heads + N H).

    Args:
        in_width: F.
        out_width: H of each head.
        heads: K.
        concat: put the heads side by side, else average them.
        dropout: share of the attention dropped during training.
        own: with weights V of a node's own features.

    Attributes:
        weight: (F, K H).
        own_weight: (F, K H), or (F, H) for the average; None where there is none.
        source, target: (1, K, H), three-dimensional as in PyG: never pruned.
        bias: (K H,), or (H,) for the average.
    """

    def __init__(
        self,
        in_width: int,
        out_width: int,
        heads: int,
        *,
        concat: bool,
        dropout: float,
        own: bool,
    ):
        super().__init__()
        self.heads = heads
        self.concat = concat
        self.dropout = dropout
        self.weight = nn.Parameter(torch.empty(in_width, heads * out_width))
        self.source = nn.Parameter(torch.empty(1, heads, out_width))
        self.target = nn.Parameter(torch.empty(1, heads, out_width))
        width = out_width * (heads if concat else 1)
        own_weight = nn.Parameter(torch.empty(in_width, width))
        self.own_weight = own_weight if own else None
        self.bias = nn.Parameter(torch.empty(width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Glorot-uniform weights and attention, zero bias; as PyG does."""
        glorot_(self.weight, *self.weight.shape)
        glorot_(self.source, *self.source.shape[1:])
        glorot_(self.target, *self.target.shape[1:])
        if self.own_weight is not None:
            glorot_(self.own_weight, *self.own_weight.shape)
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
        if self.own_weight is None:
            return out + self.bias
        own = wide_product(take_rows(x, looped.own), self.own_weight, self.bias)
        return out + cut(own, out.shape[1])


class GAT(Stack[GATLayer]):
    """A stack of attention layers with ELU between them.

    ``elu(norm(P X W + X V + b))`` each, the last one bare; arguments that are not
    named here as for `GCN`.

    Args:
        num_features: F.
        hidden: width of each head of the hidden layers, or a sequence with one for
            each; there are ``heads`` as many units, after an input map, too.
        num_outputs: C, classes or width of the embedding.
        heads: of the hidden layers, side by side.
        output_heads: of the last layer, averaged; with an output map it is a hidden
            one.
        dropout: share dropped during training, of the entries before each layer,
            features included, and of the attention.
    """

    drops = "features"  # every unit is read, by the attention

    def __init__(
        self,
        num_features: int,
        hidden: int | Sequence[int],
        num_outputs: int,
        *,
        heads: int = 8,
        output_heads: int = 1,
        layers: int | None = None,
        dropout: float = 0.6,
        residual: bool = False,
        norm: Norm = "none",
        input_map: bool = False,
        output_map: bool = False,
        recompute: bool = False,
    ):
        if output_map and output_heads != 1:
            raise ValueError(
                "`output_heads` are of a last layer, and with `output_map` that is a "
                f"linear map: leave out `output_heads`, {output_heads}."
            )
        maps = input_map + output_map
        between = widths_between(hidden, layers, maps)
        check_count("heads", heads)
        check_count("output_heads", output_heads)
        for width in between:
            check_count("hidden", width)
        self.arguments = {
            "num_features": num_features,
            # As in all files that there were before there were other depths.
            "hidden": between[0] if len(between) == 1 and not maps else between,
            "num_outputs": num_outputs,
            "heads": heads,
            "output_heads": output_heads,
            "dropout": dropout,
        } | not_plain(
            residual=residual,
            norm=norm,
            input_map=input_map,
            output_map=output_map,
            recompute=recompute,
        )
        widths = [num_features, *(heads * width for width in between), num_outputs]
        *pairs, last = pairwise(widths)
        layer = partial(GATLayer, dropout=dropout, own=residual)
        built = [layer(a, b // heads, heads, concat=True) for a, b in pairs]
        super().__init__(
            widths,
            [*built, layer(*last, output_heads, concat=False)],
            dropout,
            norm=norm,
            input_map=input_map,
            output_map=output_map,
            recompute=recompute,
        )

    def matrix(self, adjacency: SparseMatrix) -> SparseMatrix:
        """``A + I``."""
        return adjacency.derived("looped", adjacency.with_diagonal)

    def activation(self, h: Tensor) -> Tensor:
        """ELU."""
        return elu_(h)

    def shrink(self) -> tuple[nn.Module, Tensor]:
        """Without the features that no weight reads; (F,) those that one does.

        Batch norms stay, in evaluation mode. A weight that took in their factors would
        have the attention vectors divided by them, and some may be 0.
        """
        return read_features(self, "layers.0")

    def paper_macs(self, nodes: int, entries: int, kept: int) -> int:
        """``N w + heads E F``, the paper's having 8 heads of 16 units.

        F is the width that the first attention gets, heads are its.
        """
        first = self.first()
        return nodes * kept + first.heads * entries * first.weight.shape[0]


register(
    "gat",
    GAT,
    about="GAT of two layers, 8 heads, then 1",
    source="Velickovic et al. 2018; epochs of PyG's example",
    hidden=8,
    dropout=0.6,
    fit=Fit(lr=0.005, weight_decay=5e-4, decay="all", epochs=200),
)
