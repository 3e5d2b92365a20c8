"""Graphs by name: ``load(name, root)``, and ``register`` for one's own."""

import hashlib
import logging
import os
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

from gebt._registry import DATASETS, check_dataset, parse_table
from gebt.datasets.download import fetch_archive
from gebt.datasets.own import load_table
from gebt.datasets.raw import reason
from gebt.files import write_bytes
from gebt.graph import Graph

_log = logging.getLogger("gebt")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of a dataset before it is loaded; "" is what nobody said.

    Attributes:
        group: under which heading ``gebt datasets`` lists it.
        task: what is learned, one of `gebt.learn.tasks`.
        metric: how that is scored, as those who published it do.
        split: who made the split, and how.
        tuned: the test score of a tuned dense model in the literature, percent.
        tuned_by: which model that is, and whose.
    """

    group: str = "registered by plugins"
    task: str = ""
    metric: str = ""
    split: str = ""
    tuned: float | None = None
    tuned_by: str = ""


@dataclass(frozen=True)
class Dataset:
    """A graph that `load` knows.

    Attributes:
        name: what `load` calls it.
        about: size and source in a few words.
        files: paths below the root that it is read from; none for built-in ones.
        read: makes the graph, given the root and, where there are several, the split.
        sized: makes another of its kind, given what follows a colon.
        splits: how many it has.
        facts: what else is known of it before it is loaded.
        named: splits of different kinds, by name, of which the first is the default;
            there is one of each.
    """

    name: str
    about: str
    files: tuple[str, ...]
    read: Callable[..., Graph]
    sized: Callable[[str], Graph] | None = None
    splits: int = 1
    facts: Facts = Facts()
    named: tuple[str, ...] = ()

    def check_split(self, split: int | str) -> None:
        """Raise a ValueError unless it has a split of that number, or of that name."""
        if self.named:
            if split not in self.named:
                raise ValueError(
                    f"`split` must be one of {', '.join(self.named)}, by the name of "
                    f"the graph, as {self.name}:split={self.named[-1]}, got {split!r}."
                )
            return
        if self.splits == 1:
            raise ValueError(f"{self.name!r} has one split only: leave out which.")
        if split not in range(self.splits):  # "3" is none of them
            raise ValueError(
                f"a split must be one of the {self.splits} of {self.name!r}, 0 to "
                f"{self.splits - 1}, got {split!r}."
            )

    def on_disk(self, root: Path) -> bool:
        """Whether `load` needs no network."""
        return all((root / file).is_file() for file in self.files)


def find_root(root: str | Path | None = None) -> Path:
    """The folder that holds datasets: ``root``, else $GEBT_DATA, else ./data."""
    return Path(root or os.environ.get("GEBT_DATA") or "data")


def load(
    name: str, root: str | Path | None = None, *, split: int | str | None = None
) -> Graph:
    """Load a graph by name, downloading it where it is not on disk.

    Features of the Planetoid graphs are row-normalised. OGB's graphs, which take long
    to parse, and ``products-like``, which takes long to draw, are kept in the root as
    `gebt-cache.safetensors` and mapped from then on. A read-only root works.

    Args:
        name: one of `DATASETS`, in any case; ``"synthetic"`` takes sizes, as in
            ``"synthetic:N=2000,E=9000,F=64,C=10,split=54-18-28,seed=0"``, of which
            any may be left out. Or the path of an edge list, .parquet, .csv, .tsv or
            these .gz, from here or from the root, with what else it needs, as in
            ``"edges.csv:nodes=nodes.csv,label=class"``; see `Graph.from_tables`.
        root: folder of the datasets; by default $GEBT_DATA, else ``./data``.
        split: which of several a graph is to have, from 0 on; the graph's name then
            says it, as ``"tolokers:split=3"``, which is another way to ask for it. By
            default the first. GraphLand's have names, ``"artnet-exp:split=RH"``.

    Raises:
        ValueError: if there is no graph of that name, it has no such split, or its
            files are corrupt.
        FileNotFoundError: if it is not on disk and cannot be downloaded; says which
            files to put where.
    """
    if table := parse_table(name):
        return load_table(*table, find_root(root), split)
    kind, colon, rest = check_dataset(name).partition(":")
    dataset = DATASETS.find(kind)
    if colon and dataset.sized:
        if split is not None:
            dataset.check_split(split)
        return dataset.sized(rest)
    if colon:
        said = rest.partition("=")[2]
        named = int(said) if said.isdecimal() else said
        if split not in (None, named):
            raise ValueError(f"`split` is {split}, but the name is {name!r}.")
        split = named
    if split is not None:
        dataset.check_split(split)
        split = split if isinstance(split, str) else int(split)
    several: tuple[int | str, ...] = ()
    if dataset.splits > 1 or dataset.named:
        several = (split or (dataset.named or (0,))[0],)
    graph = dataset.read(find_root(root), *several)
    if not isinstance(graph, Graph):
        raise ValueError(
            f"what is registered as the dataset {dataset.name!r} must give a "
            f"gebt.Graph, gave a {type(graph).__name__}. Make one of PyG's data with "
            "gebt.Graph.from_pyg."
        )
    # The ticket's name of its graph: `load` must find it again.
    called = dataset.name if split is None else f"{dataset.name}:split={split}"
    return graph if graph.name == called else replace(graph, name=called)


def facts_of(name: str) -> Facts:
    """What is known of a graph of that name; nothing of a path."""
    if parse_table(name):
        return Facts()
    return DATASETS.find(name.partition(":")[0]).facts


def find_missing(name: str, root: str | Path | None) -> Dataset | None:
    """The dataset of a name if `load` would have to download it, else None."""
    if parse_table(name):
        return None
    dataset = DATASETS.find(check_dataset(name).partition(":")[0])
    return None if dataset.on_disk(find_root(root)) else dataset


def splits_of(name: str) -> int:
    """How many splits a graph of that name has; 1 where the name says which."""
    if parse_table(name) or ":" in name:
        return 1
    return DATASETS.find(name).splits


def register(
    name: str,
    *,
    about: str,
    files: Sequence[str] = (),
    splits: int = 1,
    named: Sequence[str] = (),
    facts: Facts | None = None,
) -> Callable[[Callable[..., Graph]], Callable[..., Graph]]:
    """A decorator of a function ``(root) -> Graph`` that `load` then knows by a name.

    The graph takes that name, by which a ticket finds it again. In a file that
    ``--plugin`` names, the commands know it too::

        @gebt.datasets.register("mine", about="5,000 papers of mine")
        def mine(root: Path) -> gebt.Graph:
            return gebt.Graph.from_pyg(read_papers(root / "mine"))

    Args:
        name: what `load` calls it: lower-case letters, digits, and ``.``, ``_``, ``-``.
        about: size and source in a few words, for ``gebt datasets``.
        files: paths below the root that it is read from; none for what is drawn.
        splits: how many it has; of several the function is given the number of one,
            ``(root, split) -> Graph``, from 0 on.
        named: or splits of different kinds, in capitals; the function is given a name.
        facts: what else ``gebt datasets`` is to tell.

    Raises:
        ValueError: if the name is one of gebt's own, or holds other letters.
    """

    def add(read: Callable[..., Graph]) -> Callable[..., Graph]:
        told = facts or Facts()
        dataset = Dataset(
            name, about, tuple(files), read, None, splits, told, tuple(named)
        )
        DATASETS.add(name, dataset, read.__module__)
        return read

    return add


def read_published(
    root: Path,
    title: str,
    files: Mapping[str, str | None],
    source: str,
    parse: Callable[..., SimpleNamespace],
) -> SimpleNamespace:
    """Parse the files of a graph, downloading those that are missing from the source.

    Each has its published SHA-256, or None where that is not known; which are not those
    that were published is told of.
    """
    fetch(root, title, files, source)
    contents = [(root / file).read_bytes() for file in files]
    raw = root / title / "raw"
    with told_as_corrupt(title, raw):
        data = parse(*contents)
    others = [
        Path(file).name
        for (file, digest), content in zip(files.items(), contents, strict=True)
        if digest and hashlib.sha256(content).hexdigest() != digest
    ]
    if others:
        _log.warning(
            "not the published file: %s in %s. It passed all checks of form; its "
            "contents are another's.",
            ", ".join(others),
            raw,
        )
    return data


@contextmanager
def told_as_corrupt(title: str, folder: Path) -> Iterator[None]:
    """Whatever fails inside, for readers fail in many ways, is one ValueError."""
    try:
        yield
    except Exception as error:
        raise ValueError(
            f"the files of {title} in {folder} are truncated or corrupt "
            f"({reason(error)}). Delete them to download again."
        ) from error


def fetch(root: Path, title: str, files: Iterable[str], source: str) -> None:
    """Download the files that are missing, or their archive, or say what to put where.

    Not by PyG's classes: they load ``processed/*.pt``, which may hold any code, and
    leave the first part of a file where a download breaks off.
    """
    missing = [file for file in files if not (root / file).is_file()]
    try:
        if missing and source.endswith(".zip"):
            raw = root / title / "raw"
            if raw.is_dir():
                raw.rmdir()  # which holds nothing: no file of another is replaced
            fetch_archive(source, root / title, "", raw)
            missing = []
        for file in missing:
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            url = f"{source}/{Path(file).name}"
            with urllib.request.urlopen(url, timeout=60) as answer:
                write_bytes(root / file, answer.read())
            _log.info("downloaded %s", url)
    except Exception as error:
        for folder in (root / title / "raw", root / title):
            with suppress(OSError):  # only what the attempt left empty
                folder.rmdir()
        page = source.replace("/raw/", "/tree/", 1)
        raise FileNotFoundError(
            f"{title} is not in {root.absolute()} and could not be downloaded "
            f"({type(error).__name__}). Put these files of {page} there: "
            f"{', '.join(missing)}. Another folder: --root, or $GEBT_DATA."
        ) from error
