"""A model by name: its class, and the hyper-parameters that are standard for it."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, get_origin

from torch import nn

from gebt._checks import check_count, check_dropout
from gebt._registry import MODELS, SUPERNETS
from gebt.files import Fields, shown
from gebt.options import Fit, Scope, chosen

LARGEST = 2**31 - 1
CHOSEN = "chosen on Cora's and CiteSeer's validation nodes"

CLASSES: dict[str, type[nn.Module]] = {}
"""The registered models' classes by their own names: what files can rebuild."""


@dataclass(frozen=True)
class Recipe:
    """How a model is built and trained unless told otherwise.

    Attributes:
        model: what ``gebt run --model`` calls it.
        about: the model, in words.
        source: where the numbers come from.
        build: the model's class, or a `partial` of it with some of its options.
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

    @property
    def kind(self) -> Any:
        """The class that is built."""
        return self.build.func if isinstance(self.build, partial) else self.build

    def changed(self, **given: Any) -> "Recipe":
        """The recipe with other values of its own fields or those of `Fit`."""
        fit, recipe = chosen(self.fit, self, given=given, of="Recipe.changed")
        return replace(recipe, fit=fit)

    def arguments(self, num_features: int, num_outputs: int) -> dict[str, Any]:
        """What the class is built with, for F features and C outputs."""
        options = self.build.keywords if isinstance(self.build, partial) else {}
        return options | {
            "num_features": num_features,
            "hidden": self.hidden,
            "num_outputs": num_outputs,
            "dropout": self.dropout,
        }

    def in_words(self) -> str:
        """The model and what is set of it."""
        shape = self.build.keywords if isinstance(self.build, partial) else {}
        parts = [f"{name} {value}" for name, value in shape.items()]
        parts = [part.replace(" True", "").replace("_", " ") for part in parts]
        parts += [f"hidden {self.hidden}", f"dropout {self.dropout:g}"]
        return ", ".join([self.model, *parts])

    def described(self) -> dict[str, Any]:
        """As numbers and names, for records."""
        layers = {"model": self.model, "hidden": self.hidden, "dropout": self.dropout}
        return {**layers, **self.fit.to_dict()}

    def new(self, num_features: int, num_outputs: int) -> nn.Module:
        """A model for F features and C outputs, with random weights."""
        return construct(self.kind, self.arguments(num_features, num_outputs))


def construct(kind: type[nn.Module], arguments: Mapping[str, Any]) -> nn.Module:
    """A model that knows its ``arguments``, whether or not its class keeps them."""
    model: Any = kind(**arguments)
    if not hasattr(model, "arguments"):
        model.arguments = dict(arguments)
    return model


def checked_arguments(
    kind: type[nn.Module],
    given: Fields,
    widest: int = LARGEST,
    deepest: int = LARGEST,
) -> dict[str, Any]:
    """The constructor's arguments, of the types that its signature says.

    Where it says none, as in a user's class, of a default's; else as in the file.
    """
    known = inspect.signature(kind).parameters
    if unknown := set(given) - set(known):
        raise ValueError(
            f"cannot rebuild a {kind.__name__}: it takes {', '.join(known)}, not "
            f"{shown(min(unknown))}."
        )
    arguments: dict[str, Any] = {}
    for name, parameter in known.items():
        if name not in given.content and parameter.default is not parameter.empty:
            continue
        of, value = parameter.annotation, given.content.get(name)
        if of is parameter.empty:
            has_default = parameter.default not in (None, parameter.empty)
            of = type(parameter.default if has_default else value)
        if name == "dropout" or of in (float, "float"):
            arguments[name] = given.number(name)
        elif of in (bool, "bool"):
            arguments[name] = given.flag(name)
        elif of in (str, "str") or get_origin(of) is Literal:
            arguments[name] = given.text(name)
        elif get_origin(of) is Sequence or (
            isinstance(value, list) and of not in (int, "int")
        ):
            arguments[name] = given.wholes(name, 0, widest)
            if len(arguments[name]) > deepest:
                given.fail(name, f"at most {deepest} widths")
        else:
            least = int(name != "num_features")  # compaction may leave none
            most = deepest if name == "layers" else widest
            arguments[name] = given.whole(name, least, most)
    return arguments


def register(
    name: str,
    build: Callable[..., nn.Module],
    *,
    about: str = "",
    source: str = "",
    hidden: int = 16,
    dropout: float = 0.5,
    fit: Fit | None = None,
    scope: Scope = "global",
) -> None:
    """Make a model known by name to the command line, and its class to files.

    Its ``forward(x, adjacency)``, or ``forward(x, adjacency, rows)`` to compute only
    some nodes, gives (N, C). ``x`` (N, F) is a `SparseMatrix` where the graph's is
    (``x @ weight`` takes both, `torch.nn.Linear` does not); ``adjacency`` (N, N) has
    the links' learned values, no self-loops, and is not normalised.

    Files keep its ``arguments``, whole numbers from 1, numbers, names, lists of widths,
    which it gets where it is built by its name. `gebt.compact` copies it unless it has
    ``shrink()``: the smaller model, in evaluation mode, and (F,) which features that
    reads; ``ignores_zeros = True`` lets edges of value 0 go. `gebt.measure_cost` asks
    its ``paper_macs(nodes, entries, kept)``, of the adjacency's entries and the weights
    kept.

    Args:
        name: in lower case; a user's may be registered again.
        build: a class built with ``num_features``, ``hidden``, ``num_outputs`` and
            ``dropout``, or a `functools.partial` of one with other options by name.
        about: the model, in words.
        source: where the numbers come from.
        hidden: hidden width.
        dropout: share dropped during training.
        fit: how it is trained; by default as GCN.
        scope: how weights are ranked, see `ModelPruner`.

    Raises:
        ValueError: if the name, or the class's, is one of gebt's, or the class is not
            built like that.
    """
    recipe = Recipe(name, about, source, build, hidden, dropout, fit or Fit(), scope)
    kind = recipe.kind
    called = getattr(kind, "__name__", repr(kind))
    if not isinstance(kind, type) or not issubclass(kind, nn.Module):
        raise ValueError(f"`build` must be a class of torch modules, got {called}.")
    # As when a file is read: what is written now can be read then.
    given = Fields(recipe.arguments(1, 1), f"cannot register {called}")
    checked_arguments(kind, given)
    known = CLASSES.get(called, kind)
    if known is not kind and known.__module__.startswith("gebt."):
        raise ValueError(
            f"the class {called} is called as one of gebt's, and files name a model by "
            "its class. Rename it."
        )
    # Only once may a name be its own home's.
    MODELS.add(name, recipe, "" if name in MODELS else kind.__module__)
    CLASSES[called] = kind


def for_links(recipe: Recipe) -> Recipe:
    """The recipe for link prediction: wider, less regularised.

    With weight decay embeddings shrink until all pairs score alike: on Cora a GCN's
    Hits@50 on the validation links is 52% by its own recipe, 70% by this one. Chosen
    on the validation links of Cora and CiteSeer.
    """
    # GAT's is that of each of 8 heads, a supernet's that of each of 6 operators.
    parts = recipe.model == "gat" or recipe.model in SUPERNETS
    hidden = 16 if parts else 128
    return recipe.changed(hidden=hidden, dropout=0.3, weight_decay=0.0)


TITLES = ("--model", "what", "trained with, unless told otherwise", "compact drops")


def row(recipe: Recipe) -> list[str]:
    """A recipe as a row of the table of models, under `TITLES`."""
    fit = recipe.fit
    on = " on the first layer" if fit.decay == "first" else ""
    each = ", weights ranked layer by layer" if recipe.scope == "layer" else ""
    source = f" ({recipe.source})" if recipe.source else ""
    return [
        recipe.model,
        recipe.about,
        f"hidden {recipe.hidden}, dropout {recipe.dropout:g}, lr {fit.lr:g}, weight "
        f"decay {fit.weight_decay:g}{on}, {fit.epochs} epochs{each}{source}",
        getattr(recipe.kind, "drops", "nothing"),
    ]
