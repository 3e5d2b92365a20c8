"""Wiki-CS: Wikipedia's pages on computer science (Mernyei and Cangea 2020).

One JSON file. The result is that of PyG's ``WikiCS``, links taken both ways, as the
literature does.
"""

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from gebt.datasets.catalogue import Facts, read_published, register
from gebt.datasets.raw import MOST_CELLS, check_range, pairs, to_float32
from gebt.graph import Graph

SOURCE = "https://github.com/pmernyei/wiki-cs-dataset/raw/master/dataset"
SPLITS = 20


def read_wikics(content: bytes, split: int = 0) -> SimpleNamespace:
    """Take the file as PyG's ``Data``, with one of its splits.

    The nodes of ``stopping_masks`` are in no part: gebt stops on those to validate on.

    Returns:
        ``x`` (N, F) float32, ``y`` (N,) int64, ``edge_index`` (2, L) int64, each link
        once, ``train_mask``, ``val_mask`` and ``test_mask`` (N,).

    Raises:
        ValueError: naming the entry that is missing or does not fit. Other exceptions
            where the file is cut short or garbled.
    """
    given = json.loads(content)
    if type(given) is not dict:
        raise ValueError(f"holds a {type(given).__name__}, not an object")
    y = _array(given, "labels", "iu", 1)
    n = len(y)
    check_range(y, n, "class")
    if not n or (np.bincount(y) == 0).any():
        raise ValueError("labels leaves a class without nodes")
    x = _array(given, "features", "iuf", 2)
    masks = {
        "train": _array(given, "train_masks", "iub", 2),
        "val": _array(given, "val_masks", "iub", 2),
        "test": _array(given, "test_mask", "iub", 1)[None],
    }
    for name, array in {"features": x, **masks}.items():
        if array.shape[name != "features"] != n:
            raise ValueError(f"{name} is {array.shape} for {n} nodes")
    splits = {len(masks["train"]), len(masks["val"])}
    if splits != {SPLITS}:
        raise ValueError(f"has {splits} splits, not {SPLITS}")
    parts = np.stack([m[split if len(m) > 1 else 0] for m in masks.values()])
    check_range(parts, 2, "truth value")
    parts = parts.astype(bool)
    if (parts.sum(axis=0) > 1).any() or not parts.any(axis=1).all():
        raise ValueError(f"the masks of split {split} overlap, or one is empty")
    links = given.get("links")
    if type(links) is not list or len(links) != n or {*map(type, links)} != {list}:
        raise ValueError(f"links has no list of neighbours for each of {n} nodes")
    flat = [neighbour for listed in links for neighbour in listed]
    if not set(map(type, flat)) <= {int}:
        raise ValueError("links names a node by something that is not an integer")
    target = np.array(flat, dtype=np.int64)
    source = np.repeat(np.arange(n), [len(listed) for listed in links])
    edges = pairs(np.stack([source, target]), n, "links")
    train, val, test = torch.from_numpy(parts)
    return SimpleNamespace(
        x=torch.from_numpy(to_float32(x)),
        y=torch.from_numpy(y.astype(np.int64)),
        edge_index=torch.from_numpy(edges),
        train_mask=train,
        val_mask=val,
        test_mask=test,
    )


def _array(given: dict[str, Any], name: str, kinds: str, dimensions: int) -> np.ndarray:
    if name not in given:
        raise ValueError(f"lacks {name}")
    array = np.array(given[name])  # of lists of unequal lengths: an error
    if array.dtype.kind not in kinds or array.ndim != dimensions:
        raise ValueError(f"{name} holds {array.dtype} of {array.ndim} dimensions")
    if array.size > MOST_CELLS:
        raise ValueError(f"{name} has {array.size} entries: too many")
    return array


_FACTS = Facts(
    group="shops and authors",
    task="node-classification",
    metric="accuracy",
    split="twenty, published: 5% to train, 15% to validate, half to test",
)


@register(
    "wikics",
    about="11,701 pages, 216,123 links",
    files=("wikics/raw/data.json",),
    splits=SPLITS,
    facts=_FACTS,
)
def read(root: Path, split: int) -> Graph:
    """The graph with one of its splits; the test nodes are the same in all."""
    files = dict.fromkeys(("wikics/raw/data.json",))
    parse = partial(read_wikics, split=split)
    data = read_published(root, "wikics", files, SOURCE, parse)
    return Graph.from_pyg(data, directed=False, name="wikics")
