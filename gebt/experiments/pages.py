"""What the experiments found: tables with baselines and verdicts, and figures."""

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np

from gebt.experiments.runner import JOINT_RATIOS, Row, Tables
from gebt.report.comparison import Difference, deviation, paired, spread
from gebt.report.figures import Line, Panel, curves, heat_maps, scatter
from gebt.report.page import Figure, Section, Table
from gebt.tickets.search import FROZEN_THRESHOLD

# Read off Fig. 1 of You et al. 2022, tickets drawn at epoch 10 or later.
FIG1_PAPER = {
    "cora": {0.1: 81.0, 0.3: 78.0, 0.5: 75.0, 0.7: 71.5, 0.9: 64.0},
    "citeseer": {0.1: 70.0, 0.3: 69.5, 0.5: 69.0, 0.7: 66.0, 0.9: 61.0},
}
# Table 2 there: accuracy and MFLOPs, dense and GEBT.
TABLE2_PAPER = {
    ("gcn", "cora"): (80.9, 77.95, 81.1, 24.9),
    ("gcn", "citeseer"): (69.4, 231.6, 70.5, 51.2),
    ("gcn", "pubmed"): (79.0, 203.1, 78.5, 55.8),
    ("sage", "cora"): (82.5, 6239, 82.6, 624),
    ("sage", "citeseer"): (71.0, 19654, 70.7, 1965),
    ("sage", "pubmed"): (78.9, 15868, 78.0, 4760),
    ("gat", "cora"): (82.1, 623.6, 82.2, 149),
    ("gat", "citeseer"): (72.1, 1853, 74.1, 382),
    ("gat", "pubmed"): (79.0, 1624, 79.8, 446),
    ("gin", "cora"): (81.6, 77.95, 82.4, 20.2),
    ("gin", "citeseer"): (70.9, 231.6, 71.4, 90.5),
    ("gin", "pubmed"): (79.1, 203.1, 79.7, 55.8),
}
VERDICTS = (
    "Differences are means over the same seeds with 95% confidence intervals of the "
    'paired difference (Student\'s t); where the interval holds zero, "no difference". '
    "No correction for the number of comparisons."
)


def experiment_sections(name: str, tables: Tables, asked: int = 0) -> list[Section]:
    """The sections of an experiment's page, one for each graph.

    Args:
        name: of the experiment.
        tables: its rows.
        asked: how many seeds it was to run; 0 where that is not known.
    """
    sections = []
    runs = tables.get("runs", [])
    scored = [row for row in runs if row["test"] not in ("", "nan")]
    rows = runs + tables.get("stops", [])
    for graph in dict.fromkeys(row["dataset"] for row in rows):
        mine = {
            table: [row for row in found if row["dataset"] == graph]
            for table, found in {**tables, "runs": scored}.items()
        }
        n = len({row["seed"] for row in rows if row["dataset"] == graph})
        of = f" of {asked}" if n < asked else ""
        texts = [
            f"n = {n}{of} seed{'s' if max(n, asked) > 1 else ''}. {_RECIPES[name]}"
        ]
        if bare := len([r for r in runs if r["dataset"] == graph]) - len(mine["runs"]):
            texts.append(f"Left out, for want of a test score: {bare} runs.")
        some = mine["runs"] or mine.get("stops")
        items = list(_CONTENT[name](graph, mine)) if some else []
        sections.append(Section(graph, [*texts, *items]))
    return sections


def pick(rows: Sequence[Row], **wanted: object) -> list[Row]:
    """The rows whose columns have these values; None stands for an empty cell."""
    texts = {c: "" if v is None else str(v) for c, v in wanted.items()}
    return [row for row in rows if all(row[c] == v for c, v in texts.items())]


def scores(rows: Sequence[Row], column: str = "test") -> dict[str, float]:
    """A column by seed."""
    return {row["seed"]: float(row[column]) for row in rows}


def _mean(rows: Sequence[Row], column: str = "test", digits: int = 1) -> str:
    return spread(list(scores(rows, column).values()), digits)


def _against(ours: Sequence[Row], theirs: Sequence[Row]) -> str:
    difference: Difference | None = paired(scores(ours), scores(theirs))
    return "-" if difference is None else str(difference)


def _drawn(rows: Sequence[Row]) -> str:
    epochs = sorted(int(row["epoch"]) for row in rows if row["epoch"])
    if not epochs:
        return "-"
    text = f"{statistics.median(epochs):g} [{epochs[0]}-{epochs[-1]}]"
    late = sum(row["settled"] != "True" for row in rows)
    return text + (f", {late} of {len(rows)} not settled" if late else "")


def _percent(ratio: object) -> str:
    return f"{float(str(ratio)):.0%}"


def _ratios(graph_ratio: object, weight_ratio: object) -> str:
    return f"{_percent(graph_ratio)} / {_percent(weight_ratio)}"


def _levels(rows: Mapping[str, Sequence[Row]]) -> dict[str, float]:
    """The mean test score of those that there are."""
    return {
        name: statistics.fmean(scores(found).values())
        for name, found in rows.items()
        if found
    }


def _draws(rows: Sequence[Row]) -> list[int]:
    return sorted({int(row["draw"]) for row in rows if row["draw"]})


def _curve(label: str, rows: Sequence[Row]) -> Line:
    """Mean and standard deviation of the test score against the epoch drawn."""
    epochs = _draws(rows)
    each = [list(scores(pick(rows, draw=epoch)).values()) for epoch in epochs]
    mean = [statistics.fmean(values) for values in each]
    bar = [deviation(v) for v in each]
    low = [m - b for m, b in zip(mean, bar, strict=True)]
    high = [m + b for m, b in zip(mean, bar, strict=True)]
    return Line(label, epochs, mean, low, high)


def _fig1(graph: str, tables: Tables) -> Iterator[Table | Figure | str]:
    rows = tables.get("runs", [])
    dense = pick(rows, method="dense")
    paper = FIG1_PAPER.get(graph, {})
    geb = pick(rows, method="GEB")
    ratios = list(dict.fromkeys(float(row["graph_ratio"]) for row in geb))
    summary, by_epoch, panels = [], [], []
    for ratio in ratios:
        mine = pick(geb, graph_ratio=ratio)
        learned = pick(mine, draw=None, links="learned")
        random = pick(mine, draw=None, links="random")
        level = paper.get(ratio)
        gap = "-"
        if level and learned:
            gap = f"{statistics.fmean(scores(learned).values()) - level:+z.1f}"
        summary.append(
            [
                _percent(ratio),
                _drawn(learned),
                _mean(learned),
                _mean(random),
                _against(learned, random),
                _against(learned, dense),
                f"{level:g}" if level else "-",
                gap,
            ]
        )
        curve = _curve("learned links", [r for r in mine if r["draw"]])
        gaps = [
            f"{y:.1f}" + (f" ({y - level:+z.1f})" if level else "") for y in curve.y
        ]
        by_epoch.append([_percent(ratio), *gaps])
        levels = _levels({"random links": random})
        if level:
            levels["paper"] = level
        panels.append(Panel(f"{_percent(ratio)} of links removed", [curve], levels))
    yield Table(
        f"{graph}: GEB tickets from scratch; dense {_mean(dense)}",
        (
            "links removed",
            "epoch drawn",
            "learned",
            "random",
            "learned - random",
            "learned - dense",
            "paper",
            "gap to paper",
        ),
        summary,
        VERDICTS,
    )
    yield Table(
        f"{graph}: by the epoch drawn, and the gap to the paper's curve",
        ("links removed", *(f"epoch {e}" for e in _draws(geb))),
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


def _distances(graph: str, tables: Tables, name: str) -> Iterator[Figure | Table]:
    trajectories = tables.get("trajectories", [])
    kinds = dict.fromkeys((r["graph_ratio"], r["weight_ratio"]) for r in trajectories)
    panels: dict[str, list[Panel]] = {"links": [], "joint": []}
    maps: dict[str, list[tuple[str, list[int], np.ndarray]]] = {
        "links": [],
        "joint": [],
    }
    stops = []
    for graph_ratio, weight_ratio in kinds:
        both = {"graph_ratio": graph_ratio, "weight_ratio": weight_ratio}
        mine = pick(trajectories, **both)
        title = _ratios(graph_ratio, weight_ratio)
        lines = [
            _trajectory(group, pick(mine, group=group))
            for group in dict.fromkeys(row["group"] for row in mine)
        ]
        kind = "joint" if float(weight_ratio) else "links"
        threshold = 0.1 if kind == "joint" else FROZEN_THRESHOLD
        panels[kind].append(
            Panel(title, lines, {f"threshold {threshold:g}": threshold})
        )
        ends = pick(tables.get("stops", []), **both)
        stops.append(
            [title, *(_stopped(ends, g) for g in ("graph", "weights", "joint"))]
        )
        pairs = pick(tables.get("matrix", []), **both, seed=0)
        for group in dict.fromkeys(row["group"] for row in pairs):
            square = _square(pick(pairs, group=group))
            maps[kind].append((f"{title}, {group}", *square))
    if stops:
        yield Table(
            f"{graph}: epoch at which each criterion would stop, median [range]",
            ("links / weights removed", "graph", "weights", "both"),
            stops,
        )
    for kind, part in panels.items():
        if not part:
            continue
        yield Figure(
            f"{name}-distances-{kind}-{graph}",
            f"{graph}: largest distance to the last three masks, mean over seeds; "
            "links / weights removed",
            partial(curves, part, "epoch", "mask distance", log_y=True),
        )
    for kind, found in maps.items():
        if not found:
            continue
        yield Figure(
            f"{name}-pairs-{kind}-{graph}",
            f"{graph}: mask distance of every pair of epochs, seed 0; links / weights "
            "removed",
            partial(heat_maps, found),
        )


def _trajectory(group: str, rows: Sequence[Row]) -> Line:
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


def _square(pairs: Sequence[Row]) -> tuple[list[int], np.ndarray]:
    epochs = sorted({int(r[c]) for r in pairs for c in ("epoch", "other")})
    place = {epoch: i for i, epoch in enumerate(epochs)}
    matrix = np.zeros((len(epochs), len(epochs)))
    for row in pairs:
        a, b = place[int(row["epoch"])], place[int(row["other"])]
        matrix[a, b] = matrix[b, a] = float(row["distance"])
    return epochs, matrix


def _fig2(graph: str, tables: Tables) -> Iterator[Table | Figure | str]:
    yield (
        "The paper's figure, and what it rests on: distances between masks fall, so a "
        "mask is near its final form early. That says when a ticket is stable, not "
        "that it is a good one; for that see fig1 and fig4."
    )
    yield from _distances(graph, tables, "fig2")


def _fig4(graph: str, tables: Tables) -> Iterator[Table | Figure | str]:
    rows = tables.get("runs", [])
    dense = pick(rows, method="dense")
    joint = pick(rows, method="joint-EB")
    summary, criteria, panels = [], [], []
    for ratios in JOINT_RATIOS:
        mine = pick(joint, graph_ratio=ratios[0], weight_ratio=ratios[1])
        if not mine:
            continue
        title = _ratios(*ratios)
        default = pick(mine, draw=None, watch=None)
        by = {k: pick(default, links=k) for k in ("learned", "random", "all")}
        summary.append(
            [
                title,
                _drawn(by["learned"]),
                *(_mean(found) for found in by.values()),
                _against(by["learned"], by["random"]),
                _against(by["all"], dense),
            ]
        )
        watched = [pick(mine, draw=None, watch=w) for w in ("graph", "weights")]
        watched.append(by["learned"])
        criteria.append([title, *(f"{_drawn(w)}: {_mean(w)}" for w in watched)])
        curve = _curve("learned links", [r for r in mine if r["draw"]])
        levels = _levels({f"{kind} links": by[kind] for kind in ("random", "all")})
        panels.append(Panel(title, [curve], levels))
    yield Table(
        f"{graph}: joint tickets, inherited weights; dense {_mean(dense)}",
        (
            "links / weights removed",
            "epoch drawn",
            "learned links",
            "random links",
            "all links",
            "learned - random",
            "all links - dense",
        ),
        summary,
        "The columns of a row share the inherited weights and differ in the links. "
        + VERDICTS,
    )
    yield Table(
        f"{graph}: three stop criteria, epoch drawn and accuracy",
        ("links / weights removed", "graph", "weights", "both"),
        criteria,
    )
    if panels:
        yield Figure(
            f"fig4-{graph}",
            f"{graph}: joint tickets (links / weights removed) by the epoch drawn, "
            "mean and standard deviation",
            partial(curves, panels, "epoch drawn", "test accuracy, %"),
        )
    yield from _distances(graph, tables, "fig4")


def _fig6(graph: str, tables: Tables) -> Iterator[Table | Figure | str]:
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
        speed = [float(r["dense_ms"]) / float(r["inference_ms"]) for r in mine]
        training = [float(r["macs_training"]) / 1e9 for r in mine]
        table.append(
            [
                name,
                _ratios(graph_ratio, weight_ratio),
                _mean(mine),
                "-" if method == "dense" else _against(mine, dense),
                "-" if links == "random" or not random else _against(mine, random),
                _millions(mine, "macs_paper"),
                _millions(mine, "macs_executed"),
                spread([float(r["inference_ms"]) for r in mine], 2),
                f"{statistics.median(speed):.2f}x",
                f"{statistics.fmean(training):.2f}",
                _mean(mine, "cpu_seconds", 2),
            ]
        )
        values = list(scores(mine).values())
        bar = deviation(values)
        mean = statistics.fmean(values)
        for ratios in JOINT_RATIOS[:3]:
            if float(graph_ratio) in (0, ratios[0]) and float(weight_ratio) in (
                0,
                ratios[1],
            ):
                time = 1 / statistics.median(speed)
                panel = _ratios(*ratios)
                by_time.setdefault(panel, []).append((name, time, mean, bar))
                spent = statistics.fmean(training)
                by_training.setdefault(panel, []).append((name, spent, mean, bar))
    yield Table(
        f"{graph}: every baseline",
        (
            "method, links",
            "links / weights removed",
            "test accuracy, %",
            "- dense",
            "- random",
            "MACs, paper's, M",
            "MACs executed, M",
            "inference, ms",
            "dense / this",
            "training GMACs",
            "training, CPU s",
        ),
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


Point = tuple[str, float, float, float]


def _millions(rows: Sequence[Row], column: str) -> str:
    values = [float(row[column]) / 1e6 for row in rows if row[column]]
    return f"{statistics.fmean(values):.2f}" if values else "-"


def _table2(graph: str, tables: Tables) -> Iterator[Table | Figure | str]:
    rows = tables.get("runs", [])
    models = list(dict.fromkeys(row["model"] for row in rows))
    dense_rows, tickets, points = [], [], []
    for model in models:
        mine = pick(rows, model=model)
        dense = pick(mine, method="dense")
        paper = TABLE2_PAPER.get((model, graph))
        mean = statistics.fmean(scores(dense).values()) if dense else math.nan
        dense_rows.append(
            [
                model,
                _mean(dense),
                f"{paper[0]:g}" if paper else "-",
                f"{mean - paper[0]:+z.1f}" if paper and dense else "-",
                _millions(dense, "macs_paper"),
                f"{paper[1]:g}" if paper else "-",
                _mean(dense, "cpu_seconds", 2),
            ]
        )
        if dense:
            points.append((f"{model}, dense", 1.0, mean, _deviation(dense)))
        joint = pick(mine, method="joint-EB")
        for graph_ratio, weight_ratio in dict.fromkeys(
            (row["graph_ratio"], row["weight_ratio"]) for row in joint
        ):
            found = pick(joint, graph_ratio=graph_ratio, weight_ratio=weight_ratio)
            by = {k: pick(found, links=k) for k in ("learned", "random", "all")}
            learned = by["learned"]
            if not learned:
                continue
            speed = [float(r["dense_ms"]) / float(r["inference_ms"]) for r in learned]
            tickets.append(
                [
                    model,
                    _ratios(graph_ratio, weight_ratio),
                    _drawn(learned),
                    *(_mean(rows_of) for rows_of in by.values()),
                    _against(learned, by["random"]),
                    _against(learned, dense),
                    f"{paper[2] - paper[0]:+z.1f}" if paper else "-",
                    f"{statistics.median(speed):.2f}x",
                    _millions(learned, "macs_paper"),
                    f"{paper[3]:g}" if paper else "-",
                ]
            )
            mean = statistics.fmean(scores(learned).values())
            time = 1 / statistics.median(speed)
            name = f"{model}, ticket {_ratios(graph_ratio, weight_ratio)}"
            points.append((name, time, mean, _deviation(learned)))
    yield Table(
        f"{graph}: dense",
        (
            "model",
            "test accuracy, %",
            "paper",
            "gap",
            "MACs, M",
            "paper's",
            "training, CPU s",
        ),
        dense_rows,
        "MACs by the paper's convention at our sizes: its GAT has 8 heads of 16 units "
        "(ours 8 of 8), its other models 16 hidden units (our GIN and GraphSAGE 64).",
    )
    yield Figure(
        f"table2-{graph}",
        f"{graph}: accuracy against measured inference time, each model's dense = 1",
        partial(scatter, {"": points}, "inference time, dense = 1", "test accuracy, %"),
    )
    yield Table(
        f"{graph}: joint tickets, inherited weights",
        (
            "model",
            "links / weights removed",
            "epoch drawn",
            "learned links",
            "random links",
            "all links",
            "learned - random",
            "learned - dense",
            "paper: GEBT - dense",
            "dense / ticket, time",
            "MACs, M",
            "paper's",
        ),
        tickets,
        "Ratios decoded from the MACs of the paper's Table 2. " + VERDICTS,
    )


def _deviation(rows: Sequence[Row]) -> float:
    values = list(scores(rows).values())
    return deviation(values)


Content = Callable[[str, Tables], Iterator[Table | Figure | str]]
_CONTENT: Mapping[str, Content] = {
    "fig1": _fig1,
    "fig2": _fig2,
    "fig4": _fig4,
    "fig6": _fig6,
    "table2": _table2,
}
_BEST = "Test score at the best validation epoch; nothing is chosen on test."
_RECIPES = {
    "fig1": "Algorithm 1: pretrain, search the links with frozen weights, retrain from "
    f"scratch; GCN's own recipe for each (`gebt models`). {_BEST}",
    "fig2": "Searches of 100 epochs that never stop.",
    "fig4": "Algorithm 2: search, retrain with inherited weights; GCN's own recipe "
    f"(`gebt models`). {_BEST}",
    "fig6": f"GCN's own recipe for every method (`gebt models`). {_BEST}",
    "table2": "Each model's own recipe (`gebt models`), Algorithm 2, inherited "
    f"weights. {_BEST}",
}
