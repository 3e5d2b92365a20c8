"""Gradients for the values of a sparse matrix: gebt beside its peers.

``A(values) @ X`` and the gradients for the values and X: milliseconds, and the memory
that a call takes beside what is there before. Ten entries to a row, at random, float32.
Every result is checked against float64 by scipy and a loop; implementations take turns.

*through* builds the matrix from the values at each call, as where these are a function
of something else; *leaf* has the matrix itself for a parameter.

    python benchmarks/bench_gradients.py [--threads 1] [--repeats 5]

Writes results/gradients.csv and prints it. Needs torchsparsegradutils for its rows.
"""

import argparse
import contextlib
import ctypes
import statistics
import time
import warnings
from collections.abc import Callable, Iterator

import torch
from common import RESULTS, write_results
from scipy.sparse import csr_array
from torch import Tensor
from torch.autograd import grad

import gebt
from gebt.deploy.cost import peak_memory

ENTRIES = [100_000, 1_000_000, 5_000_000]
WIDTHS = [32, 128]
MOST = 4 * 2**30  # bytes that a call may be expected to take
Found = tuple[Tensor, Tensor]


def candidates(
    matrix: gebt.SparseMatrix, x: Tensor, g: Tensor
) -> Iterator[tuple[str, int, Callable[[], Found]]]:
    """Implementation, bytes that it takes at least, and the call."""
    pattern, (n, m) = matrix.pattern, matrix.shape
    row, col = pattern.row.long(), pattern.col.long()
    crow, both = pattern.crow.long(), torch.stack([row, col])
    value = matrix.value.clone().requires_grad_()
    x = x.clone().requires_grad_()
    csr = torch.sparse_csr_tensor(crow, col, matrix.value, (n, m)).requires_grad_()
    messages, dense = 4 * row.numel() * x.shape[1], 4 * n * m

    def coo() -> Tensor:
        return torch.sparse_coo_tensor(both, value, (n, m), is_coalesced=True)

    def of_leaf(product: Callable[[Tensor, Tensor], Tensor]) -> Found:
        for_matrix, for_x = grad(product(csr, x), (csr, x), g)
        return for_matrix.values(), for_x

    def through(product: Callable[[], Tensor]) -> Callable[[], Found]:
        return lambda: grad(product(), (value, x), g)

    yield "gebt, through", 0, through(lambda: matrix.with_value(value) @ x)
    try:
        from torchsparsegradutils import sparse_mm
    except ImportError:
        print("without torchsparsegradutils, which is not installed")
    else:
        own = through(lambda: sparse_mm(coo(), x))
        yield "torchsparsegradutils COO, through", 3 * messages, own
        leaf = lambda: of_leaf(sparse_mm)  # noqa: E731
        yield "torchsparsegradutils CSR, leaf", 3 * messages, leaf
    yield "torch.sparse.mm CSR, leaf", 0, lambda: of_leaf(torch.sparse.mm)
    yield "torch COO @, through", dense, through(lambda: coo() @ x)
    from torch_geometric import EdgeIndex

    edges = EdgeIndex(both, sparse_size=(n, m), sort_order="row")
    product = through(lambda: edges.matmul(x, input_value=value))
    yield "PyG EdgeIndex, through", 4 * messages, product
    flat = row * m + col
    zeros = lambda: value.new_zeros(n * m)  # noqa: E731
    filled = lambda: zeros().index_put((flat,), value).view(n, m)  # noqa: E731
    yield "dense, through", 2 * dense, through(lambda: filled() @ x)


def truth(matrix: gebt.SparseMatrix, x: Tensor, g: Tensor) -> Found:
    """Both gradients in float64."""
    row, col = matrix.pattern.row.long(), matrix.pattern.col.long()
    parts = (matrix.value.double().numpy(), col.numpy(), matrix.pattern.crow.numpy())
    for_x = csr_array(parts, shape=matrix.shape).T @ g.double().numpy()
    for_value = [
        (g[r].double() * x[c].double()).sum(dim=1)
        for r, c in zip(row.split(2**18), col.split(2**18), strict=True)
    ]
    return torch.cat(for_value), torch.from_numpy(for_x)


def trim() -> None:
    """Give freed memory back to the system, where that is Linux with glibc."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def measure(entries: int, width: int, repeats: int) -> Iterator[dict]:
    """Rows of one size."""
    torch.manual_seed(0)
    n = entries // 10
    at = torch.randint(n * n, (entries,)).unique()
    value, x, g = torch.randn(at.numel()), torch.randn(n, width), torch.randn(n, width)
    matrix = gebt.SparseMatrix.from_coo(at // n, at % n, value, (n, n))
    expected = truth(matrix, x, g)
    runs: dict[str, Callable[[], Found]] = {}
    memory: dict[str, float] = {}
    refused: dict[str, str] = {}
    for name, least, call in candidates(matrix, x, g):
        if least > MOST:
            refused[name] = f"would take {least / 2**30:.0f} GiB"
            continue
        found = call()
        for ours, true in zip(found, expected, strict=True):
            wrong = (ours - true).abs().max() / true.abs().max()
            assert wrong < 1e-5, (name, float(wrong))
        del found
        trim()  # or what it freed would serve the next
        with peak_memory(matrix.value.device) as before:
            pass
        with peak_memory(matrix.value.device) as peak:
            call()
        memory[name] = peak[0] - before[0]
        runs[name] = call
    del expected
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, call in runs.items():
            start = time.perf_counter()
            call()
            times[name].append(1000 * (time.perf_counter() - start))
    for name in [*runs, *refused]:
        spent = times.get(name)
        yield {
            "entries": at.numel(),
            "rows": n,
            "F": width,
            "implementation": name,
            "ms": spent and round(statistics.median(spent), 1),
            "ms_min": spent and round(min(spent), 1),
            "ms_max": spent and round(max(spent), 1),
            "MiB": spent and round(memory[name]),
            "not run": refused.get(name, ""),
        }


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--entries", nargs="+", type=int, default=ENTRIES)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore", ".*(Sparse|sparse|CSR).*")
    rows: list[dict] = []
    for entries in args.entries:
        for width in WIDTHS:
            for row in measure(entries, width, args.repeats):
                rows.append(row)
                print(*row.values(), sep="\t", flush=True)
            threads = f"float32, threads {args.threads}"
            write_results(RESULTS / "gradients.csv", rows, threads)  # whole after each


if __name__ == "__main__":
    main()
