"""SpMM forward: `embedding_bag` against torch's CSR product and its reduce.

Checks each against the reference, then times them in turns; minimum and median.

    python benchmarks/spmm.py [--root DIR] [--threads 1]

Writes results/spmm-<threads>-threads.csv.
"""

import argparse
import statistics
import time

import torch
from common import RESULTS, write_results

import gebt
from gebt.kernels.spmm import bag_spmm, reference_spmm, torch_spmm
from gebt.models import gcn_norm

WIDTHS = (7, 8, 16, 64, 128, 256)


def reduce_spmm(crow, col, value, x):
    """Torch's CSR product with a reduction, as PyG's EdgeIndex uses it."""
    shape = (crow.numel() - 1, x.shape[0])
    matrix = torch.sparse_csr_tensor(crow, col, value, shape, check_invariants=False)
    return torch.sparse.mm(matrix, x, "sum")


def matrices(root: str | None) -> dict[str, gebt.SparseMatrix]:
    """Cora's and CiteSeer's adjacency and features, and a large random matrix."""
    found = {}
    for name in ("cora", "citeseer"):
        graph = gebt.load(name, root)
        found[f"{name} adjacency"] = gcn_norm(graph.adjacency)
        found[f"{name} features"] = graph.x
    n, entries = 169_343, 2_332_486
    row, col = torch.randint(n, (2, entries))
    found["random"] = gebt.SparseMatrix.from_coo(row, col, torch.rand(entries), (n, n))
    return found


def main() -> None:
    """Check, time, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", default=None)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    calls = {"csr": torch_spmm, "csr reduce": reduce_spmm, "bag": bag_spmm}
    rows = []
    for name, matrix in matrices(args.root).items():
        pattern = matrix.pattern
        for width in WIDTHS:
            x = torch.randn(matrix.shape[1], width)
            operands = (pattern.crow, pattern.col, matrix.value, x)
            truth = reference_spmm(*operands)
            times: dict[str, list[float]] = {who: [] for who in calls}
            for call in calls.values():
                torch.testing.assert_close(call(*operands), truth, rtol=1e-4, atol=1e-4)
            for _ in range(200 if pattern.nnz < 1_000_000 else 7):
                for who, call in calls.items():
                    start = time.perf_counter()
                    call(*operands)
                    times[who].append(1e6 * (time.perf_counter() - start))
            row = {"matrix": name, "entries": pattern.nnz, "columns": width}
            for who, found in times.items():
                row[f"{who} min us"] = round(min(found), 1)
                row[f"{who} median us"] = round(statistics.median(found), 1)
            rows.append(row)
            print(row, flush=True)
    path = RESULTS / f"spmm-{args.threads}-threads.csv"
    write_results(path, rows)
    print(f"Written: {path}")


if __name__ == "__main__":
    main()
