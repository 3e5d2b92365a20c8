"""The cheapest model no worse than a dense one: many tickets, few of them retrained."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Generator, Tensor, nn

from gebt._checks import check_not_negative
from gebt._provenance import versions
from gebt._registry import CRITERIA, MODELS
from gebt.deploy.compaction import compact
from gebt.deploy.cost import latencies
from gebt.graph import Graph, Split, check_graph
from gebt.learn.tasks import Task, describe_task, prepare, task_for
from gebt.learn.training import Epoch, copy_state, evaluate, new_model, train
from gebt.models import describe_model
from gebt.models.recipe import Recipe
from gebt.prune.criteria import Context, score_links
from gebt.prune.detector import MaskDistanceDetector
from gebt.prune.links import RankedLinks
from gebt.prune.weights import ModelPruner
from gebt.tickets.search import Search
from gebt.tickets.ticket import Ticket

LINKS = (0.95, 0.9, 0.8, 0.6, 0.4, 0.2)
WEIGHTS = (0.9, 0.5)
"""Shares removed that are tried, the cheapest first."""
_RESAMPLES = 1000
OnEpoch = Callable[[str, Epoch], None]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One ticket of the frontier.

    Attributes:
        criterion: that ranked its links; ``"dense"`` for the dense model itself.
        graph_ratio: share of links removed.
        weight_ratio: share of weights removed.
        zero_shot: validation score of the dense model on these links, percent.
        val: validation score of the ticket after retraining; None if it was not.
        ms: of a forward of its compact form; None if it was not retrained.
        reference_ms: of one of the dense model, timed in turns with it.
        chosen: whether it is the answer.
    """

    criterion: str
    graph_ratio: float
    weight_ratio: float
    zero_shot: float
    val: float | None = None
    ms: float | None = None
    reference_ms: float | None = None
    chosen: bool = False


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What `find_cheapest` gives.

    Attributes:
        model: the compact model, in evaluation mode; the dense one where nothing can be
            removed.
        graph: the compact graph; the whole one where nothing can be removed.
        ticket: what they were made from; None where nothing can be removed.
        masked: the retrained model before compaction, and its graph.
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

    Trains the dense model; every criterion's links at every share of `LINKS` are scored
    by one forward of it on the validation nodes, and the best criterion's stay. Then
    few are retrained with the dense model's weights: all links with fewer and fewer of
    the weights gone until that holds, and then fewer links, by bisection. What holds
    and takes the fewest milliseconds is the answer; where nothing does, nothing can be
    removed. Selection is on validation alone; the test nodes are never looked at.

    Args:
        graph: with nodes, or links, to train and to validate on.
        max_drop: how far the validation score may be below the dense model's, percent.
        recipe: of the model, or its name.
        criteria: names of those to try; by default all that need no search.
        seed: of everything.
        task: what to learn; by default what the labels say.
        on_epoch: called with the phase, ``"dense"`` or ``"retrain"``, and each of its
            epochs.

    Raises:
        ValueError: if the tolerance is negative, a name is not known, or there is
            nothing to validate on.
    """
    check_not_negative("max_drop", max_drop)
    recipe = MODELS.find(recipe) if isinstance(recipe, str) else recipe
    names = [n for n in CRITERIA if n != "learned"] if criteria is None else criteria
    check_graph(graph)
    task = task or task_for(graph)
    graph = prepare(graph, task)
    rows = task.rows(graph, "val")
    if rows is not None and not rows.numel():
        raise ValueError(
            f"the graph {graph.name!r} has nothing to validate on, by which `max_drop` "
            "is judged: mark nodes in `data.val_mask`."
        )
    trial = _Trial(graph, task, recipe, seed, max_drop, on_epoch)
    best = trial.rank([CRITERIA.check(name) for name in names])
    weight_ratio = 0.0
    every = Candidate(
        criterion="all", graph_ratio=0.0, weight_ratio=0.0, zero_shot=trial.dense_val
    )
    for ratio in WEIGHTS:
        if trial.holds(replace(every, weight_ratio=ratio), None):
            weight_ratio = ratio
            break
    low, high = 0, len(LINKS)
    while low < high:
        place = (low + high) // 2
        candidate, mask = best[LINKS[place]]
        if trial.holds(replace(candidate, weight_ratio=weight_ratio), mask):
            high = place
        else:
            low = place + 1
    return trial.choice()


class _Trial:
    """A dense model, the tickets of its weights, and those of them that hold."""

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
        self._max_drop, self._on_epoch = max_drop, on_epoch
        self._dense = new_model(graph, recipe, task, seed)
        self._first = copy_state(self._dense)
        self.dense_val = self._train("dense", self._dense, graph)
        self._frontier: list[Candidate] = []
        self._held: list[tuple[Candidate, dict[str, Any]]] = []

    def _train(self, phase: str, model: nn.Module, graph: Graph) -> float:
        given = self._on_epoch
        hook = None if given is None else lambda epoch: given(phase, epoch)
        options: Any = {"fit": self._recipe.fit, "seed": self._seed}
        return train(model, graph, task=self._task, on_epoch=hook, **options).val

    def rank(self, criteria: Sequence[str]) -> dict[float, tuple[Candidate, Tensor]]:
        """For each share of links the candidate that validates best, with its links."""
        best: dict[float, tuple[Candidate, Tensor]] = {}
        graph, seed = self._graph, self._seed
        for name in criteria:
            context = Context(Generator().manual_seed(seed), self._dense)
            scores = score_links(name, graph, context)
            for ratio in LINKS:
                mask = RankedLinks(graph, ratio, scores, seed).masks()["link"]
                small = graph.keep_links(mask)
                val = evaluate(self._dense, small, "val", task=self._task)
                ratios: Any = {"graph_ratio": ratio, "weight_ratio": 0.0}
                candidate = Candidate(criterion=name, zero_shot=val, **ratios)
                self._frontier.append(candidate)
                if ratio not in best or val > best[ratio][0].zero_shot:
                    best[ratio] = candidate, mask
        return best

    def holds(self, candidate: Candidate, mask: Tensor | None) -> bool:
        """Retrain a ticket; whether it is no worse than allowed.

        Whether it is faster, which is measured and so never twice the same, decides
        what is chosen in the end, not what is tried.
        """
        graph = self._graph
        if mask is None:
            mask = torch.ones(graph.num_links, dtype=torch.bool).to(graph.link.device)
        ticket = self._ticket(candidate, mask)
        model = new_model(graph, self._recipe, self._task, self._seed)
        small = ticket.open(model, graph)
        val = self._train("retrain", model, small)
        fast, compacted = compact(model, small)
        dense_ms, ms = latencies([(self._dense, graph), (fast, compacted)])
        candidate = replace(candidate, val=val, ms=ms, reference_ms=dense_ms)
        enough = val >= self.dense_val - self._max_drop
        if enough and ms < dense_ms:
            found = {"ticket": ticket, "model": fast, "graph": compacted}
            self._held.append((candidate, found | {"masked": (model, small)}))
        self._frontier.append(candidate)
        return enough

    def _ticket(self, candidate: Candidate, mask: Tensor) -> Ticket:
        """Of the dense model's weights, on the links of a mask (L,)."""
        recipe, ratio = self._recipe, candidate.weight_ratio
        masks = {"graph": {"link": mask}}
        if ratio:
            pruner = ModelPruner(self._dense, ratio, scope=recipe.scope)
            masks["weights"] = pruner.masks()
        search = Search(
            criterion=candidate.criterion if candidate.graph_ratio else "learned",
            scope=recipe.scope,
            detector=MaskDistanceDetector(),
        )
        ones = torch.ones_like(mask, dtype=self._graph.adjacency.dtype)
        return Ticket(
            masks=masks,
            scores={"graph": {"link": ones}},
            weights=copy_state(self._dense),
            first_weights=self._first,
            epoch=recipe.fit.epochs,
            settled=True,
            share_untouched=0.0,
            distances=(),
            options={
                "task": describe_task(self._task),
                "graph_ratio": candidate.graph_ratio,
                "weight_ratio": ratio,
                **recipe.fit.to_dict(),
                **search.to_dict(),
            },
            seed=self._seed,
            dataset={
                "name": self._graph.name,
                "fingerprint": self._graph.fingerprint(),
            },
            model=describe_model(self._dense),
            versions=versions(),
        )

    def choice(self) -> Choice:
        """The cheapest of those that hold, or the dense model."""
        whole = self._dense, self._graph
        [ms] = latencies([whole])
        val = self.dense_val
        ratios: Any = {"graph_ratio": 0.0, "weight_ratio": 0.0, "zero_shot": val}
        dense = Candidate(criterion="dense", val=val, ms=ms, reference_ms=ms, **ratios)
        itself = {"ticket": None, "model": whole[0], "graph": whole[1]}
        held = self._held or [(dense, itself | {"masked": whole})]
        best, found = min(held, key=lambda each: each[0].ms or math.inf)
        frontier = [dense, *self._frontier]
        frontier[frontier.index(best)] = replace(best, chosen=True)
        return Choice(
            **found,
            dense=self._dense,
            dense_val=self.dense_val,
            frontier=tuple(frontier),
            interval=self._interval(whole, (found["model"], found["graph"])),
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
