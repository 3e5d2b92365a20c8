"""What the pages of the experiments share: readings of their tables' rows."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from gebt.experiments.runner import Tables
from gebt.report.comparison import Row, deviation, percent, pick, scores
from gebt.report.figures import Line, Panel, curves, heat_maps, scatter
from gebt.report.page import Figure, Table, tabulated
from gebt.tickets.search import FROZEN_THRESHOLD

DRAWS = (5, 10, 20, 40, 60, 80, 100)
LINK_RATIOS = (0.1, 0.3, 0.5, 0.7, 0.9)
JOINT_RATIOS = ((0.2, 0.5), (0.4, 0.7), (0.6, 0.9), (0.8, 0.9), (0.2, 0.9))
BEST = "Test score at the best validation epoch; nothing is chosen on test."
VERDICTS = (
    "Differences are means over the same seeds with 95% confidence intervals of the "
    'paired difference (Student\'s t); where the interval holds zero, "no difference". '
    "No correction for the number of comparisons."
)
Items = Iterator[Table | Figure | str]
Point = tuple[str, float, float, float]


def drawn(rows: Sequence[Row]) -> str:
    """Median and range of the epochs at which tickets were drawn."""
    epochs = sorted(int(row["epoch"]) for row in rows if row["epoch"])
    if not epochs:
        return "-"
    text = f"{statistics.median(epochs):g} [{epochs[0]}-{epochs[-1]}]"
    late = sum(row["settled"] != "True" for row in rows)
    return text + (f", {late} of {len(rows)} not settled" if late else "")


def shares(graph_ratio: object, weight_ratio: object) -> str:
    """Both ratios, as text."""
    return f"{percent(graph_ratio)} / {percent(weight_ratio)}"


def levels_of(rows: Mapping[str, Sequence[Row]]) -> dict[str, float]:
    """The mean test score of those that there are."""
    return {
        name: statistics.fmean(scores(found).values())
        for name, found in rows.items()
        if found
    }


def draws(rows: Sequence[Row]) -> list[int]:
    """The epochs at which tickets were asked to be drawn."""
    return sorted({int(row["draw"]) for row in rows if row["draw"]})


def curve_of(label: str, rows: Sequence[Row]) -> Line:
    """Mean and standard deviation of the test score against the epoch drawn."""
    epochs = draws(rows)
    each = [list(scores(pick(rows, draw=epoch)).values()) for epoch in epochs]
    mean = [statistics.fmean(values) for values in each]
    bar = [deviation(v) for v in each]
    low = [m - b for m, b in zip(mean, bar, strict=True)]
    high = [m + b for m, b in zip(mean, bar, strict=True)]
    return Line(label, epochs, mean, low, high)


def share_line(label: str, rows: Sequence[Row]) -> Line:
    """The mean test score against the share of links removed, percent."""
    shares = sorted({float(row["share"]) for row in rows})
    each = [scores(pick(rows, share=share)).values() for share in shares]
    means = [statistics.fmean(values) for values in each]
    return Line(label, [100 * share for share in shares], means)


def by_links(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Tickets and their controls: the same weights on other links."""
    return {kind: pick(rows, links=kind) for kind in ("learned", "random", "all")}


def faster(rows: Sequence[Row]) -> float:
    """How many times as long the dense model's forward takes, the median."""
    return statistics.median(
        float(row["dense_ms"]) / float(row["inference_ms"]) for row in rows
    )


def point(label: str, x: float, rows: Sequence[Row]) -> Point:
    """Mean and standard deviation of the test score, to be drawn at x."""
    values = list(scores(rows).values())
    return label, x, statistics.fmean(values), deviation(values)


def scattered(
    name: str, graph: str, what: str, points: Sequence[Point], label: str
) -> Items:
    """The figure of test scores against what they cost, if there are any.

    Args:
        name: of the experiment.
        graph: its name.
        what: they cost, in the title.
        points: by `point`.
        label: of the x axis.
    """
    if points:
        yield Figure(
            f"{name}-{graph}",
            f"{graph}: test score against {what}",
            partial(scatter, {"": points}, label, "test, %"),
        )


def millions(rows: Sequence[Row], column: str) -> str:
    """The mean of a column, in millions; a dash where it is empty."""
    values = [float(row[column]) / 1e6 for row in rows if row[column]]
    return f"{statistics.fmean(values):.2f}" if values else "-"


def distances(graph: str, tables: Tables, name: str) -> Items:
    """Mask distances epoch by epoch and of all pairs, and where each rule stops."""
    trajectories = tables.get("trajectories", [])
    kinds = dict.fromkeys((r["graph_ratio"], r["weight_ratio"]) for r in trajectories)
    panels: dict[str, list[Panel]] = {"links": [], "joint": []}
    maps: dict[str, list[Any]] = {"links": [], "joint": []}
    stops = []
    for graph_ratio, weight_ratio in kinds:
        both = {"graph_ratio": graph_ratio, "weight_ratio": weight_ratio}
        mine = pick(trajectories, **both)
        title = shares(graph_ratio, weight_ratio)
        lines = [
            trajectory(group, pick(mine, group=group))
            for group in dict.fromkeys(row["group"] for row in mine)
        ]
        kind = "joint" if float(weight_ratio) else "links"
        threshold = 0.1 if kind == "joint" else FROZEN_THRESHOLD
        panels[kind].append(
            Panel(title, lines, {f"threshold {threshold:g}": threshold})
        )
        ends = pick(tables.get("stops", []), **both)
        rules = {"graph": "graph", "weights": "weights", "joint": "both"}
        found = {called: _stopped(ends, group) for group, called in rules.items()}
        stops.append({"links / weights removed": title, **found})
        pairs = pick(tables.get("matrix", []), **both, seed=0)
        for group in dict.fromkeys(row["group"] for row in pairs):
            square = square_of(pick(pairs, group=group))
            maps[kind].append((f"{title}, {group}", *square))
    yield from tabulated(
        f"{graph}: epoch at which each criterion would stop, median [range]", stops
    )
    for kind, part in ((kind, part) for kind, part in panels.items() if part):
        yield Figure(
            f"{name}-distances-{kind}-{graph}",
            f"{graph}: largest distance to the last three masks, mean over seeds; "
            "links / weights removed",
            partial(curves, part, "epoch", "mask distance", log_y=True),
        )
    for kind, squares in ((kind, found) for kind, found in maps.items() if found):
        yield Figure(
            f"{name}-pairs-{kind}-{graph}",
            f"{graph}: mask distance of every pair of epochs, seed 0; links / weights "
            "removed",
            partial(heat_maps, squares),
        )


def trajectory(group: str, rows: Sequence[Row]) -> Line:
    """A group's mean distance against the epoch."""
    epochs: dict[int, list[float]] = {}
    for row in rows:
        epochs.setdefault(int(row["epoch"]), []).append(float(row["distance"]))
    # Zero has no place on a logarithmic axis.
    means = [max(1e-4, statistics.fmean(values)) for values in epochs.values()]
    return Line(group, list(epochs), means)


def _stopped(rows: Sequence[Row], group: str) -> str:
    epochs = [int(row[f"stop_{group}"]) for row in rows if row[f"stop_{group}"]]
    if not epochs:
        return "-"
    text = f"{statistics.median(epochs):g} [{min(epochs)}-{max(epochs)}]"
    never = len(rows) - len(epochs)
    return text + (f", {never} never" if never else "")


def square_of(pairs: Sequence[Row]) -> tuple[list[int], np.ndarray]:
    """The epochs, and the symmetric matrix of the distances of their pairs."""
    epochs = sorted({int(r[c]) for r in pairs for c in ("epoch", "other")})
    place = {epoch: i for i, epoch in enumerate(epochs)}
    matrix = np.zeros((len(epochs), len(epochs)))
    for row in pairs:
        a, b = place[int(row["epoch"])], place[int(row["other"])]
        matrix[a, b] = matrix[b, a] = float(row["distance"])
    return epochs, matrix
