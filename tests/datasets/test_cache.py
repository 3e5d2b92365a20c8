"""The cache: mapped, of the files that are there, made again where it is not."""

import json
import os
import shutil
import struct
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from helpers import header_of, run_python

from gebt import Graph, SparseMatrix
from gebt.datasets.cache import CACHE, FORMAT, cached, kept


@pytest.fixture
def folder(tmp_path):
    """A folder with a file that a graph is made from."""
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "seed.txt").write_text("0")
    return tmp_path / "set"


@pytest.fixture
def parse(folder, make_graph):
    """Makes the graph; counts how often."""

    def make():
        make.calls += 1
        seed = int((folder / "seed.txt").read_text())
        return make_graph(seed=seed, sparse=make.sparse)

    make.calls, make.sparse = 0, False
    return make


def ask(folder, parse, made="blocks") -> Graph:
    return cached(folder, ["seed.txt"], made, parse)


def assert_same(one: Graph, other: Graph) -> None:
    assert one.fingerprint() == other.fingerprint()
    assert (one.metric, one.num_links) == (other.metric, other.num_links)
    assert vars(one.split).keys() == vars(other.split).keys()
    for part, nodes in vars(one.split).items():
        assert torch.equal(nodes, getattr(other.split, part))


@pytest.mark.parametrize("sparse", [False, True])
def test_a_graph_is_parsed_once(folder, parse, sparse):
    parse.sparse = sparse
    expected = parse()
    for _ in range(3):
        graph = ask(folder, parse)
        assert_same(graph, expected)
        assert isinstance(graph.x, SparseMatrix) == sparse
    assert parse.calls == 2
    assert sorted(p.name for p in folder.iterdir()) == [CACHE, "seed.txt"]


def test_the_data_s_own_weights_are_known_as_such(folder, graph):
    weight = torch.rand(graph.adjacency.pattern.nnz) + 0.5
    adjacency = SparseMatrix(graph.adjacency.pattern, weight, weight)
    for _ in range(2):
        again = ask(folder, lambda: replace(graph, adjacency=adjacency))
        assert torch.equal(again.adjacency.value, weight)
        assert torch.equal(again.adjacency.weight, weight)


def test_tensors_lie_over_the_files_map(tmp_path):
    # In a process of its own: 64 MiB of features that take no memory until read, and
    # what is written to them stays out of the file.
    code = """
import sys, pathlib, torch
from gebt import Graph
from gebt.datasets.cache import cached

folder = pathlib.Path(sys.argv[1])
made = {"x": torch.ones(2**14, 2**10), "edge_index": torch.tensor([[0, 1], [1, 2]])}
make = lambda: Graph.from_pyg(made, directed=False)

def own():
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return int(next(l for l in lines if l.startswith("RssAnon")).split()[1]) // 2**10

cached(folder, [], "ones", make)
del made
before = own()
graphs = [cached(folder, [], "ones", make) for _ in range(4)]
assert own() - before < 32, (before, own())
graphs[0].x.zero_()
assert graphs[1].x.sum() == 2**24
assert cached(folder, [], "ones", make).x.sum() == 2**24
print("mapped")
"""
    assert run_python(code, str(tmp_path)).strip() == "mapped"


def test_other_sources_make_another_graph(folder, parse):
    first = ask(folder, parse)
    (folder / "seed.txt").write_text("11")
    second = ask(folder, parse)
    assert first.fingerprint() != second.fingerprint()
    assert parse.calls == 2
    assert_same(ask(folder, parse), second)


def test_a_source_of_the_same_size_is_found_out_by_its_hash(folder, parse):
    first = ask(folder, parse)
    (folder / "seed.txt").write_text("1")
    os.utime(folder / "seed.txt", ns=(1, 1))
    assert ask(folder, parse).fingerprint() != first.fingerprint()
    assert parse.calls == 2


def test_a_copy_of_the_folder_needs_no_parsing(folder, parse, tmp_path):
    first = ask(folder, parse)
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    os.utime(copy / "seed.txt", ns=(1, 1))
    assert_same(ask(copy, parse), first)
    assert parse.calls == 1


def with_header(content: bytes, **changes) -> bytes:
    """A safetensors file whose header says something else."""
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    inner = json.loads(header["__metadata__"]["gebt"]) | changes
    header["__metadata__"]["gebt"] = json.dumps(inner)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + content[8 + size :]


def with_column(content: bytes, column: int) -> bytes:
    """A cache whose first entry is in another column."""
    size = struct.unpack("<Q", content[:8])[0]
    at = (
        8 + size + json.loads(content[8 : 8 + size])["adjacency/col"]["data_offsets"][0]
    )
    return content[:at] + struct.pack("<i", column) + content[at + 4 :]


@pytest.mark.parametrize(
    "spoil, said",
    [
        (
            lambda c: with_header(c, format=FORMAT + 1),
            f"format {FORMAT + 1}, this gebt",
        ),
        (lambda c: with_header(c, format=None), "`format` must be a whole number"),
        (lambda c: with_header(c, kind="ticket"), "not a gebt cache"),
        (lambda c: with_header(c, made="other"), "of another graph"),
        (lambda c: with_header(c, sources=[]), "of another graph"),
        (lambda c: with_header(c, shapes={}), "lacks 'adjacency'"),
        (lambda c: c[:-8], "truncated or corrupt"),
        (lambda c: c[:100], "truncated or corrupt"),
        (lambda c: b"", "truncated or corrupt"),
        (lambda c: with_column(c, 10**9), "'adjacency/col' must lie in"),
        (lambda c: with_column(c, -1), "'adjacency/col' must lie in"),
    ],
)
def test_what_is_no_cache_of_this_gebts_is_made_again(
    folder, parse, caplog, spoil, said
):
    caplog.set_level("INFO", "gebt")
    expected = ask(folder, parse)
    path = folder / CACHE
    whole = path.read_bytes()
    path.unlink()  # the graph is mapped from it
    path.write_bytes(spoil(whole))
    caplog.clear()
    assert_same(ask(folder, parse), expected)
    assert parse.calls == 2
    first, *_ = (record.getMessage() for record in caplog.records)
    assert said in first and first.endswith(": it is made again") and "\n" not in first
    assert header_of(path)["sources"] == header_of(whole)["sources"]
    assert_same(ask(folder, parse), expected)
    assert parse.calls == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_parsed_at_each_load(folder, parse, caplog):
    caplog.set_level("INFO", "gebt")
    folder.chmod(0o555)
    try:
        for _ in range(2):
            ask(folder, parse)
    finally:
        folder.chmod(0o755)
    assert parse.calls == 2
    assert "made at each load" in caplog.records[-1].getMessage()
    assert [path.name for path in folder.iterdir()] == ["seed.txt"]


def test_where_no_file_can_be_written_the_graph_is_parsed(folder, parse, caplog):
    caplog.set_level("INFO", "gebt")
    (folder / CACHE).mkdir()  # in the way, also for root
    (folder / CACHE / "something").touch()
    assert ask(folder, parse).num_nodes == 120
    assert parse.calls == 1
    assert "made at each load" in caplog.records[-1].getMessage()
    assert sorted(path.name for path in folder.iterdir()) == [CACHE, "seed.txt"]


def test_a_full_disk_costs_the_cache_alone(tmp_path):
    # No file may be longer than 1 MiB in this process.
    code = """
import logging, pathlib, resource, sys, torch
from gebt import Graph
from gebt.datasets.cache import cached

logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
folder = pathlib.Path(sys.argv[1])
edges = torch.tensor([[0, 1], [1, 2]])
made = Graph.from_pyg({"x": torch.ones(2**10, 2**10), "edge_index": edges})
resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
assert cached(folder, [], "ones", lambda: made) is made
assert not [*folder.iterdir()]
"""
    said = run_python(code, str(tmp_path))
    assert "not kept, but made at each load" in said and "File too large" in said


def test_what_a_killed_process_left_goes(folder, parse):
    (folder / f".{CACHE}.0123").write_bytes(b"half of a cache")
    ask(folder, parse)
    assert sorted(p.name for p in folder.iterdir()) == [CACHE, "seed.txt"]


def test_of_several_that_ask_at_once_one_parses(folder, parse):
    # Locks of files do not know threads from processes.
    with ThreadPoolExecutor(4) as pool:
        graphs = [*pool.map(lambda _: ask(folder, parse), range(4))]
    assert len({graph.fingerprint() for graph in graphs}) == 1
    assert parse.calls == 1


def test_what_fails_to_parse_leaves_nothing(tmp_path):
    def fail():
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        kept(tmp_path / "drawn", "x", fail)
    assert not (tmp_path / "drawn").exists()


def test_what_is_drawn_is_kept(tmp_path, graph):
    first = kept(tmp_path / "drawn", "x", lambda: graph)
    again = kept(tmp_path / "drawn", "x", lambda: pytest.fail("drawn again"))
    assert_same(first, again)
    other = kept(tmp_path / "drawn", "y", lambda: replace(graph, y=None))
    assert other.y is None
    (tmp_path / "file").touch()  # where no folder can be
    assert kept(tmp_path / "file", "x", lambda: graph) is graph
