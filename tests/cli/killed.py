"""Runs gebt in forks of itself, which end at a point that is told: starts cost nothing.

Each line of input is a job, each line of output what became of it. A point is the
beginning of a step of the optimiser, of a replacement or removal of a file, or the end
of a replacement; they are counted from 1.
"""

import json
import os
import resource
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

from gebt import cli
from gebt.experiments import cheapest  # noqa: F401 (what commands import)

torch.optim.Adam([torch.zeros(1)])  # imports torch's compiler: over a second


class Points:
    """Counts points, and sends this process a signal at one of them.

    Args:
        at: which; 0 for none.
        signal: to send.
        keep: folder for copies of what was measured; "" for none.
    """

    def __init__(self, at: int, signal: int, keep: str):
        self.passed, self._at, self._signal, self._keep = 0, at, signal, keep
        replace, unlink, step = os.replace, os.unlink, torch.optim.Adam.step

        def replaced(source: Any, target: Any) -> None:
            self.point()
            replace(source, target)
            if self._keep and str(target).endswith("measured.json"):
                shutil.copy(target, self._keep)
            self.point()

        def unlinked(*args: Any, **options: Any) -> None:
            self.point()
            unlink(*args, **options)

        def stepped(*args: Any, **options: Any) -> Any:
            self.point()
            return step(*args, **options)

        os.replace, os.unlink = replaced, unlinked  # type: ignore[assignment]
        torch.optim.Adam.step = stepped  # type: ignore[assignment]

    def point(self) -> None:
        self.passed += 1
        if self.passed == self._at:
            os.kill(os.getpid(), self._signal)


def run(job: dict[str, Any]) -> None:
    """The job's command line; leaves its output, exit code and points in files."""
    os.chdir(job["cwd"])
    for name, stream in (("out.txt", 1), ("err.txt", 2)):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    points = Points(job["at"], job["signal"], job["keep"])
    if job["largest"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["largest"],) * 2)
    sys.argv = ["gebt", *job["line"]]
    code: Any = 1
    try:
        cli.main()
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        Path("points").write_text(str(points.passed))
        os._exit(code)


for line in sys.stdin:
    child = os.fork()
    if child == 0:
        run(json.loads(line))
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
