"""Tickets for nodes that training never saw: test nodes come at the end."""

from collections.abc import Sequence
from functools import partial

from gebt.experiments.rows import VERDICTS, Items, levels_of, shares
from gebt.experiments.runner import Experiment, Job, Tables, register
from gebt.experiments.studies import ALL_LINKS, INDUCTIVE, NO_LINKS, OWN_PATH
from gebt.report.comparison import (
    Row,
    against,
    best_by_validation,
    mean_of,
    percent,
    pick,
)
from gebt.report.figures import Line, Panel, curves
from gebt.report.page import Figure, tabulated

MODELS = ("gcn", OWN_PATH)
LINKS = (0.4, 0.8)
WEIGHTS = 0.9
CHOSEN = ("voi", "expected-gradient")
"""Between these, and the models, validation decides."""


def _jobs(dataset: str, seed: int) -> list[Job]:
    ratios = [(0.0, 0.0), *((share, WEIGHTS) for share in LINKS)]
    kinds = [(model, both) for model in MODELS for both in ratios]
    return [Job(dataset, m, "inductive", *both, seed) for m, both in kinds]


def _page(graph: str, tables: Tables) -> Items:
    rows = tables.get("runs", [])
    dense = pick(rows, links="dense")
    yield from tabulated(
        f"{graph}: the better of {' and '.join(CHOSEN)} and of the models, by "
        "validation, seed by seed",
        [
            _chosen(pick(rows, graph_ratio=share), dense, share)
            for share in LINKS
            if pick(rows, graph_ratio=share)
        ],
        "Links / weights removed. Dense is chosen by validation between the models, "
        "too. Random: as many random links of the same students. Validation is over "
        f"before the test nodes come. {VERDICTS}",
    )
    panels = []
    for model in MODELS:
        mine = pick(rows, model=model)
        known = [share for share in LINKS if pick(mine, graph_ratio=share)]
        if not known:
            continue
        yield from tabulated(
            f"{graph}, {model}: dense {mean_of(pick(mine, links='dense'))}",
            [_row(mine, links, known) for links in (*INDUCTIVE, ALL_LINKS, NO_LINKS)],
            "Links / weights removed. The rows share a student and differ in the "
            f"links. Dense: its teacher, with all links and weights. {VERDICTS}",
        )
        levels = {"dense": pick(mine, links="dense")}
        levels |= {name: pick(mine, links=name) for name in (ALL_LINKS, NO_LINKS)}
        lines = [_line(name, pick(mine, links=name)) for name in INDUCTIVE]
        panels.append(Panel(model, lines, levels_of(levels)))
    if panels:
        yield Figure(
            f"inductive-{graph}",
            f"{graph}: test score of a student on the links that tickets find for "
            f"unseen nodes, mean; {percent(WEIGHTS)} of its weights removed",
            partial(curves, panels, "links removed, %", "test score, %"),
        )


def _chosen(rows: Sequence[Row], dense: Sequence[Row], share: float) -> dict[str, str]:
    """What is best by validation, and its differences."""
    best = best_by_validation([row for row in rows if row["links"] in CHOSEN])
    random = [
        row
        for each in best
        for row in pick(rows, links="random", model=each["model"], seed=each["seed"])
    ]
    return {
        "removed": shares(share, WEIGHTS),
        "test": mean_of(best),
        "- dense": against(best, best_by_validation(dense)),
        **{
            f"- {model}'s dense": against(best, pick(dense, model=model))
            for model in MODELS
        },
        "- random": against(best, random),
    }


def _row(rows: Sequence[Row], links: str, known: Sequence[float]) -> dict[str, str]:
    """A criterion's scores and differences, in the columns of the shares."""
    dense, cells = pick(rows, links="dense"), {"links": links}
    for share in known:
        both = shares(share, WEIGHTS)
        mine = pick(rows, links=links, graph_ratio=share)
        cells[both] = mean_of(mine)
        cells[f"{both}: - dense"] = against(mine, dense)
        if links != "random":
            random = pick(rows, links="random", graph_ratio=share)
            cells[f"{both}: - random"] = against(mine, random)
    return cells


def _line(links: str, rows: Sequence[Row]) -> Line:
    """The mean test score against the share of links removed."""
    known = [share for share in LINKS if pick(rows, graph_ratio=share)]
    means = [levels_of({"": pick(rows, graph_ratio=share)})[""] for share in known]
    return Line(links, [100 * share for share in known], means)


register(
    Experiment(
        "inductive",
        "tickets for nodes that training never saw",
        "A dense model (200 epochs) and its student (140) learn without the test nodes "
        "and without their links. Then these come, each ticket chooses links of the "
        "full graph by its criterion, and nothing is retrained. Epochs and criteria "
        "are chosen on validation nodes; nothing is chosen on test.",
        _jobs,
        _page,
    )
)
