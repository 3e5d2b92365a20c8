"""What `gebt plan` says of memory and time, against what is then measured.

Forecast and each kind of epoch in a process of its own, one thread, the least CPU
seconds of several: the machine may be busy. Graphs are read from files, as real ones.

    python benchmarks/bench_plan.py [--epochs 5] [--folder DIR]

Cora and tolokers are those of $GEBT_DATA. Writes results/plan.csv, and prints the
largest errors.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import torch
from bench_scale import ENTRIES, FEATURES, apart, draw, read
from common import RESULTS, write_results

import gebt
from gebt._registry import MODELS
from gebt.datasets.sizes import Size, size_of
from gebt.deploy.cost import peak_memory
from gebt.experiments.plan import KINDS, forecast, step_of

CASES = (
    *(("cora", "gcn", 16), ("tolokers", "gcn", 64), (10**5, "gcn", 64)),
    *((10**6, "gcn", 64), (10**6, "gcn", 256), (10**6, "sage", 64)),
    *((10**6, "gat", 8), (5 * 10**6, "gcn", 64), (5 * 10**6, "sage", 64)),
)
"""Graph or links, model, hidden width."""


def predict(size: Size, model: str, hidden: int) -> tuple[dict, dict]:
    """MiB and seconds by kind."""
    recipe = MODELS.find(model).changed(hidden=hidden)
    found = forecast(size, recipe, clock=time.process_time)
    return dict(found.mib), dict(found.seconds)


def measure(
    graph: str | Path, model: str, hidden: int, kind: str, epochs: int
) -> tuple[float, float]:
    """MiB and seconds of one kind."""
    graph = read(graph) if isinstance(graph, Path) else gebt.load(graph)
    times = []
    with peak_memory(torch.device("cpu")) as peak:
        step = step_of(kind, graph, MODELS.find(model).changed(hidden=hidden))
        while len(times) <= epochs or sum(times) < 1:
            start = time.process_time()
            step()
            times.append(time.process_time() - start)
    return peak[0], min(times[1:])


def main() -> None:
    """Case by case, write, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=None, help="for drawn graphs")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["THP_MEM_ALLOC_ENABLE"] = "1"  # as gebt's command line does
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as temporary:
        for graph, model, hidden in CASES:
            if isinstance(graph, int):
                size = Size(2 * graph // ENTRIES, graph, FEATURES)
                path = (args.folder or Path(temporary)) / f"{graph}-random.safetensors"
                if not path.exists():
                    apart(draw, graph, path)
            else:
                size, path = size_of(graph), graph
            mib, seconds = apart(predict, size, model, hidden)
            for kind in KINDS:
                held, spent = apart(measure, path, model, hidden, kind, args.epochs)
                row = {
                    **{"graph": graph, "links": size.links, "model": model},
                    **{"hidden": hidden, "kind": kind},
                    "mib_predicted": round(mib[kind]),
                    "mib": round(held),
                    "mib_error": f"{mib[kind] / held - 1:+.0%}",
                    "s_predicted": f"{seconds[kind]:.4g}",
                    "s": f"{spent:.4g}",
                    "s_error": f"{seconds[kind] / spent - 1:+.0%}",
                }
                rows.append(row)
                print(*row.values(), flush=True)
            write_results(RESULTS / "plan.csv", rows)
    for what in ("mib_error", "s_error"):
        errors = [abs(float(str(row[what]).rstrip("%"))) for row in rows]
        far = sum(error > 25 for error in errors)
        print(f"{what}: at most {max(errors):g}%, above 25% in {far} of {len(errors)}")


if __name__ == "__main__":
    main()
