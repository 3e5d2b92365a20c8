"""Pruned weights: a dense product of masked ones, sparse ones, and fewer units.

Features of as many rows as `arxiv-like` has nodes times a weight, by width and share of
zeros. *units* is the dense product that is left when the same share is removed as whole
outputs. Every result is checked; implementations take turns.

    python benchmarks/bench_weights.py [--threads 2] [--repeats 5]

Writes results/weights-<threads>-threads.csv and prints it.
"""

import argparse
import statistics
import time

import torch
from common import RESULTS, write_results

from gebt.kernels import backend, times_sparse, times_sparse_pays
from gebt.kernels._csr import csr
from gebt.sparse import SparseMatrix

ROWS = 169_343
SHAPES = [(64, 64), (128, 128), (128, 256), (256, 256), (256, 40)]
ZEROS = [0.5, 0.8, 0.9, 0.95]


@torch.no_grad()
def measure(shape: tuple[int, int], zeros: float, repeats: int) -> dict:
    """One row: milliseconds of each."""
    inputs, outputs = shape
    x, bias = torch.randn(ROWS, inputs), torch.randn(outputs)
    weight = torch.randn(shape) * (torch.rand(shape) >= zeros)
    columns = SparseMatrix.from_dense(weight.t())
    parts = (columns.pattern.crow, columns.pattern.col, columns.value)
    turned = csr(*parts, inputs)
    fewer = weight[:, : max(1, round(outputs * (1 - zeros)))].contiguous()

    def sparse() -> torch.Tensor:
        with backend("numba"):
            return times_sparse(x, *parts, bias)

    calls = {
        "masked ms": lambda: torch.addmm(bias, x, weight),
        "sparse ms": sparse,
        "torch CSR ms": lambda: (turned @ x.t()).t() + bias,
        "units ms": lambda: torch.addmm(bias[: fewer.shape[1]], x, fewer),
    }
    truth = calls["masked ms"]()
    for name in ("sparse ms", "torch CSR ms"):
        torch.testing.assert_close(calls[name](), truth, rtol=1e-3, atol=1e-3)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if turn:
                times[name].append(1000 * (time.perf_counter() - start))
    found = {name: round(statistics.median(t), 1) for name, t in times.items()}
    return {
        "inputs": inputs,
        "outputs": outputs,
        "zeros": zeros,
        **found,
        "masked / sparse": round(found["masked ms"] / found["sparse ms"], 2),
        "compact picks sparse": times_sparse_pays(weight),
    }


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    rows = []
    for shape in SHAPES:
        for zeros in ZEROS:
            rows.append(measure(shape, zeros, args.repeats))
            print(*rows[-1].values(), sep="\t", flush=True)
    path = RESULTS / f"weights-{args.threads}-threads.csv"
    write_results(path, rows, f"{ROWS} rows, float32")


if __name__ == "__main__":
    main()
