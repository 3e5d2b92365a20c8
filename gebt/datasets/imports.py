"""Which files of PyTorch import which: a real network that needs no download."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from gebt.datasets.catalogue import Facts, register
from gebt.datasets.raw import read_npz
from gebt.graph import Graph

_FILE = Path(__file__).with_name("imports.npz")
_PARTS = ("train", "val", "test")


@register(
    "imports",
    about="1,683 Python files, 7,292 imports",
    facts=Facts(
        group="built in",
        task="node-classification",
        metric="accuracy",
        split="gebt's own: 20 a class to train, 500 to validate, 943 to test",
    ),
)
def read_imports(_: Path) -> Graph:
    """The import graph of torch 2.13.0, as ``data/make_imports.py`` made it.

    A node is a Python file, a link joins two of which one imports the other, wherever
    in the file. Features say which words a file's identifiers have, of the 1,435 that
    20 files to a fifth of all have; a file's have length
    1. The class is the package
    below ``torch``, of the twelve that have 40 files: _dynamo, _export, _functorch,
    _inductor, ao, distributed, distributions, fx, nn, onnx, testing, utils; words of
    these names are no features. Split: 20 files a class to train on, 500 to validate
    on, the other 943 to test on, drawn once.
    """
    array = read_npz(_FILE.read_bytes(), ("words", "classes", "links", *_PARTS))
    bits = np.unpackbits(array["words"], axis=1)
    words = bits[:, bits.any(axis=0)].astype(np.float32)  # the last byte is padded
    words /= np.sqrt(words.sum(axis=1, keepdims=True).clip(min=1))
    data = SimpleNamespace(
        x=torch.from_numpy(words),
        y=torch.from_numpy(array["classes"].astype(np.int64)),
        edge_index=torch.from_numpy(array["links"].T.astype(np.int64)),
    )
    split: dict[str, Any] = {
        part: torch.from_numpy(array[part].astype(np.int64)) for part in _PARTS
    }
    return Graph.from_pyg(data, split=split, directed=False, name="imports")
