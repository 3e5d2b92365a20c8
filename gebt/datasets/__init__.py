"""Graphs by name: ``load(name, root)``, and ``register`` for one's own."""

from gebt._registry import DATASETS
from gebt.datasets.catalogue import Dataset, Facts, find_root, load, register

__all__ = ["DATASETS", "Dataset", "Facts", "find_root", "load", "register"]
