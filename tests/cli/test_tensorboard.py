"""`--tensorboard`: what TensorBoard reads is what is in history.csv."""

import math
import sys

import pytest
from helpers import assert_refused, read_rows

MISSING = "tensorboard is not installed"
OF_CSV = ("loss", "val", "distance_graph", "distance_weights", "distance_joint")


def scalars(folder):
    """By tag the epochs and values, read by TensorBoard itself."""
    pytest.importorskip("tensorboard", reason=MISSING)
    from tensorboard.backend.event_processing import event_accumulator

    [file] = folder.glob("events.out.tfevents.*")
    found = event_accumulator.EventAccumulator(str(file)).Reload()
    return {
        tag: [(event.step, event.value) for event in found.Scalars(tag)]
        for tag in found.Tags()["scalars"]
    }


def expected(folder):
    """The same of a history.csv."""
    found = {}
    for row in read_rows(folder / "history.csv"):
        for name in OF_CSV:
            if row[name] and not math.isnan(value := float(row[name])):
                tag = f"{row['phase']}/{name}"
                found.setdefault(tag, []).append((int(row["epoch"]), value))
    return found


def check(found, wanted):
    assert {*found} == {*wanted}
    for tag, values in wanted.items():
        assert [step for step, _ in found[tag]] == [step for step, _ in values]
        for (_, one), (_, other) in zip(found[tag], values, strict=True):
            assert one == pytest.approx(other, rel=1e-6), tag  # float32 there


def test_what_it_reads_is_what_the_tables_say(gebt_here, tmp_path):
    pytest.importorskip("tensorboard", reason=MISSING)
    few = ("--epochs", 5, "--tensorboard", "--quiet")
    run = ("run", "imports", "--graph-ratio", 0.2, "--seeds", 2, "--out", "run", *few)
    assert gebt_here(*run).returncode == 0
    seeds = [tmp_path / "run" / f"seed-{seed}" for seed in (0, 1)]
    for seed in seeds:
        check(scalars(seed), expected(seed))

    # An earlier run's events go with its other files, and nobody else's.
    other = tmp_path / "run" / "events.out.tfevents.of.another"
    other.touch()
    assert gebt_here(*run, "--force").returncode == 0
    assert gebt_here(*run, "--force").returncode == 0
    assert other.is_file()
    for seed in seeds:
        check(scalars(seed), expected(seed))

    assert gebt_here("search", "imports", "--out", "search", *few).returncode == 0
    check(scalars(tmp_path / "search"), expected(tmp_path / "search"))
    ticket = "search/ticket.safetensors"
    assert gebt_here("retrain", ticket, "--out", "re", *few).returncode == 0
    check(scalars(tmp_path / "re"), expected(tmp_path / "re"))
    assert {tag.partition("/")[0] for tag in scalars(tmp_path / "re")} == {"retrain"}


def test_without_the_package_it_says_what_to_install(gebt_here, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    answer = gebt_here("run", "imports", "--tensorboard", "--out", "run")
    assert_refused(answer, "--tensorboard", "pip install 'gebt[tensorboard]'")
    assert not (tmp_path / "run").exists()
