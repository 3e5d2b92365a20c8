"""Some of a graph's classes as a task of their own, and a graph's as several tasks."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from gebt._checks import check_count
from gebt._registry import TASKS
from gebt.graph import Graph
from gebt.learn.tasks import NodeClassification, Part


class AmongClasses(NodeClassification):
    """Which of some classes: cross-entropy; accuracy. Nodes of others are in no part.

    Args:
        classes: two or more of the graph's; output k is the k-th of them. By default
            all, in their order.

    Raises:
        ValueError: if there is one alone, or one comes twice.
    """

    name: ClassVar[str] = "node-classification-among"

    def __init__(self, classes: Sequence[int] = ()):
        self.classes: tuple[int, ...] = tuple(int(c) for c in classes)
        if self.classes and len({*self.classes}) < max(2, len(self.classes)):
            raise ValueError(
                f"`classes` must be two or more that differ, got {self.classes}."
            )

    def among(self, graph: Graph) -> Sequence[int]:
        """The classes, in the outputs' order."""
        return self.classes or range(graph.num_classes)

    def num_outputs(self, graph: Graph) -> int:
        """How many classes."""
        return len(self.among(graph))

    def check(self, graph: Graph) -> None:
        """Raise a ValueError unless the graph has these, and nodes to train on."""
        super().check(graph)
        last = graph.num_classes - 1
        if beyond := [c for c in self.classes if not 0 <= c <= last]:
            raise ValueError(
                f"the classes of {graph.name!r} are 0 to {last}: {beyond[0]} is none."
            )
        assert graph.y is not None
        seen = set(graph.y[self.rows(graph, "train")].tolist())
        if missing := [c for c in self.classes if c not in seen]:
            raise ValueError(
                f"the graph {graph.name!r} has no training node of the class "
                f"{missing[0]}."
            )

    def rows(self, graph: Graph, part: Part) -> Tensor:
        """The part's nodes of these classes; may be none."""
        nodes = super().rows(graph, part)
        if graph.y is None:
            return nodes
        return nodes[self._of(graph, nodes) >= 0]

    def _labels(self, output: Tensor, graph: Graph, part: Part) -> Tensor:
        return self._of(graph, self.rows(graph, part))

    def _of(self, graph: Graph, nodes: Tensor) -> Tensor:
        """(R,) the output that stands for each node's class, -1 for none."""
        assert graph.y is not None
        # The last is of nodes without a class.
        output = torch.full((graph.num_classes + 1,), -1, device=graph.link.device)
        among = [*self.among(graph)]
        output[among] = torch.arange(len(among), device=graph.link.device)
        return output[graph.y[nodes].clamp(min=-1)]


def split_classes(graph: Graph, tasks: int, *, seed: int = 0) -> list[AmongClasses]:
    """A graph's classes dealt to tasks, at random, as evenly as can be.

    Args:
        graph: with one class per node.
        tasks: how many.
        seed: of the deal.

    Raises:
        ValueError: if there are fewer than two classes for each.
    """
    check_count("tasks", tasks)
    classes = graph.num_classes
    if classes < 2 * tasks:
        raise ValueError(
            f"`tasks` must leave two classes to each, got {tasks} "
            f"for the {classes} classes of {graph.name!r}."
        )
    order = torch.randperm(classes, generator=torch.Generator().manual_seed(seed))
    return [AmongClasses(sorted(part.tolist())) for part in order.tensor_split(tasks)]


TASKS.add(AmongClasses.name, AmongClasses, __name__)
