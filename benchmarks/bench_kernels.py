"""Sparse kernels on CPU beside their peers: milliseconds and share of the bandwidth.

Every result is checked before it is timed; implementations take turns. Two byte
bounds: *compulsory* reads each operand once; *no reuse* reads a row of the dense
operand for every entry, as a graph without locality must.

    python benchmarks/bench_kernels.py [--threads 2] [--graphs arxiv-like] [--repeats 7]

Writes results/kernels-<threads>-threads.csv and prints it as a table.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from common import RESULTS, write_results
from rich.console import Console
from rich.table import Table

import gebt
from gebt.kernels import backend, edge_softmax, sddmm, spmm
from gebt.kernels._csr import csr

GRAPHS = {
    "cora": "cora",
    "pubmed-size": "synthetic:N=19717,E=44324,F=1,C=3",
    "arxiv-like": "arxiv-like",
    "communities": "synthetic:N=169343,E=1166243,F=1,C=2000",
    "products-like": "products-like",
}
WIDTHS = [16, 64, 128, 256, 602]
MANY = 2**26  # entries, beyond which int64 positions of several peers fill 24 GiB
MOST = 4 * 2**30  # bytes of messages, beyond which PyG's scatter is not tried
Found = torch.Tensor | tuple[torch.Tensor, ...]
Run = Callable[[], Found]


def candidates(graph: gebt.Graph, width: int) -> Iterator[tuple]:
    """(operation, implementation, call, bytes of the two bounds[, way back])."""
    adjacency = graph.adjacency
    p = adjacency.pattern
    n, e = p.shape[0], p.nnz
    x, g = torch.randn(n, width), torch.randn(n, width)
    value = torch.rand(e) + 0.1
    indices = 4 * (n + 1) + 4 * e
    both = {
        "spmm": (indices + 4 * e + 8 * n * width, indices + 4 * e * (width + 1)),
        "sddmm": (indices + 4 * e + 8 * n * width, indices + 4 * e * (width + 1)),
    }
    both["forward + backward"] = tuple(3 * b for b in both["spmm"])
    both["edge softmax"] = (indices + 8 * e, indices + 8 * e)

    def ours(name: str, call: Run) -> Run:
        def run() -> Found:
            with backend(name):
                return call()

        return run

    wide = (p.crow, p.col)
    for name in ("numba", "bag", "torch"):
        yield "spmm", f"gebt {name}", ours(name, lambda: spmm(*wide, value, x)), both
    mkl = csr(p.crow, p.col, value, n)
    yield "spmm", "torch CSR", lambda: mkl @ x, both
    index = p.edge_index if e < MANY else torch.empty(2, 0, dtype=torch.int64)
    if e < MANY:
        coo = torch.sparse_coo_tensor(index.flip(0), value, (n, n), is_coalesced=True)
        yield "spmm", "torch COO", lambda: coo @ x, both
        yield "spmm", "PyG EdgeIndex", _edge_index(index, value, x, n), both
    messages = 4 * e * width
    if messages < MOST:
        yield "spmm", "PyG scatter", lambda: _scatter(index, value, x), both
    for name in ("numba", "torch"):
        yield "sddmm", f"gebt {name}", ours(name, lambda: sddmm(*wide, g, x)), both

    learned = value.clone().requires_grad_()
    moving = x.clone().requires_grad_()

    def both_gradients(product: Callable[..., torch.Tensor]) -> Found:
        return torch.autograd.grad(product(learned, moving), (learned, moving), g)

    def through_gebt() -> Found:
        return both_gradients(lambda v, h: adjacency.with_value(v) @ h)

    # A leaf: through the constructor torch's backward wants an N x N matrix.
    leaf = torch.sparse_csr_tensor(p.crow, p.col, value, (n, n)).requires_grad_()

    def through_torch() -> Found:
        grads = torch.autograd.grad(torch.sparse.mm(leaf, moving), (leaf, moving), g)
        return grads[0].values(), grads[1]

    task = "forward + backward"
    yield task, "gebt", through_gebt, both
    yield task, "torch.sparse.mm", through_torch, both
    if 3 * messages < MOST:
        by_scatter = partial(both_gradients, lambda v, h: _scatter(index, v, h))
        yield task, "PyG scatter", by_scatter, both
    if e < MANY:
        moved, back = _reordered(graph, learned, moving, g)
        yield task, "gebt, reordered", moved, both, back
    if width == WIDTHS[0]:
        from torch_geometric.utils import softmax

        for name in ("numba", "torch"):
            call = ours(name, lambda: edge_softmax(p.crow, value))
            yield "edge softmax", f"gebt {name}", call, both
        if e < MANY:
            peer = partial(softmax, value, index[1], num_nodes=n)
            yield "edge softmax", "PyG", peer, both
    yield from _torch_sparse(p, value, x, g, both)


def _reordered(
    graph: gebt.Graph, value: torch.Tensor, x: torch.Tensor, g: torch.Tensor
) -> tuple[Run, Callable[[Found], Found]]:
    """Forward and backward in the order of `Graph.reorder`, and the way back.

    The way back is not timed: a model is trained in that order as a whole, and
    restores its outputs once.
    """
    entry = torch.arange(value.numel(), dtype=torch.float64)
    kept = graph.adjacency.with_value(entry)
    there = replace(graph, adjacency=kept).reorder()
    place, order = there.adjacency.value.long(), there.order
    learned = value.detach()[place].requires_grad_()
    moving, wanted = x.detach()[order].requires_grad_(), g[order]

    def run() -> Found:
        out = there.adjacency.with_value(learned) @ moving
        return torch.autograd.grad(out, (learned, moving), wanted)

    def back(found: Found) -> Found:
        for_value, for_x = found
        in_order = torch.empty_like(for_value).index_copy_(0, place, for_value)
        return in_order, there.restore(for_x)

    return run, back


def _flat(found: Found) -> torch.Tensor:
    parts = (found,) if isinstance(found, torch.Tensor) else found
    return torch.cat([part.flatten() for part in parts])


def _scatter(index: torch.Tensor, value: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """As PyG's message passing does it: gather, weigh, scatter."""
    messages = x.index_select(0, index[0]) * value[:, None]
    return x.new_zeros(x.shape).index_add_(0, index[1], messages)


def _edge_index(
    index: torch.Tensor, value: torch.Tensor, x: torch.Tensor, n: int
) -> Run:
    from torch_geometric import EdgeIndex

    # PyG multiplies (target, source) pairs sorted by row with `matmul`.
    edges = EdgeIndex(index.flip(0).contiguous(), sparse_size=(n, n), sort_order="row")
    return lambda: edges.matmul(x, input_value=value)


def _torch_sparse(p, value, x, g, both) -> Iterator[tuple]:
    try:
        from torch_sparse import SparseTensor
    except ImportError:
        return
    n = p.shape[0]
    parts = {"rowptr": p.crow.long(), "col": p.col.long(), "sparse_sizes": (n, n)}
    matrix = SparseTensor(**parts, value=value, is_sorted=True)
    yield "spmm", "torch-sparse", lambda: matrix @ x, both

    v, h = value.clone().requires_grad_(), x.clone().requires_grad_()

    def run() -> Found:
        return torch.autograd.grad(matrix.set_value(v, layout="coo") @ h, (v, h), g)

    yield "forward + backward", "torch-sparse", run, both


def copy_bandwidth() -> float:
    """GB/s of a large copy, reads and writes counted, the best of several."""
    a = torch.ones(2**26)
    b = torch.empty_like(a)
    best = 0.0
    for _ in range(5):
        start = time.perf_counter()
        b.copy_(a)
        best = max(best, 8 * a.numel() / (time.perf_counter() - start) / 1e9)
    return best


def measure(name: str, width: int, repeats: int, spec: str, root) -> Iterator[dict]:
    """Rows of one graph and width."""
    torch.manual_seed(0)
    graph = gebt.load(spec, root)
    runs: dict[tuple[str, str], tuple[Run, tuple]] = {}
    expected: dict[str, torch.Tensor] = {}
    for operation, peer, call, bounds, *back in candidates(graph, width):
        try:
            found = _flat(back[0](call()) if back else call())
        except (RuntimeError, NotImplementedError, ValueError) as error:
            print(f"{name} F={width}: {peer} cannot {operation}: {error}"[:150])
            continue
        truth = expected.setdefault(operation, found)
        scale = truth.abs().max()
        wrong = (found - truth).abs().max() / scale
        assert found.shape == truth.shape and wrong < 1e-4, (operation, peer, wrong)
        runs[operation, peer] = call, bounds[operation]
    del expected, found, truth
    times: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
    for _ in range(repeats):
        for key, (call, _) in runs.items():
            start = time.perf_counter()
            call()
            times[key].append(1000 * (time.perf_counter() - start))
    for (operation, peer), (_, (compulsory, no_reuse)) in runs.items():
        spent = sorted(times[operation, peer])
        ms = statistics.median(spent)
        yield {
            "graph": name,
            "operation": operation,
            "F": width,
            "implementation": peer,
            "ms": round(ms, 3),
            "ms_min": round(spent[0], 3),
            "ms_max": round(spent[-1], 3),
            "GB/s compulsory": round(compulsory / ms / 1e6, 2),
            "GB/s no reuse": round(no_reuse / ms / 1e6, 2),
        }


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--graphs", nargs="+", default=list(GRAPHS)[:4])
    parser.add_argument("--widths", nargs="+", type=int, default=WIDTHS)
    parser.add_argument("--root", default=None)
    parser.add_argument("--name", default="kernels", help="of the CSV file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore", ".*(Sparse|sparse|CSR).*")
    copy = copy_bandwidth()
    rows: list[dict] = []
    path = RESULTS / f"{args.name}-{args.threads}-threads.csv"
    for name in args.graphs:
        for width in args.widths:
            rows += measure(name, width, args.repeats, GRAPHS[name], args.root)
            write_results(
                path, rows, f"copy bandwidth {copy:.1f} GB/s"
            )  # whole after each
            print(f"{name}, F = {width}: measured", flush=True)
    table = Table(title=f"copy bandwidth {copy:.1f} GB/s", title_justify="left")
    for column in rows[0]:
        table.add_column(column)
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
