"""`gebt run --max-drop`: what is written, read back, and shown."""

import csv
import math
from dataclasses import asdict

import pytest
import torch
from helpers import call_gebt, run_gebt

import gebt
from gebt._registry import MODELS
from gebt.experiments.cheapest import (
    FILES,
    FRONTIER,
    frontier_items,
    read_frontier,
    run_cheapest,
)
from gebt.experiments.record import read_record, summary_table
from gebt.experiments.report import page_of
from gebt.files import write_csv
from gebt.learn.tasks import NodeClassification
from gebt.tickets.choose import Candidate

pytestmark = pytest.mark.slow
RECIPE = MODELS["gcn"].changed(epochs=30, hidden=8)
NAME = "synthetic:N=400,E=8000,F=16,C=4,split=30-30-40,seed=1"


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cheapest")
    graph = gebt.load(NAME)
    how = {"named": "mine", "max_drop": 8.0, "criteria": ["degree", "random"]}
    record = run_cheapest(
        graph, NodeClassification(), [RECIPE], range(2), folder, **how
    )
    return folder, record, read_frontier(folder)


def test_every_file_is_there_and_agrees(ran):
    folder, record, frontier = ran
    for place in (folder, folder / "seed-0", folder / "seed-1"):
        assert all((place / name).is_file() for name in FILES)
    assert read_record(folder) == record
    model, graph = gebt.load_compact(folder / "compact.safetensors")
    [chosen] = [each for each in frontier if each.chosen]
    assert gebt.evaluate(model, graph, "val") == chosen.best
    ticket = gebt.Ticket.load(folder / "ticket.safetensors")
    best = record.runs[record.best]
    assert ticket.links_kept == best.ticket.links_kept
    assert best.retrained.val == chosen.best


@pytest.mark.parametrize("val", [200 / 3, 0.0])
def test_a_frontier_is_read_as_it_was_written(tmp_path, val):
    gone = {"graph_ratio": 0.1 + 0.2, "weight_ratio": 0.9, "unit_ratio": 0.5}
    none = dict.fromkeys(gone, 0.0)
    times = {"ms": 1 / 3, "reference_ms": 2 / 3}
    frontier = [
        Candidate(criterion="dense", val=val, **none, **times),
        Candidate(criterion="voi", val=70.1, retrained=1 / 7, chosen=True, **gone),
    ]
    write_csv(tmp_path / FRONTIER, [asdict(each) for each in frontier])
    assert read_frontier(tmp_path) == frontier


def test_a_tickets_training_includes_the_dense_models(ran):
    _, record, _ = ran
    for run in record.runs:
        assert run.cpu_seconds.retrain > run.cpu_seconds.dense > 0
        assert run.cpu_seconds.search is None
    note = summary_table(record).note
    assert "includes the dense model's, and all that was tried" in note
    assert "search + retraining" not in note


def test_the_frontier_is_shown_the_cheapest_first(ran):
    folder, record, frontier = ran
    table, figure = frontier_items(frontier, record.metric)
    faster = [float(row[7].removesuffix("x")) for row in table.rows]
    assert faster == sorted(faster, reverse=True)
    [chosen] = [row for row in table.rows if row[0].startswith("→ ")]
    assert chosen[2] in [f"{each.val:.1f}" for each in frontier if each.chosen]
    assert [row[5] for row in table.rows if row[0].endswith("dense")] == ["+0.0"]
    # Random links are beside all others, at the same share of the same model.
    assert all(row[3] for row in table.rows if row[1] != "-")
    # Each row is better than all that are faster, or is the answer or the dense model.
    best = -math.inf
    for row in table.rows:
        score = max(float(cell) for cell in (row[2], row[4]) if cell)
        assert score >= best or row in (chosen, table.rows[-1]) or "dense" in row[0]
        best = max(best, score)
    titles = [section.title for section in page_of(folder).sections]
    assert titles == ["Summary", "The frontier", "What was kept"]
    assert figure.draw().axes


def test_where_nothing_can_be_removed_it_says_so_and_leaves_no_ticket(tmp_path):
    n = torch.arange(60)
    x = torch.zeros(120, 2)
    x[n, n % 2] = 1  # only the other end of its one link knows a node's class
    split = {"train": n[:20] + 60, "val": n[20:40] + 60, "test": n[40:] + 60}
    data = {"x": x, "y": torch.cat([n, n]) % 2, "edge_index": torch.stack([n, n + 60])}
    graph = gebt.Graph.from_pyg(data, split=split, directed=False)
    how = {"named": "gcn", "max_drop": 0.0, "criteria": ["random"]}
    # One unit with two weights in all: none is to spare, either.
    recipe = MODELS["gcn"].changed(epochs=1, hidden=1, lr=1e-9)
    task = NodeClassification()
    for seed in range(20):
        folder = tmp_path / f"{seed}"
        seeds = range(seed, seed + 1)
        record = run_cheapest(graph, task, [recipe], seeds, folder, **how)
        if not (folder / "ticket.safetensors").exists():
            break
    else:
        pytest.fail("something could be removed for every seed")
    assert not (folder / "ticket.safetensors").exists()
    [run] = record.runs
    assert run.ticket.links_kept == run.ticket.links
    assert run.retrained == run.dense
    table, _ = frontier_items(read_frontier(folder), record.metric)
    assert table.note.startswith("Nothing can be removed from this graph")
    assert page_of(folder).sections


@pytest.mark.parametrize(
    ("column", "cell", "words"),
    [
        ("val", "x", "`val` must be a number from 0 to 100, nan or empty, got 'x'"),
        ("ms", "x", "`ms` must be a number above 0, or empty, got 'x'"),
        ("criterion", "degree", "it has no dense model"),
        ("reference_ms", "inf", "`reference_ms` must be a number above 0, or empty"),
        ("reference_ms", "0.0", "got '0.0'"),
    ],
)
def test_a_frontier_that_is_none_is_refused(ran, tmp_path, column, cell, words):
    with (ran[0] / FRONTIER).open() as file:
        rows = list(csv.DictReader(file))
    rows[0][column] = cell
    with (tmp_path / FRONTIER).open("w") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    with pytest.raises(ValueError, match=words):
        read_frontier(tmp_path)


def test_gebt_run_with_a_tolerance(tmp_path):
    options = f"--max-drop 2 --criterion degree --epochs 20 --out {tmp_path / 'out'}"
    done = run_gebt("run", NAME, *options.split(), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for words in ("The frontier", "removed", "dense", "Written"):
        assert words in done.stdout
    record = read_record(tmp_path / "out")
    assert record.options["max_drop"] == 2
    assert not math.isnan(record.runs[0].inference_ms.ticket)


def test_by_default_gebt_run_finds_the_cheapest_of_what_validation_chose(tmp_path):
    name = "synthetic:N=300,E=3000,F=8,C=3,split=30-30-40,seed=2"
    options = f"--epochs 3 --hidden 8 --out {tmp_path / 'out'}"
    done = run_gebt("run", name, *options.split(), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    record = read_record(tmp_path / "out")
    assert record.options["recipe"] == "auto" and record.options["max_drop"] == 0.5
    assert "hidden 8" in record.runs[0].model
    assert "model" not in record.options


def test_gebt_run_for_cheap_training(tmp_path):
    options = f"--objective training --epochs 20 --out {tmp_path / 'out'}"
    done = run_gebt("run", NAME, "--model", "gcn", *options.split(), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    record = read_record(tmp_path / "out")
    assert record.options["objective"] == "training"
    assert record.options["model"] == "gcn" and record.options["epochs"] == 20
    assert record.runs[0].cpu_seconds.retrain > 0
    assert len(read_frontier(tmp_path / "out")) == 2
    assert "where the ticket did not hold" in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--max-drop 1 --graph-ratio 0.4", "--graph-ratio asks for one"),
        ("--recipe auto --model sage", "`--recipe auto` says which model"),
        ("--objective training --window 4", "leave out what asks for one"),
        ("--objective training --criterion voi", "leave out voi"),
        ("--recipe atuo", "there is no recipe 'atuo'"),
        ("--objective speed", "`--objective` must be one of 'inference', 'training'"),
        ("--recipe tuned", "no published settings for node-classification on 'digits'"),
    ],
)
def test_what_says_both_or_nothing_is_refused(capsys, flags, words):
    assert call_gebt("run", "digits", *flags.split()) == 2
    assert words in capsys.readouterr().err


def test_a_tolerance_that_is_none_is_refused(capsys):
    for value in ("-1", "nan"):
        code = call_gebt("run", "digits", "--max-drop", value)
        assert code == 2
        assert "`--max-drop` must not be negative" in capsys.readouterr().err
