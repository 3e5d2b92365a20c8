"""The cheapest ticket within a tolerance, seed by seed: `gebt run --max-drop`."""

import time
from collections.abc import Sequence
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any

from gebt.deploy.cost import latencies, peak_memory
from gebt.experiments.record import (
    Drawn,
    Measured,
    Phases,
    Record,
    Sides,
)
from gebt.experiments.run import (
    OnEpoch,
    Recorder,
    Run,
    describe,
    macs_of,
    run_each,
    scores_of,
)
from gebt.experiments.runner import read_table
from gebt.graph import Graph
from gebt.learn.tasks import Task
from gebt.learn.training import Epoch, new_model, train
from gebt.models.recipe import Recipe
from gebt.prune.weights import prunable_weights
from gebt.report.comparison import percent
from gebt.report.figures import scatter
from gebt.report.page import Figure, Table
from gebt.tickets.choose import Candidate, Choice, find_cheapest

FRONTIER = "frontier.csv"
FILES = ("ticket.safetensors", "compact.safetensors", "history.csv", FRONTIER)
"""What is written for a seed; no ticket where nothing can be removed."""
_COLUMNS = tuple(each.name for each in fields(Candidate))


def run_cheapest(
    graph: Graph,
    task: Task,
    recipe: Recipe,
    seeds: range,
    folder: Path,
    *,
    max_drop: float,
    criteria: Sequence[str] | None = None,
    on_epoch: OnEpoch | None = None,
    splits: Sequence[Graph] = (),
) -> tuple[Record, Choice]:
    """`find_cheapest` for some seeds; what is written is whole after each.

    Args:
        graph: prepared for the task.
        task: what is learned.
        recipe: of the model.
        seeds: to run, at least one.
        folder: for metrics.json, the best seed's `FILES` and, where there are several,
            every seed's in ``seed-N/``.
        max_drop: see `find_cheapest`.
        criteria: see `find_cheapest`.
        on_epoch: called with the phase and each of its epochs.
        splits: the graph with another split for each seed, see `run_seeds`.

    Returns:
        The record, and the choice of the seed that validates best.
    """
    asked = {"model": recipe.model, "hidden": recipe.hidden, "dropout": recipe.dropout}
    asked |= {**recipe.fit.to_dict(), "max_drop": max_drop}
    # Untimed: with its first optimiser torch imports its compiler, over a second.
    train(new_model(graph, recipe, task, seeds.start), graph, epochs=1, task=task)
    choices: list[Choice] = []

    def one(at: Graph, seed: int) -> Run:
        recorder = Recorder(on_epoch)
        clock = [_now()]

        def record_epoch(phase: str, epoch: Epoch) -> None:
            clock[1:] = [_now()] if phase == "dense" else clock[1:]
            recorder.of(phase, epoch)

        how: Any = {"recipe": recipe, "criteria": criteria, "seed": seed, "task": task}
        with peak_memory(at.adjacency.device) as peak:
            choice = find_cheapest(at, max_drop=max_drop, on_epoch=record_epoch, **how)
        clock.append(_now())
        choices.append(choice)
        metrics = _measured(at, task, choice, seed, clock, peak[0])
        found = choice.ticket, choice.model, choice.graph, recorder.rows
        rows = [asdict(each) for each in choice.frontier]
        return Run(metrics, *found, {FRONTIER: rows})

    record = run_each(graph, task, asked, seeds, folder, one, splits)
    return record, choices[record.best]


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _measured(
    graph: Graph,
    task: Task,
    choice: Choice,
    seed: int,
    clock: Sequence[tuple[float, float]],
    peak_mib: float,
) -> Measured:
    """One seed's entry; training a ticket is the dense model's, and all that is tried.

    The clock, wall and CPU, is read at the start, after the dense model, at the end.
    """
    start, dense_done, end = clock
    wall, cpu = (
        Phases(b - a, None, c - a)
        for a, b, c in zip(start, dense_done, end, strict=True)
    )
    sides = {"dense": (choice.dense, graph), "ticket": (choice.model, choice.graph)}
    times = dict(zip(sides, latencies([*sides.values()]), strict=True))
    if choice.ticket is None:
        weights = sum(w.numel() for w in prunable_weights(choice.dense).values())
        links = graph.num_links
        drawn = Drawn(0, True, links, links, weights, weights)
    else:
        drawn = describe(choice.ticket, choice.masked[0])
    return Measured(
        seed,
        scores_of(choice.dense_val, choice.dense, graph, task),
        drawn,
        scores_of(choice.val, *choice.masked, task),
        wall,
        cpu,
        Sides(**times),
        macs_of(sides, {**sides, "ticket": choice.masked}),
        peak_mib,
    )


def read_frontier(folder: Path) -> list[Candidate]:
    """The frontier in a folder; empty where there is none.

    Raises:
        ValueError: if it is none that gebt writes.
    """
    path = folder / FRONTIER
    if not path.is_file():
        return []
    wrong = f"{path} is not a table that gebt writes"
    numbers = [name for name in _COLUMNS if name not in ("criterion", "chosen")]
    found = []
    for row in read_table(path, _COLUMNS):
        cells: dict[str, Any] = {"criterion": row["criterion"]}
        cells["chosen"] = row["chosen"] == "True"
        try:
            cells |= {name: float(row[name]) if row[name] else None for name in numbers}
        except ValueError as error:
            raise ValueError(f"{wrong}: {error}. Delete it.") from error
        found.append(Candidate(**cells))
    dense = [each for each in found if each.criterion == "dense"]
    if len(dense) != 1 or not (dense[0].val and dense[0].ms):
        raise ValueError(f"{wrong}: it has no dense model. Delete it.")
    return found


def frontier_items(frontier: Sequence[Candidate], metric: str) -> tuple[Table, Figure]:
    """What was timed, the cheapest first, and the dense model; table and figure."""
    tried = [each for each in frontier if each.ms]
    tried.sort(key=lambda each: each.share)
    [dense] = [each for each in tried if each.criterion == "dense"]
    rows, points = [], []
    for each in tried:
        assert each.val is not None and each.ms and each.reference_ms and dense.val
        name = "dense"
        if each is not dense:
            name = f"{percent(each.graph_ratio)} / {percent(each.weight_ratio)}"
        points.append((name, each.ms, each.val, 0.0))
        rows.append(
            [
                "→ " * each.chosen + name,
                each.criterion if each.graph_ratio else "-",
                f"{each.val:.1f}",
                f"{each.val - dense.val:+z.1f}",
                "" if each.retrained is None else f"{each.retrained:.1f}",
                f"{each.ms:.2f}",
                f"{1 / each.share:.2f}x",
            ]
        )
    header = ("removed", "links by", "val", "- dense", "retrained", "ms", "faster")
    note = (
        f"→ is the answer. Shares of links / weights removed; validation {metric}, %; "
        "milliseconds of a forward, in turns with the dense model's. At each share the "
        f"best criterion's links; {FRONTIER} has the others', too. The answer is "
        "retrained, and kept as it was unless that is better."
    )
    if dense.chosen:
        note = f"Nothing can be removed from this graph within the tolerance. {note}"
    draw = partial(scatter, {"": points}, "inference, ms", f"validation {metric}, %")
    title = "the best ticket at every share: validation score against its time"
    table = Table("The frontier", header, rows, note)
    return table, Figure("frontier", title, draw)
