"""What the benchmarks share: where results go, and on what they were measured."""

import csv
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path

import torch

import gebt

RESULTS = Path(__file__).parent / "results"


def write_results(
    path: Path,
    rows: Sequence[Mapping[str, object]],
    *notes: str,
    columns: Sequence[str] = (),
) -> None:
    """Rows below a line that says where they are from.

    With the first row's columns, or these, of which rows may lack some.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        file.write("# " + "; ".join([environment(), *notes]) + "\n")
        writer = csv.DictWriter(file, columns or list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def environment() -> str:
    """Date, machine, versions, threads and commit, in one line."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    versions = {"gebt": gebt.__version__, "torch": torch.__version__}
    try:
        import torch_geometric

        versions["pyg"] = torch_geometric.__version__
    except ImportError:
        pass
    return "; ".join(
        [
            date.today().isoformat(),
            _processor(),
            f"{torch.get_num_threads()} thread(s)",
            f"Python {platform.python_version()}",
            ", ".join(f"{name} {version}" for name, version in versions.items()),
            f"commit {commit or 'unknown'}",
        ]
    )


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
