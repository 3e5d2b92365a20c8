"""Heterophilous graphs (Platonov et al. 2023): raw files, read and checked.

Of chameleon and squirrel there are the versions without duplicate nodes, which in the
older ones stand in training and test alike.
"""

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from gebt.datasets.catalogue import Facts, read_published, register
from gebt.datasets.raw import check_range, pairs, read_npz, to_float32
from gebt.graph import Graph, Metric

SOURCE = "https://github.com/yandex-research/heterophilous-graphs/raw/main/data"
SHA256 = {
    "tolokers": "dacf3ac94cec53d03cd2adb5255c08b33dee1656c33ca8164a464bd9450a1667",
    "minesweeper": "e664c8dacf1e8ac466c2c09ed4b237bd2c5541f47a6eae9c6092cb87f16412b3",
}
"""Of those published files that were at hand."""
SPLITS = 10
_PARTS = ("train", "val", "test")


def read_heterophilous(content: bytes, split: int = 0) -> SimpleNamespace:
    """Take an npz as PyG's ``Data``, with one of its splits.

    Returns:
        ``x`` (N, F) float32, ``y`` (N,) int64, ``edge_index`` (2, L) int64, each link
        once, ``train_mask``, ``val_mask`` and ``test_mask`` (N,).

    Raises:
        ValueError: naming the array that is missing or does not fit. Other exceptions
            where the archive is cut short or garbled.
    """
    masks = [f"{part}_masks" for part in _PARTS]
    kinds = {"node_features": "f", "node_labels": "iu", "edges": "iu"}
    kinds |= dict.fromkeys(masks, "biu")
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
    edges = pairs(array["edges"].T, n, "edges.npy")
    if split >= splits:
        raise ValueError(f"has {splits} splits, so none of the number {split}")
    parts = np.stack([array[name][split] for name in masks])
    check_range(parts, 2, "truth value")  # some of the older graphs' are integers
    parts = parts.astype(bool)
    if (parts.sum(axis=0) > 1).any() or not parts.any(axis=1).all():
        raise ValueError(f"the masks of split {split} overlap, or one is empty")
    return SimpleNamespace(
        x=torch.from_numpy(x),
        y=torch.from_numpy(y),
        edge_index=torch.from_numpy(edges),
        **{
            f"{part}_mask": torch.from_numpy(mask)
            for part, mask in zip(_PARTS, parts, strict=True)
        },
    )


def _register(
    name: str,
    about: str,
    metric: Metric = "accuracy",
    tuned: float | None = None,
    tuned_by: str = "",
    shares: str = "50% to train, 25% to validate, 25% to test",
) -> None:
    title = name.replace("-", "_")
    file = f"{title}/raw/{title}.npz"
    facts = Facts(
        group="heterophilous",
        task="node-classification",
        metric=metric,
        split=f"ten, published with the files (Platonov et al. 2023): {shares}",
        tuned=tuned,
        tuned_by=tuned_by,
    )

    @register(name, about=about, files=(file,), splits=SPLITS, facts=facts)
    def read(root: Path, split: int) -> Graph:
        parse = partial(read_heterophilous, split=split)
        data = read_published(root, title, {file: SHA256.get(name)}, SOURCE, parse)
        return Graph.from_pyg(data, directed=False, name=name, metric=metric)


_LUO = "GCN, Luo et al. 2024"
_OLDER = "48% to train, 32% to validate, 20% to test"
_register("roman-empire", "22,662 words, 32,927 dependences", "accuracy", 91.3, _LUO)
_register("amazon-ratings", "24,492 products, 93,050 links", "accuracy", 53.8, _LUO)
_register("minesweeper", "10,000 cells, 39,402 neighbours", "ROC-AUC", 97.9, _LUO)
_register(
    "tolokers",
    "11,758 workers, 519,000 pairs",
    "ROC-AUC",
    83.6,
    "GCN with residuals and layer norm, Platonov et al. 2023",
)
_register("questions", "48,921 users, 153,540 answers", "ROC-AUC", 79.0, _LUO)
_register(
    "chameleon-filtered", "890 pages, 8,854 links", "accuracy", 46.3, _LUO, _OLDER
)
_register(
    "squirrel-filtered", "2,223 pages, 46,998 links", "accuracy", 45.0, _LUO, _OLDER
)
_register("actor", "7,600 actors, 26,659 shared pages", shares=_OLDER)
