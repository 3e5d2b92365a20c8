"""What pruning really saves: a smaller model and graph with the same outputs."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from gebt.files import read_tensors, write_tensors
from gebt.graph import Graph, Split
from gebt.models import GCN, build_model, describe_model
from gebt.sparse import Pattern, SparseMatrix


@torch.no_grad()
def compact(model: nn.Module, graph: Graph) -> tuple[nn.Module, Graph]:
    """Drop what no output depends on; the outputs in evaluation mode stay the same.

    Hidden units that nothing reads go. Hidden units that no input reaches compute a
    constant, relu(b); they go too, and what they contributed becomes a bias of the
    next linear map, inside the product with the adjacency, whose row sums are not
    all 1. Input features that no weight reads leave ``x``; edges of value 0 leave
    the adjacency.

    Args:
        model: a `GCN` with pruned weights set to zero; not changed.
        graph: the graph it runs on; not changed.

    Returns:
        The smaller model, in evaluation mode, and the smaller graph.

    Raises:
        ValueError: if the model is not one of gebt's, or does not fit the graph.
    """
    if not isinstance(model, GCN):
        raise ValueError(
            f"cannot compact a {type(model).__name__}: gebt knows the structure of GCN."
        )
    layers = model.gcn_layers()
    weights = [layer.weight for layer in layers]
    biases = [layer.bias for layer in layers]
    inner = [
        torch.zeros_like(layer.bias) if layer.inner_bias is None else layer.inner_bias
        for layer in layers
    ]
    if weights[0].shape[0] != graph.num_features:
        raise ValueError(
            f"the model reads {weights[0].shape[0]} features, but the graph has "
            f"{graph.num_features}."
        )
    live = _read_by_something(weights)
    for k in range(len(layers) - 1):
        # Nothing live reaches such a unit, and nothing is added before the product.
        constant = live[k + 1] & (inner[k] == 0)
        constant &= ~(weights[k][live[k]] != 0).any(dim=0)
        level = torch.where(constant, biases[k].relu(), torch.zeros_like(biases[k]))
        inner[k + 1] = inner[k + 1] + level @ weights[k + 1]
        live[k + 1] = live[k + 1] & ~constant

    small = GCN(
        int(live[0].sum()),
        [int(units.sum()) for units in live[1:-1]],
        int(live[-1].sum()),
        dropout=model.dropout,
        inner_bias=any(bool(b.any()) for b in inner),
    ).to(weights[0])
    for k, layer in enumerate(small.gcn_layers()):
        layer.weight.copy_(weights[k][live[k]][:, live[k + 1]])
        layer.bias.copy_(biases[k][live[k + 1]])
        if layer.inner_bias is not None:
            layer.inner_bias.copy_(inner[k][live[k + 1]])

    x = graph.x
    if not live[0].all():
        if isinstance(x, SparseMatrix):
            x = x.select_columns(live[0])
        else:
            x = x[:, live[0]]
    adjacency, link = graph.adjacency, graph.link
    counts = adjacency.value != 0
    if not counts.all():
        adjacency, link = adjacency.select(counts), link[counts]
    return small.eval(), replace(graph, x=x, adjacency=adjacency, link=link)


def _read_by_something(weights: Sequence[Tensor]) -> list[Tensor]:
    """Per width, features first, which units some output depends on."""
    outputs = weights[-1].shape[1]
    live = [torch.ones(outputs, dtype=torch.bool, device=weights[-1].device)]
    for weight in reversed(weights):
        live.insert(0, (weight[:, live[0]] != 0).any(dim=1))
    return live


def save_compact(path: str | Path, model: nn.Module, graph: Graph) -> None:
    """Write a compact model and its graph to one safetensors file.

    Raises:
        ValueError: if the model is not one that `load_compact` can rebuild.
    """
    if not isinstance(model, GCN):
        raise ValueError(
            f"cannot save a {type(model).__name__} as a compact model: `load_compact` "
            "could not rebuild it. gebt knows GCN."
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
    if graph.y is not None:
        tensors["y"] = graph.y
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
            split=Split(**split) if split else None,
            name=header["graph"]["name"],
        )
    except (KeyError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"{path} is not a whole compact model ({error}). Write it again."
        ) from error
    return model.eval(), graph
