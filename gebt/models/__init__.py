"""Graph networks as plain modules: ``forward(x, adjacency, rows=None)``."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gebt._registry import load_plugins
from gebt.files import Fields, shown
from gebt.models._stack import LinearLayer, LinearStack
from gebt.models.gat import GAT
from gebt.models.gcn import GCN, GIN, gcn_norm
from gebt.models.operators import OPERATORS
from gebt.models.pyg import Adapted, adapt, translate
from gebt.models.recipe import (
    CLASSES,
    LARGEST,
    checked_arguments,
    construct,
    register,
)
from gebt.models.resgcn import ResGCN
from gebt.models.sage import GraphSAGE
from gebt.models.supernet import SuperGNN

__all__ = [
    "CLASSES",
    "GAT",
    "GCN",
    "GIN",
    "Adapted",
    "GraphSAGE",
    "LinearLayer",
    "LinearStack",
    "OPERATORS",
    "ResGCN",
    "SuperGNN",
    "adapt",
    "build_model",
    "can_build",
    "describe_model",
    "gcn_norm",
    "register",
    "translate",
]


def describe_model(model: nn.Module) -> dict[str, Any]:
    """A description for a file's header: the class and what it was built with."""
    if isinstance(model, Adapted):
        return {"class": f"adapted {type(model.model).__name__}", "arguments": None}
    ours = type(model) in CLASSES.values()  # other classes may have the same names
    arguments = getattr(model, "arguments", None) if ours else None
    return {"class": type(model).__name__, "arguments": arguments}


def can_build(description: Mapping[str, Any]) -> bool:
    """Whether a description is of a registered class; asks the plugins, too."""
    name = description.get("class")
    if not isinstance(name, str) or not description.get("arguments"):
        return False
    if name not in CLASSES:
        load_plugins()
    return name in CLASSES


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
        ValueError: if the class is not a registered one, an argument is none of its
            constructor's, or the state is not its own.
    """
    name = description.get("class")
    if not can_build(description):
        raise ValueError(
            f"cannot rebuild a model of class {shown(name)}: gebt knows "
            f"{', '.join(CLASSES)}. Register it, by `gebt.models.register`, or build "
            "it yourself and use `Ticket.open`."
        )
    kind = CLASSES[str(name)]
    given = Fields(description["arguments"], f"cannot rebuild a {name}")
    if state is None:
        return construct(kind, checked_arguments(kind, given))
    widest = max([_SMALL, *(size for t in state.values() for size in t.shape)])
    # Even without memory, layers that no tensor is for would take time.
    arguments = checked_arguments(kind, given, min(widest, LARGEST), len(state))
    try:
        with torch.device("meta"):
            model = construct(kind, arguments)
    except (RuntimeError, TypeError, ValueError) as error:
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
    if not kind.__module__.startswith("gebt."):  # it may keep tensors beside its state
        with torch.random.fork_rng(devices=[]):
            model = construct(kind, arguments)
    model.load_state_dict(state, assign=True)
    return model


_SMALL = 2**20
"""Widths up to it need not be a tensor's: the error is to name tensors."""


def _shapes(state: Mapping[str, Tensor]) -> list[str]:
    return [f"{name} {tuple(tensor.shape)}" for name, tensor in state.items()]
