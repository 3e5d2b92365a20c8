"""The cheapest model no worse than a dense one: units, weights and links that can go.

Three things go, in turn: hidden units by halves, as long as that holds; weights, where
a student can do without them; links, of which the criteria name many sets and a few
retrainings find the smallest that holds.
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Generator, Tensor, nn

from gebt._checks import check_choice, check_not_negative
from gebt._provenance import versions
from gebt._registry import ASK_A_MODEL, CRITERIA
from gebt.deploy.compaction import compact
from gebt.deploy.cost import latencies
from gebt.graph import Graph, Split, check_graph
from gebt.learn.checkpoint import Clock, measured
from gebt.learn.distilled import Distilled
from gebt.learn.loop import run
from gebt.learn.recipes import (
    Dense,
    check_validation,
    choose_dense,
    recipes_for,
    train_dense,
)
from gebt.learn.student import train_student
from gebt.learn.tasks import NodeClassification, Task, prepare, task_for
from gebt.learn.training import Epoch, copy_state, evaluate, train
from gebt.models import describe_model
from gebt.models.recipe import Recipe
from gebt.options import Fit, Objective
from gebt.prune.criteria import BY_RATIO, SHARED, Context, score_links
from gebt.prune.detector import MaskDistanceDetector
from gebt.prune.links import RankedLinks
from gebt.prune.units import can_slim, slim, unit_scores
from gebt.sparse import SparseMatrix
from gebt.tickets.early import Early, draw_early
from gebt.tickets.search import Search, describe_search
from gebt.tickets.ticket import Ticket

_log = logging.getLogger("gebt")
LINKS = (0.95, 0.9, 0.8, 0.6, 0.4, 0.2, 0.0)
"""Shares of the links removed that are tried, the cheapest first."""
_UNITS = 0.75, 0.5  # shares of the hidden units removed that are tried
_NARROWEST = 16  # units of a hidden layer that stay at least
_SPARSE = 0.9  # share of weights that a student does without, where features are sparse
_SHORTER = 0.5  # than the dense model's are the trainings of what begins with its own
_STUDENT = 0.7  # of the dense model's epochs, a student's
_FASTER = 2.0  # than the dense model's is a student's learning rate
_ASKED = 0.2  # share of the nodes that can be asked about, from which a student pays
_REACH, _RELEARN = 5.0, 1.0  # percent that retraining may bring back; to a student
_REPEATS = 20  # timed forwards of each candidate
_RESAMPLES = 200  # of the validation nodes
_AIM, _SURE = 0.5, 0.25  # share of the tolerance that links may lose; standard errors
OnEpoch = Callable[[str, Epoch], None]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One ticket of the frontier.

    Attributes:
        criterion: that ranked its links; ``"dense"`` for the dense model, ``"all"``
            where all links stay.
        graph_ratio: share of links removed.
        weight_ratio: share of the weights removed, of those of the units that stay.
        unit_ratio: share of the hidden units removed.
        val: validation score, percent.
        retrained: the same after retraining, of those that were.
        ms: of a forward of its compact form; None if another's links are better.
        reference_ms: of one of the dense model, timed in turns with it.
        chosen: whether it is the answer.
    """

    criterion: str
    graph_ratio: float
    weight_ratio: float
    unit_ratio: float = 0.0
    val: float
    retrained: float | None = None
    ms: float | None = None
    reference_ms: float | None = None
    chosen: bool = False

    @property
    def best(self) -> float:
        """The validation score, after retraining if that is better."""
        return max(self.val, -math.inf if self.retrained is None else self.retrained)

    @property
    def removes(self) -> bool:
        """Whether it is any less than the dense model."""
        return bool(self.graph_ratio or self.weight_ratio or self.unit_ratio)

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
        recipe: by which the dense model was trained.
        dense: the dense model, at its best validation epoch.
        dense_val: its validation score, percent.
        frontier: the dense model, and every ticket that was scored.
        interval: on 95% of the resampled sets of validation nodes the ticket's score
            less the dense model's lies between these two, percent; NaN for links.
        dense_spent: seconds on training the dense model alone.
        spent: seconds on everything, that included.
    """

    model: nn.Module
    graph: Graph
    ticket: Ticket | None
    masked: tuple[nn.Module, Graph]
    val: float
    recipe: Recipe
    dense: nn.Module
    dense_val: float
    frontier: tuple[Candidate, ...]
    interval: tuple[float, float]
    dense_spent: Clock
    spent: Clock

    @property
    def chosen(self) -> Candidate:
        """The one that is the answer; the dense model where nothing can be removed."""
        return next(each for each in self.frontier if each.chosen)


def find_cheapest(
    graph: Graph,
    *,
    max_drop: float = 0.5,
    recipe: str | Recipe | Sequence[Recipe] = "auto",
    objective: Objective = "inference",
    criteria: Sequence[str] | None = None,
    seed: int = 0,
    task: Task | None = None,
    on_epoch: OnEpoch | None = None,
) -> Choice:
    """The cheapest ticket whose validation score is within a tolerance of the dense's.

    1. The dense model is trained; with ``recipe="auto"`` validation chooses it.
    2. Its hidden units are halved (`slim`) and what is left trained on, as long as the
       validation score holds.
    3. Where features are sparse, or a fifth of the nodes can be asked about, students
       (`train_student`) come before that: of fewer units and weights, and for whichever
       links.
    4. Every criterion's links, at every share in `LINKS`, are scored by one forward on
       the validation nodes. The best at each share are timed, in turns with the dense
       model, and a few retrained: the fastest that holds is found by halving.

    Selection is on validation alone; the test nodes are never looked at. Where nothing
    holds the dense model is the answer.

    With ``objective="training"`` it is the training that is to be cheap: see
    `gebt.tickets.early`. The dense model is trained afterwards, to compare with, and
    what that takes is not in ``spent`` unless the ticket does not hold.

    Args:
        graph: with nodes, or links, to train and to validate on.
        max_drop: how far the validation score may be below the dense model's, percent.
        recipe: of the model; its name; ``"auto"``, ``"paper"`` or ``"tuned"``, see
            `gebt.learn.recipes`; or several, of which the best on validation is taken.
        objective: what is to be cheap, ``"inference"`` or ``"training"``.
        criteria: names of those to try; by default `usual_criteria`. Not where
            training is to be cheap, which has its own.
        seed: of everything.
        task: what to learn; by default what the labels say.
        on_epoch: called with the phase, ``"dense"``, ``"units"``, ``"student"``,
            ``"retrain"``, ``"trial"`` or ``"early"``, and each of its epochs.

    Raises:
        ValueError: if the tolerance is negative, a name is not known, or there is
            nothing to validate on.
    """
    check_not_negative("max_drop", max_drop)
    check_choice("objective", objective, Objective)
    if objective == "training" and criteria is not None:
        raise ValueError(
            "`objective` 'training' ranks links by k-neighbour and low-degree, which "
            f"take no training; leave out {' and '.join(criteria)}."
        )
    start = Clock.now()
    check_graph(graph)
    task = task or task_for(graph)
    graph = prepare(graph, task)
    check_validation(graph, task, "`max_drop` is judged")
    if isinstance(recipe, str):
        recipe = recipes_for(recipe, graph, task)
    among = [recipe] if isinstance(recipe, Recipe) else recipe
    names = usual_criteria(task) if criteria is None else criteria
    if graph.share is not None and criteria is None:
        names = [name for name in names if name in SHARED]
        _log.info("several ranks: links by %s alone", ", ".join(names))
    known = [CRITERIA.check(name) for name in names]

    def of(phase: str) -> Callable[[Epoch], None] | None:
        return None if on_epoch is None else lambda epoch: on_epoch(phase, epoch)

    if objective == "training":
        early = draw_early(among, graph, task, seed, of)
        dense = train_dense(early.recipe, graph, task, seed, of("dense"))
        return _Trial(graph, task, dense, seed, max_drop, of).early(early)
    dense = choose_dense(among, graph, task, seed, of("dense"))
    trial = _Trial(graph, task, dense, seed, max_drop, of)
    for base in trial.bases():
        if trial.settle(base, known):
            break
    return trial.choice(Clock.now() - start)


def usual_criteria(task: Task) -> list[str]:
    """Names of all criteria but those that take long, or read the full graph's answers.

    And those that need a search, or classes of nodes where the task has none.
    """
    left_out = {"learned", "grow", "expected-gradient"}
    if not isinstance(task, NodeClassification):
        left_out |= {*ASK_A_MODEL}
    return [name for name in CRITERIA if name not in left_out]


@dataclass(frozen=True, eq=False)
class _Base:
    """A trained model whose links may go.

    Attributes:
        model: with its weights.
        first: its state before it was trained.
        masks: of its weights.
        fit: how it was trained.
        row: what the frontier says of it, with all links.
        reach: percent that retraining is trusted to bring back after links have gone.
    """

    model: nn.Module
    first: dict[str, Tensor]
    masks: dict[str, Tensor]
    fit: Fit
    row: Candidate
    reach: float = _REACH


@dataclass(frozen=True, eq=False)
class _Found:
    """A candidate, as it can be used."""

    row: Candidate
    base: _Base
    mask: Tensor
    model: nn.Module
    graph: Graph
    fitted: Mapping[str, Tensor] = field(default_factory=dict)


class _Trial:
    """A dense model, and what can be made of it."""

    def __init__(
        self,
        graph: Graph,
        task: Task,
        dense: Dense,
        seed: int,
        max_drop: float,
        of: Callable[[str], Callable[[Epoch], None] | None],
    ):
        self._graph, self._task, self._dense, self._seed = graph, task, dense, seed
        self._max_drop, self._of = max_drop, of
        self._taught, self._logits = task, None
        if isinstance(task, NodeClassification):
            with torch.no_grad():
                self._logits = dense.model(graph.x, graph.adjacency)
            self._taught = Distilled(task, self._logits)
        self._whole = dense.model, graph
        none: Any = {"graph_ratio": 0.0, "weight_ratio": 0.0}
        row = Candidate(criterion="dense", val=dense.val, **none)
        base = _Base(dense.model, dense.first, {}, dense.recipe.fit, row)
        every = torch.ones(graph.num_links, dtype=torch.bool, device=graph.link.device)
        self._answer = self._timed(_Found(row, base, every, *self._whole))
        self._first = self._answer
        self._frontier = [self._answer.row]
        self._best: dict[float, _Found] = {}

    def bases(self) -> Iterator[_Base]:
        """Models whose links may go, to be tried until one holds."""
        modules = self._dense.model.modules()
        norms = any(isinstance(module, nn.BatchNorm1d) for module in modules)
        # Single weights cost time in sparse features alone, and accuracy behind norms.
        sparse = isinstance(self._graph.x, SparseMatrix) and not norms
        if sparse or self._asked() >= _ASKED * self._graph.nodes_in_all:
            weights = _SPARSE if sparse else 0.0
            units = [*map(self._room, _UNITS)]
            students = [*((gone, weights) for gone in units), (units[-1], 0.0)]
            for gone, few in dict.fromkeys(students):
                yield self._student(self._narrow(self._first.base, gone), few)
        yield self._slimmed()

    def _room(self, gone: float) -> float:
        """That share of the units where so many can go, else 0."""
        model = self._dense.model
        if not can_slim(model):
            return 0.0
        narrow = min(scores.numel() for scores in unit_scores(model))
        return gone if (1 - gone) * narrow >= _NARROWEST else 0.0

    def _narrow(self, base: _Base, gone: float) -> _Base:
        """A base of fewer units, as it is before it is trained on."""
        if not gone:
            return base
        model = slim(base.model, gone)
        units = 1 - (1 - base.row.unit_ratio) * (1 - gone)
        row = replace(base.row, criterion="all", unit_ratio=units)
        return _Base(model, copy_state(model), {}, base.fit, row)

    def _asked(self) -> int:
        """How many nodes the dense model is asked about, beside those to train on."""
        tasks = self._taught, self._task
        counts = [
            0 if rows is None else rows.numel()
            for rows in (task.rows(self._graph, "train") for task in tasks)
        ]
        return self._graph.world.total(counts[0] - counts[1])

    def _slimmed(self) -> _Base:
        """The narrowest model that holds, each half as wide as the one before."""
        base = self._first.base
        for _ in filter(self._room, _UNITS[::-1]):
            small = self._narrow(base, 0.5)
            fit = _shorter(base.fit)
            how: Any = {"fit": fit, "seed": self._seed, "task": self._taught}
            done = train(small.model, self._graph, on_epoch=self._of("units"), **how)
            row = replace(small.row, val=done.val)
            at = self._first.mask, small.model, self._graph
            found = self._timed(_Found(row, small, *at))
            self._frontier.append(found.row)
            if not self._holds(found, self._max_drop):
                break
            base = replace(small, row=found.row)
            self._take(replace(found, base=base))
        return base

    def _student(self, base: _Base, weight_ratio: float) -> _Base:
        """One of fewer weights, that does with whichever links."""
        model, recipe = deepcopy(base.model), self._dense.recipe
        fit = _shorter(base.fit, _STUDENT)
        fit = replace(fit, lr=_FASTER * fit.lr)
        done = train_student(
            model,
            self._graph,
            self._logits,
            weight_ratio=weight_ratio,
            scope=recipe.scope,
            fit=fit,
            seed=self._seed,
            task=self._task,
            on_epoch=self._of("student"),
        )
        row = replace(base.row, weight_ratio=weight_ratio, ms=None, reference_ms=None)
        # It is trained for whichever links: little of what it lacks will be learned.
        return _Base(model, base.first, dict(done.masks), fit, row, reach=_RELEARN)

    def settle(self, base: _Base, criteria: Sequence[str]) -> bool:
        """Find the fastest links of a model that hold; whether any do."""
        self._rank(base, criteria)
        self._retrain()
        return self._answer is not self._first

    def _rank(self, base: _Base, criteria: Sequence[str]) -> None:
        """Score a model on every criterion's links at every share."""
        graph, draw = self._graph, Generator()
        self._best.clear()
        self._score(base, "all", 0.0, self._first.mask)
        for name in criteria:
            scores: Tensor | None = None
            for ratio in LINKS[:-1]:
                if scores is None or name in BY_RATIO:
                    draw.manual_seed(self._seed)
                    context = Context(draw, base.model, ratio, self._task)
                    scores = score_links(name, graph, context)
                links = RankedLinks(graph, ratio, scores, self._seed)
                mask = links.masks()["link"]
                self._score(base, name, ratio, mask, context.fitted)

    def _score(
        self,
        base: _Base,
        criterion: str,
        graph_ratio: float,
        mask: Tensor,
        fitted: Mapping[str, Tensor] | None = None,
    ) -> None:
        """A model's on some links, which are kept if the best at their share."""
        small = self._graph.keep_links(mask) if graph_ratio else self._graph
        val = evaluate(base.model, small, "val", task=self._task)
        row = replace(
            base.row,
            criterion=criterion,
            graph_ratio=graph_ratio,
            val=val,
            ms=None,
            reference_ms=None,
        )
        self._frontier.append(row)
        known = self._best.get(graph_ratio)
        if known is None or val > known.row.val:
            at = mask, base.model, small
            self._best[graph_ratio] = _Found(row, base, *at, fitted or {})

    def _timed(self, found: _Found) -> _Found:
        """The candidate with the time of its compact form, in turns with the dense."""
        pairs = [self._whole, compact(found.model, found.graph)]
        reference_ms, ms = measured(lambda: latencies(pairs, repeats=_REPEATS))
        if found.row.criterion == "dense":
            ms = reference_ms  # compaction is a ticket's
        return replace(found, row=replace(found.row, ms=ms, reference_ms=reference_ms))

    def _take(self, found: _Found) -> None:
        """Make it the answer if it is faster."""
        if found.row.share < self._answer.row.share:
            self._answer = found

    def _retrain(self) -> None:
        """By halving, until the fastest that holds is known.

        That is one that barely does: so it may lose but half of the tolerance.
        """
        timed = [self._timed(found) for found in self._best.values()]
        for found, before in zip(timed, self._best.values(), strict=True):
            self._write(found.row, instead=before.row)
        least = self._answer.row.share
        faster = [f for f in timed if f.row.share < least and f.row.removes]
        # Not by their times, which a busy machine changes.
        faster.sort(key=lambda found: -found.row.graph_ratio)
        low, high = 0, len(faster)
        while low < high:
            middle = (low + high) // 2
            found = faster[middle] = self._retrained(faster[middle])
            if self._holds(found, _AIM * self._max_drop):
                self._take(found)
                high = middle
            else:
                low = middle + 1
        for found in faster:  # what holds as it is, and was not asked for
            if found.row.share < self._answer.row.share and self._holds(
                found, _AIM * self._max_drop
            ):
                self._answer = found

    def _write(self, row: Candidate, *, instead: Candidate) -> None:
        self._frontier[self._frontier.index(instead)] = row

    def _retrained(self, found: _Found) -> _Found:
        """The better of a candidate as it is and retrained."""
        if found.row.val < self._dense.val - self._max_drop - found.base.reach:
            return found
        model = deepcopy(found.base.model)
        small = self._ticket(found).open(model, self._graph)
        fit = _shorter(self._dense.recipe.fit)
        how: Any = {"fit": fit, "seed": self._seed, "task": self._taught}
        val = train(model, small, on_epoch=self._of("retrain"), **how).val
        row = replace(found.row, retrained=val)
        self._write(row, instead=found.row)
        if val > found.row.val:
            return replace(found, row=row, model=model, graph=small)
        return replace(found, row=row)

    def early(self, early: Early) -> Choice:
        """The answer where training was to be cheap, if it holds."""
        ratios: Any = {"graph_ratio": early.graph_ratio, "weight_ratio": 0.0}
        row = Candidate(
            criterion=early.criterion,
            unit_ratio=early.unit_ratio,
            val=early.val,
            **ratios,
        )
        fit = replace(self._dense.recipe.fit, epochs=early.epoch)
        base = _Base(early.model, early.first, {}, fit, row)
        small = self._graph.keep_links(early.mask)
        found = self._timed(_Found(row, base, early.mask, early.model, small))
        self._frontier.append(found.row)
        if early.val < self._dense.val - self._max_drop:
            return self.choice(early.spent + self._dense.spent)
        self._answer = found
        return self.choice(early.spent)

    def choice(self, spent: Clock) -> Choice:
        """The answer, and what it took."""
        found, ticket = self._answer, None
        model, graph = self._whole
        if found is not self._first:
            ticket = self._ticket(found)
            model, graph = compact(found.model, found.graph)
        self._write(replace(found.row, chosen=True), instead=found.row)
        return Choice(
            model=model,
            graph=graph,
            ticket=ticket,
            masked=(found.model, found.graph),
            val=found.row.best,
            recipe=self._dense.recipe,
            dense=self._dense.model,
            dense_val=self._dense.val,
            frontier=tuple(self._frontier),
            interval=self._interval(self._whole, (model, graph)),
            dense_spent=self._dense.spent,
            spent=spent,
        )

    def _ticket(self, found: _Found) -> Ticket:
        """Of a candidate's model, on its links."""
        base, mask = found.base, found.mask
        masks: dict[str, Any] = {"graph": {"link": mask}}
        if base.masks:
            masks["weights"] = base.masks
        search = Search(
            criterion=found.row.criterion if found.row.graph_ratio else "learned",
            scope=self._dense.recipe.scope,
            detector=MaskDistanceDetector(),
        )
        ones = torch.ones_like(mask, dtype=self._graph.adjacency.dtype)
        return Ticket(
            masks=masks,
            scores={"graph": {"link": ones}},
            weights=copy_state(base.model),
            first_weights=base.first,
            epoch=base.fit.epochs,
            settled=True,
            share_untouched=0.0,
            distances=(),
            options=describe_search(
                self._task,
                found.row.graph_ratio,
                found.row.weight_ratio,
                _shorter(self._dense.recipe.fit),
                search,
            ),
            seed=self._seed,
            dataset={
                "name": self._graph.name,
                "fingerprint": self._graph.fingerprint(),
            },
            model=describe_model(base.model),
            versions=versions(),
            fitted=found.fitted,
            share=self._graph.share,
        )

    def _holds(self, found: _Found, drop: float) -> bool:
        """Whether a candidate is within a tolerance, and not by chance alone.

        Several are tried on the same nodes. So the score must be above the least that
        is allowed by a quarter of the standard error of its difference to the dense
        model's.
        """
        spare = found.row.best - (self._dense.val - drop)
        if spare < 0:
            return False
        gaps = self._gaps(self._whole, (found.model, found.graph))
        return gaps is None or spare >= _SURE * float(gaps.std())

    @torch.no_grad()
    def _gaps(self, *sides: tuple[nn.Module, Graph]) -> Tensor | None:
        """Differences of two scores on resampled validation nodes; None for links."""
        split = self._graph.split
        if not isinstance(split, Split):
            return None
        outputs = [run(model.eval(), g.x, g.adjacency, split.val) for model, g in sides]
        assert self._graph.y is not None
        labels = self._graph.y.index_select(0, split.val)
        # Of all ranks' nodes, which each rank then resamples alike.
        labels, *outputs = map(self._graph.world.gather, (labels, *outputs))
        draw = Generator().manual_seed(self._seed)
        gaps = []
        for _ in range(_RESAMPLES):
            picked = torch.randint(len(labels), (len(labels),), generator=draw)
            picked = picked.to(split.val.device)
            known: Any = {"y": labels, "share": None}
            at = replace(self._graph, split=replace(split, val=picked), **known)
            dense, ours = (self._task.score(o[picked], at, "val") for o in outputs)
            gaps.append(ours - dense)
        return torch.tensor(gaps, dtype=torch.float64).nan_to_num()

    def _interval(self, *sides: tuple[nn.Module, Graph]) -> tuple[float, float]:
        """Where 95% of the differences on resampled validation nodes lie; paired."""
        gaps = self._gaps(*sides)
        if gaps is None:
            return math.nan, math.nan
        low, high = gaps.quantile(gaps.new_tensor([0.025, 0.975])).tolist()
        return low, high


def _shorter(fit: Fit, share: float = _SHORTER) -> Fit:
    """For what begins with trained weights.

    Not where a recipe's epochs are just enough: those that may be ended early are more.
    """
    share = share if fit.patience else 1.0
    return replace(fit, epochs=math.ceil(share * fit.epochs))
