"""OGB's layouts: what is in them, loaded twice, and files that are not whole."""

import gzip
import io
import os
import sys
import zipfile
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import assert_refused, launch, lines, run_python
from ogb_layouts import (
    draw_links,
    draw_nodes,
    saved_by_torch,
    write_binary_nodes,
    write_csv,
    write_links,
    write_nodes,
)

from gebt import Graph, NodeClassification, load
from gebt.datasets import DATASETS, ogb
from gebt.datasets.cache import CACHE
from gebt.graph import LinkSplit

SEED = 7


@pytest.fixture(autouse=True)
def no_network(tmp_path, monkeypatch):
    """What is missing cannot be had."""
    monkeypatch.setattr(ogb, "SOURCE", (tmp_path / "nowhere").as_uri())


def by_pyg(arrays, **fields) -> Graph:
    """The same graph by `Graph.from_pyg`."""
    data = {"x": arrays["feat"], "edge_index": arrays["edge"].T, "y": arrays["label"]}
    split = {part: arrays[part] for part in ("train", "valid", "test")}
    with pytest.warns(UserWarning, match="edges again"):
        return Graph.from_pyg(data | fields, split=split, directed=False)


def assert_same(graph: Graph, other: Graph) -> None:
    assert graph.fingerprint() == other.fingerprint()
    for part, pairs in vars(other.split).items():
        assert torch.equal(getattr(graph.split, part), pairs)


def spoil_unseen(folder: Path) -> None:
    """Other bytes in every raw file, of the same size and time."""
    for file in [*folder.rglob("*.gz"), *folder.rglob("*.npz"), *folder.rglob("*.pt")]:
        times = file.stat().st_atime_ns, file.stat().st_mtime_ns
        file.write_bytes(bytes(file.stat().st_size))
        os.utime(file, ns=times)


@pytest.mark.parametrize(
    "name, folder, scheme",
    [
        ("ogbn-arxiv", "ogbn_arxiv", "time"),
        ("OGBN-products", "ogbn_products", "sales_ranking"),
    ],
)
def test_node_tables_are_read_once_and_then_mapped(tmp_path, name, folder, scheme):
    arrays = draw_nodes(SEED)
    place = write_nodes(tmp_path, arrays, folder, scheme)
    assert DATASETS.find(name).on_disk(tmp_path)
    expected = by_pyg(arrays)
    first = load(name, tmp_path)
    assert_same(first, expected)
    assert first.name == name.lower()
    assert sorted(path.name for path in place.iterdir()) == sorted(
        [CACHE, "RELEASE_v1.txt", "mapping", "processed", "raw", "split"]
    )
    spoil_unseen(place)  # nothing reads them again
    assert_same(load(name, tmp_path), expected)


def test_every_citation_joins_both_ways(tmp_path):
    write_nodes(tmp_path, arrays := draw_nodes(SEED))
    graph = load("ogbn-arxiv", tmp_path)
    expected = np.zeros((240, 240), dtype=np.float32)
    expected[tuple(arrays["edge"].T)] = 1
    dense = graph.adjacency.to_dense().numpy()
    assert np.array_equal(dense, np.maximum(expected, expected.T))
    assert np.array_equal(graph.x.numpy(), arrays["feat"])


def test_binary_files_are_read_with_classes_for_some(tmp_path):
    arrays = draw_nodes(SEED)
    arrays["test"] = arrays["test"][:30]
    place = write_binary_nodes(tmp_path, arrays)
    known = np.concatenate([arrays[part] for part in ("train", "valid", "test")])
    label = np.full(240, -1)
    label[known] = arrays["label"][known]
    expected = by_pyg(arrays, y=label)
    assert_same(load("ogbn-papers100M", tmp_path), expected)
    spoil_unseen(place)
    graph = load("ogbn-papers100m", tmp_path)
    assert_same(graph, expected)
    assert int((graph.y < 0).sum()) == 30


@pytest.mark.parametrize("torch_is", ["new", "old", "legacy", "tensors"])
def test_links_are_read_with_their_weights_and_pairs(tmp_path, torch_is):
    drawn = draw_links(SEED)
    place = write_links(tmp_path, drawn, torch_is)
    train = drawn["split"]["train"]
    weight = np.zeros((240, 240))
    for (a, b), w in zip(train["edge"], train["weight"], strict=True):
        weight[a, b] += w
        weight[b, a] += w
    for _ in range(2):
        graph = load("ogbl-collab", tmp_path)
        assert np.array_equal(graph.adjacency.to_dense().numpy(), weight)
        assert torch.equal(graph.adjacency.weight, graph.adjacency.value)
        assert graph.y is None and isinstance(graph.split, LinkSplit)
        for part, key in (("train", "train"), ("val", "valid"), ("test", "test")):
            held = drawn["split"][key]
            assert np.array_equal(getattr(graph.split, part), held["edge"])
            if part != "train":
                negative = getattr(graph.split, f"{part}_negative")
                assert np.array_equal(negative, held["edge_neg"])
        spoil_unseen(place)


# ------------------------------------------------------------- what is not whole


def refused(name: str, root: Path, said: str) -> None:
    """One line, and nothing but the raw files is left."""
    before = sorted(root.rglob("*"))
    with pytest.raises((ValueError, OSError), match=said) as error:
        load(name, root)
    assert "\n" not in str(error.value)
    assert sorted(root.rglob("*")) == before


@pytest.mark.parametrize("missing", range(8))
def test_what_is_half_downloaded_is_named(tmp_path, missing):
    folder = write_nodes(tmp_path / "root", draw_nodes())
    file = DATASETS["ogbn-arxiv"].files[missing]
    (folder.parent / file).unlink()
    lacks = f"not whole: it lacks {file.removeprefix('ogbn_arxiv/')}. Put what is"
    refused("ogbn-arxiv", folder.parent, lacks)


@pytest.mark.parametrize(
    "file, rows, said",
    [
        ("raw/edge.csv.gz", [[0, 1], [1, 2]], r"edge.csv.gz has 2 of \d+ rows"),
        ("raw/edge.csv.gz", np.ones((1500, 2)), "edge.csv.gz has more rows than"),
        ("raw/edge.csv.gz", [[0, 1, 2]], "edge.csv.gz has 3 columns, not 2"),
        ("raw/node-feat.csv.gz", np.ones((239, 3)), "node-feat.csv.gz has 239 of 240"),
        ("raw/node-label.csv.gz", np.ones(241), "node-label.csv.gz has more rows"),
        ("raw/node-label.csv.gz", np.full(240, 0.5), "a label is no whole number"),
        ("raw/node-label.csv.gz", np.full(240, -1), "class -1, outside of"),
        ("raw/node-label.csv.gz", np.full(240, 10**9), "class 1000000000, outside"),
        ("raw/node-feat.csv.gz", np.full((240, 3), np.nan), "must be finite"),
        ("raw/num-node-list.csv.gz", [240, 240], "tells of several graphs or none"),
        ("raw/num-node-list.csv.gz", [10**15], "has 240 of 1000000000000000 rows"),
        ("raw/num-edge-list.csv.gz", [10**15], r"edge.csv.gz has \d+ of 10{15} rows"),
        ("raw/num-edge-list.csv.gz", [], "tells of several graphs or none"),
        ("split/time/valid.csv.gz", [240], "names node 240, outside of"),
        ("split/time/train.csv.gz", [[1, 2]], "train.csv.gz has 2 columns, not 1"),
    ],
)
def test_tables_that_do_not_fit_are_refused(tmp_path, file, rows, said):
    folder = write_nodes(tmp_path, draw_nodes(SEED))
    write_csv(folder / file, rows)
    refused("ogbn-arxiv", tmp_path, f"truncated or corrupt .*{said}")


_gzip = partial(gzip.compress, mtime=0)  # else tests' names would hold the time


@pytest.mark.parametrize(
    "content, said",
    [
        (b"", "edge.csv.gz has 0 of"),
        (b"no gzip", "edge.csv.gz is cut short or garbled .*Not a gzipped file"),
        (_gzip(b"0,1\n" * 900)[:-9], "edge.csv.gz is cut short or garbled"),
        (_gzip(b"0,1\n" * 900)[:-8] + bytes(8), "cut short or garbled .*CRC"),
        (_gzip(b"0,1\n1,x\n"), "else than a table .*'x' to int32 at row 1"),
        (_gzip(b"0,1\n1,9999999999\n"), "'9999999999' to int32"),
        (_gzip(b"0,1\n1,-1\n" * 10), r"has 20 of \d+ rows"),
    ],
)
def test_a_garbled_table_is_refused(tmp_path, content, said):
    folder = write_nodes(tmp_path, draw_nodes(SEED))
    (folder / "raw" / "edge.csv.gz").write_bytes(content)
    refused("ogbn-arxiv", tmp_path, f"truncated or corrupt .*{said}")


def test_a_node_that_is_not_there_is_refused(tmp_path):
    arrays = draw_nodes(SEED)
    arrays["edge"][7, 1] = 240
    write_nodes(tmp_path, arrays)
    refused("ogbn-arxiv", tmp_path, "names node 240, outside of")


@pytest.mark.parametrize(
    "name, change, said",
    [
        ("data", {"edge_index": np.zeros((2, 9), int)}, r"edge_index .* \(2, 9\), for"),
        ("data", {"node_feat": np.zeros((9, 2))}, r"node_feat of data.npz is \(9, 2\)"),
        ("data", {"num_nodes_list": np.array([1, 2])}, "holds 2 graphs, not one"),
        ("data", {"edge_index": None}, "lacks edge_index.npy"),
        ("node-label", {"node_label": np.zeros((9, 1))}, "has 9 of 240 labels"),
    ],
)
def test_binary_files_that_do_not_fit_are_refused(tmp_path, name, change, said):
    folder = write_binary_nodes(tmp_path, draw_nodes(SEED))
    file = folder / "raw" / f"{name}.npz"
    with np.load(file) as held:
        arrays = {**held, **change}
    np.savez(file, **{k: v for k, v in arrays.items() if v is not None})
    refused("ogbn-papers100m", tmp_path, f"truncated or corrupt .*{said}")


def test_a_binary_file_that_is_cut_short_is_refused(tmp_path):
    file = write_binary_nodes(tmp_path, draw_nodes(SEED)) / "raw" / "data.npz"
    file.write_bytes(file.read_bytes()[:-200])
    refused("ogbn-papers100m", tmp_path, "truncated or corrupt .*zip file")


class Trap:
    """Unpickled, it makes a folder."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self):
        return os.mkdir, (str(self.place),)


@pytest.mark.parametrize("torch_is", ["new", "legacy"])
def test_a_split_that_would_run_code_does_not(tmp_path, torch_is):
    folder = write_links(tmp_path / "root", draw_links(SEED))
    held = saved_by_torch({"edge": Trap(tmp_path / "ran")}, torch_is)
    (folder / "split" / "time" / "valid.pt").write_bytes(held)
    refused("ogbl-collab", folder.parent, "valid.pt would run 'posix.mkdir': refused")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "held, said",
    [
        ({"edge": np.array([[0, 1]])}, "test.pt .*edge_neg"),
        ({"edge": np.array([[0, 9]]), "edge_neg": np.array([[0, 240]])}, "node 240"),
        ({"edge": [[0, 1]]}, "test.pt has a list in the place of an array"),
        ({"edge": np.array([{}, None])}, "not of numbers"),
        ({f"{k}": np.arange(2) for k in range(17)}, "else than a dict of a few"),
        (np.array([[0, 1]]), "test.pt holds something else than a dict"),
        ({"edge": np.array([[0.0, 1.0]]), "edge_neg": np.array([[0, 1]])}, "integers"),
    ],
)
def test_splits_of_anything_else_are_refused(tmp_path, held, said):
    folder = write_links(tmp_path, draw_links(SEED))
    file = folder / "split" / "time" / "test.pt"
    with file.open("wb") as opened:
        torch.save(held, opened)
    refused("ogbl-collab", tmp_path, f"truncated or corrupt .*{said}")


def test_a_tensor_past_its_storage_is_refused(tmp_path):
    drawn = draw_links(SEED)
    drawn["split"]["test"]["edge"] = np.arange(96).reshape(48, 2)
    folder = write_links(tmp_path, drawn, "tensors")
    file = folder / "split" / "time" / "test.pt"
    rows = b"K\x30K\x02\x86"  # (48, 2) in the pickle
    content = file.read_bytes()
    assert content.count(rows) == 1
    file.write_bytes(without_crc(content.replace(rows, b"K\xfdK\x02\x86")))
    refused("ogbl-collab", tmp_path, r"shape \(253, 2\) is larger than its storage")


def without_crc(content: bytes) -> bytes:
    """The zip again, so that its checksums are those of its contents."""

    again = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(content)) as old,
        zipfile.ZipFile(again, "w") as new,
    ):
        for member in old.infolist():
            with old.open(member) as file:
                file._expected_crc = None
                new.writestr(member.filename, file.read())
    return again.getvalue()


# --------------------------------------------------------------- one command


def from_raw_files(name: str, root: Path, out: Path) -> tuple:
    """`gebt run NAME`, from OGB's raw files to a compact ticket."""
    return (
        *("run", name, "--root", root, "--out", out, "--quiet", "--epochs", 30),
        *("--graph-ratio", 0.3, "--weight-ratio", 0.5, "--model", "gcn"),
    )


@pytest.mark.parametrize("name", ["ogbn-arxiv", "ogbl-collab"])
def test_from_raw_files_to_a_compact_ticket_by_one_command(gebt_here, tmp_path, name):
    from gebt import Ticket, load_compact

    root = tmp_path / "root"
    if name == "ogbn-arxiv":
        write_nodes(root, draw_nodes(SEED))
    else:
        write_links(root, draw_links(SEED), "legacy")
    found = []
    for again in ("first", "second"):  # the second maps the cache
        answer = gebt_here(*from_raw_files(name, root, tmp_path / again))
        assert answer.returncode == 0, answer.stderr
        ticket = Ticket.load(tmp_path / again / "ticket.safetensors")
        found.append(ticket)
        _, small = load_compact(tmp_path / again / "compact.safetensors")
        assert small.links_kept == int(ticket.link_mask.sum())
    assert torch.equal(found[0].link_mask, found[1].link_mask)
    graph = load(name, root)
    assert found[0].dataset["fingerprint"] == graph.fingerprint()
    removed = int(0.3 * graph.num_links)
    assert int(found[0].link_mask.sum()) == graph.num_links - removed
    task = found[0].options["task"]["name"]
    assert task == ("link-prediction" if "collab" in name else "node-classification")


@pytest.mark.slow
def test_two_ranks_draw_the_ticket_of_one_process_from_raw_files(gebt_here, tmp_path):
    from gebt import Ticket, load_compact

    name, roots = "ogbn-arxiv", [tmp_path / "root-1", tmp_path / "root-2"]
    for root in roots:
        write_nodes(root, draw_nodes(SEED))
    outs = [tmp_path / "one", tmp_path / "two"]
    two = launch(2, "-m", "gebt", *from_raw_files(name, roots[1], outs[1]))
    assert gebt_here(*from_raw_files(name, roots[0], outs[0])).returncode == 0
    _, errors = lines(two)
    assert two.returncode == 0, errors
    one, other = (Ticket.load(out / "ticket.safetensors") for out in outs)
    assert torch.equal(one.link_mask, other.link_mask)
    for part, mask in one.weight_masks.items():
        assert torch.equal(mask, other.weight_masks[part])
    assert (one.epoch, one.dataset) == (other.epoch, other.dataset)
    for out in outs:
        _, small = load_compact(out / "compact.safetensors")
        assert small.links_kept == int(one.link_mask.sum())


def test_the_command_line_says_in_one_line_what_is_wrong(gebt_here, tmp_path):
    folder = write_nodes(tmp_path / "root", draw_nodes(SEED))
    (folder / "raw" / "edge.csv.gz").write_bytes(b"")
    root = folder.parent
    answer = gebt_here(*from_raw_files("ogbn-arxiv", root, tmp_path / "out"))
    assert_refused(answer, "ogbn_arxiv", "truncated or corrupt", "Delete the folder")
    assert not (tmp_path / "out").exists()
    answer = gebt_here(*from_raw_files("ogbl-collab", root, tmp_path / "o"))
    assert_refused(
        answer, "ogbl_collab is not in", "Put file:", "--root, or $GEBT_DATA"
    )
    answer = gebt_here("run", "ogbn-arxv")
    assert_refused(answer, "no dataset 'ogbn-arxv'", "Did you mean 'ogbn-arxiv'?")


# ------------------------------------------------------------ the ogb package


needs_ogb = pytest.mark.skipif(
    find_spec("ogb") is None, reason="needs the ogb package: pip install ogb"
)


@needs_ogb
def test_the_package_loads_its_data_sets_without_asking_the_network(tmp_path):
    code = """
import sys, threading
import gebt
with gebt.datasets.ogb_package():
    from ogb.linkproppred import PygLinkPropPredDataset
    from ogb.nodeproppred import PygNodePropPredDataset
    assert threading.active_count() == 1
    for _ in range(2):  # the second reads `processed`
        nodes = PygNodePropPredDataset("ogbn-arxiv", sys.argv[1])
        links = PygLinkPropPredDataset("ogbl-collab", sys.argv[1])
        split = links.get_edge_split()
graph = gebt.Graph.from_pyg(nodes[0], split=nodes.get_idx_split(), directed=False)
print(graph.fingerprint())
assert gebt.Graph.from_pyg(links[0], split=split, directed=False).num_links
"""
    write_nodes(tmp_path, draw_nodes(SEED))
    write_links(tmp_path, draw_links(SEED), "old")
    said = run_python(code, str(tmp_path)).split()[-1]
    assert said == load("ogbn-arxiv", tmp_path).fingerprint()


@needs_ogb
def test_accuracy_is_that_of_ogbs_evaluator(tmp_path):
    with ogb.ogb_package():
        from ogb.nodeproppred import Evaluator

    write_nodes(tmp_path, draw_nodes(SEED))
    graph = load("ogbn-arxiv", tmp_path)
    test = graph.split.test
    output = torch.randn(test.numel(), graph.num_classes)
    said = output.argmax(dim=1, keepdim=True)
    theirs = Evaluator("ogbn-arxiv").eval(
        {"y_true": graph.y[test, None], "y_pred": said}
    )
    ours = NodeClassification().score(output, graph, "test")
    assert ours == pytest.approx(100 * theirs["acc"])


def test_what_was_imported_before_is_there_afterwards():
    before = sys.modules.get("outdated", ...)
    with ogb.ogb_package():
        assert sys.modules["outdated"] is None
        assert np.ndarray in torch.serialization.get_safe_globals()
    assert sys.modules.get("outdated", ...) is before
    assert np.ndarray not in torch.serialization.get_safe_globals()
