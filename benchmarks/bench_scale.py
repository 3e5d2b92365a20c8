"""How time and memory grow with the links, from a hundred thousand to sixty million.

Graphs with communities and hubs, 25 directed entries a node, 64 features, nodes in
random order and reordered. Of each: an epoch of a GCN of two layers of 64 units, plain
and of a search, beside PyG's; and what surrounds it, `PIECES`. Each is measured in a
process of its own, so that peak memory is its own, and again, up to three times, where
CPU / wall tells that the machine was busy. Sizes that are left out keep their rows.

    python benchmarks/bench_scale.py [--links 100000 1000000 10000000 60000000]
        [--threads 2] [--epochs 5] [--tries 3] [--peer 1000000] [--folder DIR]

Graphs are drawn once, into the folder. Writes results/scale.csv and two pictures to
docs/figures, and prints the table of `docs/speed.md` with the slopes.
"""

import argparse
import csv
import math
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from bench_search import KINDS, step_of
from common import RESULTS, write_results
from matplotlib.figure import Figure

import gebt
from gebt._provenance import provenance
from gebt.deploy.cost import peak_memory
from gebt.files import read_tensors, write_tensors
from gebt.graph.storage import pack, unpack
from gebt.prune.links import top_links
from gebt.report.figures import MARKERS, MORE_COLOURS

REORDERED = ", reordered"
FIGURES = RESULTS.parent.parent / "docs" / "figures"
HIDDEN, FEATURES, CLASSES, ENTRIES = 64, 64, 40, 25
PIECES = ("load", "reorder", "masks", "detector")
"""Reading the file of a graph; finding an order and renumbering; the links' mask of
learned scores; one update of the detector with it."""
_BUSY = 0.8  # of the threads; below it something else was running


def draw(links: int, path: Path) -> None:
    """A graph of so many links, into a file."""
    nodes = 2 * links // ENTRIES
    sizes = f"N={nodes},E={links},F={FEATURES},C={CLASSES}"
    tensors, header = pack(gebt.load(f"synthetic:{sizes}"))
    write_tensors(path, tensors, header | {"kind": "graph"})


def read(path: Path) -> gebt.Graph:
    """The graph of a file."""
    return unpack(*read_tensors(path, "graph"))


def renumber(path: Path, other: Path) -> None:
    """The graph of a file, reordered, into another."""
    tensors, header = pack(read(path).reorder())
    write_tensors(other, tensors, header | {"kind": "graph"})


def piece(kind: str, path: Path) -> Callable[[], object]:
    """What is timed of a piece."""
    if kind == "load":
        return lambda: read(path)
    graph = read(path)
    if kind == "reorder":
        return graph.reorder
    scores = 1 + 0.01 * torch.randn(graph.num_links)
    if kind == "masks":
        return lambda: top_links(scores, 0.2, seed=0)
    detector = gebt.MaskDistanceDetector()
    masks = [top_links(scores + 1e-4 * torch.rand_like(scores), 0.2, 0) for _ in "abcd"]
    turns = iter(range(10**9))
    return lambda: detector.update({"graph": masks[next(turns) % 4]})


def measure(work: tuple[str, Path, int, int]) -> dict[str, float]:
    """Seconds and peak memory of one kind, in a process of its own."""
    kind, path, threads, repeats = work
    torch.set_num_threads(threads)
    if kind in PIECES:
        step = piece(kind, path)
        repeats = 1 if kind == "reorder" else repeats
    else:
        step = step_of(kind, read(path), HIDDEN)
        step()
    walls, cpus = [], []
    with peak_memory(torch.device("cpu")) as peak:
        for _ in range(repeats):
            start, start_cpu = time.perf_counter(), time.process_time()
            step()
            walls.append(time.perf_counter() - start)
            cpus.append(time.process_time() - start_cpu)
    return {
        "s": statistics.median(walls),
        "s_min": min(walls),
        "cpu_s": statistics.median(cpus),
        "peak_mib": round(peak[0]),
    }


def apart(function: Callable[..., object], *work: object) -> object:
    """Call in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, work)


def rows_of(
    links: int, folder: Path, threads: int, epochs: int, tries: int, peer: int
) -> list[dict[str, object]]:
    """All rows of one size; PyG's up to ``peer`` links."""
    paths = {
        order: folder / f"{links}-{order}.safetensors" for order in ("random", "found")
    }
    if not paths["random"].exists():
        apart(draw, links, paths["random"])
    if not paths["found"].exists():
        apart(renumber, paths["random"], paths["found"])
    rows: list[dict[str, object]] = []
    for order, path in paths.items():
        for kind in (*KINDS, *PIECES):
            if order == "found" and kind in PIECES:
                continue
            if kind.startswith("PyG") and links > peer:
                continue
            work = (kind, path, threads, epochs)
            each = []
            for _ in range(tries):
                each.append(apart(measure, work))
                alone = kind in PIECES  # which do not use all threads
                if alone or each[-1]["cpu_s"] > _BUSY * threads * each[-1]["s"]:
                    break
            found = min(each, key=lambda row: row["s"])
            row = {
                "links": links,
                "nodes": 2 * links // ENTRIES,
                "order": order,
                "kind": kind,
                "threads": threads,
                "repeats": epochs,
                **{key: f"{value:.4g}" for key, value in found.items()},
                "ns_a_link": f"{1e9 * found['s'] / links:.0f}",
                "cpu_over_wall": f"{found['cpu_s'] / found['s']:.2f}",
                "commit": str(provenance()["commit"])[:12],
            }
            rows.append(row)
            print(row, flush=True)
    return rows


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Of a line through the logarithms: 1 is in proportion."""
    xs, ys = ([math.log(v) for v in side] for side in zip(*points, strict=True))
    middle, level = statistics.mean(xs), statistics.mean(ys)
    across = sum((x - middle) ** 2 for x in xs)
    return sum((x - middle) * (y - level) for x, y in zip(xs, ys, strict=True)) / across


def series(
    rows: Sequence[dict[str, object]], measured: str
) -> dict[str, list[tuple[float, float]]]:
    """By kind and order, the points (links, value)."""
    found: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        label = str(row["kind"])
        if label not in PIECES:
            label += REORDERED if row["order"] == "found" else ""
        point = (float(str(row["links"])), float(str(row[measured])))
        found.setdefault(label, []).append(point)
    return found


def table(rows: Sequence[dict[str, object]]) -> str:
    """Markdown: seconds and peak memory by kind and links, and the slope."""
    sizes = sorted({int(str(row["links"])) for row in rows})
    lines = ["| s, MiB | " + " | ".join(f"{n:.0e}" for n in sizes) + " | slope |"]
    lines.append("|---" * (len(sizes) + 2) + "|")
    seconds, memory = series(rows, "s"), series(rows, "peak_mib")
    for label, points in seconds.items():
        at, mib = dict(points), dict(memory[label])
        cells = [f"{at[n]:.2g}, {mib[n]:,.0f}" if n in at else "" for n in sizes]
        grows = f"{slope(points):.2f}" if len(points) > 1 else ""
        lines.append(f"| {label} | {' | '.join(cells)} | {grows} |")
    return "\n".join(lines)


def plot(rows: Sequence[dict[str, object]], measured: str, label: str) -> None:
    """Seconds, or memory, against links, logarithmic; reordered graphs dashed."""
    figure = Figure(figsize=(7.5, 4), layout="constrained")
    axis = figure.subplots()
    found = series(rows, measured)
    kinds = [kind for kind in found if not kind.endswith(REORDERED)]
    for kind, points in found.items():
        place = kinds.index(kind.removesuffix(REORDERED))
        style = "--" if kind.endswith(REORDERED) else "-"
        how = {"color": MORE_COLOURS[place], "marker": MARKERS[place], "ms": 4}
        axis.loglog(*zip(*points, strict=True), style, label=kind, **how)
    axis.set(xlabel="links", ylabel=label)
    axis.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize="small")
    figure.savefig(FIGURES / f"scale-{measured}.svg")


def main() -> None:
    """Measure size by size, write, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sizes = [100_000, 1_000_000, 10_000_000, 60_000_000]
    parser.add_argument("--links", type=int, nargs="+", default=sizes)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--tries", type=int, default=3, help="of a busy machine's rows")
    parser.add_argument("--peer", type=int, default=1_000_000, help="PyG up to so many")
    parser.add_argument("--folder", type=Path, default=None, help="for drawn graphs")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    os.environ["THP_MEM_ALLOC_ENABLE"] = "1"  # as gebt's command line does
    rows: list[dict[str, object]] = []
    path = RESULTS / "scale.csv"
    if path.exists():
        lines = path.read_text().splitlines()[1:]
        kept = csv.DictReader(lines)
        rows = [row for row in kept if int(row["links"]) not in args.links]
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for links in args.links:
            how = (args.threads, args.epochs, args.tries, args.peer)
            rows += rows_of(links, folder, *how)
            write_results(path, rows)
    plot(rows, "s", "seconds")
    plot(rows, "peak_mib", "peak memory, MiB")
    print(table(rows))


if __name__ == "__main__":
    main()
