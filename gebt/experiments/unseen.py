"""A graph before its test nodes come."""

from dataclasses import replace

import torch

from gebt.graph import Graph, Split
from gebt.sparse import Pattern, SparseMatrix


def without_test_nodes(graph: Graph) -> Graph:
    """The graph on the other nodes; what is left of nodes and links is numbered anew.

    Raises:
        ValueError: if the test nodes are not known, or are all that there are.
    """
    if not isinstance(graph.split, Split) or not graph.split.test.numel():
        raise ValueError(f"the graph {graph.name!r} has no test nodes to leave out.")
    device, test = graph.link.device, graph.split.test
    keep = torch.ones(graph.num_nodes, dtype=torch.bool, device=device)
    keep.index_fill_(0, test, False)
    nodes = keep.nonzero().squeeze(1)
    place = keep.cumsum(0) - 1
    pattern, value = graph.adjacency.pattern, graph.adjacency.value
    row, col = pattern.row.long(), pattern.col.long()
    stays = (keep[row] & keep[col]).nonzero().squeeze(1)
    if not stays.numel():
        raise ValueError(
            f"without its test nodes the graph {graph.name!r} has no links to learn on."
        )
    n, weight = nodes.numel(), graph.adjacency.weight
    old, link = graph.link[stays].unique(return_inverse=True)
    parts = {
        part: place[index[keep[index]]] for part, index in vars(graph.split).items()
    }
    x = graph.x
    return replace(
        graph,
        x=x.rows(nodes) if isinstance(x, SparseMatrix) else x[nodes],
        adjacency=SparseMatrix(
            Pattern.from_sorted(place[row[stays]], place[col[stays]], (n, n)),
            value[stays],
            None if weight is None else weight[stays],
        ),
        link=link,
        num_links=old.numel(),
        y=None if graph.y is None else graph.y[nodes],
        split=Split(**parts),
        order=None,
    )
