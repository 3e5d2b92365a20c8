"""Graphs of users, by the paths of two tables."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gebt._checks import check_choice
from gebt.files.columns import read_columns
from gebt.graph import Graph, Metric


def load_table(
    edges: str, options: Mapping[str, str], root: Path, split: int | str | None = None
) -> Graph:
    """The graph of an edge list and a node table, named by the paths of both.

    Args:
        edges: path of the list, from here or from the root.
        options: as `parse_table` gives them.
        root: folder of the datasets.
        split: seed of the split that is drawn, where the nodes have none.

    Raises:
        ValueError: if something in a file does not fit; says where.
        FileNotFoundError: if a file is neither here nor below the root.
    """
    given = dict(options)
    if "nodes" not in given:
        raise ValueError(
            f"{edges} is an edge list: name the table of its nodes, too, as in "
            f"{edges}:nodes=nodes.csv,label=class (`--nodes`, `--label`)."
        )
    if split is not None:
        if given.get("split", str(split)) != str(split):
            raise ValueError(f"`split` is {split}, but the name says {given['split']}.")
        given["split"] = str(split)
    if not given.get("split", "0").isdecimal():
        raise ValueError(f"`split` must be a whole number, got {given['split']!r}.")
    if given.get("directed", "no") not in ("yes", "no"):
        raise ValueError(f"`directed` must be yes or no, got {given['directed']!r}.")
    metric: Any = given.get("metric", "accuracy")
    check_choice("metric", metric, Metric)
    said = ",".join(f"{option}={value}" for option, value in given.items())
    tables = [read_columns(_found(path, root)) for path in (edges, given["nodes"])]
    try:
        return Graph.from_tables(
            *tables,
            label=given.get("label"),
            directed=given.get("directed") == "yes",
            seed=int(given["split"]) if "split" in given else None,
            name=f"{edges}:{said}",
            metric=metric,
        )
    except ValueError as error:
        raise ValueError(f"{edges} and {given['nodes']}: {error}") from error


def _found(path: str, root: Path) -> Path:
    for place in (Path(path), root / path):
        if place.is_file():
            return place
    raise FileNotFoundError(
        f"there is no file {path}, neither here nor below {root.absolute()}."
    )
