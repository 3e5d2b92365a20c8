"""A graph from a table of its edges and a table of its nodes, whoever holds them."""

import logging
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gebt.graph.splits import stratified

Column = NDArray[Any]
_log = logging.getLogger("gebt")
_PARTS = {"train": "train", "val": "val", "valid": "val", "validation": "val"}
_PARTS |= {"test": "test"}
_SHOWN = 20
"""Classes that a line names."""


def read_tables(
    edges: Any, nodes: Any, label: str | None, seed: int | None
) -> tuple[SimpleNamespace, dict[str, Any] | None]:
    """PyG's data and the split of `Graph.from_tables`."""
    links, table = _columns("edges", edges), _columns("nodes", nodes)
    names = {name.lower(): name for name in links}
    if {"source", "target"} <= names.keys():
        ends = [names["source"], names["target"]]
    else:
        ends = [*links][:2]
    if len(ends) < 2:
        raise ValueError(
            f"`edges` has one column, {ends[0]!r}: it needs two, source and target, "
            "one row for each edge."
        )
    roles = {name.lower(): name for name in reversed([*table])}
    of_id = roles.get("id") or roles.get("node") or next(iter(table))
    of_split = roles.get("split")
    if label is not None and label not in table:
        near = get_close_matches(label, table, n=1)
        raise ValueError(
            f"`label` is {label!r}, but the nodes' columns are {_listed(table)}."
            + (f" Did you mean {near[0]!r}?" if near else "")
        )
    aside = {of_id, of_split, label}
    features = {name: held for name, held in table.items() if name not in aside}
    data = SimpleNamespace(
        x=_features(features),
        edge_index=_places({end: links[end] for end in ends}, of_id, table[of_id]),
    )
    if "weight" in names and names["weight"] not in ends:
        weight = names["weight"]
        data.edge_weight = torch.from_numpy(_numbers("edges", weight, links[weight]))
    y = None
    if label is not None:
        y = _classes(label, table[label])
        data.y = torch.from_numpy(y)
    split: dict[str, Any] | None = None
    if of_split is not None:
        if seed is not None:
            raise ValueError(
                f"a split was asked for by number, {seed}, but the nodes have one in "
                f"their column {of_split!r}. Leave either out."
            )
        split = _split(of_split, table[of_split], y)
    elif y is not None:
        split = stratified(y, seed or 0)
        sizes = ", ".join(f"{part} {nodes.numel():,}" for part, nodes in split.items())
        _log.info(
            "split at random, 60%%, 20%% and 20%% of each class, by the seed %d: %s",
            seed or 0,
            sizes,
        )
    return data, split


def _columns(what: str, table: Any) -> dict[str, Column]:
    """Of a mapping of columns, or of a frame of pandas, polars or pyarrow."""
    names = getattr(table, "column_names", None)  # pyarrow
    if names is None:
        names = getattr(table, "columns", None)  # pandas, polars
    if names is None and isinstance(table, Mapping):
        names = list(table)
    if names is None:
        raise ValueError(
            f"`{what}` must be a table: a mapping of columns, or a frame of pandas, "
            f"polars or pyarrow; got a {type(table).__name__}."
        )
    columns = {str(name): np.asarray(table[name]) for name in names}
    if len(columns) < len(names):
        raise ValueError(f"`{what}` has two columns of one name: {_listed(names)}.")
    if not columns:
        raise ValueError(f"`{what}` has no columns.")
    lengths = {name: len(held) if held.ndim else 0 for name, held in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"the columns of `{what}` differ in length: {lengths}.")
    if not max(lengths.values()):
        raise ValueError(f"`{what}` has no rows.")
    return columns


def _listed(names: Sequence[Any] | Mapping[str, Any]) -> str:
    shown = [str(name) for name in names]
    more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    return ", ".join(shown[:_SHOWN]) + more


def _features(columns: Mapping[str, Column]) -> torch.Tensor:
    """(N, F) float32 of the columns that hold numbers; the texts are named."""
    texts = [n for n, held in columns.items() if held.dtype.kind not in "iufb"]
    numbers = [n for n in columns if n not in texts]
    for name in list(texts):
        column = columns[name]
        if any(_is_number(each) for each in column):
            numbers.append(name)  # `_numbers` says which is none
            texts.remove(name)
    parts = [_numbers("nodes", name, columns[name]) for name in numbers]
    if texts:
        _log.info("columns of text are no features: %s", _listed(texts))
    if not parts:
        raise ValueError(
            "the nodes have no column of numbers, besides id, label and split, to take "
            "as features. Give them one: of ones, or their degree."
        )
    blocks = [part.reshape(len(part), -1) for part in parts]
    return torch.from_numpy(np.concatenate(blocks, axis=1))


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return not isinstance(value, str) or any(map(str.isdigit, value))  # no "nan"


def _numbers(what: str, name: str, column: Column) -> NDArray[np.float32]:
    """The column as float32, finite; refuse the first cell that is no number."""
    if column.dtype.kind not in "iufb":
        for row, value in enumerate(column.tolist(), 1):
            if not _is_number(value):
                raise _unfit(what, name, value, row, "where numbers belong")
        column = column.astype(np.float64)
    with np.errstate(over="ignore"):
        narrow = column.astype(np.float32)
    fine = np.isfinite(narrow).reshape(len(narrow), -1).all(axis=1)
    if not fine.all():
        row = int(np.flatnonzero(~fine)[0])
        why = "which is missing or no finite number in float32"
        raise _unfit(what, name, column[row].tolist(), row + 1, why)
    return narrow


def _unfit(what: str, name: str, value: Any, row: int, why: str) -> ValueError:
    return ValueError(
        f"the {what}' column {name!r} has {value!r} in row {row}, {why}. Fill, drop or "
        "leave out what is no number."
    )


def _places(ends: Mapping[str, Column], of_id: str, ids: Column) -> torch.Tensor:
    """(2, E) int64: of each end of an edge, the row of its node."""
    known = _named("nodes", of_id, ids)
    given = [_named("edges", end, column) for end, column in ends.items()]
    for (end, _), column in zip(ends.items(), given, strict=True):
        if (column.dtype == object) != (known.dtype == object):
            raise ValueError(
                f"the edges' column {end!r} names nodes as {_plain(column[0])!r}, the "
                f"nodes' column {of_id!r} as {_plain(known[0])!r}: one is text, the "
                "other a number."
            )
    if known.dtype == object:
        places = [*_places_of_texts(known, given)]
    else:
        places = [*_places_of_numbers(known, given)]
    for (end, _), column, place in zip(ends.items(), given, places, strict=True):
        unknown = np.flatnonzero(place < 0)
        if unknown.size:
            row = unknown[0]
            raise ValueError(
                f"{unknown.size:,} of the edges' column {end!r} name nodes that the "
                f"nodes' column {of_id!r} lacks, the first {_plain(column[row])!r} in "
                f"row {row + 1}."
            )
    return torch.from_numpy(np.stack(places))


def _named(what: str, name: str, column: Column) -> Column:
    """Names of nodes: int64, or objects that are each a str."""
    if column.ndim != 1:
        raise ValueError(f"the {what}' column {name!r} holds vectors, no names.")
    if column.dtype.kind in "iu":
        return column.astype(np.int64)
    if column.dtype.kind == "f":
        whole = column == np.round(column)
        if not whole.all():
            row = int(np.flatnonzero(~whole)[0])
            raise ValueError(
                f"the {what}' column {name!r} has {_plain(column[row])!r} in row "
                f"{row + 1}, where the name of a node belongs: a whole number, or text."
            )
        return column.astype(np.int64)
    texts = column.astype(object)
    for row, value in enumerate(texts.tolist(), 1):
        if not isinstance(value, str) or not value:
            raise ValueError(
                f"the {what}' column {name!r} has {value!r} in row {row}, where the "
                "name of a node belongs: all text, or all whole numbers."
            )
    return texts


def _places_of_texts(known: Column, given: Sequence[Column]) -> list[Column]:
    place: dict[str, int] = {}
    for row, name in enumerate(known.tolist()):
        if place.setdefault(name, row) != row:
            raise _twice(name, place[name], row)
    return [
        np.fromiter((place.get(n, -1) for n in c.tolist()), np.int64, len(c))
        for c in given
    ]


def _places_of_numbers(known: Column, given: Sequence[Column]) -> list[Column]:
    order = np.argsort(known, kind="stable")
    ranked = known[order]
    same = np.flatnonzero(ranked[1:] == ranked[:-1])
    if same.size:
        raise _twice(ranked[same[0]], *order[same[0] : same[0] + 2])
    found = []
    for column in given:
        at = np.searchsorted(ranked, column).clip(max=ranked.size - 1)
        found.append(np.where(ranked[at] == column, order[at], -1))
    return found


def _plain(value: Any) -> Any:
    """As it is written, not as NumPy's."""
    return value.item() if isinstance(value, np.generic) else value


def _twice(name: Any, row: int, again: int) -> ValueError:
    return ValueError(
        f"the node {_plain(name)!r} is in the node table twice, in row {row + 1} and "
        f"in row {again + 1}."
    )


def _classes(label: str, column: Column) -> NDArray[np.int64]:
    """(N,) int64: the labels' order, -1 where a node has none; what it is, is told."""
    if column.ndim != 1:
        raise ValueError(f"the label column {label!r} holds vectors, not classes.")
    if column.dtype.kind == "f":
        missing = np.isnan(column)
        odd = np.flatnonzero(~missing & (column != np.round(column)))
        if odd.size:
            raise ValueError(
                f"the label column {label!r} has {_plain(column[odd[0]])!r} in row "
                f"{odd[0] + 1}: classes are whole numbers or text."
            )
        values = np.where(missing, -1, column).astype(np.int64)
    elif column.dtype.kind in "iub":
        values = column.astype(np.int64)
    else:
        texts = np.array([_text(value) for value in column.tolist()], dtype=object)
        missing = texts == ""
        values = texts
        if all(text.isdecimal() for text in texts[~missing]):
            values = np.where(missing, "-1", texts).astype(np.int64)
    missing = values == "" if values.dtype == object else values < 0
    if missing.all():
        raise ValueError(f"the label column {label!r} has no label in any row.")
    known = sorted(set(values[~missing].tolist()))
    y = np.full(len(values), -1, dtype=np.int64)
    if values.dtype == object:
        number = {name: place for place, name in enumerate(known)}
        y[~missing] = [number[name] for name in values[~missing].tolist()]
    else:
        y[~missing] = np.searchsorted(np.array(known), values[~missing])
    if known != [*range(len(known))]:
        named = [f"{place} = {name}" for place, name in enumerate(known)]
        _log.info("classes of %r: %s", label, _listed(named))
    if missing.any():
        _log.info("%d nodes have no label: they are in no part", missing.sum())
    return y


def _text(value: Any) -> str:
    """A label as text; "" for what stands for none in any of the libraries."""
    text = str(value).strip()
    missing = not isinstance(value, str) and text in ("None", "nan", "<NA>")
    return "" if missing else text


def _split(name: str, column: Column, y: Column | None) -> dict[str, Any]:
    parts: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    for row, value in enumerate(column.tolist()):
        text = _text(value).lower()
        if text and text not in _PARTS:
            raise ValueError(
                f"the nodes' column {name!r} has {value!r} in row {row + 1}: it must "
                "be train, val or test, or empty for a node that is in no part."
            )
        if text:
            parts[_PARTS[text]].append(row)
    if not parts["train"]:
        raise ValueError(f"the nodes' column {name!r} has no node to train on.")
    split = {part: np.array(rows, dtype=np.int64) for part, rows in parts.items()}
    for part, rows in split.items():
        if y is not None and (y[rows] < 0).any():
            row = rows[y[rows] < 0][0]
            raise ValueError(
                f"the node in row {row + 1} is in the part {part!r} but has no label."
            )
    return split
