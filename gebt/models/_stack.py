"""What GCN, GIN, GraphSAGE and GAT share: a stack of layers, and rows to spare."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar, Generic, Literal, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import relu_

from gebt._checks import check_choice, check_count, check_dropout
from gebt.kernels import times_sparse_pays
from gebt.models._layers import (
    Features,
    LayerNorm,
    SparseWeight,
    cut,
    dropout,
    glorot_,
    take_rows,
    wide_product,
    written_out,
)
from gebt.models._recompute import recomputed
from gebt.sparse import Scaled, SparseMatrix

_log = logging.getLogger("gebt")


class Layer(nn.Module, ABC):
    """One weight or two and a bias, linear in its input but for an attention.

    Attributes:
        weight: (F, ...) of what is multiplied with the matrix.
        own_weight: (F, H) of a node's own features; None where there is none.
        bias: (H,).
        inner_bias: added to the product with ``weight``, or None.
    """

    weight: nn.Parameter
    own_weight: nn.Parameter | None
    bias: nn.Parameter
    inner_bias: nn.Parameter | None

    @abstractmethod
    def foldable(self) -> Self:
        """A copy with a place for constants of its input, and for `scale`."""

    @abstractmethod
    def scale(self, factor: Tensor, term: Tensor) -> None:
        """Multiply the output by (H,) and add (H,), in place."""

    @abstractmethod
    def varies(self) -> Tensor:
        """(H,) the units that are not the same in every row, whatever the input."""

    @abstractmethod
    def reads(self, live: Tensor) -> Tensor:
        """(F,) the inputs that the units of (H,) depend on."""

    @abstractmethod
    def take(self, of: Self, inputs: Tensor, units: Tensor) -> None:
        """Copy from a larger layer what belongs to some inputs (F,) and units (H,)."""

    def whole(self, units: Tensor) -> Tensor:
        """(H,) the units that stay if those of (H,) must."""
        return units

    def weights(self) -> list[nn.Parameter]:
        """The one or two weights."""
        both = (self.weight, self.own_weight)
        return [weight for weight in both if weight is not None]

    def take_constants(self, constant: Tensor, level: Tensor) -> None:
        """Read no longer the inputs of (F,) that are ``level`` (F,) in every row."""
        level = torch.where(constant, level, 0)
        assert self.inner_bias is not None
        self.inner_bias.add_(level @ self.weight)
        if self.own_weight is not None:
            self.bias.add_(level @ self.own_weight)
        for weight in self.weights():
            weight[constant] = 0


class LinearLayer(Layer):
    """``A (X W + c) + X V + b``: linear in its input.

    The own path ``X V`` is there where asked for; c, the inner bias, after compaction.
    Weights are (in, out), as papers write X W: a row belongs to an input, and sparse
    features multiply it without a transposed copy.

    Args:
        in_width: F.
        out_width: H.
        own: with weights of a node's own features.
        inner_bias: add one inside the product with the matrix; only `compact` asks.

    Attributes:
        weight: (F, H) of what is multiplied with the matrix.
        own_weight: (F, H) of a node's own features; None where there is none.
        bias: (H,).
        inner_bias: (H,) or None.
        sparse: by name, a weight as it was when `pick_sparse_weights` found that
            multiplying with its non-zero entries alone is faster.
    """

    def __init__(
        self,
        in_width: int,
        out_width: int,
        *,
        own: bool = False,
        inner_bias: bool = False,
    ):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(in_width, out_width))
        own_weight = nn.Parameter(torch.empty(in_width, out_width))
        self.own_weight = own_weight if own else None
        self.bias = nn.Parameter(torch.empty(out_width))
        self.inner_bias = nn.Parameter(torch.empty(out_width)) if inner_bias else None
        self.sparse: dict[str, SparseWeight] = {}
        self.reset_parameters()

    @property
    def width(self) -> int:
        """H."""
        return self.bias.shape[0]

    def forward(self, x: Features, matrix: SparseMatrix | Scaled) -> Tensor:
        """(M, F) and (N, M) to (N, H)."""
        if self.own_weight is not None:
            if self.aggregates_first(x):
                near = self.product("weight", matrix @ written_out(x), None)
            else:
                near = matrix @ self.product("weight", x, self.inner_bias)
            own = take_rows(x, matrix.own)
            both = near.add_(self.product("own_weight", own, self.bias))
            return cut(both, self.width)
        if self.aggregates_first(x):
            wide = self.product("weight", matrix @ written_out(x), self.bias)
            return cut(wide, self.width)
        out = matrix @ self.product("weight", x, self.inner_bias)
        # In place, as no gradient needs the product: a fresh (N, H) costs page faults.
        if out.shape[1] == self.width:
            return out.add_(self.bias)
        return out[:, : self.width] + self.bias

    def aggregates_first(self, x: Any) -> bool:
        """Whether to multiply with the matrix before the weight.

        The sum is the same. For dense inputs no wider than the output it is less work:
        the product with the matrix is no wider, the one with the weight has only the
        rows that are wanted, and constant features need no transposed product in the
        backward. An inner bias has its place after the weight.
        """
        if self.inner_bias is not None or isinstance(x, SparseMatrix):
            return False
        return self.weight.shape[0] <= self.width

    def pick_sparse_weights(self) -> None:
        """Let products without gradients skip a weight's zeros where that is faster."""
        self.sparse = {
            name: SparseWeight(weight)
            for name, weight in self.named_parameters(recurse=False)
            if weight.dim() == 2 and times_sparse_pays(weight)
        }

    def __getstate__(self) -> dict[str, Any]:
        """For copies and files: they have other weights, which may change."""
        return self.__dict__ | {"sparse": {}}

    def product(self, name: str, x: Features, bias: Tensor | None) -> Tensor:
        """``x @ weight + bias`` with the weight of that name; `cut` the result."""
        weight = getattr(self, name)
        sparse = self.sparse.get(name)
        if isinstance(x, Tensor) and sparse and sparse.stands_for(weight):
            return sparse.product(x, bias)
        return wide_product(x, weight, bias)

    def foldable(self) -> Self:
        """A copy with an inner bias."""
        copy = deepcopy(self)
        if copy.inner_bias is None:
            copy.inner_bias = nn.Parameter(torch.zeros_like(self.bias))
        return copy

    def varies(self) -> Tensor:
        """(H,) the units that an input reaches, or an inner bias."""
        reached = torch.stack([(w != 0).any(dim=0) for w in self.weights()]).any(dim=0)
        # What is added before the product differs from row to row after it.
        return reached if self.inner_bias is None else reached | (self.inner_bias != 0)

    def reads(self, live: Tensor) -> Tensor:
        """(F,) the inputs with a weight for one of the units."""
        read = [(weight[:, live] != 0).any(dim=1) for weight in self.weights()]
        return torch.stack(read).any(dim=0)

    def take(self, of: Self, inputs: Tensor, units: Tensor) -> None:
        """Copy the rows and columns."""
        for weight, whole in zip(self.weights(), of.weights(), strict=True):
            weight.copy_(whole[inputs][:, units])
        self.bias.copy_(of.bias[units])
        if self.inner_bias is not None and of.inner_bias is not None:
            self.inner_bias.copy_(of.inner_bias[units])

    def scale(self, factor: Tensor, term: Tensor) -> None:
        """Multiply the output by (H,) and add (H,), in place."""
        for each in (*self.weights(), self.bias, self.inner_bias):
            if each is not None:
                each.mul_(factor)
        self.bias.add_(term)

    def reset_parameters(self) -> None:
        """Glorot-uniform weights, zero biases."""
        for weight in self.weights():
            glorot_(weight, *weight.shape)
        nn.init.zeros_(self.bias)
        if self.inner_bias is not None:
            nn.init.zeros_(self.inner_bias)


class MapLayer(LinearLayer):
    """``X W + b``: of each node by itself."""

    def forward(self, x: Features, matrix: Any = None) -> Tensor:
        """(N, F) to (N, H)."""
        return cut(self.product("weight", x, self.bias), self.width)

    def foldable(self) -> Self:
        """A copy: its bias takes constants."""
        return deepcopy(self)

    def take_constants(self, constant: Tensor, level: Tensor) -> None:
        """Read no longer the inputs of (F,) that are ``level`` (F,) in every row."""
        self.bias.add_(torch.where(constant, level, 0) @ self.weight)
        self.weight[constant] = 0


L = TypeVar("L", bound=Layer)
Norm = Literal["none", "batch", "layer"]
"""After a layer, of each unit over the nodes or of each node over the units."""


class Stack(nn.Module, ABC, Generic[L]):
    """Layers with an activation between them and dropout before each.

    Args:
        widths: F, those between the layers, and C.
        layers: ``layer(h, matrix)`` each; gives (R, H) for a matrix of R rows.
        dropout: share of entries dropped before each layer during training.
        norm: what follows each layer but maps and the very last.
        input_map: have a `MapLayer` in place of the first layer.
        output_map: have one in place of the last.
        norm_over: how many units each layer norm is over; by default all.
        recompute: keep of each layer only its input for the backward, and compute it
            again there.

    Attributes:
        arguments: what the model was built with, for files that must rebuild it.
    """

    arguments: dict[str, Any]

    def __init__(
        self,
        widths: Sequence[int],
        layers: Sequence[L],
        dropout: float,
        *,
        norm: Norm,
        input_map: bool,
        output_map: bool,
        norm_over: Sequence[int] = (),
        recompute: bool = False,
    ):
        super().__init__()
        check_dropout("dropout", dropout)
        self.layers = nn.ModuleList(layers)
        if input_map:
            self.layers[0] = MapLayer(*widths[:2])
        if output_map:
            self.layers[-1] = MapLayer(*widths[-2:])
        normed = widths[1 + input_map : -1]
        self.norms = nn.ModuleList(norms_of(norm, normed, norm_over))
        self.dropout = dropout
        self.recompute = recompute

    @abstractmethod
    def matrix(self, adjacency: SparseMatrix) -> SparseMatrix | Scaled:
        """What the layers multiply with, from the adjacency without self-loops."""

    def activation(self, h: Tensor) -> Tensor:
        """Between the layers; may work in place."""
        return relu_(h)

    def stacked(self) -> list[L]:
        """The layers, first one first."""
        layers: Any = self.layers
        return list(layers)

    def first(self) -> L:
        """The first layer that multiplies with the matrix."""
        return self.stacked()[self._maps_before()]

    def normed(self) -> dict[int, Any]:
        """The norms, by the number of the layer that each follows."""
        return dict(enumerate(self.norms, self._maps_before()))

    def _maps_before(self) -> int:
        return int(isinstance(self.layers[0], MapLayer))

    def forward(
        self, x: Features, adjacency: SparseMatrix, rows: Tensor | None = None
    ) -> Tensor:
        """Outputs per node: class scores before the softmax, or embeddings.

        Args:
            x: (N, F) features, dense or sparse.
            adjacency: (N, N) without self-loops, not normalised.
            rows: (R,) the nodes wanted, None for all; nothing that they do not
                depend on is computed. In training, batch norms depend on all nodes.

        Returns:
            (R, C), or (N, C).
        """
        matrix: Any = self.matrix(adjacency)
        norms = self.normed()
        products = sum(not isinstance(layer, MapLayer) for layer in self.layers)
        whole, spare = 0, 0  # products of all rows; the layer where rows are chosen
        if self.training and any(isinstance(n, nn.BatchNorm1d) for n in self.norms):
            whole, spare = len(norms), max(norms) + 1
        read, few = matrix.hops(rows, products - whole)
        hops = iter([matrix] * whole + few)
        h: Any = x
        nodes = matrix.nodes
        last = len(self.layers) - 1
        for depth, layer in enumerate(self.layers):
            if depth == spare:
                h = take_rows(h, read)
                nodes = nodes if read is None else matrix.of_nodes(read)
            factor = None if isinstance(layer, MapLayer) else next(hops)
            norm = norms.get(depth)
            step = partial(self._step, layer, factor, norm, nodes, depth < last)
            h = recomputed(step, h, norm) if self.recompute else step(h)
            nodes = nodes if factor is None else factor.nodes
        return h

    def _step(
        self,
        layer: nn.Module,
        factor: Any,
        norm: nn.Module | None,
        nodes: Tensor | None,
        activated: bool,
        h: Any,
    ) -> Tensor:
        """One layer, from what the activation before it gave to its own."""
        h = layer(dropout(h, self.dropout, self.training, nodes, lazy=True), factor)
        if norm is not None:
            h = norm(h)
        return self.activation(h) if activated else h

    @abstractmethod
    def sized(
        self, layers: Sequence[Layer], units: Sequence[Tensor]
    ) -> Mapping[str, Any]:
        """The arguments of a stack of fewer units.

        Args:
            layers: as the stack's, or foldable ones.
            units: (H,) boolean for each layer, which of its units stay.
        """

    @torch.no_grad()
    def shrink(self) -> tuple[Self, Tensor]:
        """Without the units and features that no output depends on.

        Batch norms become part of the weights and biases before them. Hidden units
        that nothing reads go. Hidden units that no input reaches compute a constant,
        the activation of their bias; they go too, and what they contributed becomes a
        bias of the next linear map, inside the product with the matrix, whose row sums
        are not all 1.

        A layer norm reads all units before it, so of those only the constant ones go
        that nothing else reads: it keeps their part of mean and variance.

        Returns:
            The smaller model, in evaluation mode, and (F,) which features it reads.
        """
        layers = [layer.foldable() for layer in self.stacked()]
        norms = self.normed()
        for k, norm in list(norms.items()):
            if isinstance(norm, nn.BatchNorm1d):
                layers[k].scale(*_of_running_statistics(norm))
                del norms[k]
        for k, (layer, following) in enumerate(pairwise(layers)):
            if k not in norms:
                level = self.activation(layer.bias.clone())
                following.take_constants(~layer.varies(), level)
        live = live_units(layers, norms)
        units = [live[0], *(a.whole(b) for a, b in zip(layers, live[1:], strict=True))]
        for k in norms:
            norms[k] = norms[k].without(units[k + 1], layers[k].bias)
        shape: dict[str, Any] = {
            "num_features": int(units[0].sum()),
            "dropout": self.dropout,
            "norm": "layer" if norms else "none",
            "norm_over": [norm.over for norm in norms.values()]
            if any(norm.absent is not None for norm in norms.values())
            else (),
        }
        small = self._of(layers, units, inner_bias=True, **shape)
        inner = [layer.inner_bias for layer in small.stacked()]
        if not any(bool(bias.any()) for bias in inner if bias is not None):
            small = self._of(layers, units, inner_bias=False, **shape)
        if norms:
            small.norms = nn.ModuleList(norms.values())
        return small.eval(), units[0]

    @torch.no_grad()
    def slim(self, keep: Sequence[Tensor]) -> Self:
        """A copy with fewer hidden units, which keep their weights, to be trained on.

        Unlike after `shrink` the outputs are others, and norms stay; a layer norm is
        over the units that are left. Dropout is less, by the fourth root of the share
        of units that stay: it would leave a narrow model too few.

        Args:
            keep: (H,) boolean, True = kept, for each width between two layers.
        """
        layers = self.stacked()
        weight = layers[0].weight
        ends = (weight.shape[0], self.arguments["num_outputs"])
        first, last = (weight.new_ones(n, dtype=torch.bool) for n in ends)
        units = [a.whole(b) for a, b in zip(layers, [*keep, last], strict=True)]
        hidden = units[:-1]
        share = sum(int(u.sum()) for u in hidden) / sum(u.numel() for u in hidden)
        dropout = self.dropout * share**0.25
        small = self._of(layers, [first, *units], norm_over=(), dropout=dropout)
        for k, norm in small.normed().items():
            whole = self.normed()[k].state_dict()
            state = {n: t[units[k]] if t.dim() else t for n, t in whole.items()}
            norm.load_state_dict({n: state[n] for n in norm.state_dict()})
        return small.train(self.training)

    def _of(
        self, layers: Sequence[Any], units: Sequence[Tensor], **changed: Any
    ) -> Self:
        """A stack of those units of layers alone; its norms are new.

        Args:
            layers: one for each of the stack's.
            units: (H,) boolean for each width, the features' first, the outputs' last.
            changed: arguments that are others.
        """
        arguments = {**self.arguments, **self.sized(layers, units[1:]), **changed}
        small = type(self)(**arguments).to(layers[0].weight)
        for k, (layer, of) in enumerate(zip(small.stacked(), layers, strict=True)):
            layer.take(of, units[k], units[k + 1])
        return small

    def unit_scores(self) -> list[Tensor]:
        """How large the units of each hidden layer are, (H,) each.

        Behind a batch norm by its |scale|, as EB-Train ranks channels; else by the L2
        norm of the weights into a unit, times that of those that read it.

        Source: You et al., "Drawing Early-Bird Tickets", ICLR 2020.
        """
        found = []
        for k, (layer, reader) in enumerate(pairwise(self.stacked())):
            norm = self.normed().get(k)
            if isinstance(norm, nn.BatchNorm1d):
                found.append(norm.weight.abs())
                continue
            into: Any = sum(weight.square().sum(dim=0) for weight in layer.weights())
            out: Any = sum(weight.square().sum(dim=1) for weight in reader.weights())
            found.append((into * out).sqrt())
        return found


def live_units(layers: Sequence[Layer], norms: Collection[int] = ()) -> list[Tensor]:
    """Per width, features first, which units some output depends on.

    A layer norm after a layer, by its number, reads all units or none; of those only
    the constant ones are not live.
    """
    last = layers[-1].bias
    live = [torch.ones_like(last, dtype=torch.bool)]
    for k, layer in reversed(list(enumerate(layers))):
        read = layer.reads(live[0])
        if k - 1 in norms:
            read = (read | layers[k - 1].varies()) & read.any()
        live.insert(0, read)
    return live


def widths_between(
    hidden: int | Sequence[int], layers: int | None, maps: int
) -> list[int]:
    """The widths between all layers, from those or from one and a number of layers.

    Args:
        hidden: one width, or the width of each.
        layers: that multiply with the adjacency, for one width; by default 2.
        maps: how many linear maps come beside them.
    """
    if isinstance(hidden, int):
        layers = 2 if layers is None else layers
        check_count("layers", layers)
        return [hidden] * (layers + maps - 1)
    if layers is not None:
        raise ValueError(
            f"`hidden` gives the widths between all layers, {list(hidden)}: leave out "
            "`layers`."
        )
    if len(hidden) < maps:
        raise ValueError(
            f"`hidden` must hold {maps} widths or more, for {maps} linear maps beside "
            f"one layer or more; got {list(hidden)}."
        )
    return list(hidden)


def norms_of(
    kind: Norm, widths: Sequence[int], over: Sequence[int] = ()
) -> list[nn.Module]:
    """A norm for each width; of how many units each layer norm is, unless of all."""
    check_choice("norm", kind, Norm)
    if over and (kind != "layer" or len(over) != len(widths)):
        raise ValueError(
            f"`norm_over` is for layer norms, and one number for each of "
            f"{len(widths)}; got {list(over)} for `norm={kind!r}`."
        )
    if kind == "batch":
        return [nn.BatchNorm1d(width) for width in widths]
    if kind == "layer":
        pairs = zip(widths, over or widths, strict=True)
        return [LayerNorm(width, counted) for width, counted in pairs]
    return []


_PLAIN: dict[str, Any] = {
    "residual": False,
    "norm": "none",
    "input_map": False,
    "output_map": False,
    "norm_over": [],
    "recompute": False,
    "folded": False,
    "inner_bias": False,
}
"""Arguments that files say only where they are others: they were not there always."""


def not_plain(**shape: Any) -> dict[str, Any]:
    """The arguments that make a stack other than a plain one: what files say."""
    return {name: value for name, value in shape.items() if value != _PLAIN[name]}


class LinearStack(Stack[LinearLayer]):
    """A stack of linear layers with ReLU between them.

    ``relu(norm(A X W + X V + b))`` each, the last one bare. With an own path ``X V``,
    norms and maps it is the family of Luo et al. 2024, "Classic GNNs are strong
    baselines", and Platonov et al. 2023.

    Args:
        num_features: F.
        hidden: width of every hidden layer, or a sequence with the width of each.
        num_outputs: C, classes or width of the embedding.
        layers: how many multiply with the adjacency, where ``hidden`` is one width;
            by default 2.
        dropout: share of entries dropped before each layer during training, features
            included.
        residual: give each layer a linear path of the node's own features, too.
        norm: what follows each layer but maps and the last one: ``"batch"`` norm,
            whose statistics in training are over all nodes, so that all are computed;
            ``"layer"`` norm, or ``"none"``.
        input_map: begin with a linear map of each node by itself, and ReLU.
        output_map: end with one.
        recompute: keep of each layer only its input for the backward, and compute it
            again there; for graphs whose activations do not fit in memory.
        inner_bias: add one inside each product with the matrix; only `compact` asks.
        norm_over: how many units each layer norm is over; only `compact` asks.
    """

    own_path: ClassVar[bool] = False
    ignores_zeros: ClassVar[bool] = False
    drops: ClassVar[str] = "features, hidden units"

    def __init__(
        self,
        num_features: int,
        hidden: int | Sequence[int],
        num_outputs: int,
        *,
        layers: int | None = None,
        dropout: float = 0.5,
        residual: bool = False,
        norm: Norm = "none",
        input_map: bool = False,
        output_map: bool = False,
        recompute: bool = False,
        inner_bias: bool = False,
        norm_over: Sequence[int] = (),
    ):
        if residual and self.own_path:
            raise ValueError(
                f"every layer of a {type(self).__name__} has a path of the node's own "
                "features: leave out `residual`."
            )
        between = widths_between(hidden, layers, input_map + output_map)
        self.arguments = {
            "num_features": num_features,
            "hidden": between,
            "num_outputs": num_outputs,
            "dropout": dropout,
            "inner_bias": inner_bias,
        } | not_plain(
            residual=residual,
            norm=norm,
            input_map=input_map,
            output_map=output_map,
            recompute=recompute,
            norm_over=list(norm_over),
        )
        widths = [num_features, *between, num_outputs]
        own = residual or self.own_path
        super().__init__(
            widths,
            [
                LinearLayer(a, b, own=own, inner_bias=inner_bias)
                for a, b in pairwise(widths)
            ],
            dropout,
            norm=norm,
            input_map=input_map,
            output_map=output_map,
            norm_over=norm_over,
            recompute=recompute,
        )

    def sized(
        self, layers: Sequence[Layer], units: Sequence[Tensor]
    ) -> Mapping[str, Any]:
        """The arguments of a stack of those units alone."""
        return {"hidden": [int(each.sum()) for each in units[:-1]]}

    def shrink(self) -> tuple[Self, Tensor]:
        """As every `Stack`; weights of mostly zeros are multiplied as sparse ones."""
        small, reads = super().shrink()
        small.pick_sparse_weights()
        return small, reads

    def pick_sparse_weights(self) -> None:
        """Where a layer's weight is faster as a sparse one, use and log it."""
        for depth, layer in enumerate(self.stacked(), start=1):
            layer.pick_sparse_weights()
            for name, sparse in layer.sparse.items():
                outputs, inputs = sparse.columns.shape
                zeros = 1 - sparse.columns.pattern.nnz / (outputs * inputs)
                _log.info(
                    "compact: layer %d multiplies by its %s, %d x %d with %.0f%% "
                    "zeros, as a sparse matrix",
                    depth,
                    name.replace("_", " "),
                    inputs,
                    outputs,
                    100 * zeros,
                )


def _of_running_statistics(norm: Any) -> tuple[Tensor, Tensor]:
    """What a batch norm multiplies by and adds in evaluation mode, (H,) each."""
    factor = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return factor, norm.bias - norm.running_mean * factor
