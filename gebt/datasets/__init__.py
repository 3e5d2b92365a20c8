"""Graphs by name: ``load(name, root)``."""

from gebt.datasets.catalogue import DATASETS, Dataset, find_root, load

__all__ = ["DATASETS", "Dataset", "find_root", "load"]
