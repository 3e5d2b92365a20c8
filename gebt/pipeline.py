"""Dense model, joint ticket, retraining, compaction and cost: one seed of it all."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gebt.compaction import compact, save_compact
from gebt.cost import executed_macs, latencies, paper_macs, peak_memory
from gebt.detector import MaskDistanceDetector
from gebt.files import write_csv
from gebt.graph import Graph
from gebt.masks import check_ratio
from gebt.models import GCN
from gebt.pruner import prunable_weights
from gebt.search import find_ticket
from gebt.ticket import Ticket
from gebt.training import Epoch, check_epochs, evaluate, seeded, train

OnEpoch = Callable[[str, Epoch], None]


@dataclass(frozen=True)
class Options:
    """The options of `gebt run`.

    Attributes:
        graph_ratio: share of links to remove, in [0, 1).
        weight_ratio: share of weights to remove, in [0, 1).
        hidden: width of the hidden layer.
        epochs: epochs of dense training and of retraining; the search gets as many.
        threshold: of the detector.
        window: of the detector.
    """

    graph_ratio: float = 0.2
    weight_ratio: float = 0.9
    hidden: int = 16
    epochs: int = 100
    threshold: float = 0.1
    window: int = 3

    def __post_init__(self) -> None:
        check_ratio("graph_ratio", self.graph_ratio)
        check_ratio("weight_ratio", self.weight_ratio)
        if self.hidden < 1:
            raise ValueError(f"`hidden` must be at least 1, got {self.hidden}.")
        check_epochs(self.epochs)
        self.detector()

    def detector(self) -> MaskDistanceDetector:
        """A new detector."""
        return MaskDistanceDetector(self.threshold, self.window)


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
        wall, cpu = time.perf_counter(), time.process_time()
        yield self._record
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


@dataclass(frozen=True)
class Run:
    """What one seed gave.

    Attributes:
        metrics: one entry of ``runs`` in metrics.json.
        ticket: the ticket.
        model: the compact model.
        graph: the compact graph.
        history: one row per epoch and phase.
    """

    metrics: dict[str, Any]
    ticket: Ticket
    model: nn.Module
    graph: Graph
    history: Sequence[Mapping[str, Any]]

    def save(self, folder: Path) -> None:
        """Write ``ticket.safetensors``, ``compact.safetensors``, ``history.csv``."""
        self.ticket.save(folder / "ticket.safetensors")
        save_compact(folder / "compact.safetensors", self.model, self.graph)
        write_csv(folder / "history.csv", self.history)


def new_gcn(graph: Graph, hidden: int, seed: int) -> GCN:
    """A GCN for a graph, initialised from a seed."""
    with seeded(seed, torch.device("cpu")):
        model = GCN(graph.num_features, hidden, graph.num_classes)
    return model.to(graph.adjacency.device)


def run_seed(
    graph: Graph, options: Options, seed: int, on_epoch: OnEpoch | None = None
) -> Run:
    """Train dense, draw the joint ticket, retrain it, compact it, measure both."""
    recorder = Recorder(on_epoch)
    with peak_memory(graph.adjacency.device) as peak:
        # Untimed: with its first optimiser torch imports its compiler, over a second.
        train(new_gcn(graph, options.hidden, seed), graph, epochs=1)
        dense = new_gcn(graph, options.hidden, seed)
        with recorder.phase("dense") as hook:
            training = train(
                dense, graph, epochs=options.epochs, seed=seed, on_epoch=hook
            )
        dense_scores = {"val": training.val, "test": evaluate(dense, graph, "test")}

        model = new_gcn(graph, options.hidden, seed)
        with recorder.phase("search") as hook:
            ticket = search(model, graph, options, seed, hook)
        retrained = retrain(ticket, model, graph, options.epochs, recorder)
        compared = [(dense, graph), (retrained.model, retrained.graph)]
        dense_ms, ticket_ms = latencies(compared)
    metrics = {
        "seed": seed,
        "dense": dense_scores,
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
    return Run(metrics, ticket, retrained.model, retrained.graph, recorder.rows)


def search(
    model: nn.Module,
    graph: Graph,
    options: Options,
    seed: int,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> Ticket:
    """`find_ticket` with the options of a run."""
    return find_ticket(
        model,
        graph,
        graph_ratio=options.graph_ratio,
        weight_ratio=options.weight_ratio,
        detector=options.detector(),
        epochs=options.epochs,
        seed=seed,
        on_epoch=on_epoch,
    )


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
    ticket: Ticket, model: nn.Module, graph: Graph, epochs: int, recorder: Recorder
) -> Retrained:
    """Retrain a ticket with inherited weights and compact it."""
    with recorder.phase("retrain") as hook:
        small = ticket.open(model, graph)
        training = train(
            model,
            small,
            keep=ticket.weight_masks,
            epochs=epochs,
            seed=ticket.seed,
            on_epoch=hook,
        )
    scores = {"val": training.val, "test": evaluate(model, small, "test")}
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


def collect(dataset: str, options: Options, runs: Sequence[Run]) -> dict[str, Any]:
    """The content of metrics.json."""
    entries = [run.metrics for run in runs]
    return {
        "dataset": dataset,
        "options": asdict(options),
        "runs": entries,
        "summary": {
            "n": len(runs),
            "best_seed": best_run(runs).metrics["seed"],
            "mean": _combine(entries, statistics.fmean),
            "std": _combine(entries, _deviation),
        },
    }


def best_run(runs: Sequence[Run]) -> Run:
    """The run whose retrained ticket validates best, the first of equals."""
    return max(runs, key=lambda run: run.metrics["retrained"]["val"])


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _combine(entries: Sequence[Any], by: Callable[[Sequence[float]], float]) -> Any:
    """Combine equal trees of numbers leaf by leaf."""
    first = entries[0]
    if isinstance(first, Mapping):
        keys = [key for key in first if key != "seed"]
        return {key: _combine([entry[key] for entry in entries], by) for key in keys}
    return by([float(entry) for entry in entries])
