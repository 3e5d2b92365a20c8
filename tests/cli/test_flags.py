"""Options as flags, one for each field."""

from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from gebt.cli.entry import in_flags
from gebt.cli.flags import ARGUMENTS, Changes, Drawn, flags
from gebt.options import Fit, option


@dataclass(frozen=True)
class Baking:
    minutes: int = option(30, "How long.", "N")
    fan: bool = option(False, "Blow.")
    cake: str = "none"  # says nothing: no flag

    def __post_init__(self):
        if self.minutes < 1:
            raise ValueError(f"`minutes` must be at least 1, got {self.minutes}.")


@pytest.fixture
def bake():
    """Calls a command that takes options of both kinds; gives what it was given."""
    app, given = typer.Typer(rich_markup_mode="rich"), []

    @app.command()
    @flags
    def cake(
        name: str,
        *,
        baking: Baking,
        changes: Changes,
        glaze: Annotated[str, typer.Option(help="Or none.")] = "lemon",
    ) -> None:
        """Bake."""
        given.append((name, baking, changes, glaze))

    def call(*args):
        result = CliRunner().invoke(app, args, env={"COLUMNS": "200"})
        if isinstance(result.exception, Exception):
            raise result.exception
        return given.pop() if given else result.output

    return call


def test_options_are_built_from_their_flags(bake):
    assert bake("a") == ("a", Baking(), {}, "lemon")
    args = ("a", "--minutes", "40", "--fan", "--lr", "0.5", "--glaze", "none")
    assert bake(*args) == ("a", Baking(40, True), {"lr": 0.5}, "none")


def test_changes_hold_what_was_given_even_where_it_is_a_default(bake):
    args = ("--epochs", str(Fit.epochs), "--weight-decay", "0", "--hidden", "8")
    assert bake("a", *args)[2] == {"epochs": Fit.epochs, "weight_decay": 0, "hidden": 8}


def test_options_are_checked_as_they_are_built(bake):
    with pytest.raises(ValueError, match="`minutes` must be at least 1, got 0"):
        bake("a", "--minutes", "0")
    with pytest.raises(ValueError, match="`lr` must be positive"):
        bake("a", "--lr", "0")


def test_the_help_tells_of_every_field_that_says_what_it_is(bake):
    text = bake("--help")
    for words in ("--minutes", "How long. [default: 30]", "Blow.", "--plugin", "Bake."):
        assert words in text
    assert "--cake" not in text and "--decay" not in text
    assert "Learning rate of the weights. default: the model's" in text


def test_errors_name_the_flags_of_all_options():
    assert {"lr", "hidden", "window", "criterion", "seeds"} < set(ARGUMENTS)
    assert "decay" not in ARGUMENTS
    assert Drawn(criterion="RANDOM").criterion == "random"


@pytest.mark.parametrize(
    "said, shown",
    [
        ("`weight_decay` must", "`--weight-decay` must"),
        ('Use `recipe="auto"`.', "Use `--recipe auto`."),
        ("Set `graph_ratio=0`.", "Set `--graph-ratio 0`."),
        ('`scope="layer"` is no flag', '`scope="layer"` is no flag'),
    ],
)
def test_what_errors_say_to_python_is_said_in_flags(said, shown):
    assert in_flags(said) == shown
