"""The record of a run, metrics.json: what it holds, written, read, and as a table."""

import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, get_args, get_type_hints

from gebt.files import Fields, read_json, write_json
from gebt.report.comparison import deviation, paired, seeds_of, spread
from gebt.report.page import Table

FILE = "metrics.json"
_FORMAT = 1
_NAME = re.compile(r"[\w@ -]{1,40}")
_ERRORS = "absolute_error.ticket", "absolute_error.dense"
T = TypeVar("T")


@dataclass(frozen=True)
class Scores:
    """Percent, at the best validation epoch; None without nodes to score."""

    val: float | None
    test: float | None


@dataclass(frozen=True)
class Drawn:
    """When a ticket was drawn, and what it keeps."""

    epoch: int
    settled: bool
    links_kept: int
    links: int
    weights_kept: int
    weights: int


@dataclass(frozen=True)
class Phases:
    """Seconds of each training."""

    dense: float | None = None
    search: float | None = None
    retrain: float | None = None


@dataclass(frozen=True)
class Sides:
    """A figure of the dense model and of the compact ticket."""

    dense: float | None = None
    ticket: float | None = None


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates of a forward, as the paper counts them and as executed."""

    paper: Sides | None
    executed: Sides | None


@dataclass(frozen=True)
class Measured:
    """What one seed gave; None is what was not measured.

    ``dense`` where a ticket alone was retrained, and what gebt 0.1 did not write.
    ``split`` is which of the graph's splits it had, where each seed had another;
    ``model`` which was chosen, where each seed chose. ``absolute_error`` is the mean on
    the test part, in classes, where these are in order.
    """

    seed: int | None
    dense: Scores | None
    ticket: Drawn
    retrained: Scores
    seconds: Phases | None
    cpu_seconds: Phases | None
    inference_ms: Sides | None
    macs: Macs | None
    peak_mib: float | None
    split: int | None = None
    model: str | None = None
    absolute_error: Sides | None = None

    def at(self, path: str) -> float | None:
        """A number by its place, such as ``"dense.test"``, if it was measured."""
        found: Any = self
        for name in path.split("."):
            found = None if found is None else getattr(found, name)
        return found


@dataclass(frozen=True)
class Record:
    """What `gebt run` or `gebt retrain` did and found.

    Attributes:
        dataset: the graph's name.
        task: the task's name.
        metric: what scores are.
        options: what was asked for, numbers and names; ``seeds`` is how many.
        provenance: see `gebt._provenance`.
        runs: one for each seed that is done, at least one.
    """

    dataset: str
    task: str
    metric: str
    options: Mapping[str, Any]
    provenance: Mapping[str, Any]
    runs: Sequence[Measured]

    @property
    def best(self) -> int:
        """The place of the run that validates best, the first of equals."""
        found = [run.at("retrained.val") for run in self.runs]
        return found.index(max(found, key=lambda val: -1 if val is None else val))

    @property
    def seeds(self) -> str:
        """How many seeds there are, of how many that were asked for; or splits."""
        text = seeds_of(len(self.runs), self.options.get("seeds", 0))
        return text.replace("seed", "split") if "splits" in self.options else text

    def column(self, path: str) -> dict[str, float]:
        """A number of each run that has it, by seed."""
        found = {str(run.seed): run.at(path) for run in self.runs}
        return {seed: value for seed, value in found.items() if value is not None}

    def write(self, folder: Path) -> None:
        """Write ``metrics.json``, with means over the seeds for who reads it bare."""
        content = asdict(self)
        summary = {
            "n": len(self.runs),
            "best_seed": self.runs[self.best].seed,
            "mean": _combine(content["runs"], statistics.fmean),
            "std": _combine(content["runs"], deviation),
        }
        write_json(folder / FILE, {"format": _FORMAT, **content, "summary": summary})


def _combine(entries: Sequence[Any], by: Callable[[Sequence[float]], float]) -> Any:
    """Combine equal trees of numbers leaf by leaf; None where one is none."""
    if any(entry is None for entry in entries):
        return None  # a model without paper MACs, a graph without test nodes
    if isinstance(entries[0], Mapping):
        keys = [key for key in entries[0] if key not in ("seed", "split", "model")]
        return {key: _combine([entry[key] for entry in entries], by) for key in keys}
    return by([float(entry) for entry in entries])


def read_record(folder: Path) -> Record:
    """The checked record in a folder; also as gebt 0.1 wrote it.

    That had no format, and for `gebt retrain` one run in the place of a list of them.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: naming the file, the field and the value that cannot be.
    """
    content = read_json(folder / FILE, "record of a run")
    if "format" in content and content.whole("format", 0) != _FORMAT:
        content.fail("format", f"{_FORMAT}, which this gebt reads")
    metric = content.text("metric")
    if not _NAME.fullmatch(metric):  # it stands in figures, which know markup
        content.fail("metric", "a short name")
    found = content.each("runs") if "runs" in content else [content]
    runs = tuple(_read(Measured, run) for run in found)
    if not runs:
        content.fail("runs", "a list of at least one run")
    if len({run.seed for run in runs}) < len(runs):
        content.fail("runs", "a list of runs of different seeds")
    options = facts(content, "options")
    if "seeds" in options:
        content.fields("options").whole("seeds", 1)
    names = content.text("dataset"), content.text("task"), metric
    return Record(*names, options, facts(content, "provenance"), runs)


def facts(record: Fields, name: str) -> dict[str, Any]:
    """An object of texts, numbers, flags and nulls; empty where there is none.

    Raises:
        ValueError: naming what is none of these.
    """
    if name not in record:
        return {}
    inside = record.fields(name)
    for key, value in inside.content.items():
        if not isinstance(value, str | bool | NoneType):
            inside.number(key)
    return inside.content


def _read(kind: type[T], record: Fields) -> T:
    """A dataclass of numbers out of a file, each checked by its field's type."""
    found: dict[str, Any] = {}
    for name, hint in get_type_hints(kind).items():
        of, *null = get_args(hint) or (hint,)
        if null and name not in record:
            found[name] = None
        elif of is float:
            found[name] = record.number(name, 0, 100 if kind is Scores else 1e18)
        elif of is int:
            found[name] = record.whole(name, 0)
        elif of is bool:
            found[name] = record.flag(name)
        elif of is str:
            found[name] = record.text(name)
        else:
            found[name] = _read(of, record.fields(name))
    return kind(**found)


def summary_table(record: Record) -> Table:
    """Dense model and ticket side by side, over the seeds."""

    def values(path: str) -> list[float]:
        return list(record.column(path).values())

    def row(title: str, dense: Sequence[float], ticket: Sequence[float]) -> list[str]:
        ratio = "-"
        if dense and ticket and min(*dense, *ticket) > 0:
            a, b = statistics.fmean(dense), statistics.fmean(ticket)
            ratio = f"{a / b:.2f}x less" if a >= b else f"{b / a:.2f}x more"
        return [title, spread(dense, 2), spread(ticket, 2), ratio]

    n, metric = len(record.runs), record.metric
    gap = paired(record.column("retrained.test"), record.column("dense.test"))
    verdict = f"{gap.mean:+z.1f}" if gap and n == 1 else str(gap or "-")
    rows = [
        [
            f"{what} {metric}, %",
            spread(values(f"dense.{what}")),
            spread(values(f"retrained.{what}")),
            difference,
        ]
        for what, difference in (("test", verdict), ("val", ""))
    ]
    sides = [values(f"absolute_error.{side}") for side in ("dense", "ticket")]
    if any(sides):
        gap = paired(*map(record.column, _ERRORS))
        told = f"{gap.mean:+z.2f}" if gap and n == 1 else gap.text(2) if gap else "-"
        rows.append(["test error, classes", *(spread(s, 2) for s in sides), told])
    settled = sum(run.ticket.settled for run in record.runs)
    drawn = spread(values("ticket.epoch"), 0)
    rows.append(["epoch drawn", "", drawn, f"{settled}/{n} settled"])
    for what in ("links", "weights"):
        there = statistics.fmean(values(f"ticket.{what}"))
        kept = statistics.fmean(values(f"ticket.{what}_kept"))
        share = f"{kept / there:.0%}" if there else "-"
        rows.append([f"{what} kept", f"{there:,.0f}", f"{kept:,.0f}", share])
    parts = []
    for name, unit in (("cpu_seconds", "CPU s"), ("seconds", "s")):
        search, retrain = (record.column(f"{name}.{p}") for p in ("search", "retrain"))
        both = [retrain[seed] + search.get(seed, 0) for seed in retrain]
        rows.append(row(f"training, {unit}", values(f"{name}.dense"), both))
        if search and retrain:
            means = (statistics.fmean(part.values()) for part in (search, retrain))
            parts.append(" + ".join(f"{m:.2f}" for m in means) + f" {unit}")
    for title, name, scale in (
        ("inference, ms", "inference_ms", 1.0),
        ("MACs, paper's, M", "macs.paper", 1e6),
        ("MACs executed, M", "macs.executed", 1e6),
    ):
        dense, ticket = (
            [value / scale for value in values(f"{name}.{side}")]
            for side in ("dense", "ticket")
        )
        rows.append(row(title, dense, ticket))
    notes = []
    if n > 1:
        notes.append(
            f"The difference in {metric} has its 95% confidence interval over the same "
            f"{'splits' if 'splits' in record.options else 'seeds'}."
        )
    if parts:
        notes.append(f"Training a ticket is search + retraining: {', '.join(parts)}.")
    if late := [str(run.seed) for run in record.runs if not run.ticket.settled]:
        notes.append(
            f"Not settled before the epochs ran out: seed {', '.join(late)}. Their "
            "tickets are the last epoch's."
        )
    if record.options.get("objective") == "training":
        notes.append(
            "Training a ticket is all that was tried, and the dense model's where the "
            "ticket did not hold."
        )
    elif "max_drop" in record.options:
        notes.append(
            "Training a ticket includes the dense model's, and all that was tried."
        )
    else:
        notes.append(
            "Whether learned links matter takes the controls of `gebt reproduce`."
        )
    named = record.dataset, record.options.get("model"), record.seeds
    title = ", ".join(str(name) for name in named if name)
    title += ", mean ± standard deviation" * (n > 1)
    return Table(title, ("", "dense", "ticket", "difference"), rows, " ".join(notes))
