"""GEB tickets from scratch against the epoch drawn: Fig. 1 of You et al. 2022."""

import statistics
from dataclasses import replace
from functools import partial

from gebt.experiments.rows import (
    BEST,
    DRAWS,
    LINK_RATIOS,
    VERDICTS,
    Items,
    by_links,
    curve_of,
    drawn,
    levels_of,
)
from gebt.experiments.runner import Experiment, Job, Tables, register
from gebt.report.comparison import against, mean_of, percent, pick, scores
from gebt.report.figures import Panel, curves
from gebt.report.page import Figure, tabulated

# Read off the figure, tickets drawn at epoch 10 or later.
PAPER = {
    "cora": {0.1: 81.0, 0.3: 78.0, 0.5: 75.0, 0.7: 71.5, 0.9: 64.0},
    "citeseer": {0.1: 70.0, 0.3: 69.5, 0.5: 69.0, 0.7: 66.0, 0.9: 61.0},
}


def _jobs(dataset: str, seed: int) -> list[Job]:
    found = [Job.dense(dataset, seed)]
    for ratio in LINK_RATIOS:
        job = Job(dataset, "gcn", "GEB", ratio, 0.0, seed)
        found += [job, *(replace(job, draw=epoch) for epoch in DRAWS)]
    return found


def _page(graph: str, tables: Tables) -> Items:
    rows = tables.get("runs", [])
    dense = pick(rows, method="dense")
    paper = PAPER.get(graph, {})
    geb = pick(rows, method="GEB")
    summary, by_epoch, panels = [], [], []
    for ratio in dict.fromkeys(float(row["graph_ratio"]) for row in geb):
        mine = pick(geb, graph_ratio=ratio)
        learned, random, _ = by_links(pick(mine, draw=None)).values()
        level = paper.get(ratio)
        gap = "-"
        if level and learned:
            gap = f"{statistics.fmean(scores(learned).values()) - level:+z.1f}"
        summary.append(
            {
                "links removed": percent(ratio),
                "epoch drawn": drawn(learned),
                "learned": mean_of(learned),
                "random": mean_of(random),
                "learned - random": against(learned, random),
                "learned - dense": against(learned, dense),
                "paper": f"{level:g}" if level else "-",
                "gap to paper": gap,
            }
        )
        curve = curve_of("learned links", [r for r in mine if r["draw"]])
        found = {
            f"epoch {epoch}": f"{y:.1f}" + (f" ({y - level:+z.1f})" if level else "")
            for epoch, y in zip(curve.x, curve.y, strict=True)
        }
        by_epoch.append({"links removed": percent(ratio), **found})
        levels = levels_of({"random links": random})
        if level:
            levels["paper"] = level
        panels.append(Panel(f"{percent(ratio)} of links removed", [curve], levels))
    yield from tabulated(
        f"{graph}: GEB tickets from scratch; dense {mean_of(dense)}",
        summary,
        VERDICTS,
    )
    yield from tabulated(
        f"{graph}: by the epoch drawn, and the gap to the paper's curve",
        by_epoch,
        "The paper's curve is flat from epoch 10 on.",
    )
    if panels:
        yield Figure(
            f"fig1-{graph}",
            f"{graph}: test accuracy of GEB tickets retrained from scratch, mean and "
            "standard deviation, against the epoch they were drawn at",
            partial(curves, panels, "epoch drawn", "test accuracy, %"),
        )


register(
    Experiment(
        "fig1",
        "GEB tickets from scratch against the epoch drawn",
        "Algorithm 1: pretrain, search the links with frozen weights, retrain from "
        f"scratch; GCN's own recipe for each (`gebt models`). {BEST}",
        _jobs,
        _page,
    )
)
