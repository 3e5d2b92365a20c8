"""Deep residual GCN with softmax aggregation (Li et al., DeeperGCN, 2020)."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from gebt._checks import check_dropout
from gebt.files import shown
from gebt.models._layers import (
    Features,
    cut,
    dropout,
    glorot_,
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

    def take(self, of: "DenseLayer", inputs: Tensor, units: Tensor) -> None:
        """Copy from a larger layer what belongs to some inputs (F,) and units (H,)."""
        self.weight.copy_(of.weight[inputs][:, units])
        self.bias.copy_(of.bias[units])


class GENLayer(DenseLayer):
    """``(aggregate(relu(X) + eps) + X) W + b``: PyG's ``GENConv`` with one map."""

    def forward(self, x: Tensor, adjacency: SparseMatrix) -> Tensor:  # type: ignore[override]
        """(N, F) and (N, N) to (N, H)."""
        return super().forward(softmax_aggregate(relu(x) + _EPSILON, adjacency) + x)


class ChosenNorm(nn.BatchNorm1d):
    """A batch norm of some of the channels.

    Attributes:
        channels: (R,) which.
        width: H, of how many.
    """

    channels: Tensor

    def __init__(self, number: int, width: int):
        super().__init__(number)
        self.width = width
        self.register_buffer("channels", torch.arange(number))
        self.register_load_state_dict_post_hook(ChosenNorm._check)

    def forward(self, h: Tensor) -> Tensor:
        """(N, H) to (N, R)."""
        return super().forward(h.index_select(1, self.channels))

    def _check(self, _: Any) -> None:
        if ((self.channels < 0) | (self.channels >= self.width)).any():
            raise ValueError(
                f"the channels of a norm must be among {self.width}, are "
                f"{shown(self.channels.tolist())}."
            )


def _channels(norm: Any) -> Tensor:
    """(R,) the channels that a norm reads."""
    if isinstance(norm, ChosenNorm):
        return norm.channels
    return torch.arange(norm.num_features, device=norm.weight.device)


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
        reads: how many of the channels each graph layer reads, and the linear map to
            the outputs; by default all. Only `compact` asks.
    """

    drops = "features, channels"

    def __init__(
        self,
        num_features: int,
        hidden: int,
        num_outputs: int,
        *,
        layers: int = 7,
        dropout: float = 0.5,
        recompute: bool = False,
        reads: Sequence[int] = (),
    ):
        super().__init__()
        if layers < 1:
            raise ValueError(f"`layers` must be at least 1, got {layers}.")
        check_dropout("dropout", dropout)
        self.arguments: dict[str, Any] = {
            "num_features": num_features,
            "hidden": hidden,
            "num_outputs": num_outputs,
            "layers": layers,
            "dropout": dropout,
            "recompute": recompute,
        }
        if reads:
            self.arguments["reads"] = list(reads)
        if len(reads) not in (0, layers + 1):
            raise ValueError(
                f"`reads` must hold {layers + 1} numbers of channels, got "
                f"{list(reads)}."
            )
        first, *blocks, last = reads or [hidden] * (layers + 1)
        self.dropout = dropout
        self.recompute = recompute
        self.encoder = DenseLayer(num_features, first)
        self.layers = nn.ModuleList(GENLayer(n, hidden) for n in (first, *blocks))
        self.norms = nn.ModuleList(
            nn.BatchNorm1d(n) if n == hidden else ChosenNorm(n, hidden)
            for n in (*blocks, last)
        )
        self.output = DenseLayer(last, num_outputs)

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

    @torch.no_grad()
    def shrink(self) -> tuple["ResGCN", Tensor]:
        """Without the channels, blocks and features that no output depends on.

        Each layer reads, normalises and aggregates only those channels that it has
        weights for; what it writes where nothing reads any more does not count. A
        channel that nothing reads is gone altogether. A block that reads nothing adds
        its bias alone, which the norms after it take off their means.

        A constant channel stays: what it aggregates to differs from row to row.

        Returns:
            The smaller model, in evaluation mode, and (F,) which features it reads.
        """
        ends = (self.output.weight != 0).any(dim=1)
        live = torch.zeros_like(self._stream().bias, dtype=torch.bool)
        live[_channels(self.norms[-1])[ends]] = True
        reads: list[Tensor] = []
        for norm, layer in reversed(self._blocks()):
            reads.insert(0, (layer.weight[:, live] != 0).any(dim=1))
            live[_channels(norm)[reads[0]]] = True
        first = (self._stream().weight[:, live] != 0).any(dim=1)
        features = (self.encoder.weight[:, first] != 0).any(dim=1)
        for some in (first, ends):
            some[0] |= not some.any()  # of each there is one
        live[_channels(self.norms[-1])[ends]] = True
        return self._of(features, first, [*reads, ends], live).eval(), features

    @torch.no_grad()
    def unit_scores(self) -> list[Tensor]:
        """How large the channels are, one (H,): by the |scales| of all batch norms."""
        if "reads" in self.arguments:
            return []  # of a compact model not all are alike
        return [torch.stack([n.weight for n in self._norms()]).norm(dim=0)]

    @torch.no_grad()
    def slim(self, keep: Sequence[Tensor]) -> "ResGCN":
        """A copy with fewer channels, which keep their weights, to be trained on.

        Dropout is less, by the fourth root of the share of channels that stay: it
        would leave a narrow model too few.

        Args:
            keep: one (H,) boolean, True = kept.
        """
        [stay] = keep
        features = torch.ones_like(self.encoder.weight[:, 0], dtype=torch.bool)
        dropout = self.dropout * (int(stay.sum()) / stay.numel()) ** 0.25
        reads = [stay] * len(self.norms)
        small = self._of(features, stay, reads, stay, dropout=dropout)
        return small.train(self.training)

    def _of(
        self,
        features: Tensor,
        first: Tensor,
        reads: Sequence[Tensor],
        live: Tensor,
        **changed: Any,
    ) -> "ResGCN":
        """A model of some channels alone.

        Args:
            features: (F,) boolean, which stay.
            first: (R,) which of the encoder's outputs do.
            reads: for each norm, which of the channels that it reads do.
            live: (H,) which channels do.
            changed: arguments that are others.
        """
        width = int(live.sum())
        numbers = [int(read.sum()) for read in (first, *reads) if read.any()]
        shape = {
            "num_features": int(features.sum()),
            "hidden": width,
            "layers": len(numbers) - 1,
            "dropout": self.dropout,
            "reads": numbers if any(n != width for n in numbers) else (),
        }
        small = ResGCN(**{**self.arguments, **shape, **changed})
        small.to(self.encoder.weight)
        small.encoder.take(self.encoder, features, first)
        small._stream().take(self._stream(), first, live)
        place = live.cumsum(0) - 1
        offset = torch.zeros_like(self._stream().bias)  # of blocks that are gone
        outputs = torch.ones_like(self.output.bias, dtype=torch.bool)
        steps = [*self.layers[1:], self.output]
        left = zip(small._norms(), [*small.layers[1:], small.output], strict=True)
        for norm, step, read in zip(self._norms(), steps, reads, strict=True):
            if not read.any():
                offset += step.bias
                continue
            narrow, own = next(left)
            channels = _channels(norm)[read]
            state = {n: t[read] if t.dim() else t for n, t in norm.state_dict().items()}
            state["running_mean"] = state["running_mean"] - offset[channels]
            state["channels"] = place[channels]
            narrow.load_state_dict({n: state[n] for n in narrow.state_dict()})
            own.take(step, read, outputs if step is self.output else live)
        return small

    def _stream(self) -> Any:
        """The first graph layer: what it gives is what the blocks add to."""
        return self.layers[0]

    def _norms(self) -> list[Any]:
        return list(self.norms)

    def _blocks(self) -> list[tuple[Any, Any]]:
        """Each block's norm and layer."""
        return list(zip(self.norms[:-1], self.layers[1:], strict=True))

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
