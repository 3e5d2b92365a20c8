"""Unit tickets: whole hidden units that leave a model, for good."""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from gebt._checks import check_ratio
from gebt.prune.masks import keep_top


def can_slim(model: nn.Module) -> bool:
    """Whether a model has hidden units that can leave it, as gebt's own stacks have."""
    return bool(getattr(model, "slim", None) and unit_scores(model))


@torch.no_grad()
def unit_scores(model: Any) -> list[Tensor]:
    """How large the units of each hidden layer are, (H,) each.

    Behind a batch norm by its |scale|, as EB-Train ranks channels; else by the L2 norm
    of the weights into a unit, times that of those that read it.

    Source: You et al., "Drawing Early-Bird Tickets", ICLR 2020.
    """
    found = []
    for k, (layer, reader) in enumerate(pairwise(model.stacked())):
        norm = model.normed().get(k)
        if isinstance(norm, nn.BatchNorm1d):
            found.append(norm.weight.abs())
            continue
        into = sum(weight.square().sum(dim=0) for weight in layer.weights())
        out = sum(weight.square().sum(dim=1) for weight in reader.weights())
        found.append((into * out).sqrt())
    return found


def slim(model: Any, prune_ratio: float) -> Any:
    """A copy without the least units of every hidden layer, to be trained on.

    They leave physically, so that training it costs less, too. The others keep their
    weights. Each layer loses the same share of its units: which of them leave matters
    little (`gebt reproduce units`), how many does.

    Args:
        model: one of gebt's `GCN`, `GIN` and `GraphSAGE`; not changed.
        prune_ratio: share of the units of each hidden layer to remove, in [0, 1).

    Raises:
        ValueError: if the ratio is none, or gebt does not know the model's units.
    """
    check_ratio("prune_ratio", prune_ratio)
    if not can_slim(model):
        raise ValueError(
            f"gebt does not know the hidden units of a {type(model).__name__}: it can "
            "slim GCN, GIN and GraphSAGE of two layers or more. Prune its weights "
            "instead."
        )
    return model.slim([keep_top(each, prune_ratio) for each in unit_scores(model)])
