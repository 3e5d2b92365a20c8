"""The page of `gebt bench inference`."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from gebt.report.figures import Line, Panel, curves
from gebt.report.page import Figure, Page, Section, Table


def inference_page(graph: str, rows: Sequence[dict[str, Any]]) -> Page:
    """Table and curves of the rows of `gebt.experiments.inference.inference_costs`."""
    pyg, dense = rows[0]["ms"], rows[1]["ms"]
    cells = [
        [
            row["what"] + (f", {row['graph_ratio']:.0%}" if row["graph_ratio"] else ""),
            f"{row['ms']:.2f}",
            f"{pyg / row['ms']:.1f}x",
            f"{dense / row['ms']:.2f}x",
            f"{row['nodes_per_s'] / 1e6:.2f}",
            f"{row['peak_mib']:,.0f}",
            f"{row['features']}",
        ]
        for row in rows
    ]
    header = (
        "model, links removed",
        "ms",
        "PyG / this",
        "dense / this",
        "M nodes/s",
        "MiB",
        "features",
    )
    removed = rows[-1]["weight_ratio"]
    table = Table(
        f"{graph}: one forward over all nodes, {removed:.0%} of the weights removed",
        header,
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
    return Page(f"Inference on {graph}", "", [Section("Inference", [table, figure])])
