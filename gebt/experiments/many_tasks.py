"""Ways to learn a graph's classes task after task, over one ticket or without."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from gebt.deploy.compaction import compact
from gebt.deploy.cost import executed_macs
from gebt.experiments.methods import Setting
from gebt.graph import Graph, PrunedGraph
from gebt.learn.classes import AmongClasses, split_classes
from gebt.learn.training import copy_state, evaluate
from gebt.models.heads import head_of
from gebt.tickets.adapt import adapt_ticket
from gebt.tickets.ticket import Ticket

SOFT, NO_LINKS = "soft masks", "soft masks, no links"
OUTPUTS, BITS = "soft masks of outputs", "binary masks"
PROBE, TUNED, ALONE = "linear probe", "fine-tuning", "alone"
ADAPTED: Mapping[str, Mapping[str, Any]] = {
    SOFT: {"link_groups": 8},
    NO_LINKS: {},
    OUTPUTS: {"unit": "column", "link_groups": 8},
    BITS: {"unit": "element", "binary": True},
    PROBE: {"unit": None},
}
"""What `adapt_ticket` is told."""
WAYS = (*ADAPTED, TUNED, ALONE)

Row = dict[str, Any]


def number_of_tasks(classes: int) -> int:
    """One for each five classes, or three where two are left to each: 7 in 3, 40 in 8.

    Raises:
        ValueError: if there are too few classes for two tasks.
    """
    if classes < 4:
        raise ValueError(f"{classes} classes are too few for two tasks of two each.")
    return max(min(3, classes // 2), classes // 5)


def class_tasks(setting: Setting) -> list[AmongClasses]:
    """The tasks of a setting, dealt by its seed."""
    graph = setting.graph
    return split_classes(graph, number_of_tasks(graph.num_classes), seed=setting.seed)


def many_tasks(setting: Setting) -> Iterator[Row]:
    """Each way's scores on the tasks that come after the first, of which the ticket is.

    The ticket is drawn and trained on the first task. ``test`` is the score when a task
    has been learned, ``at_end`` when the last one has. What is fine-tuned goes from
    task to task, each with a head of its own, and has a row of the first task, too.
    """
    tasks = class_tasks(setting)
    first = replace(setting, task=tasks[0])
    model = first.model()
    ticket = first.search(model)
    small = ticket.open(model, setting.graph)
    first.train(model, small)
    ticket = ticket.with_weights(model)
    for way, options in ADAPTED.items():
        yield from _adapted(setting, ticket, tasks, way, options)
    yield from _tuned(setting, ticket, tasks, model, small)
    for place, task in enumerate(tasks[1:], start=2):
        start = time.process_time()
        one = replace(setting, task=task)
        model = one.model()
        val = one.train(model, setting.graph)
        seconds = time.process_time() - start
        test = evaluate(model, setting.graph, task=task)
        sizes = (_bytes(model.state_dict()), _macs(model, setting.graph))
        yield _row(ALONE, place, val, test, test, *sizes, seconds)


def _adapted(
    setting: Setting,
    ticket: Ticket,
    tasks: Sequence[AmongClasses],
    way: str,
    options: Mapping[str, Any],
) -> Iterator[Row]:
    """By `adapt_ticket`; opened again when all tasks are over."""
    graph, rows, stored = setting.graph, [], []
    for place, task in enumerate(tasks[1:], start=2):
        start = time.process_time()
        found = adapt_ticket(ticket, graph, task, seed=setting.seed, **options)
        seconds = time.process_time() - start
        model, small = found.open(ticket, graph)
        test = evaluate(model, small, task=task)
        sizes = found.stored_bytes, _macs(model, small)
        rows.append((place, found.val, test, *sizes, seconds))
        stored.append(found)
    for (place, val, test, *rest), found in zip(rows, stored, strict=True):
        model, small = found.open(ticket, graph)
        at_end = evaluate(model, small, task=tasks[place - 1])
        yield _row(way, place, val, test, at_end, *rest)


def _tuned(
    setting: Setting,
    ticket: Ticket,
    tasks: Sequence[AmongClasses],
    model: nn.Module,
    small: PrunedGraph,
) -> Iterator[Row]:
    """By training on from the task before; the body is that of the last task."""
    rows, heads, head = [], [], head_of(ticket.model)
    for place, task in enumerate(tasks, start=1):
        one = replace(setting, task=task)
        seconds, val = 0.0, evaluate(model, small, "val", task=task)
        if place > 1:
            start = time.process_time()
            body = copy_state(model)
            model = one.model()
            own = {name: t for name, t in copy_state(model).items() if name in head}
            model.load_state_dict(body | own)
            keep = {n: m for n, m in small.weight_masks.items() if n not in head}
            val = one.train(model, small, keep)
            seconds = time.process_time() - start
        test = evaluate(model, small, task=task)
        heads.append({n: t for n, t in copy_state(model).items() if n in head})
        sizes = _bytes(heads[-1]), _macs(model, small)
        rows.append((place, val, test, *sizes, seconds))
    last = copy_state(model)
    for (place, val, test, *rest), own, task in zip(rows, heads, tasks, strict=True):
        model = replace(setting, task=task).model()
        model.load_state_dict(last | own)
        at_end = evaluate(model, small, task=task)
        yield _row(TUNED, place, val, test, at_end, *rest)


def _row(
    way: str,
    place: int,
    val: float,
    test: float,
    at_end: float,
    stored_bytes: float,
    macs: float,
    seconds: float,
) -> Row:
    return {
        "way": way,
        "task": place,
        "val": round(val, 3),
        "test": round(test, 3),
        "at_end": round(at_end, 3),
        "bytes": stored_bytes,
        "macs_executed": macs,
        "cpu_seconds": round(seconds, 3),
    }


def _bytes(state: Mapping[str, Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in state.values())


def _macs(model: nn.Module, graph: Graph) -> int:
    return executed_macs(*compact(model, graph))
