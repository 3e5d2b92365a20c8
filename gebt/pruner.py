"""The model pruner: names the prunable weights of a module and masks them."""

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from gebt.masks import check_ratio, keep_top

Scope = Literal["global", "layer"]
Unit = Literal["element", "row", "column"]


def prunable_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The two-dimensional floating parameters of a model, by name, in order.

    Raises:
        ValueError: if there are none, or one has no shape yet.
    """
    weights = {}
    for name, parameter in model.named_parameters():
        if isinstance(parameter, UninitializedParameter):
            raise ValueError(
                f"the parameter {name!r} has no shape yet: run the model once on the "
                "graph before pruning it."
            )
        if parameter.dim() == 2 and parameter.is_floating_point():
            weights[name] = parameter
    if not weights:
        raise ValueError(
            f"{type(model).__name__} has nothing to prune: none of its parameters is "
            "two-dimensional and floating. Set `weight_ratio=0` to prune links only."
        )
    return weights


class ModelPruner:
    """Magnitude masks over the prunable weights of any module.

    Args:
        model: the module; its weights are read at every call of `masks`.
        prune_ratio: share to drop, in [0, 1).
        scope: ``"global"`` ranks all weights together, ``"layer"`` each by itself.
        unit: what is dropped: single elements, or whole rows or columns of the
            matrices, ranked by their root mean square. With gebt's (in, out)
            weights a row is an input; with ``nn.Linear`` a column is.

    Source: You et al. 2022, Sec. 3.2, magnitude pruning.
    """

    def __init__(
        self,
        model: nn.Module,
        prune_ratio: float,
        *,
        scope: Scope = "global",
        unit: Unit = "element",
    ):
        check_ratio("prune_ratio", prune_ratio)
        check_choice("scope", scope, Scope)
        check_choice("unit", unit, Unit)
        self.weights = prunable_weights(model)
        self.prune_ratio = prune_ratio
        self.scope = scope
        self.unit = unit

    @torch.no_grad()
    def masks(self) -> dict[str, Tensor]:
        """Boolean masks by parameter name, True = kept, shaped like the weights."""
        scores = [self._score(w) for w in self.weights.values()]
        if self.scope == "global":
            pooled = keep_top(
                torch.cat([s.flatten() for s in scores]), self.prune_ratio
            )
            flat = pooled.split_with_sizes([s.numel() for s in scores])
            kept = [k.view(s.shape) for k, s in zip(flat, scores, strict=True)]
        else:
            kept = [keep_top(s, self.prune_ratio) for s in scores]
        if self.unit != "element":
            weights = self.weights.values()
            kept = [k.expand_as(w) for k, w in zip(kept, weights, strict=True)]
        return dict(zip(self.weights, kept, strict=True))

    def _score(self, weight: Tensor) -> Tensor:
        if self.unit == "element":
            return weight
        across = 1 if self.unit == "row" else 0
        return weight.square().mean(dim=across, keepdim=True).sqrt()


def check_choice(name: str, value: str, choices: Any) -> None:
    """Raise a ValueError unless the value is one of a Literal's."""
    if value not in get_args(choices):
        raise ValueError(f"`{name}` must be one of {get_args(choices)}, got {value!r}.")


def check_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Raise a ValueError unless every mask fits a parameter of the model."""
    parameters = dict(model.named_parameters())
    for name, mask in masks.items():
        if name not in parameters:
            raise ValueError(
                f"a mask is for the parameter {name!r}, which {type(model).__name__} "
                f"does not have; it has {list(parameters)}."
            )
        if mask.dtype != torch.bool or mask.shape != parameters[name].shape:
            raise ValueError(
                f"the mask of {name!r} must be boolean of shape "
                f"{tuple(parameters[name].shape)}, got {mask.dtype} "
                f"{tuple(mask.shape)}."
            )


@torch.no_grad()
def apply_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Set the pruned weights of a model to zero, in place."""
    parameters = dict(model.named_parameters())
    for name, mask in masks.items():
        parameters[name].mul_(mask)
