"""Raw dataset files that are garbled, or made to harm: a graph or one clear error.

Whatever is in the files, `load` ends soon, in this process, and runs none of it.
"""

import os
import pickle
import random
import zipfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import in_time, mutants, tolokers_like
from scipy.sparse import csr_matrix

from gebt import Graph, load

pytestmark = pytest.mark.slow

KNOWN, TEST, FEATURES, CLASSES = 508, 6, 5, 3


def values() -> dict:
    """What the eight files of a small graph hold: 6 nodes to train, 500 to validate,
    2 more, 6 to test, and one between them that no file describes."""
    draw = np.random.RandomState(0)
    n = KNOWN + TEST + 1
    x = csr_matrix((draw.rand(n, FEATURES) < 0.3).astype(np.float32))
    y = np.eye(CLASSES, dtype=np.int32)[np.arange(n) % CLASSES]
    order = KNOWN + draw.permutation(np.delete(np.arange(TEST + 1), 2))
    ends = [(i, (i + step) % n) for i in range(n) for step in (1, 7)]
    graph = defaultdict(list, {i: [] for i in range(n)})
    for low, high in [*ends, (3, 3), ends[0]]:  # a self-loop, and one link twice
        graph[low].append(high)
        graph[high].append(low)
    return {
        "x": x[:6],
        "tx": x[np.sort(order)],
        "allx": x[:KNOWN],
        "y": y[:6],
        "ty": y[np.sort(order)],
        "ally": y[:KNOWN],
        "graph": graph,
        "test.index": order,
    }


def python_2(value) -> bytes:
    """The value's pickle, opcode by opcode as in the published files."""

    def number(i: int) -> bytes:
        return b"J" + int(i).to_bytes(4, "little", signed=True)

    def text(s: bytes) -> bytes:
        return b"T" + len(s).to_bytes(4, "little") + s

    def array(a: np.ndarray) -> bytes:
        order, code = a.dtype.str[:1].encode(), a.dtype.str[1:].encode()
        shape = b"(" + b"".join(map(number, a.shape)) + b"t"
        kind = b"cnumpy\ndtype\n" + text(code) + b"K\x00K\x01\x87R(K\x03" + text(order)
        kind += b"NNN" + number(-1) + number(-1) + b"K\x00tb"
        made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b"
        return (
            made + b"\x87R(K\x01" + shape + kind + b"\x89" + text(a.tobytes()) + b"tb"
        )

    if isinstance(value, np.ndarray):
        body = array(value)
    elif isinstance(value, csr_matrix):
        shape = number(value.shape[0]) + number(value.shape[1]) + b"\x86"
        body = b"cscipy.sparse.csr\ncsr_matrix\n)\x81}(" + text(b"_shape") + shape
        for name in ("indptr", "indices", "data"):
            body += text(name.encode()) + array(getattr(value, name))
        body += b"ub"
    else:
        body = b"ccollections\ndefaultdict\nc__builtin__\nlist\n\x85R("
        for key, listed in value.items():
            body += number(key) + b"](" + b"".join(map(number, listed)) + b"e"
        body += b"u"
    return b"\x80\x02" + body + b"."


def content(part: str, value, pickled=python_2) -> bytes:
    if part == "test.index":
        return "".join(f"{i}\n" for i in value).encode()
    return pickled(value)


def write(root: Path, part: str, given: bytes) -> None:
    path = root / "CiteSeer" / "raw" / f"ind.citeseer.{part}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(given)


@pytest.fixture
def root(tmp_path) -> Path:
    """A folder with a small CiteSeer."""
    for part, value in values().items():
        write(tmp_path, part, content(part, value))
    return tmp_path


@pytest.fixture
def npz(tmp_path) -> Path:
    """The file of a small tolokers."""
    path = tmp_path / "tolokers" / "raw" / "tolokers.npz"
    path.parent.mkdir(parents=True)
    np.savez_compressed(path, **tolokers_like())
    return path


def test_the_small_graph_is_read_as_pyg_reads_it(root, tmp_path):
    from torch_geometric.io import read_planetoid_data

    graph = load("citeseer", root)
    data = read_planetoid_data(str(root / "CiteSeer" / "raw"), "citeseer")
    x = data.x / data.x.sum(dim=1, keepdim=True).clamp(min=1)
    dense = graph.x if isinstance(graph.x, torch.Tensor) else graph.x.to_dense()
    assert torch.equal(dense, x)
    assert torch.equal(graph.y, data.y)
    there = torch.zeros(graph.num_nodes, graph.num_nodes)
    there[data.edge_index[1], data.edge_index[0]] = 1
    assert torch.equal(graph.adjacency.to_dense(), there)
    for part in ("train", "val", "test"):
        nodes = data[f"{part}_mask"].nonzero().squeeze(1)
        assert torch.equal(getattr(graph.split, part), nodes)


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_files_that_python_3_wrote_are_the_same(root, tmp_path, protocol):
    before = load("citeseer", root).fingerprint()
    for part, value in values().items():
        again = content(part, value, lambda v: pickle.dumps(v, protocol))
        write(tmp_path / "again", part, again)
    assert load("citeseer", tmp_path / "again").fingerprint() == before


class Calls:
    """Unpickled, it calls what it is given."""

    def __init__(self, function, *args) -> None:
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("part", [p for p in values() if p != "test.index"])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_runs_a_command_does_not_run_it(root, part, protocol):
    marker = root / "ran"
    command = f"touch {marker}"
    write(root, part, pickle.dumps(Calls(os.system, command), protocol))
    with pytest.raises(ValueError, match=f"citeseer.{part} ") as error:
        load("citeseer", root)
    if protocol:
        assert f"would run '{os.system.__module__}.system': refused" in str(error.value)
    assert not marker.exists()


@pytest.mark.parametrize(
    "call, said",
    [
        (Calls(eval, "1"), "would run '(__builtin__|builtins).eval': refused"),
        (Calls(getattr, [], "sort"), "'(__builtin__|builtins).getattr': refused"),
        (Calls(defaultdict, os.getcwd), "would run '(posix|nt).getcwd': refused"),
        (np.array([{}, None]), "'.?O8', not of numbers"),
        (np.zeros(2, dtype=[("a", "i4")]), "'.?V4', not of numbers"),
        (np.zeros(2, dtype="U3"), "'.?U3', not of numbers"),
        ([1, 2], "holds a list"),
    ],
)
def test_a_pickle_of_anything_else_is_refused_by_name(root, call, said):
    for part in ("x", "ally"):
        write(root, part, pickle.dumps(call, 2))
        with pytest.raises(ValueError, match=f"citeseer.{part} .*{said}"):
            load("citeseer", root)
        write(root, part, content(part, values()[part]))


def csr(**changed) -> csr_matrix:
    matrix = values()["allx"]
    for name, change in changed.items():
        change(getattr(matrix, name))
    return matrix


def set_at(place, value):
    return lambda array: array.__setitem__(place, value)


def graph_with(node, listed) -> dict:
    graph = values()["graph"]
    graph[node] = listed
    return graph


def rows_with(part, row, value):
    table = values()[part].copy()
    table[row] = value
    return table


@pytest.mark.parametrize(
    "part, value, said",
    [
        ("allx", csr(indices=set_at(9, FEATURES)), r"names column 5, outside of \[0"),
        ("allx", csr(indices=set_at(9, -1)), "names column -1, outside"),
        ("allx", csr(indices=set_at(9, 2**31 - 1)), "names column 2147483647"),
        ("allx", csr(indptr=set_at(9, 0)), "does not ascend"),
        ("allx", csr(indptr=set_at(0, 1)), "does not ascend"),
        ("allx", csr(indptr=set_at(-1, 10**6)), "indptr ends at 1000000"),
        ("allx", csr(data=set_at(3, np.nan)), "holds NaN"),
        ("allx", csr(data=set_at(3, np.inf)), "holds NaN, or values past"),
        ("allx", values()["allx"][:-1], "ally has 508 rows for 507 nodes"),
        ("tx", values()["tx"][:, :-1].tocsr(), "tx has 4 features; allx has 5"),
        ("x", values()["x"].astype(np.float64) * 1e300, "past the range of float32"),
        ("ally", rows_with("ally", 4, 1), "does not give each node one class"),
        ("ally", rows_with("ally", 4, 0), "does not give each node one class"),
        ("ty", values()["ty"][:, :2].copy(), "ty "),
        ("y", values()["ally"], "y has 508 rows for 6 nodes"),
        ("graph", graph_with(3, [10**6]), "names node 1000000, outside"),
        ("graph", graph_with(3, [-1]), "names node -1, outside"),
        ("graph", graph_with(-1, []), "names node -1, outside|the graph has 516"),
        ("graph", graph_with(10**9, []), "names node 1000000000, outside"),
        ("graph", graph_with(3, []), "lists a link in one direction only"),
        ("graph", dict(list(values()["graph"].items())[:-1]), "outside of"),
        ("graph", {i: [] for i in range(515)}, "has no links"),
        ("test.index", [508] * 6, "names a node twice"),
        ("test.index", [509, 510, 511, 512, 513, 514], "does not begin at 508"),
        ("test.index", [508, 509, 511, 512, 513, 10**8], "ends at 100000000"),
        ("test.index", [508, 509], "test.index has 2 nodes"),
        ("test.index", [508, 509, 511, 512, 513, "x"], "something else than node"),
        ("test.index", [], "something else than node"),
    ],
)
def test_what_does_not_fit_is_refused_by_the_file_and_reason(root, part, value, said):
    write(root, part, content(part, value))
    message = f"CiteSeer in .* corrupt \\(ind.citeseer.*{said}.*Delete them to download"
    with pytest.raises(ValueError, match=message):
        load("citeseer", root)


def shaped(columns: int) -> bytes:
    """allx that claims so many columns."""
    return content("allx", csr_matrix((KNOWN, columns), dtype=np.float32))


NESTED = b"\x80\x02}" + b")" + b"\x85" * 100_000  # a tuple too deep to hash


@pytest.mark.parametrize(
    "part, given",
    [
        ("graph", NESTED + b"K\x01s."),
        ("graph", b"\x80\x02" + b"]" * 30_000 + b"a" * 29_999 + b"."),
        ("graph", b"\x80\x02]r\xff\xff\xff\xff."),  # the last place of the memo
        ("graph", b"\x80\x02" + b"B\xff\xff\xff\x7f."),  # 2 GiB of bytes to follow
        ("graph", b"\x80\x05\x96" + (2**40).to_bytes(8, "little") + b"."),
        ("graph", b"\x80\x02\x8b" + (2**31 - 1).to_bytes(4, "little") + b"."),
        ("graph", b"\x80\x02I" + b"9" * 100_000 + b"\n."),
        ("graph", b"\x80\x02}q\x01(K\x00h\x01u."),  # a dict of itself
        ("graph", b"\x80\x02](K\x00" + b"h\x00" * 9),
        (
            "graph",
            b"\x80\x02]("
            + b"K\x00" * 30_000
            + b"eq\x000}("  # POP is not known
            + b"".join(b"M" + i.to_bytes(2, "little") + b"h\x00" for i in range(515))
            + b"u.",
        ),
        (
            "graph",
            b"\x80\x02}(K\x00]("
            + b"K\x00" * 30_000
            + b"eq\x00"
            + b"".join(b"M" + i.to_bytes(2, "little") + b"h\x00" for i in range(1, 515))
            + b"u.",
        ),
        ("allx", shaped(2**31 - 1)),
        ("allx", shaped(2**20)),
    ],
)
def test_a_bomb_goes_out_at_once(root, part, given):
    write(root, part, given)
    with pytest.raises(ValueError, match=f"citeseer.{part} "):
        load_in_time("citeseer", root)


def often(what: bytes, state: bytes, asked: bytes) -> bytes:
    """A pickle that asks 50,000 times for one long thing, 50 GB in all."""
    return b"\x80\x02" + what + b"q\x00" + state + b"q\x01" + asked * 50_000 + b"."


TEXT = b"X" + (10**6).to_bytes(4, "little") + b"x" * 10**6
ARRAY = python_2(np.zeros(10**6, dtype=np.int8))[2:-1]


@pytest.mark.parametrize(
    "given",
    [
        often(b"c_codecs\nencode\n", TEXT + b"X\x06\0\0\0latin1\x86", b"h\x00h\x01R"),
        often(
            ARRAY[: ARRAY.index(b"R(") + 1],
            ARRAY[ARRAY.index(b"R(") + 1 : -1],
            b"h\x00h\x01b",
        ),
    ],
)
def test_a_long_thing_is_not_made_again_and_again(root, given):
    write(root, "ally", given)
    with pytest.raises(ValueError, match="citeseer.ally "):
        load_in_time("citeseer", root)


def test_keys_that_collide_are_refused(root):
    # Integers of one hash: a dict of them takes time that grows by the square.
    keys = (
        b"\x8a\x0a" + (i * (2**61 - 1)).to_bytes(10, "little") for i in range(60_000)
    )
    write(root, "graph", b"\x80\x02}(" + b"".join(k + b"]" for k in keys) + b"u.")
    with pytest.raises(ValueError, match="LONG1, which such a file does not need"):
        load_in_time("citeseer", root)


@pytest.mark.parametrize(
    "name, value, said",
    [
        ("edges", np.array([[0, 12]]), "names node 12, outside of"),
        ("edges", np.array([[0, -1]]), "names node -1, outside of"),
        ("edges", np.array([[0, 1, 2]]), r"edges.npy is \(1, 3\)"),
        ("edges", np.array([[0.0, 1.0]]), "edges.npy holds float64"),
        ("edges", np.array([[3, 3]]), "has no links"),
        ("edges", np.zeros((0, 2), dtype=int), "not positive"),
        ("node_labels", np.arange(12) % 2 * 2, "a class without nodes"),
        ("node_labels", np.arange(12) - 1, "names class -1"),
        ("node_labels", np.full(12, 2**40), "names class 1099511627776"),
        ("node_features", np.full((12, 3), np.nan, np.float32), "holds NaN"),
        ("node_features", np.full((12, 3), 1e300), "past the range of float32"),
        ("node_features", np.ones((11, 3)), r"node_features.npy is \(11, 3\)"),
        ("node_features", np.ones(12), "node_features.npy is"),
        ("node_features", np.array([{}] * 12), "no array of numbers"),
        ("train_masks", np.ones((10, 12), dtype=bool), "overlap"),
        ("train_masks", np.zeros((10, 12), dtype=bool), "one is empty"),
        ("val_masks", np.zeros((10, 12)), "val_masks.npy holds float64"),
        ("test_masks", np.zeros((9, 12), dtype=bool), "test_masks.npy is"),
    ],
)
def test_what_does_not_fit_in_an_npz_is_refused(npz, tmp_path, name, value, said):
    np.savez_compressed(npz, **{**tolokers_like(), name: value})
    with pytest.raises(ValueError, match=f"tolokers in .* corrupt .*{said}"):
        load("tolokers", tmp_path)


def test_an_npz_whose_lengths_lie_is_refused_before_memory_is_asked_for(
    npz, tmp_path, monkeypatch
):
    with zipfile.ZipFile(npz) as archive:
        arrays = {name: archive.read(name) for name in archive.namelist()}

    def rewrite(edges: bytes) -> None:
        with zipfile.ZipFile(npz, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, held in {**arrays, "edges.npy": edges}.items():
                archive.writestr(name, held)

    honest = arrays["edges.npy"]
    rewrite(honest.replace(b"(30, 2), }" + b" " * 10, b"(100000000000, 2), }"))
    with pytest.raises(
        ValueError, match="edges.npy an array of int64 claims the shape"
    ):
        load_in_time("tolokers", tmp_path)
    rewrite(honest)
    load_in_time("tolokers", tmp_path)
    monkeypatch.setattr("gebt.datasets.raw._MOST_BYTES", 1000)
    with pytest.raises(ValueError, match="unpacks to more than 1000 bytes"):
        load_in_time("tolokers", tmp_path)


def load_in_time(name: str, root: Path) -> None:
    """Load within two seconds of this process's own time."""
    with in_time(2):
        graph = load(name, root)
    assert isinstance(graph, Graph)


def test_a_garbled_file_is_a_graph_or_one_clear_error(root, npz, request):
    parts = [*values(), "npz", "npz"]
    for seed in range(request.config.getoption("--fuzz") // 5):
        draw = random.Random(seed)
        part = draw.choice(parts)
        if part == "npz":
            name, path = "tolokers", npz
        else:
            name, path = "citeseer", root / "CiteSeer" / "raw" / f"ind.citeseer.{part}"
        whole = path.read_bytes()
        path.write_bytes(mutants(whole, draw))
        try:
            load_in_time(name, root)
        except ValueError as error:
            assert "truncated or corrupt" in str(error), seed
            assert len(str(error)) < 1000, seed
        path.write_bytes(whole)
