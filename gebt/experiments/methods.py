"""Every way to a pruned model that gebt compares, through the same loops.

A method takes a `Setting` and gives trained models with their pruned graphs. Those
that search their links give the controls too: the same weights on as many random
links, and on all links.

Sources: GEB and joint-EB, You et al. 2022, Algorithms 1 and 2; SGCN, Li et al. 2020;
UGS, Chen et al. 2021; IMP, Frankle and Carbin 2019; degree-based links after TEDDY,
Seo et al. 2024; k-neighbour links after NeuralSparse, Zheng et al. 2020.
"""

import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gebt._registry import ASK_A_MODEL
from gebt.graph import Graph
from gebt.learn.tasks import Task
from gebt.learn.training import copy_state, new_model, train
from gebt.models.recipe import Recipe
from gebt.prune.criteria import Context, score_links
from gebt.prune.detector import MaskDistanceDetector, Reading
from gebt.prune.links import links_by, random_links, top_links
from gebt.prune.masks import keep_top, removed_after
from gebt.prune.penalties import ADMM
from gebt.prune.weights import ModelPruner, prunable_weights
from gebt.tickets.search import FROZEN_THRESHOLD, find_ticket
from gebt.tickets.ticket import Ticket, Weights

_ROUND = 0.2  # share of the remaining weights that an iterative method drops a round


@dataclass(frozen=True)
class Setting:
    """What a method is given.

    Attributes:
        graph: the full graph, prepared for the task.
        task: what is learned.
        recipe: the model and how it is trained.
        graph_ratio: share of links to remove.
        weight_ratio: share of weights to remove.
        seed: of weights, dropout and random choices.
        draw: epoch to draw a ticket at; None where the detector decides.
        watch: the group that the detector watches; None for all that can change.
        quick: whether 20 epochs at most are wanted; the recipe has no more.
    """

    graph: Graph
    task: Task
    recipe: Recipe
    graph_ratio: float
    weight_ratio: float
    seed: int
    draw: int | None = None
    watch: str | None = None
    quick: bool = False

    def model(self) -> nn.Module:
        """A new model; the same at every call."""
        return new_model(self.graph, self.recipe, self.task, self.seed)

    def train(
        self, model: nn.Module, graph: Graph, keep: Mapping[str, Tensor] | None = None
    ) -> float:
        """Train by the recipe; the best validation score."""
        given: Any = {"fit": self.recipe.fit, "seed": self.seed, "task": self.task}
        return train(model, graph, keep=keep, **given).val

    def search(self, model: nn.Module, **options: Any) -> Ticket:
        """`find_ticket` by the recipe; an unsettled ticket gives no warning."""
        epochs = self.draw or self.recipe.fit.epochs
        never = self.draw is not None
        threshold = 0.1 if options.get("update_weights", True) else FROZEN_THRESHOLD
        given: dict[str, Any] = {
            "graph": self.graph,
            "graph_ratio": self.graph_ratio,
            "weight_ratio": self.weight_ratio,
            "detector": MaskDistanceDetector(
                threshold, watch=self.watch, warmup=epochs if never else 0
            ),
            "fit": replace(self.recipe.fit, epochs=epochs),
            "scope": self.recipe.scope,
            "seed": self.seed,
            "task": self.task,
        }
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "the masks did not settle")
            return find_ticket(model, **given | options)


@dataclass(frozen=True)
class Outcome:
    """One trained model of a method.

    Attributes:
        links: how its links were chosen.
        model: at its best validation epoch, pruned weights zero.
        graph: pruned.
        val: best validation score, percent.
        full_epochs: epochs on the full graph that it took, searches included.
        epochs: epochs on the pruned graph.
        seconds: CPU seconds of all of it; for controls as if they had been alone.
        ticket: that it was trained from, if any.
        frozen_epochs: epochs on the full graph with frozen weights.
        rounds: graphs on the way to the pruned one, with the epochs on each.
        beside: what else was found with the model, rows of the table ``links``.
        drawn: where there is no ticket, the detector's reading that it was drawn by.
        task: that the model has learned; None for the setting's.
    """

    links: str
    model: nn.Module
    graph: Graph
    val: float
    full_epochs: int
    epochs: int
    seconds: float
    ticket: Ticket | None = None
    frozen_epochs: int = 0
    rounds: Sequence[tuple[Graph, int]] = ()
    beside: Sequence[Mapping[str, Any]] = ()
    drawn: Reading | None = None
    task: Task | None = None


Method = Callable[[Setting], Iterator[Outcome]]


def dense(setting: Setting) -> Iterator[Outcome]:
    """The unpruned model on the full graph."""
    start = time.process_time()
    model = setting.model()
    val = setting.train(model, setting.graph)
    seconds = time.process_time() - start
    yield Outcome(
        "all", model, setting.graph, val, setting.recipe.fit.epochs, 0, seconds
    )


def joint(setting: Setting) -> Iterator[Outcome]:
    """Joint-EB: links and weights drawn together, weights inherited (Algorithm 2)."""
    start = time.process_time()
    ticket = setting.search(setting.model())
    seconds = time.process_time() - start
    yield from _retrain(setting, ticket, "inherit", ticket.epoch, seconds)


TICKET_BY = "ticket by "


def ticket_by(setting: Setting, *, criterion: str) -> Iterator[Outcome]:
    """One ticket whose links a criterion ranks, as `gebt run` draws it with ratios.

    A criterion that asks a trained model is told by the dense one; the ticket's weights
    are then those of a search that learns no links, as with every other fixed one.
    """
    start = time.process_time()
    asks, before = criterion in ASK_A_MODEL, 0
    ticket = setting.search(setting.model(), criterion="random" if asks else criterion)
    if asks:
        dense, before = setting.model(), setting.recipe.fit.epochs
        setting.train(dense, setting.graph)
        how: Any = (setting.graph_ratio, setting.seed, setting.task)
        links = links_by(criterion, setting.graph, dense, *how)
        ticket = ticket.with_links(links.masks()["link"])
    model = setting.model()
    small = ticket.open(model, setting.graph)
    val = setting.train(model, small, ticket.weight_masks)
    epochs = before + ticket.epoch, setting.recipe.fit.epochs
    spent = time.process_time() - start
    yield Outcome(criterion, model, small, val, *epochs, spent, ticket)


def geb(setting: Setting, *, sgcn: bool = False) -> Iterator[Outcome]:
    """GEB: links drawn for a pretrained model, then from scratch (Algorithm 1).

    Args:
        setting: whose weight ratio must be 0.
        sgcn: never stop early, and pull the links by SGCN's ADMM term.
    """
    start = time.process_time()
    model = setting.model()
    setting.train(model, setting.graph)
    options: dict[str, Any] = {"weight_ratio": 0.0, "update_weights": False}
    if sgcn:
        setting = replace(setting, draw=setting.recipe.fit.epochs)
        options["penalty"] = ADMM(prune_ratio=setting.graph_ratio)
    ticket = setting.search(model, **options)
    seconds = time.process_time() - start
    for outcome in _retrain(
        setting, ticket, "fresh", setting.recipe.fit.epochs, seconds
    ):
        yield replace(outcome, frozen_epochs=ticket.epoch)


def one_shot(setting: Setting, *, criterion: str) -> Iterator[Outcome]:
    """Links by a score that needs no training, weights at random, from scratch."""
    start = time.process_time()
    draw = torch.Generator().manual_seed(setting.seed)
    model = setting.model()
    context = Context(draw, model, setting.graph_ratio, setting.task)
    scores = score_links(criterion, setting.graph, context)
    keep = top_links(scores, setting.graph_ratio, setting.seed)
    small = setting.graph.keep_links(keep)
    masks = _random_masks(model, setting.weight_ratio, draw.manual_seed(setting.seed))
    val = setting.train(model, small, masks)
    seconds = time.process_time() - start
    yield Outcome(criterion, model, small, val, 0, setting.recipe.fit.epochs, seconds)


def imp(setting: Setting) -> Iterator[Outcome]:
    """Iterative magnitude pruning of weights alone, rewound after each round."""
    start = time.process_time()
    model = setting.model()
    first = copy_state(model)
    masks: dict[str, Tensor] = {}
    rounds = _rounds(setting)
    for done in range(1, rounds + 1):
        setting.train(model, setting.graph, masks)
        ratio = removed_after(setting.weight_ratio, done, rounds)
        masks = ModelPruner(model, ratio, scope=setting.recipe.scope).masks()
        model.load_state_dict(first)
    val = setting.train(model, setting.graph, masks)
    seconds = time.process_time() - start
    epochs = (rounds + 1) * setting.recipe.fit.epochs
    yield Outcome("all", model, setting.graph, val, epochs, 0, seconds)


def ugs(setting: Setting) -> Iterator[Outcome]:
    """UGS: links and weights pruned a little each round, weights rewound.

    As many rounds as dropping 20% of the remaining weights a round takes; links go in
    equal shares of what remains, 5% a round at UGS's own end points.
    """
    start = time.process_time()
    model = setting.model()
    first = copy_state(model)
    graph = setting.graph
    masks: dict[str, Tensor] = {}
    rounds = _rounds(setting)
    whole = replace(setting, draw=setting.recipe.fit.epochs)
    visited = []
    for done in range(1, rounds + 1):
        visited.append((graph, setting.recipe.fit.epochs))
        ticket = whole.search(
            model,
            graph=graph,
            graph_ratio=removed_after(setting.graph_ratio, done, rounds),
            weight_ratio=removed_after(setting.weight_ratio, done, rounds),
            keep=masks,
        )
        graph = setting.graph.keep_links(ticket.link_mask)
        masks = dict(ticket.weight_masks)
        model.load_state_dict(first)
    val = setting.train(model, graph, masks)
    seconds = time.process_time() - start
    epochs = setting.recipe.fit.epochs
    yield Outcome(
        "learned", model, graph, val, 0, epochs, seconds, rounds=tuple(visited)
    )


def controls(ticket: Ticket) -> dict[str, Ticket]:
    """The ticket, the same with as many random links, and with all links."""
    draw = torch.Generator().manual_seed(ticket.seed)
    ratio = ticket.options["graph_ratio"]
    random = random_links(ticket.link_mask.numel(), ratio, draw)
    every = torch.ones_like(ticket.link_mask)
    return {
        "learned": ticket,
        "random": ticket.with_links(random),
        "all": ticket.with_links(every),
    }


def _retrain(
    setting: Setting, ticket: Ticket, weights: Weights, epochs: int, seconds: float
) -> Iterator[Outcome]:
    """Retrain a ticket and its controls, these only for the default detector."""
    for links, variant in controls(ticket).items():
        if (setting.draw or setting.watch) and links != "learned":
            continue
        if links == "all" and not ticket.weight_masks:
            continue  # that is the dense model
        start = time.process_time()
        model = setting.model()
        small = variant.open(model, setting.graph, weights=weights)
        val = setting.train(model, small, variant.weight_masks)
        spent = seconds + time.process_time() - start
        after = setting.recipe.fit.epochs
        yield Outcome(links, model, small, val, epochs, after, spent, ticket)


def _random_masks(
    model: nn.Module, ratio: float, draw: torch.Generator
) -> dict[str, Tensor]:
    if not ratio:
        return {}
    weights = prunable_weights(model)
    sizes = [weight.numel() for weight in weights.values()]
    kept = keep_top(torch.rand(sum(sizes), generator=draw), ratio).split(sizes)
    pairs = zip(weights.items(), kept, strict=True)
    return {name: mask.view(weight.shape) for (name, weight), mask in pairs}


def _rounds(setting: Setting) -> int:
    return max(1, round(math.log(1 - setting.weight_ratio) / math.log(1 - _ROUND)))


METHODS: dict[str, Method] = {
    "dense": dense,
    "joint-EB": joint,
    "GEB": geb,
    "SGCN": partial(geb, sgcn=True),
    "UGS": ugs,
    "IMP": imp,
    "random": partial(one_shot, criterion="random"),
    "degree": partial(one_shot, criterion="degree"),
    "similarity": partial(one_shot, criterion="similarity"),
    "k-neighbour": partial(one_shot, criterion="k-neighbour"),
}
"""Every method, by name."""
