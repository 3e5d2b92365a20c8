"""Dense model, joint ticket, retraining, compaction and cost: one seed of it all."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from gebt._checks import check_ratio
from gebt._provenance import provenance
from gebt._registry import MODELS
from gebt.deploy.compaction import compact
from gebt.deploy.cost import executed_macs, latencies, paper_macs, peak_memory
from gebt.deploy.storage import save_compact
from gebt.experiments.record import FILE as RECORD
from gebt.experiments.record import (
    Drawn,
    Macs,
    Measured,
    Phases,
    Record,
    Scores,
    Sides,
    read_record,
)
from gebt.files import write_csv
from gebt.graph import Graph
from gebt.learn.checkpoint import Clock, current, part
from gebt.learn.ordinal import InOrder
from gebt.learn.tasks import Task
from gebt.learn.training import Epoch, absolute_error, evaluate, new_model, train
from gebt.models import SuperGNN
from gebt.models.recipe import Recipe
from gebt.options import EB_TRAIN, Fit, Precision, Unit
from gebt.prune.channels import drop_channels
from gebt.prune.groups import Group
from gebt.prune.links import GraphSparsifier, links_by
from gebt.prune.weights import prunable_weights
from gebt.tickets.recording import RecordingDetector
from gebt.tickets.search import find_ticket
from gebt.tickets.super_ticket import find_super_ticket
from gebt.tickets.ticket import Ticket

OnEpoch = Callable[[str, Epoch], None]


@dataclass(frozen=True)
class Options:
    """The options of `gebt run`.

    Attributes:
        recipe: the model and how it is trained.
        graph_ratio: share of links to remove, in [0, 1).
        weight_ratio: share of weights to remove, in [0, 1).
        threshold: of the detector.
        window: of the detector.
        criterion: what ranks links.
        parts: of the graph in an epoch of the search.
        unit: what is pruned of the weights, see `Search`.
        precision: of the search.
    """

    recipe: Recipe = MODELS["gcn"]
    graph_ratio: float = 0.2
    weight_ratio: float = 0.9
    threshold: float = 0.1
    window: int = 3
    criterion: str = "learned"
    parts: int = 1
    unit: Unit = "element"
    precision: Precision = "full"

    def __post_init__(self) -> None:
        check_ratio("graph_ratio", self.graph_ratio)
        check_ratio("weight_ratio", self.weight_ratio)
        self.detector()

    def detector(self) -> RecordingDetector:
        """A new detector."""
        rule: Any = EB_TRAIN if self.unit == "channel" else {}
        return RecordingDetector(self.threshold, **{**rule, "window": self.window})

    def record(self) -> dict[str, Any]:
        """As numbers and names, for metrics.json; of a supernet without the detector's.

        Its search has a threshold of another kind, which the ticket holds.
        """
        left_out = {"about", "source"}
        if self.recipe.kind is SuperGNN:
            left_out |= {"threshold", "window", "parts", "unit", "precision"}
        return {
            name: value
            for name, value in {
                **vars(self.recipe),
                **vars(self),
                **self.recipe.fit.to_dict(),
            }.items()
            if isinstance(value, int | float | str) and name not in left_out
        }


class Recorder:
    """Keeps every epoch as a CSV row, with the phase's time, and passes it on."""

    def __init__(self, on_epoch: OnEpoch | None = None):
        self.rows: list[dict[str, Any]] = []
        self.seconds: dict[str, float] = {}
        self.cpu_seconds: dict[str, float] = {}
        self._on_epoch = on_epoch
        self._phase = ""

    @contextmanager
    def phase(self, name: str) -> Iterator[Callable[[Epoch], None]]:
        """Time a phase; gives the hook that records its epochs."""
        self._phase = name
        start = Clock.now()
        yield self._record
        spent = Clock.now() - start
        self.seconds[name], self.cpu_seconds[name] = spent.wall, spent.cpu

    def of(self, phase: str, epoch: Epoch) -> None:
        """Record an epoch of a phase that is not timed."""
        self._phase = phase
        self._record(epoch)

    def _record(self, epoch: Epoch) -> None:
        distances = {
            f"distance_{group}": epoch.distances.get(group, "")
            for group in ("graph", "weights", "joint")
        }
        if "channels" in epoch.distances:  # in the place of weights
            distances["distance_weights"] = epoch.distances["channels"]
        self.rows.append(
            {
                "phase": self._phase,
                "epoch": epoch.epoch,
                "loss": epoch.loss,
                "val": epoch.val,
                **distances,
            }
        )
        if self._on_epoch:
            self._on_epoch(self._phase, epoch)


RUN_FILES = (
    "ticket.safetensors",
    "compact.safetensors",
    "history.csv",
    "distances.csv",
)
"""What a run of one ticket writes for a seed."""
RETRAIN_FILES = ("compact.safetensors", "history.csv", "metrics.json")


@dataclass(frozen=True)
class Run:
    """What one seed gave.

    Attributes:
        metrics: its entry in the record.
        ticket: the ticket; None where nothing could be removed.
        model: the compact model.
        graph: the compact graph.
        history: one row per epoch and phase.
        tables: what else is written, rows by file: of ``distances.csv`` the distances
            of the masks of every pair of the search's epochs.
    """

    metrics: Measured
    ticket: Ticket | None
    model: nn.Module
    graph: Graph
    history: Sequence[Mapping[str, Any]]
    tables: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write ticket, compact model, epochs, and the tables that have rows.

        Of ranks that share a graph each writes what it holds, the first all else.
        """
        path = folder / "ticket.safetensors"
        if self.ticket is not None:
            self.ticket.save(path)
        elif self.graph.world.rank == 0:  # of an earlier seed, the best until now
            path.unlink(missing_ok=True)
        save_compact(folder / "compact.safetensors", self.model, self.graph)
        if self.graph.world.rank:
            return
        write_csv(folder / "history.csv", self.history)
        for name, rows in self.tables.items():
            if rows:
                write_csv(folder / name, rows)


def run_seed(
    graph: Graph,
    task: Task,
    options: Options,
    seed: int,
    on_epoch: OnEpoch | None = None,
) -> Run:
    """Train dense, draw the joint ticket, retrain it, compact it, measure both.

    Args:
        graph: prepared for the task, see `prepare`.
        task: what is learned.
        options: of the run.
        seed: of weights and dropout.
        on_epoch: called with the phase and each of its epochs.
    """
    recorder = Recorder(on_epoch)
    recipe = options.recipe
    with peak_memory(graph.adjacency.device) as peak:
        # Untimed: with its first optimiser torch imports its compiler, over a second.
        train(new_model(graph, recipe, task, seed), graph, epochs=1, task=task)
        dense = new_model(graph, recipe, task, seed)
        with recorder.phase("dense") as hook:
            given: Any = {"fit": recipe.fit, "seed": seed, "task": task}
            training = train(dense, graph, on_epoch=hook, **given)
        model = new_model(graph, recipe, task, seed)
        with recorder.phase("search") as hook:
            ticket, model, pairs = search(model, graph, task, options, seed, hook)
        beside = dense, scores_of(training.val, dense, graph, task)
        run = retrain(ticket, model, graph, task, recipe.fit.epochs, recorder, beside)
    metrics = replace(run.metrics, peak_mib=peak[0])
    return replace(run, metrics=metrics, tables={"distances.csv": pairs})


def search(
    model: nn.Module,
    graph: Graph,
    task: Task,
    options: Options,
    seed: int,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> tuple[Ticket, nn.Module, list[dict[str, Any]]]:
    """`find_ticket` with the options of a run, or of a supernet `find_super_ticket`.

    Returns:
        The ticket, the model that it is of, and the distances of its masks.
    """
    recipe = options.recipe
    if isinstance(model, SuperGNN):
        return *_search_supernet(model, graph, task, options, seed, on_epoch), []
    detector = options.detector()
    ticket = find_ticket(
        model,
        graph,
        graph_ratio=options.graph_ratio,
        weight_ratio=options.weight_ratio,
        detector=detector,
        criterion=options.criterion,
        parts=options.parts,
        unit=options.unit,
        precision=options.precision,
        fit=recipe.fit,
        scope=recipe.scope,
        seed=seed,
        task=task,
        on_epoch=on_epoch,
    )
    return ticket, model, detector.pairs()


def _search_supernet(
    model: SuperGNN,
    graph: Graph,
    task: Task,
    options: Options,
    seed: int,
    on_epoch: Callable[[Epoch], None] | None,
) -> tuple[Ticket, nn.Module]:
    groups: list[Group] = []
    if ratio := options.graph_ratio:
        learned = options.criterion == "learned"
        groups.append(
            GraphSparsifier(graph, seed, prune_ratio=ratio)
            if learned
            else links_by(options.criterion, graph, model, ratio, seed, task)
        )
    small, ticket = find_super_ticket(
        *(model, graph),
        weight_ratio=options.weight_ratio,
        scope=options.recipe.scope,
        groups=groups,
        fit=options.recipe.fit,
        seed=seed,
        task=task,
        on_epoch=on_epoch,
    )
    return ticket, small


def retrain(
    ticket: Ticket,
    model: nn.Module,
    graph: Graph,
    task: Task,
    epochs: int,
    recorder: Recorder,
    dense: tuple[nn.Module, Scores] | None = None,
) -> Run:
    """Retrain a ticket with inherited weights as it was searched, compact and measure.

    The MACs by the paper's convention are those before compaction, with every feature
    still there.

    Args:
        ticket: drawn for the model on the graph.
        model: as the ticket's; its weights change.
        graph: prepared for the task.
        task: what is learned.
        epochs: of retraining.
        recorder: of all that was trained.
        dense: the dense model and its scores, to be measured beside the ticket.
    """
    with peak_memory(graph.adjacency.device) as peak:
        with recorder.phase("retrain") as hook:
            small: Graph = ticket.open(model, graph)
            drawn = describe(ticket, model)
            if ticket.channel_masks and not ticket.weight_masks:
                model, small = ticket.slim(model, small)
            training = train(
                model,
                small,
                fit=replace(Fit.from_dict(ticket.options), epochs=epochs),
                seed=ticket.seed,
                task=task,
                on_epoch=hook,
            )
        scores = scores_of(training.val, model, small, task)
        found = compact(model, small)
        sides = {"dense": (dense[0], graph)} if dense else {}
        uncompacted = {**sides, "ticket": (model, small)}
        sides["ticket"] = found
        times = dict(zip(sides, latencies([*sides.values()]), strict=True))
    metrics = Measured(
        ticket.seed,
        dense[1] if dense else None,
        drawn,
        scores,
        Phases(**recorder.seconds),
        Phases(**recorder.cpu_seconds),
        Sides(**times),
        macs_of(sides, uncompacted),
        peak[0],
        absolute_error=errors_of(uncompacted, task),
    )
    return Run(metrics, ticket, *found, recorder.rows)


def scores_of(val: float, model: nn.Module, graph: Graph, task: Task) -> Scores:
    """A validation score, and the model's on the test part; None for NaN."""
    test = evaluate(model, graph, "test", task=task)
    return Scores(*(None if math.isnan(s) else s for s in (val, test)))


Pairs = Mapping[str, tuple[nn.Module, Graph]]


def macs_of(sides: Pairs, uncompacted: Pairs) -> Macs:
    """Of each side's model on its graph; the paper's before compaction."""
    return Macs(
        Sides(**{side: paper_macs(*pair) for side, pair in uncompacted.items()}),
        Sides(**{side: executed_macs(*pair) for side, pair in sides.items()}),
    )


def errors_of(sides: Pairs, task: Task) -> Sides | None:
    """Each side's absolute error on its graph; None where classes have no order."""
    if not isinstance(task, InOrder):
        return None
    found = {s: absolute_error(*pair, task=task) for s, pair in sides.items()}
    return Sides(**{s: None if math.isnan(e) else e for s, e in found.items()})


def describe(ticket: Ticket, model: nn.Module) -> Drawn:
    """The ticket's part of the record; the model as the ticket's."""
    weights = kept = num_weights(model)
    if ticket.channel_masks:
        kept = num_weights(drop_channels(model, ticket.channel_masks))
    return Drawn(
        epoch=ticket.epoch,
        settled=ticket.settled,
        links_kept=ticket.links_kept,
        links=ticket.num_links,
        weights_kept=ticket.weights_kept if ticket.weight_masks else kept,
        weights=weights,
    )


def num_weights(model: nn.Module) -> int:
    """How many weights of a model can be pruned."""
    return sum(weight.numel() for weight in prunable_weights(model).values())


def run_seeds(
    graph: Graph,
    task: Task,
    options: Options,
    seeds: range,
    folder: Path,
    on_epoch: OnEpoch | None = None,
    *,
    splits: Sequence[Graph] = (),
) -> Record:
    """`run_seed` for some seeds; what `gebt run` writes is whole after each.

    Args:
        graph: prepared for the task.
        task: what is learned.
        options: of the runs.
        seeds: to run, at least one.
        folder: for metrics.json, the best run's files and, where there are several
            seeds, every run's in ``seed-N/``.
        on_epoch: called with the phase and each of its epochs.
        splits: the graph with another split for each seed, its first, second, ...; by
            default all seeds have the graph's own.
    """

    def one(at: Graph, seed: int) -> Run:
        return run_seed(at, task, options, seed, on_epoch)

    return run_each(graph, task, options.record(), seeds, folder, one, splits)


def run_each(
    graph: Graph,
    task: Task,
    options: Mapping[str, Any],
    seeds: range,
    folder: Path,
    one: Callable[[Graph, int], Run],
    splits: Sequence[Graph] = (),
) -> Record:
    """Run some seeds; what is written is whole after each.

    With `checkpoints` that were there, those that the record in the folder has are not
    run again.

    Args:
        graph: prepared for the task.
        task: what is learned.
        options: what was asked for, numbers and names.
        seeds: to run, at least one.
        folder: for metrics.json, the best run's files and, where there are several
            seeds, every run's in ``seed-N/``.
        one: what a seed on a graph gives.
        splits: the graph with another split for each seed, see `run_seeds`.
    """
    journal = current()
    asked = {**options, "seed": seeds.start, "seeds": len(seeds)}
    if splits:
        asked["splits"] = len(splits)
    done: list[Measured] = []
    if journal is not None and journal.resumed and (folder / RECORD).is_file():
        done += read_record(folder).runs
    for place, seed in enumerate(seeds):
        if place < len(done):
            continue
        with part(f"seed-{seed}"):
            run = one(splits[place] if splits else graph, seed)
            if splits:
                run = replace(run, metrics=replace(run.metrics, split=place))
            done.append(run.metrics)
            if len(seeds) > 1:
                run.save(folder / f"seed-{seed}")
            record = collect(graph, task, asked, done)
            if record.best == place:
                run.save(folder)
            if graph.world.rank == 0:
                record.write(folder)
    return collect(graph, task, asked, done)


def collect(
    graph: Graph, task: Task, options: Mapping[str, Any], runs: Sequence[Measured]
) -> Record:
    """The record of some runs, at least one.

    Args:
        graph: of the runs.
        task: what was learned.
        options: what was asked for, numbers and names.
        runs: those that are done.
    """
    names = graph.name, task.name, task.metric(graph)
    return Record(*names, options, provenance(), tuple(runs))


def retrain_alone(
    ticket: Ticket,
    file: str,
    model: nn.Module,
    graph: Graph,
    task: Task,
    epochs: int,
    folder: Path,
    on_epoch: OnEpoch | None = None,
) -> Record:
    """`retrain` a ticket of a file, and write `RETRAIN_FILES`."""
    # Untimed: with its first optimiser torch imports its compiler, over a second.
    train(deepcopy(model), graph, epochs=1, task=task)
    run = retrain(ticket, model, graph, task, epochs, Recorder(on_epoch))
    save_compact(folder / "compact.safetensors", run.model, run.graph)
    asked = {
        "model": ticket.model["class"],
        **replace(Fit.from_dict(ticket.options), epochs=epochs).to_dict(),
        **{name: ticket.options[name] for name in ("graph_ratio", "weight_ratio")},
        "ticket": file,
        "seed": ticket.seed,
        "seeds": 1,
    }
    record = collect(graph, task, asked, [run.metrics])
    if graph.world.rank == 0:
        write_csv(folder / "history.csv", run.history)
        record.write(folder)
    return record
