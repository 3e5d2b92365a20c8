"""OGB's graphs (Hu et al. 2020) from their own raw files, without the ``ogb`` package.

Its import asks the network for a newer version, and its loaders do not run on torch
2.6 and later. What its files hold is small: tables of numbers as csv.gz or npz, and for
links dicts of arrays that torch saved.
"""

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gebt.datasets.cache import cached, one_at_a_time
from gebt.datasets.catalogue import Facts, register
from gebt.datasets.download import fetch_archive
from gebt.datasets.raw import check_range, read_npz, read_torch, reason
from gebt.datasets.tables import read_table
from gebt.graph import Graph
from gebt.sparse.pattern import INT32_MAX

SOURCE = "https://snap.stanford.edu/ogb/data"
_PARTS = ("train", "valid", "test")

_NODE = ("edge.csv.gz", "node-feat.csv.gz", "node-label.csv.gz")
_LINK = ("edge.csv.gz", "node-feat.csv.gz", "edge_weight.csv.gz")
_COUNTS = ("num-node-list.csv.gz", "num-edge-list.csv.gz")
_BINARY = ("data.npz", "node-label.npz")


def read_nodes(folder: Path, scheme: str) -> Graph:
    """A graph whose nodes are classified, of OGB's csv layout.

    Undirected, as OGB's examples take it: the opposite edges that are missing are
    added. Self-loops are left out and repeated edges taken once.

    Args:
        folder: with ``raw`` and ``split``.
        scheme: the split's name.

    Raises:
        ValueError: naming the file that is cut short, garbled, or does not fit the
            others. Other exceptions where one is garbled so that it cannot be opened.
    """
    raw = folder / "raw"
    nodes, edges = (_count(raw / name) for name in _COUNTS)
    labels = _rows(raw / "node-label.csv.gz", np.float64, nodes, 1)
    data = {
        "x": _rows(raw / "node-feat.csv.gz", np.float32, nodes),
        "edge_index": _edges(raw, nodes, edges).T,
        "y": _classes(labels, nodes),
    }
    return _undirected(data, _node_split(folder / "split" / scheme, nodes))


def read_binary_nodes(folder: Path, scheme: str) -> Graph:
    """The same of OGB's binary layout, of which papers100M is.

    Nodes without a label have the class -1.
    """
    names = ("num_nodes_list", "num_edges_list", "edge_index", "node_feat")
    array = read_npz(folder / "raw" / "data.npz", names, bounded=False)
    labels = read_npz(folder / "raw" / "node-label.npz", ["node_label"], bounded=False)
    one = [array[name].flatten().tolist() for name in names[:2]]
    if {len(counts) for counts in one} != {1}:
        raise ValueError(f"data.npz holds {len(one[0])} graphs, not one")
    (nodes,), (edges,) = one
    for name, axis, count in (("edge_index", 1, edges), ("node_feat", 0, nodes)):
        if array[name].ndim != 2 or array[name].shape[axis] != count:
            shape = array[name].shape
            raise ValueError(f"{name} of data.npz is {shape}, for {count} of them")
    label = labels["node_label"]
    if label.size != nodes:
        raise ValueError(f"node-label.npz has {label.size} of {nodes} labels")
    check_range(array["edge_index"], nodes, "node")
    data = {
        "x": array["node_feat"],
        "edge_index": array["edge_index"],
        "y": _classes(label, nodes),
    }
    return _undirected(data, _node_split(folder / "split" / scheme, nodes))


def read_links(folder: Path, scheme: str) -> Graph:
    """A graph whose links are predicted, with OGB's own pairs to rank them among.

    Its links are those to train on. The weights of pairs that are listed several times,
    one for each year, add up: so does the product in OGB's own example, whose sparse
    matrix holds every listed edge with its weight.
    """
    raw = folder / "raw"
    nodes, edges = (_count(raw / name) for name in _COUNTS)
    edge = _edges(raw, nodes, edges)
    weight = _rows(raw / "edge_weight.csv.gz", np.float32, edges, 1)
    ends = np.sort(edge, axis=1).astype(np.int64)
    pair, which = np.unique(ends[:, 0] * nodes + ends[:, 1], return_inverse=True)
    data = {
        "x": _rows(raw / "node-feat.csv.gz", np.float32, nodes),
        "edge_index": np.stack([pair // nodes, pair % nodes]),
        "edge_weight": np.bincount(which, weights=weight[:, 0]).astype(np.float32),
    }
    split = {}
    for part in _PARTS:
        file = folder / "split" / scheme / f"{part}.pt"
        try:
            held = read_torch(file.read_bytes())
            wanted = ("edge",) if part == "train" else ("edge", "edge_neg")
            split[part] = {name: held[name] for name in wanted}
            for pairs in split[part].values():
                check_range(pairs, nodes, "node")
        except Exception as error:
            # A garbled pickle ends in any of a dozen exceptions.
            raise ValueError(f"{file.name} {reason(error)}") from error
    return _undirected(data, split)


def _undirected(data: dict[str, np.ndarray], split: dict[str, Any]) -> Graph:
    tensors = {name: torch.from_numpy(array) for name, array in data.items()}
    with warnings.catch_warnings():
        # Nobody can change what was published: self-loops, and edges that are there
        # in both directions.
        warnings.simplefilter("ignore", UserWarning)
        return Graph.from_pyg(tensors, split=split, directed=False)


def _edges(raw: Path, nodes: int, edges: int) -> np.ndarray:
    """(E, 2): source and target."""
    dtype = np.int32 if nodes <= INT32_MAX else np.int64
    edge = _rows(raw / "edge.csv.gz", dtype, edges, 2)
    check_range(edge, nodes, "node")
    return edge


def _rows(path: Path, dtype: Any, count: int, columns: int | None = None) -> np.ndarray:
    """A table that has as many rows as the graph has nodes or edges."""
    table = read_table(path, dtype, count, columns)
    if len(table) < count:
        raise ValueError(
            f"{path.name} has {len(table)} of {count} rows: it is cut short"
        )
    return table


def _count(path: Path) -> int:
    numbers = read_table(path, np.int64, 2, 1)
    if len(numbers) != 1:
        raise ValueError(f"{path.name} tells of several graphs or none, not one")
    return int(numbers[0, 0])


def _classes(labels: np.ndarray, nodes: int) -> np.ndarray:
    """(N,) int64 of numbers that may be floats, and NaN where there is none: -1."""
    there = ~np.isnan(labels)
    whole = np.where(there, labels, 0).astype(np.int64)
    if (whole[there] != labels[there]).any():
        raise ValueError("a label is no whole number")
    check_range(whole, nodes, "class")
    return np.where(there, whole, -1).reshape(-1)


def _node_split(folder: Path, nodes: int) -> dict[str, np.ndarray]:
    split = {
        part: read_table(folder / f"{part}.csv.gz", np.int64, nodes, 1)[:, 0]
        for part in _PARTS
    }
    for numbers in split.values():
        check_range(numbers, nodes, "node")
    return split


def _register(
    name: str,
    read: Callable[[Path, str], Graph],
    raw: tuple[str, ...],
    archive: str,
    scheme: str,
    about: str,
    tuned: float | None = None,
    tuned_by: str = "",
) -> None:
    """Register one of OGB's graphs.

    Args:
        name: OGB's own.
        read: its layout's reader.
        raw: files below ``raw``.
        archive: its zip below `SOURCE`, whose top folder has the same name.
        scheme: the name of the published split.
        about: for ``gebt datasets``.
        tuned: as in `Facts`.
        tuned_by: as in `Facts`.
    """
    links = read is read_links
    facts = Facts(
        group="OGB",
        task="link-prediction" if links else "node-classification",
        metric="Hits@50" if links else "accuracy",
        split=f"published (Hu et al. 2020), by {scheme.replace('_', ' ')}",
        tuned=tuned,
        tuned_by=tuned_by,
    )
    title = name.replace("-", "_").replace("100m", "100M")
    end = ".pt" if links else ".csv.gz"
    files = [f"raw/{file}" for file in raw]
    files += [f"split/{scheme}/{part}{end}" for part in _PARTS]

    def parse(folder: Path) -> Graph:
        try:
            return read(folder, scheme)
        except Exception as error:
            raise ValueError(
                f"the files of {title} in {folder} are truncated or corrupt "
                f"({reason(error)}). Delete the folder to download it again."
            ) from error

    places = [f"{title}/{file}" for file in files]

    @register(name, about=about, files=places, facts=facts)
    def load(root: Path) -> Graph:
        folder = root / title
        _fetch(folder, files, archive)
        return cached(folder, files, name, partial(parse, folder))


def _fetch(folder: Path, files: list[str], archive: str) -> None:
    """Download and unpack the files, or say what to put where."""
    root, url = folder.parent, f"{SOURCE}/{archive}"
    if not _missing(folder, files):
        return
    made = [path for path in (root, *root.parents) if not path.exists()]
    try:
        root.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(root):
            if not (missing := _missing(folder, files)):
                return  # of several processes another was first
            if folder.exists():
                raise ValueError(
                    f"{folder} is not whole: it lacks {', '.join(missing)}. Put what "
                    f"is missing there, of {url}, or delete the folder to download it "
                    "again."
                )
            fetch_archive(url, root, Path(archive).stem, folder)
    except OSError as error:
        raise FileNotFoundError(
            f"{folder.name} is not in {root.absolute()} and could not be downloaded "
            f"({type(error).__name__}: {str(error).strip('<>')}). Put {url} there as "
            f"it is, or unpacked, so that {folder.name}/{files[0]} is a file. Another "
            "folder: --root, or $GEBT_DATA."
        ) from error
    finally:
        for path in made:
            with suppress(OSError):  # something is in it
                path.rmdir()
    if missing := _missing(folder, files):
        raise ValueError(f"{url} lacks {', '.join(missing)}. Delete {folder}.")


def _missing(folder: Path, files: list[str]) -> list[str]:
    return [file for file in files if not (folder / file).is_file()]


_register(
    "ogbn-arxiv",
    read_nodes,
    (*_NODE, *_COUNTS),
    "nodeproppred/arxiv.zip",
    "time",
    "169,343 papers, 1.2 M citations",
    73.5,
    "GCN, Luo et al. 2024",
)
_register(
    "ogbn-products",
    read_nodes,
    (*_NODE, *_COUNTS),
    "nodeproppred/products.zip",
    "sales_ranking",
    "2.4 M products, 61.9 M links",
    82.3,
    "GCN, Luo et al. 2024",
)
_register(
    "ogbn-papers100m",
    read_binary_nodes,
    _BINARY,
    "nodeproppred/papers100M-bin.zip",
    "time",
    "111 M papers, 1.6 G links; 57 GB",
)
_register(
    "ogbl-collab",
    read_links,
    (*_LINK, *_COUNTS),
    "linkproppred/collab.zip",
    "time",
    "235,868 authors, 1.2 M links",
)


@contextmanager
def ogb_package() -> Iterator[None]:
    """Inside, the ``ogb`` package is imported and loads its data sets, where installed.

    It does not ask the network for a newer version, which keeps a process from ending
    as long as no answer comes, and torch takes the classes of its own files::

        with gebt.datasets.ogb_package():
            from ogb.nodeproppred import PygNodePropPredDataset

            dataset = PygNodePropPredDataset("ogbn-arxiv", root)
        graph = gebt.Graph.from_pyg(
            dataset[0], split=dataset.get_idx_split(), directed=False
        )

    The files are then the package's: ``processed`` is unpickled by torch's own
    restricted reader. `load` needs none of it.
    """
    from torch_geometric.data.data import DataEdgeAttr, DataTensorAttr
    from torch_geometric.data.storage import GlobalStorage

    array = np.zeros(1).__reduce__()[0]
    safe: list[Any] = [DataEdgeAttr, DataTensorAttr, GlobalStorage, np.ndarray]
    safe += [array, (array, "numpy.core.multiarray._reconstruct"), np.dtype]
    safe += [type(np.dtype(kind)) for kind in ("i4", "i8", "f4", "f8")]
    known = sys.modules.get("outdated", ...)
    # `import ogb` takes a missing package for none to ask with.
    sys.modules["outdated"] = None  # type: ignore[assignment]
    try:
        with torch.serialization.safe_globals(safe):
            yield
    finally:
        del sys.modules["outdated"]
        if known is not ...:
            sys.modules["outdated"] = known
