"""The cheapest ticket within a tolerance, seed by seed: `gebt run --max-drop`."""

import math
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from gebt._registry import MODELS
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
    errors_of,
    macs_of,
    num_weights,
    run_each,
    scores_of,
)
from gebt.experiments.runner import read_table
from gebt.graph import Graph
from gebt.learn.tasks import Task
from gebt.learn.training import new_model, train
from gebt.models.recipe import Recipe
from gebt.options import Objective
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
    recipes: Sequence[Recipe],
    seeds: range,
    folder: Path,
    *,
    named: str,
    max_drop: float,
    objective: Objective = "inference",
    criteria: Sequence[str] | None = None,
    on_epoch: OnEpoch | None = None,
    splits: Sequence[Graph] = (),
) -> Record:
    """`find_cheapest` for some seeds; what is written is whole after each.

    Args:
        graph: prepared for the task.
        task: what is learned.
        recipes: of which the best on the validation nodes is trained.
        seeds: to run, at least one.
        folder: for metrics.json, the best seed's `FILES` and, where there are several,
            every seed's in ``seed-N/``.
        named: what they are called together.
        max_drop: see `find_cheapest`.
        objective: see `find_cheapest`.
        criteria: see `find_cheapest`.
        on_epoch: called with the phase and each of its epochs.
        splits: the graph with another split for each seed, see `run_seeds`.
    """
    asked: dict[str, Any] = {"recipe": named, "max_drop": max_drop}
    asked["objective"] = objective
    if len(recipes) == 1:
        asked |= recipes[0].described()
    # Untimed: with its first optimiser torch imports its compiler, over a second.
    train(new_model(graph, MODELS["gcn"], task, 0), graph, epochs=1, task=task)

    def one(at: Graph, seed: int) -> Run:
        recorder = Recorder(on_epoch)
        how: Any = {"recipe": recipes, "criteria": criteria, "seed": seed, "task": task}
        how["objective"] = objective
        with peak_memory(at.adjacency.device) as peak:
            choice = find_cheapest(at, max_drop=max_drop, on_epoch=recorder.of, **how)
        metrics = _measured(at, task, choice, seed, peak[0])
        found = choice.ticket, choice.model, choice.graph, recorder.rows
        rows = [asdict(each) for each in choice.frontier]
        return Run(metrics, *found, {FRONTIER: rows})

    return run_each(graph, task, asked, seeds, folder, one, splits)


def _measured(
    graph: Graph, task: Task, choice: Choice, seed: int, peak_mib: float
) -> Measured:
    """One seed's entry; a ticket's training is all that was tried."""
    wall, cpu = (
        Phases(getattr(choice.dense_spent, unit), None, getattr(choice.spent, unit))
        for unit in ("wall", "cpu")
    )
    sides = {"dense": (choice.dense, graph), "ticket": (choice.model, choice.graph)}
    times = dict(zip(sides, latencies([*sides.values()]), strict=True))
    links, weights = graph.num_links, num_weights(choice.dense)
    drawn = Drawn(0, True, links, links, weights, weights)
    if choice.ticket is not None:  # the units that went took weights along
        drawn = replace(describe(choice.ticket, choice.masked[0]), weights=weights)
    masked = {**sides, "ticket": choice.masked}
    return Measured(
        seed,
        scores_of(choice.dense_val, choice.dense, graph, task),
        drawn,
        scores_of(choice.val, *choice.masked, task),
        wall,
        cpu,
        Sides(**times),
        macs_of(sides, masked),
        peak_mib,
        model=choice.recipe.in_words(),
        absolute_error=errors_of(masked, task),
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
    if len(dense) != 1 or dense[0].val is None or not dense[0].ms:
        raise ValueError(f"{wrong}: it has no dense model. Delete it.")
    return found


def _gone(candidate: Candidate) -> tuple[float, float, float]:
    return candidate.graph_ratio, candidate.weight_ratio, candidate.unit_ratio


def frontier_items(frontier: Sequence[Candidate], metric: str) -> tuple[Table, Figure]:
    """The frontier, the cheapest first, and the dense model; table and figure.

    The table leaves out what something else beats in time and in score.
    """
    tried = [each for each in frontier if each.ms]
    tried.sort(key=lambda each: each.share)
    [dense] = [each for each in tried if each.criterion == "dense"]
    random = {_gone(c): c.val for c in frontier if c.criterion == "random"}
    rows, points, best = [], [], -math.inf
    for each in tried:
        assert each.ms
        name, control = "dense", random.get(_gone(each))
        if each is not dense:
            name = "/".join(f"{100 * share:g}" for share in _gone(each)) + "%"
        if control is not None:
            points.append(("tickets on random links", each.ms, control, 0.0))
        kind = "the answer" if each.chosen else "dense" if each is dense else "tickets"
        points.append((kind, each.ms, each.best, 0.0))
        if each.best <= best and not each.chosen and each is not dense:
            continue
        best = max(best, each.best)
        rows.append(
            [
                "→ " * each.chosen + name,
                each.criterion if each.graph_ratio else "-",
                f"{each.val:.1f}",
                "" if control is None else f"{control:.1f}",
                "" if each.retrained is None else f"{each.retrained:.1f}",
                f"{each.best - dense.val:+z.1f}",
                f"{each.ms:.2f}",
                f"{1 / each.share:.2f}x",
            ]
        )
    header = ("removed", "links by", "val", "random", "retrained")
    note = (
        "→ is the answer. Shares of links/weights/hidden units removed, of weights "
        f"those of the units that stay; validation {metric}, %, on the best "
        "criterion's links and on as many random ones, after retraining, and the "
        "better of the ticket's less the dense model's; milliseconds of a forward, in "
        "turns with the dense model's. What something else beats in both is left out; "
        f"{FRONTIER} has all. To hold, units may lose the tolerance and links half of "
        "it, less a quarter of the standard error."
    )
    if dense.chosen:
        note = f"Nothing can be removed from this graph within the tolerance. {note}"
    draw = partial(scatter, {"": points}, "inference, ms", f"validation {metric}, %")
    title = "the best ticket at every share: validation score against its time"
    columns = (*header, "- dense", "ms", "faster")
    table = Table("The frontier", columns, rows, note)
    return table, Figure("frontier", title, draw)
