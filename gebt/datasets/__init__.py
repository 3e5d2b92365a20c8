"""Graphs by name: ``load(name, root)``, and ``register`` for one's own."""

from gebt._registry import DATASETS
from gebt.datasets.catalogue import Dataset, Facts, find_root, load, register
from gebt.datasets.ogb import ogb_package

__all__ = [
    "DATASETS",
    "Dataset",
    "Facts",
    "find_root",
    "load",
    "ogb_package",
    "register",
]
