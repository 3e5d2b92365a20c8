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
    | _at("models.resgcn", "resgcn7", "resgcn14", "resgcn28")
    | _at("models.supernet", "super", "super-res"),
)
SUPERNETS = [name for name, home in MODELS.homes.items() if "supernet" in home]
"""The models of which a search leaves a part: `find_super_ticket`."""
TASKS: Registry[Any] = Registry(
    "task",
    _at("learn.tasks", "node-classification", "multi-label", "link-prediction")
    | _at("learn.ordinal", "ordinal", "regression", "hierarchical")
    | _at("learn.classes", "node-classification-among"),
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
    | _at("datasets.heterophilous", "roman-empire", "amazon-ratings", "minesweeper")
    | _at("datasets.heterophilous", "tolokers", "questions", "chameleon-filtered")
    | _at("datasets.heterophilous", "squirrel-filtered", "actor")
    | _at("datasets.shchur", "amazon-computers", "amazon-photo")
    | _at("datasets.shchur", "coauthor-cs", "coauthor-physics")
    | _at("datasets.wikics", "wikics")
    | _at("datasets.ppi", "ppi")
    | _at("datasets.reddit", "reddit")
    | _at("datasets.graphland", "hm-categories", "pokec-regions", "web-topics")
    | _at("datasets.graphland", "tolokers-2", "city-reviews", "artnet-exp")
    | _at("datasets.graphland", "web-fraud")
    | _at("datasets.ogb", "ogbn-arxiv", "ogbn-products", "ogbn-papers100m")
    | _at("datasets.ogb", "ogbl-collab")
    | _at("datasets.synthetic", "synthetic", "arxiv-like", "products-like"),
)
EXPERIMENTS: Registry[Any] = Registry(
    "experiment",
    {
        name: f"gebt.experiments.{name}"
        for name in ("fig1", "fig2", "fig4", "fig6", "table2")
        + (
            "frontier",
            "draws",
            "inductive",
            "units",
            "sweep",
            "supertickets",
            "ksm",
            "ordinal",
            "family",
        )
    }
    | _at("experiments.eb_train", "eb-train")
    | _at("experiments.gem_miner", "gem-miner"),
)


TABLE = re.compile(r"(.+?\.(?:parquet|(?:csv|tsv)(?:\.gz)?))(?::(.*))?", re.DOTALL)
"""The path of an edge list, and what follows a colon."""
TABLE_OPTIONS = ("nodes", "label", "directed", "metric", "split")


def parse_table(name: str) -> tuple[str, dict[str, str]] | None:
    """An edge list's path and its options; None of what is no path of a table.

    Such as ``"edges.csv:nodes=nodes.csv,label=class,directed=yes,metric=AP,split=3"``:
    options are in any order, and all may be left out but the nodes.

    Raises:
        ValueError: if an option is not known, given twice or empty.
    """
    match = TABLE.fullmatch(name)
    if match is None:
        return None
    options: dict[str, str] = {}
    # A comma before no key is a part of the value.
    for item in re.split(",(?=[a-z]+=)", match[2]) if match[2] else []:
        key, _, value = item.partition("=")
        if key not in TABLE_OPTIONS or key in options or not value:
            raise ValueError(
                f"{item!r} of {name!r} is no option, or given twice: an edge list is "
                f"named by its path and, after a colon, any of {_KEYS}."
            )
        options[key] = value
    return match[1], options


_KEYS = ",".join(f"{option}=…" for option in TABLE_OPTIONS)


def check_dataset(name: str) -> str:
    """As ``DATASETS.check``; three more forms are let through.

    These are ``synthetic:N=...``, ``NAME:split=K`` and the paths of `parse_table`.
    Whether a graph has several splits, and whether a file is there, is known where it
    is loaded.
    """
    kind, colon, rest = name.partition(":")
    if colon and kind.lower() == "synthetic":
        return name
    if parse_table(name):
        return name
    if re.fullmatch("split=([0-9]{1,9}|[A-Z]{1,9})", rest):
        return f"{DATASETS.check(kind)}:{rest}"
    try:
        return DATASETS.check(name)
    except ValueError as error:
        if not re.search(r"[/\\]|\.\w+$", kind):
            raise
        hint = "The path of an edge list ends in .parquet, .csv, .tsv, or these .gz."
        raise ValueError(f"{error} {hint}") from None
