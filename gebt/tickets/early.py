"""Training that costs less than a dense model's: units and links leave early.

The dense model is trained until a detector finds that its largest units, or else its
largest weights, stay the same: a few epochs. From there on a short trial without most
of the links, which is compared with as many epochs with all of them, shows whether they
are needed. A quarter of the units goes in any case. The rest of the training is the
small model's, on the small graph.

Source: You et al., "Drawing Early-Bird Tickets", ICLR 2020, for the units.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from gebt.graph import Graph
from gebt.learn.checkpoint import Clock
from gebt.learn.loop import Learner, begin, whole
from gebt.learn.recipes import best_looks
from gebt.learn.tasks import Task
from gebt.learn.training import (
    Epoch,
    checked_state,
    copy_state,
    evaluate,
    new_model,
    train,
)
from gebt.models.recipe import Recipe
from gebt.prune.detector import MaskDistanceDetector
from gebt.prune.groups import Hook
from gebt.prune.links import links_by
from gebt.prune.masks import keep_top
from gebt.prune.units import can_slim, slim, unit_scores
from gebt.prune.weights import ModelPruner

_CRITERIA = "k-neighbour", "low-degree"  # they need no search, and next to no time
_LINKS = 0.8, 0.4  # shares removed that are tried
_UNITS = 0.25
_DRAWN_BY, _TRIAL = 25, 10  # epochs at most until units are drawn; of each trial


@dataclass(frozen=True, eq=False)
class Early:
    """A model that was small for most of its training.

    Attributes:
        recipe: of the dense model.
        model: trained, in evaluation mode.
        first: its state when it became small.
        criterion: that ranked the links.
        graph_ratio: share of the links removed.
        unit_ratio: share of the hidden units removed.
        mask: (L,) the links that stay.
        epoch: completed epochs of the dense model when the units were drawn.
        val: validation score, percent.
        spent: on all of it.
    """

    recipe: Recipe
    model: nn.Module
    first: dict[str, Tensor]
    criterion: str
    graph_ratio: float
    unit_ratio: float
    mask: Tensor
    epoch: int
    val: float
    spent: Clock


def draw_early(
    recipes: Sequence[Recipe],
    graph: Graph,
    task: Task,
    seed: int,
    of: Callable[[str], Callable[[Epoch], None] | None],
) -> Early:
    """Train a model that is small from early on.

    Args:
        recipes: of which the one that begins best on the validation nodes is taken.
        graph: to train and to validate on.
        task: what is learned.
        seed: of everything.
        of: given the phase, what is called after each of its epochs.
    """
    start = Clock.now()
    recipe = best_looks(recipes, graph, task, seed, of("dense"))[0]
    fit = recipe.fit
    model = new_model(graph, recipe, task, seed)
    _, hooks = begin(model, graph, task, None)
    learner = Learner(model, task, fit, seed=seed, hooks=hooks)
    begun = _Begun(model, graph, task, min(_DRAWN_BY, fit.epochs))
    learner.add(begun)
    for _ in learner.epochs(whole(graph), begun.latest + _TRIAL):
        pass
    drawn = deepcopy(model)
    drawn.load_state_dict(begun.state)
    how: Any = {"seed": seed, "task": task}
    for ratio in _LINKS:
        name, mask = _best_links(drawn, graph, task, ratio, seed)
        small, tried = graph.keep_links(mask), deepcopy(drawn)
        short = replace(fit, epochs=_TRIAL, patience=0)
        if (
            train(tried, small, fit=short, on_epoch=of("trial"), **how).val
            >= begun.best
        ):
            break
    else:
        name, ratio, small, tried = "all", 0.0, graph, model
        mask = torch.ones_like(mask)
    units = _UNITS if can_slim(tried) else 0.0
    narrow = slim(tried, units) if units else tried
    first = copy_state(narrow)
    rest = replace(fit, epochs=max(1, fit.epochs - learner.epoch))
    val = train(narrow, small, fit=rest, on_epoch=of("early"), **how).val
    found = (recipe, narrow, first, name, ratio, units, mask, begun.epoch, val)
    return Early(*found, Clock.now() - start)


class _Begun(Hook):
    """Until masks of units, or else of weights, settle; and as long as a trial after.

    Args:
        model: that begins.
        graph: to validate on.
        task: what is learned.
        latest: the epoch at which it counts as settled if it has not.

    Attributes:
        epoch: at which it settled; 0 before.
        state: of the model then.
        best: validation score of the epochs since.
    """

    def __init__(self, model: nn.Module, graph: Graph, task: Task, latest: int):
        self._model, self._graph, self._task = model, graph, task
        self._detector = MaskDistanceDetector()
        self._pruner = None if can_slim(model) else ModelPruner(model, _UNITS)
        self.latest, self.epoch, self.best = latest, 0, -math.inf
        self.state: dict[str, Tensor] = {}

    def after_epoch(self, epoch: int, loss: Tensor) -> bool:
        """Whether that is over."""
        if self.epoch:
            val = evaluate(self._model, self._graph, "val", task=self._task)
            self.best = max(self.best, val)
            return epoch == self.epoch + _TRIAL
        masks: Any = self._pruner and self._pruner.masks()
        if masks is None:
            scores = unit_scores(self._model)
            masks = torch.cat([keep_top(each, _UNITS) for each in scores])
        if self._detector.update({"kept": masks}).settled or epoch == self.latest:
            self.epoch, self.state = epoch, copy_state(self._model)
        return False

    def state_dict(self) -> dict[str, Any]:
        """The detector, and what is known since."""
        known = {"epoch": self.epoch, "state": self.state, "best": self.best}
        return {"detector": self._detector.state_dict(), **known}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self._detector.load_state_dict(state["detector"])
        self.epoch, self.best = state["epoch"], state["best"]
        self.state = checked_state(self._model, state["state"])


def _best_links(
    model: nn.Module, graph: Graph, task: Task, ratio: float, seed: int
) -> tuple[str, Tensor]:
    """The criterion whose links are best for the model as it is, and the links."""
    found = []
    for name in _CRITERIA:
        mask = links_by(name, graph, model, ratio, seed, task).masks()["link"]
        val = evaluate(model, graph.keep_links(mask), "val", task=task)
        found.append((val, name, mask))
    _, name, mask = max(found, key=lambda each: each[0])
    return name, mask
