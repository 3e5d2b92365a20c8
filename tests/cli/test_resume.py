"""Real processes, killed and gone on with, end as if they had not been.

They are killed at 20 random points; the seed of a failure is in its message.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import Answer, assert_refused
from test_tensorboard import MISSING, check, expected, scalars

from gebt.files import read_json, read_tensors, write_json
from gebt.files.folders import CALL, has_checkpoints

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks processes")

GRAPH = "synthetic:N=150,E=1200,F=20,C=3,split=30-30-40,seed=1"
EVERY = ("--checkpoint-every", "1")
SMALL = ("--hidden", "32", "--epochs", "9")
GCN = ("--model", "gcn", *SMALL)
ONE = ("--graph-ratio", "0.3", "--threshold", "0.2", *SMALL)
CASES = {
    "search": ["search", GRAPH, *ONE, *EVERY],
    "retrain": ["retrain", "../ticket/out/ticket.safetensors", *EVERY],
    "seeds": ["run", GRAPH, *ONE, "--seeds", "3", *EVERY],
    "cheapest": ["run", "imports", *GCN, "--max-drop", "9", *EVERY],
    "recipes": ["run", GRAPH, *ONE, "--recipe", "auto", "--epochs", "3", *EVERY],
    "early": ["run", GRAPH, *GCN, "--objective", "training", "--seeds", "2", *EVERY],
    "default": ["search", GRAPH, *ONE],
    "unhurried": ["run", GRAPH, *ONE, "--seeds", "3"],
}
"""Command lines by name; ``../ticket`` is another command's folder."""


class Runner:
    """Calls gebt in processes that end at a point.

    Args:
        root: for a folder of each call.
    """

    def __init__(self, root: Path):
        self.root = root
        self._server = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("killed.py")],
            env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._known: dict[str, Path] = {}

    def close(self) -> None:
        self._server.communicate(timeout=60)

    def call(self, name: str, *line: str, **how: Any) -> Answer:
        """A command line in the folder of that name, and what came of it."""
        cwd = self.root / name
        cwd.mkdir(exist_ok=True)
        job = {"at": 0, "signal": signal.SIGKILL, "keep": "", "largest": 0, **how}
        assert self._server.stdin and self._server.stdout
        text = json.dumps({**job, "line": list(map(str, line)), "cwd": str(cwd)})
        print(text, file=self._server.stdin, flush=True)
        code = int(self._server.stdout.readline())
        out, err = ((cwd / each).read_text() for each in ("out.txt", "err.txt"))
        return subprocess.CompletedProcess(line, code, out, err)

    def unbroken(self, case: str) -> Path:
        """The folder of a case's results that nothing broke."""
        if case not in self._known:
            if case == "retrain":
                self.call("ticket", "search", GRAPH, *ONE, "--out", "out")
            keep = self.root / f"{case}-measured"
            keep.mkdir()
            line = [*CASES[case], "--out", "out"]
            answer = self.call(f"{case}-unbroken", *line, keep=str(keep))
            assert answer.returncode == 0, answer.stderr
            self._known[case] = self.root / f"{case}-unbroken"
        return self._known[case]

    def points(self, case: str) -> int:
        """How many points it passes."""
        return int((self.unbroken(case) / "points").read_text())

    def begin(self, case: str, name: str) -> Path:
        """Begin a case that will measure what its unbroken run has: the folder.

        Which candidate is fast enough is measured, so that no two runs agree.
        """
        self.unbroken(case)
        folder = self.root / name / "out"
        at = 3
        while not (folder / CALL).is_file():
            shutil.rmtree(folder, ignore_errors=True)
            at += 1
            self.call(name, *CASES[case], "--out", "out", at=at)
        for path in (self.root / f"{case}-measured").iterdir():
            shutil.copy(path, (folder / CALL).parent)
        return folder


@pytest.fixture(scope="module")
def runner(tmp_path_factory):
    """A `Runner`, and the time it takes to import torch once."""
    found = Runner(tmp_path_factory.mktemp("killed"))
    yield found
    found.close()


def untimed(content: Any) -> Any:
    """A record less what is measured, and where it is from."""
    if isinstance(content, list):
        return [untimed(each) for each in content]
    if not isinstance(content, dict):
        return content
    times = ("seconds", "cpu_seconds", "inference_ms", "peak_mib", "provenance")
    return {k: untimed(v) for k, v in content.items() if k not in times}


def holds(folder: Path) -> dict[str, Any]:
    """Each file in a folder, bit for bit; of its record what is not measured."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    found: dict[str, Any] = {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in paths
    }
    if "metrics.json" in found:
        found["metrics.json"] = untimed(json.loads(found["metrics.json"]))
    return found


def same_files(folder: Path, unbroken: Path) -> None:
    """The same files, and in them the same."""
    ours, theirs = holds(folder), holds(unbroken / "out")
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name]] == []


def break_often(runner: Runner, case: str, kills: int) -> None:
    """Kill a case so often, at random points, and go on each time."""
    seed = random.randrange(10**6)
    draw, name, killed = random.Random(seed), f"{case}-{seed}", 0
    span = max(2, 2 * runner.points(case) // (kills + 1))
    folder = runner.begin(case, name)
    points = []
    while killed < kills:
        points.append(draw.randint(1, span))
        answer = runner.call(name, "resume", "out", at=points[-1])
        told = f"seed {seed}, points {points}: {answer.stderr}"
        if answer.returncode == -signal.SIGKILL:
            killed += 1
            continue
        assert answer.returncode == 0, told
        same_files(folder, runner.unbroken(case))
        shutil.rmtree(folder)
        runner.begin(case, name)
    answer = runner.call(name, "resume", "out")
    assert answer.returncode == 0, f"seed {seed}, points {points}: {answer.stderr}"
    same_files(folder, runner.unbroken(case))


def test_a_search_killed_twice_ends_as_if_it_had_not_been(runner):
    break_often(runner, "search", 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "kills"),
    [
        ("retrain", 3),
        ("seeds", 4),
        ("cheapest", 4),
        ("recipes", 3),
        ("early", 3),
        ("default", 1),
    ],
)
def test_what_is_killed_at_random_points_ends_as_if_it_had_not_been(
    runner, case, kills
):
    break_often(runner, case, kills)


@pytest.mark.slow
def test_seeds_that_are_finished_are_not_run_again(runner):
    """Where the one under way has not left a checkpoint, either."""
    in_all = runner.points("unhurried")
    at = 9 * in_all // 10
    answer = runner.call("late", *CASES["unhurried"], "--out", "out", at=at)
    assert answer.returncode == -signal.SIGKILL
    folder = runner.root / "late" / "out"
    assert not has_checkpoints(folder)
    assert runner.call("late", "resume", "out").returncode == 0
    assert int((folder.parent / "points").read_text()) < in_all / 2
    same_files(folder, runner.unbroken("unhurried"))

    line = [*CASES["unhurried"], "--out", "out", "--checkpoint-every", "0"]
    how = {"at": at, "signal": signal.SIGINT}
    assert runner.call("none-kept", *line, **how).returncode == 130
    assert_refused(runner.call("none-kept", "resume", "out"), "there is no checkpoint")


@pytest.mark.slow
def test_each_seed_has_its_own_curves_after_a_kill(runner):
    pytest.importorskip("tensorboard", reason=MISSING)
    line = [*CASES["unhurried"], "--tensorboard", "--out", "out"]
    at = 7 * runner.points("unhurried") // 10
    assert runner.call("curves", *line, at=at).returncode == -signal.SIGKILL
    answer = runner.call("curves", "resume", "out")
    assert answer.returncode == 0, answer.stderr
    for seed in range(3):
        folder = runner.root / "curves" / "out" / f"seed-{seed}"
        check(scalars(folder), expected(folder))


def test_ctrl_c_writes_and_names_what_goes_on(runner):
    runner.unbroken("default")
    how = {"at": random.randint(6, 10), "signal": signal.SIGINT}
    answer = runner.call("ctrl-c", *CASES["default"], "--out", "out", **how)
    assert answer.returncode == 130
    said = "gebt: interrupted; what was finished is in out; gebt resume out goes on."
    assert answer.stderr.strip() == said
    folder = runner.root / "ctrl-c" / "out"
    _, header = read_tensors(folder / "checkpoint/training-0.safetensors", "training")
    assert header.content["finished"] is False
    refused = runner.call("ctrl-c", *CASES["default"], "--out", "out")
    assert_refused(refused, "is not empty", "gebt resume out")
    assert runner.call("ctrl-c", "resume", "out").returncode == 0
    same_files(folder, runner.unbroken("default"))


def test_a_full_disk_leaves_the_last_checkpoint_whole(runner):
    """Files may grow to a size that the checkpoints of later epochs pass."""
    runner.unbroken("search")
    runner.call("small", *CASES["search"], "--out", "out", at=12)
    early = runner.root / "small/out/checkpoint/training-0.safetensors"
    full = {"largest": early.stat().st_size + 700}
    answer = runner.call("full", *CASES["search"], "--out", "out", **full)
    path = runner.root / "full/out/checkpoint/training-0.safetensors"
    _, header = read_tensors(path, "training")
    epoch = dict(header.content["state"]["items"])["epoch"]
    assert_refused(answer, "training-0.safetensors cannot be written: ", "too large")
    assert f"The last one, of epoch {epoch}, out/" in answer.stderr
    assert runner.call("full", "resume", "out").returncode == 0
    same_files(runner.root / "full/out", runner.unbroken("search"))


@pytest.mark.slow
def test_a_diverging_run_names_the_epoch_and_the_last_good_checkpoint(runner):
    line = ["search", GRAPH, "--out", "out", "--epochs", "60", "--lr", "3e18", *EVERY]
    answer = runner.call("diverges", *line)
    assert_refused(answer, "became", "in epoch", "The last good checkpoint is of epoch")
    path = "out/checkpoint/training-0.safetensors"
    assert path in answer.stderr
    tensors, _ = read_tensors(runner.root / "diverges" / path, "training")
    assert all(t.isfinite().all() for t in tensors.content.values())
    # And says it again where it is gone on with.
    assert runner.call("diverges", "resume", "out").stderr == answer.stderr


@pytest.mark.slow
def test_what_cannot_be_gone_on_with_is_refused(runner):
    unbroken = runner.unbroken("retrain").name
    said = runner.call(unbroken, "resume", "out")
    assert (said.returncode, said.stdout) == (0, f"Finished already: out{os.sep}\n")
    assert_refused(runner.call("none", "resume", "."), "there is no checkpoint in .")
    assert_refused(runner.call("none", "resume", "new"), "there is no checkpoint in n")

    begun = runner.begin("retrain", "other")
    call = read_json(begun / CALL, "call").content
    for change, words in (
        ({"gebt": "0.0.1"}, "was begun by gebt 0.0.1, and this is"),
        ({"format": 9}, "`format` must be"),
        ({"command": "report"}, "`command` must be one of run, search, retrain"),
        ({"words": "--help"}, "`words` must be a list of texts"),
        ({"words": ["--nope"]}, "--nope"),
    ):
        write_json(begun / CALL, {**call, **change})
        assert_refused(runner.call("other", "resume", "out"), words)
    write_json(begun / CALL, call)
    ticket = runner.root / "ticket/out/ticket.safetensors"
    whole = ticket.read_bytes()
    other = runner.root / "search-unbroken/out/ticket.safetensors"
    runner.call("elsewhere", "search", GRAPH, *ONE, "--seed", "5", "--out", "out")
    other = runner.root / "elsewhere/out/ticket.safetensors"
    ticket.write_bytes(other.read_bytes())
    refused = runner.call("other", "resume", "out")
    assert_refused(refused, "ticket.safetensors is not what it was when out was begun")
    ticket.write_bytes(whole)
    assert runner.call("other", "resume", "out").returncode == 0


@pytest.mark.slow
def test_it_goes_on_from_any_folder_and_force_begins_anew(runner):
    folder = runner.begin("retrain", "moved")
    where = os.path.relpath(folder, runner.root / "moved" / "..")
    runner.call("moved", "resume", "out", at=9)
    assert has_checkpoints(folder)
    answer = runner.call(".", "resume", where)
    assert answer.returncode == 0, answer.stderr
    same_files(folder, runner.unbroken("retrain"))
    runner.call("moved", *CASES["retrain"], "--out", "out", "--force", at=20)
    assert has_checkpoints(folder)
    line = [*CASES["retrain"], "--out", "out", "--force"]
    assert runner.call("moved", *line).returncode == 0
    same_files(folder, runner.unbroken("retrain"))
