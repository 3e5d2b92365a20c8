"""Where a result is from: when, what ran, and on what. Asking never fails."""

import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import date
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from gebt._version import __version__


def provenance() -> dict[str, Any]:
    """Where a result of now is from; None where that cannot be told.

    ``commit`` is that of gebt's source, ``clean`` whether the files it knows are as
    they were committed; None unless gebt is run from its own git checkout. ``device``
    is the GPU, if one is in use.
    """
    commit, clean = _source(Path(__file__).resolve().parent)
    return {
        "date": date.today().isoformat(),
        **versions(),
        "numpy": _installed("numpy"),
        "torch_geometric": _installed("torch-geometric"),
        "commit": commit,
        "clean": clean,
        "processor": _processor(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "device": (
            torch.cuda.get_device_name() if torch.cuda.is_initialized() else None
        ),
    }


def in_words(record: Mapping[str, Any]) -> str:
    """`provenance` in one line; what is not known is left out."""
    facts = {k: v for k, v in record.items() if v is not None and k != "clean"}
    if "commit" in facts:
        changed = " with changes" if record.get("clean") is False else ""
        facts["commit"] = f"{str(facts['commit'])[:12]}{changed}"
    return ", ".join(f"{name} {value}" for name, value in facts.items())


def versions() -> dict[str, str]:
    """Versions of gebt, torch and Python."""
    return {
        "gebt": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }


def cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _installed(package: str) -> str | None:
    """Its version, without the seconds that importing it may take."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    return names[0] if names else platform.processor() or platform.machine()


@cache  # the code that runs is what was there first
def _source(package: Path) -> tuple[str | None, bool | None]:
    """Commit of a package's own checkout, and whether that was clean.

    A package that merely lies inside some repository, in its ``.venv`` say, has none.
    """
    top = _git(package, "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() / "gebt" != package:
        return None, None
    exact = ("--always", "--dirty", "--abbrev=40", "--exclude=*")
    found = _git(package, "describe", *exact)
    if found is None:  # nothing is committed yet
        return None, None
    return found.removesuffix("-dirty"), not found.endswith("-dirty")


def _git(folder: Path, *arguments: str) -> str | None:
    """What git answers in a folder; None where it has no answer, or is not there."""
    # Inside a hook git's variables name the repository of the hook.
    own = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", *arguments],
            cwd=folder,
            env=own,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
