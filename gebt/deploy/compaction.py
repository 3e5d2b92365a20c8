"""What pruning really saves: a smaller model and graph with the same outputs."""

import logging
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from gebt.files import Fields, Tensors, read_tensors, write_tensors
from gebt.graph import Graph, LinkSplit, Metric, PrunedGraph, Split, check_graph
from gebt.models import (
    GAT,
    MODELS,
    Adapted,
    GraphSAGE,
    LinearLayer,
    LinearStack,
    ResGCN,
    build_model,
    describe_model,
    translate,
)
from gebt.prune.weights import check_not_compiled
from gebt.sparse import Pattern, SparseMatrix

_log = logging.getLogger("gebt")
_LARGEST = 2**31 - 1


@torch.no_grad()
def compact(model: nn.Module, graph: Graph) -> tuple[nn.Module, Graph]:
    """Drop what no output depends on; the outputs in evaluation mode stay the same.

    In `GCN`, `GIN` and `GraphSAGE` hidden units that nothing reads go. Hidden units
    that no input reaches compute a constant, relu(b); they go too, and what they
    contributed becomes a bias of the next linear map, inside the product with the
    adjacency, whose row sums are not all 1. Input features that no weight reads leave
    ``x``, also with `GAT` and `ResGCN`, whose units are all read (by the attention, by
    the residual connection). Edges of value 0 leave the adjacency of GCN and GIN; in
    the others they count as neighbours. Of what is left, wide weights of mostly zeros
    are multiplied as sparse matrices, where extra `fast` is installed and no gradient
    is wanted: `gebt.kernels.times_sparse_pays`.

    PyG's own GCN and GraphSAGE, adapted, become gebt's, which are faster. Any other
    adapted model stays as it is, on the graph that the ticket left.

    Args:
        model: one of gebt's or `adapt`'s with pruned weights set to zero; not changed.
        graph: the graph it runs on; not changed.

    Returns:
        The smaller model, in evaluation mode, and the smaller graph.

    Raises:
        ValueError: if gebt does not know the model, or it does not fit the graph.
    """
    check_graph(graph)
    check_not_compiled(model)
    if isinstance(model, Adapted):
        # PyG divides by the sum of the values, gebt by the sum of their magnitudes.
        adjacency = model.seen(graph.adjacency)
        signed = bool((adjacency.value < 0).any())
        translated = None if signed else translate(model.model)
        if translated is None:
            return _copy(model).eval(), graph
        model, graph = translated, replace(graph, adjacency=adjacency)
    if isinstance(graph, PrunedGraph):  # whose masks fit the larger model
        graph = graph.without_masks()
    if isinstance(model, LinearStack):
        return _compact_stack(model, graph)
    if isinstance(model, GAT | ResGCN):
        return _drop_features(model, graph)
    raise ValueError(
        f"cannot compact a {type(model).__name__}: gebt knows the structure of "
        f"{', '.join(MODELS)}. For a PyG model use `gebt.models.adapt`."
    )


def _copy(model: nn.Module) -> nn.Module:
    """A deep copy; tensors that a layer keeps of its last forward lose their history.

    Such tensors (SuperGATConv has some) cannot be copied with it.
    """
    kept = [t for module in model.modules() for t in vars(module).values()]
    known = {id(t): t.detach() for t in kept if isinstance(t, Tensor) and not t.is_leaf}
    return deepcopy(model, known)


def _compact_stack(model: LinearStack, graph: Graph) -> tuple[nn.Module, Graph]:
    layers = model.stacked()
    _check_features(layers[0].weight, graph)
    biases = [layer.bias for layer in layers]
    inner = [
        torch.zeros_like(layer.bias) if layer.inner_bias is None else layer.inner_bias
        for layer in layers
    ]
    live = _read_by_something(layers)
    for k, (layer, following) in enumerate(zip(layers, layers[1:], strict=False)):
        # Nothing live reaches such a unit, and nothing is added before the product.
        constant = live[k + 1] & (inner[k] == 0)
        for weight in layer.weights():
            constant &= ~(weight[live[k]] != 0).any(dim=0)
        level = torch.where(constant, biases[k].relu(), torch.zeros_like(biases[k]))
        inner[k + 1] = inner[k + 1] + level @ following.weight
        if following.own_weight is not None:
            biases[k + 1] = biases[k + 1] + level @ following.own_weight
        live[k + 1] = live[k + 1] & ~constant

    small = type(model)(
        int(live[0].sum()),
        [int(units.sum()) for units in live[1:-1]],
        int(live[-1].sum()),
        dropout=model.dropout,
        inner_bias=any(bool(b.any()) for b in inner),
    ).to(layers[0].weight)
    for k, (layer, of) in enumerate(zip(small.stacked(), layers, strict=True)):
        for weight, whole in zip(layer.weights(), of.weights(), strict=True):
            weight.copy_(whole[live[k]][:, live[k + 1]])
        layer.bias.copy_(biases[k][live[k + 1]])
        if layer.inner_bias is not None:
            layer.inner_bias.copy_(inner[k][live[k + 1]])

    adjacency, link = graph.adjacency, graph.link
    counts = adjacency.value != 0
    if not isinstance(model, GraphSAGE) and not counts.all():
        adjacency, link = adjacency.select(counts), link[counts]
    x = _columns(graph.x, live[0])
    _pick_sparse_weights(small)
    return small.eval(), replace(graph, x=x, adjacency=adjacency, link=link)


def _read_by_something(layers: Sequence[LinearLayer]) -> list[Tensor]:
    """Per width, features first, which units some output depends on."""
    last = layers[-1].weight
    live = [torch.ones(last.shape[1], dtype=torch.bool, device=last.device)]
    for layer in reversed(layers):
        read = [(weight[:, live[0]] != 0).any(dim=1) for weight in layer.weights()]
        live.insert(0, torch.stack(read).any(dim=0))
    return live


def _pick_sparse_weights(model: nn.Module) -> None:
    """Where a layer's weight is faster as a sparse one, use and log it."""
    if not isinstance(model, LinearStack):
        return
    for depth, layer in enumerate(model.stacked(), start=1):
        layer.pick_sparse_weights()
        for name, sparse in layer.sparse.items():
            outputs, inputs = sparse.columns.shape
            zeros = 1 - sparse.columns.pattern.nnz / (outputs * inputs)
            _log.info(
                "compact: layer %d multiplies by its %s, %d x %d with %.0f%% zeros, as "
                "a sparse matrix",
                depth,
                name.replace("_", " "),
                inputs,
                outputs,
                100 * zeros,
            )


def _drop_features(model: GAT | ResGCN, graph: Graph) -> tuple[nn.Module, Graph]:
    name = "encoder.weight" if isinstance(model, ResGCN) else "layers.0.weight"
    state = model.state_dict()
    _check_features(state[name], graph)
    live = (state[name] != 0).any(dim=1)
    state[name] = state[name][live]
    small = type(model)(**model.arguments | {"num_features": int(live.sum())})
    small.to(state[name]).load_state_dict(state)
    return small.eval(), replace(graph, x=_columns(graph.x, live))


def _check_features(weight: Tensor, graph: Graph) -> None:
    if weight.shape[0] != graph.num_features:
        raise ValueError(
            f"the model reads {weight.shape[0]} features, but the graph has "
            f"{graph.num_features}."
        )


def _columns(x: Tensor | SparseMatrix, keep: Tensor) -> Tensor | SparseMatrix:
    if keep.all():
        return x
    return x.select_columns(keep) if isinstance(x, SparseMatrix) else x[:, keep]


def save_compact(path: str | Path, model: nn.Module, graph: Graph) -> None:
    """Write a compact model and its graph to one safetensors file.

    Raises:
        ValueError: if the model is not one that `load_compact` can rebuild.
    """
    if type(model) not in MODELS.values():
        raise ValueError(
            f"cannot save a {type(model).__name__} as a compact model: `load_compact` "
            f"could not rebuild it. gebt knows {', '.join(MODELS)}."
        )
    _check_one_dtype(model, graph)
    tensors = {f"model/{name}": t for name, t in model.state_dict().items()}
    matrices = {"adjacency": graph.adjacency}
    if isinstance(graph.x, SparseMatrix):
        matrices["x"] = graph.x
    else:
        tensors["x"] = graph.x
    for name, matrix in matrices.items():
        tensors[f"{name}/crow"] = matrix.pattern.crow
        tensors[f"{name}/col"] = matrix.pattern.col
        tensors[f"{name}/value"] = matrix.value
    tensors["link"] = graph.link
    for name, tensor in (("y", graph.y), ("order", graph.order)):
        if tensor is not None:
            tensors[name] = tensor
    if graph.split is not None:
        tensors |= {f"split/{name}": t for name, t in vars(graph.split).items()}
    header = {
        "kind": "compact model",
        "model": describe_model(model),
        "graph": {
            "name": graph.name,
            "num_links": graph.num_links,
            "metric": graph.metric,
        },
        "shapes": {name: list(matrix.shape) for name, matrix in matrices.items()},
    }
    write_tensors(Path(path), tensors, header)


def load_compact(path: str | Path) -> tuple[nn.Module, Graph]:
    """Read what `save_compact` wrote; nothing is unpickled.

    Returns:
        The model, in evaluation mode, and its graph: ``model(graph.x,
        graph.adjacency)`` gives the outputs.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is truncated, corrupt or something else.
    """
    tensors, header = read_tensors(Path(path), "compact model")
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
    graph = Graph(
        x=x,
        adjacency=adjacency,
        link=tensors.index("link", adjacency.value.shape, num_links).long(),
        num_links=num_links,
        y=y,
        split=_split(tensors, nodes),
        name=about.text("name"),
        order=order,
        metric=metric,
    )
    try:
        model = build_model(header.fields("model").content, tensors.group("model"))
        _check_one_dtype(model, graph)
        _check_features(next(model.parameters()), graph)  # the first one reads them
    except ValueError as error:
        raise ValueError(f"{path} is not a whole compact model: {error}") from error
    _pick_sparse_weights(model)
    return model.eval(), graph


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


def _check_one_dtype(model: nn.Module, graph: Graph) -> None:
    """Raise a ValueError unless features, adjacency and model are of one dtype."""
    of = [graph.x, graph.adjacency, *model.state_dict().values()]
    dtypes = {str(each.dtype) for each in of if each.dtype.is_floating_point}
    if len(dtypes) > 1:
        raise ValueError(
            "the features, the adjacency and the model must be of one dtype, are "
            f"{', '.join(sorted(dtypes))}. Convert the model: `model.to(x.dtype)`."
        )
