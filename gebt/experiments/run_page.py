"""The page of a `gebt run` folder."""

import math
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gebt.datasets import load
from gebt.deploy.storage import load_compact
from gebt.experiments.pages import _square, _trajectory
from gebt.experiments.run import prepare
from gebt.experiments.runner import read_table
from gebt.files import Fields, read_json
from gebt.learn.tasks import find_task
from gebt.report.comparison import paired, spread
from gebt.report.figures import Panel, at_least, curves, heat_maps, scatter
from gebt.report.page import Figure, Page, Section, Table
from gebt.tickets.ticket import Ticket


def run_page(folder: Path, root: str | Path | None) -> Page:
    """The page of one run; parts whose files are missing are left out, and say so."""
    metrics = read_json(folder / "metrics.json", "record of a run")
    sections = [Section("Summary", list(_summary(metrics)))]
    options = metrics.fields("options") if "options" in metrics else None
    parts = [metrics.text("dataset"), options.text("model") if options else None]
    facts = [metrics.text("task")]
    if "runs" in metrics:
        facts.append(_seeds(metrics))
    if (folder / "ticket.safetensors").is_file():
        ticket = Ticket.load(folder / "ticket.safetensors")
        sections[0].items.insert(0, _words(ticket))
        sections += [
            Section("When the ticket was stable", list(_stability(folder, ticket))),
            Section("What was kept", list(_kept(folder, ticket, root))),
        ]
        parts[1] = parts[1] or ticket.model["class"]
        facts += [
            f"links removed {ticket.options['graph_ratio']:.0%}",
            f"weights removed {ticket.options['weight_ratio']:.0%}",
            f"gebt {ticket.versions['gebt']}, torch {ticket.versions['torch']}",
        ]
    else:
        text = "ticket.safetensors is not in the folder: of distances, layers and "
        sections[0].items.append(f"{text}degrees nothing is shown.")
    return Page(", ".join(filter(None, parts)), ", ".join(facts), sections)


Items = Iterator[Table | Figure | str]
_SCORES = (("retrained", "test"), ("retrained", "val"))
_NAME = re.compile(r"[\w@ -]{1,40}")


def _words(ticket: Ticket) -> str:
    state = "settled" if ticket.settled else "not settled: the epochs ran out"
    kept = f"{ticket.links_kept:,} of {ticket.link_mask.numel():,} links"
    if ticket.weight_masks:
        kept += f" and {ticket.weights_kept:,} of {ticket.num_weights:,} weights"
    text = (
        f"The ticket in this folder was drawn at epoch {ticket.epoch} ({state}), seed "
        f"{ticket.seed}. It keeps {kept}."
    )
    if ticket.share_untouched:
        text += (
            f" {ticket.links_untouched:,} of the links never received a gradient; "
            "which of them stay was drawn."
        )
    return text


def _seeds(metrics: Fields) -> str:
    """How many seeds there are, of how many that were asked for."""
    n = len(metrics.each("runs"))
    options = metrics.fields("options")
    asked = options.whole("seeds", 1) if "seeds" in options else n
    of = f" of {asked}" if n < asked else ""
    return f"{n}{of} seed{'s' if max(n, asked) > 1 else ''}"


def _number(run: Fields, *path: str) -> float:
    """A number of a run, checked; NaN for null: without nodes to score, say."""
    *groups, name = path
    for group in groups:
        run = run.fields(group)
    return run.number(name, 0, 100 if name in ("val", "test") else 1e18, null=True)


def _summary(metrics: Fields) -> Items:
    metric = metrics.text("metric")
    if not _NAME.fullmatch(metric):
        metrics.fail("metric", "a short name")
    if "runs" not in metrics:
        found = [
            _number(metrics, *path) for path in (*_SCORES, ("inference_ms", "ticket"))
        ]
        names = f"test {metric}, %", f"validation {metric}, %", "inference, ms"
        yield Table(
            "Retrained ticket",
            ("", "ticket"),
            [
                [name, "-" if math.isnan(value) else f"{value:.{digits}f}"]
                for name, value, digits in zip(names, found, (1, 1, 2), strict=True)
            ],
        )
        return
    runs = metrics.each("runs")
    if not runs:
        metrics.fail("runs", "a list of at least one run")
    seeds = [str(run.whole("seed", 0)) for run in runs]
    if len(set(seeds)) < len(seeds):
        metrics.fail("runs", "a list of runs of different seeds")

    def column(*path: str) -> list[float]:
        values = [_number(run, *path) for run in runs]
        return [value for value in values if not math.isnan(value)]

    def by_seed(*path: str) -> dict[str, float]:
        values = {s: _number(r, *path) for s, r in zip(seeds, runs, strict=True)}
        return {seed: value for seed, value in values.items() if not math.isnan(value)}

    gap = paired(by_seed("retrained", "test"), by_seed("dense", "test"))
    rows = [
        [
            f"test {metric}, %",
            spread(column("dense", "test")),
            spread(column("retrained", "test")),
            "-" if gap is None else str(gap),
        ],
        [
            f"validation {metric}, %",
            spread(column("dense", "val")),
            spread(column("retrained", "val")),
            "",
        ],
    ]
    search, retrain = (by_seed("cpu_seconds", p) for p in ("search", "retrain"))
    training = [search[seed] + retrain[seed] for seed in search if seed in retrain]
    for title, dense, pruned, scale, digits in (
        ("training, CPU s", column("cpu_seconds", "dense"), training, 1, 2),
        ("inference, ms", *_both(column, "inference_ms"), 1, 2),
        ("MACs, paper's, M", *_both(column, "macs", "paper"), 1e6, 2),
        ("MACs executed, M", *_both(column, "macs", "executed"), 1e6, 2),
    ):
        if dense and pruned and min(*dense, *pruned) > 0:
            less = np.mean(dense) / np.mean(pruned)
            ratio = f"{less:.2f}x less" if less >= 1 else f"{1 / less:.2f}x more"
            cells = [spread([v / scale for v in c], digits) for c in (dense, pruned)]
            rows.append([title, *cells, ratio])
    yield Table(
        "Dense model and ticket",
        ("", "dense", "ticket", "difference"),
        rows,
        f"n = {_seeds(metrics)}; mean ± standard deviation; the difference in {metric} "
        "with its 95% confidence interval over the same seeds. Training of a ticket is "
        "search and retraining. Whether learned links matter takes the controls of "
        "`gebt reproduce`.",
    )
    points = [
        (kind, _number(run, "inference_ms", kind), _number(run, key, "test"), 0.0)
        for run in runs
        for kind, key in (("dense", "dense"), ("ticket", "retrained"))
    ]
    points = [point for point in points if not math.isnan(point[1] + point[2])]
    if not points:
        yield "There is no figure of accuracy against time: no test score was recorded."
        return
    yield Figure(
        "accuracy-against-time",
        f"test {metric} against inference time, one point a seed",
        partial(scatter, {"": points}, "inference, ms", f"test {metric}, %"),
    )


def _both(column: Any, *path: str) -> tuple[list[float], list[float]]:
    return column(*path, "dense"), column(*path, "ticket")


def _stability(folder: Path, ticket: Ticket) -> Items:
    rows: list[dict[str, Any]] = [
        {"group": group, "epoch": epoch, "distance": distance}
        for epoch, found in enumerate(ticket.distances, start=1)
        for group, distance in found.items()
        if distance == distance  # the first epoch has no earlier mask
    ]
    lines = [
        _trajectory(group, [row for row in rows if row["group"] == group])
        for group in dict.fromkeys(row["group"] for row in rows)
    ]
    threshold = ticket.options["detector"]["threshold"]
    panel = Panel("", lines, {f"threshold {threshold:g}": threshold})
    yield Figure(
        "distances",
        "largest distance to the last masks, epoch by epoch",
        partial(curves, [panel], "epoch", "mask distance", log_y=True),
    )
    path = folder / "distances.csv"
    columns = ("group", "epoch", "other", "distance")
    pairs = read_table(path, columns) if path.is_file() else []
    groups = dict.fromkeys(row["group"] for row in pairs)
    if groups:
        maps = [
            (group, *_square([r for r in pairs if r["group"] == group]))
            for group in groups
        ]
        yield Figure(
            "pairs", "mask distance of every pair of epochs", partial(heat_maps, maps)
        )
    else:
        yield "There is no heat map: distances.csv is not in the folder, or empty."


def _kept(folder: Path, ticket: Ticket, root: str | Path | None) -> Items:
    layers = [
        [
            name,
            " x ".join(map(str, mask.shape)),
            f"{int(mask.count_nonzero()):,}",
            f"{mask.float().mean():.1%}",
            f"{int((~mask.any(dim=1)).sum()):,}",
            f"{int((~mask.any(dim=0)).sum()):,}",
        ]
        for name, mask in ticket.weight_masks.items()
    ]
    compact = folder / "compact.safetensors"
    if compact.is_file():
        model, small = load_compact(compact)
        weights = sum(p.numel() for p in model.parameters())
        yield (
            f"The compact model has {weights:,} parameters and reads "
            f"{small.num_features:,} features."
        )
    if layers:
        yield Table(
            "Weights of each layer",
            ("weight", "shape", "kept", "share", "empty rows", "empty columns"),
            layers,
        )
    try:
        graph = load(ticket.dataset["name"], root)
        graph = prepare(graph, find_task(ticket.options["task"]))
    except (ValueError, OSError) as error:
        yield f"Degrees are not shown: {error}"
        return
    if graph.fingerprint() != ticket.dataset["fingerprint"]:
        yield f"Degrees are not shown: {graph.name} is not the graph that was searched."
        return
    before = graph.adjacency.pattern.crow.diff()
    after = graph.keep_links(ticket.link_mask).adjacency.pattern.crow.diff()
    yield Figure(
        "degrees",
        "nodes by the neighbours they have at least, before and after; without any: "
        f"{int((before == 0).sum()):,} before, {int((after == 0).sum()):,} after",
        partial(
            at_least,
            {"full graph": _counts(before), "ticket": _counts(after)},
            "neighbours",
            "nodes with at least as many",
        ),
    )


def _counts(degrees: torch.Tensor) -> np.ndarray:
    return degrees.long().numpy()
