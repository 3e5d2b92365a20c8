"""How weights are trained: what recipes, flags, files and tickets share; no torch."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, Self

from gebt._checks import (
    check_choice,
    check_count,
    check_name,
    check_not_negative,
    check_positive,
)

Decay = Literal["first", "all"]
Scope = Literal["global", "layer"]
Unit = Literal["element", "row", "column", "channel"]
Precision = Literal["full", "bf16", "bfp8"]
Objective = Literal["inference", "training"]
ExportInputs = Literal["none", "features", "graph"]
"""What an exported program takes: nothing, x, or x and the edges."""
EB_TRAIN: dict[str, Any] = {"window": 5, "scale": "size"}
"""When masks of channels have settled: the detector's options that EB-Train has."""
RECIPES = ("auto", "paper", "tuned")
"""Which model is trained, and how, where no model is named."""


def option(default: Any, about: str, metavar: str = "") -> Any:
    """A field of options with what the command line says of it."""
    return field(default=default, metadata={"help": about, "metavar": metavar})


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How weights are trained.

    Attributes:
        epochs: epochs of a training; a search is allowed as many.
        lr: Adam's learning rate.
        weight_decay: added to the gradient, times the parameter.
        decay: on the parameters of the ``"first"`` layer, as Kipf and Welling do, or
            on ``"all"``.
        patience: a training ends after so many epochs without a better validation
            score; 0 for never.

    Raises:
        ValueError: at birth, naming what is out of range.
    """

    epochs: int = option(
        100, "Epochs of each training; the search may use as many.", "N"
    )
    lr: float = option(0.01, "Learning rate of the weights.", "RATE")
    weight_decay: float = option(5e-4, "Weight decay.", "RATE")
    decay: Decay = "first"
    patience: int = option(
        0, "End a training after N epochs without a better validation score.", "N"
    )

    def __post_init__(self) -> None:
        check_count("epochs", self.epochs)
        check_positive("lr", self.lr)
        check_not_negative("weight_decay", self.weight_decay)
        check_choice("decay", self.decay, Decay)
        check_not_negative("patience", self.patience)

    def to_dict(self) -> dict[str, Any]:
        """As numbers and names."""
        return asdict(self)

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Self:
        """From a mapping that may hold other things, too."""
        return cls(**{f.name: given[f.name] for f in fields(cls) if f.name in given})


def chosen(*options: Any, given: Mapping[str, Any], of: str) -> list[Any]:
    """Frozen options with those fields changed that a call names directly.

    Args:
        options: dataclasses.
        given: values by field's name, of any of them.
        of: the function that was called, for its TypeError.
    """
    known = [f.name for each in options for f in fields(each)]
    for name in given:
        if name not in known:
            try:
                check_name("option", name, known)
            except ValueError as error:
                raise TypeError(f"{of}(): {error}") from None
    return [
        replace(
            each, **{f.name: given[f.name] for f in fields(each) if f.name in given}
        )
        for each in options
    ]
