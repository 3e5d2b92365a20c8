"""Graph attention network (Velickovic et al., ICLR 2018)."""

from collections.abc import Mapping, Sequence
from functools import partial
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
    take_rows,
    wide_product,
)
from gebt.models._stack import Layer, Norm, Stack, not_plain, widths_between
from gebt.models.recipe import register
from gebt.options import Fit
from gebt.sparse import SparseMatrix


class GATLayer(Layer):
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
        folded: have ``W a_source`` and ``W a_target`` among the weights, so that the
            attention reads no unit; only `compact` asks.
        inner_bias: add one to the product with the weights; only `compact` asks.

    Attributes:
        weight: (F, K H); of a folded layer (F, K (H + 2)), the last two of each head
            its attention's.
        own_weight: (F, K H), or (F, H) for the average; None where there is none.
        source, target: (1, K, H), three-dimensional as in PyG: never pruned. None of a
            folded layer.
        bias: (K H,), or (H,) for the average.
        inner_bias: one for each column of ``weight``, or None.
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
        folded: bool = False,
        inner_bias: bool = False,
    ):
        super().__init__()
        self.heads = heads
        self.out_width = out_width
        self.concat = concat
        self.dropout = dropout
        self.folded = folded
        columns = heads * (out_width + 2 * folded)
        self.weight = nn.Parameter(torch.empty(in_width, columns))
        self.inner_bias = nn.Parameter(torch.empty(columns)) if inner_bias else None
        source = nn.Parameter(torch.empty(1, heads, out_width))
        target = nn.Parameter(torch.empty(1, heads, out_width))
        self.source = None if folded else source
        self.target = None if folded else target
        width = out_width * (heads if concat else 1)
        own_weight = nn.Parameter(torch.empty(in_width, width))
        self.own_weight = own_weight if own else None
        self.bias = nn.Parameter(torch.empty(width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Glorot-uniform weights and attention, zero bias; as PyG does."""
        glorot_(self.weight, *self.weight.shape)
        for vector in (self.source, self.target):
            if vector is not None:
                glorot_(vector, *vector.shape[1:])
        if self.own_weight is not None:
            glorot_(self.own_weight, *self.own_weight.shape)
        nn.init.zeros_(self.bias)
        if self.inner_bias is not None:
            nn.init.zeros_(self.inner_bias)

    def forward(self, x: Features, looped: SparseMatrix) -> Tensor:
        """(M, F) and (N, M) with self-loops to (N, K H), or (N, H)."""
        heads, width = self.heads, self.out_width
        z = cut(wide_product(x, self.weight, self.inner_bias), self.weight.shape[1])
        z = z.reshape(z.shape[0], heads, self.weight.shape[1] // heads).transpose(0, 1)
        if self.source is None or self.target is None:
            source, target = z[..., width], z[..., width + 1]
            z = z[..., :width].contiguous()
        else:
            z = z.contiguous()
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

    def foldable(self) -> "GATLayer":
        """A folded copy with an inner bias: what `compact` can take units from."""
        other = GATLayer(
            self.weight.shape[0],
            self.out_width,
            self.heads,
            concat=self.concat,
            dropout=self.dropout,
            own=self.own_weight is not None,
            folded=True,
            inner_bias=True,
        ).to(self.weight)
        state = other.state_dict() | self.state_dict()
        if self.source is not None:
            units = self._units(self.weight)
            vectors = [state.pop(name) for name in ("source", "target")]
            scores = torch.stack([(units * v).sum(dim=2) for v in vectors], dim=2)
            columns = torch.cat([units, scores], dim=2)
            state["weight"] = columns.flatten(1)
        other.load_state_dict(state)
        return other

    def scale(self, factor: Tensor, term: Tensor) -> None:
        """Multiply the output by (K H,) and add (K H,), in place; of a folded layer."""
        for each in (self.weight, self.inner_bias):
            self._units(each).mul_(factor.view(self.heads, -1))
        if self.own_weight is not None:
            self.own_weight.mul_(factor)
        self.bias.mul_(factor).add_(term)

    def varies(self) -> Tensor:
        """The units, (K H,) or (H,), that are not the same in every row."""
        mixed = self._mixed()
        found = mixed.flatten() if self.concat else mixed.any(dim=0)
        if self.own_weight is not None:
            found = found | (self.own_weight != 0).any(dim=0)
        return found

    def reads(self, live: Tensor) -> Tensor:
        """(F,) the inputs that some units read, and the attention of their heads."""
        mixed = self._mixed()
        if self.concat:
            mixed = mixed & live.view(self.heads, -1)
        attends = mixed.any(dim=1, keepdim=True).expand(-1, 2)
        columns = torch.cat([mixed, attends], dim=1).flatten()
        read = (self.weight[:, columns] != 0).any(dim=1)
        if self.own_weight is not None:
            read = read | (self.own_weight[:, live] != 0).any(dim=1)
        return read

    def whole(self, units: Tensor) -> Tensor:
        """The units that stay if those must: of all heads that stay as many."""
        if not self.concat:
            return units
        must = units.view(self.heads, -1).clone()
        if not must.any():
            must[0, 0] = True  # a layer has a head, and that a unit
        order = must.int().argsort(dim=1, descending=True, stable=True)
        stay = torch.zeros_like(must)
        stay.scatter_(1, order[:, : int(must.sum(dim=1).max())], True)
        return (stay & must.any(dim=1, keepdim=True)).flatten()

    def heads_of(self, units: Tensor) -> Tensor:
        """(K,) the heads that give some units; of an average, that give anything."""
        if self.concat:
            return units.view(self.heads, -1).any(dim=1)
        if not self.folded:
            return self.bias.new_ones(self.heads, dtype=torch.bool)
        found = self._mixed().any(dim=1)
        if not found.any():
            found[0] = True
        return found

    def take(self, of: "GATLayer", inputs: Tensor, units: Tensor) -> None:
        """Copy from a larger layer what belongs to some inputs (F,) and units."""
        heads = of.heads_of(units)[:, None]
        mixed = units.view(of.heads, -1) if of.concat else heads.expand(-1, len(units))
        columns = mixed
        if of.folded:
            columns = torch.cat([mixed, heads.expand(-1, 2)], dim=1)
        self.weight.copy_(of.weight[inputs][:, columns.flatten()])
        if self.inner_bias is not None and of.inner_bias is not None:
            self.inner_bias.copy_(of.inner_bias[columns.flatten()])
        for ours, theirs in ((self.source, of.source), (self.target, of.target)):
            if ours is not None and theirs is not None:
                ours.copy_(theirs[0][mixed].view_as(ours))
        if self.own_weight is not None and of.own_weight is not None:
            self.own_weight.copy_(of.own_weight[inputs][:, units])
        self.bias.copy_(of.bias[units])
        if not self.concat:  # it is divided by fewer
            for each in (self.weight, self.inner_bias):
                if each is not None and self.heads < of.heads:
                    self._units(each).mul_(self.heads / of.heads)

    def _units(self, columns: Any) -> Tensor:
        """(..., K, H) of (..., K (H + 2)), the part that is not the attention's."""
        each = columns.shape[-1] // self.heads
        blocks = columns.view(*columns.shape[:-1], self.heads, each)
        return blocks[..., : self.out_width]

    def _mixed(self) -> Tensor:
        """(K, H) the units that the attention has something to mix of."""
        found = (self._units(self.weight) != 0).any(dim=0)
        if self.inner_bias is not None:
            found = found | (self._units(self.inner_bias) != 0)
        return found


class GAT(Stack[GATLayer]):
    """A stack of attention layers with ELU between them.

    ``elu(norm(P X W + X V + b))`` each, the last one bare; arguments that are not
    named here as for `GCN`.

    Args:
        num_features: F.
        hidden: width of each head of the hidden layers, or a sequence with one for
            each; there are ``heads`` as many units, after an input map, too.
        num_outputs: C, classes or width of the embedding.
        heads: of the hidden layers, side by side; or a sequence with one number for
            each width.
        output_heads: of the last layer, averaged; with an output map it is a hidden
            one.
        dropout: share dropped during training, of the entries before each layer,
            features included, and of the attention.
        folded, inner_bias, norm_over: see `GATLayer` and `GCN`; only `compact` asks.
    """

    drops = "features, heads, hidden units"

    def __init__(
        self,
        num_features: int,
        hidden: int | Sequence[int],
        num_outputs: int,
        *,
        heads: int | Sequence[int] = 8,
        output_heads: int = 1,
        layers: int | None = None,
        dropout: float = 0.6,
        residual: bool = False,
        norm: Norm = "none",
        input_map: bool = False,
        output_map: bool = False,
        recompute: bool = False,
        folded: bool = False,
        inner_bias: bool = False,
        norm_over: Sequence[int] = (),
    ):
        if output_map and output_heads != 1:
            raise ValueError(
                "`output_heads` are of a last layer, and with `output_map` that is a "
                f"linear map: leave out `output_heads`, {output_heads}."
            )
        maps = input_map + output_map
        between = widths_between(hidden, layers, maps)
        each = [heads] * len(between) if isinstance(heads, int) else list(heads)
        if len(each) != len(between):
            raise ValueError(
                f"`heads` must be one number, or one for each of {len(between)} hidden "
                f"widths; got {each}."
            )
        for count in (heads,) if isinstance(heads, int) else each:
            check_count("heads", count)
        check_count("output_heads", output_heads)
        for width in between if not folded else ():  # compaction may leave none
            check_count("hidden", width)
        self.arguments = {
            "num_features": num_features,
            # As in all files that there were before there were other depths.
            "hidden": between[0] if len(between) == 1 and not maps else between,
            "num_outputs": num_outputs,
            "heads": heads if isinstance(heads, int) else each,
            "output_heads": output_heads,
            "dropout": dropout,
        } | not_plain(
            residual=residual,
            norm=norm,
            input_map=input_map,
            output_map=output_map,
            recompute=recompute,
            folded=folded,
            inner_bias=inner_bias,
            norm_over=list(norm_over),
        )
        units = [count * width for count, width in zip(each, between, strict=True)]
        widths = [num_features, *units, num_outputs]
        layer = partial(GATLayer, dropout=dropout, own=residual, folded=folded)
        built: list[GATLayer] = []
        for inputs, width, count in zip(widths, between, each, strict=False):
            inner = inner_bias and bool(built)  # no feature is a constant
            built.append(layer(inputs, width, count, concat=True, inner_bias=inner))
        last = layer(
            widths[-2],
            num_outputs,
            output_heads,
            concat=False,
            inner_bias=inner_bias and bool(built),
        )
        super().__init__(
            widths,
            [*built, last],
            dropout,
            norm=norm,
            input_map=input_map,
            output_map=output_map,
            norm_over=norm_over,
            recompute=recompute,
        )

    def matrix(self, adjacency: SparseMatrix) -> SparseMatrix:
        """``A + I``."""
        return adjacency.derived("looped", adjacency.with_diagonal)

    def activation(self, h: Tensor) -> Tensor:
        """ELU."""
        return elu_(h)

    def sized(
        self, layers: Sequence[Layer], units: Sequence[Tensor]
    ) -> Mapping[str, Any]:
        """The arguments of a stack of those units alone."""
        heads = [
            int(layer.heads_of(stay).sum()) if isinstance(layer, GATLayer) else 1
            for layer, stay in zip(layers, units, strict=True)
        ]
        hidden = [int(u.sum()) // k for u, k in zip(units[:-1], heads, strict=False)]
        folded = any(getattr(layer, "folded", False) for layer in layers)
        *heads, output = heads
        return {
            "hidden": hidden,
            "heads": heads,
            "output_heads": output,
            "folded": folded,
        }

    @torch.no_grad()
    def shrink(self) -> tuple["GAT", Tensor]:
        """As every `Stack`; where hardly a unit goes, without the features alone.

        The attention's two columns a head, by which units can go, are more operations
        than its two vectors.
        """
        small, reads = super().shrink()
        if self.normed() or self.first().folded:
            return small, reads
        every = [torch.ones_like(each.bias).bool() for each in self.stacked()]
        how: Any = {"num_features": int(reads.sum())}
        plain = self._of(self.stacked(), [reads, *every], **how).eval()
        if _heads(small) < _heads(plain) or _macs_a_node(small) < _macs_a_node(plain):
            return small, reads
        return plain, reads

    def unit_scores(self) -> list[Tensor]:
        """How large each unit's head is, (K H,) for each hidden layer."""
        if self.first().folded:
            return []  # the columns of its weights are not units alone
        found = super().unit_scores()
        for k, layer in enumerate(self.stacked()[:-1]):
            if isinstance(layer, GATLayer):
                heads = found[k].view(layer.heads, -1).square().sum(dim=1).sqrt()
                found[k] = heads.repeat_interleave(layer.out_width)
        return found

    def paper_macs(self, nodes: int, entries: int, kept: int) -> int:
        """``N w + heads E F``, the paper's having 8 heads of 16 units.

        F is the width that the first attention gets, heads are its.
        """
        first = self.first()
        return nodes * kept + first.heads * entries * first.weight.shape[0]


def _heads(model: GAT) -> int:
    """Of all layers."""
    return sum(getattr(layer, "heads", 0) for layer in model.stacked())


def _macs_a_node(model: GAT) -> int:
    """Multiplications with weights and attention vectors, one for each number."""
    return sum(p.numel() for p in model.parameters() if p.dim() > 1)


register(
    "gat",
    GAT,
    about="GAT of two layers, 8 heads, then 1",
    source="Velickovic et al. 2018; epochs of PyG's example",
    hidden=8,
    dropout=0.6,
    fit=Fit(lr=0.005, weight_decay=5e-4, decay="all", epochs=200),
)
