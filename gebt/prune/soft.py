"""Soft masks: of one frozen model, what each of many tasks uses, and how much of it."""

import inspect
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call

from gebt._checks import check_choice
from gebt.graph import Graph
from gebt.prune.weights import prunable_weights
from gebt.sparse import SparseMatrix

Sharing = Literal["element", "row", "column"]
"""What of a weight shares a factor."""
_MARGIN = 0.5
"""A unit is dropped whose number has fallen below minus this; it starts at 0."""
_SLOPE = 4.0


class SoftMask(nn.Module):
    """A model whose frozen weights, and links, are multiplied by learned factors.

    A model around a model, so that `train` and `evaluate` take it as any other. What of
    the inner one requires a gradient, such as a task's own head, is learned as it is.

    Each unit has one real number, 0 at first. A logistic gives the probability that the
    unit is kept, a softmax over {keep, drop} the binary part of its factor: 1 or 0,
    straight-through. The other part is real: the number itself where the unit is kept.
    So a factor is 0 or at least a half, all are 1 at first, and a unit that was dropped
    may return.

    Args:
        model: changed only where it requires a gradient.
        unit: what shares a factor: a ``"column"`` or ``"row"`` of a weight, or an
            ``"element"``, as in `ModelPruner`; None leaves the weights alone.
        binary: factors are 0 or 1, without the real part.
        link_group: (E,) integers from 0 on, of each entry of the one adjacency that
            the model will be given its group, see `groups_by_degree`; the links of a
            group share a factor. None leaves links alone.

    Source: Yang et al., "KSM: Fast Multiple Task Adaption via Kernel-Wise Soft Mask
    Learning", CVPR 2021. Departs in that

    1. what shares a factor is a unit, not a convolution's kernel, and groups of links
       have factors, too;
    2. the softmax of a logistic, which is a logistic again, is written as one;
    3. the real part of a dropped unit is 0, so that dropped units may leave the model.

    Binary factors of elements are Piggyback's: Mallya et al., ECCV 2018.
    """

    link_group: Tensor | None

    def __init__(
        self,
        model: nn.Module,
        *,
        unit: Sharing | None = "row",
        binary: bool = False,
        link_group: Tensor | None = None,
    ):
        super().__init__()
        self.model = model
        self.binary = binary
        self._chooses = "rows" in inspect.signature(type(model).forward).parameters
        self._numbers: dict[str, str] = {}
        self.register_buffer("link_group", link_group, persistent=False)
        like = next(model.parameters())
        if unit is not None:
            check_choice("unit", unit, Sharing)
            for name, weight in prunable_weights(model).items():
                if not weight.requires_grad:
                    self._add(name, like.new_zeros(_shape(weight, unit)))
        if link_group is not None:
            groups = int(link_group.max()) + 1 if link_group.numel() else 0
            self._add("links", like.new_zeros(groups))

    def _add(self, name: str, start: Tensor) -> None:
        self._numbers[name] = f"number of {name.replace('.', '/')}"
        self.register_parameter(self._numbers[name], nn.Parameter(start))

    def factors(self) -> dict[str, Tensor]:
        """Of each weight, by name, and of ``"links"``, as they are now; they broadcast.

        Of a weight (F, H) they are (1, H), (F, 1) or (F, H), of links (G,).
        """
        return {name: self._factor(at) for name, at in self._numbers.items()}

    def _factor(self, at: str) -> Tensor:
        number = self.get_parameter(at)
        keep = torch.sigmoid(_SLOPE * (number + _MARGIN))
        hard = (number >= -_MARGIN).to(number)
        kept = hard + (keep - keep.detach())
        if self.binary:
            return kept
        # What is dropped is 0 either way; below -1 its gradient would have the wrong
        # sign, and it would not return.
        return kept * (1 + number.clamp(min=-_MARGIN))

    def forward(
        self, x: Any, adjacency: SparseMatrix, rows: Tensor | None = None
    ) -> Tensor:
        """The inner model's outputs, (N, C) or (R, C)."""
        factors = self.factors()
        if self.link_group is not None:
            adjacency = adjacency.times(factors.pop("links"), self.link_group)
        own = dict(self.model.named_parameters())
        weights = {name: own[name] * factor for name, factor in factors.items()}
        given = (x, adjacency, rows) if self._chooses else (x, adjacency)
        out: Tensor = functional_call(self.model, weights, given)
        return out if rows is None or self._chooses else out.index_select(0, rows)


def _shape(weight: Tensor, unit: Sharing) -> tuple[int, int]:
    rows, columns = weight.shape
    return 1 if unit == "column" else rows, 1 if unit == "row" else columns


def are_factors(given: Tensor, of: Tensor) -> bool:
    """Whether they are of a shape that factors of a weight have."""
    return any(
        given.shape == _shape(of, unit) for unit in get_args(Sharing) if of.dim() == 2
    )


def groups_by_degree(graph: Graph, groups: int) -> Tensor:
    """(E,) int32, which group each adjacency entry is in, from 0 on.

    Links rank by the product of their ends' degrees, and are cut into so many groups of
    about equal size. Links of equal products are in one group, so that some groups may
    be empty.

    Args:
        graph: whose links.
        groups: how many, at least 1.
    """
    row, col = graph.adjacency.pattern.row.long(), graph.adjacency.pattern.col.long()
    n = graph.num_nodes
    degree = torch.bincount(row, minlength=n) + torch.bincount(col, minlength=n)
    product = degree[row] * degree[col]
    if not product.numel():
        return product.int()
    at = torch.arange(1, groups, device=product.device) * product.numel() // groups
    bounds = product.sort().values[at]
    return torch.bucketize(product, bounds, right=True).int()
