"""A network of several operators side by side, of which a search leaves the best.

Source: You et al., "SuperTickets", ECCV 2022, for graph networks.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import relu_

from gebt._checks import check_choice, check_count, check_dropout
from gebt.models._layers import Features, cut, dropout
from gebt.models._stack import LinearLayer, MapLayer, Norm
from gebt.models.gat import GATLayer
from gebt.models.gcn import gcn_matrix
from gebt.models.recipe import register
from gebt.models.sage import sage_matrix
from gebt.options import Fit
from gebt.sparse import Scaled, SparseMatrix

OPERATORS = ("gcn", "sage", "gin", "gat", "skip", "hops")
"""What may stand side by side: GCN, GraphSAGE, GIN, GAT of one head, a map of each node
by itself, and GCN's matrix applied twice."""
_HOPS = {"gcn": 1, "sage": 1, "gin": 1, "gat": 1, "skip": 0, "hops": 2}
"""Products with the matrix."""


class TwoHops(LinearLayer):
    """``A (A X W) + b``."""

    def forward(self, x: Features, matrix: SparseMatrix | Scaled) -> Tensor:
        """(N, F) and (N, N) to (N, H)."""
        out = matrix @ (matrix @ self.product("weight", x, None))
        return cut(out, self.width) + self.bias


class Scale(nn.Module):
    """Each column times a factor of its own, ``weight`` (H,)."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def reset_parameters(self) -> None:
        """Ones."""
        nn.init.ones_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H) to (N, H)."""
        return x * self.weight


class Branches(nn.Module):
    """Operators on the same input: units side by side, or outputs added up.

    Args:
        in_width: F.
        widths: units of each operator; those of 0 are left out.
        outputs: C, of each operator, whose outputs are then added up; None for units.
        norm: what units go through.
        dropout: of the attention.

    Attributes:
        branches: the operators, by name.
        scale: with the ``weight`` (H,) of the units, or (B,) of the operators that are
            added up; a batch norm's where there is one.
    """

    def __init__(
        self,
        in_width: int,
        widths: Mapping[str, int],
        outputs: int | None,
        norm: Norm,
        dropout: float,
    ):
        super().__init__()
        self.outputs = outputs
        kinds: dict[str, Callable[[int, int], nn.Module]] = {
            "gcn": LinearLayer,
            "sage": partial(LinearLayer, own=True),
            "gin": LinearLayer,
            "gat": partial(GATLayer, heads=1, concat=True, dropout=dropout, own=False),
            "skip": MapLayer,
            "hops": TwoHops,
        }
        self.widths = {name: width for name, width in widths.items() if width}
        self.branches = nn.ModuleDict(
            {
                name: kinds[name](in_width, width if outputs is None else outputs)
                for name, width in self.widths.items()
            }
        )
        batch = norm == "batch" and outputs is None
        units = len(self.widths) if outputs else sum(self.widths.values())
        self.scale = nn.BatchNorm1d(units) if batch else Scale(units)

    def forward(self, x: Features, matrices: Mapping[str, Any]) -> Tensor:
        """(N, F) to (N, H), or (N, C)."""
        found = [branch(x, matrices[name]) for name, branch in self.branches.items()]
        if self.outputs is None:
            return self.scale(torch.cat(found, dim=1))
        pairs = zip(found, self.scale.weight, strict=True)
        return torch.stack([out * factor for out, factor in pairs]).sum(dim=0)

    def units_of(self, keep: Tensor) -> dict[str, Tensor]:
        """Of a mask of the scale's entries what each operator has of it."""
        if self.outputs is None:
            parts = keep.split([*self.widths.values()])
        else:
            parts = tuple(each.expand(self.outputs) for each in keep)
        return dict(zip(self.widths, parts, strict=True))


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
        used = {name for layer in self.stages() for name in layer.widths}
        matrices = {name: _MATRICES[name](adjacency) for name in used}
        h: Any = x
        for layer in self.stages():
            h = layer(dropout(h, self.dropout, self.training), matrices)
            h = relu_(h) if layer.outputs is None else h
        return h

    def unit_macs(self, x: Features, adjacency: SparseMatrix) -> list[Tensor]:
        """What each entry of `scales` costs, multiply-accumulates of its own layer.

        Products with its weights, of sparse features the stored entries, and with the
        matrix after them.
        """
        nodes, links = adjacency.shape[0], adjacency.pattern.nnz
        read = x.numel() if isinstance(x, Tensor) else x.pattern.nnz
        found = []
        for layer in self.stages():
            of = {
                name: read * (1 + (name == "sage"))
                + _HOPS[name] * (links + nodes * (name != "sage"))
                + 2 * nodes * (name == "gat")
                for name in layer.widths
            }
            if layer.outputs is None:
                each = [m for n, width in layer.widths.items() for m in [of[n]] * width]
            else:
                each = [macs * layer.outputs for macs in of.values()]
            found.append(torch.tensor(each, dtype=torch.float64, device=x.device))
            read = nodes * sum(layer.widths.values())
        return found

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
        """A copy of some units, which keep their weights; no outputs are the same.

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


def _looped(adjacency: SparseMatrix) -> SparseMatrix:
    """``A + I``, which the attention needs written out."""
    return adjacency.derived("looped", adjacency.with_diagonal)


def _averaged(adjacency: SparseMatrix) -> SparseMatrix:
    """``(A + I) / c``, c the mean of its row sums.

    A sum over all neighbours is larger than the others' means, and a small scale would
    do: of operators that are compared by their scales it would win.
    """

    def build() -> SparseMatrix:
        looped = _looped(adjacency)
        mean = looped.value.detach().abs().sum() / max(1, looped.shape[0])
        return looped.with_value(looped.value / mean)

    return adjacency.derived("averaged", build)


_MATRICES: dict[str, Callable[[SparseMatrix], Any]] = {
    "gcn": gcn_matrix,
    "sage": sage_matrix,
    "gin": _averaged,
    "gat": _looped,
    "skip": lambda adjacency: None,
    "hops": gcn_matrix,
}

register(
    "super",
    SuperGNN,
    about="six operators side by side in two layers, for a search to choose from",
    source="after You et al. 2022 (SuperTickets); chosen on Cora's and CiteSeer's "
    "validation nodes",
    hidden=16,
    dropout=0.6,
    fit=Fit(lr=0.01, weight_decay=1e-3, decay="all", epochs=200),
)
register(
    "super-res",
    partial(SuperGNN, layers=3, norm="batch"),
    about="the same in three layers with batch norm",
    source="as above; chosen on tolokers' validation nodes",
    hidden=16,
    dropout=0.2,
    fit=Fit(lr=0.01, weight_decay=5e-4, decay="all", epochs=200),
)
