"""The benchmark scripts still fit the library: what they import is there."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parent.parent / "benchmarks"


def test_every_benchmark_imports():
    pytest.importorskip("torch_geometric", reason="needs PyTorch Geometric")
    scripts = ", ".join(sorted(path.stem for path in FOLDER.glob("*.py")))
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", f"import {scripts}"],
        cwd=FOLDER,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr


def test_what_asv_times_runs():
    threads = torch.get_num_threads()
    try:
        found = runpy.run_path(str(FOLDER / "asv" / "suite" / "speed.py"))
    finally:
        torch.set_num_threads(threads)
    ran = 0
    for kind in found.values():
        if not isinstance(kind, type) or kind.__module__ != "<run_path>":
            continue
        each = kind()
        getattr(each, "setup", lambda: None)()
        for name in dir(each):
            if name.startswith(("time_", "peakmem_", "timeraw_")):
                answer = getattr(each, name)()
                if name.startswith("timeraw_"):
                    exec(answer, {})
                ran += 1
    assert ran >= 8
