"""What pruning really saves: a smaller model and graph with the same outputs."""

import logging
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from gebt.files import read_tensors, write_tensors
from gebt.graph import Graph, LinkSplit, Split, check_graph
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
from gebt.pruner import check_not_compiled
from gebt.sparse import Pattern, SparseMatrix

_log = logging.getLogger("gebt")


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
        "graph": {"name": graph.name, "num_links": graph.num_links},
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

    def matrix(name: str) -> SparseMatrix:
        rows, cols = header["shapes"][name]
        crow, col = tensors[f"{name}/crow"], tensors[f"{name}/col"]
        if (
            crow.numel() != rows + 1
            or int(crow[0]) != 0
            or int(crow[-1]) != col.numel()
            or bool((crow.diff() < 0).any())
            or bool(((col < 0) | (col >= cols)).any())
        ):
            raise KeyError(f"a valid pattern for {name}")
        pattern = Pattern(crow, col, (rows, cols))
        return SparseMatrix(pattern, tensors[f"{name}/value"])

    def group(prefix: str) -> dict[str, Tensor]:
        found = {key.partition("/"): t for key, t in tensors.items()}
        return {name: t for (head, _, name), t in found.items() if head == prefix}

    try:
        model = build_model(header["model"])
        model.load_state_dict(group("model"))
        split = group("split")
        graph = Graph(
            x=matrix("x") if "x" in header["shapes"] else tensors["x"],
            adjacency=matrix("adjacency"),
            link=tensors["link"],
            num_links=header["graph"]["num_links"],
            y=tensors.get("y"),
            split=_split(split),
            name=header["graph"]["name"],
            order=tensors.get("order"),
        )
    except (KeyError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"{path} is not a whole compact model ({error}). Write it again."
        ) from error
    _pick_sparse_weights(model)
    return model.eval(), graph


def _split(parts: dict[str, Tensor]) -> Split | LinkSplit | None:
    if not parts:
        return None
    return LinkSplit(**parts) if "val_negative" in parts else Split(**parts)
