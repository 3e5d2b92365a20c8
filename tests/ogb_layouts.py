"""Small data sets in the layouts of OGB's own raw files, drawn anew by seed."""

import gzip
import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

Arrays = dict[str, np.ndarray]


def draw_nodes(seed: int = 0, nodes: int = 240, classes: int = 4) -> Arrays:
    """Communities with directed edges, some in both directions; features of them."""
    draw = np.random.default_rng(seed)
    label = np.arange(nodes) % classes
    edge = draw.integers(0, nodes, (6 * nodes, 2))
    near = draw.random(len(edge)) < 0.8
    edge[near, 1] -= (label[edge[near, 1]] - label[edge[near, 0]]) % classes
    edge[:, 1] %= nodes
    edge = np.unique(edge[edge[:, 0] != edge[:, 1]], axis=0)
    own = np.eye(classes)[label].repeat(8, axis=1)
    return {
        "edge": draw.permutation(np.concatenate([edge, edge[:20, ::-1]])),
        "feat": (draw.normal(size=own.shape) + own).astype(np.float32),
        "label": label,
        **dict(
            zip(
                ("train", "valid", "test"),
                np.split(draw.permutation(nodes), [nodes // 2, 3 * nodes // 4]),
                strict=True,
            )
        ),
    }


def write_csv(path: Path, rows: Any) -> None:
    """A csv.gz without a header; floats so that they are read back as they were."""
    rows = np.asarray(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    np.savetxt(text, rows, "%.9g" if rows.dtype.kind == "f" else "%d", ",")
    path.write_bytes(gzip.compress(text.getvalue().encode(), 1))


def write_nodes(
    root: Path, arrays: Arrays, name: str = "ogbn_arxiv", scheme: str = "time"
) -> Path:
    """As ogbn-arxiv and ogbn-products; gives the folder."""
    folder, raw = root / name, root / name / "raw"
    _write_graph(raw, arrays)
    write_csv(raw / "node-label.csv.gz", arrays["label"])
    write_csv(raw / "node_year.csv.gz", 2000 + arrays["label"])
    _write_split(folder / "split" / scheme, arrays)
    _write_rest(folder)
    return folder


def write_binary_nodes(root: Path, arrays: Arrays) -> Path:
    """As ogbn-papers100M: npz, labels as floats with NaN for nodes of no part."""
    folder, raw = root / "ogbn_papers100M", root / "ogbn_papers100M" / "raw"
    raw.mkdir(parents=True)
    label = arrays["label"].astype(np.float32)[:, None]
    parts = [arrays[part] for part in ("train", "valid", "test")]
    label[np.setdiff1d(np.arange(len(label)), np.concatenate(parts))] = np.nan
    np.savez_compressed(
        raw / "data.npz",
        edge_index=arrays["edge"].T,
        node_feat=arrays["feat"],
        node_year=2000 + arrays["label"][:, None],
        num_nodes_list=np.array([len(label)]),
        num_edges_list=np.array([len(arrays["edge"])]),
    )
    np.savez_compressed(raw / "node-label.npz", node_label=label)
    _write_split(folder / "split" / "time", arrays)
    _write_rest(folder)
    return folder


def draw_links(seed: int = 0, nodes: int = 240) -> dict[str, Any]:
    """Joint papers of two authors in a year: pairs come again, with weights."""
    draw = np.random.default_rng(seed)
    known = draw_nodes(seed, nodes)
    edge = known["edge"]
    edge = np.concatenate([edge, edge[:50], edge[50:90, ::-1]])
    held_out = np.unique(draw.integers(0, nodes, (200, 2)), axis=0)

    def part(edges: np.ndarray, year: int) -> Arrays:
        many = {"weight": draw.integers(1, 5, len(edges))}
        return {"edge": edges, **many, "year": np.full(len(edges), year)}

    def negative() -> Arrays:
        return {"edge_neg": draw.integers(0, nodes, (120, 2))}

    split = {
        "train": part(edge, 2017),
        "valid": part(held_out[::2], 2018) | negative(),
        "test": part(held_out[1::2], 2019) | negative(),
    }
    return {"feat": known["feat"], "split": split}


def write_links(root: Path, drawn: dict[str, Any], torch_is: str = "new") -> Path:
    """As ogbl-collab.

    Args:
        root: where ``ogbl_collab`` goes.
        drawn: by `draw_links`.
        torch_is: which wrote the splits: "new", "old" (a zip with NumPy's names before
            2.0), "legacy" (no zip, these names), or "tensors", not arrays.
    """
    folder, raw = root / "ogbl_collab", root / "ogbl_collab" / "raw"
    train = drawn["split"]["train"]
    _write_graph(raw, {"feat": drawn["feat"], "edge": train["edge"]})
    write_csv(raw / "edge_weight.csv.gz", train["weight"])
    write_csv(raw / "edge_year.csv.gz", train["year"])
    for part, held in drawn["split"].items():
        file = folder / "split" / "time" / f"{part}.pt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(saved_by_torch(held, torch_is))
    _write_rest(folder)
    return folder


def saved_by_torch(held: Arrays, torch_is: str) -> bytes:
    """What ``torch.save`` writes, or wrote when it was "old" or "legacy"."""
    file = io.BytesIO()
    if torch_is == "tensors":
        torch.save({name: torch.from_numpy(a) for name, a in held.items()}, file)
        return file.getvalue()
    torch.save(held, file, _use_new_zipfile_serialization=torch_is != "legacy")
    if torch_is == "new":
        return file.getvalue()
    # NumPy 2 calls its module numpy._core; OGB's files are older.
    names = b"cnumpy._core.multiarray", b"cnumpy.core.multiarray"
    if torch_is == "legacy":
        return file.getvalue().replace(*names)
    renamed = io.BytesIO()
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(renamed, "w") as new:
        for member in old.infolist():
            new.writestr(member.filename, old.read(member).replace(*names))
    return renamed.getvalue()


def zipped(folder: Path, top: str) -> bytes:
    """The archive that OGB publishes of such a folder."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, Path(top) / file.relative_to(folder))
    return content.getvalue()


def _write_graph(raw: Path, arrays: Arrays) -> None:
    write_csv(raw / "edge.csv.gz", arrays["edge"])
    write_csv(raw / "num-node-list.csv.gz", [len(arrays["feat"])])
    write_csv(raw / "num-edge-list.csv.gz", [len(arrays["edge"])])
    write_csv(raw / "node-feat.csv.gz", arrays["feat"])


def _write_split(folder: Path, arrays: Arrays) -> None:
    for part in ("train", "valid", "test"):
        write_csv(folder / f"{part}.csv.gz", arrays[part])


def _write_rest(folder: Path) -> None:
    write_csv(folder / "mapping" / "nodeidx2id.csv.gz", [0])
    (folder / "processed").mkdir()
    (folder / "RELEASE_v1.txt").touch()
