"""Graphs by name: ``load(name, root)``, and ``register`` for one's own."""

from gebt._registry import DATASETS
from gebt.datasets.catalogue import Dataset, find_root, load, register

__all__ = ["DATASETS", "Dataset", "find_root", "load", "register"]
