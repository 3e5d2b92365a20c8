"""Graphs by name: ``load(name, root)``."""

import hashlib
import logging
import os
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from gebt._checks import check_name
from gebt.datasets.heterophilous import read_heterophilous
from gebt.datasets.planetoid import PARTS, read_planetoid
from gebt.datasets.raw import reason
from gebt.datasets.synthetic import Synthetic
from gebt.files import write_bytes
from gebt.graph import Graph

_log = logging.getLogger("gebt")

_PLANETOID = "https://github.com/kimiyoung/planetoid/raw/master/data"
_HETEROPHILOUS = "https://github.com/yandex-research/heterophilous-graphs/raw/main/data"

# SHA-256 of the published files, in the order of `Dataset.files`.
_PUBLISHED = {
    "cora": """
        23cfa55d91c6f624233f5eb7b6e3f141f1bd2b2ae39608a63cf5d084bb27baab
        b9afbaa4a400df991f6f02ef677e1e44da55ffc04801fd02f9e673987829226a
        9419ba2f26f5c35243db64aba110e0f35a04851609e0dc5433450676ca6b8543
        94465c14eb53e04ca262198dcbb2521ee8af60fb3f3d546cd6ca24a511b0e7d1
        41f5ac76596a1699cc33f53084a2419e92961c42bb75f36fc38e616d348532ad
        2b998f5cc7fedc86e7f97ca2498f47a1ffc1462c29e2d578b23bf3f62b6e7d71
        58f13302f39dde8852dad6fe6d15b89b077b6d7f837626bce671ef80344b383d
        297ce89af2b51a6a194181c7dbe1796c6a1cf9cd9349a88383b1b1e227867875
    """,
    "citeseer": """
        d20de19150741e555de0ed037195630fc194114ebc7fd72ced62810148aa22f6
        539a8906a2da97628d212f2fdd668c109a8b3f0d36574b59e5d3fd5b5303da21
        2ac30345d95c9ec933a817ee0bdd6a5f077f8c184a20e696910192d534414668
        8ba87e515d8e3ee3cf52f6d2c5b86aa73f11ecad825a808455209ec26cd54924
        55e5bd1ba1e733a04598753ad1a8d57957f4b8f89e74519f41f4f4938767e4ce
        f704b2d986dde6c2669934de1f3ae5696a6cf9455c0f6b2646a2d135ea0a1c95
        d79a4ef9d3e7169aee8946145f6b7306e35bc79bffad26346cfb94e10e9912a7
        2af990671580b6b2df5d158d1038f8292e30c9cd821b5453f399659b25b723d4
    """,
    "pubmed": """
        fbe9cb5c47200d1b7769a26e579be3b7130b556831f9d850e77c4c74f2599b33
        4eb5f5d0f30f26497eb0ac6ac9719d09c67e284f1ed0385c93f3ef27a671da3d
        508e538e2abdccdd54c4d3e9f49d638b4af7107d85845f66ddea5a5152658b7e
        e6c807633307a07ed659249006536a147c7999c797f11a2560752990181b41b3
        ee2e0d4819d9fbcc403689c3bf2e49face401b605932f093bc58ab6461130fdd
        0c37bbe3b5014ec365e9d393cf4791925e5ed94fb194305d74f064a8d7b50f0e
        5b89f0036ca22909471f1e6558eb42fa06e0c730a577bde5b058b40638f81dc9
        b101d421688bbaecbd82e8a18f1e282378d6830f3a37666f28ebc47f844341b5
    """,
    "tolokers": """
        dacf3ac94cec53d03cd2adb5255c08b33dee1656c33ca8164a464bd9450a1667
    """,
}


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
    files = tuple(f"{title}/raw/ind.{name}.{part}" for part in PARTS)

    def read(root: Path) -> Graph:
        _fetch(root, title, files, _PLANETOID)

        def parse(contents: list[bytes]) -> SimpleNamespace:
            return read_planetoid(name, dict(zip(PARTS, contents, strict=True)))

        data = _read(root, name, title, files, parse)
        data.x = data.x / data.x.sum(dim=1, keepdim=True).clamp(min=1)
        return Graph.from_pyg(data, directed=False, name=name)

    return Dataset(name, about, files, read)


def _heterophilous(name: str, about: str) -> Dataset:
    """A graph of Platonov et al. 2023, with the first of its ten splits."""
    files = (f"{name}/raw/{name}.npz",)

    def read(root: Path) -> Graph:
        _fetch(root, name, files, _HETEROPHILOUS)
        data = _read(root, name, name, files, lambda c: read_heterophilous(c[0]))
        return Graph.from_pyg(data, directed=False, name=name, metric="ROC-AUC")

    return Dataset(name, about, files, read)


def _fetch(root: Path, title: str, files: tuple[str, ...], source: str) -> None:
    """Download the files that are missing, or say which to put where.

    Not by PyG's classes: they load ``processed/*.pt``, which may hold any code, and
    leave the first part of a file where a download breaks off.
    """
    missing = [file for file in files if not (root / file).is_file()]
    try:
        for file in missing:
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            url = f"{source}/{Path(file).name}"
            with urllib.request.urlopen(url, timeout=60) as answer:
                write_bytes(root / file, answer.read())
            _log.info("downloaded %s", url)
    except Exception as error:
        for folder in (root / title / "raw", root / title):
            with suppress(OSError):  # only what the attempt left empty
                folder.rmdir()
        page = source.replace("/raw/", "/tree/", 1)
        raise FileNotFoundError(
            f"{title} is not in {root.absolute()} and could not be downloaded "
            f"({type(error).__name__}). Put these files of {page} there: "
            f"{', '.join(missing)}. Another folder: --root, or $GEBT_DATA."
        ) from error


def _read(
    root: Path,
    name: str,
    title: str,
    files: tuple[str, ...],
    parse: Callable[[list[bytes]], SimpleNamespace],
) -> SimpleNamespace:
    """Parse the files' contents, and say which are not those that were published."""
    contents = [(root / file).read_bytes() for file in files]
    raw = root / title / "raw"
    try:
        data = parse(contents)
    except Exception as error:
        raise ValueError(
            f"the files of {title} in {raw} are truncated or corrupt "
            f"({reason(error)}). Delete them to download again."
        ) from error
    published = _PUBLISHED[name].split()
    others = [
        Path(file).name
        for file, content, digest in zip(files, contents, published, strict=True)
        if hashlib.sha256(content).hexdigest() != digest
    ]
    if others:
        _log.warning(
            "not the published file: %s in %s. It passed all checks of form; its "
            "contents are another's.",
            ", ".join(others),
            raw,
        )
    return data


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
