"""The early-bird family side by side: each sibling's ticket of one graph."""

from statistics import fmean
from typing import NamedTuple

from gebt.experiments.at_init import FOUND, GEM
from gebt.experiments.channels import TICKET
from gebt.experiments.operators import TICKET as SUPER_TICKET
from gebt.experiments.rows import (
    BEST,
    VERDICTS,
    Items,
    faster,
    millions,
    point,
    scattered,
    shares,
)
from gebt.experiments.runner import Experiment, Job, Tables, register
from gebt.experiments.supertickets import SUPERNETS, of_the_better
from gebt.report.comparison import against, mean_of, pick
from gebt.report.page import tabulated


class _Kind(NamedTuple):
    """A row: whose it is, what is removed, and what its links are called."""

    method: str
    graph_ratio: float
    weight_ratio: float
    links: str


_JOINT = "joint-EB"
_KINDS = {
    "dense": _Kind("dense", 0.0, 0.0, "all"),
    "random links and weights": _Kind("random", 0.5, 0.9, "random"),
    _JOINT: _Kind(_JOINT, 0.5, 0.9, "learned"),
    "joint-EB, random links": _Kind(_JOINT, 0.5, 0.9, "random"),
    "EB-Train, units": _Kind("eb-train", 0.5, 0.5, TICKET),
    "Gem-Miner": _Kind(GEM, 0.5, 0.9, FOUND),
    "SuperTickets": _Kind("supertickets", 0.0, 0.5, SUPER_TICKET),
}


def _jobs(dataset: str, seed: int) -> list[Job]:
    found = []
    for kind in dict.fromkeys(kind._replace(links="") for kind in _KINDS.values()):
        models = SUPERNETS if kind.method == "supertickets" else ("gcn",)
        found += [Job(dataset, model, *kind[:3], seed) for model in models]
    return found


def _page(graph: str, tables: Tables) -> Items:
    every = tables.get("runs", [])
    rows = [*pick(every, model="gcn"), *of_the_better(every)]
    found = {
        name: mine
        for name, kind in _KINDS.items()
        if (mine := pick(rows, **kind._asdict()))
    }
    table, points = [], []
    for name, mine in found.items():
        kind = _KINDS[name]
        row = {"": name, "removed": shares(kind.graph_ratio, kind.weight_ratio)}
        row["n"] = str(len(mine))
        row["test, %"] = mean_of(mine)
        for other in ("dense", _JOINT):
            row[f"- {other}"] = "-"
            if other != name and other in found:
                row[f"- {other}"] = against(mine, found[other])
        row["MACs, M"] = millions(mine, "macs_executed")
        row["dense / this, ms"] = f"{faster(mine):.2f}x"
        row["training, CPU s"] = mean_of(mine, "cpu_seconds")
        table.append(row)
        ms = fmean(float(each["inference_ms"]) for each in mine)
        points.append(point(name, ms, mine))
    yield from tabulated(
        f"{graph}: a ticket of each sibling",
        table,
        "Removed: links / weights, of EB-Train units, of SuperTickets weights of the "
        "units that stay. Dense / this: the same model unpruned, for SuperTickets the "
        "whole supernet. Training is all of it: search, ticket and retraining. "
        f"{VERDICTS}",
    )
    yield from scattered("family", graph, "inference time", points, "inference, ms")


register(
    Experiment(
        "family",
        "EB-Train, SuperTickets, Gem-Miner beside the joint ticket, dense and random",
        "A GCN of two layers by its recipe, but SuperTickets, which chooses among "
        "operators; nothing is tuned to the graph. KSM is of many tasks, and stands on "
        f"its own page. {BEST}",
        _jobs,
        _page,
    )
)
