"""Products bought together and authors who wrote together (Shchur et al. 2018).

Each is one npz with the parts of two csr matrices, features and adjacency. The result
is that of PyG's ``Amazon`` and ``Coauthor`` with ``NormalizeFeatures``, on which the
literature trains. No split was published with them.
"""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from gebt.datasets.catalogue import Facts, read_published, register
from gebt.datasets.raw import Sparse, check_range, distinct, pairs, read_npz
from gebt.graph import Graph, stratified

SOURCE = "https://github.com/shchur/gnn-benchmark/raw/master/data/npz"
SPLITS = 10
_MATRIX = ("data", "indices", "indptr", "shape")


def read_shchur(content: bytes) -> SimpleNamespace:
    """Take an npz as PyG's ``Data``, without a split.

    Returns:
        ``x`` (N, F) sparse float32, 1 where the file holds something positive, each
        row divided by its sum; ``y`` (N,) int64; ``edge_index`` (2, L) int64, each
        link once.

    Raises:
        ValueError: naming what is missing or does not fit. Other exceptions where the
            archive is cut short or garbled.
    """
    names = [f"{of}_{part}" for of in ("attr", "adj") for part in _MATRIX]
    array = read_npz(content, [*names, "labels"])
    features, adjacency = (_matrix(array, of) for of in ("attr", "adj"))
    y = array["labels"]
    n, width = features.shape
    if y.dtype.kind not in "iu" or y.shape != (n,):
        raise ValueError(f"labels.npy holds {y.dtype} {y.shape} for {n} nodes")
    if adjacency.shape != (n, n):
        raise ValueError(f"adj_shape.npy is {adjacency.shape} for {n} nodes")
    check_range(y, n, "class")
    if (np.bincount(y) == 0).any():
        raise ValueError("labels.npy leaves a class without nodes")
    edges = pairs(np.stack(_entries(adjacency)), n, "the adjacency")
    row, col = _entries(features)
    cells = distinct((row * width + col)[features.data > 0])
    row, col = cells // width, cells % width
    value = 1 / np.bincount(row, minlength=n)[row].astype(np.float32)
    x = torch.sparse_coo_tensor(
        torch.from_numpy(np.stack([row, col])),
        torch.from_numpy(value),
        (n, width),
        check_invariants=False,
        is_coalesced=True,
    )
    return SimpleNamespace(
        x=x,
        y=torch.from_numpy(y.astype(np.int64)),
        edge_index=torch.from_numpy(edges),
    )


def _matrix(array: Mapping[str, np.ndarray], of: str) -> Sparse:
    data, indices, indptr, shape = (array[f"{of}_{part}"] for part in _MATRIX)
    if shape.dtype.kind not in "iu" or shape.shape != (2,):
        raise ValueError(f"{of}_shape.npy holds {shape.dtype} {shape.shape}")
    rows, columns = map(int, shape)
    if not (0 < rows < 2**31 and 0 < columns < 2**31):
        raise ValueError(f"{of}_shape.npy claims {rows} x {columns} entries")
    return Sparse((rows, columns), indptr, indices, data)


def _entries(matrix: Sparse) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of each."""
    starts = matrix.indptr.astype(np.int64)
    row = np.repeat(np.arange(len(starts) - 1), starts[1:] - starts[:-1])
    return row, matrix.indices.astype(np.int64)


def _register(
    name: str, file: str, about: str, tuned: float | None = None, by: str = ""
) -> None:
    facts = Facts(
        group="shops and authors",
        task="node-classification",
        metric="accuracy",
        split="ten, gebt's own, of each class 60% to train, 20% to validate, 20% to "
        "test, the shares of Luo et al. 2024; none was published",
        tuned=tuned,
        tuned_by=by,
    )

    @register(name, about=about, files=(file,), splits=SPLITS, facts=facts)
    def read(root: Path, split: int) -> Graph:
        title = file.partition("/")[0]
        data = read_published(root, title, {file: None}, SOURCE, read_shchur)
        parts = stratified(data.y.numpy(), seed=split)
        return Graph.from_pyg(data, split=parts, directed=False, name=name)


_register(
    "amazon-computers",
    "Computers/raw/amazon_electronics_computers.npz",
    "13,752 products, 245,861 links",
    94.0,
    "GCN, Luo et al. 2024",
)
_register(
    "amazon-photo",
    "Photo/raw/amazon_electronics_photo.npz",
    "7,650 products, 119,081 links",
    96.1,
    "GCN, Luo et al. 2024",
)
_register("coauthor-cs", "CS/raw/ms_academic_cs.npz", "18,333 authors, 81,894 links")
_register(
    "coauthor-physics",
    "Physics/raw/ms_academic_phy.npz",
    "34,493 authors, 247,962 links",
)
