"""The training loop. Retraining a ticket is this loop with masks kept."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gebt._checks import check_choice
from gebt.graph import Graph, check_graph
from gebt.learn.checkpoint import diverged
from gebt.learn.loop import Batches, Learner, begin, check_finite, run, whole
from gebt.learn.ordinal import InOrder, Ordinal
from gebt.learn.tasks import NodeClassification, Part, Task, is_empty
from gebt.models.recipe import Recipe
from gebt.options import Fit, chosen
from gebt.prune.groups import Hook
from gebt.prune.weights import take_dtype
from gebt.randomness import Draws
from gebt.sparse import SparseMatrix


def new_model(graph: Graph, recipe: Recipe, task: Task, seed: int) -> nn.Module:
    """A model for a graph, initialised from a seed."""
    with Draws(seed, recipe.build).used():
        model = recipe.new(graph.num_features, task.num_outputs(graph))
    return model.to(graph.adjacency.device)


@dataclass(frozen=True)
class Epoch:
    """What one epoch found.

    Attributes:
        epoch: completed epochs, this one included.
        loss: training loss, with dropout, before the step.
        val: validation score after the step, percent; NaN without validation nodes, and
            where an epoch of a student does not count yet.
        distances: mask distance per group, and ``joint``; empty outside a search.
        until: how many epochs there will be at most.
    """

    epoch: int
    loss: float
    val: float
    distances: Mapping[str, float]
    until: int


@dataclass(frozen=True)
class Training:
    """What `train` did; the model holds the weights of ``best_epoch``.

    Attributes:
        history: one `Epoch` each.
        best_epoch: first epoch with the best validation score, counted from 1; the
            last one where there are no validation nodes.
        val: its validation score, percent.
    """

    history: tuple[Epoch, ...]
    best_epoch: int
    val: float


def train(
    model: nn.Module,
    graph: Graph,
    *,
    keep: Mapping[str, Tensor] | None = None,
    fit: Fit | None = None,
    seed: int = 0,
    task: Task | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    **options: Any,
) -> Training:
    """Train a model in place; leave it at its best validation epoch, in eval mode.

    Adam. Only the rows that the loss or the score reads are computed, where the model
    can do that.

    Args:
        model: a module with ``forward(x, adjacency)`` or, to compute only some
            nodes' outputs, ``forward(x, adjacency, rows)``. Where none of its
            parameters is of the features' dtype, it takes that.
        graph: with a training split.
        keep: boolean masks by parameter name; what they drop stays zero. By default
            those that the graph of `Ticket.open` carries; ``{}`` for none.
        fit: epochs, learning rate, weight decay; by default `Fit`'s own.
        seed: for dropout and negatives; torch's own random state is left as it was.
        task: what to learn; by default one class per node.
        on_epoch: called after each epoch.
        **options: fields of `Fit` to change, such as ``epochs=200``.

    Raises:
        ValueError: if the graph lacks what the task needs, a mask does not fit, or
            the loss stops being finite.
    """
    task = task or NodeClassification()
    [fit] = chosen(fit or Fit(), given=options, of="train")
    _, hooks = begin(model, graph, task, keep)
    learner = Learner(model, task, fit, seed=seed, hooks=hooks)
    return keep_best(learner, whole(graph), fit, graph, on_epoch=on_epoch)


def keep_best(
    learner: Learner,
    batches: Batches,
    fit: Fit,
    graph: Graph,
    *,
    since: int = 1,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> Training:
    """Learn, and leave the model at its best validation epoch, in eval mode.

    Args:
        learner: whose epochs these are.
        batches: the graphs of each.
        fit: how many epochs to complete, and how many to wait for a better one.
        graph: to validate on.
        since: the first epoch that counts; earlier ones are not scored.
        on_epoch: called after each epoch.
    """
    best = _Best(learner, fit, graph, since, on_epoch)
    learner.add(best)
    for _ in learner.epochs(batches, fit.epochs):
        pass
    learner.model.eval()
    return best.found()


class _Best(Hook):
    """Scores a model after each epoch, and puts it back to its best one."""

    def __init__(
        self,
        learner: Learner,
        fit: Fit,
        graph: Graph,
        since: int,
        on_epoch: Callable[[Epoch], None] | None,
    ):
        self._learner, self._fit, self._graph = learner, fit, graph
        self._since, self._on_epoch = since, on_epoch
        self._history: list[Epoch] = []
        self._best, self._best_epoch = -math.inf, 0
        self._state: dict[str, Tensor] = {}

    def after_epoch(self, epoch: int, loss: Tensor) -> bool:
        """Whether no better one has come for too long."""
        val = math.nan
        if epoch >= self._since:
            model, graph, task = self._learner.model, self._graph, self._learner.task
            with self._learner.drawing():
                output = _output(model, graph, "val", graph.adjacency, task)
            if output is not None:
                if output.isnan().any():
                    raise diverged("an output on the validation part became nan", epoch)
                val = task.score(output, graph, "val")
        # Last: it waits for a GPU, which the score has been waited for already.
        value = check_finite(loss, epoch)
        if val > self._best:
            self._best, self._best_epoch = val, epoch
            self._state = copy_state(self._learner.model)
        self._tell(value, val)
        waited = epoch - self._best_epoch
        return bool(self._best_epoch) and 0 < self._fit.patience <= waited

    def _tell(self, loss: float, val: float) -> None:
        epochs = len(self._history) + 1, self._fit.epochs
        self._history.append(Epoch(epochs[0], loss, val, {}, epochs[1]))
        if self._on_epoch:
            self._on_epoch(self._history[-1])

    def at_end(self) -> None:
        """The model is the best one."""
        if self._state:
            self._learner.model.load_state_dict(self._state)
            self._state = {}
        else:  # no epoch could be told from another
            self._best, self._best_epoch = math.nan, len(self._history)

    def found(self) -> Training:
        """What the training came to, once it is over."""
        return Training(tuple(self._history), self._best_epoch, self._best)

    def state_dict(self) -> dict[str, Any]:
        """The best model, and each epoch's loss and score."""
        rows = [(each.loss, each.val) for each in self._history]
        return {
            "best": self._best,
            "best_epoch": self._best_epoch,
            "state": self._state,
            "history": torch.tensor(rows, dtype=torch.float64).view(-1, 2),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken; who is told of epochs is told again."""
        self._best, self._best_epoch = state["best"], state["best_epoch"]
        self._state = checked_state(self._learner.model, state["state"])
        for loss, val in state["history"].tolist():
            self._tell(loss, val)


def evaluate(
    model: nn.Module,
    graph: Graph,
    part: Part = "test",
    *,
    adjacency: SparseMatrix | None = None,
    weights: Mapping[str, Tensor] | None = None,
    task: Task | None = None,
) -> float:
    """The task's score of a model on one part of the split.

    Args:
        model: as for `train`; left in evaluation mode.
        graph: with that part in its split.
        part: ``"train"``, ``"val"`` or ``"test"``.
        adjacency: to use instead of the graph's own.
        weights: to use instead of the model's own parameters, by name.
        task: what is scored; by default one class per node.

    Returns:
        Percent; NaN if the part is empty.
    """
    task = task or NodeClassification()
    return _read(model, graph, part, task, task.score, adjacency, weights)


def absolute_error(
    model: nn.Module, graph: Graph, part: Part = "test", *, task: Task
) -> float:
    """How far off a model's answers are, the mean, where classes are in order.

    Args:
        model: as for `train`; left in evaluation mode.
        graph: with that part in its split.
        part: ``"train"``, ``"val"`` or ``"test"``.
        task: `Ordinal`, `Regression` or `Hierarchical`.

    Returns:
        In classes, at least 0; NaN if the part is empty.

    Raises:
        ValueError: if the task's classes have no order.
    """
    if not isinstance(task, InOrder):
        raise ValueError(
            f"the classes of the task {task.name!r} have no order, so there is no "
            f"absolute error. Use {Ordinal.name!r}, or `gebt.evaluate`."
        )
    return _read(model, graph, part, task, task.absolute_error)


def _read(
    model: nn.Module,
    graph: Graph,
    part: Part,
    task: Task,
    how: Callable[[Tensor, Graph, Part], float],
    adjacency: SparseMatrix | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> float:
    """A reading of a model's outputs for a part; NaN if that is empty."""
    check_choice("part", part, Part)
    check_graph(graph)
    take_dtype(model, graph.x.dtype)
    output = _output(model, graph, part, adjacency or graph.adjacency, task, weights)
    return math.nan if output is None else how(output, graph, part)


def _output(
    model: nn.Module,
    graph: Graph,
    part: Part,
    adjacency: SparseMatrix,
    task: Task,
    weights: Mapping[str, Tensor] | None = None,
) -> Tensor | None:
    """A model's output for a part, in evaluation mode; None where that is empty."""
    rows = task.rows(graph, part)
    if rows is not None and is_empty(graph, rows):
        return None
    model.eval()
    with torch.no_grad():
        return run(model, graph.x, adjacency, rows, weights)


def checked_state(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A copy of a model's state out of a file, or an empty one.

    Raises:
        ValueError: if it is of another model.
    """
    ours = {name: t.shape for name, t in model.state_dict().items()}
    if state and {name: t.shape for name, t in state.items()} != ours:
        raise ValueError("the best model is of another shape")
    return state


def copy_state(model: nn.Module) -> dict[str, Tensor]:
    """A copy of a model's parameters and buffers."""
    return {name: t.detach().clone() for name, t in model.state_dict().items()}
