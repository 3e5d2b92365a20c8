"""The page of a `gebt run` folder."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gebt._provenance import in_words
from gebt.datasets import load
from gebt.deploy.storage import load_compact
from gebt.experiments.cheapest import frontier_items, read_frontier
from gebt.experiments.record import Record, read_record, summary_table
from gebt.experiments.rows import Items, square_of, trajectory
from gebt.experiments.runner import read_table
from gebt.graph import Graph, heterophily
from gebt.learn.tasks import find_task, prepare
from gebt.report.figures import Panel, at_least, curves, heat_maps, scatter
from gebt.report.page import Figure, Page, Section, tabulated
from gebt.tickets.ticket import Ticket


def run_page(folder: Path, root: str | Path | None) -> Page:
    """The page of one run; parts whose files are missing are left out, and say so."""
    record = read_record(folder)
    sections = [Section("Summary", list(_summary(record)))]
    model = record.options.get("model")
    facts = [record.task, record.seeds]
    if (folder / "ticket.safetensors").is_file():
        ticket = Ticket.load(folder / "ticket.safetensors")
        sections[0].items.insert(0, _words(ticket))
        if ticket.distances:
            stable = list(_stability(folder, ticket))
            sections.append(Section("When the ticket was stable", stable))
        sections.append(Section("What was kept", list(_kept(folder, ticket, root))))
        model = model or ticket.model["class"]
        facts += [
            f"links removed {ticket.options['graph_ratio']:.0%}",
            f"weights removed {ticket.options['weight_ratio']:.0%}",
        ]
    else:
        text = "ticket.safetensors is not in the folder: of distances, layers and "
        sections[0].items.append(f"{text}degrees nothing is shown.")
    if frontier := read_frontier(folder):
        items = frontier_items(frontier, record.metric)
        sections.insert(1, Section("The frontier", [*items]))
    facts.append(in_words(record.provenance))
    title = ", ".join(str(part) for part in (record.dataset, model) if part)
    return Page(title, ", ".join(filter(None, facts)), sections)


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


def _summary(record: Record) -> Items:
    yield summary_table(record)
    points = [
        (kind, time, score, 0.0)
        for run in record.runs
        for kind, key in (("dense", "dense"), ("ticket", "retrained"))
        if (time := run.at(f"inference_ms.{kind}")) is not None
        and (score := run.at(f"{key}.test")) is not None
    ]
    if not points:
        yield "There is no figure of accuracy against time: no test score was recorded."
        return
    yield Figure(
        "accuracy-against-time",
        f"test {record.metric} against inference time, one point a seed",
        partial(scatter, {"": points}, "inference, ms", f"test {record.metric}, %"),
    )


def _stability(folder: Path, ticket: Ticket) -> Items:
    rows: list[dict[str, Any]] = [
        {"group": group, "epoch": epoch, "distance": distance}
        for epoch, found in enumerate(ticket.distances, start=1)
        for group, distance in found.items()
        if distance == distance  # the first epoch has no earlier mask
    ]
    lines = [
        trajectory(group, [row for row in rows if row["group"] == group])
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
            (group, *square_of([r for r in pairs if r["group"] == group]))
            for group in groups
        ]
        yield Figure(
            "pairs", "mask distance of every pair of epochs", partial(heat_maps, maps)
        )
    else:
        yield "There is no heat map: distances.csv is not in the folder, or empty."


def _kept(folder: Path, ticket: Ticket, root: str | Path | None) -> Items:
    layers = [
        {
            "weight": name,
            "shape": " x ".join(map(str, mask.shape)),
            "kept": f"{int(mask.count_nonzero()):,}",
            "share": f"{mask.float().mean():.1%}",
            "empty rows": f"{int((~mask.any(dim=1)).sum()):,}",
            "empty columns": f"{int((~mask.any(dim=0)).sum()):,}",
        }
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
    graph = _searched(ticket, root)
    if isinstance(graph, Graph):  # said first: table and figure stand side by side
        facts = [f"{name} {text}" for name, text in heterophily(graph).facts().items()]
        yield f"The graph: {', '.join(facts)}."
    yield from tabulated("Weights of each layer", layers)
    if not isinstance(graph, Graph):
        yield f"Degrees are not shown: {graph}"
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


def _searched(ticket: Ticket, root: str | Path | None) -> Graph | str:
    """The ticket's graph, or why it cannot be had."""
    try:
        graph = load(ticket.dataset["name"], root)
        graph = prepare(graph, find_task(ticket.options["task"]))
    except (ValueError, OSError) as error:
        return str(error)
    if graph.fingerprint() != ticket.dataset["fingerprint"]:
        return f"{graph.name} is not the graph that was searched."
    return graph


def _counts(degrees: torch.Tensor) -> np.ndarray:
    return degrees.long().numpy()
