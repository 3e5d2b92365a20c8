"""Graph networks as plain modules: ``forward(x, adjacency, rows=None)``."""

from typing import Any

from torch import nn

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
    if name not in MODELS or not description.get("arguments"):
        raise ValueError(
            f"cannot rebuild a model of class {name!r}: gebt knows "
            f"{', '.join(MODELS)}. Build it yourself and use `Ticket.open`."
        )
    return MODELS[name](**description["arguments"])
