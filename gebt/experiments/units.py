"""Unit tickets: which hidden units leave, and how many."""

from gebt.experiments.rows import BEST, VERDICTS, Items, faster, point, scattered
from gebt.experiments.runner import Experiment, Job, Tables, register
from gebt.experiments.studies import DEEP
from gebt.report.comparison import against, mean_of, percent, pick
from gebt.report.page import tabulated

RATIOS = (0.5, 0.75)
_KINDS = "largest units", "random units", "from scratch"


def _jobs(dataset: str, seed: int) -> list[Job]:
    found = [Job.dense(dataset, seed, DEEP)]
    return found + [Job(dataset, DEEP, "units", 0.0, ratio, seed) for ratio in RATIOS]


def _page(graph: str, tables: Tables) -> Items:
    rows = tables.get("runs", [])
    dense = pick(rows, method="dense")
    table, points = [], []
    if dense:
        points.append(point("dense", 1.0, dense))
    for ratio in RATIOS:
        mine = pick(rows, method="units", weight_ratio=ratio)
        largest = pick(mine, links=_KINDS[0])
        for kind in _KINDS:
            found = pick(mine, links=kind)
            if not found:
                continue
            speed = faster(found)
            points.append(point(f"{kind}, {percent(ratio)}", 1 / speed, found))
            table.append(
                {
                    "units removed": percent(ratio),
                    "": kind,
                    "test": mean_of(found),
                    "- dense": against(found, dense) if dense else "-",
                    "largest - this": "-"
                    if kind == _KINDS[0]
                    else against(largest, found),
                    "dense / this, ms": f"{speed:.2f}x",
                    "training, CPU s": mean_of(found, "cpu_seconds"),
                }
            )
    yield from tabulated(f"{graph}: without a share of the units", table, VERDICTS)
    yield from scattered(
        "units", graph, "inference time", points, "inference time, dense = 1"
    )


register(
    Experiment(
        "units",
        "hidden units that leave for good: largest, random, never there",
        "A GCN of six layers with own paths and batch norm, 64 units each. Units are "
        "ranked by their norm's |scale|; what is left is trained on. From scratch: as "
        f"narrow a model. {BEST}",
        _jobs,
        _page,
    )
)
