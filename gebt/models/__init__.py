"""Graph networks as plain modules: ``forward(x, adjacency, rows=None)``."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gebt.files import Fields, shown
from gebt.models._stack import LinearLayer, LinearStack
from gebt.models.gat import GAT
from gebt.models.gcn import GCN, GIN, gcn_norm
from gebt.models.pyg import Adapted, adapt, translate
from gebt.models.resgcn import ResGCN
from gebt.models.sage import GraphSAGE

__all__ = [
    "GAT",
    "GCN",
    "GIN",
    "MODELS",
    "Adapted",
    "GraphSAGE",
    "LinearLayer",
    "LinearStack",
    "ResGCN",
    "adapt",
    "build_model",
    "describe_model",
    "gcn_norm",
    "translate",
]

MODELS: dict[str, type[nn.Module]] = {
    model.__name__: model for model in (GCN, GIN, GraphSAGE, GAT, ResGCN)
}
"""gebt's own models by class name: what files can rebuild."""


def describe_model(model: nn.Module) -> dict[str, Any]:
    """A description for a file's header: the class and what it was built with."""
    if isinstance(model, Adapted):
        return {"class": f"adapted {type(model.model).__name__}", "arguments": None}
    ours = type(model) in MODELS.values()  # other classes may have the same names
    arguments = getattr(model, "arguments", None) if ours else None
    return {"class": type(model).__name__, "arguments": arguments}


def build_model(
    description: Mapping[str, Any], state: Mapping[str, Tensor] | None = None
) -> nn.Module:
    """The model of a description, with weights as at its birth or those of a state.

    Args:
        description: of `describe_model`.
        state: of `state_dict`; the model's parameters become its tensors, in their
            dtype. Nothing is allocated, so a description that does not fit them costs
            no memory.

    Raises:
        ValueError: if the class is not one of gebt's, an argument is none of its
            constructor's, or the state is not its own.
    """
    name = description.get("class")
    if (
        not isinstance(name, str)
        or name not in MODELS
        or not description.get("arguments")
    ):
        raise ValueError(
            f"cannot rebuild a model of class {shown(name)}: gebt knows "
            f"{', '.join(MODELS)}. Build it yourself and use `Ticket.open`."
        )
    given = Fields(description["arguments"], f"cannot rebuild a {name}")
    if state is None:
        return MODELS[name](**_arguments(MODELS[name], given, _LARGEST, _LARGEST))
    widest = max([_SMALL, *(size for t in state.values() for size in t.shape)])
    # Even without memory, layers that no tensor is for would take time.
    arguments = _arguments(MODELS[name], given, min(widest, _LARGEST), len(state))
    try:
        with torch.device("meta"):
            model = MODELS[name](**arguments)
    except RuntimeError as error:
        raise ValueError(f"cannot rebuild a {name}: {error}.") from error
    own = model.state_dict()
    if {n: t.shape for n, t in own.items()} != {n: t.shape for n, t in state.items()}:
        differing = sorted(set(_shapes(own)) ^ set(_shapes(state)))
        raise ValueError(
            f"cannot rebuild a {name}: its description and its tensors differ: "
            f"{shown(differing)}."
        )
    for key, tensor in state.items():
        found, built = tensor.is_floating_point(), own[key].is_floating_point()
        if found != built or not (found or tensor.dtype == own[key].dtype):
            raise ValueError(
                f"cannot rebuild a {name}: its {key} must be "
                f"{'floating' if built else own[key].dtype}, is {tensor.dtype}."
            )
    model.load_state_dict(state, assign=True)
    return model


_SMALL, _LARGEST = 2**20, 2**31 - 1
"""Widths up to the small one need not be a tensor's: the error is to name tensors."""


def _shapes(state: Mapping[str, Tensor]) -> list[str]:
    return [f"{name} {tuple(tensor.shape)}" for name, tensor in state.items()]


def _arguments(
    kind: type[nn.Module], given: Fields, widest: int, deepest: int
) -> dict[str, Any]:
    """The constructor's arguments, of the types that its signature says."""
    known = inspect.signature(kind).parameters
    if unknown := set(given) - set(known):
        raise ValueError(
            f"cannot rebuild a {kind.__name__}: it takes {', '.join(known)}, not "
            f"{shown(min(unknown))}."
        )
    arguments: dict[str, Any] = {}
    for name, parameter in known.items():
        if name not in given.content and parameter.default is not parameter.empty:
            continue
        several = isinstance(given.content.get(name), list)
        if parameter.annotation is bool:
            arguments[name] = given.flag(name)
        elif parameter.annotation is float:
            arguments[name] = given.number(name)
        elif several and parameter.annotation is not int:
            arguments[name] = given.wholes(name, 0, widest)
            if len(arguments[name]) > deepest:
                given.fail(name, f"at most {deepest} widths")
        else:
            least = int(name != "num_features")  # compaction may leave none
            most = deepest if name == "layers" else widest
            arguments[name] = given.whole(name, least, most)
    return arguments
