"""Sparse kernels on a GPU beside their peers: milliseconds and share of the bandwidth.

Every result is checked in float64 before it is timed: products against the reference,
softmaxes, whose reference takes a step per row, against torch's version.
Implementations take turns, each on the next of several copies of the operands, which
together are larger than the L2. GB/s are of the bytes that a graph without locality
must move: a row of the dense operand for every entry. "gebt torch" is cuSPARSE.

    python benchmarks/bench_cuda.py [--graphs arxiv-like] [--widths 128] [--repeats 20]

Writes results/cuda-kernels.csv and prints it. Without a GPU it says so; exit code 2.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from common import RESULTS, write_results
from torch import Tensor

import gebt
from gebt.kernels import backend, edge_softmax, sddmm, spmm
from gebt.kernels.edge_softmax import torch_backward, torch_edge_softmax
from gebt.kernels.sddmm import reference_sddmm, triton_sddmm
from gebt.kernels.spmm import reference_spmm, triton_spmm

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
WORST = {torch.float32: 1e-5, torch.bfloat16: 3e-2}
"""Largest norm of an error over the norm of the truth. Scatters round to bfloat16 after
every addition, Triton's kernels once."""
SLEEP = 4_000_000  # clock cycles, some ms: longer than Python takes to launch a step
AT_ONCE = 2**28  # numbers of the reference's E x F array that are there at once


@dataclass
class Operands:
    """One copy of everything an operation reads."""

    crow: Tensor
    col: Tensor
    t_crow: Tensor
    t_col: Tensor
    t_order: Tensor
    index: Tensor
    value: Tensor
    x: Tensor
    grad: Tensor

    @property
    def csr(self) -> tuple[Tensor, Tensor]:
        """Positions, row by row."""
        return self.crow, self.col

    @property
    def transpose(self) -> tuple[Tensor, Tensor, Tensor]:
        """Positions of the transpose, and its entries' places."""
        return self.t_crow, self.t_col, self.t_order

    def tensors(self) -> list[Tensor]:
        """All of them."""
        return [getattr(self, field.name) for field in fields(self)]

    def copy(self) -> "Operands":
        """The same elsewhere in memory."""
        return Operands(*(tensor.clone() for tensor in self.tensors()))


Run = Callable[[Operands], tuple[Tensor, ...]]
Product = Callable[[Operands, Tensor, Tensor], Tensor]


def by(name: str, run: Run) -> Run:
    """The same in one of gebt's backends."""

    def call(o: Operands) -> tuple[Tensor, ...]:
        with backend(name):
            return run(o)

    return call


def products(half: bool) -> Iterator[tuple[str, str, Run]]:
    """(operation, implementation, call); torch has no products in half precision."""
    ours = ("triton", "reference") if half else ("triton", "torch")

    def product(o: Operands, value: Tensor, x: Tensor) -> Tensor:
        return spmm(*o.csr, value, x, o.transpose)

    for name in ours:
        run = by(name, lambda o: (spmm(*o.csr, o.value, o.x),))
        yield "spmm", f"gebt {name}", run
    yield "spmm", "PyG scatter", lambda o: (scatter(o, o.value, o.x),)
    for name in ours:
        run = by(name, lambda o: (sddmm(*o.csr, o.grad, o.x),))
        yield "sddmm", f"gebt {name}", run
    yield "sddmm", "gather", gathered
    for name in ours:
        yield "forward + backward", f"gebt {name}", by(name, both_gradients(product))
    yield "forward + backward", "gebt triton, two passes", two_passes
    yield "forward + backward", "PyG scatter", both_gradients(scatter)


def scatter(o: Operands, value: Tensor, x: Tensor) -> Tensor:
    """As PyG's message passing does it: gather, weigh, scatter."""
    from torch_geometric.utils import scatter

    messages = x.index_select(0, o.index[0]) * value[:, None]
    return scatter(messages, o.index[1], dim_size=x.shape[0])


def gathered(o: Operands) -> tuple[Tensor, ...]:
    """As edge decoders do it: gather both sides, multiply, add up."""
    ends = o.grad.index_select(0, o.index[1]), o.x.index_select(0, o.index[0])
    return ((ends[0] * ends[1]).sum(dim=-1),)


def both_gradients(product: Product) -> Run:
    """A product and its gradients for the values and for x."""

    def run(o: Operands) -> tuple[Tensor, ...]:
        leaves = o.value.detach().requires_grad_(), o.x.detach().requires_grad_()
        out = product(o, *leaves)
        return out, *torch.autograd.grad(out, leaves, o.grad)

    return run


def two_passes(o: Operands) -> tuple[Tensor, ...]:
    """What the one pass over the transpose saves."""
    out = triton_spmm(*o.csr, o.value, o.x)
    for_value = triton_sddmm(*o.csr, o.grad, o.x)
    ordered = o.value.index_select(0, o.t_order)
    return out, for_value, triton_spmm(o.t_crow, o.t_col, ordered, o.grad)


def softmaxes() -> Iterator[tuple[str, str, Run]]:
    """The same of edge softmax, whose scores are the values."""
    from torch_geometric.utils import softmax

    calls: dict[str, Callable[[Operands, Tensor], Tensor]] = {
        "triton": lambda o, score: edge_softmax(o.crow, score),
        "torch": lambda o, score: edge_softmax(o.crow, score),
        "PyG": lambda o, score: softmax(score, o.index[1], num_nodes=o.x.shape[0]),
    }
    for name, call in calls.items():

        def forward(o: Operands, call=call) -> tuple[Tensor, ...]:
            return (call(o, o.value),)

        def backward(o: Operands, call=call) -> tuple[Tensor, ...]:
            score = o.value.detach().requires_grad_()
            out = call(o, score)
            return out, *torch.autograd.grad(out, score, o.value)

        ours = name != "PyG"
        who = f"gebt {name}" if ours else name
        yield "softmax", who, by(name, forward) if ours else forward
        task = "softmax forward + backward"
        yield task, who, by(name, backward) if ours else backward


def truths(o: Operands) -> dict[str, tuple[Tensor, ...]]:
    """The references' results in float64, a block of rows at a time."""
    exact = replace(o, value=o.value.double(), x=o.x.double(), grad=o.grad.double())
    width = o.x.shape[1]
    product, sampled, turned = [], [], []
    for crow, col, rows, entries in blocks(*o.csr, width):
        value, grad = exact.value[entries], exact.grad[rows]
        product.append(reference_spmm(crow, col, value, exact.x))
        sampled.append(reference_sddmm(crow, col, grad, exact.x))
    for crow, col, _, entries in blocks(o.t_crow, o.t_col, width):
        value = exact.value.index_select(0, o.t_order[entries])
        turned.append(reference_spmm(crow, col, value, exact.grad))
    out, for_value, for_x = (torch.cat(part) for part in (product, sampled, turned))
    weight = torch_edge_softmax(o.crow, exact.value)
    pull = torch_backward(o.crow, weight, exact.value)
    return {
        "spmm": (out,),
        "sddmm": (for_value,),
        "forward + backward": (out, for_value, for_x),
        "softmax": (weight,),
        "softmax forward + backward": (weight, pull),
    }


def blocks(crow: Tensor, col: Tensor, width: int) -> Iterator[tuple]:
    """Row starts and columns of blocks of rows, which rows, and which entries."""
    starts = crow.cpu().long()
    most = max(1, AT_ONCE // max(width, 1))
    row, n = 0, len(starts) - 1
    while row < n:
        start = int(starts[row])
        until = int(torch.searchsorted(starts, start + most, right=True)) - 1
        until = min(max(until, row + 1), n)
        stop = int(starts[until])
        entries = slice(start, stop)
        yield crow[row : until + 1] - start, col[entries], slice(row, until), entries
        row = until


def bytes_without_reuse(o: Operands) -> dict[str, int]:
    """As in bench_kernels.py; a backward is two more products."""
    n, e, width, size = len(o.crow) - 1, len(o.col), o.x.shape[1], o.x.itemsize
    walk = 4 * (n + 1) + 4 * e + size * e * (width + 1)
    return {
        "spmm": walk,
        "sddmm": walk,
        "forward + backward": 3 * walk,
        "softmax": 4 * (n + 1) + 2 * size * e,
        "softmax forward + backward": 8 * (n + 1) + 5 * size * e,
    }


def milliseconds(
    runs: dict[tuple[str, str], Run], copies: list[Operands], repeats: int
) -> dict[tuple[str, str], list[float]]:
    """Of each call, by device events; implementations and copies take turns."""
    spent: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
    for turn in range(-2, repeats):
        for key, run in runs.items():
            ms = timed(run, copies[turn % len(copies)])
            if turn >= 0:
                spent[key].append(ms)
    return spent


def timed(call: Callable[..., object], *args: object) -> float:
    """Milliseconds between two events on the device."""
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    # Launches queue up behind it: the GPU's time is measured, not Python's.
    torch.cuda._sleep(SLEEP)
    start.record()
    call(*args)
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop)


def copy_bandwidth() -> float:
    """GB/s of a large copy on the device, reads and writes counted; the median."""
    a = torch.randn(2**28, device="cuda")
    b = torch.empty_like(a)
    spent = [timed(b.copy_, a) for _ in range(12)][2:]
    return 8 * len(a) / statistics.median(spent) / 1e6


def measure(
    name: str,
    adjacency: gebt.SparseMatrix,
    width: int,
    dtype: torch.dtype,
    repeats: int,
    cache: int,
    softmax: bool,
) -> Iterator[dict]:
    """Rows of one graph, width and dtype; ``cache`` is the size of the L2."""
    pattern, device = adjacency.pattern, adjacency.device
    n = pattern.shape[0]
    draw = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, device=device).to(dtype)

    positions = (pattern.crow, pattern.col, *pattern.transpose, pattern.edge_index)
    given = (normal(pattern.nnz), normal(n, width), normal(n, width))
    operands = Operands(*positions, *given)
    expected = truths(operands)
    wanted = [*products(half=dtype.itemsize < 4), *(softmaxes() if softmax else ())]
    runs: dict[tuple[str, str], Run] = {}
    errors: dict[tuple[str, str], float] = {}
    for operation, peer, run in wanted:
        try:
            error = worst(run(operands), expected[operation])
        except (RuntimeError, ValueError) as failure:
            print(f"{name} F={width}: {peer} cannot {operation}: {failure}"[:150])
            continue
        finally:
            torch.cuda.empty_cache()
        if not error < WORST[dtype]:
            print(f"{name} F={width}: {peer} is WRONG in {operation}, by {error:.1e}")
            continue
        runs[operation, peer], errors[operation, peer] = run, error
    del expected
    size = sum(tensor.nbytes for tensor in operands.tensors())
    copies = [operands, *(operands.copy() for _ in range(min(7, 3 * cache // size)))]
    bounds = bytes_without_reuse(operands)
    for (operation, peer), spent in milliseconds(runs, copies, repeats).items():
        ms = statistics.median(spent)
        yield {
            "graph": name,
            "operation": operation,
            "dtype": str(dtype).removeprefix("torch."),
            "F": width,
            "implementation": peer,
            "ms": round(ms, 4),
            "ms_min": round(min(spent), 4),
            "ms_max": round(max(spent), 4),
            "error": f"{errors[operation, peer]:.1e}",
            "GB/s no reuse": round(bounds[operation] / ms / 1e6, 1),
        }


def worst(found: tuple[Tensor, ...], truth: tuple[Tensor, ...]) -> float:
    """The largest error of several results; NaN if there is one."""
    errors = [
        ((a.double() - b).norm() / b.norm()).item()
        for a, b in zip(found, truth, strict=True)
    ]
    return next((e for e in errors if e != e), max(errors))


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--graphs", nargs="+", default=["arxiv-like", "products-like"])
    parser.add_argument("--widths", nargs="+", type=int, default=[16, 64, 128, 256])
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--root", default=None)
    parser.add_argument("--out", type=Path, default=RESULTS / "cuda-kernels.csv")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("bench_cuda.py needs a GPU: torch.cuda.is_available() is False here.")
        sys.exit(2)
    import triton

    properties = torch.cuda.get_device_properties(0)
    rows: list[dict] = []
    for name in args.graphs:
        adjacency = gebt.load(name, args.root).adjacency.to("cuda")
        for dtype in map(DTYPES.__getitem__, args.dtypes):
            for width in args.widths:
                given = (name, adjacency, width, dtype, args.repeats)
                once = width == args.widths[0]  # a softmax has no width
                for row in measure(*given, properties.L2_cache_size, softmax=once):
                    print(*row.values(), sep="\t", flush=True)
                    rows.append(row)
    machine = (
        f"{properties.name}, CUDA {torch.version.cuda}, triton {triton.__version__}, "
        f"copy bandwidth {copy_bandwidth():.0f} GB/s"
    )
    write_results(args.out, rows, machine)
    print(f"{machine}. Written: {args.out}")


if __name__ == "__main__":
    main()
