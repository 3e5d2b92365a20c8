"""What the pages and the README show runs as it stands there.

Blocks of Python of a page run in order, in one namespace, in a folder of their own.
What one prints is what the block of text below it says, numbers aside: they differ from
machine to machine. ``data`` is a small graph of PyG's. A comment before a block says
what it ``needs`` that may be absent: a package, or a graph on disk.
"""

import inspect
import re
import shlex
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
from helpers import call_gebt
from typer.main import get_command

import gebt
from gebt._registry import CRITERIA, DATASETS
from gebt.cli.app import app

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXT = {page.relative_to(ROOT).as_posix(): page.read_text("utf-8") for page in PAGES}
_SLOW = ("README.md", *(f"docs/{n}.md" for n in ("quickstart", "choosing", "deploy")))
_PYTHON = r"(?:<!-- needs: (\S+) -->\n)?```python\n(.*?)```(?:\n\n```text\n(.*?)```)?"


def _is_here(need: str) -> bool:
    if need in DATASETS:
        return DATASETS.find(need).on_disk(gebt.datasets.find_root())
    return find_spec(need) is not None


def _without_numbers(text: str) -> str:
    return re.sub(r"\d[\d,.]*", "#", text)


def _params(pattern: str) -> list[object]:
    return [
        pytest.param(name, marks=[pytest.mark.slow] * (name in _SLOW))
        for name, text in TEXT.items()
        if re.search(pattern, text, re.M)
    ]


@pytest.mark.parametrize("name", _params("^```python"))
def test_blocks_run_and_print_what_stands_below_them(
    name, data, own_registries, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    scope = {"__name__": "page", "data": data}
    absent = []
    for found in re.finditer(_PYTHON, TEXT[name], re.S):
        need, code, said = found.groups()
        if need and not _is_here(need):
            absent.append(need)
            continue
        line = TEXT[name].count("\n", 0, found.start(2))
        exec(compile("\n" * line + code, ROOT / name, "exec"), scope)
        printed = capsys.readouterr().out
        if said is not None:
            assert _without_numbers(printed) == _without_numbers(said), code
    if absent:
        pytest.skip(f"ran, but for blocks that need {', '.join(absent)}")


def _shell(text: str) -> list[str]:
    """What follows gebt in its lines for a shell, torchrun's among them."""
    blocks = re.findall(r"```(?:sh|console)\n(.*?)```", text.replace("\\\n", ""), re.S)
    lines = [line.partition(" #")[0] for block in blocks for line in block.splitlines()]
    return [m[1] for line in lines if (m := re.search(r"(?:^| -m )gebt (.*)", line))]


@pytest.mark.parametrize("name", _params("^(torchrun .*)?gebt "))
def test_commands_have_the_flags_and_names_that_pages_give_them(
    name, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for text in re.findall(r"```toml\n(.*?)```", TEXT[name], re.S):
        (tmp_path / "run.toml").write_text(text)  # which --config reads
    for line in _shell(TEXT[name]):
        command, words = get_command(app), shlex.split(line)
        while hasattr(command, "commands"):
            command = command.commands[words.pop(0)]
        command.make_context(line, words)


def test_every_public_name_is_on_a_page_and_what_pages_name_has_words():
    pages = "".join(TEXT[name] for name in TEXT if name.startswith("docs/api/"))
    listed = re.findall(r"^\.\. auto\w+:: ([\w.]+)", pages, re.M)
    assert len(listed) == len({*listed})
    things = {}
    for full in listed:
        home, _, name = full.rpartition(".")
        things[full] = getattr(import_module(home), name)
    for full, thing in things.items():
        if inspect.isclass(thing) or inspect.isfunction(thing):
            assert thing.__doc__, full
        for key, member in vars(thing).items() if inspect.isclass(thing) else ():
            if isinstance(member, property) or inspect.isfunction(member):
                assert key.startswith("_") or member.__doc__, f"{full}.{key}"
    shown = [id(thing) for thing in things.values()]
    for room in (gebt, gebt.models, gebt.kernels, gebt.datasets):
        for name in room.__all__:
            thing = getattr(room, name)
            there = inspect.ismodule(thing) or id(thing) in shown
            assert there, f"{room.__name__}.{name} is on no page of docs/api"


def test_every_page_is_in_a_table_of_contents():
    names = [Path(n).relative_to("docs") for n in TEXT if n.startswith("docs/")]
    found = {Path("index.md")}
    for name in names:
        trees = re.findall(r"```{toctree}\n(.*?)```", TEXT[f"docs/{name}"], re.S)
        lines = [line for tree in trees for line in tree.splitlines()]
        found |= {name.parent / f"{x}.md" for x in lines if x and x[0] != ":"}
    assert found == {*names}


@pytest.mark.parametrize("name", TEXT)
def test_links_to_files_resolve(name):
    for path in re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", TEXT[name]):
        assert (ROOT / name).parent.joinpath(path).exists(), path
    for path in re.findall(r"```{(?:figure|include)} (\S+)", TEXT[name]):
        assert (ROOT / name).parent.joinpath(path).exists(), path


@pytest.mark.slow
def test_the_tables_of_models_and_tasks_are_what_the_code_prints(capsys):
    assert call_gebt("models", "--markdown") == 0
    for table in capsys.readouterr().out.strip().split("\n\n"):
        assert table in TEXT["docs/models.md"], "paste what it prints"


@pytest.mark.parametrize(
    ("names", "page"), [(DATASETS, "docs/graphs.md"), (CRITERIA, "docs/choosing.md")]
)
def test_every_graph_and_criterion_is_on_its_page(names, page):
    for name in names.homes:
        assert f"`{name}" in TEXT[page], name


def test_the_output_that_is_shown_has_the_rows_that_gebt_run_prints():
    from gebt.experiments.record import Drawn, Measured, Record, Scores, summary_table

    scores = Scores(1.0, 1.0)
    run = Measured(0, scores, Drawn(*[1] * 6), scores, None, None, None, None, None)
    table = summary_table(Record("cora", "", "accuracy", {"model": "gcn"}, {}, [run]))
    assert len(table.rows) == 10
    for title in [*table.header, *(row[0] for row in table.rows)]:
        assert title in TEXT["docs/quickstart.md"]


def test_the_picture_is_of_the_output_that_is_shown(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    picture = import_module("picture")
    found = (ROOT / "docs/figures/run-cora.svg").read_text("utf-8")
    assert found == picture.drawn(picture.shown()), "run docs/picture.py"
