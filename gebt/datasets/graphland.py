"""GraphLand: graphs of industry (Bazhenov et al. 2025), those with classes of nodes.

A folder each of CSV files, with an info.yaml that says which columns are what. The
result is that of PyG's ``GraphLandDataset`` with its defaults: columns of numbers by
their quantiles, categories one-hot, gaps filled by what is most frequent, links both
ways. The seven data sets whose targets are numbers are left out: gebt knows no
regression; and so is the setting THI, whose training graph is another.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from gebt.datasets.cache import cached
from gebt.datasets.catalogue import Facts, fetch, register, told_as_corrupt
from gebt.datasets.raw import pairs
from gebt.files.columns import Column, read_columns
from gebt.graph import Graph, Metric, Split

SOURCE = "https://zenodo.org/records/16895532/files"
_TABLES = ("info.yaml", "features.csv", "targets.csv", "edgelist.csv")
_PARTS = ("train", "val", "test")
_SPLITS = ("RL", "RH", "TH")


def read_graphland(folder: Path) -> SimpleNamespace:
    """Put the files of a folder together as PyG's ``Data``, without a split.

    Returns:
        ``x`` (N, F) float32, ``y`` (N,) int64, -1 where a node has no label,
        ``edge_index`` (2, L) int64, each link once.

    Raises:
        ValueError: naming the file and what is wrong with it.
    """
    info = read_info((folder / "info.yaml").read_text(encoding="utf-8"))
    table = read_columns(folder / "features.csv")
    n = len(next(iter(table.values())))
    x = _features(info, table)
    target = info.get("target_name")
    targets = read_columns(folder / "targets.csv")
    if not isinstance(target, str) or target not in targets:
        raise ValueError(f"targets.csv lacks {target!r}, which info.yaml names")
    labels = _floats(target, targets[target])
    known = ~np.isnan(labels)
    if len(labels) != n or not known.any():
        raise ValueError(f"targets.csv has {known.sum()} labels for {n} nodes")
    y = np.full(n, -1, dtype=np.int64)
    y[known] = labels[known]
    if (y[known] != labels[known]).any() or (np.bincount(y[known]) == 0).any():
        raise ValueError(f"{target!r} of targets.csv holds no classes from 0 on")
    edges = [*read_columns(folder / "edgelist.csv").values()][:2]
    if len(edges) < 2 or {column.dtype for column in edges} != {np.dtype(np.int64)}:
        raise ValueError("edgelist.csv has no two columns of whole numbers")
    ends = pairs(np.stack(edges), n, "edgelist.csv")
    return SimpleNamespace(
        x=torch.from_numpy(x), y=torch.from_numpy(y), edge_index=torch.from_numpy(ends)
    )


def read_masks(path: Path, y: torch.Tensor) -> Split:
    """The labelled nodes of each part, from a file of three columns of truth values.

    Raises:
        ValueError: if it has others, or parts overlap or are empty.
    """
    table = read_columns(path)
    if not set(_PARTS) <= table.keys() or len(table["train"]) != len(y):
        raise ValueError(f"{path.name} has no columns train, val and test of {len(y)}")
    masks = np.stack([_truth(path.name, table[part]) for part in _PARTS])
    masks &= y.numpy() >= 0
    if (masks.sum(axis=0) > 1).any() or not masks.any(axis=1).all():
        raise ValueError(f"the parts of {path.name} overlap, or one is empty")
    return Split(*(torch.from_numpy(np.flatnonzero(mask)) for mask in masks))


def _truth(name: str, column: Column) -> np.ndarray:
    texts = np.array([str(cell).lower() for cell in column.tolist()])
    true = np.isin(texts, ("true", "1", "1.0"))
    if not (true | np.isin(texts, ("false", "0", "0.0"))).all():
        raise ValueError(f"{name} holds something else than True and False")
    return true


def read_info(text: str) -> dict[str, str | list[str]]:
    """The entries of an info.yaml: texts, and lists of texts in either of two forms.

    Not by a reader of all of YAML, which would be one more package.
    """
    info: dict[str, str | list[str]] = {}
    items: list[str] | None = None  # of the list that is open
    key, flow = "", ""
    for line in text.splitlines():
        line = line.strip()
        if flow:
            flow += f" {line}"
        elif line.startswith("- ") and items is not None:
            items.append(_plain(line[2:]))
            continue
        elif ":" in line and not line.startswith("#"):
            key, _, value = (each.strip() for each in line.partition(":"))
            info[key] = items = []
            if value.startswith("["):
                flow = value
            elif value:
                info[key], items = _plain(value), None
        if flow.endswith("]"):
            listed = map(_plain, flow[1:-1].split(","))
            info[key], flow = [item for item in listed if item], ""
    return info


def _plain(text: str) -> str:
    return text.strip().strip("'\"")


def _features(
    info: Mapping[str, str | list[str]], table: Mapping[str, Column]
) -> np.ndarray:
    """(N, F) float32: numbers by their quantiles, shares as they are, categories."""
    from sklearn.preprocessing import OneHotEncoder, QuantileTransformer

    shares, numbers, categories = (
        _listed(info, f"{kind}_features_names", table)
        for kind in ("fraction", "numerical", "categorical")
    )
    blocks: list[np.ndarray] = []
    if numbers := [name for name in numbers if name not in shares]:
        held = np.stack([_floats(name, table[name]) for name in numbers], axis=1)
        filled = _filled(held)
        quantiles = QuantileTransformer(
            n_quantiles=min(1000, len(held)),
            output_distribution="normal",
            subsample=None,
            random_state=0,
        ).fit(held)  # gaps have no part in them
        blocks.append(quantiles.transform(filled))
    if shares:
        held = np.stack([_floats(name, table[name]) for name in shares], axis=1)
        blocks.append(_filled(held))
    if categories:
        held = np.stack([_floats(name, table[name]) for name in categories], axis=1)
        if np.isnan(held).any() or (held != np.round(held)).any():
            raise ValueError("features.csv has a category that is no whole number")
        kind = OneHotEncoder(drop="if_binary", sparse_output=False, dtype=np.float32)
        blocks.append(kind.fit_transform(held.astype(np.int32)))
    if not blocks:
        raise ValueError("info.yaml names no features")
    x = np.concatenate(blocks, axis=1).astype(np.float32)
    if not np.isfinite(x).all():
        raise ValueError("features.csv holds a number past the range of float32")
    return x


def _listed(
    info: Mapping[str, str | list[str]], key: str, table: Mapping[str, Column]
) -> Sequence[str]:
    names = info.get(key, [])
    if isinstance(names, str) or not set(names) <= table.keys():
        raise ValueError(f"features.csv lacks what info.yaml lists as {key}")
    return names


def _floats(name: str, column: Column) -> np.ndarray:
    """float32, NaN where a cell is empty."""
    if column.dtype != object:
        return column.astype(np.float32)
    try:
        return np.array([cell or "nan" for cell in column.tolist()], dtype=np.float32)
    except ValueError as error:
        raise ValueError(f"the column {name!r} holds text: {error}") from error


def _filled(held: np.ndarray) -> np.ndarray:
    """Gaps filled by the column's most frequent value, the least of several."""
    from sklearn.impute import SimpleImputer

    if np.isnan(held).all(axis=0).any():
        raise ValueError("features.csv has a column that is empty throughout")
    return SimpleImputer(strategy="most_frequent").fit_transform(held)


def _register(name: str, about: str, metric: Metric, temporal: bool = True) -> None:
    splits = _SPLITS if temporal else _SPLITS[:2]
    files = (*_TABLES, *(f"split_masks_{split}.csv" for split in splits))
    at = f"{name}/raw/{name}"
    facts = Facts(
        group="GraphLand",
        task="node-classification",
        metric=metric,
        split="published: RL, of each class 10% to train, 10% to validate, 80% to "
        "test; RH, 50%, 25%, 25%" + "; TH, the same shares by time" * temporal,
    )

    @register(
        name,
        about=about,
        files=[f"{at}/{file}" for file in files],
        named=splits,
        facts=facts,
    )
    def read(root: Path, split: str) -> Graph:
        folder = root / at
        fetch(root, name, [f"{at}/{file}" for file in files], f"{SOURCE}/{name}.zip")
        with told_as_corrupt(name, folder):
            parse = partial(_parsed, name, metric, folder)
            graph = cached(folder, _TABLES, name, parse)
            assert graph.y is not None
            masks = read_masks(folder / f"split_masks_{split}.csv", graph.y)
        return replace(graph, split=masks)


def _parsed(name: str, metric: Metric, folder: Path) -> Graph:
    data = read_graphland(folder)
    return Graph.from_pyg(data, directed=False, name=name, metric=metric)


_register("hm-categories", "46,563 products, 10.7 M pairs", "accuracy")
_register("pokec-regions", "1,632,803 people, 22.3 M friends", "accuracy")
_register("web-topics", "2,890,331 sites, 12.9 M links", "accuracy")
_register("tolokers-2", "11,758 workers, 519,000 pairs", "AP")
_register("city-reviews", "148,801 users, 1,165,415 pairs", "AP", temporal=False)
_register("artnet-exp", "50,405 artists, 280,348 links", "AP")
_register("web-fraud", "2,890,331 sites, 12.9 M links", "AP")
