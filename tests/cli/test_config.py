"""Flags from a file: what is read, refused and written, and that it is the same run."""

import tomllib
from pathlib import Path
from typing import Annotated

import pytest
import typer
from helpers import assert_refused, call_gebt, run_gebt
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from gebt.cli.config import Call
from gebt.cli.flags import Device, Drawn, flags


@pytest.fixture
def brew(tmp_path):
    """Calls a command with a file of that text; gives what it was called with."""
    app, calls = typer.Typer(), []

    @app.command()
    @flags
    def tea(
        leaf: Annotated[str, typer.Argument()],
        *,
        drawn: Drawn,
        minutes: int = 3,
        sugar: float = 0.0,
        milk: Annotated[bool, typer.Option("--milk")] = False,
        guest: list[str] = [],  # noqa: B006 (typer needs a list)
        device: Device = Device.auto,
        pot: Path | None = None,
        call: Call,
    ) -> None:
        calls.append((leaf, drawn, minutes, sugar, milk, guest, device, pot, call))

    def call(text, *args):
        path = tmp_path / "tea.toml"
        path.write_text(text)
        result = CliRunner().invoke(app, ["--config", path, *args])
        if isinstance(result.exception, Exception):
            raise result.exception
        assert result.exit_code == 0, result.output
        return calls.pop()

    return call


EVERY = """
leaf = "assam"
graph-ratio = 0.5
window = 2
minutes = 5
sugar = 1
milk = true
guest = ["A", "B"]
device = "cpu"
pot = "a/b"
"""


def test_a_file_gives_flags_and_arguments_and_the_command_line_wins(brew):
    *values, call = brew(EVERY)
    drawn = Drawn(graph_ratio=0.5, window=2)
    expected = ["assam", drawn, 5, 1.0, True, ["A", "B"], Device.cpu, Path("a/b")]
    assert values == expected
    assert call.flags["graph_ratio"] == 0.5 and call.flags["weight_ratio"] is None
    values = brew(EVERY, "oolong", "--window", "4", "--guest", "C")
    assert values[0] == "oolong" and values[5] == ["C"] and values[2] == 5
    assert values[1] == Drawn(graph_ratio=0.5, window=4)
    assert brew('leaf = "x"\ngraph_ratio = 0.25')[1] == Drawn(graph_ratio=0.25)
    assert brew('leaf = "x"')[2:5] == (3, 0.0, False)


@pytest.mark.parametrize(
    "line, words",
    [
        ("graph-ratoi = 0.5", "no flag 'graph-ratoi'.* Did you mean 'graph-ratio'"),
        ("minuets = 3", "Did you mean 'minutes'"),
        ("config = 'x.toml'", "no flag 'config'"),
        ("[tea]", "no flag 'tea'"),
        ("minutes = 5.0", "minutes must be a whole number, got 5.0"),
        ("minutes = true", "must be a whole number, got True"),
        ("sugar = '1'", "must be a number, got '1'"),
        ("sugar = true", "must be a number, got True"),
        (f"sugar = 1{'0' * 400}", "must be a number, got 10"),
        ("milk = 1", "must be true or false, got 1"),
        ("leaf = 1", "must be a text, in quotes, got 1"),
        ("guest = 'A'", "must be a list, each a text, got 'A'"),
        ("guest = ['A', 1]", "must be a list, each a text, got"),
        ("graph-ratio = 1.5", r"`graph_ratio` is the share .* got 1.5"),
        ("graph-ratio = 0.1\ngraph_ratio = 0.2", "gives graph-ratio twice"),
        ("minutes = ", "is not a TOML file: Invalid value"),
        ("leaf = " + "[" * 10_000, "is not a TOML file"),
        ("minutes = " + "9" * 10_000, "is not a TOML file"),
    ],
)
def test_what_a_file_must_not_say_is_named(brew, line, words):
    with pytest.raises(ValueError, match=words) as error:
        brew(line, "assam")
    assert len(str(error.value)) < 400


_VALUES = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63),
    st.floats(allow_nan=False),
    st.text(st.characters(exclude_categories=["Cs"])),
)


@given(st.lists(_VALUES, max_size=5), _VALUES)
def test_what_is_written_is_toml_that_reads_back(tmp_path_factory, several, one):
    path = tmp_path_factory.getbasetemp() / "written.toml"
    Call("run", {"a_list": several, "one": None, "none": None, "out": "x"}).save(
        path, one=one
    )
    found = tomllib.loads(path.read_text("utf-8"))
    expected = {"a-list": several, "one": one} if several else {"one": one}
    assert found == expected
    assert str(found) == str(expected)  # True is not 1, nor -0.0 is 0.0


def test_a_name_that_is_not_unicode_costs_no_run(tmp_path):
    Call("run", {"pot": Path("a\udcff")}).save(tmp_path / "x.toml")
    assert tomllib.loads((tmp_path / "x.toml").read_text()) == {"pot": "a?"}


def test_the_file_that_a_run_writes_gives_the_same_ticket(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    short = ("--epochs", 8, "--threshold", 2, "--quiet")
    asked = ("digits", "--graph-ratio", 0.3, "--seed", 3, "--model", "gin")
    assert call_gebt("run", *asked, *short, "--out", "a") == 0
    written = tomllib.loads(Path("a/run.toml").read_text())
    asked = {"dataset": "digits", "graph-ratio": 0.3, "seed": 3, "model": "gin"}
    assert asked.items() < written.items()
    resolved = {"weight-ratio": 0.9, "task": "node-classification", "window": 3}
    assert resolved.items() < written.items() and {"hidden", "lr"} < written.keys()
    assert not {"out", "force", "quiet", "config", "decay"} & written.keys()
    # Other defaults, of a later gebt say, must not matter: all is in the file.
    assert call_gebt("run", "--config", "a/run.toml", "--quiet", "--out", "b") == 0
    for name in ("ticket.safetensors", "compact.safetensors", "run.toml"):
        assert Path("a", name).read_bytes() == Path("b", name).read_bytes()
    again = ("--seed", 4, "--out", "b", "--force", "--quiet")
    assert call_gebt("run", "--config", "b/run.toml", *again) == 0
    assert tomllib.loads(Path("b/run.toml").read_text()) == {**written, "seed": 4}


@pytest.mark.slow
def test_a_wrong_file_is_refused_in_one_line_before_anything_is_loaded(tmp_path):
    (tmp_path / "run.toml").write_text('dataset = "digits"\nepocs = 3\n')
    answer = run_gebt("run", "--config", "run.toml", cwd=tmp_path)
    assert_refused(answer, "run.toml: there is no flag 'epocs'", "mean 'epochs'?")
    assert_refused(run_gebt("run", "--config", "no.toml", cwd=tmp_path), "no.toml")
    (tmp_path / "run.toml").write_text('plugin = ["no.py"]\ndataset = "digits"')
    answer = run_gebt("run", "--config", "run.toml", cwd=tmp_path)
    assert_refused(answer, "there is no plugin no.py")
