"""The graph a model learns on: features, adjacency, labels, split."""

from gebt.graph.from_pyg import Metric, join
from gebt.graph.graph import Graph, PrunedGraph, check_graph, masks_of
from gebt.graph.heterophily import Heterophily, heterophily
from gebt.graph.share import Share, cut
from gebt.graph.splits import LinkSplit, Split, stratified

__all__ = [
    "Graph",
    "Heterophily",
    "LinkSplit",
    "Metric",
    "Share",
    "PrunedGraph",
    "Split",
    "check_graph",
    "cut",
    "heterophily",
    "join",
    "masks_of",
    "stratified",
]
