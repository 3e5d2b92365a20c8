"""Methods of the experiment ``ordinal``: classes in order, and weights that move."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import cross_entropy

from gebt.datasets.synthetic import Synthetic
from gebt.experiments.methods import Outcome, Setting, joint, one_shot
from gebt.graph import Graph
from gebt.learn.ordinal import Hierarchical, InOrder, Ordinal, Regression
from gebt.tickets.transfer import freeze, transfer


class Unordered(InOrder):
    """Plain classification of classes that are in order: its answers are off, too."""

    name: ClassVar[str] = "unordered"

    def answers(self, output: Tensor, graph: Graph) -> Tensor:
        """The likeliest class."""
        return output.argmax(dim=1)

    def _loss(self, output: Tensor, labels: Tensor, graph: Graph, how: str) -> Tensor:
        return cross_entropy(output, labels, reduction=how)


MEDIAN = "classification, median"
TARGETS: Mapping[str, InOrder] = {
    "classification": Unordered(),
    MEDIAN: Ordinal(spread=0.05),  # its Gaussian is the label alone
    "ordinal": Ordinal(),
    "regression": Regression(),
    "hierarchical": Hierarchical(),
}
"""What is learned of the same labels, by name."""
CHANCE = "random, from scratch"
ALONE = "alone"
STARTS = ("ticket", "random")
"""The weights that a transferred ticket begins with: its own, or fresh ones."""
FROZEN = ", frozen"
_LABELLED = 54, 18, 28
"""The split of the graph that tickets are transferred from: it has many labels."""


def targets(setting: Setting) -> Iterator[Outcome]:
    """The dense model, trained for each of `TARGETS`."""
    for name, task in TARGETS.items():
        yield _dense(replace(setting, task=task), name)


def ordered(setting: Setting) -> Iterator[Outcome]:
    """Joint tickets of ordinal targets, their controls, and random masks."""
    setting = replace(setting, task=Ordinal())
    for outcome in joint(setting):
        yield replace(outcome, task=setting.task)
    [chance] = one_shot(setting, criterion="random")
    yield replace(chance, links=CHANCE, task=setting.task)


def transferred(setting: Setting) -> Iterator[Outcome]:
    """A ticket of a graph of another seed, with many labels, retrained on this one.

    Beside the model trained here alone, and the ticket's masks with fresh weights; of
    both starts all weights are trained, or the head alone.
    """
    setting = replace(setting, task=Ordinal())
    yield _dense(setting, ALONE)
    asked = Synthetic.parse(setting.graph.name.partition(":")[2])
    other = replace(asked, seed=asked.seed + 1, split=_LABELLED).make()
    start = time.process_time()
    there = replace(setting, graph=other)
    ticket = there.search(there.model())
    before = time.process_time() - start
    moved = transfer(ticket, setting.graph)
    for kind in STARTS:
        for frozen in ("", FROZEN):
            start = time.process_time()
            model = setting.model()
            own = kind == "ticket"
            small = moved.open(
                model, setting.graph, weights="inherit" if own else "fresh"
            )
            if frozen:
                freeze(model)
            val = setting.train(model, small)
            spent = before * own + time.process_time() - start
            rounds = ((other, ticket.epoch),) if own else ()
            epochs = 0, setting.recipe.fit.epochs
            yield Outcome(
                *(kind + frozen, model, small, val, *epochs, spent, moved),
                rounds=rounds,
                task=setting.task,
            )


def _dense(setting: Setting, name: str) -> Outcome:
    start = time.process_time()
    model = setting.model()
    val = setting.train(model, setting.graph)
    spent = time.process_time() - start
    epochs = setting.recipe.fit.epochs, 0
    task = setting.task
    return Outcome(name, model, setting.graph, val, *epochs, spent, task=task)
