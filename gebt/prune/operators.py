"""Which units of a supernet may leave, and which of its weights rest."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gebt._checks import check_not_negative, check_positive, check_ratio
from gebt.models import SuperGNN
from gebt.models._layers import Features
from gebt.models.operators import HOPS
from gebt.options import Scope
from gebt.prune.groups import Group
from gebt.prune.weights import ModelPruner, apply_masks, prunable_weights
from gebt.sparse import SparseMatrix

RERANKED = 25
"""Epochs between two masks, and over which the pull on the scales grows."""


@torch.no_grad()
def unit_costs(model: SuperGNN, x: Features, adjacency: SparseMatrix) -> list[Tensor]:
    """What a scale of one costs, for each of a model's ``scales()``.

    `unit_macs`, times how large the outputs are that the scale multiplies: their root
    mean square, of a layer's mean, or 1 behind a batch norm. Averages over neighbours
    are smaller than maps of single nodes, and need larger scales for the same part in
    the sum; without it the search keeps what is loud.

    Args:
        model: as it is, in evaluation mode.
        x: (N, F).
        adjacency: (N, N).
    """
    costs, h, matrices = [], x, model.matrices(adjacency)
    for layer, macs in zip(model.stages(), unit_macs(model, x, adjacency), strict=True):
        sizes = [float(out.square().mean().sqrt()) for out in layer.found(h, matrices)]
        if isinstance(layer.scale, nn.BatchNorm1d):
            sizes = [1.0] * len(sizes)
        level = layer.spread(dict(zip(layer.widths, sizes, strict=True)))
        costs.append(macs * level / level.mean().clamp(min=1e-30))
        h = layer(h, matrices).relu()
    return costs


def unit_macs(model: SuperGNN, x: Features, adjacency: SparseMatrix) -> list[Tensor]:
    """Multiply-accumulates of its own layer that each of ``scales()`` stands for.

    Products with its weights, of sparse features the stored entries, and with the
    matrix after them.
    """
    nodes, links = adjacency.shape[0], adjacency.pattern.nnz
    read = x.numel() if isinstance(x, Tensor) else x.pattern.nnz
    found = []
    for layer in model.stages():
        of = {
            name: read * (1 + (name == "sage"))
            + HOPS[name] * (links + nodes * (name != "sage"))
            + 2 * nodes * (name == "gat")
            for name in layer.widths
        }
        found.append(layer.spread(of) * (layer.outputs or 1))
        read = nodes * sum(layer.widths.values())
    return found


class Operators(Group):
    """A supernet's scales, pulled to zero by what they cost, and its weights' masks.

    The loss grows by ``rho * sum(cost * |scale|)``, of costs whose mean is 1 and a
    ``rho`` that grows over 25 epochs. A scale that would change its sign stops at zero,
    and rests there until the loss pulls more than its cost: with Adam's steps it would
    swing around zero, and never be small.

    Every 25 epochs the weights are ranked anew, pruned ones too, and from then on
    multiplied by the mask in each forward. The stored ones get the gradient at the
    masked ones, so that what was pruned goes on learning and may return.

    Args:
        model: a `SuperGNN`.
        costs: `unit_costs`, or others.
        prune_ratio: share of the weights to remove in the end, in [0, 1).
        epochs: that the search has; the share grows in equal steps, and is reached one
            step before the last.
        rho: weight of the costs in the loss.
        threshold: units of a smaller |scale| are `marked`.
        scope: how weights are ranked, see `ModelPruner`.

    Source: You et al., "SuperTickets", ECCV 2022, whose ratio grows by .1 each time.
    """

    name = "weights"

    def __init__(
        self,
        model: Any,
        costs: Sequence[Tensor],
        prune_ratio: float,
        *,
        epochs: int,
        rho: float,
        threshold: float,
        scope: Scope = "global",
    ):
        self.prune_ratio = check_ratio("prune_ratio", prune_ratio)
        check_not_negative("rho", rho)
        check_positive("threshold", threshold)
        self.rho, self.threshold = rho, threshold
        self.scope: Scope = scope
        self.epoch = 0
        self._steps = max(1, epochs // RERANKED - 1)
        mean = torch.cat([*costs]).mean()
        device = model.scales()[0].device
        self._costs = [(each / mean).to(device) for each in costs]
        self._masks: dict[str, Tensor] = {}
        self._bind(model)

    def _bind(self, model: Any) -> None:
        self.model = model
        self._scales = model.scales()
        self._rests: list[Tensor] = []
        self._before = [scale.detach().clone() for scale in self._scales]
        self._weights = prunable_weights(model)
        self._stored = {n: w.detach().clone() for n, w in self._weights.items()}

    @torch.no_grad()
    def after_backward(self) -> None:
        """Add the costs' gradient; the step moves the stored weights."""
        self.restore()
        rho = self.rho * min(1.0, (self.epoch + 1) / RERANKED)
        self._rests = []
        for scale, cost in zip(self._scales, self._costs, strict=True):
            assert scale.grad is not None
            pull = (rho * cost).to(scale)
            # At zero the loss has a whole range of slopes.
            least = scale.grad - scale.grad.clamp(-pull, pull)
            zero = scale == 0
            self._rests.append(zero & (least == 0))
            pulled = scale.grad + pull * scale.sign()
            scale.grad.copy_(torch.where(zero, least, pulled))

    @torch.no_grad()
    def after_step(self) -> None:
        """Stop scales at zero, store the weights, and mask those that are used."""
        each = zip(self._scales, self._before, self._rests, strict=True)
        for scale, before, rests in each:
            scale.mul_((scale * before >= 0) & ~rests)  # whatever Adam's momentum
            before.copy_(scale)
        for name, weight in self._weights.items():
            self._stored[name].copy_(weight)
        apply_masks(self.model, self._masks)

    def after_epoch(self, epoch: int, loss: Tensor) -> bool:
        """Rank the weights anew if it is time to."""
        self.epoch += 1
        if self.epoch % RERANKED == 0:
            done = min(1.0, self.epoch // RERANKED / self._steps)
            self._rank(self.prune_ratio * done)
            apply_masks(self.model, self._masks)
        return False

    @torch.no_grad()
    def restore(self) -> None:
        """The model has its stored weights, without a mask."""
        for name, stored in self._stored.items():
            self._weights[name].copy_(stored)

    def _rank(self, ratio: float) -> None:
        if ratio:
            self.restore()
            self._masks = ModelPruner(self.model, ratio, scope=self.scope).masks()
            self._check_layers()

    def _check_layers(self) -> None:
        """Refuse masks that leave a layer nothing."""
        layers = [f"layers.{k}." for k in range(len(self._scales))]
        for k, prefix in enumerate(layers, start=1):
            mine = [m for name, m in self._masks.items() if name.startswith(prefix)]
            if not any(bool(mask.any()) for mask in mine):
                raise ValueError(
                    f"at a ratio of {self.prune_ratio:g} layer {k} of {len(layers)} "
                    "keeps no weight. Remove fewer, or in Python rank them layer by "
                    'layer, `scope="layer"`.'
                )

    def marked(self) -> list[Tensor]:
        """For each of the model's ``scales()`` which entries are to stay.

        Raises:
            ValueError: if a layer keeps none.
        """
        keep = [scale.detach().abs() >= self.threshold for scale in self._scales]
        for k, each in enumerate(keep, start=1):
            if not each.any():
                raise ValueError(
                    f"every scale of layer {k} of {len(keep)} is below "
                    f"{self.threshold:g} after {self.epoch} epochs: the layer would be "
                    f"left without units. Lower `rho`, {self.rho:g}."
                )
        return keep

    def leave(self, keep: Sequence[Tensor]) -> Any:
        """Go on with a model of some units alone, which is returned.

        Args:
            keep: of `marked`.
        """
        self.restore()
        model = self.model.with_units(keep)
        self._masks = self.model.taken(self._masks, keep)
        self._costs = [c[k] for c, k in zip(self._costs, keep, strict=True)]
        self._bind(model)
        apply_masks(model, self._masks)
        return model

    def masks(self) -> dict[str, Tensor]:
        """Boolean masks by parameter name, at the ratio that is wanted in the end."""
        if self.prune_ratio:
            self._rank(self.prune_ratio)
            apply_masks(self.model, self._masks)
        return self._masks

    def ranked(self) -> list[Tensor]:
        """The stored weights."""
        return [*self._stored.values()]

    def state_dict(self) -> dict[str, Any]:
        """The stored weights, their masks, the costs and the epoch."""
        weights = {"stored": self._stored, "masks": self._masks}
        return {"epoch": self.epoch, "costs": self._costs, **weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken, of the same units."""
        self.epoch, self._masks = state["epoch"], dict(state["masks"])
        self._costs = [*state["costs"]]
        for name, stored in state["stored"].items():
            self._stored[name].copy_(stored)
        for scale, before in zip(self._scales, self._before, strict=True):
            before.copy_(scale.detach())
