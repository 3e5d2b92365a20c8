"""Nobody's file is lost, one run at a time, no litter."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gebt.files import folders
from gebt.files.folders import (
    CALL,
    LOCK,
    RECORD,
    is_free,
    is_whole,
    record,
    refuse_others,
    results_folder,
)


def write(folder, *names, text="ours"):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def files(folder):
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def recorded(folder):
    return (folder / RECORD).read_text().splitlines()


def test_a_new_folder_is_made_and_its_files_are_recorded(tmp_path):
    folder = tmp_path / "a" / "b"
    with results_folder(folder, ["metrics.json", "runs.csv", "seed-0/runs.csv"]):
        assert files(folder) == {RECORD, LOCK}
        write(folder, "metrics.json", "seed-0/runs.csv")
    assert files(folder) == {RECORD, "metrics.json", "seed-0/runs.csv"}
    assert recorded(folder) == ["metrics.json", "seed-0/runs.csv"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_where_nothing_was_written_nothing_is_left(tmp_path, error):
    with pytest.raises(error), results_folder(tmp_path / "a/b", ["seed-0/runs.csv"]):
        (tmp_path / "a/b/seed-0").mkdir()
        raise error
    assert not list(tmp_path.iterdir())
    (tmp_path / "empty").mkdir()
    with results_folder(tmp_path / "empty", ["runs.csv"]):
        pass
    assert not list((tmp_path / "empty").iterdir())


def test_a_folder_with_something_in_it_is_refused_unless_forced(tmp_path):
    write(tmp_path, "precious")
    refusal = pytest.raises(FileExistsError, match="is not empty.*--force")
    with refusal, results_folder(tmp_path, []):
        pass
    assert files(tmp_path) == {"precious"}
    with results_folder(tmp_path, [], force=True):
        pass
    assert files(tmp_path) == {"precious"}


@pytest.mark.parametrize("force", [False, True])
def test_a_file_is_no_folder(tmp_path, force):
    write(tmp_path, "file")
    refusal = pytest.raises(FileExistsError, match="exists and is not a folder")
    with refusal, results_folder(tmp_path / "file", [], force=force):
        pass
    assert (tmp_path / "file").read_text() == "ours"


def test_force_deletes_what_is_recorded_but_what_the_command_reads(tmp_path):
    names = ["ticket.safetensors", "runs.csv", "seed-0/runs.csv", "seed-1/runs.csv"]
    with results_folder(tmp_path / "o", names):
        write(tmp_path / "o", *names)
    write(tmp_path / "o", "mine.csv", "seed-1/mine.csv")
    spare = tmp_path / "o" / "x" / ".." / "ticket.safetensors"
    with results_folder(tmp_path / "o", ["runs.csv"], force=True, spare=spare):
        left = {"ticket.safetensors", "mine.csv", "seed-1/mine.csv"}
        assert files(tmp_path / "o") == left | {RECORD, LOCK}
        assert not (tmp_path / "o/seed-0").exists()
    assert recorded(tmp_path / "o") == ["ticket.safetensors"]


def test_resuming_deletes_nothing_and_adopts_the_files(tmp_path):
    write(tmp_path, "runs.csv", "mine.csv")
    with results_folder(tmp_path, ["runs.csv", "stops.csv"], resume=True):
        assert files(tmp_path) == {RECORD, LOCK, "runs.csv", "mine.csv"}
    assert recorded(tmp_path) == ["runs.csv"]


@pytest.mark.parametrize("name", ["runs.csv", "seed-0/runs.csv", "seed-0"])
def test_a_file_in_the_way_is_refused_before_anything_is_deleted(tmp_path, name):
    write(tmp_path, "stops.csv", name)
    record(tmp_path, ["stops.csv"])
    names = ["runs.csv", "seed-0/runs.csv", "stops.csv"]
    refusal = pytest.raises(FileExistsError, match=f"{name} is in the way.*Move it")
    with refusal, results_folder(tmp_path, names, force=True):
        pass
    assert files(tmp_path) == {RECORD, "stops.csv", name}
    with pytest.raises(FileExistsError, match="in the way"):
        refuse_others(tmp_path, names)
    refuse_others(tmp_path, ["stops.csv"])


@pytest.mark.parametrize(
    "content",
    [
        b"../mine.csv\n/etc/x.csv\nseed-data/mine.csv\nmine.txt\n.csv\nmine.csv",
        b"\xff\xfe\x00",
        b"seed-0/../../mine.csv\n",
    ],
)
def test_a_hostile_record_deletes_nothing(tmp_path, content):
    mine = {"mine.csv", "o/seed-data/mine.csv", "o/mine.txt", "o/seed-0/x"}
    write(tmp_path, *mine)
    (tmp_path / "o" / RECORD).write_bytes(content)
    with results_folder(tmp_path / "o", [], force=True):
        pass
    assert files(tmp_path) == mine


@pytest.mark.slow
def test_what_a_killed_run_left_is_free(tmp_path):
    code = (
        "import os; from pathlib import Path; from gebt.files.folders import *\n"
        "with results_folder(Path('o'), ['runs.csv']): os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path)
    assert done.returncode == -signal.SIGKILL
    assert files(tmp_path / "o") == {RECORD, LOCK}
    assert is_free(tmp_path / "o")
    with results_folder(tmp_path / "o", ["runs.csv"]):
        write(tmp_path / "o", "runs.csv")
    assert files(tmp_path / "o") == {RECORD, "runs.csv"}


@pytest.mark.parametrize("system", ["with fcntl", "without"])
def test_only_one_writes_at_a_time(tmp_path, monkeypatch, system):
    if system == "without":
        monkeypatch.setattr(folders, "fcntl", None)
    for _ in range(2):  # the lock is gone with the one who held it
        with results_folder(tmp_path / "o", ["runs.csv"]):
            for kind in ({}, {"force": True}, {"resume": True}):
                refusal = pytest.raises(FileExistsError, match="another gebt is writi")
                with refusal, results_folder(tmp_path / "o", [], **kind):
                    pass
            assert os.listdir(tmp_path / "o")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("at", [1, 2, 3])
def test_what_was_killed_at_its_very_start_is_free(tmp_path, at):
    """Killed while the record or the call is written, or between the two."""
    left = [f"..gebt.{'0a' * 8}", LOCK]
    left += [RECORD, f"{Path(CALL).parent}/.{Path(CALL).name}.{'f1' * 8}"] * (at > 1)
    write(tmp_path, *left)
    (tmp_path / RECORD).write_text(f"{CALL}\nruns.csv\n")
    assert is_free(tmp_path)
    with results_folder(tmp_path, ["runs.csv"]):
        write(tmp_path, "runs.csv")
    assert files(tmp_path) == {RECORD, "runs.csv"}
    assert not (tmp_path / CALL).parent.exists()


def test_what_else_is_in_the_folder_of_checkpoints_is_not_free(tmp_path):
    write(tmp_path, f"{Path(CALL).parent}/mine.txt")
    assert not is_free(tmp_path)


def test_a_half_written_figure_goes_with_its_folder(tmp_path):
    write(tmp_path, "figures/a.png", f"figures/.a.png.{'0a' * 8}", "figures/mine.txt")
    (tmp_path / RECORD).write_text("figures/a.png\n")
    with results_folder(tmp_path, ["runs.csv"], force=True):
        pass
    assert files(tmp_path) == {"figures/mine.txt"}


def test_what_ended_before_its_time_is_not_whole(tmp_path):
    with pytest.raises(OSError, match="the disk"):
        with results_folder(tmp_path, ["runs.csv", "stops.csv"]):
            write(tmp_path, "runs.csv")
            raise OSError("the disk is gone")
    assert not is_whole(tmp_path)
    record(tmp_path, ["figures/a.png"])  # as a report does
    write(tmp_path, "figures/a.png")
    assert not is_whole(tmp_path)
    with results_folder(tmp_path, ["runs.csv", "stops.csv"], resume=True):
        write(tmp_path, "stops.csv")
    assert is_whole(tmp_path)
