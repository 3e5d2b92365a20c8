"""What is learned: a loss and a metric. The loops know neither."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from gebt.graph import Graph

Part = Literal["train", "val", "test"]


class NodeClassification:
    """One class per node: cross-entropy loss, accuracy in percent."""

    def check(self, graph: Graph) -> None:
        """Raise a ValueError unless the graph can be learned from."""
        if graph.y is None:
            raise ValueError(
                f"the graph {graph.name!r} has no labels: set `data.y` before "
                "`Graph.from_pyg`."
            )
        if graph.split is None or graph.split.train.numel() == 0:
            raise ValueError(
                f"the graph {graph.name!r} has no training nodes: set "
                "`data.train_mask`, or pass `split` to `Graph.from_pyg`."
            )
        lowest = int(graph.y[graph.split.train].min())
        if lowest < 0:
            raise ValueError(
                f"a training node of {graph.name!r} has the label {lowest}; labels "
                "of training nodes must be at least 0."
            )

    def rows(self, graph: Graph, part: Part) -> Tensor:
        """The nodes whose outputs this part of the split reads; may be none."""
        if graph.split is None:
            return torch.empty(0, dtype=torch.int64)
        return getattr(graph.split, part)

    def loss(self, output: Tensor, graph: Graph, part: Part) -> Tensor:
        """Mean cross-entropy of the outputs (R, C) of the part's nodes."""
        labels = self._labels(graph, part)
        try:
            return cross_entropy(output, labels)
        except IndexError as error:
            raise ValueError(
                f"the model gives {output.shape[1]} classes, but {graph.name!r} has "
                f"labels up to {int(labels.max())}."
            ) from error

    def score(self, output: Tensor, graph: Graph, part: Part) -> float:
        """Accuracy in percent of the outputs (R, C) of the part's nodes."""
        right = output.argmax(dim=1) == self._labels(graph, part)
        return 100 * int(right.count_nonzero()) / right.numel()

    def _labels(self, graph: Graph, part: Part) -> Tensor:
        if graph.y is None:
            raise ValueError(f"the graph {graph.name!r} has no labels.")
        return graph.y.index_select(0, self.rows(graph, part))
