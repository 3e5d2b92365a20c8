"""What people look at: the page of a folder, of a run or an experiment."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from gebt._provenance import in_words
from gebt._registry import EXPERIMENTS
from gebt.experiments.record import FILE, facts
from gebt.experiments.run_page import run_page
from gebt.experiments.runner import (
    Experiment,
    Tables,
    read_about,
    read_tables,
    source_of,
)
from gebt.report.comparison import seeds_of
from gebt.report.page import Page, Section, write_pages


def page_of(folder: Path, root: str | Path | None = None) -> Page:
    """The page of a folder that `gebt run` or `gebt reproduce` wrote.

    Args:
        folder: with ``metrics.json`` or ``experiment.json``.
        root: of the datasets, for the degrees before pruning.

    Raises:
        FileNotFoundError: if the folder holds neither.
        ValueError: if a file in it cannot be read.
    """
    if about := read_about(folder):
        experiment = EXPERIMENTS.find(about.text("experiment"))
        quick = "QUICK, figures mean nothing; " if about.flag("quick") else ""
        asked = about.whole("seeds", 1) if "seeds" in about else 0
        sections = _sections(experiment, read_tables(folder), asked)
        if not sections:
            sections = [Section("Results", ["No run of it has finished yet."])]
        title = f"{experiment.name}: {experiment.about}"
        where = in_words(facts(about, source_of(about)))
        changes = facts(about, "changes").items()
        changed = "".join(f"{name} {value}; " for name, value in changes)
        return Page(title, f"{quick}{changed}{where}", sections)
    if (folder / FILE).is_file():
        return run_page(folder, root)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}.")
    raise FileNotFoundError(
        f"{folder} holds neither metrics.json of `gebt run` or `gebt retrain` nor "
        "experiment.json of `gebt reproduce`."
    )


def _sections(experiment: Experiment, tables: Tables, asked: int) -> list[Section]:
    """One for each graph; of how many seeds were asked for, 0 if that is not known."""
    sections = []
    runs = tables.get("runs", [])
    scored = {
        table: [row for row in found if row.get("test") not in ("", "nan")]
        for table, found in {"runs": runs, **tables}.items()
    }
    done = ("stops", "tasks")
    rows = runs + [row for table in done for row in tables.get(table, [])]
    for graph in dict.fromkeys(row["dataset"] for row in rows):
        mine = {
            table: [row for row in found if row["dataset"] == graph]
            for table, found in scored.items()
        }
        n = len({row["seed"] for row in rows if row["dataset"] == graph})
        texts = [f"n = {seeds_of(n, asked)}. {experiment.how}"]
        if bare := len([r for r in runs if r["dataset"] == graph]) - len(mine["runs"]):
            texts.append(f"Left out, for want of a test score: {bare} runs.")
        some = mine["runs"] or any(mine.get(table) for table in done)
        items = list(experiment.page(graph, mine)) if some else []
        sections.append(Section(graph, [*texts, *items]))
    return sections


def check_figures() -> None:
    """Raise a ValueError unless figures can be drawn: before long work, not after."""
    if find_spec("matplotlib") is None:
        raise ValueError("figures need matplotlib: pip install 'gebt[plot]'.")


def write_report(
    folders: Sequence[Path], out: Path, root: str | Path | None = None
) -> Path:
    """Write one self-contained page about some folders.

    Args:
        folders: of `gebt run` or `gebt reproduce`.
        out: folder for ``report.html`` and ``figures/``.
        root: of the datasets.

    Returns:
        The page's path.

    Raises:
        ValueError: if matplotlib is not installed, or a file cannot be read.
        FileNotFoundError: if a folder holds no run and no experiment.
    """
    check_figures()
    return write_pages([page_of(folder, root) for folder in folders], out)
