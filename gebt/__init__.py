# ruff: noqa: F401 (the imports below are for type checkers)
"""Graph early-bird tickets: train a sparse graph and sparse weights together."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gebt._version import __version__

if TYPE_CHECKING:
    from gebt import datasets, kernels, models
    from gebt.datasets import load
    from gebt.deploy.compaction import compact
    from gebt.deploy.cost import Cost, measure_cost
    from gebt.deploy.energy import measure_energy
    from gebt.deploy.export import export, read_export
    from gebt.deploy.storage import load_compact, save_compact
    from gebt.graph import Graph, LinkSplit, Split
    from gebt.learn.checkpoint import checkpoints
    from gebt.learn.classes import AmongClasses, split_classes
    from gebt.learn.distilled import Distilled
    from gebt.learn.ordinal import Hierarchical, Ordinal, Regression
    from gebt.learn.student import train_student
    from gebt.learn.tasks import LinkPrediction, MultiLabel, NodeClassification
    from gebt.learn.training import absolute_error, evaluate, train
    from gebt.options import Fit
    from gebt.prune.channels import ChannelPruner, drop_channels
    from gebt.prune.criteria import criterion
    from gebt.prune.detector import MaskDistanceDetector, Reading
    from gebt.prune.links import GraphSparsifier, random_links
    from gebt.prune.masks import keep_top
    from gebt.prune.penalties import ADMM
    from gebt.prune.units import slim
    from gebt.prune.weights import ModelPruner
    from gebt.sparse import SparseMatrix
    from gebt.tickets.adapt import Adaptation, adapt_ticket
    from gebt.tickets.choose import Candidate, Choice, find_cheapest
    from gebt.tickets.search import Search, find_ticket
    from gebt.tickets.super_ticket import find_super_ticket
    from gebt.tickets.ticket import Ticket
    from gebt.tickets.transfer import freeze, transfer

# Loaded at first use: the detector alone needs neither PyG nor the models.
_ROOMS = {
    "ADMM": "prune.penalties",
    "Adaptation": "tickets.adapt",
    "AmongClasses": "learn.classes",
    "Candidate": "tickets.choose",
    "ChannelPruner": "prune.channels",
    "Choice": "tickets.choose",
    "Cost": "deploy.cost",
    "Distilled": "learn.distilled",
    "Fit": "options",
    "Graph": "graph",
    "GraphSparsifier": "prune.links",
    "Hierarchical": "learn.ordinal",
    "LinkPrediction": "learn.tasks",
    "LinkSplit": "graph",
    "MaskDistanceDetector": "prune.detector",
    "ModelPruner": "prune.weights",
    "MultiLabel": "learn.tasks",
    "NodeClassification": "learn.tasks",
    "Ordinal": "learn.ordinal",
    "Reading": "prune.detector",
    "Regression": "learn.ordinal",
    "Search": "tickets.search",
    "SparseMatrix": "sparse",
    "Split": "graph",
    "Ticket": "tickets.ticket",
    "adapt_ticket": "tickets.adapt",
    "absolute_error": "learn.training",
    "checkpoints": "learn.checkpoint",
    "compact": "deploy.compaction",
    "criterion": "prune.criteria",
    "drop_channels": "prune.channels",
    "datasets": "",
    "evaluate": "learn.training",
    "export": "deploy.export",
    "find_cheapest": "tickets.choose",
    "find_super_ticket": "tickets.super_ticket",
    "find_ticket": "tickets.search",
    "freeze": "tickets.transfer",
    "keep_top": "prune.masks",
    "kernels": "",
    "load": "datasets",
    "load_compact": "deploy.storage",
    "measure_cost": "deploy.cost",
    "measure_energy": "deploy.energy",
    "models": "",
    "random_links": "prune.links",
    "read_export": "deploy.export",
    "save_compact": "deploy.storage",
    "slim": "prune.units",
    "split_classes": "learn.classes",
    "train": "learn.training",
    "train_student": "learn.student",
    "transfer": "tickets.transfer",
}

__all__ = [*sorted(_ROOMS)]


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module 'gebt' has no attribute {name!r}")
    room = _ROOMS[name]
    module = import_module(f"gebt.{room or name}")
    value = getattr(module, name) if room else module
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
