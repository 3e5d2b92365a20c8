"""What people look at: pages of runs and experiments, and their figures."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from gebt.experiments.inference_page import inference_page
from gebt.experiments.pages import experiment_sections
from gebt.experiments.run_page import run_page
from gebt.experiments.runner import find_experiment, read_about, read_tables
from gebt.report.page import Figure, Page, Section, Table, write_pages

__all__ = [
    "Figure",
    "Page",
    "Section",
    "Table",
    "check_figures",
    "inference_page",
    "page_of",
    "write_pages",
    "write_report",
]


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
        experiment = find_experiment(about.text("experiment"))
        machine = ", ".join(f"{k} {v}" for k, v in about.content["machine"].items())
        quick = "QUICK, figures mean nothing; " if about.flag("quick") else ""
        asked = about.whole("seeds", 1) if "seeds" in about else 0
        sections = experiment_sections(experiment.name, read_tables(folder), asked)
        if not sections:
            sections = [Section("Results", ["No run of it has finished yet."])]
        title = f"{experiment.name}: {experiment.about}"
        return Page(title, f"{quick}{machine}", sections)
    if (folder / "metrics.json").is_file():
        return run_page(folder, root)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}.")
    raise FileNotFoundError(
        f"{folder} holds neither metrics.json of `gebt run` or `gebt retrain` nor "
        "experiment.json of `gebt reproduce`."
    )


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
