"""Classes in order: what is learned of them, pruned, and moved to another graph."""

import statistics
from collections.abc import Mapping, Sequence
from functools import partial

from gebt.experiments.in_order import ALONE, CHANCE, FROZEN, STARTS, TARGETS
from gebt.experiments.rows import BEST, VERDICTS, Items, Point, point, shares
from gebt.experiments.runner import Experiment, Job, Tables, register
from gebt.experiments.studies import WIDE
from gebt.report.comparison import Row, against, less, mean_of, pick, scores
from gebt.report.figures import scatter
from gebt.report.page import Figure, tabulated

RATIOS = 0.5, 0.9
_OF = "N=1000,E=5000,F=64,C=10"
GRAPHS = (
    f"synthetic:{_OF},split=4-20-76,seed=0,ordinal=1",
    f"synthetic:{_OF},split=20-20-60,seed=10,ordinal=1",
)
"""Few labels, and many."""
_ERROR = "absolute_error"


def _jobs(dataset: str, seed: int) -> list[Job]:
    found = [
        Job(dataset, WIDE, "targets", 0.0, 0.0, seed),
        Job(dataset, WIDE, "ordered", *RATIOS, seed),
    ]
    if dataset.startswith("synthetic:"):  # of which there are others
        found.append(Job(dataset, WIDE, "transferred", *RATIOS, seed))
    return found


def _page(graph: str, tables: Tables) -> Items:
    rows = [{**r, _ERROR: r.get(_ERROR) or "nan"} for r in tables.get("runs", [])]
    dense = pick(rows, method="targets")
    of = {name: pick(dense, links=name) for name in TARGETS}
    yield from _compared(
        f"{graph}: what is learned of classes in order, dense",
        of,
        "ordinal",
        "Classification, median: its answer is the median of the distribution, as "
        f"ordinal's is. {VERDICTS}",
    )
    mine = pick(rows, method="ordered")
    tickets = {"dense": pick(dense, links="ordinal")} | {
        name: pick(mine, links=links)
        for name, links in (
            ("ticket", "learned"),
            ("its weights, random links", "random"),
            ("its weights, all links", "all"),
            ("random links and weights, from scratch", CHANCE),
        )
    }
    yield from _compared(
        f"{graph}: ordinal, {shares(*RATIOS)} of links and weights removed",
        tickets,
        "ticket",
        VERDICTS,
    )
    mine = pick(rows, method="transferred")
    kinds = (ALONE, *(kind + frozen for frozen in ("", FROZEN) for kind in STARTS))
    moved = {kind: pick(mine, links=kind) for kind in kinds}
    yield from _compared(
        f"{graph}: ordinal, begun with another graph's ticket",
        moved,
        "ticket",
        "Alone: the dense model, trained here. The others have the masks of a ticket "
        f"of a graph of the next seed, {shares(*RATIOS)} removed, drawn with labels of "
        "54% of its nodes; all links are kept here. Random: fresh weights under the "
        f"same masks. Frozen: only the head is trained. {VERDICTS}",
    )
    points = {
        title: [_point(name, found) for name, found in kinds.items() if found]
        for title, kinds in (("dense", of), ("tickets", tickets), ("moved", moved))
    }
    if any(points.values()):
        yield Figure(
            f"ordinal-{graph}",
            f"{graph}: accuracy against absolute error",
            partial(scatter, points, "error, classes", "test accuracy, %"),
        )


def _point(name: str, rows: Sequence[Row]) -> Point:
    return point(name, statistics.fmean(scores(rows, _ERROR).values()), rows)


def _compared(
    title: str, kinds: Mapping[str, Sequence[Row]], ours: str, note: str
) -> Items:
    """Accuracy and absolute error of each, and what one of them has more or less."""
    table = []
    for name, found in kinds.items():
        if not found:
            continue
        cells = {"": name, "accuracy, %": mean_of(found)}
        cells["error, classes"] = mean_of(found, _ERROR, 2)
        other = name != ours
        cells[f"accuracy: {ours} - this"] = (
            against(kinds[ours], found) if other else "-"
        )
        gap = less(kinds[ours], found, _ERROR) if other else "-"
        cells[f"error: {ours} - this"] = gap
        cells["training, CPU s"] = mean_of(found, "cpu_seconds")
        table.append(cells)
    yield from tabulated(title, table, note)


register(
    Experiment(
        "ordinal",
        "classes in order: ordinal targets, their tickets, and transfer",
        "A GCN of two layers, 64 units, dropout 0.2, 200 epochs; a seed is of weights "
        "and dropout, the graph stays. All targets are of the same labels, "
        "answer with a class, and are chosen by accuracy on validation nodes. Error: "
        f"the mean absolute difference of class and answer. {BEST}",
        _jobs,
        _page,
        GRAPHS,
    )
)
