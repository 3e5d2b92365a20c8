"""SuperTickets: several operators side by side, against each alone at its cost."""

from collections.abc import Sequence
from statistics import fmean

from gebt.experiments.operators import FRESH, RANDOM, SINGLE, SUPERNET, TICKET
from gebt.experiments.rows import (
    BEST,
    VERDICTS,
    Items,
    faster,
    millions,
    point,
    scattered,
)
from gebt.experiments.runner import Experiment, Job, Tables, register
from gebt.models import OPERATORS
from gebt.report.comparison import (
    Row,
    against,
    best_by_validation,
    mean_of,
    percent,
    pick,
    scores,
)
from gebt.report.page import tabulated

RATIO = 0.5
"""Of the weights of the units that stay, removed."""
SUPERNETS = ("super", "super-res")
"""Between these validation decides, seed by seed, by the whole supernet."""
_JOINT = "joint-EB of the supernet"
_ROWS = (TICKET, SUPERNET, FRESH, RANDOM, *SINGLE)


def _jobs(dataset: str, seed: int) -> list[Job]:
    found = []
    for model in SUPERNETS:
        found.append(Job(dataset, model, "supertickets", 0.0, RATIO, seed))
        # Watched alone it is trained without controls of its links, which all stay.
        joint = Job(dataset, model, "joint-EB", 0.0, RATIO, seed, watch="weights")
        found.append(joint)
    return found


def of_the_better(rows: Sequence[Row]) -> list[Row]:
    """Of each seed the rows of the supernet that validates better."""
    best = best_by_validation(pick(rows, method="supertickets", links=SUPERNET))
    kept = {(row["seed"], row["model"]) for row in best}
    return [row for row in rows if (row["seed"], row["model"]) in kept]


def _page(graph: str, tables: Tables) -> Items:
    rows = of_the_better(tables.get("runs", []))
    mine = pick(rows, method="supertickets")
    ticket = pick(mine, links=TICKET)
    if not ticket:
        return
    found = {name: pick(mine, links=name) for name in _ROWS}
    found[_JOINT] = pick(rows, method="joint-EB")
    singles = [row for name in SINGLE for row in found[name]]
    found["best single by validation"] = best_by_validation(singles)
    table, points = [], []
    for name, each in found.items():
        if not each:
            continue
        table.append(
            {
                "": name,
                "test": mean_of(each),
                "ticket - this": "-" if name == TICKET else against(ticket, each),
                "from scratch - this": "-"
                if name == FRESH
                else against(found[FRESH], each),
                "executed MACs, millions": millions(each, "macs_executed"),
                "supernet / this, ms": f"{faster(each):.2f}x",
                "training, CPU s": mean_of(each, "cpu_seconds"),
            }
        )
        costs = [float(r["macs_executed"]) / 1e6 for r in each if r["macs_executed"]]
        if costs:
            points.append(point(name, fmean(costs), each))
    yield from tabulated(
        f"{graph}: a supernet's ticket, and single operators as dear", table, VERDICTS
    )
    kept = {(row["seed"], row["model"]) for row in ticket}
    left = [r for r in tables.get("links", []) if (r["seed"], r["model"]) in kept]
    yield from tabulated(
        f"{graph}: share of each operator's hidden units that the ticket keeps",
        [
            {
                name: percent(fmean(scores(pick(left, links=name), "share").values()))
                for name in OPERATORS
                if pick(left, links=name)
            }
        ],
    )
    yield from scattered(
        "supertickets",
        graph,
        "executed multiply-accumulates",
        points,
        "executed MACs, millions",
    )


register(
    Experiment(
        "supertickets",
        "operators side by side, of which a search leaves some, against each alone",
        f"Tickets of {percent(RATIO)} of the weights of the units that stay. Single "
        "operators have the least width at which a forward executes no fewer "
        "multiply-accumulates than the compact ticket; beside two layers by their own "
        "recipes, beside three with the supernet's layers, batch norm, dropout and "
        "training, and own paths. Of the supernets of two layers and of three with "
        f"batch norm each seed has that which validates better. {BEST}",
        _jobs,
        _page,
    )
)
