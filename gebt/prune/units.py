"""Unit tickets: whole hidden units that leave a model, for good."""

from typing import Any

import torch
from torch import Tensor, nn

from gebt._checks import check_ratio
from gebt.prune.masks import keep_top


def can_slim(model: nn.Module) -> bool:
    """Whether a model has hidden units that can leave it, as gebt's own have."""
    return bool(getattr(model, "slim", None) and unit_scores(model))


@torch.no_grad()
def unit_scores(model: Any) -> list[Tensor]:
    """How large the units of each hidden layer are, (H,) each, as the model says."""
    return model.unit_scores()


def slim(model: Any, prune_ratio: float) -> Any:
    """A copy without the least units of every hidden layer, to be trained on.

    They leave physically, so that training it costs less, too: of GAT whole heads, of
    ResGCN the same channels everywhere. The others keep their weights. Each layer loses
    the same share of its units: which of them leave matters little (`gebt reproduce
    units`), how many does.

    Args:
        model: one of gebt's; not changed.
        prune_ratio: share of the units of each hidden layer to remove, in [0, 1).

    Raises:
        ValueError: if the ratio is none, or gebt does not know the model's units.
    """
    check_ratio("prune_ratio", prune_ratio)
    if not can_slim(model):
        raise ValueError(
            f"gebt does not know the hidden units of a {type(model).__name__}: it can "
            "slim its own models, before compaction and of two layers or more. Prune "
            "its weights instead."
        )
    return model.slim([keep_top(each, prune_ratio) for each in unit_scores(model)])
