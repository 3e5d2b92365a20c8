"""Gem-Miner: tickets found before any training, beside those that take some."""

from collections.abc import Sequence
from functools import partial

from gebt.experiments.at_init import (
    AT_INIT,
    CONSTANTS,
    FOUND,
    GEM,
    RANDOM,
    RENEWED,
    SHUFFLED,
)
from gebt.experiments.rows import BEST, VERDICTS, Items, levels_of
from gebt.experiments.runner import Experiment, Job, Tables, register
from gebt.report.comparison import Row, against, mean_of, percent, pick
from gebt.report.figures import Line, Panel, curves
from gebt.report.page import Figure, tabulated

LINKS = (0.0, 0.2, 0.5, 0.8)
WEIGHTS = (0.95, 0.98, 0.99)
_SHOWN: dict[str, tuple[str, str]] = {
    "Gem-Miner": (GEM, FOUND),
    "its weights, random links": (GEM, RANDOM),
    "its counts, random weights": (GEM, SHUFFLED),
    "its masks, new weights": (GEM, RENEWED),
    "joint-EB": ("joint-EB", "learned"),
    "joint-EB's masks, constants": ("joint-EB masks", CONSTANTS),
    "IMP": ("IMP", "all"),
    "UGS": ("UGS", "learned"),
    "SNIP": ("SNIP", FOUND),
    "SNIP, constants": ("SNIP", CONSTANTS),
    "SynFlow": ("SynFlow", FOUND),
    "SynFlow, constants": ("SynFlow", CONSTANTS),
    "smart ratio": ("smart ratio", FOUND),
    "smart ratio, constants": ("smart ratio", CONSTANTS),
}
"""Rows of the tables: the method, and what its links are called."""


def _jobs(dataset: str, seed: int) -> list[Job]:
    found = [Job.dense(dataset, seed)]
    for links in LINKS:
        for weights in WEIGHTS:
            # IMP prunes weights alone; UGS is IMP of links, too.
            iterative = "UGS" if links else "IMP"
            for method in (*AT_INIT, "joint-EB"):
                found.append(Job(dataset, "gcn", method, links, weights, seed))
            if not links or (links, weights) in _DIAGONAL:
                found.append(Job(dataset, "gcn", iterative, links, weights, seed))
    return found


_DIAGONAL = [*zip(LINKS[1:], WEIGHTS, strict=True)]
"""Where UGS, which takes as long as all others together, is run."""


def _page(graph: str, tables: Tables) -> Items:
    rows = tables.get("runs", [])
    dense = pick(rows, method="dense")
    panels = []
    for links in LINKS:
        mine = {
            name: pick(rows, method=method, links=kind, graph_ratio=links)
            for name, (method, kind) in _SHOWN.items()
        }
        table = [
            _row(name, found, mine["Gem-Miner"], dense)
            for name, found in mine.items()
            if found
        ]
        yield from tabulated(
            f"{graph}: {percent(links)} of the links removed, dense {mean_of(dense)}",
            table,
            "By the share of weights kept. Constants: trained from Gem-Miner's signed "
            f"constants, not from the first weights. {VERDICTS}",
        )
        lines = [_line(name, mine[name]) for name in _DRAWN if mine[name]]
        title = f"{percent(links)} of the links removed"
        if lines:
            panels.append(Panel(title, lines, levels_of({"dense": dense})))
    if panels:
        yield Figure(
            f"gem-miner-{graph}",
            f"{graph}: test score against the weights kept, mean",
            partial(curves, panels, "weights kept, %", "test score, %"),
        )


_DRAWN = ("Gem-Miner", "joint-EB", "IMP", "UGS", "SNIP", "SynFlow", "smart ratio")


def _row(
    name: str, rows: Sequence[Row], gem: Sequence[Row], dense: Sequence[Row]
) -> dict[str, str]:
    """A method's scores, Gem-Miner's less those, and what training took."""
    cells = {"": name}
    for ratio in WEIGHTS:
        mine, kept = pick(rows, weight_ratio=ratio), percent(1 - ratio)
        cells[kept] = mean_of(mine)
        theirs = pick(gem, weight_ratio=ratio)
        if name == "Gem-Miner":
            cells[f"{kept}: Gem-Miner - this"] = "-"
        else:
            cells[f"{kept}: Gem-Miner - this"] = against(theirs, mine)
    cells["- dense, at 5%"] = against(pick(rows, weight_ratio=WEIGHTS[0]), dense)
    cells["training, CPU s"] = mean_of(_one_each(rows), "cpu_seconds")
    return cells


def _one_each(rows: Sequence[Row]) -> list[Row]:
    """The rows of the fewest weights that there are."""
    return pick(rows, weight_ratio=max(float(row["weight_ratio"]) for row in rows))


def _line(name: str, rows: Sequence[Row]) -> Line:
    """The mean test score against the share of weights kept."""
    known = [ratio for ratio in WEIGHTS if pick(rows, weight_ratio=ratio)]
    means = [levels_of({"": pick(rows, weight_ratio=ratio)})[""] for ratio in known]
    return Line(name, [100 * (1 - ratio) for ratio in known], means)


register(
    Experiment(
        "gem-miner",
        "tickets found before training, beside early-bird tickets and IMP",
        "Gem-Miner chooses among frozen weights, and among links, in as many epochs as "
        "the recipe has, and the ticket is trained for as many more from its signed "
        "constants; joint-EB inherits its search's weights; IMP and UGS drop a fifth a "
        "round and rewind; SNIP, SynFlow and smart ratios choose before training. All "
        f"score links as they score weights, but smart ratios, at random. {BEST}",
        _jobs,
        _page,
    )
)
