"""Loading OGB's graphs from their raw files, and again from gebt's cache.

Files of the true sizes, in OGB's layout, are written to a temporary folder: edges at
random, with hubs; features of 30,000 nodes again and again. Each load is a process of
its own, so that peak memory is its own. The second load must give the first's bits.

    python benchmarks/bench_load.py [--graph ogbn-products] [--threads 2]

Writes results/load-<graph>.csv and prints it. ogbn-products takes 7 GB of disk.
"""

import argparse
import gzip
import hashlib
import io
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, write_results

GRAPHS = {
    # Nodes, edges as listed, features, classes, the split's name and shares.
    "ogbn-arxiv": (169_343, 1_166_243, 128, 40, "time", (54, 18)),
    "ogbn-products": (2_449_029, 61_859_140, 100, 47, "sales_ranking", (8, 2)),
}
BLOCK = 30_000


def write_files(folder: Path, graph: str) -> None:
    """The files of a graph."""
    nodes, edges, features, classes, scheme, shares = GRAPHS[graph]
    draw = np.random.default_rng(0)
    raw, split = folder / "raw", folder / "split" / scheme
    raw.mkdir(parents=True)
    split.mkdir(parents=True)
    write_text(raw / "num-node-list.csv.gz", f"{nodes}\n".encode())
    write_text(raw / "num-edge-list.csv.gz", f"{edges}\n".encode())
    write_rows(raw / "node-label.csv.gz", draw.integers(0, classes, (nodes, 1)))
    ends = [nodes * shares[0] // 100, nodes * sum(shares) // 100]
    parts = np.split(draw.permutation(nodes)[:, None], ends)
    for part, rows in zip(("train", "valid", "test"), parts, strict=True):
        write_rows(split / f"{part}.csv.gz", rows)
    with (raw / "edge.csv.gz").open("wb") as file:
        for at in range(0, edges, 2**20):
            uniform = draw.random((min(2**20, edges - at), 2))
            pairs = (uniform * np.sqrt(uniform) * nodes).astype(np.int64)
            file.write(packed(as_text(pairs, "%d")))
    block = as_text(draw.normal(size=(BLOCK, features)).astype(np.float32), "%.8g")
    rest = b"".join(block.splitlines(keepends=True)[: nodes % BLOCK])
    with (raw / "node-feat.csv.gz").open("wb") as file:
        one = packed(block)
        for _ in range(nodes // BLOCK):
            file.write(one)  # members of a gzip file follow one another
        file.write(packed(rest))


def as_text(rows: np.ndarray, style: str) -> bytes:
    """Lines of csv."""
    text = io.BytesIO()
    np.savetxt(text, rows, style, ",")
    return text.getvalue()


def packed(text: bytes) -> bytes:
    """A member of a gzip file."""
    return gzip.compress(text, 4)


def write_rows(path: Path, rows: np.ndarray) -> None:
    """A table of whole numbers."""
    write_text(path, as_text(rows, "%d"))


def write_text(path: Path, text: bytes) -> None:
    """A file of one member."""
    path.write_bytes(packed(text))


def measure(graph: str, root: Path, threads: int) -> tuple[dict[str, Any], str]:
    """One load: a row, and a hash of the graph."""
    import torch

    import gebt

    torch.set_num_threads(threads)
    started, used = time.perf_counter(), time.process_time()
    loaded = gebt.load(graph, root)
    row = {
        "seconds": round(time.perf_counter() - started, 2),
        "cpu_seconds": round(time.process_time() - used, 2),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 2**10,
        "own_mib": own_memory(),
        "links": loaded.num_links,
    }
    return row, hashlib.sha256(loaded.fingerprint().encode()).hexdigest()


def own_memory() -> int:
    """MiB of this process that are not a map of a file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("RssAnon")]
    return int(line.split()[1]) // 2**10


def loads(graph: str, root: Path, threads: int) -> Iterator[dict[str, Any]]:
    """A row for each load."""
    spawn = multiprocessing.get_context("spawn")
    hashes = set()
    for load in ("first, from csv.gz", "second, from the cache"):
        with spawn.Pool(1) as pool:
            row, digest = pool.apply(measure, (graph, root, threads))
        hashes.add(digest)
        yield {"graph": graph, "load": load, **row}
    if len(hashes) > 1:
        raise SystemExit("the second load gave another graph")


def main() -> None:
    """Write the files, load them twice."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--graph", choices=GRAPHS, default="ogbn-products")
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / asked.graph.replace("-", "_")
        write_files(folder, asked.graph)
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        rows = []
        for row in loads(asked.graph, Path(root), asked.threads):
            print(row, flush=True)
            rows.append(row)
    notes = f"{asked.threads} threads", f"{size / 2**20:.0f} MiB of files"
    write_results(RESULTS / f"load-{asked.graph}.csv", rows, *notes)


if __name__ == "__main__":
    main()
