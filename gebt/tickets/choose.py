"""The cheapest model no worse than a dense one: one student, many tickets."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Generator, Tensor, nn

from gebt._checks import check_not_negative
from gebt._provenance import versions
from gebt._registry import ASK_A_MODEL, CRITERIA, MODELS
from gebt.deploy.compaction import compact
from gebt.deploy.cost import latencies
from gebt.graph import Graph, Split, check_graph
from gebt.learn.student import student_of, train_student
from gebt.learn.tasks import (
    NodeClassification,
    Task,
    prepare,
    task_for,
)
from gebt.learn.training import Epoch, copy_state, evaluate, new_model, train
from gebt.models import describe_model
from gebt.models.recipe import Recipe
from gebt.prune.detector import MaskDistanceDetector
from gebt.prune.links import links_by
from gebt.tickets.search import Search, describe_search
from gebt.tickets.ticket import Ticket

LINKS = (0.95, 0.9, 0.8, 0.6, 0.4, 0.2, 0.0)
WEIGHTS = (0.9, 0.5, 0.0)
"""Shares removed that are tried, the cheapest first."""
_RESAMPLES = 1000
OnEpoch = Callable[[str, Epoch], None]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One ticket of the frontier.

    Attributes:
        criterion: that ranked its links; ``"dense"`` for the dense model, ``"all"``
            where all links stay.
        graph_ratio: share of links removed.
        weight_ratio: share of weights removed.
        val: validation score, percent.
        retrained: the same after retraining, of the answer alone.
        ms: of a forward of its compact form; None if another's links are better.
        reference_ms: of one of the dense model, timed in turns with it.
        chosen: whether it is the answer.
    """

    criterion: str
    graph_ratio: float
    weight_ratio: float
    val: float
    retrained: float | None = None
    ms: float | None = None
    reference_ms: float | None = None
    chosen: bool = False

    @property
    def share(self) -> float:
        """Of the dense model's time, which a busy machine changes less than a time."""
        if self.ms is None or self.reference_ms is None:
            return math.inf
        return self.ms / self.reference_ms


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What `find_cheapest` gives.

    Attributes:
        model: the compact model, in evaluation mode; the dense one where nothing can be
            removed.
        graph: the compact graph; the whole one where nothing can be removed.
        ticket: what they were made from; None where nothing can be removed.
        masked: the model before compaction, and its graph.
        val: its validation score, percent.
        dense: the dense model, at its best validation epoch.
        dense_val: its validation score, percent.
        frontier: the dense model, and every ticket that was scored.
        interval: on 95% of the resampled sets of validation nodes the ticket's score
            less the dense model's lies between these two, percent; NaN for links.
    """

    model: nn.Module
    graph: Graph
    ticket: Ticket | None
    masked: tuple[nn.Module, Graph]
    val: float
    dense: nn.Module
    dense_val: float
    frontier: tuple[Candidate, ...]
    interval: tuple[float, float]

    @property
    def chosen(self) -> Candidate:
        """The one that is the answer; the dense model where nothing can be removed."""
        return next(each for each in self.frontier if each.chosen)


def find_cheapest(
    graph: Graph,
    *,
    max_drop: float = 0.5,
    recipe: str | Recipe = "gcn",
    criteria: Sequence[str] | None = None,
    seed: int = 0,
    task: Task | None = None,
    on_epoch: OnEpoch | None = None,
) -> Choice:
    """The cheapest ticket whose validation score is within a tolerance of the dense's.

    Trains the dense model, and from its weights a student (`train_student`) that does
    with few weights, and with whichever links. Every criterion's links, at every share
    in `LINKS`, are then scored by one forward of the student on the validation nodes.
    Of what holds, the fastest, timed in turns with the dense model, is the answer; it
    alone is retrained, and kept as it was unless that is better. Where nothing holds, a
    student with more weights is tried, by `WEIGHTS`, and in the end nothing can be
    removed. Selection is on validation alone; the test nodes are never looked at.

    Args:
        graph: with nodes, or links, to train and to validate on.
        max_drop: how far the validation score may be below the dense model's, percent.
        recipe: of the model, or its name.
        criteria: names of those to try; by default `usual_criteria`.
        seed: of everything.
        task: what to learn; by default what the labels say.
        on_epoch: called with the phase, ``"dense"``, ``"student"`` or ``"retrain"``,
            and each of its epochs.

    Raises:
        ValueError: if the tolerance is negative, a name is not known, or there is
            nothing to validate on.
    """
    check_not_negative("max_drop", max_drop)
    recipe = MODELS.find(recipe) if isinstance(recipe, str) else recipe
    check_graph(graph)
    task = task or task_for(graph)
    graph = prepare(graph, task)
    rows = task.rows(graph, "val")
    if rows is not None and not rows.numel():
        raise ValueError(
            f"the graph {graph.name!r} has nothing to validate on, by which `max_drop` "
            "is judged: mark nodes in `data.val_mask`."
        )
    names = usual_criteria(task) if criteria is None else criteria
    known = [CRITERIA.check(name) for name in names]
    trial = _Trial(graph, task, recipe, seed, max_drop, on_epoch)
    for ratio in WEIGHTS:
        trial.student(ratio)
        if trial.rank(known) >= trial.least:
            break
    return trial.choice()


def usual_criteria(task: Task) -> list[str]:
    """Names of all criteria but those that take long, or read the full graph's answers.

    And those that need a search, or classes of nodes where the task has none.
    """
    left_out = {"learned", "grow", "expected-gradient"}
    if not isinstance(task, NodeClassification):
        left_out |= {*ASK_A_MODEL}
    return [name for name in CRITERIA if name not in left_out]


class _Trial:
    """A dense model, its student, and the student's tickets."""

    def __init__(
        self,
        graph: Graph,
        task: Task,
        recipe: Recipe,
        seed: int,
        max_drop: float,
        on_epoch: OnEpoch | None,
    ):
        self._graph, self._task, self._recipe, self._seed = graph, task, recipe, seed
        self._on_epoch = on_epoch
        self._dense = new_model(graph, recipe, task, seed)
        self._first = copy_state(self._dense)
        how: Any = {"fit": recipe.fit, "seed": seed, "task": task}
        how["on_epoch"] = self._hook("dense")
        self.dense_val = train(self._dense, graph, **how).val
        self.least = self.dense_val - max_drop
        self._logits: Tensor | None = None
        if isinstance(task, NodeClassification):
            with torch.no_grad():
                self._logits = self._dense(graph.x, graph.adjacency)
        self._frontier: list[Candidate] = []
        self._best: dict[float, tuple[Candidate, Tensor]] = {}
        self._fitted: dict[str, Mapping[str, Tensor]] = {}

    def _hook(self, phase: str) -> Callable[[Epoch], None] | None:
        given = self._on_epoch
        return None if given is None else lambda epoch: given(phase, epoch)

    def student(self, weight_ratio: float) -> None:
        """Train one with fewer weights."""
        graph, task = self._graph, self._task
        self._fit = student_of(self._recipe.fit)
        self._model = new_model(graph, self._recipe, task, self._seed)
        self._model.load_state_dict(self._dense.state_dict())
        done = train_student(
            self._model,
            graph,
            self._logits,
            weight_ratio=weight_ratio,
            scope=self._recipe.scope,
            fit=self._fit,
            seed=self._seed,
            task=task,
            on_epoch=self._hook("student"),
        )
        self._masks, self._ratio = done.masks, weight_ratio

    def _score(self, criterion: str, graph_ratio: float, mask: Tensor) -> None:
        """The student's on some links, which are kept if the best at their share."""
        small = self._graph.keep_links(mask)
        val = evaluate(self._model, small, "val", task=self._task)
        candidate = Candidate(
            criterion=criterion,
            graph_ratio=graph_ratio,
            weight_ratio=self._ratio,
            val=val,
        )
        self._frontier.append(candidate)
        known = self._best.get(graph_ratio)
        if known is None or val > known[0].val:
            self._best[graph_ratio] = candidate, mask

    def rank(self, criteria: Sequence[str]) -> float:
        """Score the student on every criterion's links at every share: the best."""
        graph, seed = self._graph, self._seed
        self._best.clear()
        every = torch.ones(graph.num_links, dtype=torch.bool)
        self._score("all", 0.0, every.to(graph.link.device))
        for name in criteria:
            for ratio in LINKS[:-1]:
                links = links_by(name, graph, self._model, ratio, seed, self._task)
                self._fitted[name] = links.fitted  # the same at every share
                self._score(name, ratio, links.masks()["link"])
        return max(candidate.val for candidate, _ in self._best.values())

    def choice(self) -> Choice:
        """The fastest of what holds, or the dense model."""
        whole = self._dense, self._graph
        [ms] = latencies([whole])
        ratios: Any = {"graph_ratio": 0.0, "weight_ratio": 0.0}
        best = Candidate(
            criterion="dense", val=self.dense_val, ms=ms, reference_ms=ms, **ratios
        )
        ticket: Ticket | None = None
        masked = compacted = whole
        frontier = [best, *self._frontier]
        for candidate, mask in self._best.values():
            small = self._graph.keep_links(mask)
            reference_ms, ms = latencies([whole, compact(self._model, small)])
            timed = replace(candidate, ms=ms, reference_ms=reference_ms)
            frontier[frontier.index(candidate)] = timed
            if candidate.val >= self.least and timed.share < best.share:
                best, ticket = timed, self._ticket(timed, mask)
        val, place = best.val, frontier.index(best)
        if ticket is not None:
            masked, val, after = self._retrained(ticket, best.val)
            compacted = compact(*masked)
            best = replace(best, retrained=after)
        frontier[place] = replace(best, chosen=True)
        return Choice(
            model=compacted[0],
            graph=compacted[1],
            ticket=ticket,
            masked=masked,
            val=val,
            dense=self._dense,
            dense_val=self.dense_val,
            frontier=tuple(frontier),
            interval=self._interval(whole, compacted),
        )

    def _retrained(
        self, ticket: Ticket, before: float
    ) -> tuple[tuple[nn.Module, Graph], float, float]:
        """The better of a ticket as it is and retrained; both scores."""
        how: Any = {"fit": self._recipe.fit, "seed": self._seed, "task": self._task}
        small = ticket.open(self._model, self._graph)
        after = train(self._model, small, on_epoch=self._hook("retrain"), **how).val
        if not after > before:
            small = ticket.open(self._model, self._graph)
        return (self._model, small), max(after, before), after

    def _ticket(self, candidate: Candidate, mask: Tensor) -> Ticket:
        """Of the student, on the links of a mask (L,)."""
        masks: dict[str, Any] = {"graph": {"link": mask}}
        if self._masks:
            masks["weights"] = self._masks
        search = Search(
            criterion=candidate.criterion if candidate.graph_ratio else "learned",
            scope=self._recipe.scope,
            detector=MaskDistanceDetector(),
        )
        ones = torch.ones_like(mask, dtype=self._graph.adjacency.dtype)
        return Ticket(
            masks=masks,
            scores={"graph": {"link": ones}},
            weights=copy_state(self._model),
            first_weights=self._first,
            epoch=self._fit.epochs,
            settled=True,
            share_untouched=0.0,
            distances=(),
            options=describe_search(
                self._task,
                candidate.graph_ratio,
                candidate.weight_ratio,
                self._fit,
                search,
            ),
            seed=self._seed,
            dataset={
                "name": self._graph.name,
                "fingerprint": self._graph.fingerprint(),
            },
            model=describe_model(self._dense),
            versions=versions(),
            fitted=self._fitted.get(candidate.criterion, {}),
        )

    @torch.no_grad()
    def _interval(self, *sides: tuple[nn.Module, Graph]) -> tuple[float, float]:
        """Where 95% of the differences on resampled validation nodes lie; paired."""
        split = self._graph.split
        if not isinstance(split, Split):
            return math.nan, math.nan
        outputs = [model.eval()(at.x, at.adjacency) for model, at in sides]
        draw = Generator().manual_seed(self._seed)
        gaps = []
        for _ in range(_RESAMPLES):
            picked = torch.randint(split.val.numel(), split.val.shape, generator=draw)
            nodes = split.val[picked.to(split.val.device)]
            at = replace(self._graph, split=replace(split, val=nodes))
            dense, ours = (self._task.score(o[nodes], at, "val") for o in outputs)
            gaps.append(ours - dense)
        ends = torch.tensor(gaps).nanquantile(torch.tensor([0.025, 0.975]))
        return float(ends[0]), float(ends[1])
