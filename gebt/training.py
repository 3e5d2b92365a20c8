"""The training loop. Retraining a ticket is this loop with masks kept."""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gebt._checks import check_count
from gebt.graph import Graph, check_graph
from gebt.pruner import (
    apply_masks,
    check_choice,
    check_masks,
    check_not_compiled,
    take_dtype,
)
from gebt.randomness import Draws
from gebt.sparse import SparseMatrix
from gebt.tasks import NodeClassification, Part, Task

Decay = Literal["first", "all"]


@dataclass(frozen=True)
class Epoch:
    """What one epoch found.

    Attributes:
        epoch: completed epochs, this one included.
        loss: training loss, with dropout, before the step.
        val: validation score after the step, percent; NaN without validation nodes.
        distances: mask distance per group, and ``joint``; empty outside a search.
    """

    epoch: int
    loss: float
    val: float
    distances: Mapping[str, float]


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
    epochs: int = 100,
    lr: float = 0.01,
    weight_decay: float = 5e-4,
    decay: Decay = "first",
    seed: int = 0,
    task: Task | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> Training:
    """Train a model in place; leave it at its best validation epoch, in eval mode.

    Adam. Only the rows that the loss or the score reads are computed, where the model
    can do that.

    Args:
        model: a module with ``forward(x, adjacency)`` or, to compute only some
            nodes' outputs, ``forward(x, adjacency, rows)``. Where none of its
            parameters is of the features' dtype, it takes that.
        graph: with a training split.
        keep: boolean masks by parameter name; what they drop stays zero.
        epochs: number of epochs, at least 1.
        lr: learning rate.
        weight_decay: added to the gradient, times the parameter.
        decay: on the parameters of the ``"first"`` layer, as Kipf and Welling do, or
            on ``"all"``.
        seed: for dropout and negatives; torch's own random state is left as it was.
        task: what to learn; by default one class per node.
        on_epoch: called after each epoch.

    Raises:
        ValueError: if the graph lacks what the task needs, a mask does not fit, or
            the loss stops being finite.
    """
    task = task or NodeClassification()
    check_epochs(epochs)
    check_trains(model)
    check_graph(graph)
    task.check(graph)
    take_dtype(model, graph.x.dtype)
    check_masks(model, keep or {})
    keep = {n: m.to(graph.adjacency.device) for n, m in (keep or {}).items()}
    apply_masks(model, keep)
    parameters = trainable(model)
    groups = parameter_groups(model, lr, weight_decay, decay)
    optimizer = torch.optim.Adam(groups, fused=True)
    history: list[Epoch] = []
    best, best_epoch = -math.inf, 0
    best_state: dict[str, Tensor] = {}
    draws = Draws(seed)
    for epoch in range(1, epochs + 1):
        model.train()
        with draws.used_by(model, task):
            rows = task.rows(graph, "train")
            output = run(model, graph.x, graph.adjacency, rows)
            loss = task.loss(output, graph, "train")
            for parameter in parameters:
                parameter.grad = None
            loss.backward(inputs=parameters)
            optimizer.step()
            if keep:
                apply_masks(model, keep)
            val = evaluate(model, graph, "val", task=task)
        # Last: it waits for a GPU, which the score has been waited for already.
        value = check_finite(loss, epoch)
        if math.isnan(val) or val > best:
            best, best_epoch = val, epoch
            best_state = copy_state(model)
        history.append(Epoch(epoch, value, val, {}))
        if on_epoch:
            on_epoch(history[-1])
    model.load_state_dict(best_state)
    model.eval()
    return Training(tuple(history), best_epoch, best)


def evaluate(
    model: nn.Module,
    graph: Graph,
    part: Part = "test",
    *,
    adjacency: SparseMatrix | None = None,
    task: Task | None = None,
) -> float:
    """The task's score of a model on one part of the split.

    Args:
        model: as for `train`; left in evaluation mode.
        graph: with that part in its split.
        part: ``"train"``, ``"val"`` or ``"test"``.
        adjacency: to use instead of the graph's own.
        task: what is scored; by default one class per node.

    Returns:
        Percent; NaN if the part is empty.
    """
    task = task or NodeClassification()
    check_choice("part", part, Part)
    check_graph(graph)
    rows = task.rows(graph, part)
    if rows is not None and rows.numel() == 0:
        return math.nan
    model.eval()
    take_dtype(model, graph.x.dtype)
    with torch.no_grad():
        output = run(model, graph.x, adjacency or graph.adjacency, rows)
    return task.score(output, graph, part)


def run(
    model: nn.Module, x: Any, adjacency: SparseMatrix, rows: Tensor | None
) -> Tensor:
    """A model's outputs for some nodes; a model that cannot choose computes all."""
    if rows is None:
        return model(x, adjacency)
    if _takes_rows(type(model).forward):
        return model(x, adjacency, rows)
    return model(x, adjacency).index_select(0, rows)


@lru_cache(maxsize=64)
def _takes_rows(forward: Callable[..., Tensor]) -> bool:
    return "rows" in inspect.signature(forward).parameters


def check_trains(model: nn.Module) -> None:
    """Raise a ValueError if gradients are off, or the model is a compiled one."""
    if not torch.is_grad_enabled() or torch.is_inference_mode_enabled():
        raise ValueError(
            "gradients are switched off here, by `torch.no_grad()` or "
            "`torch.inference_mode()`. Train outside of it."
        )
    check_not_compiled(model)


def trainable(model: nn.Module) -> list[Tensor]:
    """The parameters that take gradients, at least one."""
    parameters: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError(f"{type(model).__name__} has no parameters to train.")
    return parameters


def parameter_groups(
    model: nn.Module, lr: float, weight_decay: float, decay: Decay
) -> list[dict[str, Any]]:
    """An optimiser's groups: what decays, and what does not."""
    check_choice("decay", decay, Decay)
    layer = _first_layer(model) if decay == "first" else ""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    first = [p for name, p in named if name.startswith(layer)]
    rest = [p for name, p in named if not name.startswith(layer)]
    groups = [
        {"params": first, "lr": lr, "weight_decay": weight_decay},
        {"params": rest, "lr": lr, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _first_layer(model: nn.Module) -> str:
    """Name prefix of the first layer: a child, or an item of a list of layers.

    A module that only wraps one other is looked through.
    """
    prefix, module = "", model
    while True:
        children = [
            (name, child)
            for name, child in module.named_children()
            if any(True for _ in child.parameters())
        ]
        if not children or any(True for _ in module.parameters(recurse=False)):
            return prefix
        name, child = children[0]
        prefix += f"{name}."
        is_list = isinstance(child, nn.ModuleList | nn.Sequential)
        if not is_list and len(children) > 1:
            return prefix
        module = child


def check_epochs(epochs: int) -> None:
    """Raise a ValueError unless there is at least one epoch."""
    check_count("epochs", epochs)


def check_finite(loss: Tensor, epoch: int) -> float:
    """The loss as a number, or a ValueError that says when it diverged."""
    value = float(loss.detach())
    if not math.isfinite(value):
        raise ValueError(
            f"the loss became {value} in epoch {epoch}. Try a smaller learning rate."
        )
    return value


def copy_state(model: nn.Module) -> dict[str, Tensor]:
    """A copy of a model's parameters and buffers."""
    return {name: t.detach().clone() for name, t in model.state_dict().items()}
