"""Models, graphs, criteria by name: gebt's own, and those that users add.

Names are known before torch is loaded, which takes seconds; what they stand for is
imported when it is asked for. A plugin is a Python file, or an installed package's
entry point in the group ``gebt.plugins``, that registers something when imported.
"""

import os
import re
import sys
import warnings
import zlib
from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from traceback import extract_tb
from typing import Any, Generic, TypeVar

from gebt._checks import check_name

T = TypeVar("T")
_FILES = "GEBT_PLUGINS"
_added: list[str] = []  # names that are not gebt's own


class Registry(Mapping[str, T], Generic[T]):
    """Things of one kind by name, in order.

    Args:
        kind: what they are, for messages.
        homes: of gebt's own names, the module that registers each when imported.
    """

    def __init__(self, kind: str, homes: Mapping[str, str]):
        self.kind = kind
        self.homes = dict(homes)
        self._things: dict[str, T] = {}

    def add(self, name: str, thing: T, home: str) -> None:
        """Register a thing; a user's name may be registered again.

        Args:
            name: in lower case, so that ``--model Mine`` finds it, and fit for the
                name of a folder.
            thing: what it stands for.
            home: the module that registers it.

        Raises:
            ValueError: if the name is one of gebt's own, or holds other letters.
        """
        if self.homes.get(name, home) != home:
            raise ValueError(
                f"the {self.kind} {name!r} is gebt's own. Choose another name."
            )
        if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", name):
            raise ValueError(
                f"the name of a {self.kind} must be of lower-case letters, digits, "
                f"'.', '_' and '-', got {name!r}."
            )
        self._things[name] = thing
        if name not in self.homes:
            _added.append(name)

    def check(self, name: str) -> str:
        """The name as it is registered.

        Raises:
            ValueError: if there is none; lists those there are.
        """
        if name.lower() not in {*self.homes, *self._things}:
            load_plugins()
        return check_name(self.kind, name, [*self])

    def find(self, name: str) -> T:
        """What a name, in any case, stands for.

        Raises:
            ValueError: if there is none; lists those there are.
        """
        return self[self.check(name)]

    def __getitem__(self, name: str) -> T:
        """What a name stands for; imports its home."""
        if name not in self._things and name in self.homes:
            import_module(self.homes[name])
        return self._things[name]

    def __iter__(self) -> Iterator[str]:
        """Names, gebt's own first."""
        return iter(dict.fromkeys([*self.homes, *self._things]))

    def __len__(self) -> int:
        return len(list(iter(self)))


def use_plugin(path: Path) -> None:
    """Import a user's file now, and in every process that this one starts.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be imported; says why.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no plugin {path}.")
    path = path.resolve()
    _import(path)
    files = os.environ.get(_FILES, "").split(os.pathsep)
    if str(path) not in files:
        os.environ[_FILES] = os.pathsep.join(filter(None, [*files, str(path)]))


def load_plugins() -> None:
    """Import the files in $GEBT_PLUGINS, and what installed packages offer.

    Of the latter one that fails is told of in a warning: nobody asked for it.

    Raises:
        ValueError: if a file cannot be imported; says why.
    """
    for path in filter(None, os.environ.get(_FILES, "").split(os.pathsep)):
        _import(Path(path).resolve())
    for entry in entry_points(group="gebt.plugins"):
        try:
            entry.load()
        except Exception as error:
            name = f"{entry.name} ({entry.value})"
            warnings.warn(_failed(name, error), stacklevel=2)


def _import(path: Path) -> None:
    """Run a file once, as a module; warn if it registers nothing."""
    # Files of equal names in two folders are two modules.
    name = f"gebt_plugin_{path.stem}_{zlib.crc32(os.fsencode(path)):08x}"
    if name in sys.modules:
        return
    spec = spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"the plugin {path} is not a Python file.")
    if str(path.parent) not in sys.path:  # last: it may import what lies beside it
        sys.path.append(str(path.parent))
    before = len(_added)
    sys.modules[name] = module_from_spec(spec)
    try:
        spec.loader.exec_module(sys.modules[name])
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        frames = extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(path)]
        where = f"{path}, line {lines[-1]}," if lines else str(path)
        raise ValueError(_failed(where, error)) from error
    if len(_added) == before:
        warnings.warn(f"the plugin {path} registers nothing.", stacklevel=2)


def _failed(plugin: str, error: BaseException) -> str:
    return f"the plugin {plugin} failed: {type(error).__name__}: {error}"


def _at(home: str, *names: str) -> dict[str, str]:
    return dict.fromkeys(names, f"gebt.{home}")


MODELS: Registry[Any] = Registry(
    "model",
    _at("models.gcn", "gcn", "gcn-res")
    | _at("models.gat", "gat")
    | _at("models.gcn", "gin")
    | _at("models.sage", "sage")
    | _at("models.resgcn", "resgcn7", "resgcn14", "resgcn28"),
)
TASKS: Registry[Any] = Registry(
    "task",
    _at("learn.tasks", "node-classification", "multi-label", "link-prediction"),
)
CRITERIA: Registry[Any] = Registry(
    "criterion",
    _at("prune.criteria", "learned", "random", "degree", "low-degree", "similarity")
    | _at("prune.criteria", "k-neighbour")
    | _at("prune.forest", "forest")
    | _at("learn.criteria", "voi", "expected-gradient", "grow"),
)
ASK_A_MODEL = [name for name, home in CRITERIA.homes.items() if "learn" in home]
"""The criteria that ask a trained model; of a new one they learn nothing."""
DATASETS: Registry[Any] = Registry(
    "dataset",
    _at("datasets.digits", "digits")
    | _at("datasets.imports", "imports")
    | _at("datasets.planetoid", "cora", "citeseer", "pubmed")
    | _at("datasets.heterophilous", "tolokers", "minesweeper")
    | _at("datasets.ogb", "ogbn-arxiv", "ogbn-products", "ogbn-papers100m")
    | _at("datasets.ogb", "ogbl-collab")
    | _at("datasets.synthetic", "synthetic", "arxiv-like", "products-like"),
)
EXPERIMENTS: Registry[Any] = Registry(
    "experiment",
    {
        name: f"gebt.experiments.{name}"
        for name in ("fig1", "fig2", "fig4", "fig6", "table2")
        + ("frontier", "draws", "inductive", "units")
    },
)


def check_dataset(name: str) -> str:
    """As ``DATASETS.check``; ``synthetic:N=...`` and ``NAME:split=K`` are let through.

    Whether a graph has several splits is known where it is loaded.
    """
    kind, colon, rest = name.partition(":")
    if colon and kind.lower() == "synthetic":
        return name
    if re.fullmatch("split=[0-9]{1,9}", rest):
        return f"{DATASETS.check(kind)}:{rest}"
    return DATASETS.check(name)
