"""The benchmark scripts still fit the library: what they import is there."""

import subprocess
import sys
from pathlib import Path

import pytest

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
