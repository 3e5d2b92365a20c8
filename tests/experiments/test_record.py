"""What metrics.json holds comes back as it was, and as one table."""

import json
import random
import re
from dataclasses import asdict, replace

import pytest

from gebt.experiments.record import (
    Drawn,
    Macs,
    Measured,
    Phases,
    Record,
    Scores,
    Sides,
    read_record,
    summary_table,
)


def measured(seed=0, dense=80.0, ticket=78.0):
    """What a seed of a run gave."""
    return Measured(
        seed,
        Scores(79.0, dense),
        Drawn(20, True, 8, 10, 10, 100),
        Scores(77.5, ticket),
        Phases(0.25, 0.5, 0.5),
        Phases(0.25, 0.25, 0.5),
        Sides(1.0, 0.5),
        Macs(Sides(4_000_000, 1_000_000), Sides(2_000_000, 3_000_000)),
        100.0,
    )


def record(*runs, **options):
    where = {"gebt": "1", "commit": None, "clean": None, "cores": 2}
    options = {"model": "gcn", **options}
    return Record("cora", "node-classification", "accuracy", options, where, runs)


def drawn_at_random(draw):
    """A record with whatever may be missing missing now and then."""

    def perhaps(value):
        return None if draw.random() < 0.3 else value

    def amount(most=1e9):
        return perhaps(draw.choice([0.0, draw.uniform(0, most), 1e-300]))

    def count():
        return draw.randrange(2**53)

    runs = []
    for seed in draw.sample(range(2**32), draw.randint(1, 4)):
        sides = [Sides(perhaps(count()), perhaps(count())) for _ in range(2)]
        runs.append(
            Measured(
                seed,
                perhaps(Scores(amount(100), amount(100))),
                Drawn(count(), draw.random() < 0.5, *(count() for _ in range(4))),
                Scores(amount(100), amount(100)),
                Phases(amount(), amount(), amount()),
                perhaps(Phases(retrain=amount())),
                Sides(amount(), amount()),
                perhaps(Macs(*map(perhaps, sides))),
                amount(),
                perhaps(count()),
            )
        )
    words = {"model": "ä\n", "lr": 0.1, "none": None, "flag": True, "big": 10**30}
    return replace(record(*runs, **words, seeds=len(runs)), metric="Hits@50")


def test_what_was_written_is_read(tmp_path):
    for seed in range(50):
        whole = drawn_at_random(random.Random(seed))
        whole.write(tmp_path)
        assert read_record(tmp_path) == whole
        assert summary_table(whole).rows


def test_the_file_has_its_names_means_and_deviations(tmp_path):
    record(measured(3), measured(5, ticket=80.0)).write(tmp_path)
    content = json.loads((tmp_path / "metrics.json").read_text())
    names = {"format", "dataset", "task", "metric", "options", "provenance", "runs"}
    assert set(content) == names | {"summary"}
    assert content["runs"] == [asdict(measured(3)), asdict(measured(5, ticket=80.0))]
    summary = content["summary"]
    assert (summary["n"], summary["best_seed"]) == (2, 3)
    assert summary["mean"]["retrained"] == {"val": 77.5, "test": 79.0}
    assert summary["std"]["retrained"]["test"] == pytest.approx(2**0.5)
    assert "seed" not in summary["mean"]


def test_what_one_run_lacks_has_no_mean(tmp_path):
    less = replace(measured(1), dense=None, macs=Macs(Sides(None, 1), None))
    record(measured(0), less).write(tmp_path)
    mean = json.loads((tmp_path / "metrics.json").read_text())["summary"]["mean"]
    assert mean["dense"] is None and mean["macs"]["executed"] is None
    assert mean["macs"]["paper"] == {"dense": None, "ticket": 500_000.5}
    assert mean["retrained"]["val"] == 77.5


def test_the_run_that_validates_best_is_the_first_of_equals():
    each = enumerate((None, 70, 70))
    runs = [replace(measured(s), retrained=Scores(v, 0)) for s, v in each]
    assert record(*runs).best == 1
    assert record(runs[0]).best == 0


def test_a_record_of_gebt_0_1_is_read(tmp_path):
    record(measured(0), measured(1), seeds=2).write(tmp_path)
    path = tmp_path / "metrics.json"
    old = json.loads(path.read_text())
    del old["format"], old["provenance"]
    path.write_text(json.dumps(old))
    found = read_record(tmp_path)
    assert found.runs == (measured(0), measured(1)) and found.provenance == {}


def test_a_retraining_of_gebt_0_1_is_read(tmp_path):
    content = {
        "dataset": "digits",
        "task": "node-classification",
        "metric": "accuracy",
        "ticket": asdict(measured().ticket),
        "retrained": {"val": 90.0, "test": 91.0},
        "seconds": {"retrain": 0.5},
        "cpu_seconds": {"retrain": 0.25},
        "inference_ms": {"ticket": 1.25},
        "macs": {"paper": {"ticket": 10}, "executed": {"ticket": 5}},
    }
    (tmp_path / "metrics.json").write_text(json.dumps(content))
    found = read_record(tmp_path)
    [run] = found.runs
    assert run.seed is None and run.dense is None and run.peak_mib is None
    assert run.macs == Macs(Sides(None, 10), Sides(None, 5))
    cells = {row[0]: row[1:] for row in summary_table(found).rows}
    assert cells["inference, ms"] == ["-", "1.25", "-"]
    assert cells["test accuracy, %"] == ["-", "91.0", "-"]
    assert cells["training, s"] == ["-", "0.50", "-"]


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        ("format", 2, "`format` must be 1, which this gebt reads, got 2"),
        ("format", "1", "`format` must be a whole number"),
        ("metric", "$x$", "`metric` must be a short name"),
        ("runs", [], "at least one run"),
        ("runs", [asdict(measured(4)), asdict(measured(4))], "different seeds"),
        ("options", {"seeds": 0}, "`options.seeds` must be a whole number"),
        ("options", {"a": []}, "`options.a` must be a finite number"),
        ("provenance", {"cores": {}}, "`provenance.cores` must be a finite number"),
    ],
)
def test_what_cannot_be_is_named(tmp_path, place, value, words):
    record(measured()).write(tmp_path)
    path = tmp_path / "metrics.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {place: value}))
    with pytest.raises(ValueError, match=f"metrics.json is not a whole.*{words}"):
        read_record(tmp_path)


def test_the_table_of_several_seeds_by_hand():
    runs = [measured(s, 80.0 + s, 77.0 + s) for s in range(3)]
    table = summary_table(record(*runs, seeds=5))
    assert table.title == "cora, gcn, 3 of 5 seeds, mean ± standard deviation"
    assert table.header == ("", "dense", "ticket", "difference")
    assert {row[0]: row[1:] for row in table.rows} == {
        "test accuracy, %": ["81.0 ± 1.0", "78.0 ± 1.0", "-3.0 ± 0.0"],
        "val accuracy, %": ["79.0 ± 0.0", "77.5 ± 0.0", ""],
        "epoch drawn": ["", "20 ± 0", "3/3 settled"],
        "links kept": ["10", "8", "80%"],
        "weights kept": ["100", "10", "10%"],
        "training, CPU s": ["0.25 ± 0.00", "0.75 ± 0.00", "3.00x more"],
        "training, s": ["0.25 ± 0.00", "1.00 ± 0.00", "4.00x more"],
        "inference, ms": ["1.00 ± 0.00", "0.50 ± 0.00", "2.00x less"],
        "MACs, paper's, M": ["4.00 ± 0.00", "1.00 ± 0.00", "4.00x less"],
        "MACs executed, M": ["2.00 ± 0.00", "3.00 ± 0.00", "1.50x more"],
    }
    assert "95% confidence interval" in table.note
    assert "search + retraining: 0.25 + 0.50 CPU s, 0.50 + 0.50 s." in table.note
    assert "settled" not in table.note


def test_an_interval_that_holds_zero_is_no_difference():
    runs = [measured(s, 80.0, 80.0 + gap) for s, gap in enumerate((-1, 0, 2))]
    found = summary_table(record(*runs)).rows[0][3]
    assert found == "no difference (+0.3 ± 3.8)"


def test_one_seed_has_its_difference_and_no_interval():
    table = summary_table(record(measured()))
    assert table.title == "cora, gcn, 1 seed"
    assert table.rows[0] == ["test accuracy, %", "80.0", "78.0", "-2.0"]
    assert "confidence" not in table.note


def test_tickets_that_did_not_settle_are_named():
    late = replace(measured().ticket, settled=False)
    runs = [measured(0), measured(7)]
    runs.append(replace(measured(9), ticket=late))
    table = summary_table(record(*runs))
    assert re.search("Not settled before the epochs ran out: seed 9\\.", table.note)
    assert table.rows[2][3] == "2/3 settled"
