"""The benchmark scripts still fit the library: what they import is there."""

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.mark.parametrize("script", sorted(path.stem for path in FOLDER.glob("*.py")))
def test_a_benchmark_imports(script):
    pytest.importorskip("torch_geometric")
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", f"import {script}"],
        cwd=FOLDER,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
