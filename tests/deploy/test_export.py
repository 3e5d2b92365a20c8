"""Exported files run where there is no gebt, and give what the model gives."""

import json
import os
import runpy
import shutil
import subprocess
import sys
import threading
from http.client import HTTPConnection
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import as_dtype, assert_refused, shaken
from torch import nn

import gebt
from gebt import Graph, SparseMatrix
from gebt.models import GAT, GCN, GIN, GraphSAGE, ResGCN

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
_ALL = ("none", "features", "graph")
_DEEP = {"residual": True, "norm": "layer", "input_map": True, "output_map": True}
MODELS = {
    "gcn": GCN,
    "gin": GIN,
    "sage": GraphSAGE,
    "deep": lambda *widths: GCN(*widths, layers=2, **_DEEP),
    "gat": lambda *widths: GAT(widths[0], 2, widths[2], heads=2),
    "resgcn": lambda *widths: ResGCN(*widths, layers=2),
}


def compacted(name: str, graph: Graph) -> tuple[nn.Module, Graph]:
    """A model with random weights, half of them pruned, on half of the links."""
    torch.manual_seed(3)
    model = shaken(MODELS[name](graph.num_features, 8, 3)).float()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.mul_(torch.rand_like(weight) < 0.5)
    keep = torch.rand(graph.num_links) < 0.5
    small = graph.keep_links(keep, torch.rand(graph.num_links) + 0.5)
    return gebt.compact(model, small)


@torch.no_grad()
def outputs(model: nn.Module, graph: Graph) -> torch.Tensor:
    return graph.restore(model(graph.x, graph.adjacency))


def taken(graph: Graph, inputs: str) -> list[torch.Tensor]:
    """What an exported program takes for a graph; edges in random order."""
    x, adjacency = graph.x, graph.adjacency
    x = x.to_dense() if isinstance(x, SparseMatrix) else x
    shuffled = torch.randperm(adjacency.pattern.nnz)
    edges = adjacency.pattern.edge_index[:, shuffled]
    every = [graph.restore(x), edges, adjacency.value.detach()[shuffled]]
    return every[: {"none": 0, "features": 1, "graph": 3}[inputs]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "inputs"),
    [
        ("gcn", "none"),
        ("gin", "features"),
        ("sage", "graph"),
        ("deep", "features"),
        ("gat", "none"),
        ("gat", "graph"),
        ("resgcn", "features"),
        ("resgcn", "graph"),
    ],
)
def test_a_program_gives_what_the_model_gives(name, inputs, sparse_graph, tmp_path):
    model, graph = compacted(name, sparse_graph)
    assert graph.num_features <= sparse_graph.num_features
    gebt.export(tmp_path / "model.pt2", model, graph, inputs=inputs)
    program = torch.export.load(tmp_path / "model.pt2")
    used = {str(node.target) for node in program.graph.nodes}
    assert not [op for op in used if "gebt" in op]
    found = program.module()(*taken(graph, inputs))
    assert not found.requires_grad
    torch.testing.assert_close(found, outputs(model, graph), rtol=1e-5, atol=1e-5)


def in_a_process_of_its_own(code: str, path: Path, *blocked: str) -> None:
    """Run code that finds installed packages, but none of those that are blocked."""
    folder = str(Path(torch.__file__).parent.parent)
    before = f"""
import sys
sys.path.append({folder!r})
for name in {blocked!r}:
    sys.modules[name] = None
    try:
        __import__(name)
    except ImportError:
        continue
    raise SystemExit(name + " was to be absent")
"""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-W", "ignore", "-c", before + code, str(path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def written(folder: Path, suffix: str, graph: Graph) -> None:
    """Files of all inputs, and what their programs are given and must give."""
    model, small = compacted("gcn", graph.reorder())
    for inputs in _ALL:
        gebt.export(folder / f"{inputs}{suffix}", model, small, inputs=inputs)
        expected = outputs(model, small)
        if inputs == "graph":  # of other nodes and links
            other = small.keep_links(torch.rand(small.num_links) < 0.3)
            expected = model(other.x, other.adjacency).detach()
            given = taken(other, inputs)
            given[0] = other.x.to_dense()  # as its edges number them
        else:
            given = taken(small, inputs)
        arrays = [expected, *given]
        np.savez(folder / f"{inputs}.npz", *(t.numpy() for t in arrays))


@pytest.mark.slow
def test_a_pt2_file_runs_where_there_is_torch_alone(sparse_graph, tmp_path):
    written(tmp_path, ".pt2", sparse_graph)
    code = """
import numpy, torch, pathlib
for path in pathlib.Path(sys.argv[1]).glob("*.pt2"):
    arrays = numpy.load(path.with_suffix(".npz")).values()
    expected, *given = map(torch.from_numpy, arrays)
    program = torch.export.load(path).module()
    torch.testing.assert_close(program(*given), expected, rtol=1e-5, atol=1e-5)
"""
    in_a_process_of_its_own(code, tmp_path, "gebt", "torch_geometric", "onnx")


@pytest.mark.slow
def test_an_onnx_file_runs_where_there_is_onnx_runtime_alone(sparse_graph, tmp_path):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="needs extra `export`, and onnxruntime")
    written(tmp_path, ".onnx", sparse_graph)
    code = """
import numpy, onnxruntime, pathlib
for path in pathlib.Path(sys.argv[1]).glob("*.onnx"):
    expected, *given = numpy.load(path.with_suffix(".npz")).values()
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feed = dict(zip(("x", "edge_index", "edge_weight"), given))
    [logits] = session.run(["logits"], feed)
    numpy.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
"""
    folder = Path(find_spec("onnxruntime").origin).parent.parent
    code = f"sys.path.append({str(folder)!r})\n{code}"
    in_a_process_of_its_own(code, tmp_path, "gebt", "torch", "onnx")


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_onnx_has_what_every_model_needs(name, graph, tmp_path):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        runtime = pytest.importorskip(package, reason="needs extra `export`")
    model, small = compacted(name, graph)
    for inputs in ("features", "graph"):
        path = tmp_path / f"{inputs}.onnx"
        gebt.export(path, model, small, inputs=inputs)
        session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
        names = [each.name for each in session.get_inputs()]
        given = [tensor.numpy() for tensor in taken(small, inputs)]
        [logits] = session.run(None, dict(zip(names, given, strict=True)))
        expected = outputs(model, small).numpy()
        np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
        assert gebt.read_export(path).text("inputs") == inputs
        path.write_bytes(path.read_bytes()[:-400])
        with pytest.raises(ValueError, match="not a whole exported model"):
            gebt.read_export(path)


def test_the_graph_that_is_given_may_be_of_any_size(graph, tmp_path):
    model = shaken(GCN(graph.num_features, 8, 3)).requires_grad_(False)
    graph = as_dtype(graph, torch.float64)
    gebt.export(tmp_path / "model.pt2", model, graph, inputs="graph")
    program = torch.export.load(tmp_path / "model.pt2").module()
    for nodes, edges in ((2, [[0, 1], [1, 0]]), (7, [[0, 0, 5], [3, 6, 2]])):
        x = torch.rand(nodes, graph.num_features, dtype=torch.float64)
        edge_index, weight = torch.tensor(edges), torch.rand(len(edges[0])).double()
        adjacency = SparseMatrix.from_coo(*edge_index.flip(0), weight, (nodes, nodes))
        found = program(x, edge_index, weight)
        torch.testing.assert_close(found, model(x, adjacency), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", [GCN, GraphSAGE])
def test_float64_keeps_its_precision(graph, tmp_path, kind):
    model = shaken(kind(graph.num_features, 8, 3)).requires_grad_(False)
    graph = as_dtype(graph, torch.float64)
    gebt.export(tmp_path / "model.pt2", model, graph)
    found = torch.export.load(tmp_path / "model.pt2").module()()
    torch.testing.assert_close(found, outputs(model, graph), rtol=0, atol=1e-12)


def test_the_file_says_what_it_holds_and_whether_it_is_whole(graph, tmp_path):
    model, small = compacted("sage", graph)
    path = tmp_path / "model.pt2"
    gebt.export(path, model, small)
    header = gebt.read_export(path)
    assert header.text("inputs") == "none" and header.whole("outputs", 3, 3) == 3
    about = header.fields("graph")
    assert about.text("fingerprint") == small.fingerprint()
    assert about.whole("nodes", 0) == 120
    assert header.fields("model").text("class") == "GraphSAGE"
    whole = path.read_bytes()
    assert str(Path(gebt.__file__).parent).encode() not in whole
    for at in (len(whole) // 2, len(whole) - 3):
        path.write_bytes(whole[:at])
        with pytest.raises(ValueError, match="is not a whole exported model"):
            gebt.read_export(path)
    at = whole.index(b'"links"')
    path.write_bytes(whole[:at] + b'"lunks"' + whole[at + 7 :])
    with pytest.raises(ValueError, match="does not match its checksum"):
        gebt.read_export(path)


def test_the_example_serves_what_the_file_holds(graph, tmp_path):
    model, small = compacted("gcn", graph)
    gebt.export(tmp_path / "model.pt2", model, small)
    serve = runpy.run_path(str(EXAMPLES / "serve.py"))
    scores = outputs(model, small).softmax(dim=1)
    for fresh in (False, True):
        predictions = serve["Predictions"](str(tmp_path / "model.pt2"), fresh)
        with serve["server_of"](predictions, 0) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            client = HTTPConnection("127.0.0.1", server.server_port)

            def answer(path: str, client: HTTPConnection = client) -> tuple[int, dict]:
                client.request("GET", path)
                response = client.getresponse()
                return response.status, json.loads(response.read())

            status, found = answer("/predict?node=7,0,119")
            assert (status, found["nodes"]) == (200, [7, 0, 119])
            expected = scores[[7, 0, 119]]
            torch.testing.assert_close(torch.tensor(found["scores"]), expected)
            assert found["classes"] == expected.argmax(dim=1).tolist()
            for path, code in (
                ("/predict?node=120", 400),
                ("/predict?node=x", 400),
                ("/predict", 400),
                ("/", 404),
            ):
                status, found = answer(path)
                assert status == code and found["error"], path
            client.close()
            server.shutdown()
            thread.join()


class Branching(nn.Module):
    """Its operations depend on numbers."""

    def forward(self, x: torch.Tensor, adjacency: SparseMatrix) -> torch.Tensor:
        return adjacency @ x if x.sum() > 0 else x


def test_what_cannot_be_exported_is_told_in_words(graph, tmp_path):
    with pytest.raises(ValueError, match=r"a \.pt2 file.*got 'model.pt'"):
        gebt.export("model.pt", GCN(24, 8, 3), graph)
    with pytest.raises(ValueError, match="`inputs` must be one of 'none'"):
        gebt.export("model.pt2", GCN(24, 8, 3), graph, inputs="x")
    path = tmp_path / "model.pt2"
    with pytest.raises(
        ValueError, match="cannot export this Branching to .pt2"
    ) as told:
        gebt.export(path, Branching(), graph, inputs="features")
    assert "\n" not in str(told.value)
    assert not path.exists()


@pytest.mark.slow
def test_the_command_writes_the_file_and_refuses_in_one_line(
    graph, gebt_here, tmp_path
):
    model, small = compacted("gcn", graph)
    gebt.save_compact(tmp_path / "compact.safetensors", model, small)
    answer = gebt_here("export", "compact.safetensors", "model.pt2")
    assert (answer.returncode, answer.stdout) == (0, "Written: model.pt2\n"), answer
    found = torch.export.load(tmp_path / "model.pt2").module()()
    torch.testing.assert_close(found, outputs(model, small), rtol=1e-5, atol=1e-5)
    again = ("export", "compact.safetensors", "model.pt2")
    assert_refused(gebt_here(*again), "model.pt2 exists", "--force")
    answer = gebt_here(*again, "--force", "--inputs", "graph")
    assert answer.returncode == 0, answer
    assert gebt.read_export(tmp_path / "model.pt2").text("inputs") == "graph"
    assert_refused(gebt_here("export", "compact.safetensors", "m.pth"), "m.pth", ".pt2")
    assert_refused(gebt_here(*again, "--inputs", "all"), "--inputs", "'all'")
    (tmp_path / "other.safetensors").write_bytes(b"0" * 100)
    answer = gebt_here("export", "other.safetensors", "other.pt2")
    assert_refused(answer, "other.safetensors", "compact model")
    assert not (tmp_path / "other.pt2").exists()


@pytest.mark.skipif(find_spec("onnx") is not None, reason="onnx is installed here")
def test_without_onnx_the_command_says_what_to_install(gebt_here):
    answer = gebt_here("export", "compact.safetensors", "model.onnx")
    assert_refused(answer, "needs onnx", "pip install 'gebt[export]'")


@pytest.mark.slow
def test_a_compact_model_compiles(graph):
    if not (os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("torch.compile needs a C++ compiler, and there is none")
    model, small = compacted("gcn", graph)
    compiled = torch.compile(model)
    for _ in range(2):
        torch.testing.assert_close(outputs(compiled, small), outputs(model, small))
