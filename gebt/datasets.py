"""Graphs by name: ``load(name, root)``."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from gebt._checks import check_name
from gebt.graph import Graph
from gebt.synthetic import Synthetic

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
        name: one of `DATASETS`, in any case; ``"synthetic"`` takes sizes, as in
            ``"synthetic:N=2000,E=9000,F=64,C=10,split=54-18-28,seed=0"``, of which
            any may be left out.
        root: folder of the datasets; by default $GEBT_DATA, else ``./data``.

    Raises:
        ValueError: if there is no graph of that name, or its files are corrupt.
        FileNotFoundError: if it is not on disk and cannot be downloaded; says which
            files to put where.
    """
    kind, colon, spec = name.partition(":")
    if colon and kind.lower() == "synthetic":
        return Synthetic.parse(spec).make()
    return DATASETS[check_name("dataset", name, DATASETS)].read(find_root(root))


def _planetoid(name: str, title: str, about: str) -> Dataset:
    files = tuple(f"{title}/raw/ind.{name}.{part}" for part in _PLANETOID_FILES)

    def read(root: Path) -> Graph:
        from torch_geometric.io import read_planetoid_data

        def download() -> None:
            from torch_geometric.datasets import Planetoid

            Planetoid(str(root), title)

        source = "github.com/kimiyoung/planetoid/tree/master/data"
        _fetch(root, title, files, source, download)
        with _corrupt_files_named(root / title / "raw", title):
            data = read_planetoid_data(str(root / title / "raw"), name)
        data.x = data.x / data.x.sum(dim=1, keepdim=True).clamp(min=1)
        return Graph.from_pyg(data, name=name)

    return Dataset(name, about, files, read)


def _heterophilous(name: str, about: str) -> Dataset:
    """A graph of Platonov et al. 2023, with the first of its ten splits."""
    files = (f"{name}/raw/{name}.npz",)

    def read(root: Path) -> Graph:
        def download() -> None:
            from torch_geometric.datasets import HeterophilousGraphDataset

            HeterophilousGraphDataset(str(root), name)

        source = "github.com/yandex-research/heterophilous-graphs/tree/main/data"
        _fetch(root, name, files, source, download)
        with (
            _corrupt_files_named(root / name / "raw", name),
            (root / files[0]).open("rb") as file,
            np.load(file, allow_pickle=False) as raw,
        ):
            data = SimpleNamespace(
                x=torch.from_numpy(raw["node_features"]),
                y=torch.from_numpy(raw["node_labels"]),
                edge_index=torch.from_numpy(raw["edges"]).t(),
                **{
                    f"{part}_mask": torch.from_numpy(raw[f"{part}_masks"][0])
                    for part in ("train", "val", "test")
                },
            )
        return Graph.from_pyg(data, directed=False, name=name, metric="ROC-AUC")

    return Dataset(name, about, files, read)


def _fetch(
    root: Path,
    title: str,
    files: tuple[str, ...],
    source: str,
    download: Callable[[], None],
) -> None:
    """Download where a file is missing, or say which files to put where."""
    missing = [file for file in files if not (root / file).is_file()]
    if not missing:
        return
    try:
        download()
    except Exception as error:
        for folder in (root / title / "raw", root / title):
            with suppress(OSError):  # only what the attempt left empty
                folder.rmdir()
        raise FileNotFoundError(
            f"{title} is not in {root.absolute()} and could not be downloaded "
            f"({type(error).__name__}). Put these files of {source} there: "
            f"{', '.join(missing)}. Another folder: --root, or $GEBT_DATA."
        ) from error


@contextmanager
def _corrupt_files_named(raw: Path, title: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise ValueError(
            f"the files of {title} in {raw} are truncated or corrupt "
            f"({type(error).__name__}: {error}). Delete them to download again."
        ) from error


def _synthetic(name: str, about: str, **options: Any) -> Dataset:
    return Dataset(name, about, (), lambda _: Synthetic(**options).make(name))


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
        _heterophilous(
            "tolokers", "11,758 workers, 519,000 pairs who shared a task; ROC-AUC"
        ),
        Dataset(
            "synthetic",
            "any size, such as synthetic:N=20000,E=100000,F=64,C=10; communities and "
            "hubs, drawn by seed",
            (),
            lambda _: Synthetic().make(),
        ),
        _synthetic(
            "arxiv-like",
            "169,343 nodes, 1,166,243 links, as many as ogbn-arxiv; drawn",
            nodes=169_343,
            links=1_166_243,
            features=128,
            classes=40,
        ),
        _synthetic(
            "products-like",
            "2,449,029 nodes, 61,859,140 links, as many as ogbn-products; drawn in "
            "minutes and 6 GiB",
            nodes=2_449_029,
            links=61_859_140,
            features=100,
            classes=47,
            split=(8, 2, 90),
        ),
    )
}
"""Every graph that `load` knows, by name."""
