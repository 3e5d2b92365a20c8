"""What inference costs over pruning ratios: PyG, dense, masked, compact; its page."""

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from gebt.deploy.compaction import compact
from gebt.deploy.cost import executed_macs, peak_memory, time_calls
from gebt.graph import Graph
from gebt.models import GCN
from gebt.prune.links import top_links
from gebt.prune.weights import ModelPruner, apply_masks
from gebt.randomness import Draws
from gebt.report.figures import Line, Panel, curves
from gebt.report.page import Figure, Page, Section, tabulated
from gebt.tickets.search import find_ticket

Row = dict[str, Any]
Call = Callable[[], torch.Tensor]


def inference_costs(
    graph: Graph,
    *,
    hidden: Sequence[int],
    ratios: Sequence[tuple[float, float]],
    search_epochs: int = 3,
    repeats: int = 10,
) -> list[Row]:
    """Measure a GCN on all nodes, pruned at several ratios.

    Links and weights are ranked by one search of a few epochs: what a forward costs
    depends on how many are kept and where, hardly on how well they were chosen.

    Args:
        graph: with a training split.
        hidden: widths of the hidden layers.
        ratios: shares of links and of weights to remove.
        search_epochs: of the search that ranks them.
        repeats: timed forwards of each, in turns of five.

    Returns:
        One row per model: PyG's and gebt's dense one on the full graph, then masked
        and compact at each ratio, with ``ms`` (median), ``nodes_per_s``, ``peak_mib``
        (memory that a forward needs beyond what was there), and of the compact form
        ``macs_executed`` and the ``features`` it reads.
    """
    device = graph.adjacency.device
    with Draws(0).used():
        dense = GCN(graph.num_features, hidden, graph.num_classes).to(device)
    ticket = find_ticket(
        dense,
        graph,
        graph_ratio=max(r[0] for r in ratios) or 0.1,
        weight_ratio=max(r[1] for r in ratios) or 0.1,
        epochs=search_epochs,
    )
    runs: list[tuple[Row, Any]] = [
        (_named("PyG, full graph"), _pyg(dense, graph)),
        (_named("gebt, dense"), _call(dense, graph)),
    ]
    for graph_ratio, weight_ratio in ratios:
        mask = top_links(ticket.link_score, graph_ratio, ticket.seed)
        small = graph.keep_links(mask)
        model = GCN(graph.num_features, hidden, graph.num_classes).to(device)
        model.load_state_dict(dict(ticket.weights))
        apply_masks(model, ModelPruner(model, weight_ratio).masks())
        at = {"graph_ratio": graph_ratio, "weight_ratio": weight_ratio}
        runs.append((_named("masked", **at), _call(model, small)))
        fast, compacted = compact(model, small)
        runs.append((_named("compact", **at), _call(fast, compacted)))
        runs[-1][0]["features"] = compacted.num_features
        runs[-1][0]["macs_executed"] = executed_macs(fast, compacted)
    times: list[list[float]] = [[] for _ in runs]
    for row, call in runs:
        with torch.no_grad(), peak_memory(device) as before:
            pass
        with torch.no_grad(), peak_memory(device) as peak:
            call()
        row["peak_mib"] = round(peak[0] - before[0], 1)
    for _ in range(-(-repeats // 5)):
        for found, (_, call) in zip(times, runs, strict=True):
            with torch.no_grad():
                found += time_calls(call, 5, device, warmup=1)
    for found, (row, _) in zip(times, runs, strict=True):
        middle = statistics.median(found)
        row["ms"] = round(1000 * middle, 3)
        row["nodes_per_s"] = round(graph.num_nodes / middle)
    return [row for row, _ in runs]


def _named(what: str, graph_ratio: float = 0.0, weight_ratio: float = 0.0) -> Row:
    ratios = {"graph_ratio": graph_ratio, "weight_ratio": weight_ratio}
    return {"what": what, **ratios, "features": "", "macs_executed": ""}


def _call(model: nn.Module, graph: Graph) -> Call:
    return partial(model.eval(), graph.x, graph.adjacency)


def _pyg(dense: GCN, graph: Graph) -> Call:
    """PyG's own GCN with the same weights, on dense features."""
    from torch_geometric.nn.models import GCN as PyGGCN

    layers = dense.stacked()
    widths = [layer.width for layer in layers]
    model = PyGGCN(graph.num_features, widths[0], len(widths), widths[-1])
    for place, (layer, width) in enumerate(zip(layers, widths, strict=True)):
        conv = model.init_conv(layer.weight.shape[0], width)
        conv.lin.weight.data = layer.weight.detach().t().clone()
        conv.bias.data = layer.bias.detach().clone()
        model.convs[place] = conv
    x = graph.x if isinstance(graph.x, torch.Tensor) else graph.x.to_dense()
    edges, weight = graph.adjacency.pattern.edge_index, graph.adjacency.value
    return partial(model.eval().to(weight.device), x, edges, weight)


def inference_page(graph: str, rows: Sequence[Row]) -> Page:
    """Table and curves of the rows of `inference_costs`."""
    pyg, dense = rows[0]["ms"], rows[1]["ms"]
    cells = [
        {
            "model, links removed": row["what"]
            + (f", {row['graph_ratio']:.0%}" if row["graph_ratio"] else ""),
            "ms": f"{row['ms']:.2f}",
            "PyG / this": f"{pyg / row['ms']:.1f}x",
            "dense / this": f"{dense / row['ms']:.2f}x",
            "M nodes/s": f"{row['nodes_per_s'] / 1e6:.2f}",
            "MiB": f"{row['peak_mib']:,.0f}",
            "features": f"{row['features']}",
        }
        for row in rows
    ]
    removed = rows[-1]["weight_ratio"]
    table = tabulated(
        f"{graph}: one forward over all nodes, {removed:.0%} of the weights removed",
        cells,
        "Medians of calls in turns. MiB is what a forward needs beyond what was "
        "there. Links and weights are ranked by a search of a few epochs.",
    )
    lines = [
        Line(what, [r["graph_ratio"] for r in found], [r["ms"] for r in found])
        for what in ("masked", "compact")
        if (found := [row for row in rows if row["what"] == what])
    ]
    panel = Panel("", lines, {"PyG, full graph": pyg, "gebt, dense": dense})
    figure = Figure(
        "inference",
        f"{graph}: milliseconds of a forward against the share of links removed",
        partial(curves, [panel], "share of links removed", "ms", log_y=True),
    )
    return Page(f"Inference on {graph}", "", [Section("Inference", [*table, figure])])
