"""A graph as the tensors and the header of a file, and back, every part checked."""

from dataclasses import fields
from typing import Any, get_args

import torch
from torch import Tensor

from gebt.files import Fields, Tensors
from gebt.graph.from_pyg import Metric
from gebt.graph.graph import Graph
from gebt.graph.share import as_whole
from gebt.graph.splits import LinkSplit, Split
from gebt.sparse import Pattern, SparseMatrix

_LARGEST = 2**31 - 1


def pack(graph: Graph) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by name, and what the file's header says beside them.

    Of one rank's share the tensors are its own, the header is of the graph.
    """
    nodes, graph = graph.nodes_in_all, as_whole(graph)
    tensors = {"link": graph.link}
    matrices = {"adjacency": graph.adjacency}
    if isinstance(graph.x, SparseMatrix):
        matrices["x"] = graph.x
    else:
        tensors["x"] = graph.x
    for name, matrix in matrices.items():
        tensors[f"{name}/crow"] = matrix.pattern.crow
        tensors[f"{name}/col"] = matrix.pattern.col
        tensors[f"{name}/value"] = matrix.value
    for name in ("y", "order", "columns"):
        tensor = getattr(graph, name)
        if tensor is not None:
            tensors[name] = tensor
    if graph.split is not None:
        tensors |= {f"split/{name}": t for name, t in vars(graph.split).items()}
    about = {name: getattr(graph, name) for name in ("name", "num_links", "metric")}
    shapes = {name: [nodes, matrix.shape[1]] for name, matrix in matrices.items()}
    return tensors, {"graph": about, "shapes": shapes}


def unpack(tensors: Tensors, header: Fields) -> Graph:
    """The graph that was packed.

    Raises:
        ValueError: if it is not whole; names the part that is not.
    """
    adjacency = _matrix(tensors, header, "adjacency")
    nodes = adjacency.shape[0]
    x: Tensor | SparseMatrix
    if "x" in header.fields("shapes"):
        x = _matrix(tensors, header, "x")
    else:
        x = tensors.numbers("x", (None, None))
    if not nodes or adjacency.shape != (nodes, nodes) or x.shape[0] != nodes:
        header.fail("shapes", f"square, for as many nodes as x has rows, {x.shape[0]}")
    about = header.fields("graph")
    num_links = about.whole("num_links", 0, nodes**2)
    y = None
    if "y" in tensors and tensors.content["y"].dtype == torch.bool:
        y = tensors.mask("y", (nodes, None))
    elif "y" in tensors:  # negative where a node has no label
        y = tensors.index("y", (nodes,), _LARGEST, least=-_LARGEST).long()
    metric: Any = "accuracy"
    if "metric" in about:  # files of gebt 0.1 have none
        metric = about.text("metric", get_args(Metric))
    order = None
    if "order" in tensors:
        order = tensors.index("order", (nodes,), nodes).long()
        if order.unique().numel() < nodes:
            tensors.fail("order", "name every node once")
    columns = None
    if "columns" in tensors:
        columns = tensors.index("columns", (x.shape[1],), _LARGEST).long()
    return Graph(
        x=x,
        adjacency=adjacency,
        link=tensors.index("link", adjacency.value.shape, num_links),
        num_links=num_links,
        y=y,
        split=_split(tensors, nodes),
        name=about.text("name"),
        order=order,
        metric=metric,
        columns=columns,
    )


def _matrix(tensors: Tensors, header: Fields, name: str) -> SparseMatrix:
    shape = (shapes := header.fields("shapes")).wholes(name, 0, _LARGEST)
    if len(shape) != 2:
        shapes.fail(name, "two sizes")
    rows, cols = shape
    value = tensors.numbers(f"{name}/value", (None,))
    col = tensors.index(f"{name}/col", value.shape, cols)
    crow = tensors.index(f"{name}/crow", (rows + 1,), value.numel() + 1)
    if crow[0] != 0 or crow[-1] != value.numel() or (crow.diff() < 0).any():
        last = value.numel()
        tensors.fail(f"{name}/crow", f"rise from 0 to {last}, the number of values")
    return SparseMatrix(Pattern(crow, col, (rows, cols)), value)


def _split(tensors: Tensors, nodes: int) -> Split | LinkSplit | None:
    if not tensors.group("split"):
        return None
    kind = LinkSplit if "split/val_negative" in tensors else Split
    shape = (None, 2) if kind is LinkSplit else (None,)
    parts = {
        field.name: tensors.index(f"split/{field.name}", shape, nodes).long()
        for field in fields(kind)
    }
    return kind(**parts)
