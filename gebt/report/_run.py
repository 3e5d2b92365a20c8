"""The page of a `gebt run` folder."""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gebt.compaction import load_compact
from gebt.datasets import load
from gebt.pipeline import prepare
from gebt.report._experiments import _square, _trajectory
from gebt.report._figures import Panel, at_least, curves, heat_maps, scatter
from gebt.report._page import Figure, Page, Section, Table
from gebt.statistics import paired, spread
from gebt.tasks import find_task
from gebt.ticket import Ticket


def run_page(folder: Path, root: str | Path | None) -> Page:
    """The page of one run; parts whose files are missing are left out, and say so."""
    path = folder / "metrics.json"
    metrics = json.loads(path.read_text())
    try:
        sections = [Section("Summary", list(_summary(metrics)))]
        parts = [metrics["dataset"], metrics.get("options", {}).get("model")]
        facts = [metrics["task"]]
        if runs := metrics.get("runs"):
            facts.append(f"{len(runs)} seed{'s' if len(runs) > 1 else ''}")
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is not a whole record of a run: it lacks {error}. Run it again."
        ) from error
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
            f" {ticket.share_untouched:.0%} of the links never received a gradient; "
            "which of them stay was drawn."
        )
    return text


def _summary(metrics: Mapping[str, Any]) -> Items:
    runs = metrics.get("runs")
    metric = metrics["metric"]
    if not runs:
        found = metrics["retrained"]
        yield Table(
            "Retrained ticket",
            ("", "ticket"),
            [
                [f"test {metric}, %", f"{found['test']:.1f}"],
                [f"validation {metric}, %", f"{found['val']:.1f}"],
                ["inference, ms", f"{metrics['inference_ms']['ticket']:.2f}"],
            ],
        )
        return

    def column(*path: str) -> list[float]:
        values = []
        for run in runs:
            for key in path:
                run = run[key]
            values.append(run)
        return [float(value) for value in values if value is not None]

    seeds = [str(run["seed"]) for run in runs]
    gap = paired(
        dict(zip(seeds, column("retrained", "test"), strict=True)),
        dict(zip(seeds, column("dense", "test"), strict=True)),
    )
    rows = [
        [
            f"test {metric}, %",
            spread(column("dense", "test")),
            spread(column("retrained", "test")),
            str(gap),
        ],
        [
            f"validation {metric}, %",
            spread(column("dense", "val")),
            spread(column("retrained", "val")),
            "",
        ],
    ]
    training = [
        a + b
        for a, b in zip(
            column("cpu_seconds", "search"),
            column("cpu_seconds", "retrain"),
            strict=True,
        )
    ]
    for title, dense, pruned, scale, digits in (
        ("training, CPU s", column("cpu_seconds", "dense"), training, 1, 2),
        ("inference, ms", *_both(column, "inference_ms"), 1, 2),
        ("MACs, paper's, M", *_both(column, "macs", "paper"), 1e6, 2),
        ("MACs executed, M", *_both(column, "macs", "executed"), 1e6, 2),
    ):
        if dense and pruned:
            less = np.mean(dense) / np.mean(pruned)
            ratio = f"{less:.2f}x less" if less >= 1 else f"{1 / less:.2f}x more"
            cells = [spread([v / scale for v in c], digits) for c in (dense, pruned)]
            rows.append([title, *cells, ratio])
    yield Table(
        "Dense model and ticket",
        ("", "dense", "ticket", "difference"),
        rows,
        f"n = {len(runs)}; mean ± standard deviation; the difference in {metric} with "
        "its 95% confidence interval over the same seeds. Training of a ticket is "
        "search and retraining. Whether learned links matter takes the controls of "
        "`gebt reproduce`.",
    )
    points = [
        (kind, run["inference_ms"][kind], run[key]["test"], 0.0)
        for run in runs
        for kind, key in (("dense", "dense"), ("ticket", "retrained"))
    ]
    yield Figure(
        "accuracy-against-time",
        f"test {metric} against inference time, one point a seed",
        partial(scatter, {"": points}, "inference, ms", f"test {metric}, %"),
    )


def _both(column: Any, *path: str) -> tuple[list[float], list[float]]:
    return column(*path, "dense"), column(*path, "ticket")


def _read(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


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
    pairs: Sequence[dict[str, Any]] = _read(folder / "distances.csv")
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
