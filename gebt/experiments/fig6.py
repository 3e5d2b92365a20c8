"""Accuracy against cost, all baselines: Fig. 6 of You et al. 2022."""

import statistics
from functools import partial

from gebt.experiments.rows import (
    BEST,
    JOINT_RATIOS,
    VERDICTS,
    Items,
    Point,
    faster,
    millions,
    point,
    shares,
)
from gebt.experiments.runner import Experiment, Job, Tables, register
from gebt.report.comparison import against, mean_of, pick
from gebt.report.figures import scatter
from gebt.report.page import Figure, tabulated


def _jobs(dataset: str, seed: int) -> list[Job]:
    found = [Job.dense(dataset, seed)]
    for graph_ratio, weight_ratio in JOINT_RATIOS[:3]:
        for method in ("joint-EB", "UGS", "random"):
            found.append(Job(dataset, "gcn", method, graph_ratio, weight_ratio, seed))
        found.append(Job(dataset, "gcn", "IMP", 0.0, weight_ratio, seed))
        for method in ("GEB", "SGCN", "random", "degree", "similarity", "k-neighbour"):
            found.append(Job(dataset, "gcn", method, graph_ratio, 0.0, seed))
    return found


def _page(graph: str, tables: Tables) -> Items:
    rows = tables.get("runs", [])
    dense = pick(rows, method="dense")
    table = []
    by_time: dict[str, list[Point]] = {}
    by_training: dict[str, list[Point]] = {}
    kinds = dict.fromkeys(
        (r["method"], r["graph_ratio"], r["weight_ratio"], r["links"]) for r in rows
    )
    for method, graph_ratio, weight_ratio, links in kinds:
        both = {"graph_ratio": graph_ratio, "weight_ratio": weight_ratio}
        mine = pick(rows, method=method, links=links, **both)
        name = f"{method}, {links} links"
        if method in (links, "dense"):
            name = method
        if method == "random":
            name = "random links" + (", random weights" if float(weight_ratio) else "")
        random = pick(rows, method=method, links="random", **both)
        random = random or pick(rows, method="random", **both)
        speed = faster(mine)
        training = statistics.fmean(float(r["macs_training"]) / 1e9 for r in mine)
        table.append(
            {
                "method, links": name,
                "links / weights removed": shares(graph_ratio, weight_ratio),
                "test accuracy, %": mean_of(mine),
                "- dense": "-" if method == "dense" else against(mine, dense),
                "- random": "-"
                if links == "random" or not random
                else against(mine, random),
                "MACs, paper's, M": millions(mine, "macs_paper"),
                "MACs executed, M": millions(mine, "macs_executed"),
                "inference, ms": mean_of(mine, "inference_ms", 2),
                "dense / this": f"{speed:.2f}x",
                "training GMACs": f"{training:.2f}",
                "training, CPU s": mean_of(mine, "cpu_seconds", 2),
            }
        )
        for links_gone, weights_gone in JOINT_RATIOS[:3]:
            if float(graph_ratio) in (0, links_gone) and (
                float(weight_ratio) in (0, weights_gone)
            ):
                panel = shares(links_gone, weights_gone)
                by_time.setdefault(panel, []).append(point(name, 1 / speed, mine))
                by_training.setdefault(panel, []).append(point(name, training, mine))
    yield from tabulated(
        f"{graph}: every baseline",
        table,
        f"{VERDICTS} Random: the same weights on random links where there is such a "
        "row (joint-EB, GEB); else random links, and random weights where weights are "
        "removed, from scratch at the same ratios. Inference is timed in turns with "
        "the dense model, seeds side by side on all cores: read the ratio. Training "
        "MACs are executed ones, searches and pretraining included.",
    )
    yield Figure(
        f"fig6-time-{graph}",
        f"{graph}: accuracy against measured inference time, dense = 1; at most as "
        "many links / weights removed as a panel's title says",
        partial(scatter, by_time, "inference time, dense = 1", "test accuracy, %"),
    )
    yield Figure(
        f"fig6-training-{graph}",
        f"{graph}: accuracy against multiply-accumulates of training, panels as above",
        partial(
            scatter,
            by_training,
            "training, GMACs executed",
            "test accuracy, %",
            log_x=True,
        ),
    )


register(
    Experiment(
        "fig6",
        "accuracy against cost, all baselines",
        f"GCN's own recipe for every method (`gebt models`). {BEST}",
        _jobs,
        _page,
    )
)
