"""Students: a trained model learns to do with few weights, and with whichever links.

What it can do then depends little on the links that a criterion leaves: they need not
be known before, and nothing need be retrained after.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Generator, Tensor, nn

from gebt._checks import check_ratio
from gebt.graph import Graph
from gebt.kernels.hashing import drawn_seed, hashed
from gebt.learn.distilled import Distilled
from gebt.learn.loop import Batches, Learner, begin
from gebt.learn.tasks import NodeClassification, Task
from gebt.learn.training import Epoch, Training, keep_best
from gebt.options import Fit, Scope, chosen
from gebt.prune.groups import Hook
from gebt.prune.links import random_links
from gebt.prune.weights import ModelPruner, apply_masks
from gebt.randomness import stream

STUDENT = Fit(epochs=140, lr=0.02)
"""How a student is trained unless told otherwise."""
_LONGER, _FASTER = 1.4, 2.0  # than its teacher
_VALIDATED = 0.4  # share of the links that a student is validated with


def student_of(fit: Fit) -> Fit:
    """How the student of a model that is trained so is trained."""
    epochs = max(1, round(_LONGER * fit.epochs))
    return replace(fit, epochs=epochs, lr=_FASTER * fit.lr)


@dataclass(frozen=True)
class Student(Training):
    """What `train_student` did; the model holds the weights of ``best_epoch``.

    Attributes:
        masks: boolean, by parameter name, True = kept.
    """

    masks: Mapping[str, Tensor]


class GradualPruning(Hook):
    """Weights go little by little: fast at first, slowly at the end.

    After epoch t of a ramp of n a share ``ratio * (1 - (1 - t/n)^3)`` of the weights is
    gone. Those of least magnitude go, and stay zero: after each step weights are
    multiplied by the masks.

    Args:
        model: the module.
        prune_ratio: share of all prunable weights to remove in the end, in [0, 1).
        ramp: epochs until then.
        scope: how weights are ranked, see `ModelPruner`.

    Attributes:
        masks: boolean, by parameter name, as they are now.

    Source: Zhu and Gupta 2017.
    """

    def __init__(
        self, model: nn.Module, prune_ratio: float, ramp: int, scope: Scope = "global"
    ):
        self.masks = ModelPruner(model, 0.0).masks()
        self._model, self._ratio = model, check_ratio("prune_ratio", prune_ratio)
        self._ramp, self._scope = ramp, scope

    def after_step(self) -> None:
        """Multiply by the masks."""
        apply_masks(self._model, self.masks)

    def after_epoch(self, epoch: int, loss: Tensor) -> bool:
        """Drop the next few; never ends the training."""
        if epoch <= self._ramp:
            ratio = self._ratio * (1 - (1 - epoch / self._ramp) ** 3)
            how: Any = {"scope": self._scope, "keep": self.masks}
            self.masks = ModelPruner(self._model, ratio, **how).masks()
            apply_masks(self._model, self.masks)
        return False

    def state_dict(self) -> dict[str, Any]:
        """The masks."""
        return {"masks": self.masks}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The masks."""
        self.masks = dict(state["masks"])


def random_densities(graph: Graph, learner: Learner) -> Batches:
    """Each epoch the graph with other links: r ~ U(0, 1), each kept with chance r.

    Drawn from the learner's own streams. A model that ignores edges of value 0 gets
    them, as nothing derived from the positions need be built anew: an epoch of a GCN
    takes 1.7 ms, not 4.1, on Cora, 29, not 106, on tolokers.
    """
    device, links = graph.link.device, graph.link_ids()
    zeros = getattr(learner.model, "ignores_zeros", False)

    def thinned(epoch: int) -> tuple[Graph]:
        with learner.drawing():
            draw = stream(device)
            density = torch.rand(1, generator=draw, device=device)
            seed = drawn_seed(device, draw)
        keep = hashed(links, seed) < density * 2.0**32 - 2.0**31
        if not zeros:
            return (graph.keep_links(keep),)
        there = keep.to(graph.adjacency.dtype)
        return (replace(graph, adjacency=graph.adjacency.times(there, graph.link)),)

    return thinned


def train_student(
    model: nn.Module,
    graph: Graph,
    teacher_logits: Tensor | None,
    *,
    weight_ratio: float = 0.9,
    scope: Scope = "global",
    fit: Fit | None = None,
    seed: int = 0,
    task: Task | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    **options: Any,
) -> Student:
    """Train a model in place to do with few weights, and with whichever links.

    Each epoch another random share of the links is there, and some more weights go,
    until after 5/7 of the epochs all that shall go have gone. The loss is that of
    `Distilled`. From then on the best validation score counts, with one fixed random
    40% of the links. The model is left there, in eval mode.

    A student learns how sure its teacher is, too: of one kept near chance by a dropout
    of 0.9, as GraphSAGE is by its recipe, little is learned. Compare validation scores.

    Args:
        model: starts with the weights that it has: its teacher's own, as a rule.
        graph: with a training split.
        teacher_logits: (N, C) a trained model's outputs on this graph; only those for
            nodes outside training, validation and test are read. None for no teacher.
        weight_ratio: share of all prunable weights to remove, in [0, 1).
        scope: how weights are ranked, see `ModelPruner`.
        fit: by default 140 epochs at a learning rate of 0.02, else as `Fit`.
        seed: of dropout and links; torch's own random state is left as it was.
        task: one class per node, as it must be with a teacher, or another.
        on_epoch: called after each epoch; ``val`` is NaN in those that do not count.
        **options: fields of `Fit` to change, such as ``epochs=100``.

    Raises:
        ValueError: as `train`, or if the teacher is of another graph.
    """
    check_ratio("weight_ratio", weight_ratio)
    [fit] = chosen(fit or STUDENT, given=options, of="train_student")
    task = task or NodeClassification()
    if teacher_logits is not None:
        task = Distilled(task, teacher_logits)
    earlier, hooks = begin(model, graph, task, None)
    ramp = max(1, fit.epochs * 5 // 7)
    pruning = GradualPruning(model, weight_ratio, ramp, scope) if weight_ratio else None
    hooks = [*hooks, pruning] if pruning else hooks
    learner = Learner(model, task, fit, seed=seed, hooks=hooks)
    draw = Generator().manual_seed(seed)
    few = random_links(graph.num_links, 1 - _VALIDATED, draw, graph)
    found = keep_best(
        learner,
        random_densities(graph, learner),
        fit,
        graph.keep_links(few.to(graph.link.device)),
        since=ramp,
        on_epoch=on_epoch,
    )
    masks = dict(earlier) if pruning is None else pruning.masks
    masks = {name: mask & earlier.get(name, mask) for name, mask in masks.items()}
    return Student(**vars(found), masks=masks)
