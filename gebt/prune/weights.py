"""The model pruner: names the prunable weights of a module and masks them."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils.prune import is_pruned

from gebt._checks import check_choice, check_ratio
from gebt.options import Scope, Unit
from gebt.prune.groups import Group
from gebt.prune.masks import keep_top


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


class ModelPruner(Group):
    """Magnitude masks over the prunable weights of any module.

    Args:
        model: the module; its weights are read at every call of `masks`.
        prune_ratio: share to drop, in [0, 1).
        scope: ``"global"`` ranks all weights together, ``"layer"`` each by itself.
        unit: what is dropped: single elements, or whole rows or columns of the
            matrices, ranked by their root mean square. With gebt's (in, out)
            weights a row is an input; with ``nn.Linear`` a column is.
        keep: boolean masks by parameter name of an earlier pruning. What they drop
            counts towards ``prune_ratio`` and is dropped by the new masks too.

    Raises:
        ValueError: if ``prune_ratio`` drops fewer than ``keep`` has dropped already.

    Source: You et al. 2022, Sec. 3.2, magnitude pruning.
    """

    name = "weights"

    def __init__(
        self,
        model: nn.Module,
        prune_ratio: float,
        *,
        scope: Scope = "global",
        unit: Unit = "element",
        keep: Mapping[str, Tensor] | None = None,
    ):
        check_ratio("prune_ratio", prune_ratio)
        check_choice("scope", scope, Scope)
        check_choice("unit", unit, Unit)
        if unit == "channel":
            raise ValueError(
                "a `ModelPruner` masks weights; whole channels are a `ChannelPruner`'s."
            )
        self._weights = prunable_weights(model)
        self.prune_ratio = prune_ratio
        self.scope = scope
        self.unit = unit
        self.keep = dict(keep or {})
        check_masks(model, self.keep)
        if self.keep:
            self._check_room()

    @torch.no_grad()
    def _check_room(self) -> None:
        """Refuse a ratio at which something that is gone would be kept."""
        ranked = {
            n: self._score(n, torch.ones_like(w)) for n, w in self._weights.items()
        }
        if self.scope == "global":
            every = torch.cat([score.flatten() for score in ranked.values()])
            ranked = {"the model": every}
        for name, score in ranked.items():
            gone = score.numel() - int(score.count_nonzero())
            if int(self.prune_ratio * score.numel()) < gone:
                raise ValueError(
                    f"`keep` has dropped {gone} of {score.numel()} {self.unit}s of "
                    f"{name} already, and a ratio of {self.prune_ratio:g} removes "
                    "fewer: it would bring some back. Remove more, or start from the "
                    "unpruned weights without `keep`."
                )

    @torch.no_grad()
    def masks(self) -> dict[str, Tensor]:
        """Boolean masks by parameter name, True = kept, shaped like the weights."""
        scores = [self._score(*named) for named in self._weights.items()]
        if self.scope == "global":
            pooled = keep_top(
                torch.cat([s.flatten() for s in scores]), self.prune_ratio
            )
            flat = pooled.split_with_sizes([s.numel() for s in scores])
            kept = [k.view(s.shape) for k, s in zip(flat, scores, strict=True)]
        else:
            kept = [keep_top(s, self.prune_ratio) for s in scores]
        if self.unit != "element":
            weights = self._weights.values()
            kept = [k.expand_as(w) for k, w in zip(kept, weights, strict=True)]
        found = dict(zip(self._weights, kept, strict=True))
        earlier = {n: found[n] & m if n in found else m for n, m in self.keep.items()}
        return found | earlier

    def ranked(self) -> list[Tensor]:
        """The weights."""
        return list(self._weights.values())

    def _score(self, name: str, weight: Tensor) -> Tensor:
        earlier = self.keep.get(name)
        if self.unit == "element":
            score = weight
        else:
            across = 1 if self.unit == "row" else 0
            score = weight.square().mean(dim=across, keepdim=True).sqrt()
            if earlier is not None:
                earlier = earlier.any(dim=across, keepdim=True)
        if earlier is None:
            return score
        # What is left ranks above what is gone, even where it is zero too.
        tiny = torch.finfo(score.dtype).tiny
        return score.masked_fill(earlier & (score == 0), tiny) * earlier


def check_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Raise a ValueError unless every mask fits a parameter of the model."""
    if not isinstance(masks, Mapping):
        raise TypeError(
            "masks must be a mapping by parameter name, such as a ticket's "
            f"`weight_masks`, got a {type(masks).__name__}."
        )
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


def check_layers(masks: Mapping[str, Tensor], ratio: float) -> None:
    """Raise a ValueError if masks leave nothing of a parameter."""
    for name, mask in masks.items():
        if not mask.any():
            raise ValueError(
                f"a weight ratio of {ratio:g} leaves nothing of {name!r}, all of its "
                f"{mask.numel()} weights go. Remove fewer."
            )


def check_not_compiled(model: nn.Module) -> None:
    """Raise a ValueError if the model, or a part of it, is compiled by torch.

    Its parameters would have other names than the model's own, rows could not be
    chosen, and torch 2.13 fails in its backward.
    """
    for module in model.modules():
        if hasattr(module, "_orig_mod") or module._compiled_call_impl is not None:
            raise ValueError(
                f"{type(model).__name__} is compiled by `torch.compile`. Give gebt the "
                "model as it was before, `compiled._orig_mod`; they share their "
                "parameters, so that the compiled one is trained with it."
            )


def check_not_pruned(model: nn.Module) -> None:
    """Raise a ValueError where `torch.nn.utils.prune` prunes the model.

    Its parameters have other names then, by which no file could be read again.
    """
    if is_pruned(model):
        raise ValueError(
            f"{type(model).__name__} is pruned by `torch.nn.utils.prune`, which gives "
            "its parameters other names. `gebt.integrations.prune.from_torch_prune` "
            "gives the masks; then make the zeros permanent by "
            "`torch.nn.utils.prune.remove`."
        )


def take_dtype(model: nn.Module, dtype: torch.dtype) -> None:
    """Convert a model, in place, none of whose floating parameters is of a dtype."""
    found = {p.dtype for p in model.parameters() if p.is_floating_point()}
    if found and dtype not in found:
        model.to(dtype)


@torch.no_grad()
def apply_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Set the pruned weights of a model to zero, in place."""
    parameters = dict(model.named_parameters())
    for name, mask in masks.items():
        parameters[name].mul_(mask)
