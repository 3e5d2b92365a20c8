"""Handwritten digits: a graph that needs no download."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from gebt.datasets.catalogue import Facts, register
from gebt.graph import Graph


@register(
    "digits",
    about="1,797 digits, 10,071 neighbours",
    facts=Facts(
        group="built in",
        task="node-classification",
        metric="accuracy",
        split="gebt's own: 20 a class to train, 500 to validate, 1,000 to test",
    ),
)
def read_digits(_: Path) -> Graph:
    """scikit-learn's handwritten digits, joined to their nearest neighbours.

    Undirected union of each image's 8 most cosine-similar others. Split: 20 labels
    a class, drawn once with a fixed seed; of the rest 500 to validate on, 1,000 to
    test on.
    """
    from sklearn.datasets import load_digits

    pixels, y = load_digits(return_X_y=True)  # integers 0 to 16, as float64
    # In float64 the inner products of small integers are exact, so the neighbours
    # are the same on every machine.
    length = np.sqrt((pixels**2).sum(axis=1))
    similarity = (pixels @ pixels.T) / length / length[:, None]
    np.fill_diagonal(similarity, -1)
    near = np.argsort(-similarity, axis=1, kind="stable")[:, :8]
    source = torch.from_numpy(near.reshape(-1))
    target = torch.arange(len(y)).repeat_interleave(8)

    shuffled = np.random.RandomState(0).permutation(len(y))  # the stable legacy stream
    train = np.concatenate([shuffled[y[shuffled] == c][:20] for c in range(10)])
    rest = shuffled[~np.isin(shuffled, train)]
    data = SimpleNamespace(
        x=torch.from_numpy(pixels / 16).float(),
        y=torch.from_numpy(y),
        edge_index=torch.stack([source, target]),
    )
    split: dict[str, Any] = {
        "train": torch.from_numpy(np.sort(train)),
        "val": torch.from_numpy(np.sort(rest[:500])),
        "test": torch.from_numpy(np.sort(rest[500:1500])),
    }
    return Graph.from_pyg(data, split=split, directed=False, name="digits")
