"""Graph networks as plain modules: ``forward(x, adjacency, rows=None)``."""

from typing import Any

from torch import nn

from gebt.models.gcn import GCN, gcn_norm

__all__ = ["GCN", "build_model", "describe_model", "gcn_norm"]

_MODELS = {"GCN": GCN}


def describe_model(model: nn.Module) -> dict[str, Any]:
    """A description for a file's header: the class and what it was built with."""
    return {
        "class": type(model).__name__,
        "arguments": getattr(model, "arguments", None),
    }


def build_model(description: dict[str, Any]) -> nn.Module:
    """The model of a description, with weights as at its birth.

    Raises:
        ValueError: if the class is not one of gebt's.
    """
    name = description.get("class")
    if name not in _MODELS or not description.get("arguments"):
        raise ValueError(
            f"cannot rebuild a model of class {name!r}: gebt knows "
            f"{', '.join(_MODELS)}. Build it yourself and use `Ticket.open`."
        )
    return _MODELS[name](**description["arguments"])
