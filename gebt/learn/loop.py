"""The loop: one, for training, searches and benchmarks."""

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache
from itertools import chain, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from gebt.files import is_finite
from gebt.graph import Graph, check_graph, masks_of
from gebt.learn.checkpoint import current, diverged
from gebt.learn.distributed import over_ranks
from gebt.learn.tasks import Task
from gebt.options import Fit
from gebt.prune.groups import Group, Hook
from gebt.prune.weights import apply_masks, check_masks, check_not_compiled, take_dtype
from gebt.randomness import Draws
from gebt.sparse import SparseMatrix

Batches = Callable[[int], Iterable[Graph]]
"""Given the completed epochs, the graphs of the next: the whole one, parts of it."""


class Learner:
    """All that moves while a model learns, and so all that a checkpoint holds.

    Args:
        model: trained in place.
        task: what is learned.
        fit: how the weights are trained; None freezes them.
        seed: of dropout and negatives.
        groups: what is pruned, and learned beside the weights.
        hooks: what else goes on.
        alternate: two forwards a step, the first moves the weights, the second the
            groups' scores.

    Attributes:
        epoch: completed epochs.
        stopped: whether a hook has seen enough.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        fit: Fit | None,
        *,
        seed: int,
        groups: Sequence[Group] = (),
        hooks: Sequence[Hook] = (),
        alternate: bool = False,
    ):
        self.model = model
        self.task = task
        self.fit = fit
        self.seed = seed
        self.groups = groups
        self.hooks = (*groups, *hooks)
        self.epoch, self.stopped = 0, False
        beside = [options for group in groups for options in group.scores()]
        moved = parameter_groups(model, fit) if fit else []
        weights, scores = _listed(moved), _listed(beside)
        both = [weights, scores] if alternate else [weights + scores]
        self._turns = [turn for turn in both if turn]
        if not self._turns or (fit and not weights):
            raise ValueError(f"{type(model).__name__} has no parameters to train.")
        self.optimizer = torch.optim.Adam([*moved, *beside], fused=True)
        self._leaves = [p for p in model.parameters() if p.requires_grad] + scores
        pruned = [group for group in groups if group.prune_ratio]
        self._scores = _listed([each for group in pruned for each in group.scores()])
        self._beside, self._aside, self._added = scores, dict[int, Tensor](), 0
        self._draws = Draws(seed, model, task)

    def add(self, hook: Hook) -> None:
        """One more, after the others."""
        self.hooks = (*self.hooks, hook)

    def drawing(self) -> AbstractContextManager[None]:
        """Inside, what model and task draw comes from the learner's own streams."""
        return self._draws.used()

    def adjacency(self, graph: Graph) -> SparseMatrix:
        """The graph's, or what a group puts in its place."""
        found = (group.matrix(graph) for group in self.groups)
        return next((matrix for matrix in found if matrix is not None), graph.adjacency)

    def weights(self) -> dict[str, Tensor]:
        """What groups put in the place of parameters, by name."""
        return {n: w for group in self.groups for n, w in group.weights().items()}

    def loss(self, graph: Graph) -> Tensor:
        """The loss on the graph's training part."""
        rows = self.task.rows(graph, "train")
        output = run(self.model, graph.x, self.adjacency(graph), rows, self.weights())
        return self.task.loss(output, graph, "train")

    def step(self, graph: Graph, parameters: list[Tensor], last: bool) -> Tensor:
        """One forward and backward; only these parameters move. The loss before.

        What is learned beside the weights moves once an epoch, by the mean of its
        gradients: with the last graph.
        """
        with _only(parameters, self._leaves), self.drawing():
            loss = self.loss(graph)
            name = type(self.model).__name__
            if not loss.requires_grad:
                blind = "the outputs of {} depend on no parameter."
                raise ValueError((_BLIND if self._scores else blind).format(name))
            loss.backward(inputs=parameters)
            if any(p.requires_grad and p.grad is None for p in self._scores):
                raise ValueError(_BLIND.format(name))
            for hook in self.hooks:
                hook.after_backward()
        self._gather(last)
        self.optimizer.step()
        for hook in self.hooks:
            hook.after_step()
        return loss

    def _gather(self, last: bool) -> None:
        """Put the gradients of what is learned beside the weights aside, or back."""
        if last and not self._aside:
            return
        found = {k: p.grad for k, p in enumerate(self._beside) if p.grad is not None}
        self._added += bool(found)
        for k, grad in found.items():
            total = self._aside.pop(k).add_(grad) if k in self._aside else grad
            if not last:
                self._aside[k] = total
            self._beside[k].grad = total.div_(self._added) if last else None
        if last and found:
            self._added = 0

    def epochs(self, batches: Batches, until: int) -> Iterator[Tensor]:
        """Learn until so many epochs are complete, or a hook has seen enough.

        With `checkpoints` it goes on where it was there, and yields what is left.

        Yields:
            The loss of each epoch, a scalar: of the first forward on each batch, the
            mean. Who reads it waits for a GPU.

        Raises:
            ValueError: if the loss stops being finite; on a GPU who reads it sees that.
        """
        journal = current()
        if journal is None:
            yield from self._epochs(batches, until)
            return
        progress = journal.training(self, until)
        if progress.finished:
            return
        journal.learning = True
        try:
            for loss in self._epochs(batches, until):
                yield loss
                progress.after_epoch()
            progress.finish()
        finally:
            journal.learning = False

    def _epochs(self, batches: Batches, until: int) -> Iterator[Tensor]:
        while self.epoch < until and not self.stopped:
            self.model.train()
            losses = []
            for graph, following in pairwise(chain(batches(self.epoch), [None])):
                assert graph is not None
                last = following is None
                turns = [self.step(graph, turn, last) for turn in self._turns]
                losses.append(turns[0])
            self.epoch += 1
            loss = losses[0] if len(losses) == 1 else torch.stack(losses).mean()
            loss = loss.detach()
            if loss.is_cpu:
                check_finite(loss, self.epoch)
            ends = [hook.after_epoch(self.epoch, loss) for hook in self.hooks]
            self.stopped = any(ends)
            yield loss
        for hook in self.hooks:
            hook.at_end()

    def described(self) -> dict[str, Any]:
        """What tells one training from another, in numbers and names."""
        return {
            "model": type(self.model).__name__,
            "size": sum(p.numel() for p in self.model.parameters()),
            "task": self.task.name,
            "seed": self.seed,
            "fit": self.fit and self.fit.to_dict(),
            "groups": [group.name for group in self.groups],
        }

    def is_finite(self) -> bool:
        """Whether all that is learned is."""
        learned = [*self.model.state_dict().values(), *self._beside]
        return all(is_finite(t.detach()) for t in learned if t.is_floating_point())

    def state_dict(self, *, finished: bool = False) -> dict[str, Any]:
        """Everything needed to go on later, by a learner made alike.

        Args:
            finished: leave out what only those need that learn on.
        """
        state = {
            "model": self.model.state_dict(),
            "hooks": [hook.state_dict() for hook in self.hooks],
            "epoch": self.epoch,
            "stopped": self.stopped,
        }
        if finished:
            return state
        moments = self.optimizer.state_dict()["state"]
        return {**state, "optimizer": moments, "draws": self._draws.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            ValueError: if it was taken of something else; or what the parts raise.
        """
        self.model.load_state_dict(state["model"])
        self.epoch, self.stopped = state["epoch"], state["stopped"]
        for hook, theirs in zip(self.hooks, state["hooks"], strict=True):
            hook.load_state_dict(theirs)
        if "optimizer" not in state:
            return
        groups = self.optimizer.state_dict()["param_groups"]
        moved = _listed(self.optimizer.param_groups)
        for place, moments in state["optimizer"].items():
            if moments.keys() != {"step", "exp_avg", "exp_avg_sq"}:
                raise ValueError(f"the optimiser's state has {', '.join(moments)}")
            for name, moment in moments.items():
                shape = () if name == "step" else moved[place].shape
                if moment.shape != shape:
                    raise ValueError(f"the optimiser's {name} is of another shape")
        own = {"state": state["optimizer"], "param_groups": groups}
        self.optimizer.load_state_dict(own)
        self._draws.load_state_dict(state["draws"])


_BLIND = (
    "no link received a gradient: the outputs of {} do not depend on the adjacency's "
    "values, so links cannot be learned. Set `graph_ratio=0`, or let the model use the "
    "values."
)


class Kept(Hook):
    """After each step what masks drop is zero again."""

    def __init__(self, model: nn.Module, masks: Mapping[str, Tensor]):
        self._model, self._masks = model, masks

    def after_step(self) -> None:
        """Multiply by the masks."""
        apply_masks(self._model, self._masks)


def whole(graph: Graph) -> Batches:
    """Every epoch all of a graph at once."""
    return lambda epoch: (graph,)


def begin(
    model: nn.Module, graph: Graph, task: Task, keep: Mapping[str, Tensor] | None
) -> tuple[dict[str, Tensor], list[Hook]]:
    """Check what will be trained; the masks to keep to, and who sees to it.

    Raises:
        ValueError: if gradients are off, the model is a compiled one, the graph lacks
            what the task needs, or a mask does not fit.
    """
    if not torch.is_grad_enabled() or torch.is_inference_mode_enabled():
        raise ValueError(
            "gradients are switched off here, by `torch.no_grad()` or "
            "`torch.inference_mode()`. Train outside of it."
        )
    check_not_compiled(model)
    check_graph(graph)
    task.check(graph)
    take_dtype(model, graph.x.dtype)
    check_masks(model, keep := masks_of(graph, keep))
    masks = {n: m.to(graph.adjacency.device) for n, m in keep.items()}
    apply_masks(model, masks)
    hooks = over_ranks(model, graph.world)
    return masks, [*hooks, Kept(model, masks)] if masks else hooks


def run(
    model: nn.Module,
    x: Any,
    adjacency: SparseMatrix,
    rows: Tensor | None,
    weights: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """A model's outputs for some nodes; a model that cannot choose computes all.

    Args:
        model: in the mode that is wanted.
        x: (N, F), dense or sparse.
        adjacency: (N, N).
        rows: (R,) the nodes; None for all.
        weights: in the place of its parameters, by name.
    """
    chooses = rows is not None and _takes_rows(type(model).forward)
    given = (x, adjacency, rows) if chooses else (x, adjacency)
    out = functional_call(model, {**weights}, given) if weights else model(*given)
    if not isinstance(out, Tensor):
        raise ValueError(
            f"{type(model).__name__} must give one tensor of outputs, got a "
            f"{type(out).__name__}. Wrap it in a module that returns that."
        )
    return out if rows is None or chooses else out.index_select(0, rows)


@lru_cache(maxsize=64)
def _takes_rows(forward: Callable[..., Tensor]) -> bool:
    return "rows" in inspect.signature(forward).parameters


_OF_THE_START = (
    "Features, edge weights or the model's own may be too large or not finite, or edge "
    "weights negative where roots of degrees are taken; else try a smaller learning "
    "rate."
)


def check_finite(loss: Tensor, epoch: int) -> float:
    """The loss as a number, or a ValueError that says when it diverged."""
    value = float(loss.detach())
    if not math.isfinite(value):
        told = (f"the loss became {value}", epoch)
        # The first is of the model as it was given, if epochs are single steps.
        raise diverged(*told, _OF_THE_START) if epoch == 1 else diverged(*told)
    return value


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


def _listed(groups: Sequence[Mapping[str, Any]]) -> list[Tensor]:
    return [parameter for group in groups for parameter in group["params"]]


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
