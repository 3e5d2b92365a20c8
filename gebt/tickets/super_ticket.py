"""A supernet's search: which operators, how wide, which weights; the rest leaves.

The units leave physically, so every ten epochs a smaller model goes on, with a learner
of its own on the one loop. Adam's moments go with it: without them the first steps of
each start would be of full length, in directions of no certainty. Only dropout begins
with another stream.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from gebt._checks import check_ratio
from gebt._provenance import versions
from gebt.graph import Graph
from gebt.learn.loop import Learner, begin, check_finite, whole
from gebt.learn.tasks import NodeClassification, Task
from gebt.learn.training import Epoch, copy_state, evaluate
from gebt.models import SuperGNN, describe_model
from gebt.options import Fit, Scope, chosen
from gebt.prune.detector import MaskDistanceDetector
from gebt.prune.groups import Group, Hook
from gebt.prune.links import RankedLinks
from gebt.prune.operators import Operators, unit_costs
from gebt.tickets.search import Search, describe_search
from gebt.tickets.ticket import Ticket

EVERY = 10
"""Epochs after which marked units leave."""
_STREAMS = 2**32  # apart are the seeds of two learners of one search


def find_super_ticket(
    model: SuperGNN,
    graph: Graph,
    *,
    weight_ratio: float = 0.9,
    rho: float = 1e-2,
    threshold: float = 0.05,
    scope: Scope = "global",
    groups: Sequence[Group] = (),
    fit: Fit | None = None,
    seed: int = 0,
    task: Task | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    **options: Any,
) -> tuple[SuperGNN, Ticket]:
    """Train a supernet, let units leave that do not pay, and draw a ticket of the rest.

    The loss grows by what the units' scales cost, see `gebt.prune.operators`. Every ten
    epochs units leave whose scale is small; every 25 the weights' masks are drawn anew,
    at a share that rises to ``weight_ratio`` of those that are left.

    Args:
        model: with two operators or more in some layer; not changed.
        graph: with a training split; masks of weights that it carries are not kept.
        weight_ratio: share of the weights to remove of the units that stay, in [0, 1).
        rho: weight of the costs in the loss; the larger, the fewer units stay.
        threshold: of a scale below which its unit leaves.
        scope: how weights are ranked, see `ModelPruner`.
        groups: what else is pruned, such as a `GraphSparsifier`: links.
        fit: how weights are trained, and for how many epochs; by default `Fit`'s own.
        seed: for dropout.
        task: what to learn; by default one class per node.
        on_epoch: called after each epoch; only for it is the validation score computed.
        **options: fields of `Fit` to change, such as ``epochs=200``.

    Returns:
        The smaller model, with its weights as stored, in evaluation mode; the ticket
        that was drawn of it.

    Raises:
        ValueError: if the model has nothing to choose from, a layer would be left
            without units or weights, or the loss diverges.

    Source: You et al., "SuperTickets", ECCV 2022.
    """
    [fit] = chosen(fit or Fit(), given=options, of="find_super_ticket")
    task = task or NodeClassification()
    _check_choice_of_operators(model)
    check_ratio("weight_ratio", weight_ratio)
    model = deepcopy(model)
    begin(model, graph, task, {})  # checks both, and gives it the features' dtype
    operators = Operators(
        *(model, unit_costs(model.eval(), graph.x, graph.adjacency), weight_ratio),
        epochs=fit.epochs,
        rho=rho,
        threshold=threshold,
        scope=scope,
    )
    if not any(group.name == "graph" for group in groups):
        every = torch.ones(graph.num_links, device=graph.link.device)
        groups = [RankedLinks(graph, 0.0, every), *groups]
    first, left = copy_state(model), -1
    moments: dict[str, dict[str, Tensor]] = {}
    for segment, done in enumerate(range(0, fit.epochs, EVERY)):
        until = min(EVERY, fit.epochs - done)
        part = Learner(
            *(model, task, fit),
            seed=seed + _STREAMS * segment,
            groups=[*groups, operators],
            hooks=begin(model, graph, task, {})[1],
        )
        told = _Segment(part, graph, done, fit.epochs, on_epoch)
        told.start(moments)
        part.add(told)
        for _ in part.epochs(whole(graph), until):
            pass
        keep = operators.marked()
        moments = told.moments(keep)
        left = sum(int((~each).sum()) for each in keep)
        if left:
            first = model.taken(first, keep)
            model = operators.leave(keep)
    masks = {group.name: group.masks() for group in [*groups, operators]}
    operators.restore()
    model.eval()
    ratios = {group.name: group.prune_ratio for group in groups}
    how: Any = {"detector": MaskDistanceDetector(), "scope": scope}
    ticket = Ticket(
        masks={name: found for name, found in masks.items() if found},
        scores={group.name: group.learned() for group in groups if group.learned()},
        weights=copy_state(model),
        first_weights=first,
        epoch=fit.epochs,
        settled=not left,
        share_untouched=0.0,
        distances=(),
        options={
            **describe_search(
                *(task, ratios["graph"], weight_ratio, fit, Search(**how))
            ),
            "rho": rho,
            "threshold": threshold,
        },
        seed=seed,
        dataset={"name": graph.name, "fingerprint": graph.fingerprint()},
        model=describe_model(model),
        versions=versions(),
        share=graph.share,
    )
    return model, ticket


class _Segment(Hook):
    """Ten epochs: Adam's moments, and losses and scores of each, told as they come.

    Both are in its state, so that the next ten can go on from there where a run is
    resumed.
    """

    def __init__(
        self,
        learner: Learner,
        graph: Graph,
        done: int,
        until: int,
        on_epoch: Callable[[Epoch], None] | None,
    ):
        self._learner, self._graph = learner, graph
        self._done, self._until, self._on_epoch = done, until, on_epoch
        self._history: list[tuple[float, float]] = []
        beside = [
            (f"{group.name}/{place}", parameter)
            for group in learner.groups
            for options in group.scores()
            for place, parameter in enumerate(options["params"])
        ]
        self._named = dict([*learner.model.named_parameters(), *beside])

    def start(self, moments: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Begin with an optimiser's moments by parameter."""
        state = self._learner.optimizer.state
        for name, found in moments.items():
            state[self._named[name]] = {k: t.clone() for k, t in found.items()}

    def _moments(self) -> dict[str, dict[str, Tensor]]:
        state = self._learner.optimizer.state
        return {n: dict(state[p]) for n, p in self._named.items() if p in state}

    def moments(self, keep: Sequence[Tensor]) -> dict[str, dict[str, Tensor]]:
        """Those of the units that are to stay, and of what is beside the weights."""
        model: Any = self._learner.model
        own = dict(model.named_parameters())
        found = {n: {**m} for n, m in self._moments().items() if n not in own}
        taken: dict[str, dict[str, Tensor]] = {}
        for kind in ("exp_avg", "exp_avg_sq"):
            whole = {n: m[kind] for n, m in self._moments().items() if n in own}
            for name, tensor in model.taken(whole, keep).items():
                taken.setdefault(name, {})[kind] = tensor
        steps = {n: {"step": self._moments()[n]["step"]} for n in taken}
        return found | {n: steps[n] | m for n, m in taken.items()}

    def after_epoch(self, epoch: int, loss: Tensor) -> bool:
        """Tell of it."""
        val = math.nan
        if self._on_epoch:
            learner, graph = self._learner, self._graph
            how: Any = {"adjacency": learner.adjacency(graph).detach()}
            with learner.drawing():
                val = evaluate(learner.model, graph, "val", task=learner.task, **how)
        self._tell(check_finite(loss, self._done + epoch), val)
        return False

    def _tell(self, loss: float, val: float) -> None:
        self._history.append((loss, val))
        if self._on_epoch:
            epoch = self._done + len(self._history)
            self._on_epoch(Epoch(epoch, loss, val, {}, self._until))

    def state_dict(self) -> dict[str, Any]:
        """The moments, and each epoch's loss and score."""
        history = torch.tensor(self._history, dtype=torch.float64).view(-1, 2)
        return {"moments": self._moments(), "history": history}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken; who is told of epochs is told again."""
        self.start(state["moments"])
        for loss, val in state["history"].tolist():
            self._tell(loss, val)


def _check_choice_of_operators(model: Any) -> None:
    """Refuse what is no supernet."""
    if not isinstance(model, SuperGNN):
        raise ValueError(
            f"a super ticket is drawn of a SuperGNN, not of a {type(model).__name__}."
        )
    if all(len(layer.widths) < 2 for layer in model.stages()):
        names = [name for layer in model.stages() for name in layer.widths]
        raise ValueError(
            f"the supernet has one branch a layer, {', '.join(names)}: there is "
            "nothing to choose from. Give it two operators or more, or draw its ticket "
            "by `find_ticket`."
        )
