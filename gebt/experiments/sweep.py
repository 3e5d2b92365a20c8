"""A grid of ratios and criteria on one graph: `gebt sweep`."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from statistics import fmean

from gebt.experiments.methods import TICKET_BY
from gebt.experiments.rows import (
    BEST,
    VERDICTS,
    Items,
    Point,
    faster,
    millions,
    point,
    shares,
)
from gebt.experiments.runner import Experiment, Job, Tables, register
from gebt.report.comparison import Row, against, mean_of, pick, scores
from gebt.report.figures import scatter
from gebt.report.page import Figure, tabulated


def sweep_of(
    model: str,
    graph_ratios: Sequence[float],
    weight_ratios: Sequence[float],
    criteria: Sequence[str],
) -> Experiment:
    """The experiment of a grid: its tickets, and the dense model.

    A ticket of which nothing is removed is the dense model, and left out.

    Args:
        model: the recipe's name.
        graph_ratios: shares of links to remove.
        weight_ratios: shares of weights to remove.
        criteria: what ranks links.
    """

    def jobs(dataset: str, seed: int) -> list[Job]:
        found = [Job.dense(dataset, seed, model)]
        for links, weights, name in product(graph_ratios, weight_ratios, criteria):
            if links or weights:
                by = TICKET_BY + name
                found.append(Job(dataset, model, by, links, weights, seed))
        return found

    return replace(SWEEP, jobs=jobs)


def _page(graph: str, tables: Tables) -> Items:
    for model in dict.fromkeys(row["model"] for row in tables["runs"]):
        yield from _items(graph, model, pick(tables["runs"], model=model))


def _items(graph: str, model: str, rows: Sequence[Row]) -> Items:
    dense = pick(rows, method="dense")
    columns = "method", "graph_ratio", "weight_ratio"
    kinds = dict.fromkeys(tuple(row[column] for column in columns) for row in rows)
    each = [pick(rows, **dict(zip(columns, kind, strict=True))) for kind in kinds]
    each.sort(key=faster, reverse=True)
    best = _frontier(each)
    by_time: list[Point] = []
    by_macs: list[Point] = []
    table = []
    for mine in each:
        first = mine[0]
        called = first["method"].removeprefix(TICKET_BY)
        removed = shares(first["graph_ratio"], first["weight_ratio"])
        table.append(
            {
                "links by": "→ " * (mine in best) + called,
                "links / weights removed": removed,
                "val": mean_of(_validated(mine), "val"),
                "test": mean_of(mine),
                "- dense": "-" if called == "dense" else against(mine, dense),
                "MACs executed, M": millions(mine, "macs_executed"),
                "dense / this": f"{faster(mine):.2f}x",
            }
        )
        by_time.append(point(called, 1 / faster(mine), mine))
        if macs := [
            float(row["macs_executed"]) for row in mine if row["macs_executed"]
        ]:
            by_macs.append(point(called, fmean(macs) / 1e6, mine))
    yield from tabulated(
        f"{graph}, {model}: every combination, the fastest first",
        table,
        "→: the frontier, what nothing else beats both in time and on validation. "
        f"{VERDICTS} Inference is timed in turns with the dense model, seeds side by "
        "side on all cores: read the ratio.",
    )
    axes = {"inference time, dense = 1": by_time, "MACs executed, M": by_macs}
    for (label, points), kind in zip(axes.items(), ("time", "macs"), strict=True):
        if points:
            yield Figure(
                f"sweep-{kind}-{model}",
                f"{graph}, {model}: test score against {label}, mean and standard "
                "deviation over seeds",
                partial(scatter, {"": points}, label, "test score, %"),
            )


def _validated(rows: Sequence[Row]) -> list[Row]:
    """Those of a graph that has something to validate on."""
    return [row for row in rows if row["val"] not in ("", "nan")]


def _frontier(each: Sequence[list[Row]]) -> list[list[Row]]:
    """Of combinations, the fastest first, what validates better than all before."""
    found, most = [], -math.inf
    for mine in each:
        scored = _validated(mine)
        val = fmean(scores(scored, "val").values()) if scored else math.nan
        if val > most:
            found.append(mine)
            most = val
    return found


SWEEP = Experiment(
    "sweep",
    "accuracy against cost over a grid of ratios and criteria",
    "A ticket is drawn as `gebt run` draws one with ratios, by the model's own recipe, "
    "and retrained. A criterion that asks a trained model is told by the dense one. "
    f"{BEST}",
    lambda dataset, seed: [],
    _page,
)
SWEEP = sweep_of("gcn", (0.1, 0.3, 0.5, 0.7, 0.9), (0.9,), ("learned", "random"))
register(SWEEP)
