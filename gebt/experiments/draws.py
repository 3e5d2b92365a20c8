"""When to draw a joint ticket: accuracy against the epoch, by criterion."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from statistics import fmean

from gebt.experiments.rows import (
    BEST,
    VERDICTS,
    Items,
    curve_of,
    drawn,
    draws,
    levels_of,
)
from gebt.experiments.runner import Experiment, Job, Tables, register
from gebt.experiments.studies import DRAWN
from gebt.report.comparison import Row, against, mean_of, pick, scores
from gebt.report.figures import Panel, curves
from gebt.report.page import Figure, tabulated

MODELS = {"tolokers": "gcn-res", "minesweeper": "gcn-res"}
"""The recipe for a graph where it is not gcn: of which it was chosen, on validation."""
EPOCHS = (5, 13, 50, 120, 200)
RATIOS = (0.5, 0.9)


def _jobs(dataset: str, seed: int) -> list[Job]:
    model = MODELS.get(dataset.partition(":")[0], "gcn")
    job = Job(dataset, model, "drawn", *RATIOS, seed)
    later = [replace(job, draw=epoch) for epoch in EPOCHS]
    return [Job.dense(dataset, seed, model), job, *later]


def _page(graph: str, tables: Tables) -> Items:
    rows = tables.get("runs", [])
    by_epoch, regrets, panels = [], [], []
    for model in dict.fromkeys(row["model"] for row in rows):
        mine = pick(rows, model=model, method="drawn")
        dense = pick(rows, model=model, method="dense")
        if not mine:
            continue
        for links in DRAWN:
            found = pick(mine, links=links)
            early = pick(found, draw=None)
            named = {"model": model, "links": links}
            cells = {f"epoch {e}": mean_of(pick(found, draw=e)) for e in draws(found)}
            by_epoch.append({**named, "detector's": mean_of(early), **cells})
            best = _best_later(found)
            regrets.append(
                {
                    **named,
                    "epoch drawn": drawn(early),
                    "test": mean_of(early),
                    "- dense": against(early, dense),
                    "- random": "-"
                    if links == "random"
                    else against(early, pick(mine, links="random", draw=None)),
                    "best later": best[0]["draw"] if best else "-",
                    "regret": against(best, early),
                }
            )
        levels = levels_of({"dense": dense})
        lines = [curve_of(n, _asked(pick(mine, links=n))) for n in DRAWN]
        panels.append(Panel(model, lines, levels))
    yield from tabulated(
        f"{graph}: what drawing early costs",
        regrets,
        "Regret: test score of the later draw that validates best, on average over the "
        f"seeds, less that of the detector's. {VERDICTS}",
    )
    yield from tabulated(f"{graph}: test score by the epoch drawn", by_epoch)
    if panels:
        yield Figure(
            f"draws-{graph}",
            f"{graph}: tickets (50% of links, 90% of weights removed), retrained, "
            "against the epoch they were drawn at, mean and standard deviation",
            partial(curves, panels, "epoch drawn", "test score, %"),
        )


def _asked(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["draw"]]


def _best_later(rows: Sequence[Row]) -> list[Row]:
    """The draw that validates best of those that come after all of the detector's."""
    rows = [row for row in rows if row["val"]]
    ends = [int(row["epoch"]) for row in pick(rows, draw=None) if row["epoch"]]
    after = [e for e in draws(rows) if ends and e > max(ends)]
    later = [pick(rows, draw=epoch) for epoch in after]
    return max(later, key=lambda on: fmean(scores(on, "val").values()), default=[])


register(
    Experiment(
        "draws",
        "joint tickets against the epoch drawn, by criterion",
        "A search of links and weights, drawn at an epoch or where the detector stops; "
        "its weights then on the links of each criterion, retrained by the recipe. "
        f"`voi` asks the search's weights. {BEST}",
        _jobs,
        _page,
    )
)
