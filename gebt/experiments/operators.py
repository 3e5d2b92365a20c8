"""A supernet's ticket beside single operators that cost as much."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from gebt._registry import MODELS
from gebt.deploy.compaction import compact
from gebt.deploy.cost import executed_macs
from gebt.experiments.methods import Outcome, Setting
from gebt.learn.training import new_model
from gebt.models import OPERATORS, SuperGNN
from gebt.models.recipe import Recipe
from gebt.prune.masks import keep_top
from gebt.prune.weights import ModelPruner
from gebt.tickets.super_ticket import find_super_ticket

SUPERNET, TICKET, FRESH, RANDOM = "supernet", "ticket", "from scratch", "random units"
SINGLE = ("gcn", "sage", "gin", "gat")
_WIDEST = 4096


def supertickets(setting: Setting) -> Iterator[Outcome]:
    """A supernet, its ticket, and single operators that cost as much.

    The ticket's controls: its model from scratch, with the same masks; and as many
    random units of each layer, with as many weights by magnitude, both of the first
    weights. Each single operator is as narrow as it can be without fewer executed
    multiply-accumulates than the compact ticket.
    """
    graph, task, seed = setting.graph, setting.task, setting.seed
    fit = setting.recipe.fit
    start = time.process_time()
    dense: Any = setting.model()
    val = setting.train(dense, graph)
    yield Outcome(SUPERNET, dense, graph, val, 0, fit.epochs, _since(start))
    start = time.process_time()
    how: Any = {"fit": fit, "seed": seed, "task": task}
    how["weight_ratio"], how["scope"] = setting.weight_ratio, setting.recipe.scope
    first: Any = setting.model()
    model, ticket = find_super_ticket(first, graph, **how)
    ticket.open(model, graph)
    masks = ticket.weight_masks
    val = setting.train(model, graph, masks)
    spent = fit.epochs, fit.epochs, _since(start)
    shares = [*_shares(first, model)]
    yield Outcome(TICKET, model, graph, val, *spent, ticket, beside=shares)
    macs = executed_macs(*compact(model, graph))
    start = time.process_time()
    fresh = new_model(graph, _built(setting.recipe, model), task, seed)
    val = setting.train(fresh, graph, masks)
    yield Outcome(FRESH, fresh, graph, val, 0, fit.epochs, _since(start))
    start = time.process_time()
    chance = _random_units(first, model, seed)
    some = ModelPruner(chance, setting.weight_ratio, scope=setting.recipe.scope)
    val = setting.train(chance, graph, some.masks())
    yield Outcome(RANDOM, chance, graph, val, 0, fit.epochs, _since(start))
    for name in SINGLE:
        start = time.process_time()
        recipe = _as_dear(_single(name, setting.recipe), setting, macs)
        alone = replace(setting, recipe=recipe)
        single = alone.model()
        val = alone.train(single, graph)
        epochs = recipe.fit.epochs
        yield Outcome(name, single, graph, val, 0, epochs, _since(start))


def _single(name: str, supernet: Recipe) -> Recipe:
    """An operator by its own recipe; in deeper supernets' shape, as those are built."""
    recipe = MODELS.find(name)
    shape = supernet.build.keywords if isinstance(supernet.build, partial) else {}
    if not shape:
        if name == "gcn":  # as the other recipes were chosen, and better for it
            recipe = recipe.changed(dropout=0.7, decay="all", epochs=200)
        return recipe.changed(epochs=min(recipe.fit.epochs, supernet.fit.epochs))
    own = {} if name == "sage" else {"residual": True}
    build = partial(recipe.kind, **shape, **own)
    fit, dropout = supernet.fit, supernet.dropout
    return replace(recipe, build=build, fit=fit, dropout=dropout)


def _as_dear(recipe: Recipe, setting: Setting, macs: int) -> Recipe:
    """The recipe at the least width of no fewer executed multiply-accumulates."""

    def enough(width: int) -> bool:
        at = replace(setting, recipe=recipe.changed(hidden=width))
        return executed_macs(at.model(), setting.graph) >= macs

    low, high = 0, 1
    while high < _WIDEST and not enough(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return recipe.changed(hidden=high)


def _built(recipe: Recipe, model: SuperGNN) -> Recipe:
    """The recipe of a supernet's part."""
    shape: Mapping[str, Any] = {
        name: value
        for name, value in model.arguments.items()
        if name in (*OPERATORS, "layers", "norm")
    }
    return replace(recipe, build=partial(SuperGNN, **shape))


def _random_units(supernet: SuperGNN, ticket: SuperGNN, seed: int) -> nn.Module:
    """As many units of each layer, and as many of the last one's operators."""
    draw = torch.Generator().manual_seed(seed)
    keep = []
    for scale, left in zip(supernet.scales(), ticket.scales(), strict=True):
        chance = torch.rand(len(scale), generator=draw)
        gone = len(scale) - len(left)
        keep.append(keep_top(chance, (gone + 0.5) / len(scale)))
    return supernet.with_units([each.to(supernet.scales()[0].device) for each in keep])


def _shares(supernet: SuperGNN, ticket: SuperGNN) -> Iterator[dict[str, Any]]:
    """Of each operator the share of its hidden units that the ticket has."""
    for name in OPERATORS:
        had, has = (sum(m.arguments[name][:-1]) for m in (supernet, ticket))
        if had:
            row = {"links": name, "share": round(has / had, 4), "val": "", "test": ""}
            yield {**row, "dense": "nan", "cpu_seconds": 0}


def _since(start: float) -> float:
    return time.process_time() - start
