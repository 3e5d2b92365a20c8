"""What is learned: a loss and a metric. The loops know neither."""

import inspect
import json
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from gebt import randomness
from gebt._registry import TASKS
from gebt.graph import Graph, LinkSplit, Split
from gebt.learn.metrics import average_precision, hits, roc_auc

Part = Literal["train", "val", "test"]


class Task(Protocol):
    """What `train`, `evaluate` and `find_ticket` ask of a task."""

    @property
    def name(self) -> str:
        """What the command line and tickets call it."""

    def metric(self, graph: Graph) -> str:
        """What `score` measures, for titles; in percent, more is better."""

    def num_outputs(self, graph: Graph) -> int:
        """How many outputs per node the model needs."""

    def check(self, graph: Graph) -> None:
        """Raise a ValueError unless the graph can be learned from."""

    def rows(self, graph: Graph, part: Part) -> Tensor | None:
        """The nodes whose outputs this part reads; may be empty; None for all."""

    def loss(self, output: Tensor, graph: Graph, part: Part) -> Tensor:
        """The loss of the outputs (R, C) of those nodes, a scalar."""

    def score(self, output: Tensor, graph: Graph, part: Part) -> float:
        """The metric of the outputs (R, C) of those nodes, in percent."""


class LabelledNodes:
    """What the tasks with labelled nodes share."""

    def num_outputs(self, graph: Graph) -> int:
        """C."""
        return graph.num_classes

    def check(self, graph: Graph) -> None:
        """Raise a ValueError unless there are labels and training nodes."""
        if graph.y is None:
            raise ValueError(
                f"the graph {graph.name!r} has no labels: set `data.y` before "
                "`Graph.from_pyg`; of tables, name the column with `label`."
            )
        if not isinstance(graph.split, Split) or is_empty(graph, graph.split.train):
            raise ValueError(
                f"the graph {graph.name!r} has no training nodes: mark some in "
                "`data.train_mask`, pass `split` to `Graph.from_pyg`, or give them the "
                "split `train` in tables."
            )

    def rows(self, graph: Graph, part: Part) -> Tensor:
        """The nodes of the part; may be none."""
        if not isinstance(graph.split, Split):
            return torch.empty(0, dtype=torch.int64)
        return getattr(graph.split, part)

    def _labels(self, output: Tensor, graph: Graph, part: Part) -> Tensor:
        if graph.y is None:
            raise ValueError(f"the graph {graph.name!r} has no labels.")
        spare = output.shape[1] - graph.num_classes
        if spare < 0 or (spare and graph.y.dim() == 2):
            raise ValueError(
                f"the model gives {output.shape[1]} outputs per node, but "
                f"{graph.name!r} has {graph.num_classes} classes."
            )
        return graph.y.index_select(0, self.rows(graph, part))


class NodeClassification(LabelledNodes):
    """One class per node: cross-entropy; accuracy, ROC-AUC or AP, as the graph says."""

    name: ClassVar[str] = "node-classification"

    def metric(self, graph: Graph) -> str:
        """Accuracy, ROC-AUC or average precision, `Graph.metric`."""
        return graph.metric

    def check(self, graph: Graph) -> None:
        """Raise a ValueError unless there is one class per training node."""
        super().check(graph)
        assert graph.y is not None and isinstance(graph.split, Split)
        if graph.y.dim() == 2:
            raise ValueError(
                f"the graph {graph.name!r} has {graph.num_classes} labels per node, "
                f"not one class. Use the task {MultiLabel.name!r}."
            )
        if graph.metric != "accuracy" and graph.num_classes > 2:
            raise ValueError(
                f"the metric of {graph.name!r} is {graph.metric}, which takes two "
                f'classes, but it has {graph.num_classes}. Set `metric="accuracy"`.'
            )
        labels = graph.y[graph.split.train]
        lowest = -graph.world.most(-int(labels.min()) if labels.numel() else 0)
        if lowest < 0:
            raise ValueError(
                f"a training node of {graph.name!r} has the label {lowest}; labels "
                "of training nodes must be at least 0."
            )

    def loss(self, output: Tensor, graph: Graph, part: Part) -> Tensor:
        """Mean cross-entropy of the outputs (R, C) of the part's nodes."""
        labels = self._labels(output, graph, part)
        loss = partial(_cross_entropy, output, labels)
        return graph.world.mean(loss, labels.numel())

    def score(self, output: Tensor, graph: Graph, part: Part) -> float:
        """The metric of the outputs (R, C) of the part's nodes, percent."""
        labels = self._labels(output, graph, part)
        world = graph.world
        if graph.metric != "accuracy":
            rank = {"ROC-AUC": roc_auc, "AP": average_precision}[graph.metric]
            score = world.gather(output[:, 1] - output[:, 0])
            return rank(score, world.gather(labels == 1))
        right = output.argmax(dim=1) == labels
        return 100 * world.total(int(right.count_nonzero())) / world.total(len(right))


class MultiLabel(LabelledNodes):
    """Any number of labels per node: binary cross-entropy; micro-averaged F1."""

    name: ClassVar[str] = "multi-label"

    def metric(self, graph: Graph) -> str:
        """Micro-F1."""
        return "micro-F1"

    def check(self, graph: Graph) -> None:
        """Raise a ValueError unless the labels are (N, C)."""
        super().check(graph)
        if graph.y is None or graph.y.dim() != 2:
            raise ValueError(
                f"the graph {graph.name!r} has one class per node, not several labels. "
                f"Use the task {NodeClassification.name!r}."
            )

    def loss(self, output: Tensor, graph: Graph, part: Part) -> Tensor:
        """Mean binary cross-entropy of the outputs (R, C) of the part's nodes."""
        labels = self._labels(output, graph, part)
        loss = partial(_binary_cross_entropy, output, labels.to(output.dtype))
        return graph.world.mean(loss, labels.numel())

    def score(self, output: Tensor, graph: Graph, part: Part) -> float:
        """Micro-F1 of the outputs above 0, percent; 0 where nothing is true or said."""
        labels = self._labels(output, graph, part)
        said = output > 0
        counts = [each.sum() for each in (said & labels, said, labels)]
        # A GPU is waited for once.
        both, *either = graph.world.sum(torch.stack(counts)).tolist()
        return 200 * both / max(1, sum(either))


class LinkPrediction:
    """Which pairs of nodes are linked: binary cross-entropy; Hits@K.

    The score of a pair is the inner product of its nodes' embeddings. Trains on the
    training links and as many pairs drawn anew each time.

    Args:
        k: K of Hits@K; the paper and OGB's collab use 50.
        width: of the embedding.
    """

    name: ClassVar[str] = "link-prediction"

    def __init__(self, k: int = 50, width: int = 64):
        for name, value in (("k", k), ("width", width)):
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")
        self.k = k
        self.width = width

    def metric(self, graph: Graph) -> str:
        """Hits@K."""
        return f"Hits@{self.k}"

    def num_outputs(self, graph: Graph) -> int:
        """Width of the embedding."""
        return self.width

    def check(self, graph: Graph) -> None:
        """Raise a ValueError unless there are links to train on and enough negatives.

        Hits@K is 100% by definition where there are fewer than K negatives.
        """
        if not isinstance(graph.split, LinkSplit) or is_empty(graph, graph.split.train):
            raise ValueError(
                f"the graph {graph.name!r} has no split of its links: use "
                "`graph.hold_out_links()`, or pass OGB's edge split to "
                "`Graph.from_pyg`."
            )
        for part in ("val", "test"):
            held_out = getattr(graph.split, part)
            negatives = getattr(graph.split, f"{part}_negative")
            ranked = graph.world.total(negatives.shape[0])
            if not is_empty(graph, held_out) and ranked < self.k:
                raise ValueError(
                    f"Hits@{self.k} needs at least {self.k} negative pairs, but the "
                    f"{part} split of {graph.name!r} has {ranked}. Choose a smaller "
                    f"K: the task `{self.name}:{max(1, ranked)}`."
                )

    def rows(self, graph: Graph, part: Part) -> Tensor | None:
        """None: all nodes may be paired; empty if the part has no links."""
        pairs = getattr(graph.split, part, None)
        if isinstance(graph.split, LinkSplit) and pairs is not None:
            if not is_empty(graph, pairs):
                return None
        return torch.empty(0, dtype=torch.int64)

    def loss(self, output: Tensor, graph: Graph, part: Part) -> Tensor:
        """Mean binary cross-entropy of the part's links and of random pairs."""
        linked, world = getattr(graph.split, part), graph.world
        device = linked.device
        draw = {"generator": randomness.stream(device), "device": device}
        drawn = (world.total(linked.shape[0]), 2)  # the same on every rank
        other = torch.randint(graph.nodes_in_all, drawn, **draw)
        pairs = torch.cat([linked, other[world.rank :: world.size]])
        score = _inner(graph, output, pairs)
        target = score.new_zeros(score.shape)
        target[: linked.shape[0]] = 1
        loss = partial(_binary_cross_entropy, score, target)
        return world.mean(loss, target.numel())

    def score(self, output: Tensor, graph: Graph, part: Part) -> float:
        """Hits@K of the part's links among its negatives, percent."""
        if part == "train":
            raise ValueError("Hits@K needs negatives; the training links have none.")
        linked = getattr(graph.split, part)
        negative = getattr(graph.split, f"{part}_negative")
        found, others = (
            graph.world.gather(_inner(graph, output, pairs))
            for pairs in (linked, negative)
        )
        return hits(found, others, self.k)


def is_empty(graph: Graph, rows: Tensor) -> bool:
    """Whether no rank has such rows."""
    return graph.world.total(rows.shape[0]) == 0


def _inner(graph: Graph, output: Tensor, pairs: Tensor) -> Tensor:
    left, right = (graph.of_nodes(output, nodes) for nodes in pairs.t())
    return (left * right).sum(dim=1)


def _cross_entropy(output: Tensor, labels: Tensor, how: str) -> Tensor:
    return cross_entropy(output, labels, reduction=how)


def _binary_cross_entropy(output: Tensor, labels: Tensor, how: str) -> Tensor:
    return binary_cross_entropy_with_logits(output, labels, reduction=how)


_OURS: tuple[Any, ...] = (NodeClassification, MultiLabel, LinkPrediction)
for _task in _OURS:
    TASKS.add(_task.name, _task, __name__)


def find_task(described: str | Mapping[str, Any]) -> Task:
    """The task of a name, or of a description by `describe_task`.

    A name may have its first option's value behind a colon: ``"ordinal:1.5"``,
    ``"hierarchical:0,0,1,1,1"``.

    Raises:
        ValueError: if there is none; lists those there are.
    """
    if isinstance(described, str):
        described = _named(described)
    name, options = described.get("name"), dict(described)
    options.pop("name", None)
    if not isinstance(name, str) or name not in TASKS:
        raise ValueError(f"there is no task {name!r}; gebt knows {', '.join(TASKS)}.")
    known = inspect.signature(TASKS[name]).parameters
    for option, value in options.items():
        if option not in known or not _is_like(value, known[option].default):
            raise ValueError(
                f"the task {name!r} has no option {option} = {value!r}; it takes "
                f"{', '.join(map(str, known.values())) or 'none'}."
            )
    return TASKS[name](**options)


def _named(text: str) -> dict[str, Any]:
    """The description that a name, with its option or without, stands for."""
    name, colon, given = text.partition(":")
    if not colon or name not in TASKS:
        return {"name": name}
    option = next(iter(inspect.signature(TASKS[name]).parameters.values()), None)
    try:
        values = json.loads(f"[{given}]")
    except ValueError:
        values = []
    if option is None or not values:
        raise ValueError(
            f"there is no task {text!r}: {name} takes "
            f"{f'{option.name}, in numbers,' if option else 'nothing'} behind a colon."
        )
    one = len(values) == 1 and not isinstance(option.default, tuple)
    return {"name": name, option.name: values[0] if one else values}


def _is_like(value: object, default: object) -> bool:
    """Whether an option is of its default's type; a list of classes, of none."""
    if isinstance(default, tuple):
        return isinstance(value, list) and all(type(each) is int for each in value)
    return isinstance(
        value, int | float if isinstance(default, float) else type(default)
    )


def describe_task(task: Task) -> dict[str, Any]:
    """A task's name and, of gebt's own, its options: what `find_task` takes."""
    ours = task.name in TASKS.homes and type(task) is TASKS[task.name]
    options = vars(task) if ours else {}
    # As a file has them.
    lists = {name: [*v] for name, v in options.items() if isinstance(v, tuple)}
    return {"name": task.name, **options, **lists}


def task_for(graph: Graph) -> Task:
    """The task that the graph's labels, or its split of links, are for."""
    if isinstance(graph.split, LinkSplit):
        return LinkPrediction()
    several = graph.y is not None and graph.y.dim() == 2
    return MultiLabel() if several else NodeClassification()


def prepare(graph: Graph, task: Task) -> Graph:
    """The graph that the task learns on: without its held-out links, if any."""
    if isinstance(task, LinkPrediction) and not isinstance(graph.split, LinkSplit):
        graph = graph.hold_out_links()
    task.check(graph)
    return graph
