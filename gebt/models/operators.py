"""Operators on the same input, side by side: the layers of a `SuperGNN`."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gebt.models._layers import Features, cut
from gebt.models._stack import LinearLayer, MapLayer, Norm
from gebt.models.gat import GATLayer
from gebt.models.gcn import gcn_matrix
from gebt.models.sage import sage_matrix
from gebt.sparse import Scaled, SparseMatrix
from gebt.sparse.shard import Shard

OPERATORS = ("gcn", "sage", "gin", "gat", "skip", "hops")
"""What may stand side by side: GCN, GraphSAGE, GIN, GAT of one head, a map of each node
by itself, and GCN's matrix applied twice."""
HOPS = {"gcn": 1, "sage": 1, "gin": 1, "gat": 1, "skip": 0, "hops": 2}
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

    def found(self, x: Features, matrices: Mapping[str, Any]) -> list[Tensor]:
        """What each operator gives."""
        return [branch(x, matrices[name]) for name, branch in self.branches.items()]

    def forward(self, x: Features, matrices: Mapping[str, Any]) -> Tensor:
        """(N, F) to (N, H), or (N, C)."""
        found = self.found(x, matrices)
        if self.outputs is None:
            return self.scale(torch.cat(found, dim=1))
        pairs = zip(found, self.scale.weight, strict=True)
        return torch.stack([out * factor for out, factor in pairs]).sum(dim=0)

    def spread(self, each: Mapping[str, float]) -> Tensor:
        """Of a number for each operator one for each entry of the scale."""
        of = self.widths.items()
        per = [1 if self.outputs else width for _, width in of]
        numbers = torch.tensor([each[name] for name, _ in of], dtype=torch.float64)
        return numbers.repeat_interleave(torch.tensor(per))

    def units_of(self, keep: Tensor) -> dict[str, Tensor]:
        """Of a mask of the scale's entries what each operator has of it."""
        if self.outputs is None:
            parts = keep.split([*self.widths.values()])
        else:
            parts = tuple(each.expand(self.outputs) for each in keep)
        return dict(zip(self.widths, parts, strict=True))


def _looped(adjacency: SparseMatrix) -> SparseMatrix:
    """``A + I``, which the attention needs written out."""
    return adjacency.derived("looped", adjacency.with_diagonal)


def _averaged(adjacency: SparseMatrix) -> SparseMatrix:
    """``(A + I) / c``, c the mean of its row sums.

    A sum over all neighbours is larger than the others' means, and a small scale would
    do: of operators that are compared by their scales it would win.
    """
    if isinstance(adjacency, Shard):
        raise ValueError(
            "the GIN of a SuperGNN divides by the mean degree of the whole graph, of "
            "which each rank has a part. Start it without torchrun, or leave `gin` out."
        )

    def build() -> SparseMatrix:
        looped = _looped(adjacency)
        mean = looped.value.detach().abs().sum() / max(1, looped.shape[0])
        return looped.with_value(looped.value / mean)

    return adjacency.derived("averaged", build)


MATRICES: dict[str, Callable[[SparseMatrix], Any]] = {
    "gcn": gcn_matrix,
    "sage": sage_matrix,
    "gin": _averaged,
    "gat": _looped,
    "skip": lambda adjacency: None,
    "hops": gcn_matrix,
}
"""What each operator multiplies with, from the adjacency without self-loops."""
