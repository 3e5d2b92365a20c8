"""Dense model, joint ticket, retraining, compaction and cost: one seed of it all."""

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gebt._checks import check_ratio
from gebt.deploy.compaction import compact, save_compact
from gebt.deploy.cost import executed_macs, latencies, paper_macs, peak_memory
from gebt.files import write_csv
from gebt.graph import Graph, LinkSplit
from gebt.learn.tasks import LinkPrediction, Task
from gebt.learn.training import Epoch, Training, evaluate, train
from gebt.models.recipes import RECIPES, Recipe
from gebt.options import Fit
from gebt.prune.weights import prunable_weights
from gebt.randomness import Draws
from gebt.report.comparison import deviation
from gebt.tickets.recording import RecordingDetector
from gebt.tickets.search import find_ticket
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
    """

    recipe: Recipe = RECIPES["gcn"]
    graph_ratio: float = 0.2
    weight_ratio: float = 0.9
    threshold: float = 0.1
    window: int = 3

    def __post_init__(self) -> None:
        check_ratio("graph_ratio", self.graph_ratio)
        check_ratio("weight_ratio", self.weight_ratio)
        self.detector()

    def detector(self) -> RecordingDetector:
        """A new detector."""
        return RecordingDetector(self.threshold, self.window)

    def record(self) -> dict[str, Any]:
        """As numbers and names, for metrics.json."""
        return {
            name: value
            for name, value in {
                **vars(self.recipe),
                **vars(self),
                **self.recipe.fit.to_dict(),
            }.items()
            if isinstance(value, int | float | str) and name not in ("about", "source")
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
        _wait()
        wall, cpu = time.perf_counter(), time.process_time()
        yield self._record
        _wait()
        self.seconds[name] = time.perf_counter() - wall
        self.cpu_seconds[name] = time.process_time() - cpu

    def _record(self, epoch: Epoch) -> None:
        distances = {
            f"distance_{group}": epoch.distances.get(group, "")
            for group in ("graph", "weights", "joint")
        }
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


def _wait() -> None:
    """Until a GPU, if one is in use, has done what it was given."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


RUN_FILES = (
    "ticket.safetensors",
    "compact.safetensors",
    "history.csv",
    "distances.csv",
)
"""What `Run.save` writes."""


@dataclass(frozen=True)
class Run:
    """What one seed gave.

    Attributes:
        metrics: one entry of ``runs`` in metrics.json.
        ticket: the ticket.
        model: the compact model.
        graph: the compact graph.
        history: one row per epoch and phase.
        distances: of the masks of every pair of the search's epochs.
    """

    metrics: dict[str, Any]
    ticket: Ticket
    model: nn.Module
    graph: Graph
    history: Sequence[Mapping[str, Any]]
    distances: Sequence[Mapping[str, Any]]

    def save(self, folder: Path) -> None:
        """Write `RUN_FILES`: ticket, compact model, epochs, and distances if any."""
        self.ticket.save(folder / "ticket.safetensors")
        save_compact(folder / "compact.safetensors", self.model, self.graph)
        write_csv(folder / "history.csv", self.history)
        if self.distances:
            write_csv(folder / "distances.csv", self.distances)


def prepare(graph: Graph, task: Task) -> Graph:
    """The graph that the task learns on: without its held-out links, if any."""
    if isinstance(task, LinkPrediction) and not isinstance(graph.split, LinkSplit):
        graph = graph.hold_out_links()
    task.check(graph)
    return graph


def new_model(graph: Graph, recipe: Recipe, task: Task, seed: int) -> nn.Module:
    """A model for a graph, initialised from a seed."""
    with Draws(seed).used():
        model = recipe.build(
            graph.num_features,
            recipe.hidden,
            task.num_outputs(graph),
            dropout=recipe.dropout,
        )
    return model.to(graph.adjacency.device)


def train_by(
    recipe: Recipe,
    model: nn.Module,
    graph: Graph,
    task: Task,
    seed: int,
    *,
    keep: Mapping[str, Tensor] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> Training:
    """`train` by a recipe."""
    return train(
        model,
        graph,
        keep=keep,
        fit=recipe.fit,
        seed=seed,
        task=task,
        on_epoch=on_epoch,
    )


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
            training = train_by(recipe, dense, graph, task, seed, on_epoch=hook)
        test = evaluate(dense, graph, "test", task=task)

        model = new_model(graph, recipe, task, seed)
        with recorder.phase("search") as hook:
            ticket, detector = search(model, graph, task, options, seed, hook)
        retrained = retrain(ticket, model, graph, task, recipe.fit.epochs, recorder)
        compared = [(dense, graph), (retrained.model, retrained.graph)]
        dense_ms, ticket_ms = latencies(compared)
    metrics = {
        "seed": seed,
        "dense": {"val": training.val, "test": test},
        "ticket": describe(ticket, model),
        "retrained": retrained.scores,
        "seconds": recorder.seconds,
        "cpu_seconds": recorder.cpu_seconds,
        "inference_ms": {"dense": dense_ms, "ticket": ticket_ms},
        "macs": {
            "paper": {
                "dense": paper_macs(dense, graph),
                "ticket": retrained.paper_macs,
            },
            "executed": {
                "dense": executed_macs(dense, graph),
                "ticket": executed_macs(retrained.model, retrained.graph),
            },
        },
        "peak_mib": peak[0],
    }
    found = retrained.model, retrained.graph
    return Run(metrics, ticket, *found, recorder.rows, detector.pairs())


def search(
    model: nn.Module,
    graph: Graph,
    task: Task,
    options: Options,
    seed: int,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> tuple[Ticket, RecordingDetector]:
    """`find_ticket` with the options of a run; also the detector, which kept masks."""
    recipe = options.recipe
    detector = options.detector()
    ticket = find_ticket(
        model,
        graph,
        graph_ratio=options.graph_ratio,
        weight_ratio=options.weight_ratio,
        detector=detector,
        fit=recipe.fit,
        scope=recipe.scope,
        seed=seed,
        task=task,
        on_epoch=on_epoch,
    )
    return ticket, detector


@dataclass(frozen=True)
class Retrained:
    """A retrained ticket: its scores and its compact form.

    The MACs by the paper's convention are those before compaction, with every feature
    still there.
    """

    scores: dict[str, float]
    model: nn.Module
    graph: Graph
    paper_macs: int | None


def retrain(
    ticket: Ticket,
    model: nn.Module,
    graph: Graph,
    task: Task,
    epochs: int,
    recorder: Recorder,
) -> Retrained:
    """Retrain a ticket with inherited weights as it was searched, and compact it."""
    with recorder.phase("retrain") as hook:
        small = ticket.open(model, graph)
        training = train(
            model,
            small,
            keep=ticket.weight_masks,
            fit=replace(Fit.from_dict(ticket.options), epochs=epochs),
            seed=ticket.seed,
            task=task,
            on_epoch=hook,
        )
    scores = {"val": training.val, "test": evaluate(model, small, "test", task=task)}
    return Retrained(scores, *compact(model, small), paper_macs(model, small))


def describe(ticket: Ticket, model: nn.Module) -> dict[str, Any]:
    """The ticket's part of the metrics."""
    weights = sum(w.numel() for w in prunable_weights(model).values())
    return {
        "epoch": ticket.epoch,
        "settled": ticket.settled,
        "links_kept": ticket.links_kept,
        "links": ticket.link_mask.numel(),
        "weights_kept": ticket.weights_kept if ticket.weight_masks else weights,
        "weights": weights,
    }


def collect(
    graph: Graph, task: Task, options: Options, runs: Sequence[Run], *, seeds: range
) -> dict[str, Any]:
    """The content of metrics.json.

    Args:
        graph: of the runs.
        task: what was learned.
        options: of the runs.
        runs: those that are done, at least one.
        seeds: all that were asked for.
    """
    entries = [run.metrics for run in runs]
    return {
        "dataset": graph.name,
        "task": task.name,
        "metric": task.metric(graph),
        "options": {**options.record(), "seed": seeds.start, "seeds": len(seeds)},
        "runs": entries,
        "summary": {
            "n": len(runs),
            "best_seed": best_run(runs).metrics["seed"],
            "mean": _combine(entries, statistics.fmean),
            "std": _combine(entries, deviation),
        },
    }


def best_run(runs: Sequence[Run]) -> Run:
    """The run whose retrained ticket validates best, the first of equals."""
    return max(runs, key=lambda run: run.metrics["retrained"]["val"])


def _combine(entries: Sequence[Any], by: Callable[[Sequence[float]], float]) -> Any:
    """Combine equal trees of numbers leaf by leaf; None where one is none."""
    first = entries[0]
    if isinstance(first, Mapping):
        keys = [key for key in first if key != "seed"]
        return {key: _combine([entry[key] for entry in entries], by) for key in keys}
    if any(entry is None or math.isnan(entry) for entry in entries):
        return None  # a model without paper MACs, a graph without test nodes
    return by([float(entry) for entry in entries])
