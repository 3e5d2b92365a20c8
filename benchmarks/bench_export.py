"""A forward over all nodes: PyG's dense model, the compact one, and exported programs.

The model is a GCN with 90% of its weights and half of its links pruned at random: for
time it does not matter which. Every output is checked against the masked model's;
competitors take turns, on one thread. What a program takes is in its name; one that
takes nothing has the features as gebt has them, which are sparse on Cora, all others
take them dense. onnxruntime computes such a program once, when it is loaded.

    python benchmarks/bench_export.py [--turns 10] [--graphs cora arxiv-like]

Needs extra `export`, onnxruntime, and a C++ compiler for `torch.compile`. Writes
results/export.csv and prints it.
"""

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
from common import RESULTS, write_results
from end_to_end import PyGExample, in_turn, new_gcn

import gebt

HIDDEN = {"cora": 16, "arxiv-like": 128}
INPUTS = {"none": 0, "features": 1, "graph": 3}  # how many tensors they are
COMPILED = "torch.compile"
EACH = 10  # forwards on end


def onnx_program(path: Path, given: tuple[torch.Tensor, ...]) -> Callable:
    """What runs a program of ONNX on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
    names = ("x", "edge_index", "edge_weight")
    feed = {name: each.numpy() for name, each in zip(names, given, strict=False)}
    return lambda: torch.from_numpy(session.run(["logits"], feed)[0])


def pruned(graph: gebt.Graph) -> tuple[gebt.models.GCN, gebt.Graph]:
    """A masked model, and the graph with the links that it keeps."""
    model = new_gcn(graph, HIDDEN[graph.name], 0).eval()
    with torch.no_grad():
        for layer in model.layers:
            layer.weight.mul_(torch.rand_like(layer.weight) > 0.9)
            layer.bias.uniform_(-1, 1)
    return model, graph.keep_links(torch.rand(graph.num_links) < 0.5)


def calls_for(
    graph: gebt.Graph, folder: Path
) -> tuple[torch.Tensor, dict[str, Callable[[], torch.Tensor]]]:
    """What all but the dense ones must give, and who gives it."""
    model, small = pruned(graph)
    fast, compact = gebt.compact(model, small)
    widths = (graph.num_features, HIDDEN[graph.name], graph.num_classes)
    theirs = PyGExample(*widths, feature_dropout=False).eval()
    edges = graph.adjacency.pattern.edge_index
    x, adjacency = written_out(compact.x), compact.adjacency
    given = (x, adjacency.pattern.edge_index, adjacency.value)
    calls: dict[str, Callable[[], torch.Tensor]] = {
        "PyG, dense": partial(theirs, written_out(graph.x), edges),
        "gebt, compact": partial(fast, compact.x, adjacency),
        f"gebt, compact, {COMPILED}": partial(
            torch.compile(fast), compact.x, adjacency
        ),
    }
    for inputs, count in INPUTS.items():
        path = folder / f"{inputs}.pt2"
        gebt.export(path, fast, compact, inputs=inputs)
        program = torch.export.load(path).module()
        calls[f"pt2, {inputs}"] = partial(program, *given[:count])
        if inputs != "graph":
            program = torch.compile(program)
            calls[f"pt2, {inputs}, {COMPILED}"] = partial(program, *given[:count])
    for inputs, count in INPUTS.items():
        path = folder / f"{inputs}.onnx"
        gebt.export(path, fast, compact, inputs=inputs)
        calls[f"onnx, {inputs}"] = onnx_program(path, given[:count])
    return model(small.x, small.adjacency), calls


def written_out(x: torch.Tensor | gebt.SparseMatrix) -> torch.Tensor:
    """Dense features."""
    return x if isinstance(x, torch.Tensor) else x.to_dense()


@torch.no_grad()
def main() -> None:
    """Check, time, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--graphs", nargs="+", default=list(HIDDEN))
    parser.add_argument("--root", default=None)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    rows = []
    for name in args.graphs:
        graph = gebt.load(name, args.root)
        with tempfile.TemporaryDirectory() as folder:
            truth, calls = calls_for(graph, Path(folder))
            for who, call in calls.items():
                found = call()
                if who != "PyG, dense":
                    torch.testing.assert_close(found, truth, rtol=1e-4, atol=1e-5)
            each = EACH if name == "cora" else 1
            times = in_turn(calls, args.turns, time.perf_counter, each)
            sizes = {p.name: p.stat().st_size for p in Path(folder).iterdir()}
        ours = statistics.median(times["gebt, compact"])
        for who, found in times.items():
            kind, _, inputs = who.removesuffix(f", {COMPILED}").partition(", ")
            size = sizes.get(f"{inputs}.{kind}")
            middle = statistics.median(found)
            rows.append(
                {
                    "graph": name,
                    "who": who,
                    "ms": round(1000 * middle, 3),
                    "min": round(1000 * min(found), 3),
                    "max": round(1000 * max(found), 3),
                    "times gebt, compact": round(middle / ours, 2),
                    "file MB": "" if size is None else round(size / 1e6, 2),
                }
            )
            print(*rows[-1].values(), sep="\t", flush=True)
    versions = f"onnxruntime {version('onnxruntime')}"
    write_results(RESULTS / "export.csv", rows, versions, f"{args.turns} turns")


if __name__ == "__main__":
    main()
