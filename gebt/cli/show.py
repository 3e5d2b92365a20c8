"""What is printed while a command runs, and at its end."""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from gebt.deploy.cost import Cost
    from gebt.experiments.record import Drawn
    from gebt.experiments.run import OnEpoch
    from gebt.learn.training import Epoch
    from gebt.report.page import Page
    from gebt.report.page import Table as PageTable
    from gebt.tickets.ticket import Ticket

out_console = Console()


@contextmanager
def counting(what: str, quiet: bool) -> Iterator["Callable[[int, int], None] | None"]:
    """A bar with the time left on a terminal, a line every twentieth elsewhere."""
    if quiet:
        yield None
    elif out_console.is_terminal:
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total} runs"),
            TimeRemainingColumn(),
            console=out_console,
        ) as bar:
            task = bar.add_task(what, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
    else:
        started = time.perf_counter()
        first: list[int] = []

        def show(done: int, total: int) -> None:
            first.append(done)
            if done in (first[0], total) or done % max(1, total // 20) == 0:
                passed = time.perf_counter() - started
                here = done - first[0]
                left = f", {passed / here * (total - done):.0f} s left" if here else ""
                print(f"{passed:6.0f} s  {what}  {done}/{total} runs{left}", flush=True)

        yield show


@contextmanager
def progress(seeds: int, quiet: bool) -> Iterator["OnEpoch | None"]:
    """A live line per phase on a terminal, a plain line per phase elsewhere."""
    if quiet:
        yield None
    elif out_console.is_terminal:
        with Progress(
            TextColumn("{task.description:<8}"),
            BarColumn(bar_width=10),
            TextColumn("{task.completed:>3}/{task.total}"),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[state]}"),
            console=out_console,
        ) as bars:
            yield _live(bars, seeds)
    else:
        yield _plain()


def _live(bars: Progress, seeds: int) -> "OnEpoch":
    total = bars.add_task("seeds", total=seeds, state="") if seeds > 1 else None
    tasks: dict[str, Any] = {}

    def show(phase: str, epoch: "Epoch") -> None:
        if epoch.epoch == 1:
            another = phase == "dense" and len(tasks) > 1  # each seed begins so
            for other in [*tasks] if another else [phase] * (phase in tasks):
                bars.remove_task(tasks.pop(other))
            if another and total is not None:
                bars.advance(total)
            for task in tasks.values():
                bars.stop_task(task)
            tasks[phase] = bars.add_task(phase, total=epoch.until, state="")
        bars.update(tasks[phase], completed=epoch.epoch, state=_state(epoch))

    return show


def _plain() -> "OnEpoch":
    started = time.perf_counter()
    waiting: list[str] = []  # the last line, until it is due or its phase is over

    def show(phase: str, epoch: "Epoch") -> None:
        if epoch.epoch == 1 and waiting:
            print(waiting.pop(), flush=True)
        passed = time.perf_counter() - started
        counter = f"epoch {epoch.epoch:>3}/{epoch.until}"
        waiting[:] = [f"{passed:6.1f} s  {phase:<8} {counter}  {_state(epoch)}"]
        if epoch.epoch % max(1, epoch.until // 4) == 0:
            print(waiting.pop(), flush=True)

    return show


def _state(epoch: "Epoch") -> str:
    text = f"loss {epoch.loss:.3f}  val {epoch.val:5.1f}%"
    if epoch.distances:
        parts = [
            f"{name} {epoch.distances[name]:.2f}"
            for name in ("graph", "weights", "joint")
            if name in epoch.distances
        ]
        text += "  distance: " + ", ".join(parts)
    return text


def print_tables(page: "Page") -> None:
    """The tables of a page."""
    from gebt.report.page import Table as PageTable

    for section in page.sections:
        for item in section.items:
            if isinstance(item, PageTable):
                print_table(item)


def print_table(found: "PageTable") -> None:
    """One of them: numbers at the right."""
    texts: Any = {"title": escape(found.title), "caption": escape(found.note)}
    table = Table(**texts, title_justify="left", caption_justify="left")
    for place, title in enumerate(found.header):
        justify: Any = "right" if place else "left"
        table.add_column(escape(title), justify=justify, overflow="fold")
    for cells in found.rows:
        table.add_row(*map(escape, cells))
    out_console.print(table)


def print_rows(
    title: str, header: Sequence[str], rows: Iterable[Sequence[str]]
) -> None:
    """A table of text."""
    table = Table(title=escape(title), title_justify="left")
    for name in header:
        table.add_column(name)
    for cells in rows:
        table.add_row(*map(escape, cells))
    out_console.print(table)


def print_groups(
    title: str, header: Sequence[str], groups: Mapping[str, Iterable[Sequence[str]]]
) -> None:
    """A table of text whose rows stand under headings."""
    table = Table(title=escape(title), title_justify="left")
    for name in header:
        table.add_column(name)
    for heading, rows in groups.items():
        table.add_row(f"[bold]{escape(heading)}[/]")
        for cells in rows:
            table.add_row(*map(escape, cells))
        table.add_section()
    out_console.print(table)


def print_costs(graph: str, costs: Mapping[str, "Cost"]) -> None:
    """What one forward costs, a column for each."""
    table = Table(title=f"One forward over {graph}", title_justify="left")
    table.add_column("")
    for name in costs:
        table.add_column(name, justify="right")
    for title, show in (
        ("inference, ms (median)", lambda c: f"{c.latency_ms:.2f}"),
        ("MACs, paper's convention", lambda c: _millions(c.macs_paper)),
        ("MACs executed", lambda c: _millions(c.macs_executed)),
        ("parameters, KiB", lambda c: f"{c.parameter_bytes / 1024:.1f}"),
        ("index bytes, KiB", lambda c: f"{c.index_bytes / 1024:.1f}"),
        ("peak memory, MiB", lambda c: f"{c.peak_mib:.0f}"),
    ):
        table.add_row(title, *(show(c) for c in costs.values()))
    out_console.print(table)
    out_console.print(
        "The compact form's MACs by the paper's convention count only the features "
        "it still reads.",
        style="dim",
    )


def tell_of_ticket(ticket: "Ticket", found: "Drawn", seconds: float) -> None:
    """Say when a ticket was drawn, and of how much."""
    state = "settled" if ticket.settled else "[bold]not settled[/]"
    out_console.print(
        f"Ticket drawn at epoch {ticket.epoch} ({state}) in {seconds:.2f} s: "
        f"{found.links_kept:,} of {found.links:,} links, "
        f"{found.weights_kept:,} of {found.weights:,} weights."
    )
    if ticket.share_untouched:
        out_console.print(
            f"{ticket.links_untouched:,} of the links never received a gradient; "
            "among them those to keep were drawn."
        )


def tell_folder(folder: Path, quiet: bool) -> None:
    """Say where the results are."""
    if quiet:
        print(folder)
    else:
        # Plain print: rich would wrap a long path.
        print(f"Written: {folder}{os.sep}")


def _millions(count: int | None) -> str:
    return "-" if count is None else f"{count / 1e6:.2f} M"
