"""A compact model and its graph in one file."""

from pathlib import Path

from torch import nn

from gebt.deploy.compaction import check_features
from gebt.graph import Graph
from gebt.graph.pieces import joined, read_pieces, write_pieces
from gebt.graph.storage import pack, unpack
from gebt.models import CLASSES, LinearStack, build_model, describe_model
from gebt.prune.weights import check_not_pruned


def save_compact(path: str | Path, model: nn.Module, graph: Graph) -> None:
    """Write a compact model and its graph to one safetensors file.

    Where ranks hold the graph's parts, to one each: see `gebt.graph.pieces`.

    Raises:
        ValueError: if the model is not one that `load_compact` can rebuild.
    """
    check_not_pruned(model)
    described = describe_model(model)
    if not described["arguments"]:
        raise ValueError(
            f"cannot save a {type(model).__name__} as a compact model: `load_compact` "
            f"could not rebuild it. gebt knows {', '.join(CLASSES)}, and their "
            "`arguments`."
        )
    _check_one_dtype(model, graph)
    tensors, header = pack(graph)
    common = {f"model/{name}": t for name, t in model.state_dict().items()}
    if graph.columns is not None:  # of the features, which all ranks have alike
        common["columns"] = tensors.pop("columns")
    header |= {"kind": "compact model", "model": described}
    write_pieces(Path(path), graph.world, tensors, common, header)


def load_compact(path: str | Path) -> tuple[nn.Module, Graph]:
    """Read what `save_compact` wrote; nothing is unpickled.

    Returns:
        The model, in evaluation mode, and its graph: ``model(graph.x,
        graph.adjacency)`` gives the outputs.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is truncated, corrupt or something else.
    """
    pieces, header = read_pieces(Path(path), "compact model")
    tensors = joined(pieces)
    graph = unpack(tensors, header)
    described = header.fields("model")
    try:
        model = build_model(described.content, tensors.group("model"))
        _check_one_dtype(model, graph)
        check_features(described.fields("arguments").whole("num_features", 0), graph)
    except ValueError as error:
        raise ValueError(f"{path} is not a whole compact model: {error}") from error
    if isinstance(model, LinearStack):
        model.pick_sparse_weights()
    return model.eval(), graph


def _check_one_dtype(model: nn.Module, graph: Graph) -> None:
    """Raise a ValueError unless features, adjacency and model are of one dtype."""
    of = [graph.x, graph.adjacency, *model.state_dict().values()]
    dtypes = {str(each.dtype) for each in of if each.dtype.is_floating_point}
    if len(dtypes) > 1:
        raise ValueError(
            "the features, the adjacency and the model must be of one dtype, are "
            f"{', '.join(sorted(dtypes))}. Convert the model: `model.to(x.dtype)`."
        )
