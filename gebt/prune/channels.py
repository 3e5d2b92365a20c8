"""EB-Train: whole channels, ranked by the scale of the batch norm behind them.

In anyone's own loop, for any module with batch norms:

    pruner = ChannelPruner(model, 0.5)
    detector = MaskDistanceDetector(0.1, **EB_TRAIN)
    for epoch in range(epochs):
        for x, y in batches:
            ...
            loss.backward()
            pruner.after_backward()
            optimizer.step()
        if detector.update({"channels": pruner.masks()}).settled:
            break
    small = drop_channels(model, pruner.masks())

Source: You et al., "Drawing Early-Bird Tickets", ICLR 2020.
"""

import warnings
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gebt._checks import check_not_negative, check_ratio
from gebt.prune.chains import drop_chains, find_chains
from gebt.prune.groups import Group
from gebt.prune.masks import keep_top
from gebt.prune.units import can_slim, unit_scores

PULL = 1e-4
"""The L1 subgradient on the scales, EB-Train's own."""


class ChannelPruner(Group):
    """Masks over whole channels, the least of a model's to be dropped.

    Channels behind a batch norm are ranked by its |scale|, all together, and an L1
    subgradient pulls the scales to zero. Where a model has hidden layers without one,
    its units are ranked layer by layer, by the norms of the weights into them and out
    of them, and nothing pulls. No layer loses all of its channels.

    Args:
        model: one of gebt's, whose hidden units are its channels (heads, of GAT; of
            ResGCN the same everywhere), or any module in which `find_chains` finds
            some.
        prune_ratio: share of them to drop, in [0, 1).
        pull: of the L1 norm of the scales, what is added to the loss.

    Attributes:
        by_scale: whether they are ranked by the scales of batch norms.

    Raises:
        ValueError: if gebt finds no channels, or the ratio leaves fewer than layers.
    """

    name = "channels"

    def __init__(self, model: nn.Module, prune_ratio: float, *, pull: float = PULL):
        self.prune_ratio = check_ratio("prune_ratio", prune_ratio)
        check_not_negative("pull", pull)
        self._model = model
        self._pull = pull
        self._scales: dict[str, nn.Parameter] | None = None
        norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
        if can_slim(model):
            self._pulled = [norm.weight for norm in norms if norm.affine]
            # One for each hidden layer, or more, where layers share their channels.
            self.by_scale = len(self._pulled) >= len(unit_scores(model))
        else:
            names = [chain.norm for chain in find_chains(model)]
            scales: Any = {name: model.get_submodule(name).weight for name in names}
            self._scales, self._pulled = scales, [*scales.values()]
            self.by_scale = True
        if not self.by_scale:
            self._pulled = []
            warnings.warn(
                f"not every hidden layer of this {type(model).__name__} has a batch "
                "norm: its units are ranked layer by layer, by the norms of their "
                "weights.",
                stacklevel=2,
            )
        sizes = [score.numel() for score in self._ranked().values()]
        kept = sum(sizes) - int(prune_ratio * sum(sizes))
        if self.by_scale and kept < len(sizes):
            raise ValueError(
                f"a ratio of {prune_ratio:g} keeps {kept} of {sum(sizes)} channels, "
                f"fewer than there are layers, {len(sizes)}: one would have none. "
                "Remove less."
            )

    @torch.no_grad()
    def _ranked(self) -> dict[str, Tensor]:
        """How large the channels of each layer are, (H,), by its number or name."""
        if self._scales is None:
            return {str(k): each for k, each in enumerate(unit_scores(self._model))}
        return {name: scale.abs() for name, scale in self._scales.items()}

    @torch.no_grad()
    def masks(self) -> dict[str, Tensor]:
        """(H,) boolean for each layer, True = kept, by its number or norm's name."""
        scores = self._ranked()
        if not self.by_scale:
            return {name: keep_top(s, self.prune_ratio) for name, s in scores.items()}
        pooled = torch.cat([_with_first(score) for score in scores.values()])
        kept = keep_top(pooled, self.prune_ratio)
        parts = kept.split([score.numel() for score in scores.values()])
        return dict(zip(scores, parts, strict=True))

    def ranked(self) -> list[Tensor]:
        """What channels are ranked by."""
        return list(self._ranked().values())

    @torch.no_grad()
    def after_backward(self) -> None:
        """Add the subgradient of the pull to the scales' gradients."""
        for scale in self._pulled:
            if scale.grad is not None:
                scale.grad.add_(scale.sign(), alpha=self._pull)


def _with_first(scores: Tensor) -> Tensor:
    """Scores (H,) of which the largest is without bounds: a layer never loses it."""
    first = torch.zeros_like(scores).index_fill_(0, scores.argmax().view(1), torch.inf)
    return scores + first  # NaN stays NaN


def drop_channels(model: nn.Module, keep: Mapping[str, Tensor]) -> nn.Module:
    """A copy of a model with fewer channels, physically, to be trained on.

    The others keep their weights. gebt's own models get less dropout, see their
    ``slim``.

    Args:
        model: as for `ChannelPruner`; not changed.
        keep: (H,) boolean for each layer, as from `ChannelPruner.masks`.

    Raises:
        ValueError: if a mask does not fit, or leaves a layer nothing.
    """
    if can_slim(model):
        sizes = {str(k): s.numel() for k, s in enumerate(unit_scores(model))}
    else:
        norms: Any = {c.norm: model.get_submodule(c.norm) for c in find_chains(model)}
        sizes = {name: norm.num_features for name, norm in norms.items()}
    found = {n: m.numel() if m.dtype == torch.bool else 0 for n, m in keep.items()}
    if found != sizes:
        raise ValueError(
            f"`keep` must hold a boolean mask for each layer of this "
            f"{type(model).__name__}, of these sizes: {sizes}; got {found}. Are they "
            "of another model?"
        )
    for name, mask in keep.items():
        if not mask.any():
            raise ValueError(f"`keep` leaves the layer {name} no channel. Remove less.")
    device = next(model.parameters()).device
    stay = {name: mask.to(device) for name, mask in keep.items()}
    if can_slim(model):
        slim: Any = model
        small: nn.Module = slim.slim([stay[name] for name in sizes])
        for name, parameter in model.named_parameters():
            small.get_parameter(name).requires_grad_(parameter.requires_grad)
        return small
    return drop_chains(model, stay)


@torch.no_grad()
def masks_without(model: nn.Module, keep: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Masks by parameter name of what a model without those channels still has.

    With all else set to zero, the larger model computes what the smaller one does, but
    for layer norms, which are over more units.

    Args:
        model: as for `drop_channels`.
        keep: its channels that stay.
    """
    numbered = deepcopy(model).double()
    for parameter in numbered.parameters():
        places = torch.arange(parameter.numel(), device=parameter.device)
        parameter.copy_(places.view_as(parameter))
    masks = {}
    for name, left in drop_channels(numbered, keep).named_parameters():
        like = model.get_parameter(name)
        mask = torch.zeros(like.numel(), dtype=torch.bool, device=like.device)
        masks[name] = mask.index_fill_(0, left.long().flatten(), True).view_as(like)
    return {name: mask for name, mask in masks.items() if not mask.all()}
