"""What GCN, GIN, GraphSAGE and GAT share: a stack of layers, and rows to spare."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Generic, TypeGuard, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import relu_

from gebt._checks import check_dropout
from gebt.kernels import times_sparse_pays
from gebt.models._layers import (
    Features,
    SparseWeight,
    dropout,
    glorot_,
    take_rows,
    wide_product,
)
from gebt.sparse import SparseMatrix

_log = logging.getLogger("gebt")


class LinearLayer(nn.Module):
    """A layer that is linear in its input: one or more products, added up, and a bias.

    Weights are (in, out), as papers write X W: a row belongs to an input, and sparse
    features multiply it without a transposed copy.

    Args:
        in_width: F.
        out_width: H.
        inner_bias: add one inside the product with the matrix; only `compact` asks.

    Attributes:
        weight: (F, H) of what is multiplied with the matrix.
        own_weight: (F, H) of a node's own features; None where there is none.
        bias: (H,).
        inner_bias: (H,) or None.
        sparse: by name, a weight as it was when `pick_sparse_weights` found that
            multiplying with its non-zero entries alone is faster.
    """

    has_own_weight: ClassVar[bool] = False

    def __init__(self, in_width: int, out_width: int, *, inner_bias: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(in_width, out_width))
        own = nn.Parameter(torch.empty(in_width, out_width))
        self.own_weight = own if self.has_own_weight else None
        self.bias = nn.Parameter(torch.empty(out_width))
        self.inner_bias = nn.Parameter(torch.empty(out_width)) if inner_bias else None
        self.sparse: dict[str, SparseWeight] = {}
        self.reset_parameters()

    @property
    def width(self) -> int:
        """H."""
        return self.bias.shape[0]

    def aggregates_first(self, x: Features) -> TypeGuard[Tensor]:
        """Whether to multiply with the matrix before the weight.

        The sum is the same. For dense inputs no wider than the output it is less work:
        the product with the matrix is no wider, the one with the weight has only the
        rows that are wanted, and constant features need no transposed product in the
        backward. An inner bias has its place after the weight.
        """
        if self.inner_bias is not None or not isinstance(x, Tensor):
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

    def weights(self) -> list[nn.Parameter]:
        """The one or two weights."""
        both = (self.weight, self.own_weight)
        return [weight for weight in both if weight is not None]

    def reset_parameters(self) -> None:
        """Glorot-uniform weights, zero biases."""
        for weight in self.weights():
            glorot_(weight, *weight.shape)
        nn.init.zeros_(self.bias)
        if self.inner_bias is not None:
            nn.init.zeros_(self.inner_bias)


Layer = TypeVar("Layer", bound=nn.Module)
Linear = TypeVar("Linear", bound=LinearLayer)


class Stack(nn.Module, ABC, Generic[Layer]):
    """Layers with an activation between them and dropout before each.

    Args:
        layers: ``layer(h, matrix)`` each; gives (R, H) for a matrix of R rows.
        dropout: share of entries dropped before each layer during training.

    Attributes:
        arguments: what the model was built with, for files that must rebuild it.
    """

    arguments: dict[str, Any]

    def __init__(self, layers: Sequence[Layer], dropout: float):
        super().__init__()
        check_dropout("dropout", dropout)
        self.layers = nn.ModuleList(layers)
        self.dropout = dropout

    @abstractmethod
    def matrix(self, adjacency: SparseMatrix) -> SparseMatrix:
        """What the layers multiply with, from the adjacency without self-loops."""

    def activation(self, h: Tensor) -> Tensor:
        """Between the layers; may work in place."""
        return relu_(h)

    def stacked(self) -> list[Layer]:
        """The layers, first one first."""
        layers: Any = self.layers
        return list(layers)

    def forward(
        self, x: Features, adjacency: SparseMatrix, rows: Tensor | None = None
    ) -> Tensor:
        """Outputs per node: class scores before the softmax, or embeddings.

        Args:
            x: (N, F) features, dense or sparse.
            adjacency: (N, N) without self-loops, not normalised.
            rows: (R,) the nodes wanted, None for all; nothing that they do not
                depend on is computed.

        Returns:
            (R, C), or (N, C).
        """
        read, hops = self.matrix(adjacency).hops(rows, len(self.layers))
        h: Any = take_rows(x, read)
        for depth, (layer, hop) in enumerate(zip(self.layers, hops, strict=True)):
            if depth:
                h = self.activation(h)
            h = layer(dropout(h, self.dropout, self.training), hop)
        return h


class LinearStack(Stack[Linear]):
    """A stack of linear layers with ReLU between them.

    Args:
        num_features: F.
        hidden: width of the hidden layer, or a sequence with the width of each.
        num_outputs: C, classes or width of the embedding.
        dropout: share of entries dropped before each layer during training, features
            included.
        inner_bias: add one inside each product with the matrix; only `compact` asks.
    """

    layer_type: ClassVar[type[LinearLayer]]
    ignores_zeros: ClassVar[bool] = False
    drops: ClassVar[str] = "features, hidden units"

    def __init__(
        self,
        num_features: int,
        hidden: int | Sequence[int],
        num_outputs: int,
        *,
        dropout: float = 0.5,
        inner_bias: bool = False,
    ):
        between = [hidden] if isinstance(hidden, int) else list(hidden)
        self.arguments = {
            "num_features": num_features,
            "hidden": between,
            "num_outputs": num_outputs,
            "dropout": dropout,
            "inner_bias": inner_bias,
        }
        widths = [num_features, *between, num_outputs]
        layer: Any = self.layer_type
        pairs = zip(widths, widths[1:], strict=False)
        super().__init__(
            [layer(a, b, inner_bias=inner_bias) for a, b in pairs], dropout
        )

    @torch.no_grad()
    def shrink(self) -> tuple[nn.Module, Tensor]:
        """Without the units and features that no output depends on.

        Hidden units that nothing reads go. Hidden units that no input reaches compute
        a constant, the activation of their bias; they go too, and what they
        contributed becomes a bias of the next linear map, inside the product with the
        matrix, whose row sums are not all 1.

        Returns:
            The smaller model, in evaluation mode, fast at weights of mostly zeros, and
            (F,) which features it reads.
        """
        layers = self.stacked()
        biases: list[Tensor] = [layer.bias for layer in layers]
        inner = [
            torch.zeros_like(layer.bias)
            if layer.inner_bias is None
            else layer.inner_bias
            for layer in layers
        ]
        live = _read_by_something(layers)
        for k, (layer, following) in enumerate(zip(layers, layers[1:], strict=False)):
            # Nothing live reaches such a unit, and nothing is added before the product.
            constant = live[k + 1] & (inner[k] == 0)
            for weight in layer.weights():
                constant &= ~(weight[live[k]] != 0).any(dim=0)
            level = torch.where(constant, self.activation(biases[k].clone()), 0)
            inner[k + 1] = inner[k + 1] + level @ following.weight
            if following.own_weight is not None:
                biases[k + 1] = biases[k + 1] + level @ following.own_weight
            live[k + 1] = live[k + 1] & ~constant

        small = type(self)(
            int(live[0].sum()),
            [int(units.sum()) for units in live[1:-1]],
            int(live[-1].sum()),
            dropout=self.dropout,
            inner_bias=any(bool(b.any()) for b in inner),
        ).to(layers[0].weight)
        for k, (layer, of) in enumerate(zip(small.stacked(), layers, strict=True)):
            for weight, whole in zip(layer.weights(), of.weights(), strict=True):
                weight.copy_(whole[live[k]][:, live[k + 1]])
            layer.bias.copy_(biases[k][live[k + 1]])
            if layer.inner_bias is not None:
                layer.inner_bias.copy_(inner[k][live[k + 1]])
        small.pick_sparse_weights()
        return small.eval(), live[0]

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


def _read_by_something(layers: Sequence[LinearLayer]) -> list[Tensor]:
    """Per width, features first, which units some output depends on."""
    last = layers[-1].weight
    live = [torch.ones(last.shape[1], dtype=torch.bool, device=last.device)]
    for layer in reversed(layers):
        read = [(weight[:, live[0]] != 0).any(dim=1) for weight in layer.weights()]
        live.insert(0, torch.stack(read).any(dim=0))
    return live
