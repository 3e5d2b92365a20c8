"""Which model to train on a graph: by name, as published, or chosen on validation."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gebt._registry import MODELS
from gebt.graph import Graph
from gebt.learn.checkpoint import Clock
from gebt.learn.tasks import LinkPrediction, Task
from gebt.learn.training import Epoch, copy_state, new_model, train
from gebt.models import GCN
from gebt.models.recipe import Recipe, for_links
from gebt.options import RECIPES, Fit
from gebt.prune.weights import prunable_weights

_LOOK = 25  # epochs after which candidates that are far behind are given up
_BEHIND = 5.0  # percent behind the best: far
_WORTH = 0.5  # percent that a dearer candidate must be better by
_DEEPEST = 12
_MOST = 8_000_000_000  # multiply-accumulates of a forward that is tried unasked
_LUO = "Luo et al. 2024"
_PLATONOV = "Platonov et al. 2023"


def _gcn(
    source: str,
    hidden: int,
    dropout: float,
    lr: float,
    weight_decay: float,
    epochs: int,
    **shape: Any,
) -> Recipe:
    how: Any = {"lr": lr, "weight_decay": weight_decay, "epochs": epochs}
    fit = Fit(decay="all", patience=100, **how)
    return Recipe("gcn", "", source, partial(GCN, **shape), hidden, dropout, fit)


_OWN: Any = {"residual": True, "output_map": True}
TUNED = {
    "cora": _gcn(_LUO, 512, 0.7, 0.001, 5e-4, 500, layers=3),
    "citeseer": _gcn(_LUO, 512, 0.5, 0.001, 0.01, 500, layers=2),
    "pubmed": _gcn(_LUO, 256, 0.7, 0.005, 5e-4, 500, layers=2),
    "minesweeper": _gcn(
        _LUO, 64, 0.2, 0.01, 0.0, 2000, layers=12, norm="batch", **_OWN
    ),
    "tolokers": _gcn(
        _PLATONOV, 512, 0.2, 3e-5, 0.0, 1000, layers=5, norm="layer", **_OWN
    ),
}
"""Published settings by graph."""


def recipes_for(name: str, graph: Graph, task: Task) -> list[Recipe]:
    """Those among which validation decides, the cheaper first; one where none need.

    Args:
        name: ``"auto"``, a few; ``"paper"``, the GCN of You et al. 2022; ``"tuned"``,
            settings published for this graph; or a model's, for its own recipe.
        graph: to learn on.
        task: what is learned.

    Raises:
        ValueError: if there is none of that name, or nothing is published.
    """
    links = isinstance(task, LinkPrediction)
    if name == "auto" and not links:
        return _auto()
    if name == "tuned":
        known = TUNED.get(graph.name.partition(":")[0])
        if known is None or links:
            raise ValueError(
                f"there are no published settings for {task.name} on {graph.name!r}; "
                f'gebt knows those of {", ".join(TUNED)}. Use `recipe="auto"`.'
            )
        return [known]
    found = MODELS.find("gcn" if name in RECIPES else name)
    return [for_links(found) if links else found]


def _auto() -> list[Recipe]:
    """A plain GCN, and one with own paths and batch norm, with dropout for each taste.

    Chosen on validation nodes of Cora, CiteSeer, digits, imports, tolokers and
    minesweeper, so that one or the other suits each.
    """
    plain = MODELS.find("gcn").changed(
        **{"hidden": 64, "dropout": 0.7, "decay": "all", "epochs": 200, "patience": 50}
    )
    own = MODELS.find("gcn-res").changed(weight_decay=0.0, epochs=400, patience=50)
    return [plain, plain.changed(dropout=0.2), own, own.changed(dropout=0.5)]


def _deeper(recipe: Recipe) -> Recipe | None:
    """Twice as deep, where it has own paths, without which depth does not help."""
    shape = recipe.build.keywords if isinstance(recipe.build, partial) else {}
    layers = 2 * shape.get("layers", 2)
    if not shape.get("residual") or layers > _DEEPEST:
        return None
    return replace(recipe, build=partial(recipe.kind, **{**shape, "layers": layers}))


def _macs(recipe: Recipe, graph: Graph, task: Task) -> int:
    """About how many multiply-accumulates a forward takes; nothing is computed."""
    with torch.device("meta"):
        model = recipe.new(graph.num_features, task.num_outputs(graph))
    x, entries, total = graph.x, graph.adjacency.pattern.nnz, 0
    nodes, entries = graph.nodes_in_all, graph.world.total(entries)
    stored = x.numel() if isinstance(x, Tensor) else x.pattern.nnz
    stored = graph.world.total(stored)
    for weight in prunable_weights(model).values():
        inputs, outputs = weight.shape
        first = inputs == graph.num_features
        total += (stored if first else nodes * inputs) * outputs
        total += entries * outputs
    return total


@dataclass(frozen=True)
class Dense:
    """A model trained on the whole graph.

    Attributes:
        recipe: by which.
        model: at its best validation epoch, in evaluation mode.
        first: its state before.
        val: validation score, percent.
        spent: on training this one.
    """

    recipe: Recipe
    model: nn.Module
    first: dict[str, Tensor]
    val: float
    spent: Clock


def train_dense(
    recipe: Recipe,
    graph: Graph,
    task: Task,
    seed: int,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> Dense:
    """A new model, trained by its recipe."""
    start = Clock.now()
    model = new_model(graph, recipe, task, seed)
    first = copy_state(model)
    how: Any = {"fit": recipe.fit, "seed": seed, "task": task, "on_epoch": on_epoch}
    val = train(model, graph, **how).val
    return Dense(recipe, model, first, val, Clock.now() - start)


def links_worth(graph: Graph, task: Task) -> tuple[float, float] | None:
    """Validation scores of the paper's GCN with all links and with none, percent.

    None where there is nothing to train or to validate on, links are what is learned,
    or the graph is so large that a training takes minutes.
    """
    recipe, parts = MODELS.find("gcn"), (task.rows(graph, p) for p in ("train", "val"))
    if any(rows is None or not rows.numel() for rows in parts):
        return None
    if _macs(recipe, graph, task) > _MOST // 8:
        return None
    none = torch.zeros(graph.num_links, dtype=torch.bool, device=graph.link.device)
    every = train_dense(recipe, graph, task, 0).val
    return every, train_dense(recipe, graph.keep_links(none), task, 0).val


def check_validation(graph: Graph, task: Task, what: str) -> None:
    """Raise a ValueError unless a graph has what its metric is defined on."""
    rows = task.rows(graph, "val")
    if rows is None:
        return
    if not rows.numel():
        raise ValueError(
            f"the graph {graph.name!r} has nothing to validate on, by which {what}: "
            "mark nodes in `data.val_mask`, or in tables by the split `val`."
        )
    size = rows.numel(), task.num_outputs(graph)
    nothing = rows.new_zeros(size, dtype=graph.x.dtype)
    if math.isnan(task.score(nothing, graph, "val")):
        raise ValueError(
            f"{task.metric(graph)} is not defined on what the graph {graph.name!r} has "
            "to validate on: it may be all of one class."
        )


def best_looks(
    recipes: Sequence[Recipe],
    graph: Graph,
    task: Task,
    seed: int,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> list[Recipe]:
    """Those that are not far behind after a few epochs, the best of these first."""
    if len(recipes) == 1:
        return [*recipes]
    check_validation(graph, task, "one of several recipes is chosen")
    short = [r.changed(epochs=min(_LOOK, r.fit.epochs), patience=0) for r in recipes]
    looks = [train_dense(each, graph, task, seed, on_epoch).val for each in short]
    order = sorted(range(len(looks)), key=lambda place: -looks[place])
    return [recipes[k] for k in order if looks[k] >= max(looks) - _BEHIND]


def choose_dense(
    recipes: Sequence[Recipe],
    graph: Graph,
    task: Task,
    seed: int,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> Dense:
    """The model that is best on the validation nodes, a dearer one if it is worth it.

    All begin; those far behind after a few epochs are given up. Of the others, the
    cheaper first, the next must be better by half a point to be taken. Models with own
    paths are made deeper as long as that is. But for the first, what takes very many
    operations is not tried: 8 billion multiply-accumulates a forward.
    """
    how: Any = {"graph": graph, "task": task, "seed": seed, "on_epoch": on_epoch}
    first, *rest = recipes
    recipes = [first, *(r for r in rest if _macs(r, graph, task) <= _MOST)]
    stay = best_looks(recipes, **how)
    found, *others = (train_dense(each, **how) for each in recipes if each in stay)
    for other in others:
        if other.val > found.val + _WORTH:
            found = other
    while deeper := _deeper(found.recipe) if len(recipes) > 1 else None:
        if _macs(deeper, graph, task) > _MOST:
            break
        other = train_dense(deeper, **how)
        if not other.val > found.val + _WORTH:
            break
        found = other
    return found
