"""Proteins in 24 tissues (Zitnik and Leskovec 2017; split of Hamilton et al. 2017).

Twelve files: features, labels, links and which graph each node is in, of each part. The
24 graphs of PyG's ``PPI`` become one whose parts share no link, so that nodes to
validate and to test on are of graphs that training never saw.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from gebt.datasets.catalogue import Facts, read_published, register
from gebt.datasets.raw import pairs, read_npy, reason, to_float32
from gebt.graph import Graph

SOURCE = "https://data.dgl.ai/dataset/ppi.zip"
_PARTS = ("train", "valid", "test")
_KINDS = ("feats.npy", "labels.npy", "graph_id.npy", "graph.json")
FILES = tuple(f"ppi/raw/{part}_{kind}" for part in _PARTS for kind in _KINDS)


def read_ppi(*contents: bytes) -> SimpleNamespace:
    """Put the files of `FILES` together as one graph.

    Returns:
        ``x`` (N, F) float32, ``y`` (N, C) int8 of 0 and 1, ``edge_index`` (2, L) int64,
        each link once, without those from one of the graphs into another,
        ``train_mask``, ``val_mask`` and ``test_mask`` (N,).

    Raises:
        ValueError: naming the file and what is wrong with it.
    """
    given = dict(zip(FILES, contents, strict=True))
    parts = [_part(given, part) for part in _PARTS]
    for name in ("x", "y"):
        if len({getattr(part, name).shape[1] for part in parts}) > 1:
            raise ValueError(f"the three parts differ in the width of {name}")
    counts = [len(part.x) for part in parts]
    starts = np.cumsum([0, *counts])
    edges = [part.edges + at for part, at in zip(parts, starts, strict=False)]
    masks = np.repeat(np.eye(3, dtype=bool), counts, axis=1)
    train, val, test = torch.from_numpy(masks)
    return SimpleNamespace(
        x=torch.from_numpy(np.concatenate([part.x for part in parts])),
        y=torch.from_numpy(np.concatenate([part.y for part in parts])),
        edge_index=torch.from_numpy(np.concatenate(edges, axis=1)),
        train_mask=train,
        val_mask=val,
        test_mask=test,
    )


def _part(given: Mapping[str, bytes], part: str) -> SimpleNamespace:
    def parsed(kind: str) -> np.ndarray:
        name = f"{part}_{kind}"
        content = given[f"ppi/raw/{name}"]
        if kind != "graph.json":
            return read_npy(name.removesuffix(".npy"), content)
        try:
            return _edges(content)
        except Exception as error:
            # Garbled JSON ends in any of several exceptions.
            raise ValueError(f"{name} {reason(error)}") from error

    x, y, graph, edges = map(parsed, _KINDS)
    n = len(x)
    if x.ndim != 2 or y.ndim != 2 or len(y) != n or graph.shape != (n,):
        raise ValueError(
            f"the {part} files hold features {x.shape}, labels {y.shape} and graph "
            f"numbers {graph.shape}"
        )
    if not ((y == 0) | (y == 1)).all():
        raise ValueError(f"{part}_labels.npy holds something else than 0 and 1")
    try:
        edges = pairs(edges, n, "it")
    except ValueError as error:
        raise ValueError(f"{part}_graph.json: {error}") from error
    source, target = edges
    within = edges[:, graph[source] == graph[target]]
    return SimpleNamespace(x=to_float32(x), y=y.astype(np.int8), edges=within)


def _edges(content: bytes) -> np.ndarray:
    """(2, E) from NetworkX's node-link form; its nodes are the rows of the features."""
    given = json.loads(content)
    links = given.get("links") if type(given) is dict else None
    if type(links) is not list or not set(map(type, links)) <= {dict}:
        raise ValueError("has no list of links")
    ends = [[link.get(end) for link in links] for end in ("source", "target")]
    if not {type(end) for listed in ends for end in listed} <= {int}:
        raise ValueError("names a node by something that is not an integer")
    return np.array(ends, dtype=np.int64).reshape(2, -1)


@register(
    "ppi",
    about="24 graphs of 56,944 proteins",
    files=FILES,
    facts=Facts(
        group="large",
        task="multi-label",
        metric="micro-F1",
        split="published (Hamilton et al. 2017): 20 graphs to train, 2 to validate, 2 "
        "to test",
    ),
)
def read(root: Path) -> Graph:
    """The 24 graphs as one; 121 labels a node."""
    data = read_published(root, "ppi", dict.fromkeys(FILES), SOURCE, read_ppi)
    return Graph.from_pyg(data, directed=False, name="ppi")
