"""Models by name, each with the hyper-parameters that are standard for it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import nn

from gebt._checks import (
    check_count,
    check_dropout,
    check_name,
)
from gebt.models import GAT, GCN, GIN, GraphSAGE, LinearStack, ResGCN
from gebt.options import Fit, Scope, chosen


@dataclass(frozen=True)
class Recipe:
    """How a model is built and trained unless told otherwise.

    Attributes:
        model: what ``gebt run --model`` calls it.
        about: the model, in words.
        source: where the numbers come from.
        build: takes F, the hidden width, C and ``dropout``; gives the model.
        hidden: hidden width; of each head for GAT.
        dropout: share dropped during training.
        fit: of dense training, of the search and of retraining.
        scope: how weights are ranked, see `ModelPruner`.
    """

    model: str
    about: str
    source: str
    build: Callable[..., nn.Module]
    hidden: int
    dropout: float
    fit: Fit
    scope: Scope = "global"

    def __post_init__(self) -> None:
        check_count("hidden", self.hidden)
        check_dropout("dropout", self.dropout)

    def changed(self, **given: Any) -> "Recipe":
        """The recipe with other values of its own fields or those of `Fit`."""
        fit, recipe = chosen(self.fit, self, given=given, of="Recipe.changed")
        return replace(recipe, fit=fit)


def find_recipe(model: str) -> Recipe:
    """The recipe of a model.

    Raises:
        ValueError: if there is no model of that name; lists those there are.
    """
    return RECIPES[check_name("model", model, RECIPES)]


def for_links(recipe: Recipe) -> Recipe:
    """The recipe for link prediction: wider, less regularised.

    With weight decay embeddings shrink until all pairs score alike: on Cora a GCN's
    Hits@50 on the validation links is 52% by its own recipe, 70% by this one. Chosen
    on the validation links of Cora and CiteSeer.
    """
    hidden = 16 if recipe.model == "gat" else 128  # GAT's is that of each of 8 heads
    return recipe.changed(hidden=hidden, dropout=0.3, weight_decay=0.0)


def _resgcn(layers: int) -> Recipe:
    return Recipe(
        f"resgcn{layers}",
        f"ResGCN of {layers} layers, softmax aggregation",
        "You et al. 2022",
        partial(ResGCN, layers=layers),
        hidden=128,
        dropout=0.5,
        fit=Fit(lr=0.01, weight_decay=0.0, decay="all", epochs=500),
        # In one ranking the encoder of many features, whose weights start smallest,
        # would lose all of them, and the model its input.
        scope="layer",
    )


_CHOSEN = "chosen on Cora's and CiteSeer's validation nodes"

RECIPES = {
    recipe.model: recipe
    for recipe in (
        Recipe(
            "gcn",
            "GCN of two layers",
            "Kipf and Welling 2017; epochs of You et al. 2022",
            GCN,
            hidden=16,
            dropout=0.5,
            fit=Fit(lr=0.01, weight_decay=5e-4, decay="first", epochs=100),
        ),
        Recipe(
            "gat",
            "GAT of two layers, 8 heads, then 1",
            "Velickovic et al. 2018; epochs of PyG's example",
            GAT,
            hidden=8,
            dropout=0.6,
            fit=Fit(lr=0.005, weight_decay=5e-4, decay="all", epochs=200),
        ),
        Recipe(
            "gin",
            "GIN-0 of two layers, one linear map each",
            _CHOSEN,
            GIN,
            hidden=64,
            dropout=0.8,
            fit=Fit(lr=0.01, weight_decay=5e-3, decay="all", epochs=200),
        ),
        Recipe(
            "sage",
            "GraphSAGE of two layers, mean of all neighbours",
            _CHOSEN,
            GraphSAGE,
            hidden=64,
            dropout=0.9,
            fit=Fit(lr=0.01, weight_decay=2e-3, decay="all", epochs=200),
        ),
        *map(_resgcn, (7, 14, 28)),
    )
}
"""Every recipe, by the model's name."""

TITLES = ("--model", "what", "trained with, unless told otherwise", "compact drops")


def row(recipe: Recipe) -> list[str]:
    """A recipe as a row of the table of models, under `TITLES`."""
    units = isinstance(recipe.build, type) and issubclass(recipe.build, LinearStack)
    fit = recipe.fit
    on = " on the first layer" if fit.decay == "first" else ""
    each = ", weights ranked layer by layer" if recipe.scope == "layer" else ""
    return [
        recipe.model,
        recipe.about,
        f"hidden {recipe.hidden}, dropout {recipe.dropout:g}, lr {fit.lr:g}, weight "
        f"decay {fit.weight_decay:g}{on}, {fit.epochs} epochs{each} "
        f"({recipe.source})",
        "features, hidden units" if units else "features",
    ]
