"""Reddit's posts of September 2014, joined where one user commented on both.

Two npz files, features and SciPy's coo adjacency (Hamilton et al. 2017). The result is
that of PyG's ``Reddit``.
"""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from gebt.datasets.catalogue import Facts, read_published, register
from gebt.datasets.raw import check_range, pairs, read_npz, to_float32
from gebt.graph import Graph

SOURCE = "https://data.dgl.ai/dataset/reddit.zip"
FILES = ("reddit/raw/reddit_data.npz", "reddit/raw/reddit_graph.npz")


def read_reddit(nodes: bytes, links: bytes) -> SimpleNamespace:
    """Take both files as PyG's ``Data``.

    Returns:
        ``x`` (N, F) float32, ``y`` (N,) int64, ``edge_index`` (2, L) int64, each link
        once, ``train_mask``, ``val_mask`` and ``test_mask`` (N,).

    Raises:
        ValueError: naming the array that is missing or does not fit. Other exceptions
            where an archive is cut short or garbled.
    """
    array = read_npz(nodes, ("feature", "label", "node_types"), bounded=False)
    x, y, part = array.values()
    n = len(x)
    if x.ndim != 2 or y.shape != (n,) or part.shape != (n,):
        raise ValueError(
            f"reddit_data.npz holds features {x.shape}, labels {y.shape} and node "
            f"types {part.shape}"
        )
    edges = read_npz(links, ("shape", "row", "col"), bounded=False)
    for name in ("label", "node_types", "row", "col"):
        if (found := {**array, **edges}[name]).dtype.kind not in "iu":
            raise ValueError(f"{name}.npy holds {found.dtype}")
    if edges["shape"].tolist() != [n, n]:
        raise ValueError(f"shape.npy is {edges['shape'].tolist()} for {n} nodes")
    row, col = edges["row"], edges["col"]
    if row.shape != col.shape or row.ndim != 1:
        raise ValueError(f"row.npy is {row.shape}, col.npy {col.shape}")
    check_range(y, n, "class")
    if (np.bincount(y) == 0).any():
        raise ValueError("label.npy leaves a class without nodes")
    ends = pairs(np.stack([row, col]), n, "reddit_graph.npz")
    masks = np.stack([part == number for number in (1, 2, 3)])
    if not masks.any(axis=1).all():
        raise ValueError("node_types.npy leaves a part empty")
    train, val, test = torch.from_numpy(masks)
    return SimpleNamespace(
        x=torch.from_numpy(to_float32(x)),
        y=torch.from_numpy(y.astype(np.int64)),
        edge_index=torch.from_numpy(ends),
        train_mask=train,
        val_mask=val,
        test_mask=test,
    )


@register(
    "reddit",
    about="232,965 posts, 57,307,946 links",
    files=FILES,
    facts=Facts(
        group="large",
        task="node-classification",
        metric="accuracy",
        split="published (Hamilton et al. 2017), by day: 66% to train, 10% to "
        "validate, 24% to test",
    ),
)
def read(root: Path) -> Graph:
    """The graph; as published, its links join all nodes, those to test on as well."""
    data = read_published(root, "reddit", dict.fromkeys(FILES), SOURCE, read_reddit)
    return Graph.from_pyg(data, directed=False, name="reddit")
