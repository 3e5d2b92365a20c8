"""Reddit's posts of September 2014, joined where one user commented on both.

Two npz files, features and SciPy's coo adjacency (Hamilton et al. 2017). The result is
that of PyG's ``Reddit``.
"""

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from gebt.datasets.cache import cached
from gebt.datasets.catalogue import Facts, fetch, register, told_as_corrupt
from gebt.datasets.raw import check_range, pairs, read_npz, to_float32
from gebt.graph import Graph

SOURCE = "https://data.dgl.ai/dataset/reddit.zip"
_NODES, _LINKS = "reddit_data.npz", "reddit_graph.npz"
FILES = tuple(f"reddit/raw/{file}" for file in (_NODES, _LINKS))


def read_reddit(folder: Path) -> Graph:
    """Make the graph of both files.

    Raises:
        ValueError: naming the array that is missing or does not fit. Other exceptions
            where an archive is cut short or garbled.
    """
    array = read_npz(folder / _NODES, ("feature", "label", "node_types"), bounded=False)
    x, y, part = array.values()
    n = len(x)
    if x.ndim != 2 or y.shape != (n,) or part.shape != (n,):
        raise ValueError(
            f"reddit_data.npz holds features {x.shape}, labels {y.shape} and node "
            f"types {part.shape}"
        )
    edges = read_npz(folder / _LINKS, ("shape", "row", "col"), bounded=False)
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
    data = SimpleNamespace(
        x=torch.from_numpy(to_float32(x)),
        y=torch.from_numpy(y.astype(np.int64)),
        edge_index=torch.from_numpy(ends),
        train_mask=train,
        val_mask=val,
        test_mask=test,
    )
    return Graph.from_pyg(data, directed=False, name="reddit")


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
    folder = root / "reddit" / "raw"
    fetch(root, "reddit", FILES, SOURCE)
    with told_as_corrupt("reddit", folder):
        parse = partial(read_reddit, folder)
        return cached(folder, (_NODES, _LINKS), "reddit", parse)
