"""EB-Train: early-bird tickets of whole channels, alone and joint with links."""

import statistics
from collections.abc import Sequence

from gebt.experiments.channels import CNN, DENSE, LOW, RANDOM, TICKET
from gebt.experiments.rows import (
    BEST,
    VERDICTS,
    Items,
    drawn,
    faster,
    millions,
    point,
    scattered,
    shares,
)
from gebt.experiments.runner import Experiment, Job, Tables, register
from gebt.experiments.studies import DEEP
from gebt.report.comparison import Row, against, mean_of, pick
from gebt.report.page import tabulated

RATIOS = ((0.0, 0.5), (0.2, 0.5))
"""Links and channels removed."""
_JOINT = "joint-EB"


def _jobs(dataset: str, seed: int) -> list[Job]:
    if dataset == "digits":
        return [Job(dataset, CNN.model, "eb-train-images", *RATIOS[0], seed)]
    found = []
    for model in ("gcn", DEEP):
        found.append(Job.dense(dataset, seed, model))
        found += [Job(dataset, model, "eb-train", *ratios, seed) for ratios in RATIOS]
        found.append(Job(dataset, model, _JOINT, *RATIOS[1], seed))
    return found


def _page(graph: str, tables: Tables) -> Items:
    rows = tables.get("runs", [])
    table, points = [], []
    for model in dict.fromkeys(row["model"] for row in rows):
        mine = pick(rows, model=model)
        dense = pick(mine, method="dense") or pick(mine, links=DENSE)
        kinds = dict.fromkeys(
            (r["method"], r["graph_ratio"], r["weight_ratio"], r["links"]) for r in mine
        )
        for method, *ratios, links in kinds:
            both = dict(zip(("graph_ratio", "weight_ratio"), ratios, strict=True))
            found = pick(mine, method=method, links=links, **both)
            ticket = pick(mine, links=TICKET, **both)
            table.append(
                {
                    "model": model,
                    "": _called(method, links),
                    "links / units removed": "-" if found == dense else shares(*ratios),
                    "drawn": drawn(found),
                    "test, %": mean_of(found),
                    "- dense": "-"
                    if found == dense or not dense
                    else against(found, dense),
                    "ticket - this": "-"
                    if found in (ticket, dense) or not ticket
                    else against(ticket, found),
                    "MACs, M": millions(found, "macs_executed"),
                    "dense / this, ms": f"{faster(found):.2f}x",
                    "training GMACs": _giga(found),
                }
            )
            name = f"{model}, {_called(method, links)}"
            costs = [float(r["macs_executed"] or "nan") / 1e6 for r in found]
            points.append(point(name, statistics.fmean(costs), found))
    yield from tabulated(
        f"{graph}: tickets of channels",
        table,
        f"{VERDICTS} Of joint-EB the share of weights is removed, element by element, "
        "and what is left is trained anew for all epochs; tickets of channels are "
        "trained on for the epochs that are left.",
    )
    yield from scattered(
        "eb-train",
        graph,
        "executed multiply-accumulates",
        points,
        "executed MACs, millions",
    )
    equal = [
        {
            "model": model,
            "links / units removed": shares(*ratios),
            "search": name,
            "links equal, %": _percent(found, "equal_links")
            if float(ratios[0])
            else "-",
            "channels equal, %": _percent(found, "equal_channels"),
        }
        for model, *ratios, name, found in _by_search(tables.get("links", []))
    ]
    yield from tabulated(
        f"{graph}: how far masks of searches in few bits equal those in full precision",
        equal,
        "By the same first weights and, but for the last, the same dropout. Of random "
        "masks with these ratios 68% of the links would be equal at 20% removed, and "
        "50% of the channels.",
    )


def _called(method: str, links: str) -> str:
    if method == _JOINT:
        return f"{method}, {links} links"
    return f"channels: {links}" if links in (TICKET, RANDOM, LOW) else DENSE


def _giga(rows: Sequence[Row]) -> str:
    return f"{statistics.fmean(float(r['macs_training']) / 1e9 for r in rows):.2f}"


def _by_search(rows: Sequence[Row]) -> list[tuple]:
    """The rows of each model, ratios and search."""
    names = ("model", "graph_ratio", "weight_ratio", "links")
    kinds = dict.fromkeys(tuple(row[name] for name in names) for row in rows)
    return [
        (*kind, pick(rows, **dict(zip(names, kind, strict=True)))) for kind in kinds
    ]


def _percent(rows: Sequence[Row], column: str) -> str:
    values = [100 * float(row[column]) for row in rows]
    return f"{statistics.fmean(values):.1f} [{min(values):.1f}-{max(values):.1f}]"


register(
    Experiment(
        "eb-train",
        "tickets of whole channels, alone and joint with links",
        "Channels are ranked by their batch norm's |scale|, pulled by an L1 "
        "subgradient of 1e-4; of gcn, which has no norm, by their weights. GCN by its "
        "own recipe (`gebt models`), and one of six layers with own paths and batch "
        "norm, 64 units each; on digits a CNN of three convolutions with batch norm, "
        f"which reads the pixels and no link. {BEST}",
        _jobs,
        _page,
    )
)
