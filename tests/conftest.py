"""Fixtures shared by every test: a fixed seed, loud garbage memory, small graphs."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import settings

if TYPE_CHECKING:
    from gebt import Graph


def _interpreter_runs() -> bool:
    """Whether Triton is here and its interpreter fits NumPy.

    Until 3.6 it takes arrays of one element for numbers, which NumPy deprecates and
    from 2.4 on refuses.
    """
    if find_spec("triton") is None:
        return False
    return tuple(map(int, version("triton").split(".")[:2])) >= (3, 7)


if not torch.cuda.is_available() and _interpreter_runs():
    # Read when Triton is imported, which `gebt.kernels` does by way of torch.
    os.environ.setdefault("TRITON_INTERPRET", "1")

# The same examples in every run; the files that mirror `*_properties.py` draw them.
settings.register_profile("gebt", derandomize=True, database=None, deadline=None)
settings.load_profile("gebt")

_NO_CUDA = "needs a CUDA device: torch.cuda.is_available() is False here"


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--fuzz N``: how many mutants of files are tried."""
    words = "mutants of files that tests/test_fuzz*.py try, by default %(default)s"
    parser.addoption("--fuzz", type=int, default=300, metavar="N", help=words)


def pytest_configure() -> None:
    """Let Ctrl-C reach the processes that tests start.

    A shell's background jobs ignore it, and what they start inherits that.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Files with slow tests come first: at the end no process waits for a long one.
    slow = {item.path for item in items if "slow" in item.keywords}
    items.sort(key=lambda item: item.path not in slow)
    if torch.cuda.is_available():
        return
    for item in items:
        if "cuda" in item.keywords:
            item.add_marker(pytest.mark.skip(reason=_NO_CUDA))


@pytest.fixture(autouse=True)
def fixed_seed_and_loud_memory(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fix torch's seed, and let memory that nobody wrote hold NaN.

    torch fills `empty` with NaN (the largest integer, True) only in deterministic
    mode. On CPU that mode forbids none of the operations gebt uses. It is left off
    for CUDA tests, where it forbids some, and what promises to repeat bit for bit
    without it is tested in a subprocess of its own.
    """
    torch.manual_seed(0)
    loud = "cuda" not in request.keywords
    before = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = loud
    torch.use_deterministic_algorithms(loud)
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = before


def _make_data(
    *,
    nodes: int = 120,
    classes: int = 3,
    features: int = 24,
    p_in: float = 0.12,
    p_out: float = 0.01,
    sparse: bool = False,
    seed: int = 0,
) -> Any:
    """A stochastic block model as PyG ``Data``: homophilous, undirected, split.

    Node ``i`` is of class ``i % classes``. Features are noise plus the class's own
    direction; with ``sparse``, words of which each class prefers its own share, at
    most one in ten set. 40 % of the nodes train, 30 % validate, 30 % test.
    """
    from torch_geometric.data import Data

    draw = torch.Generator().manual_seed(seed)
    y = torch.arange(nodes) % classes
    same = y[:, None] == y[None, :]
    chance = torch.where(same, p_in, p_out)
    upper = (torch.rand(nodes, nodes, generator=draw) < chance).triu(1)
    # A ring inside each class: no node is isolated, so every node can be learned.
    ring = torch.arange(nodes - classes)
    upper[ring, ring + classes] = True
    edge_index = (upper | upper.t()).nonzero().t().contiguous()
    own = torch.arange(features)[None, :] % classes == y[:, None]
    if sparse:
        word = torch.rand(nodes, features, generator=draw)
        x = (word < torch.where(own, 0.2, 0.02)).float()
    else:
        x = torch.randn(nodes, features, generator=draw) + own.float()
    order = torch.randperm(nodes, generator=draw)
    parts = dict(
        zip(
            ("train_mask", "val_mask", "test_mask"),
            order.tensor_split([int(0.4 * nodes), int(0.7 * nodes)]),
            strict=True,
        )
    )
    masks = {
        name: torch.zeros(nodes, dtype=torch.bool).index_fill(0, index, True)
        for name, index in parts.items()
    }
    return Data(x=x, edge_index=edge_index, y=y, **masks)


@pytest.fixture
def make_data() -> Callable[..., Any]:
    """Factory of small seeded PyG graphs; see `_make_data` for the options."""
    return _make_data


@pytest.fixture
def make_graph() -> Callable[..., "Graph"]:
    """Factory of the same as `gebt.Graph`; same options as `make_data`."""
    import gebt

    def make(**options: Any) -> "Graph":
        return gebt.Graph.from_pyg(_make_data(**options), name="blocks")

    return make


@pytest.fixture
def data() -> Any:
    """The default small PyG graph: 120 nodes, 3 classes, 24 dense features."""
    return _make_data()


@pytest.fixture
def graph(make_graph: Callable[..., "Graph"]) -> "Graph":
    """`data` as a `gebt.Graph`."""
    return make_graph()


@pytest.fixture
def sparse_graph(make_graph: Callable[..., "Graph"]) -> "Graph":
    """As `graph`, with features so sparse that gebt keeps them sparse."""
    return make_graph(sparse=True)


@pytest.fixture
def gebt_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Any]:
    """`run_gebt` of helpers.py in this process: starting torch takes seconds."""
    from helpers import call_gebt

    def call(*args: Any) -> Any:
        monkeypatch.chdir(tmp_path)
        code = call_gebt(*args)
        return subprocess.CompletedProcess(args, code, *capsys.readouterr())

    return call


@pytest.fixture
def planetoid_root() -> Path:
    """The folder with the raw files of Cora and CiteSeer, or a skip."""
    given = os.environ.get("GEBT_DATA")
    if given:
        root = Path(given)
        if all((root / name / "raw").is_dir() for name in ("Cora", "CiteSeer")):
            return root
    pytest.skip(
        "set GEBT_DATA to a folder that holds Cora/raw and CiteSeer/raw "
        f"(it is {given!r})"
    )


@pytest.fixture
def own_registries(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Registries that forget after the test what it registered, and no plugins."""
    from gebt import _registry, models

    monkeypatch.setenv("GEBT_PLUGINS", "")
    monkeypatch.setattr(sys, "path", [*sys.path])
    classes = dict(models.CLASSES)
    yield
    for registry in vars(_registry).values():
        if isinstance(registry, _registry.Registry):
            for name in set(registry) - set(registry.homes):
                del registry._things[name]
    models.CLASSES.clear()
    models.CLASSES.update(classes)
