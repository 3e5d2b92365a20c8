"""Graphs of NetworkX, SciPy and DGL, as tables or as PyG's fields.

None of the three is imported: what is given has their methods.
"""

from typing import Any

import numpy as np
import torch


def tables_of_networkx(graph: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Edges, with their weights where there are any, and nodes with what they have."""
    if not hasattr(graph, "is_directed") or not hasattr(graph, "nodes"):
        raise ValueError(f"`graph` must be NetworkX's, got a {type(graph).__name__}.")
    place = {node: row for row, node in enumerate(graph.nodes)}
    ends = [(place[u], place[v]) for u, v in graph.edges()]
    if not ends:
        raise ValueError("`graph` has no edges.")
    source, target = np.array(ends).T
    edges: dict[str, Any] = {"source": source, "target": target}
    weights = [weight for *_, weight in graph.edges(data="weight")]
    if any(weight is not None for weight in weights):
        edges["weight"] = np.array(weights)
    nodes: dict[str, Any] = {"id": np.arange(len(place))}
    names = dict.fromkeys(key for _, held in graph.nodes(data=True) for key in held)
    for name in names:
        if str(name).lower() not in ("id", "node"):
            values = [held for _, held in graph.nodes(data=name)]
            nodes[str(name)] = _column(name, values)
    return edges, nodes


def _column(name: Any, values: list[Any]) -> np.ndarray:
    """Of numbers, texts or, where all are as long, vectors."""
    sizes = [np.shape(value) for value in values]
    for row, size in enumerate(sizes, 1):
        if size != sizes[0]:
            raise ValueError(
                f"the nodes' column {name!r} has {values[row - 1]!r} in row {row}, but "
                f"{values[0]!r} in row 1: each needs a number, or a vector as long."
            )
    return np.array(values)


def fields_of_scipy(adjacency: Any, x: Any, y: Any) -> dict[str, Any]:
    """PyG's fields of an adjacency whose entry (i, j) is the edge from i to j."""
    if not hasattr(adjacency, "tocoo"):
        kind = type(adjacency).__name__
        raise ValueError(f"`adjacency` must be a sparse matrix of SciPy, got a {kind}.")
    if adjacency.shape[0] != adjacency.shape[1]:
        raise ValueError(f"`adjacency` must be square, got {adjacency.shape}.")
    entries = adjacency.tocoo()
    there = entries.data != 0
    ends = np.stack([entries.row[there], entries.col[there]]).astype(np.int64)
    weight = entries.data[there]
    fields = {"x": _features(x), "y": y, "edge_index": torch.from_numpy(ends)}
    if not (weight == 1).all():
        fields["edge_weight"] = torch.from_numpy(weight)
    return fields


def _features(x: Any) -> Any:
    if not hasattr(x, "tocsr"):
        return x
    rows = x.tocsr()
    parts = [np.asarray(each, np.int64) for each in (rows.indptr, rows.indices)]
    crow, col = map(torch.from_numpy, parts)
    value = torch.from_numpy(rows.data)
    return torch.sparse_csr_tensor(crow, col, value, rows.shape, check_invariants=False)


def fields_of_dgl(graph: Any, x: str, y: str) -> dict[str, Any]:
    """PyG's fields of a DGL graph of one kind of nodes and edges."""
    if not hasattr(graph, "ndata") or not hasattr(graph, "edges"):
        raise ValueError(f"`graph` must be DGL's, got a {type(graph).__name__}.")
    if not graph.is_homogeneous:
        raise ValueError(
            "`graph` has several kinds of nodes or edges; gebt knows one. Use "
            "`dgl.to_homogeneous(graph, ndata=[...])`."
        )
    if x not in graph.ndata:
        raise ValueError(f"`x` is {x!r}, but `graph.ndata` has {[*graph.ndata]}.")
    source, target = graph.edges()
    masks = ("train_mask", "val_mask", "test_mask")
    fields = {mask: graph.ndata[mask].bool() for mask in masks if mask in graph.ndata}
    fields |= {"x": graph.ndata[x], "edge_index": torch.stack([source, target])}
    if y in graph.ndata:
        fields["y"] = graph.ndata[y]
    if "weight" in graph.edata:
        fields["edge_weight"] = graph.edata["weight"]
    return fields
