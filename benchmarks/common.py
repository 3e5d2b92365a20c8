"""What the benchmarks share: where results go, and on what they were measured."""

import platform
import subprocess
from datetime import date
from pathlib import Path

import torch

import gebt

RESULTS = Path(__file__).parent / "results"


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
