"""Distillation: a task around a task, that keeps a model to a teacher's answers."""

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from gebt._checks import check_not_negative
from gebt.graph import Graph, Split
from gebt.learn.tasks import NodeClassification, Part, Task, is_empty


class Distilled:
    """Classes of nodes, and a teacher's answers where nobody will ask.

    The loss is that of the task on the training nodes, plus ``weight`` times the mean
    KL divergence of the model's classes from the teacher's over the nodes outside
    training, validation and test. The teacher's outputs for all others are never read:
    a student that knew its teacher's answers on the test nodes would need no links. If
    no such nodes are left, the loss is the task's own.

    Args:
        task: one class per node.
        logits: (N, C) the teacher's outputs on the same graph.
        weight: of the divergence.

    Raises:
        ValueError: if the task is of another kind, or an argument is out of range.

    Source: Hinton et al. 2015, at temperature 1.
    """

    def __init__(self, task: Task, logits: Tensor, *, weight: float = 10.0):
        if not isinstance(task, NodeClassification):
            name = getattr(task, "name", type(task).__name__)
            raise ValueError(
                "distillation compares the classes of nodes, but the task is "
                f"{name!r}. Use {NodeClassification.name!r}, or train without a "
                "teacher."
            )
        check_not_negative("weight", weight)
        if not isinstance(logits, Tensor) or logits.dim() != 2:
            shown = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits)
            raise ValueError(
                "the teacher's outputs must be a tensor with a row for each node and a "
                f"column for each class, got {shown}."
            )
        self.task = task
        self.weight = weight
        self._logits = logits.detach()
        self._known: tuple[Split, Tensor, Tensor] | None = None

    @property
    def name(self) -> str:
        """The task's."""
        return self.task.name

    def metric(self, graph: Graph) -> str:
        """The task's."""
        return self.task.metric(graph)

    def num_outputs(self, graph: Graph) -> int:
        """The task's."""
        return self.task.num_outputs(graph)

    def check(self, graph: Graph) -> None:
        """Raise a ValueError unless the task's graph is the teacher's, too."""
        self.task.check(graph)
        if self._logits.shape[0] != graph.num_nodes:
            raise ValueError(
                f"the teacher's outputs are for {self._logits.shape[0]} nodes, but "
                f"{graph.name!r} has {graph.num_nodes}: it is the teacher of another "
                "graph."
            )

    def rows(self, graph: Graph, part: Part) -> Tensor:
        """The nodes of the part; after those to train on, those to ask the teacher."""
        if part != "train" or not isinstance(graph.split, Split):
            return self.task.rows(graph, part)
        return self._asked(graph, graph.split)[0]

    def loss(self, output: Tensor, graph: Graph, part: Part) -> Tensor:
        """The task's, in training plus the divergence from the teacher."""
        labelled = self.task.rows(graph, part).numel()
        loss = self.task.loss(output[:labelled], graph, part)
        if part != "train" or is_empty(graph, output[labelled:]):
            return loss
        assert isinstance(graph.split, Split)
        if output.shape[1] != self._logits.shape[1]:
            raise ValueError(
                f"the teacher gives {self._logits.shape[1]} outputs per node, but the "
                f"model gives {output.shape[1]}."
            )
        _, believed = self._asked(graph, graph.split)
        ours = log_softmax(output[labelled:], dim=1)

        def divergence(how: str) -> Tensor:
            how = {"mean": "batchmean"}.get(how, how)
            return kl_div(ours, believed, reduction=how, log_target=True)

        return loss + self.weight * graph.world.mean(divergence, ours.shape[0])

    def score(self, output: Tensor, graph: Graph, part: Part) -> float:
        """The task's."""
        return self.task.score(output, graph, part)

    def _asked(self, graph: Graph, split: Split) -> tuple[Tensor, Tensor]:
        """The rows to train on, and what the teacher believes of the last of them.

        The same tensors for as long as the split is the same: what matrices derive from
        rows is kept by them.
        """
        if self._known is None or self._known[0] is not split:
            device = split.train.device
            nobodys = torch.ones(graph.num_nodes, dtype=torch.bool, device=device)
            for part in (split.train, split.val, split.test):
                nobodys.index_fill_(0, part, False)
            asked = nobodys.nonzero().squeeze(1)
            logits = self._logits.to(device).index_select(0, asked)
            train = self.task.rows(graph, "train")
            rows = torch.cat([train, asked]) if asked.numel() else train
            self._known = split, rows, log_softmax(logits, dim=1)
        return self._known[1:]
