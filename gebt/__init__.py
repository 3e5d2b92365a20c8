# ruff: noqa: F401 (the imports below are for type checkers)
"""Graph early-bird tickets: train a sparse graph and sparse weights together."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from gebt import kernels, models
    from gebt.compaction import compact, load_compact, save_compact
    from gebt.cost import Cost, measure_cost
    from gebt.datasets import load
    from gebt.detector import MaskDistanceDetector, Reading
    from gebt.graph import Graph, LinkSplit, Split
    from gebt.masks import keep_top
    from gebt.penalties import ADMM
    from gebt.pruner import ModelPruner
    from gebt.search import find_ticket
    from gebt.sparse import SparseMatrix
    from gebt.sparsifier import GraphSparsifier, random_links
    from gebt.tasks import LinkPrediction, MultiLabel, NodeClassification
    from gebt.ticket import Ticket
    from gebt.training import evaluate, train

# Loaded at first use: the detector alone needs neither PyG nor the models.
_ROOMS = {
    "ADMM": "penalties",
    "Cost": "cost",
    "Graph": "graph",
    "GraphSparsifier": "sparsifier",
    "LinkPrediction": "tasks",
    "LinkSplit": "graph",
    "MaskDistanceDetector": "detector",
    "ModelPruner": "pruner",
    "MultiLabel": "tasks",
    "NodeClassification": "tasks",
    "Reading": "detector",
    "SparseMatrix": "sparse",
    "Split": "graph",
    "Ticket": "ticket",
    "compact": "compaction",
    "evaluate": "training",
    "find_ticket": "search",
    "keep_top": "masks",
    "kernels": "",
    "load": "datasets",
    "load_compact": "compaction",
    "measure_cost": "cost",
    "models": "",
    "random_links": "sparsifier",
    "save_compact": "compaction",
    "train": "training",
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
