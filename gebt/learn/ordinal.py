"""Targets in order, such as ages: how far off an answer is matters, not only whether.

All answer with one class a node. Accuracy is the score, by which the best epoch is
chosen, and the mean absolute error, in classes, is told beside it.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax, mse_loss

from gebt._checks import check_positive
from gebt._registry import TASKS
from gebt.graph import Graph
from gebt.learn.tasks import LabelledNodes, NodeClassification, Part


class InOrder(LabelledNodes):
    """What the tasks whose classes are in order share."""

    name: ClassVar[str]

    def metric(self, graph: Graph) -> str:
        """Accuracy; the absolute error is beside it."""
        return "accuracy"

    def check(self, graph: Graph) -> None:
        """Raise a ValueError unless there is one of three or more classes per node.

        Whether their numbers are in order, only whoever made them knows.
        """
        NodeClassification().check(graph)
        if graph.num_classes < 3:
            raise ValueError(
                f"the graph {graph.name!r} has {graph.num_classes} classes, which have "
                f"no order to learn: {self.name!r} takes three or more. Use the task "
                f"{NodeClassification.name!r}."
            )

    def answers(self, output: Tensor, graph: Graph) -> Tensor:
        """(R,) int64 classes that the outputs (R, ...) mean."""
        raise NotImplementedError

    def loss(self, output: Tensor, graph: Graph, part: Part) -> Tensor:
        """The mean loss of the outputs (R, ...) of the part's nodes."""
        labels = self._labels(output, graph, part)
        loss = partial(self._loss, output, labels, graph)
        return graph.world.mean(loss, labels.numel())

    def _loss(self, output: Tensor, labels: Tensor, graph: Graph, how: str) -> Tensor:
        raise NotImplementedError

    def score(self, output: Tensor, graph: Graph, part: Part) -> float:
        """Accuracy of the answers on the part's nodes, percent."""
        right = self._off(output, graph, part) == 0
        return 100 * self._mean(right, graph)

    def absolute_error(self, output: Tensor, graph: Graph, part: Part) -> float:
        """How many classes the answers on the part's nodes are off, the mean."""
        return self._mean(self._off(output, graph, part), graph)

    def _off(self, output: Tensor, graph: Graph, part: Part) -> Tensor:
        labels = self._labels(output, graph, part)
        return (self.answers(output, graph) - labels).abs()

    @staticmethod
    def _mean(values: Tensor, graph: Graph) -> float:
        world = graph.world
        return world.total(int(values.sum())) / world.total(values.numel())

    def _labels(self, output: Tensor, graph: Graph, part: Part) -> Tensor:
        wanted = self.num_outputs(graph)
        if output.shape[1] != wanted:
            raise ValueError(
                f"the model gives {output.shape[1]} outputs per node, but "
                f"{self.name!r} needs {wanted} for {graph.name!r}."
            )
        assert graph.y is not None
        return graph.y.index_select(0, self.rows(graph, part))


class Ordinal(InOrder):
    """Classes in order: KL divergence from a Gaussian around the label; accuracy.

    The target of a node is a distribution over the classes that falls off with the
    distance from its label (label-distribution encoding); the answer is the median of
    the distribution that the model gives, which is the least absolute error it expects.

    Args:
        spread: standard deviation of the Gaussian, in classes. Far below one it is
            classification, answered by the median.

    Source: Gao et al. 2017, Deep Label Distribution Learning.
    """

    name: ClassVar[str] = "ordinal"

    def __init__(self, spread: float = 0.5):
        check_positive("spread", spread)
        self.spread = spread

    def answers(self, output: Tensor, graph: Graph) -> Tensor:
        """The first class by which half of the probability is reached."""
        below = output.softmax(dim=1).cumsum(dim=1) < 0.5
        return below.sum(dim=1).clamp(max=output.shape[1] - 1)

    def _loss(self, output: Tensor, labels: Tensor, graph: Graph, how: str) -> Tensor:
        rank = torch.arange(output.shape[1], device=output.device)
        away = (rank - labels.unsqueeze(1)).to(output.dtype) / self.spread
        target = (-away.square() / 2).softmax(dim=1)
        how = "batchmean" if how == "mean" else how
        return kl_div(log_softmax(output, dim=1), target, reduction=how)


class Regression(InOrder):
    """Classes in order as one number: squared error; accuracy of it rounded.

    The number is counted from the middle class, where the outputs of new models lie.
    """

    name: ClassVar[str] = "regression"

    def num_outputs(self, graph: Graph) -> int:
        """One."""
        return 1

    def answers(self, output: Tensor, graph: Graph) -> Tensor:
        """The nearest class."""
        last = graph.num_classes - 1
        return (output[:, 0] + last / 2).round().clamp(0, last).long()

    def _loss(self, output: Tensor, labels: Tensor, graph: Graph, how: str) -> Tensor:
        wanted = labels.to(output.dtype) - (graph.num_classes - 1) / 2
        return mse_loss(output[:, 0], wanted, reduction=how)


class Hierarchical(InOrder):
    """First a coarse class, then the class given it: two cross-entropies; accuracy.

    The first G outputs are of the coarse classes, the other C of the classes; a class's
    probability is its coarse class's, times its own among those of that. The answer is
    the likeliest class of the likeliest coarse class.

    Args:
        coarse: (C,) the coarse class of each class, from 0 on. By default about the
            square root of C coarse classes, each of as many consecutive classes.
    """

    name: ClassVar[str] = "hierarchical"

    def __init__(self, coarse: Sequence[int] = ()):
        groups = {*coarse}
        if groups != {*range(len(groups))} or len(groups) == 1:
            raise ValueError(
                "`coarse` must have two or more coarse classes, numbered from 0 "
                f"without gaps, got {sorted(groups)}."
            )
        self.coarse = [*coarse]

    def groups(self, graph: Graph) -> list[int]:
        """The coarse class of each class."""
        classes = graph.num_classes
        number = round(math.sqrt(classes))
        return self.coarse or [each * number // classes for each in range(classes)]

    def num_outputs(self, graph: Graph) -> int:
        """G + C."""
        groups = self.groups(graph)
        return max(groups) + 1 + len(groups)

    def check(self, graph: Graph) -> None:
        """As the others, and unless each class has a coarse class."""
        super().check(graph)
        if (found := len(self.groups(graph))) != graph.num_classes:
            raise ValueError(
                f"`coarse` has a coarse class for {found} classes, but {graph.name!r} "
                f"has {graph.num_classes}: give each its own, in the classes' order."
            )

    def _split(self, output: Tensor, graph: Graph) -> tuple[Tensor, Tensor, Tensor]:
        """(C,) the coarse class of each, and the outputs (R, G) and (R, C)."""
        groups = torch.tensor(self.groups(graph), device=output.device)
        fine = len(groups)
        return groups, output[:, :-fine], output[:, -fine:]

    def answers(self, output: Tensor, graph: Graph) -> Tensor:
        """The likeliest class of the likeliest coarse class."""
        groups, coarse, fine = self._split(output, graph)
        chosen = groups == coarse.argmax(dim=1, keepdim=True)
        return fine.masked_fill(~chosen, -math.inf).argmax(dim=1)

    def _loss(self, output: Tensor, labels: Tensor, graph: Graph, how: str) -> Tensor:
        groups, coarse, fine = self._split(output, graph)
        group = groups[labels]
        among = fine.masked_fill(groups != group.unsqueeze(1), -math.inf)
        first = cross_entropy(coarse, group, reduction=how)
        return first + cross_entropy(among, labels, reduction=how)


_OURS: tuple[Any, ...] = (Ordinal, Regression, Hierarchical)
for _task in _OURS:
    TASKS.add(_task.name, _task, __name__)
