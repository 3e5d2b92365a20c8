"""Graphs by name: ``load(name, root)``."""

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from gebt.graph import Graph

_PLANETOID_FILES = ("x", "tx", "allx", "y", "ty", "ally", "graph", "test.index")


@dataclass(frozen=True)
class Dataset:
    """A graph that `load` knows.

    Attributes:
        name: what `load` calls it.
        about: size and source in a few words.
        files: paths below the root that it is read from; none for built-in ones.
        read: makes the graph, given the root.
    """

    name: str
    about: str
    files: tuple[str, ...]
    read: Callable[[Path], Graph]

    def on_disk(self, root: Path) -> bool:
        """Whether `load` needs no network."""
        return all((root / file).is_file() for file in self.files)


def find_root(root: str | Path | None = None) -> Path:
    """The folder that holds datasets: ``root``, else $GEBT_DATA, else ./data."""
    return Path(root or os.environ.get("GEBT_DATA") or "data")


def load(name: str, root: str | Path | None = None) -> Graph:
    """Load a graph by name, downloading it where it is not on disk.

    Features of the Planetoid graphs are row-normalised. Nothing but a download is
    written, so that a read-only root works.

    Args:
        name: one of `DATASETS`, in any case.
        root: folder of the datasets; by default $GEBT_DATA, else ``./data``.

    Raises:
        ValueError: if there is no graph of that name.
        FileNotFoundError: if it is not on disk and cannot be downloaded; says which
            files to put where.
    """
    dataset = DATASETS.get(name.lower())
    if dataset is None:
        near = get_close_matches(name.lower(), DATASETS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"there is no dataset {name!r}; gebt knows {', '.join(DATASETS)}.{hint}"
        )
    return dataset.read(find_root(root))


def _planetoid(name: str, title: str, about: str) -> Dataset:
    files = tuple(f"{title}/raw/ind.{name}.{part}" for part in _PLANETOID_FILES)

    def read(root: Path) -> Graph:
        missing = [file for file in files if not (root / file).is_file()]
        if missing:
            _download(root, title, missing)
        from torch_geometric.io import read_planetoid_data

        raw = root / title / "raw"
        try:
            data = read_planetoid_data(str(raw), name)
        except Exception as error:
            raise ValueError(
                f"the files of {title} in {raw} are truncated or corrupt "
                f"({type(error).__name__}: {error}). Delete them to download again."
            ) from error
        data.x = data.x / data.x.sum(dim=1, keepdim=True).clamp(min=1)
        return Graph.from_pyg(data, name=name)

    return Dataset(name, about, files, read)


def _download(root: Path, title: str, missing: list[str]) -> None:
    from torch_geometric.datasets import Planetoid

    try:
        Planetoid(str(root), title)
    except Exception as error:
        for folder in (root / title / "raw", root / title):
            with suppress(OSError):  # only what the attempt left empty
                folder.rmdir()
        raise FileNotFoundError(
            f"{title} is not in {root.absolute()} and could not be downloaded "
            f"({type(error).__name__}). Put these files of "
            "github.com/kimiyoung/planetoid/tree/master/data there: "
            f"{', '.join(missing)}. Another folder: --root, or $GEBT_DATA."
        ) from error


def _digits(root: Path) -> Graph:
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


DATASETS = {
    dataset.name: dataset
    for dataset in (
        Dataset(
            "digits",
            "1,797 handwritten digits joined to their nearest neighbours; built in",
            (),
            _digits,
        ),
        _planetoid("cora", "Cora", "2,708 papers, 5,278 citations"),
        _planetoid("citeseer", "CiteSeer", "3,327 papers, 4,552 citations"),
        _planetoid("pubmed", "PubMed", "19,717 papers, 44,324 citations"),
    )
}
"""Every graph that `load` knows, by name."""
