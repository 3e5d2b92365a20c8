"""Planetoid's graphs (Yang et al. 2016): eight raw files each, read and checked.

The result is that of ``torch_geometric.io.read_planetoid_data``, with two differences:
no file can run code, and files that do not fit together are refused instead of read out
of bounds.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from gebt.datasets.catalogue import Facts, read_published, register
from gebt.datasets.raw import (
    MOST_CELLS,
    Sparse,
    check_range,
    distinct,
    reason,
    unpickle,
)
from gebt.graph import Graph

SOURCE = "https://github.com/kimiyoung/planetoid/raw/master/data"
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

# SHA-256 of the published files, in that order.
SHA256 = {
    "cora": """
        23cfa55d91c6f624233f5eb7b6e3f141f1bd2b2ae39608a63cf5d084bb27baab
        b9afbaa4a400df991f6f02ef677e1e44da55ffc04801fd02f9e673987829226a
        9419ba2f26f5c35243db64aba110e0f35a04851609e0dc5433450676ca6b8543
        94465c14eb53e04ca262198dcbb2521ee8af60fb3f3d546cd6ca24a511b0e7d1
        41f5ac76596a1699cc33f53084a2419e92961c42bb75f36fc38e616d348532ad
        2b998f5cc7fedc86e7f97ca2498f47a1ffc1462c29e2d578b23bf3f62b6e7d71
        58f13302f39dde8852dad6fe6d15b89b077b6d7f837626bce671ef80344b383d
        297ce89af2b51a6a194181c7dbe1796c6a1cf9cd9349a88383b1b1e227867875
    """,
    "citeseer": """
        d20de19150741e555de0ed037195630fc194114ebc7fd72ced62810148aa22f6
        539a8906a2da97628d212f2fdd668c109a8b3f0d36574b59e5d3fd5b5303da21
        2ac30345d95c9ec933a817ee0bdd6a5f077f8c184a20e696910192d534414668
        8ba87e515d8e3ee3cf52f6d2c5b86aa73f11ecad825a808455209ec26cd54924
        55e5bd1ba1e733a04598753ad1a8d57957f4b8f89e74519f41f4f4938767e4ce
        f704b2d986dde6c2669934de1f3ae5696a6cf9455c0f6b2646a2d135ea0a1c95
        d79a4ef9d3e7169aee8946145f6b7306e35bc79bffad26346cfb94e10e9912a7
        2af990671580b6b2df5d158d1038f8292e30c9cd821b5453f399659b25b723d4
    """,
    "pubmed": """
        fbe9cb5c47200d1b7769a26e579be3b7130b556831f9d850e77c4c74f2599b33
        4eb5f5d0f30f26497eb0ac6ac9719d09c67e284f1ed0385c93f3ef27a671da3d
        508e538e2abdccdd54c4d3e9f49d638b4af7107d85845f66ddea5a5152658b7e
        e6c807633307a07ed659249006536a147c7999c797f11a2560752990181b41b3
        ee2e0d4819d9fbcc403689c3bf2e49face401b605932f093bc58ab6461130fdd
        0c37bbe3b5014ec365e9d393cf4791925e5ed94fb194305d74f064a8d7b50f0e
        5b89f0036ca22909471f1e6558eb42fa06e0c730a577bde5b058b40638f81dc9
        b101d421688bbaecbd82e8a18f1e282378d6830f3a37666f28ebc47f844341b5
    """,
}


def _register(name: str, title: str, about: str, tuned: float) -> None:
    sums = SHA256[name].split()
    files = {
        f"{title}/raw/ind.{name}.{part}": digest
        for part, digest in zip(PARTS, sums, strict=True)
    }

    def parse(*contents: bytes) -> SimpleNamespace:
        return read_planetoid(name, dict(zip(PARTS, contents, strict=True)))

    facts = Facts(
        group="citations",
        task="node-classification",
        metric="accuracy",
        split="public (Yang et al. 2016): 20 a class to train, 500 to validate, 1,000 "
        "to test",
        tuned=tuned,
        tuned_by="GCN, Luo et al. 2024, on random splits of 20 a class",
    )

    @register(name, about=about, files=tuple(files), facts=facts)
    def read(root: Path) -> Graph:
        data = read_published(root, title, files, SOURCE, parse)
        data.x = data.x / data.x.sum(dim=1, keepdim=True).clamp(min=1)
        return Graph.from_pyg(data, directed=False, name=name)


_register("cora", "Cora", "2,708 papers, 5,278 citations", 85.1)
_register("citeseer", "CiteSeer", "3,327 papers, 4,552 citations", 73.1)
_register("pubmed", "PubMed", "19,717 papers, 44,324 citations", 81.1)
