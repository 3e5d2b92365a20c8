"""The eight raw files of a Planetoid graph (Yang et al. 2016), read and checked.

The result is that of ``torch_geometric.io.read_planetoid_data``, with two differences:
no file can run code, and files that do not fit together are refused instead of read out
of bounds.
"""

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from gebt.datasets.raw import (
    MOST_CELLS,
    Sparse,
    check_range,
    distinct,
    reason,
    unpickle,
)

_VALIDATION = 500  # nodes after the labelled ones, in the public split


def read_planetoid(name: str, contents: Mapping[str, bytes]) -> SimpleNamespace:
    """Put the graph together as PyG's ``Data``, undirected.

    Args:
        name: the graph, as in the names of its files.
        contents: of each of `PARTS`.

    Returns:
        ``x`` (N, F) float32, ``y`` (N,) int64, ``edge_index`` (2, E) int64 in both
        directions without self-loops or duplicates, ``train_mask``, ``val_mask`` and
        ``test_mask`` (N,) of the public split.

    Raises:
        ValueError: naming the file and what is wrong with it.
    """
    part: dict[str, Any] = {}
    for file, parse in _PARSERS.items():
        try:
            part[file] = parse(contents[file])
        except Exception as error:
            # A garbled pickle ends in any of a dozen exceptions.
            raise ValueError(f"ind.{name}.{file} {reason(error)}") from error
    try:
        return _join(**{file.replace(".", "_"): value for file, value in part.items()})
    except ValueError as error:
        raise ValueError(f"ind.{name}.{error}") from error


def _join(
    *,
    x: np.ndarray,
    tx: np.ndarray,
    allx: np.ndarray,
    y: np.ndarray,
    ty: np.ndarray,
    ally: np.ndarray,
    graph: tuple[np.ndarray, np.ndarray, int],
    test_index: np.ndarray,
) -> SimpleNamespace:
    """The whole graph; a message of the errors begins with the file's last name."""
    for rows, of, given in ((x, "y", y), (tx, "ty", ty), (allx, "ally", ally)):
        if len(rows) != len(given):
            raise ValueError(f"{of} has {len(given)} rows for {len(rows)} nodes")
    for file, features, labels in (("x", x, y), ("tx", tx, ty)):
        if features.shape[1] != allx.shape[1]:
            wide = features.shape[1]
            raise ValueError(f"{file} has {wide} features; allx has {allx.shape[1]}")
        if labels.shape[1] != ally.shape[1]:
            wide = labels.shape[1]
            raise ValueError(f"{file[:-1]}y has {wide} classes; ally {ally.shape[1]}")

    # Nodes: those of allx, then those from the first to the last of test.index. In
    # CiteSeer no file describes some of the latter: no features, and the first class.
    known, source, target, n = len(ally), *graph
    if len(test_index) != len(ty):
        raise ValueError(f"test.index has {len(test_index)} nodes, tx {len(ty)}")
    if len(distinct(test_index)) != len(ty) or test_index.min() != known:
        raise ValueError(f"test.index names a node twice, or does not begin at {known}")
    if test_index.max() + 1 != n:
        raise ValueError(
            f"test.index ends at {test_index.max()}; the graph has {n} nodes"
        )
    if n * allx.shape[1] > MOST_CELLS:
        raise ValueError(
            f"allx claims {allx.shape[1]} features for {n} nodes: too many"
        )
    if len(y) + _VALIDATION > known:
        raise ValueError(
            f"ally has {known} nodes, too few for {len(y)} to train and {_VALIDATION} "
            "to validate on"
        )
    all_x = np.zeros((n, allx.shape[1]), dtype=np.float32)
    all_x[:known], all_x[test_index] = allx, tx
    all_y = np.zeros(n, dtype=np.int64)
    all_y[:known], all_y[test_index] = ally.argmax(axis=1), ty.argmax(axis=1)

    proper = source != target
    there = distinct(target[proper] * n + source[proper])
    if not np.array_equal(there, distinct(source[proper] * n + target[proper])):
        raise ValueError("graph lists a link in one direction only")
    if not there.size:
        raise ValueError("graph has no links")
    masks = np.zeros((3, n), dtype=bool)
    masks[0, : len(y)] = masks[1, len(y) : len(y) + _VALIDATION] = True
    masks[2, test_index] = True
    train, val, test = torch.from_numpy(masks)
    return SimpleNamespace(
        x=torch.from_numpy(all_x),
        y=torch.from_numpy(all_y),
        edge_index=torch.from_numpy(np.stack([there % n, there // n])),
        train_mask=train,
        val_mask=val,
        test_mask=test,
    )


def _features(content: bytes) -> np.ndarray:
    value = unpickle(content)
    if not isinstance(value, Sparse):
        raise ValueError(f"holds a {type(value).__name__}, not a csr matrix")
    return value.to_dense()


def _classes(content: bytes) -> np.ndarray:
    """(n, C): the one entry of 1 in each row is the node's class."""
    value = unpickle(content)
    if not isinstance(value, np.ndarray) or value.ndim != 2:
        raise ValueError(f"holds a {type(value).__name__}, not a table of classes")
    one = value == 1
    if not (one | (value == 0)).all() or (one.sum(axis=1) != 1).any():
        raise ValueError("does not give each node one class: a 1 among zeros")
    return one


def _neighbours(content: bytes) -> tuple[np.ndarray, np.ndarray, int]:
    """Each entry's source and target, and how many nodes there are: all are keys."""
    value = unpickle(content)
    if type(value) is not dict or not set(map(type, value.values())) <= {list}:
        raise ValueError("holds no dict of lists of neighbours")
    lengths = [len(listed) for listed in value.values()]
    # An entry takes a byte; a list that is listed many times takes them once.
    if sum(lengths) > len(content):
        raise ValueError(f"has {sum(lengths)} neighbours in {len(content)} bytes")
    flat = [neighbour for listed in value.values() for neighbour in listed]
    if not set(map(type, flat)) | set(map(type, value)) <= {int}:
        raise ValueError("names a node by something that is not an integer")
    n = len(value)
    nodes = np.array(list(value), dtype=np.int64)
    target = np.array(flat, dtype=np.int64)
    check_range(nodes, n, "node")
    check_range(target, n, "node")
    return np.repeat(nodes, lengths), target, n


def _numbers(content: bytes) -> np.ndarray:
    words = content.split()
    if not words or not all(word.isdigit() and len(word) < 10 for word in words):
        raise ValueError("holds something else than node numbers")
    return np.array([int(word) for word in words])


_PARSERS: dict[str, Callable[[bytes], Any]] = {
    "x": _features,
    "tx": _features,
    "allx": _features,
    "y": _classes,
    "ty": _classes,
    "ally": _classes,
    "graph": _neighbours,
    "test.index": _numbers,
}

PARTS = tuple(_PARSERS)
"""The last part of each file's name."""
