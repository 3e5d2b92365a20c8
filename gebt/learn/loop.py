"""The loop: one, for training, searches and benchmarks."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from gebt.graph import Graph
from gebt.learn.tasks import Task
from gebt.options import Fit
from gebt.prune.links import GraphSparsifier
from gebt.prune.weights import apply_masks, check_not_compiled
from gebt.randomness import Draws
from gebt.sparse import SparseMatrix


class Learner:
    """All that moves while a model learns.

    Args:
        model: trained in place.
        task: what is learned.
        groups: of the optimiser, see `parameter_groups`; what is in them moves.
        seed: of dropout and negatives.
        keep: boolean masks by parameter name; what they drop is zero after each step.
        sparsifier: stands for the graph's adjacency, and learns where it is in the
            groups; None leaves the graph as it is.
        turns: the parameters that each forward of an epoch moves; by default there is
            one forward, which moves all.
        after_backward: called between each backward and its step.

    Attributes:
        epoch: completed epochs.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        groups: Sequence[dict[str, Any]],
        *,
        seed: int,
        keep: Mapping[str, Tensor] | None = None,
        sparsifier: GraphSparsifier | None = None,
        turns: Sequence[list[Tensor]] | None = None,
        after_backward: Callable[[], None] | None = None,
    ):
        self.model = model
        self.task = task
        self.optimizer = torch.optim.Adam(groups, fused=True)
        self.keep = dict(keep or {})
        self.sparsifier = sparsifier
        self.epoch = 0
        self._turns = turns or [[p for group in groups for p in group["params"]]]
        self._after_backward = after_backward
        self._draws = Draws(seed, model, task)
        self._leaves: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
        if sparsifier is not None:
            self._leaves.append(sparsifier.score)

    def drawing(self) -> AbstractContextManager[None]:
        """Inside, what model and task draw comes from the learner's own streams."""
        return self._draws.used()

    def loss(self, graph: Graph) -> Tensor:
        """The loss on the graph's training part."""
        sparsifier = self.sparsifier
        adjacency = graph.adjacency if sparsifier is None else sparsifier()
        output = run(self.model, graph.x, adjacency, self.task.rows(graph, "train"))
        return self.task.loss(output, graph, "train")

    def step(self, graph: Graph, parameters: list[Tensor]) -> Tensor:
        """One forward and backward; only these parameters move. The loss before."""
        with _only(parameters, self._leaves), self.drawing():
            loss = self.loss(graph)
            if not loss.requires_grad:
                name = type(self.model).__name__
                if self.sparsifier is not None:
                    raise ValueError(BLIND.format(name))
                raise ValueError(f"the outputs of {name} depend on no parameter.")
            loss.backward(inputs=parameters)
            if self._after_backward:
                self._after_backward()
        self.optimizer.step()
        if self.keep:
            apply_masks(self.model, self.keep)
        return loss

    def epochs(self, graph: Graph, until: int) -> Iterator[Tensor]:
        """Learn until so many epochs are complete, or nobody asks for more.

        Yields:
            The loss of each epoch's first forward, a scalar. Who reads it waits for a
            GPU.
        """
        while self.epoch < until:
            self.model.train()
            losses = [self.step(graph, parameters) for parameters in self._turns]
            self.epoch += 1
            yield losses[0]


BLIND = (
    "no link received a gradient: the outputs of {} do not depend on the adjacency's "
    "values, so links cannot be learned. Set `graph_ratio=0`, or let the model use the "
    "values."
)


def run(
    model: nn.Module, x: Any, adjacency: SparseMatrix, rows: Tensor | None
) -> Tensor:
    """A model's outputs for some nodes; a model that cannot choose computes all."""
    chooses = rows is not None and _takes_rows(type(model).forward)
    out = model(x, adjacency, rows) if chooses else model(x, adjacency)
    if not isinstance(out, Tensor):
        raise ValueError(
            f"{type(model).__name__} must give one tensor of outputs, got a "
            f"{type(out).__name__}. Wrap it in a module that returns that."
        )
    return out if rows is None or chooses else out.index_select(0, rows)


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


def parameter_groups(model: nn.Module, fit: Fit) -> list[dict[str, Any]]:
    """An optimiser's groups: what decays, and what does not."""
    layer = _first_layer(model) if fit.decay == "first" else ""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    first = [p for name, p in named if name.startswith(layer)]
    rest = [p for name, p in named if not name.startswith(layer)]
    groups = [
        {"params": first, "lr": fit.lr, "weight_decay": fit.weight_decay},
        {"params": rest, "lr": fit.lr, "weight_decay": 0.0},
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


@contextmanager
def _only(parameters: list[Tensor], of: list[Tensor]) -> Iterator[None]:
    """Inside, no other parameter is differentiated; no earlier gradient remains."""
    wanted = {id(p) for p in parameters}
    frozen = [p for p in of if id(p) not in wanted]
    for parameter in of:
        parameter.grad = None
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
