"""Joint tickets, three stop criteria, epochs drawn: Fig. 4 of You et al. 2022."""

from dataclasses import replace
from functools import partial

from gebt.experiments.rows import (
    BEST,
    DRAWS,
    JOINT_RATIOS,
    VERDICTS,
    Items,
    by_links,
    curve_of,
    distances,
    drawn,
    levels_of,
    shares,
)
from gebt.experiments.runner import Experiment, Job, Tables, register
from gebt.report.comparison import against, mean_of, pick
from gebt.report.figures import Panel, curves
from gebt.report.page import Figure, tabulated


def _jobs(dataset: str, seed: int) -> list[Job]:
    found = [Job.dense(dataset, seed)]
    for ratios in JOINT_RATIOS:
        job = Job(dataset, "gcn", "joint-EB", *ratios, seed)
        found += [job, *(replace(job, watch=group) for group in ("graph", "weights"))]
        found += [replace(job, draw=epoch) for epoch in DRAWS]
        found.append(replace(job, method="distances"))
    return found


def _page(graph: str, tables: Tables) -> Items:
    rows = tables.get("runs", [])
    dense = pick(rows, method="dense")
    joint = pick(rows, method="joint-EB")
    summary, criteria, panels = [], [], []
    for ratios in JOINT_RATIOS:
        mine = pick(joint, graph_ratio=ratios[0], weight_ratio=ratios[1])
        if not mine:
            continue
        title = shares(*ratios)
        default = pick(mine, draw=None, watch=None)
        by = by_links(default)
        summary.append(
            {
                "links / weights removed": title,
                "epoch drawn": drawn(by["learned"]),
                **{f"{kind} links": mean_of(found) for kind, found in by.items()},
                "learned - random": against(by["learned"], by["random"]),
                "all links - dense": against(by["all"], dense),
            }
        )
        rules = {w: pick(mine, draw=None, watch=w) for w in ("graph", "weights")}
        rules["both"] = by["learned"]
        stops = {rule: f"{drawn(on)}: {mean_of(on)}" for rule, on in rules.items()}
        criteria.append({"links / weights removed": title, **stops})
        curve = curve_of("learned links", [r for r in mine if r["draw"]])
        levels = levels_of({f"{kind} links": by[kind] for kind in ("random", "all")})
        panels.append(Panel(title, [curve], levels))
    yield from tabulated(
        f"{graph}: joint tickets, inherited weights; dense {mean_of(dense)}",
        summary,
        "The columns of a row share the inherited weights and differ in the links. "
        + VERDICTS,
    )
    yield from tabulated(
        f"{graph}: three stop criteria, epoch drawn and accuracy",
        criteria,
    )
    if panels:
        yield Figure(
            f"fig4-{graph}",
            f"{graph}: joint tickets (links / weights removed) by the epoch drawn, "
            "mean and standard deviation",
            partial(curves, panels, "epoch drawn", "test accuracy, %"),
        )
    yield from distances(graph, tables, "fig4")


register(
    Experiment(
        "fig4",
        "joint tickets, three stop criteria, epochs drawn",
        "Algorithm 2: search, retrain with inherited weights; GCN's own recipe "
        f"(`gebt models`). {BEST}",
        _jobs,
        _page,
    )
)
