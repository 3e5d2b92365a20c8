"""A heterophilous graph (Platonov et al. 2023): its raw file, read and checked."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from gebt.datasets.catalogue import read_published, register
from gebt.datasets.raw import check_range, distinct, read_npz, to_float32
from gebt.graph import Graph

SOURCE = "https://github.com/yandex-research/heterophilous-graphs/raw/main/data"
FILES = {
    "tolokers/raw/tolokers.npz": (
        "dacf3ac94cec53d03cd2adb5255c08b33dee1656c33ca8164a464bd9450a1667"
    ),
}
"""Each with the SHA-256 of the published file."""
_PARTS = ("train", "val", "test")


def read_heterophilous(content: bytes) -> SimpleNamespace:
    """Take an npz as PyG's ``Data``, with the first of its splits.

    Returns:
        ``x`` (N, F) float32, ``y`` (N,) int64, ``edge_index`` (2, L) int64, each link
        once, ``train_mask``, ``val_mask`` and ``test_mask`` (N,).

    Raises:
        ValueError: naming the array that is missing or does not fit. Other exceptions
            where the archive is cut short or garbled.
    """
    masks = [f"{part}_masks" for part in _PARTS]
    kinds = {"node_features": "f", "node_labels": "iu", "edges": "iu"}
    kinds |= dict.fromkeys(masks, "b")
    array = read_npz(content, kinds)
    for name, kind in kinds.items():
        if array[name].dtype.kind not in kind:
            raise ValueError(f"{name}.npy holds {array[name].dtype}")
    n = len(array["node_labels"])
    splits = len(array[masks[0]])
    width = array["node_features"].shape[-1]
    shapes = {"node_features": (n, width), "node_labels": (n,)}
    shapes |= {"edges": (len(array["edges"]), 2)}
    shapes |= dict.fromkeys(masks, (splits, n))
    for name, shape in shapes.items():
        if array[name].shape != shape:
            raise ValueError(f"{name}.npy is {array[name].shape}, not {shape}")

    x = to_float32(array["node_features"])
    check_range(array["node_labels"], n, "class")
    y = array["node_labels"].astype(np.int64)
    if (np.bincount(y) == 0).any():
        raise ValueError("node_labels.npy leaves a class without nodes")
    check_range(array["edges"], n, "node")
    source, target = array["edges"].astype(np.int64).T
    low, high = np.minimum(source, target), np.maximum(source, target)
    pairs = distinct((low * n + high)[low != high])
    if not pairs.size:
        raise ValueError("edges.npy has no links")
    split = np.stack([array[name][0] for name in masks])
    if (split.sum(axis=0) > 1).any() or not split.any(axis=1).all():
        raise ValueError("the first of the masks overlap, or one is empty")
    return SimpleNamespace(
        x=torch.from_numpy(x),
        y=torch.from_numpy(y),
        edge_index=torch.from_numpy(np.stack([pairs // n, pairs % n])),
        **{
            f"{part}_mask": torch.from_numpy(mask)
            for part, mask in zip(_PARTS, split, strict=True)
        },
    )


@register(
    "tolokers",
    about="11,758 workers, 519,000 pairs who shared a task; ROC-AUC",
    files=tuple(FILES),
)
def read_tolokers(root: Path) -> Graph:
    """Read the graph, with the first of its ten splits."""
    data = read_published(root, "tolokers", FILES, SOURCE, read_heterophilous)
    return Graph.from_pyg(data, directed=False, name="tolokers", metric="ROC-AUC")
