"""A network of several operators side by side, of which a search leaves the best.

Source: You et al., "SuperTickets", ECCV 2022, for graph networks.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import relu_

from gebt._checks import check_choice, check_count, check_dropout
from gebt.models._layers import Features, dropout
from gebt.models._stack import Norm
from gebt.models.operators import MATRICES, OPERATORS, Branches
from gebt.models.recipe import register
from gebt.options import Fit
from gebt.sparse import SparseMatrix


class SuperGNN(nn.Module):
    """Layers of several operators side by side, each unit with a scale.

    ``relu(scale * [A1 X W1, A2 X W2, ...])`` each, with a batch norm before the scale
    or none; of the last layer the operators' outputs are added up, each with a scale.
    Dropout before each layer, features included. `gebt.find_super_ticket` searches
    which operators, and how wide, a graph needs; what it leaves is a `SuperGNN`, too.

    Args:
        num_features: F.
        hidden: units of each operator in a hidden layer, where no list says otherwise.
        num_outputs: C, classes or width of the embedding.
        layers: how many.
        dropout: share of entries dropped before each layer during training, and of
            GAT's attention.
        norm: ``"batch"`` over all nodes, or ``"none"``.
        gcn, sage, gin, gat, skip, hops: units of that operator in each layer, 0 for
            none; of the last layer, whose width is C, 1 or 0.

    Attributes:
        arguments: what the model was built with, for files that must rebuild it.
    """

    arguments: dict[str, Any]
    drops = "features, hidden units"

    def __init__(
        self,
        num_features: int,
        hidden: int,
        num_outputs: int,
        *,
        layers: int = 2,
        dropout: float = 0.5,
        norm: Norm = "none",
        gcn: Sequence[int] = (),
        sage: Sequence[int] = (),
        gin: Sequence[int] = (),
        gat: Sequence[int] = (),
        skip: Sequence[int] = (),
        hops: Sequence[int] = (),
    ):
        super().__init__()
        check_count("layers", layers)
        check_dropout("dropout", dropout)
        check_choice("norm", norm, Norm)
        if norm == "layer":
            raise ValueError(
                "a SuperGNN has the norms 'batch' and 'none', got 'layer': that reads "
                "all units, so that none could leave."
            )
        given = dict(zip(OPERATORS, (gcn, sage, gin, gat, skip, hops), strict=True))
        every = [hidden] * (layers - 1) + [1]
        widths = {name: [*(each or every)] for name, each in given.items()}
        if not all(type(n) is int for each in widths.values() for n in each):
            raise ValueError(f"numbers of units must be whole, got {widths}.")
        _check_widths(widths, layers)
        self.arguments = {
            "num_features": num_features,
            "hidden": hidden,
            "num_outputs": num_outputs,
            "layers": layers,
            "dropout": dropout,
            "norm": norm,
        } | widths
        self.dropout = dropout
        self.layers = nn.ModuleList()
        width = num_features
        for k in range(layers):
            of = {name: each[k] for name, each in widths.items()}
            outputs = num_outputs if k == layers - 1 else None
            self.layers.append(Branches(width, of, outputs, norm, dropout))
            width = sum(of.values())

    def stages(self) -> list[Branches]:
        """The layers, first one first."""
        layers: Any = self.layers
        return list(layers)

    def scales(self) -> list[nn.Parameter]:
        """Of each layer the scales: (H,) of its units, (B,) of the last's operators."""
        return [layer.scale.weight for layer in self.stages()]

    def forward(self, x: Features, adjacency: SparseMatrix) -> Tensor:
        """(N, C) class scores before the softmax, or embeddings.

        Args:
            x: (N, F) features, dense or sparse.
            adjacency: (N, N) without self-loops, not normalised.
        """
        matrices = self.matrices(adjacency)
        h: Any = x
        for layer in self.stages():
            h = layer(dropout(h, self.dropout, self.training), matrices)
            h = relu_(h) if layer.outputs is None else h
        return h

    def matrices(self, adjacency: SparseMatrix) -> dict[str, Any]:
        """What the operators multiply with, by name."""
        used = {name for layer in self.stages() for name in layer.widths}
        return {name: MATRICES[name](adjacency) for name in used}

    def taken(
        self, state: Mapping[str, Tensor], keep: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """Of tensors named and shaped as the model's own those of some units.

        Args:
            state: of the state or of parameters, such as an optimiser's moments.
            keep: a mask for each of `scales`.
        """
        found = {}
        before: Tensor | slice = slice(None)
        for k, layer in enumerate(self.stages()):
            units = layer.units_of(keep[k])
            for key, tensor in state.items():
                if not key.startswith(prefix := f"layers.{k}."):
                    continue
                part, *name, leaf = key.removeprefix(prefix).split(".")
                if part == "scale":
                    found[key] = tensor[keep[k]] if tensor.dim() else tensor
                elif (live := units[name[0]]).any():
                    inputs = (before,) if leaf in ("weight", "own_weight") else ()
                    found[key] = tensor[inputs][..., live]
            before = keep[k]
        return found

    @torch.no_grad()
    def with_units(self, keep: Sequence[Tensor]) -> Self:
        """A copy of some units, which keep their weights; its outputs are others.

        Operators without any are gone.

        Args:
            keep: a mask for each of `scales`.

        Raises:
            ValueError: if a layer keeps none.
        """
        widths: dict[str, list[int]] = {name: [] for name in OPERATORS}
        for layer, mask in zip(self.stages(), keep, strict=True):
            units = layer.units_of(mask)
            for name, each in widths.items():
                count = int(units[name].sum()) if name in units else 0
                each.append(count if layer.outputs is None else int(count > 0))
        small = type(self)(**self.arguments | widths).to(self.scales()[0])
        small.load_state_dict(self.taken(self.state_dict(), keep))
        return small.train(self.training)

    @torch.no_grad()
    def shrink(self) -> tuple[nn.Module, Tensor]:
        """Without the hidden units, and the features, that no weight reads.

        Of GAT, whose attention reads its units, all or none go.

        Returns:
            The smaller model, in evaluation mode, and (F,) which features it reads.
        """
        keep = [torch.ones_like(s, dtype=torch.bool) for s in self.scales()]
        for k, layer in reversed([*enumerate(self.stages())]):
            units, read = layer.units_of(keep[k]), []
            for name, branch in layer.branches.items():
                for leaf in ("weight", "own_weight"):
                    weight = getattr(branch, leaf, None)
                    if weight is not None:
                        read.append((weight[:, units[name]] != 0).any(dim=1))
            live = torch.stack(read).any(dim=0)
            if not k:
                break
            for name, part in self.stages()[k - 1].units_of(live).items():
                if name == "gat" and part.any():
                    part.fill_(True)  # a view of what is live
            if not live.any():
                live[0] = True  # a layer of none could not be built
            keep[k - 1] = live
        small = self.with_units(keep)
        state = small.state_dict()
        for key, tensor in state.items():
            if key.startswith("layers.0.") and key.endswith("weight"):
                if tensor.dim() == 2:
                    state[key] = tensor[live]
        features = {"num_features": int(live.sum())}
        out = type(self)(**small.arguments | features).to(self.scales()[0])
        out.load_state_dict(state)
        return out.eval(), live


def _check_widths(widths: Mapping[str, Sequence[int]], layers: int) -> None:
    for name, each in widths.items():
        if len(each) != layers or min(each) < 0 or each[-1] > 1:
            raise ValueError(
                f"`{name}` must hold a number of units for each of {layers} layers, "
                f"the last one's 1 or 0; got {list(each)}."
            )
    for k in range(layers):
        if not any(each[k] for each in widths.values()):
            raise ValueError(
                f"layer {k + 1} of {layers} has no units of any operator. Leave it "
                "some, or build a model with a layer less."
            )


register(
    "super",
    SuperGNN,
    about="six operators side by side in two layers, for a search to choose from",
    source="after You et al. 2022 (SuperTickets); chosen on Cora's validation nodes",
    hidden=16,
    dropout=0.8,
    fit=Fit(lr=0.01, weight_decay=1e-3, decay="all", epochs=200),
)
register(
    "super-res",
    partial(SuperGNN, layers=3, norm="batch"),
    about="the same in three layers with batch norm",
    source="layers and training of gcn-res, in half the epochs; not tuned",
    hidden=8,
    dropout=0.2,
    fit=Fit(lr=0.01, weight_decay=5e-4, decay="all", epochs=100),
)
