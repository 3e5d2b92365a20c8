"""ppi, from small files of its layout: six graphs of a few nodes."""

import io
import json
import zipfile

import numpy as np
import pytest
import torch
from helpers import check_garbled

import gebt
from gebt import MultiLabel, load
from gebt.datasets import DATASETS
from gebt.datasets.ppi import FILES
from gebt.models import GCN

GRAPHS = {"train": (1, 2, 3), "valid": (4,), "test": (5, 6)}


def files() -> dict[str, bytes]:
    """Each graph is a ring of 5 to 8 nodes, listed both ways, with a self-loop."""
    draw = np.random.default_rng(0)
    made = {}
    for part, numbers in GRAPHS.items():
        sizes = draw.integers(5, 9, len(numbers))
        n = int(sizes.sum())
        arrays = {
            "feats": draw.normal(size=(n, 4)),
            "labels": (draw.random((n, 3)) < 0.4).astype(np.int64),
            "graph_id": np.repeat(numbers, sizes),
        }
        for name, array in arrays.items():
            held = io.BytesIO()
            np.save(held, array)
            made[f"{part}_{name}.npy"] = held.getvalue()
        links = [{"source": 0, "target": 0}]
        for start, size in zip(np.cumsum(sizes) - sizes, sizes, strict=True):
            for i in range(size):
                ends = [int(start + i), int(start + (i + 1) % size)]
                links += [{"source": a, "target": b} for a, b in (ends, reversed(ends))]
        graph = {"directed": True, "multigraph": False, "graph": {}, "links": links}
        graph["nodes"] = [{"id": i} for i in range(n)]
        made[f"{part}_graph.json"] = json.dumps(graph).encode()
    return made


@pytest.fixture
def root(tmp_path):
    for name, content in files().items():
        path = tmp_path / "ppi" / "raw" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path


def test_the_union_is_that_of_pygs_graphs(root):
    from torch_geometric.data import Batch
    from torch_geometric.datasets import PPI

    graph = load("ppi", root)
    parts = [PPI(str(root / "ppi"), split=p) for p in ("train", "val", "test")]
    assert [len(part) for part in parts] == [3, 1, 2]
    data = Batch.from_data_list([each for part in parts for each in part])
    torch.testing.assert_close(graph.x, data.x)
    assert torch.equal(graph.y, data.y.bool())
    peer = torch.zeros(graph.num_nodes, graph.num_nodes)
    peer[data.edge_index[1], data.edge_index[0]] = 1
    assert torch.equal(graph.adjacency.to_dense(), peer)
    ends = np.cumsum([sum(g.num_nodes for g in part) for part in parts]).tolist()
    for part, first, last in zip(vars(graph.split), [0, *ends], ends, strict=False):
        assert getattr(graph.split, part).tolist() == [*range(first, last)]
    assert MultiLabel().metric(graph) == DATASETS["ppi"].facts.metric


def test_no_link_joins_what_is_trained_on_and_what_is_not(root):
    graph = load("ppi", root)
    row, col = graph.adjacency.pattern.edge_index
    train = torch.zeros(graph.num_nodes, dtype=torch.bool)
    train[graph.split.train] = True
    assert torch.equal(train[row.long()], train[col.long()])
    model = GCN(graph.num_features, 8, graph.num_classes)
    gebt.train(model, graph, epochs=3, task=MultiLabel())
    assert 0 <= gebt.evaluate(model, graph, task=MultiLabel()) <= 100


def test_links_between_two_graphs_are_left_out_as_by_pyg(root):
    path = root / "ppi" / "raw" / "train_graph.json"
    given = json.loads(path.read_text())
    before = load("ppi", root).fingerprint()
    given["links"].append({"source": 0, "target": len(given["nodes"]) - 1})
    path.write_text(json.dumps(given))
    assert load("ppi", root).fingerprint() == before


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("test_graph.json", b"{}", "test_graph.json has no list of links"),
        ("test_graph.json", b"[" * 10**5, "test_graph.json RecursionError"),
        ("test_graph.json", b'{"links": [1]}', "has no list of links"),
        ("test_graph.json", b'{"links": [{}]}', "something that is not an integer"),
        (
            "test_graph.json",
            b'{"links": [{"source": 1, "target": 99}]}',
            "test_graph.json: names node 99",
        ),
        ("valid_labels.npy", files()["test_labels.npy"], "the valid files hold"),
        ("valid_feats.npy", files()["valid_feats.npy"][:-1], "claims the shape"),
        ("valid_feats.npy", b"", "valid_feats.npy is no array"),
        ("train_labels.npy", None, "something else than 0 and 1"),
    ],
)
def test_what_does_not_fit_is_refused_by_the_file(root, name, content, said):
    path = root / "ppi" / "raw" / name
    if content is None:
        np.save(path, 2 * np.load(path))
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=f"ppi in .* corrupt \\(.*{said}"):
        load("ppi", root)


def test_a_missing_archive_is_downloaded_and_unpacked(root, tmp_path, monkeypatch):
    archive = tmp_path / "ppi.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as made:
        for name, content in files().items():
            made.writestr(name, content)
    monkeypatch.setattr("gebt.datasets.ppi.SOURCE", archive.as_uri())
    new = tmp_path / "deep" / "new"
    assert load("ppi", new).fingerprint() == load("ppi", root).fingerprint()
    assert {p.name for p in new.rglob("*.*")} == {f.split("/")[-1] for f in FILES}
    monkeypatch.setattr("gebt.datasets.ppi.SOURCE", f"{tmp_path.as_uri()}/no.zip")
    with pytest.raises(FileNotFoundError, match=r"ppi is not in .*train_feats.npy"):
        load("ppi", tmp_path / "other")
    assert not (tmp_path / "other" / "ppi").exists()
    (new / FILES[0]).unlink()
    monkeypatch.setattr("gebt.datasets.ppi.SOURCE", archive.as_uri())
    with pytest.raises(FileNotFoundError, match="Put these .*: ppi/raw/train_feats"):
        load("ppi", new)  # beside other files nothing is unpacked


def test_a_garbled_file_is_a_graph_or_one_clear_error(root):
    check_garbled("ppi", root)
