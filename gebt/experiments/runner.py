"""The paper's experiments with baselines, over seeds, resumable: `gebt reproduce`.

An experiment is a list of jobs; a job is one method on one graph with one seed, and
gives one row per trained model. Jobs run in parallel processes. After each the tables
are written whole, so that what is killed loses only the jobs in flight.
"""

import csv
import multiprocessing
import os
import re
import signal
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from gebt._provenance import cores, provenance
from gebt._registry import EXPERIMENTS, MODELS
from gebt.datasets import load
from gebt.datasets.catalogue import splits_of
from gebt.deploy.compaction import compact
from gebt.deploy.cost import executed_macs, latencies, paper_macs
from gebt.experiments.many_tasks import many_tasks
from gebt.experiments.methods import (
    METHODS,
    TICKET_BY,
    Method,
    Outcome,
    Setting,
    ticket_by,
)
from gebt.experiments.record import facts
from gebt.experiments.studies import STUDIES, VARIANTS
from gebt.files import Fields, read_json, shown, write_csv, write_json
from gebt.graph import Graph
from gebt.learn.ordinal import InOrder
from gebt.learn.tasks import prepare, task_for
from gebt.learn.training import absolute_error, evaluate, new_model, train
from gebt.prune.detector import MaskDistanceDetector
from gebt.prune.weights import prunable_weights
from gebt.report.page import Figure, Table
from gebt.tickets.recording import RecordingDetector
from gebt.tickets.search import FROZEN_THRESHOLD

Row = dict[str, Any]
Tables = dict[str, list[Row]]


@dataclass(frozen=True)
class Job:
    """One method on one graph with one seed.

    Attributes:
        dataset: the graph's name.
        model: the recipe's name; of those in `VARIANTS`, too.
        method: one of `METHODS` or `STUDIES`; `TICKET_BY` and a criterion; or
            ``"distances"``, which trains nothing but records every mask of a search of
            100 epochs; or ``"tasks"``, see `gebt.experiments.many_tasks`.
        graph_ratio: share of links to remove.
        weight_ratio: share of weights to remove.
        seed: of everything.
        draw: epoch to draw the ticket at; None where the detector decides.
        watch: the group that the detector watches; None for both.
    """

    dataset: str
    model: str
    method: str
    graph_ratio: float
    weight_ratio: float
    seed: int
    draw: int | None = None
    watch: str | None = None

    @classmethod
    def dense(cls, dataset: str, seed: int, model: str = "gcn") -> "Job":
        """The unpruned model, for comparison."""
        return cls(dataset, model, "dense", 0.0, 0.0, seed)

    @property
    def key(self) -> tuple[str, ...]:
        """Its columns as they stand in a CSV."""
        return tuple("" if v is None else str(v) for v in asdict(self).values())


KEY = tuple(Job.__dataclass_fields__)
_DONE = ("stops", "tasks", "runs")  # a job that has rows in one of these is done
TABLES = ("trajectories", "matrix", "links", *_DONE)
"""Every table, in the order they are written in: those that say what is done last."""


@dataclass(frozen=True)
class Experiment:
    """What `gebt reproduce` can run: a file that registers it, `gebt._registry`.

    Attributes:
        name: on the command line.
        about: what it shows.
        how: what is trained and scored, on its page.
        jobs: its jobs for one graph and one seed.
        page: what was found on one graph, from the tables' rows of it.
        graphs: what it runs on, unless it is told.
    """

    name: str
    about: str
    how: str
    jobs: Callable[[str, int], list[Job]]
    page: Callable[[str, "Tables"], Iterator[Table | Figure | str]]
    graphs: Sequence[str] = ("cora", "citeseer")


def register(experiment: Experiment) -> None:
    """Let `gebt reproduce` find an experiment; its module calls this when imported."""
    EXPERIMENTS.add(experiment.name, experiment, experiment.jobs.__module__)


def reproduce(
    experiment: Experiment,
    folder: Path,
    *,
    graphs: Sequence[str],
    seeds: int,
    quick: bool = False,
    changes: Mapping[str, Any] | None = None,
    root: str | Path | None = None,
    workers: int | None = None,
    on_done: Callable[[int, int], None] | None = None,
) -> Tables:
    """Run an experiment; go on where an earlier call in that folder stopped.

    Args:
        experiment: what to run.
        folder: where tables are written, ``runs.csv`` foremost, one row per model.
        graphs: names for `load`.
        seeds: how many, from 0; where a graph has several splits, and the name does
            not say which, each seed has another.
        quick: 20 epochs at most, to see that all works; the figures mean nothing.
        changes: of the recipes, see `Recipe.changed`.
        root: of the datasets.
        workers: parallel processes; by default as many as there are cores.
        on_done: called with how many jobs are done and how many there are.

    Returns:
        The tables' rows.

    Raises:
        ValueError: if the folder holds another experiment, or a job fails.
    """
    # Loaded here first: a wrong name fails at once, a download is done once.
    loaded = (load(graph, root) for graph in graphs)
    prints = {graph.name: graph.fingerprint() for graph in loaded}
    names = [*prints]
    jobs = [j for g in names for s in range(seeds) for j in experiment.jobs(g, s)]
    options: dict[str, Any] = {"experiment": experiment.name, "quick": quick}
    options["changes"] = dict(changes or {})
    before = read_about(folder)
    tables = _earlier(before, folder, options, prints)
    done = {_key(row) for table in _DONE for row in tables.get(table, [])}
    for table, rows in tables.items():
        tables[table] = [row for row in rows if _key(row) in done]
    order = {job.key: place for place, job in enumerate(jobs)}
    missing = [job for job in jobs if job.key not in done]
    finished = len(jobs) - len(missing)
    if on_done:
        on_done(finished, len(jobs))
    workers = min(workers or cores(), max(1, len(missing)))
    about = {"format": 1, **options, "graphs": names, "seeds": seeds}
    about["fingerprints"] = prints
    about["provenance"] = {**provenance(), "threads": 1, "workers": workers}
    if before:  # rows of an earlier call may be another machine's
        about["fingerprints"] = _fingerprints(before) | prints
        earlier = before.content.get("earlier") or []
        about["earlier"] = [*earlier, facts(before, source_of(before))]
    write_json(folder / "experiment.json", about)
    given = str(root) if root else None, quick, options["changes"]
    work = [(job, *given) for job in missing]
    with _results(workers, work) as results:
        for found in results:
            for table in (t for t in TABLES if t in found or t in tables):
                rows = tables.setdefault(table, [])
                rows.extend(_as_read(found.get(table, [])))
                rows.sort(key=lambda row: order.get(_key(row), len(order)))
                if rows:
                    write_csv(folder / f"{table}.csv", rows)
            finished += 1
            if on_done:
                on_done(finished, len(jobs))
    wanted = set(order)
    return {
        table: [row for row in rows if _key(row) in wanted]
        for table, rows in tables.items()
    }


def _key(row: Row) -> tuple[str, ...]:
    return tuple(row[column] for column in KEY)


def read_tables(folder: Path) -> Tables:
    """The tables of an experiment's folder, every cell as text.

    Raises:
        ValueError: if a table is none that gebt writes: names file, line and column.
    """
    paths = {name: folder / f"{name}.csv" for name in TABLES}
    there = {name: path for name, path in paths.items() if path.is_file()}
    return {name: read_table(path, columns_of(name)) for name, path in there.items()}


def columns_of(table: str) -> tuple[str, ...]:
    """Those that one of `TABLES` must have; of any other none."""
    return (*KEY, *_NEEDED[table]) if table in TABLES else ()


def read_table(path: Path, needed: Sequence[str]) -> list[Row]:
    """The rows of a table that gebt wrote, every cell as text, and one that it may be.

    Args:
        path: of the file.
        needed: columns that it must have.

    Raises:
        ValueError: naming the file, and the columns it lacks or the line, the column
            and the cell.
    """
    none = f"{path} is not a table that gebt writes"
    again = "Delete it to have it written again."
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, strict=True)
            columns = reader.fieldnames or ()
            rows = list(reader)
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{none}: {error}. {again}") from error
    if missing := [column for column in needed if column not in columns]:
        raise ValueError(f"{none}: it lacks the columns {', '.join(missing)}. {again}")
    for line, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise ValueError(
                f"{none}: line {line} is not as long as the first. {again}"
            )
    cells = dict(_CELLS)
    if "distance" in columns:  # of an epoch; a model may have been drawn at none
        cells["epoch"] = cells["other"]
    for column in columns:
        holds, rule = cells.get(column, (None, ""))
        wrong = {c for c in {row[column] for row in rows} if holds and not holds(c)}
        for line, row in enumerate(rows, start=2):
            if row[column] in wrong:
                raise ValueError(
                    f"{none}: in line {line} `{column}` must be {rule}, got "
                    f"{shown(row[column])}. {again}"
                )
    return rows


def _cell(
    kind: Callable[[str], float], low: float, high: float, *others: str
) -> Callable[[str], bool]:
    """Whether a text is a number within bounds, or one of the others."""

    def holds(text: str) -> bool:
        try:
            return text in others or low <= kind(text) <= high
        except ValueError:
            return False

    return holds


_NAME = re.compile(r"[\w.:=,+ -]{1,200}")
_PATH = re.compile(r"[^\x00-\x1f$]{1,1000}")  # a graph's name may be one


def _cells() -> dict[str, tuple[Callable[[str], bool], str]]:
    most = 2.0**63
    name = (lambda text: bool(_NAME.fullmatch(text))), "a name"
    share = _cell(float, 0, 1), "a number from 0 to 1"
    seed = _cell(int, 0, most), "a whole number"
    epoch = _cell(int, 1, most), "a whole number, at least 1"
    epoch_or_none = _cell(int, 1, most, ""), "a whole number, at least 1, or empty"
    score = _cell(float, 0, 100, "", "nan"), "a number from 0 to 100, nan or empty"
    time = _cell(float, 1e-9, 1e12), "a number above 0"
    time_or_none = _cell(float, 1e-9, 1e12, ""), "a number above 0, or empty"
    return {
        "dataset": ((lambda text: bool(_PATH.fullmatch(text))), "a name or path"),
        **dict.fromkeys(("model", "method", "links", "group", "way"), name),
        **dict.fromkeys(("graph_ratio", "weight_ratio", "unit_ratio"), share),
        **dict.fromkeys(("ms", "reference_ms"), time_or_none),
        "seed": seed,
        **dict.fromkeys(("draw", "epoch"), epoch_or_none),
        "other": epoch,
        "watch": (("", "graph", "weights").__contains__, "graph, weights or empty"),
        "settled": (("True", "False", "").__contains__, "True, False or empty"),
        **dict.fromkeys(("val", "test", "retrained"), score),
        "task": epoch,
        "bytes": (_cell(int, 0, most), "a whole number"),
        "dense": (_cell(float, 0, 100, "nan"), "a number from 0 to 100, or nan"),
        "at_end": (_cell(float, 0, 100), "a number from 0 to 100"),
        "share": share,
        **dict.fromkeys(
            ("macs_paper", "macs_executed"),
            (_cell(float, 0, 1e30, ""), "a number, at least 0, or empty"),
        ),
        "macs_training": (_cell(float, 0, 1e30), "a number, at least 0"),
        **dict.fromkeys(("inference_ms", "dense_ms"), time),
        "absolute_error": (_cell(float, 0, 1e12), "a number, at least 0"),
        "cpu_seconds": (_cell(float, 0, 1e12), "a number, at least 0"),
        "distance": (_cell(float, 0, 1e12), "a number, at least 0"),
        **dict.fromkeys(("stop_graph", "stop_weights", "stop_joint"), epoch_or_none),
    }


_CELLS = _cells()
"""By column what its cells may be, of those that pages are made of."""
_NEEDED = {
    "trajectories": ("group", "epoch", "distance"),
    "matrix": ("group", "epoch", "other", "distance"),
    "links": ("links", "share", "val", "test", "dense", "cpu_seconds"),
    "stops": ("stop_graph", "stop_weights", "stop_joint"),
    "tasks": ("way", "task", "val", "test", "at_end", "bytes", "cpu_seconds"),
    "runs": (
        *("links", "epoch", "settled", "val", "test"),
        *("macs_paper", "macs_executed", "macs_training"),
        *("inference_ms", "dense_ms", "cpu_seconds"),
    ),
}


def read_about(folder: Path) -> Fields | None:
    """The checked record of an experiment; None where there is none.

    Raises:
        ValueError: if it is not whole, or of no known experiment.
    """
    path = folder / "experiment.json"
    if not path.is_file():
        return None
    about = read_json(path, "record of an experiment")
    EXPERIMENTS.check(about.text("experiment"))
    about.flag("quick")
    facts(about, source_of(about))
    if "seeds" in about:
        about.whole("seeds", 1)
    if "earlier" in about:
        about.each("earlier")
    return about


def source_of(about: Fields) -> str:
    """The field that says where an experiment is from; gebt 0.1 had another."""
    return "provenance" if "provenance" in about else "machine"


def _earlier(
    about: Fields | None,
    folder: Path,
    options: Mapping[str, Any],
    prints: Mapping[str, str],
) -> Tables:
    if about is None:
        return {}
    for option, value in options.items():
        before = about.content.get(option, {})  # older files know no changes
        if before != value:
            raise ValueError(
                f"{folder} holds {option} = {shown(before)}, this is {value!r}. Choose "
                "another folder."
            )
    then = _fingerprints(about)
    for name, fingerprint in prints.items():
        if then.get(name, fingerprint) != fingerprint:
            raise ValueError(
                f"the graph {name} is not what it was when {folder} was begun. Bring "
                "it back, or choose another folder."
            )
    return read_tables(folder)


def _fingerprints(about: Fields) -> dict[str, Any]:
    """Those of an experiment's graphs, by name; older files have none."""
    found = about.content.get("fingerprints")
    return found if isinstance(found, dict) else {}


def _as_read(rows: Sequence[Row]) -> list[Row]:
    """As they will be read back, so that a resumed run equals an unbroken one."""
    return [{c: "" if v is None else str(v) for c, v in r.items()} for r in rows]


Work = tuple[Job, str | None, bool, Mapping[str, Any]]
"""A job, the root of the datasets, whether it shall be quick, a recipe's changes."""


@contextmanager
def _results(workers: int, work: Sequence[Work]) -> Iterator[Iterator[Tables]]:
    """What jobs give, in the order in which they finish, from parallel processes."""
    if not work:
        yield iter(())
        return
    # One thread each, from the start: OpenMP reads the variable when it is loaded.
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        others = set(multiprocessing.active_children())
        with multiprocessing.get_context("spawn").Pool(workers, _start) as pool:
            started = set(multiprocessing.active_children()) - others
            yield _watched(pool.imap_unordered(_run, work), started)
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def _start() -> None:
    """Set up a process of the pool."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
    torch.set_num_threads(1)


def _watched(results: Any, processes: Iterable[Any]) -> Iterator[Tables]:
    """Results as they come; a pool by itself waits forever for a process that died."""
    while True:
        try:
            yield results.next(timeout=1)
        except multiprocessing.TimeoutError:
            if any(not process.is_alive() for process in processes):
                raise OSError(
                    "a process died, perhaps for want of memory. The runs that were "
                    "finished are kept: resume."
                ) from None
        except StopIteration:
            return


@lru_cache(maxsize=4)
def _load(name: str, root: str | None, split: int | None) -> Graph:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # which each process would say again
        graph = load(name, root, split=split)
    task = task_for(graph)
    graph = prepare(graph, task)
    # Untimed: with its first optimiser torch imports its compiler, over a second.
    model = new_model(graph, MODELS["gcn"], task, seed=0)
    train(model, graph, epochs=1, task=task)
    return graph


def _split(job: Job) -> int | None:
    """Which split a job has; None where there is but one, or the name says it."""
    splits = splits_of(job.dataset)
    return job.seed % splits if splits > 1 else None


def _run(work: Work) -> Tables:
    """One job, in a process of its own."""
    job, root, quick, changes = work
    graph = _load(job.dataset, root, _split(job))
    recipe = (VARIANTS.get(job.model) or MODELS.find(job.model)).changed(**changes)
    if quick:
        recipe = replace(
            recipe, fit=replace(recipe.fit, epochs=min(20, recipe.fit.epochs))
        )
    setting = Setting(
        graph,
        task_for(graph),
        recipe,
        job.graph_ratio,
        job.weight_ratio,
        job.seed,
        min(job.draw, 20) if quick and job.draw else job.draw,
        job.watch,
        quick,
    )
    try:
        if job.method == "distances":
            return _distances(job, setting)
        if job.method == "tasks":
            return {"tasks": [{**asdict(job), **row} for row in many_tasks(setting)]}
        runs, beside = [], []
        for outcome in _method(job.method)(setting):
            runs.append(_row(job, setting, outcome))
            beside += [{**asdict(job), **row} for row in outcome.beside]
    except ValueError as error:
        raise ValueError(f"{job}: {error}") from error
    return {"links": beside, "runs": runs} if beside else {"runs": runs}


def _method(name: str) -> Method:
    if name.startswith(TICKET_BY):
        return partial(ticket_by, criterion=name.removeprefix(TICKET_BY))
    return {**METHODS, **STUDIES}[name]


def _row(job: Job, setting: Setting, outcome: Outcome) -> Row:
    model, graph, ticket = outcome.model, outcome.graph, outcome.ticket
    drawn, task = ticket or outcome.drawn, outcome.task or setting.task
    setting = replace(setting, task=task)
    test = evaluate(model, graph, "test", task=task)
    error: Row = {}
    if isinstance(task, InOrder):
        error["absolute_error"] = round(absolute_error(model, graph, task=task), 4)
    fast, small = compact(model, graph)
    pairs = [(setting.model(), setting.graph), (fast, small)]
    dense_ms, ms = latencies(pairs, repeats=3 if setting.quick else 50)
    kept = sum(int(w.count_nonzero()) for w in prunable_weights(model).values())
    spent = [(setting.graph, outcome.full_epochs), *outcome.rounds]
    macs = sum(epochs * _epoch_macs(setting, at) for at, epochs in spent if epochs)
    if outcome.epochs:
        macs += outcome.epochs * _epoch_macs(setting, graph, model=deepcopy(model))
    if outcome.frozen_epochs:
        macs += outcome.frozen_epochs * _epoch_macs(setting, setting.graph, frozen=True)
    return {
        **asdict(job),
        "links": outcome.links,
        "epoch": drawn.epoch if drawn else None,
        "settled": drawn.settled if drawn else None,
        "untouched": round(ticket.share_untouched, 4) if ticket else None,
        "val": round(outcome.val, 3),
        "test": round(test, 3),
        "links_kept": graph.links_kept,
        "weights_kept": kept,
        "macs_paper": paper_macs(model, graph),
        "macs_executed": executed_macs(fast, small),
        "macs_training": macs,
        "inference_ms": round(ms, 4),
        "dense_ms": round(dense_ms, 4),
        "cpu_seconds": round(outcome.seconds, 3),
        **error,
    }


def _epoch_macs(
    setting: Setting,
    graph: Graph,
    *,
    model: nn.Module | None = None,
    frozen: bool = False,
) -> int:
    """MACs of one training epoch with its validation; of a search if ``frozen``."""
    model = model or setting.model()
    with FlopCounterMode(display=False) as counter:
        if frozen:
            one = replace(setting, draw=1, weight_ratio=0.0)
            one.search(model, update_weights=False)
        else:
            train(model, graph, epochs=1, task=setting.task)
    return counter.get_total_flops() // 2


def _distances(job: Job, setting: Setting) -> Tables:
    """Mask distances of a whole search: epoch by epoch, and of all pairs."""
    model = setting.model()
    frozen = not setting.weight_ratio  # Algorithm 1: for a pretrained model
    detector = RecordingDetector(warmup=setting.recipe.fit.epochs)
    options: dict[str, Any] = {"detector": detector, "update_weights": not frozen}
    if frozen:
        setting.train(model, setting.graph)
    setting.search(model, **options)
    head = asdict(job)
    trajectories = [
        {**head, "group": group, "epoch": reading.epoch, "distance": round(distance, 5)}
        for reading in detector.history[1:]
        for group, distance in reading.distances.items()
    ]
    matrix = []
    if job.seed == 0:
        matrix = [{**head, **pair} for pair in detector.pairs()]
    stops = {
        f"stop_{watch or 'joint'}": _stop(
            detector, watch, FROZEN_THRESHOLD if frozen else 0.1
        )
        for watch in ("graph", "weights", None)
    }
    # The table that says what is done comes last.
    return {
        "trajectories": trajectories,
        "matrix": matrix,
        "stops": [{**head, **stops}],
    }


def _stop(
    recorded: MaskDistanceDetector, watch: str | None, threshold: float
) -> int | None:
    """The first epoch at which the detector's rule would have stopped."""
    window = recorded.window
    for reading in recorded.history[window:]:
        distances = reading.distances
        if watch is not None and watch not in distances:
            return None
        if (distances[watch] if watch else reading.joint) < threshold:
            return reading.epoch
    return None
