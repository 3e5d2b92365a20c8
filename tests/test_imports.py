"""Who imports whom, and what `import gebt` costs."""

import ast
import re
from pathlib import Path

import pytest
from helpers import run_gebt, run_python

import gebt

PACKAGE = Path(gebt.__file__).parent

ARCHITECTURE = PACKAGE.parent / "docs" / "architecture.md"


def floors(text: str) -> list[list[str]]:
    """The rooms of each floor, lowest first, of the table in architecture.md."""
    rows = re.findall(r"^\| (\d+) \|([^|]*)\|", text, flags=re.MULTILINE)
    assert [int(floor) for floor, _ in rows] == [*range(1, len(rows) + 1)]
    return [re.findall(r"`(\w+)`", rooms) for _, rooms in rows]


# A room imports from lower floors only.
LAYERS = floors(ARCHITECTURE.read_text(encoding="utf-8"))
LAYER = {room: depth for depth, rooms in enumerate(LAYERS) for room in rooms}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def rooms_imported(path: Path) -> set[str]:
    """Rooms of gebt that a file imports anywhere in it; "" is the package itself."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module == "gebt":
                names += [f"gebt.{alias.name}" for alias in node.names]
            else:
                names.append(node.module or "")
    rooms = {
        name.split(".")[1] if "." in name else "" for name in names if is_ours(name)
    }
    public = set(gebt._ROOMS)
    assert not rooms & public - set(LAYER), f"{path} imports by way of `gebt` itself"
    return rooms


def is_ours(module: str) -> bool:
    return module.split(".")[0] == "gebt"


FILES = [p for p in sorted(PACKAGE.rglob("*.py")) if p != PACKAGE / "__init__.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_room_imports_from_lower_layers_only(path):
    room = room_of(path)
    assert room in LAYER, f"{room} is on no floor: add it to docs/architecture.md"
    for other in rooms_imported(path) - {room, ""}:
        lower = LAYER[other] < LAYER[room]
        assert lower, f"{room} (layer {LAYER[room]}) imports {other} ({LAYER[other]})"


def test_the_table_of_floors_names_the_rooms_that_are_there():
    there = {room_of(path) for path in FILES}
    named = [room for floor in LAYERS for room in floor]
    missing, gone = sorted(there - set(named)), sorted(set(named) - there)
    assert not missing, f"docs/architecture.md has no floor for {missing}: add them"
    assert not gone, f"docs/architecture.md names {gone}, not in gebt/: take them out"
    assert len(named) == len(set(named)), "a room stands on two floors"
    assert len(named) <= 22 and len(LAYERS) <= 9, "at most 22 rooms on 9 floors"


@pytest.mark.parametrize(
    "room, known",
    {
        "randomness": set(),
        "_version": set(),
        "_provenance": {"_version"},
        "_checks": set(),
        "options": {"_checks"},
        "_registry": {"_checks"},
        "files": set(),
        "kernels": set(),
    }.items(),
)
def test_the_lowest_layers_import_next_to_nothing_of_gebt(room, known):
    paths = [p for p in FILES if room_of(p) == room]
    assert paths
    assert set().union(*map(rooms_imported, paths)) <= {room} | known


@pytest.mark.parametrize("name", ["masks", "detector"])
def test_masks_and_detector_import_the_checks_alone(name):
    assert rooms_imported(PACKAGE / "prune" / f"{name}.py") == {"_checks"}


def test_models_never_see_a_graph_and_only_the_command_line_prints():
    for path in FILES:
        room = room_of(path)
        if room == "models":
            assert "graph" not in rooms_imported(path)
        if room not in ("cli", "__main__"):
            calls = [n for n in ast.walk(ast.parse(path.read_text())) if called(n)]
            assert not [n for n in calls if called(n) == "print"], path


def called(node: ast.AST) -> str | None:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return node.func.id
    return None


def modules_after(code: str) -> set[str]:
    """Top-level modules loaded by a fresh interpreter that ran the code."""
    tail = "\nimport sys; print(); print(*{m.split('.')[0] for m in sys.modules})"
    return set(run_python(code + tail).splitlines()[-1].split())


def test_import_gebt_imports_neither_torch_nor_pyg():
    modules = modules_after("import gebt; gebt.__version__; dir(gebt)")
    assert "gebt" in modules
    assert not modules & {"torch", "torch_geometric", "numpy", "sklearn"}


def test_a_search_on_tensors_does_not_need_pyg():
    modules = modules_after("import gebt; gebt.find_ticket; gebt.Graph; gebt.load")
    assert not modules & {"torch_geometric", "sklearn", "ogb", "matplotlib"}


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        ("--help", 0),
        ("run digits --graph-ratio 1.5", 2),
        ("run digits --weight-ratio x", 2),
        ("run digits --model gnc", 2),
        ("run digits --lr 0", 2),
        ("run digits --graph-ratio 0 --weight-ratio 0", 2),
        ("search digits --criterion lerned", 2),
        ("models --plugin absent.py", 2),
        ("search digtis", 2),
        ("reproduce fig3", 2),
    ],
)
def test_help_and_a_typo_import_neither_torch_nor_pyg(arguments, answer):
    code = f"""
import runpy, sys
sys.argv = ["gebt", *{arguments.split()}]
try:
    runpy.run_module("gebt", run_name="__main__")
except SystemExit as done:
    assert (done.code or 0) == {answer}, done.code
"""
    modules = modules_after(code)
    assert "gebt" in modules
    assert not modules & {"torch", "torch_geometric", "sklearn", "numpy"}


def test_help_as_a_user_calls_it():
    assert "usage" in run_gebt("--help", cwd=None).stdout.lower()


def test_every_public_name_resolves_to_what_says_so():
    assert gebt.__all__ == sorted(set(gebt.__all__))
    for name in gebt.__all__:
        thing = getattr(gebt, name)
        assert thing.__name__.split(".")[-1] == name
        assert thing.__doc__, name
    assert set(gebt.__all__) < set(dir(gebt))


def test_type_checkers_see_the_same_names():
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    (block,) = [n for n in tree.body if isinstance(n, ast.If)]
    imports = [n for n in block.body if isinstance(n, ast.ImportFrom)]
    listed = {alias.name: n.module for n in imports for alias in n.names}
    assert set(listed) == set(gebt.__all__)
    for name, module in listed.items():
        room = gebt._ROOMS[name]
        assert module == (f"gebt.{room}" if room else "gebt")


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(
        AttributeError, match="module 'gebt' has no attribute 'nothing'"
    ):
        gebt.nothing  # noqa: B018
    assert not hasattr(gebt, "torch")


def test_models_read_entries_by_the_matrixs_doors_alone():
    for path in (p for p in FILES if room_of(p) == "models" and p.name != "pyg.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in ("row", "col", "own"):
                inner = node.value
                is_pattern = (
                    isinstance(inner, ast.Attribute) and inner.attr == "pattern"
                )
                assert not is_pattern, f"{path}:{node.lineno}"
