"""Experiments in real processes, killed and resumed."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
from helpers import assert_refused, read_rows

from gebt import load
from gebt._registry import EXPERIMENTS
from gebt.experiments.methods import METHODS
from gebt.experiments.rows import DRAWS
from gebt.experiments.runner import (
    KEY,
    TABLES,
    Job,
    _method,
    _run,
    _split,
    _watched,
    read_tables,
    reproduce,
)
from gebt.files import write_csv
from gebt.files.folders import RECORD

pytestmark = pytest.mark.slow

MEASURED = {"inference_ms", "dense_ms", "cpu_seconds"}
RUNS = [
    *KEY,
    *("links", "epoch", "settled", "untouched", "val", "test"),
    *("links_kept", "weights_kept"),
    *("macs_paper", "macs_executed", "macs_training"),
    *("inference_ms", "dense_ms", "cpu_seconds"),
]


def tables_of(folder):
    """The tables without what was measured by a clock."""
    return {
        table: [{c: v for c, v in row.items() if c not in MEASURED} for row in rows]
        for table, rows in read_tables(folder).items()
    }


def go(experiment, folder, *, seeds):
    """Run it on digits in one process beside this one; gives the progress told."""
    counts = []
    tables = reproduce(
        experiment,
        folder,
        graphs=["digits"],
        seeds=seeds,
        quick=True,
        workers=1,
        on_done=lambda *count: counts.append(count),
    )
    return tables, counts


# ------------------------------------------- what is written, and grown by seeds


@pytest.fixture(scope="module")
def small():
    """fig4 cut down to three jobs a seed: a dense model, a ticket, distances."""
    fig4 = EXPERIMENTS.find("fig4")

    def jobs(graph, seed):
        dense, ticket, *others = fig4.jobs(graph, seed)
        return [dense, ticket, next(j for j in others if j.method == "distances")]

    return replace(fig4, jobs=jobs)


@pytest.fixture(scope="module")
def one(small, tmp_path_factory):
    """One seed of it at one go: folder, tables, progress."""
    folder = tmp_path_factory.mktemp("small") / "fig4"
    return folder, *go(small, folder, seeds=1)


@pytest.fixture(scope="module")
def grown(small, one, tmp_path_factory):
    """The same after a kill between the tables of its last job, grown by a seed.

    The last job's distances were written; its row in the table that says what is done
    was not.
    """
    folder = tmp_path_factory.mktemp("grown") / "fig4"
    shutil.copytree(one[0], folder)
    (folder / "stops.csv").unlink()
    (folder / ".runs.csv.abc").write_text("a temporary file of a killed process")
    return folder, *go(small, folder, seeds=2)


def test_runs_csv_has_one_row_for_each_trained_model(one):
    folder, tables, _ = one
    rows = read_rows(folder / "runs.csv")
    assert rows == tables["runs"]
    assert [(row["method"], row["links"]) for row in rows] == [
        ("dense", "all"),
        *(("joint-EB", links) for links in ("learned", "random", "all")),
    ]
    for row in rows:
        assert (row["dataset"], row["model"], row["seed"]) == ("digits", "gcn", "0")


def test_columns_and_their_order_are_stable(one):
    assert (one[0] / "runs.csv").read_text().partition("\n")[0] == ",".join(RUNS)
    heads = {
        table: ",".join(column for column in rows[0] if column not in KEY)
        for table, rows in one[1].items()
    }
    assert heads["trajectories"] == "group,epoch,distance"
    assert heads["matrix"] == "group,epoch,other,distance"
    assert heads["stops"] == "stop_graph,stop_weights,stop_joint"


def test_rows_hold_what_the_columns_promise(one):
    for row in one[1]["runs"]:
        dense = row["method"] == "dense"
        ratios = ("0.0", "0.0") if dense else ("0.2", "0.5")
        assert (row["graph_ratio"], row["weight_ratio"]) == ratios
        links = 10_071 if row["links"] == "all" else 10_071 - 2014
        assert int(row["links_kept"]) == links
        assert int(row["weights_kept"]) == (1184 if dense else 592)
        assert 0 <= float(row["test"]) <= 100 and 0 <= float(row["val"]) <= 100
        assert (row["draw"], row["watch"]) == ("", "")
        assert (row["epoch"] == "") == dense
        assert row["settled"] == "" if dense else row["settled"] in ("True", "False")
        for column in ("macs_executed", "macs_training", *MEASURED):
            assert float(row[column]) > 0, column


def test_a_tickets_rows_share_its_search(one):
    _, *three = one[1]["runs"]
    for column in ("epoch", "settled", "untouched"):
        assert len({row[column] for row in three}) == 1


def test_training_macs_count_the_search_and_the_retraining(one):
    dense, learned, random, every = one[1]["runs"]
    macs = [int(row["macs_training"]) for row in (dense, learned, random, every)]
    assert macs[0] % 20 == 0
    epoch = macs[0] // 20
    assert epoch * int(learned["epoch"]) < macs[1] < macs[3]
    assert macs[3] == pytest.approx(epoch * (int(learned["epoch"]) + 20), rel=0.05)


def test_the_first_job_is_not_charged_for_starting_up(one):
    dense, *tickets = (float(row["cpu_seconds"]) for row in one[1]["runs"])
    assert dense < min(tickets)  # torch's compiler takes a second to import


def test_progress_counts_jobs_from_those_done_to_all(one, grown):
    assert one[2] == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert grown[2] == [(2, 6), (3, 6), (4, 6), (5, 6), (6, 6)]


def test_experiment_json_says_what_was_run_and_where(grown):
    about = json.loads((grown[0] / "experiment.json").read_text())
    assert about["experiment"] == "fig4" and about["quick"] is True
    assert about["graphs"] == ["digits"] and about["seeds"] == 2
    for fact in ("processor", "cores", "gebt", "torch", "python"):
        assert about["provenance"][fact]
    assert about["format"] == 1 and about["provenance"]["threads"] == 1
    [earlier] = about["earlier"]
    assert earlier["gebt"] == about["provenance"]["gebt"]


def test_distances_are_kept_epoch_by_epoch_and_for_all_pairs_of_one_seed(grown):
    tables = grown[1]
    assert set(tables) == {*TABLES} - {"links", "tasks"}  # which fig4 has not
    for seed, group in product("01", ("graph", "weights")):
        mine = pick(tables["trajectories"], seed=seed, group=group)
        assert [row["epoch"] for row in mine] == [str(e) for e in range(2, 21)]
    assert {row["seed"] for row in tables["matrix"]} == {"0"}
    assert all(0 <= float(row["distance"]) <= 1 for row in tables["matrix"])
    for group in ("graph", "weights"):
        mine = pick(tables["matrix"], group=group)
        pairs = [(int(row["epoch"]), int(row["other"])) for row in mine]
        seen = {epoch for pair in pairs for epoch in pair}
        assert sorted(pairs) == [
            (a, b) for a in sorted(seen) for b in sorted(seen) if b < a
        ]
        assert min(seen) == 1 and len(seen) >= 10


def test_stops_are_where_the_detector_would_have_stopped(grown):
    for row, watch in product(grown[1]["stops"], ("graph", "weights")):
        mine = pick(grown[1]["trajectories"], seed=row["seed"], group=watch)
        below = [r["epoch"] for r in mine if float(r["distance"]) < 0.1]
        late = [epoch for epoch in below if int(epoch) > 3]  # after a whole window
        assert row[f"stop_{watch}"] == (late[0] if late else "")


def test_the_joint_stop_is_where_the_ticket_was_drawn(grown):
    for row in grown[1]["stops"]:
        ticket = pick(grown[1]["runs"], seed=row["seed"], links="learned")[0]
        drawn = row["stop_joint"] or "20"
        assert ticket["epoch"] == drawn
        assert ticket["settled"] == str(bool(row["stop_joint"]))


def test_more_seeds_run_only_the_missing_ones(one, grown):
    # Measured times and all.
    assert pick(grown[1]["runs"], seed=0) == one[1]["runs"]
    assert [row["seed"] for row in grown[1]["runs"]] == ["0"] * 4 + ["1"] * 4


def test_what_a_kill_left_half_written_is_repaired(one, grown):
    for table in ("trajectories", "matrix", "stops"):
        assert pick(grown[1][table], seed=0) == one[1][table]


def test_the_tables_that_say_what_is_done_are_written_last(grown):
    # Also when resumed, where they were read back from their files.
    written = {t: (grown[0] / f"{t}.csv").stat().st_mtime_ns for t in grown[1]}
    assert written["stops"] >= max(written["trajectories"], written["matrix"])


def test_a_finished_experiment_runs_nothing_again(small, grown):
    folder, tables, _ = grown
    before = {path: path.read_bytes() for path in folder.glob("*.csv")}
    again, counts = go(small, folder, seeds=2)
    assert counts == [(6, 6)]
    assert again == tables
    assert {path: path.read_bytes() for path in folder.glob("*.csv")} == before


def test_fewer_seeds_give_fewer_rows_and_delete_none(small, one, grown, tmp_path):
    shutil.copytree(grown[0], tmp_path / "x")
    fewer, _ = go(small, tmp_path / "x", seeds=1)
    assert fewer == one[1]
    assert read_tables(tmp_path / "x") == read_tables(grown[0])


def pick(rows, **wanted):
    return [r for r in rows if all(r[c] == str(v) for c, v in wanted.items())]


# -------------------------------------------------------- stopped and gone on


def start(folder, *options):
    """A real `gebt reproduce`, alone in its process group and on one core."""
    code = "import os, sys; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
    code += "sys.argv[0] = 'gebt'; from gebt.cli.entry import main; main()"
    return subprocess.Popen(
        [
            *(sys.executable, "-c", code, "reproduce", "fig2", "--graph", "digits"),
            *("--quick", "--seeds", "1", "--out", str(folder), *options),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def done_in(folder):
    rows = read_tables(folder).get("stops", [])
    return {tuple(row[column] for column in KEY) for row in rows}


def wait_until(true, process=None):
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.005)


def children_of(pid):
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in found.split()]


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """fig2 killed, and gone on with and interrupted: its folder and what was seen."""
    if not Path("/proc/self/task").is_dir() or not hasattr(os, "sched_setaffinity"):
        pytest.skip("needs Linux: its /proc names a pool's processes")
    folder = tmp_path_factory.mktemp("stopped") / "fig2"
    seen = {}
    for stage, options, act in (
        ("killed", [], lambda process: process.kill()),
        ("interrupted", ["--resume"], lambda p: os.killpg(p.pid, signal.SIGINT)),
    ):
        before = done_in(folder)
        process = start(folder, *options)
        try:
            wait_until(lambda before=before: done_in(folder) > before, process)
            children = children_of(process.pid)
            act(process)
            out, err = process.communicate(timeout=60)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        wait_until(lambda pids=children: not any(map(alive, pids)))
        seen[stage] = (process.returncode, out, err, done_in(folder))
    return folder, seen


@pytest.fixture(scope="module")
def finished(stopped, tmp_path_factory):
    """The same run to its end, and its jobs run here: folders, and progress told."""
    folder, _ = stopped
    fig2, unbroken = EXPERIMENTS.find("fig2"), tmp_path_factory.mktemp("unbroken")
    _, counts = go(fig2, folder, seeds=1)
    tables = {}
    for job in fig2.jobs("digits", 0):
        for table, rows in _run((job, None, True, {})).items():
            tables.setdefault(table, []).extend(rows)
    for table, rows in tables.items():
        write_csv(unbroken / f"{table}.csv", rows)
    return folder, unbroken, counts


def test_a_killed_run_keeps_what_was_finished_and_leaves_no_process(stopped):
    code, _, _, jobs = stopped[1]["killed"]
    assert code == -signal.SIGKILL
    assert 1 <= len(jobs) < 9


def test_ctrl_c_is_one_line_and_leaves_no_process(stopped):
    code, out, err, jobs = stopped[1]["interrupted"]
    before = stopped[1]["killed"][3]
    assert code == 130
    said = f"gebt: interrupted; what was finished is in {stopped[0]}; the same command "
    assert err.strip() == f"{said}with --resume goes on."
    assert f"  {len(before)}/9 runs" in out  # where the killed run had stopped
    assert before < jobs and len(jobs) < 9


def test_a_resumed_run_equals_an_unbroken_one(stopped, finished):
    folder, unbroken, counts = finished
    already = len(stopped[1]["interrupted"][3])
    assert counts == [(done, 9) for done in range(already, 10)]
    for table in ("trajectories", "matrix", "stops"):  # nothing here is measured
        name = f"{table}.csv"
        assert (folder / name).read_bytes() == (unbroken / name).read_bytes()


def test_a_finished_command_leaves_tables_page_and_figures_and_no_litter(
    finished, gebt_here, tmp_path
):
    # Without the pairs of epochs, whose many panels take long to draw.
    folder = tmp_path / "fig2"
    shutil.copytree(finished[0], folder, ignore=shutil.ignore_patterns("matrix.csv"))
    options = ("--graph", "digits", "--quick", "--seeds", "1", "--out", folder)
    answer = gebt_here("reproduce", "fig2", *options, "--resume", "--quiet")
    assert (answer.returncode, answer.stderr) == (0, "")
    names = {path.name for path in folder.iterdir()}
    tables = {"trajectories.csv", "stops.csv"}
    assert names == tables | {RECORD, "experiment.json", "report.html", "figures"}


def test_a_process_that_dies_is_told_and_not_waited_for():
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        processes = multiprocessing.active_children()
        results = _watched(pool.imap_unordered(os._exit, [1]), processes)
        with pytest.raises(OSError, match="a process died.* resume"):
            next(results)


# ------------------------------------------------------------------- refusals


def test_an_unknown_experiment_lists_the_known_ones(gebt_here):
    assert_refused(
        gebt_here("reproduce", "fig3"), "'fig3'", f"among {len(EXPERIMENTS)}", "'fig6'"
    )


def test_an_experiment_that_is_there_is_not_touched_without_resume(gebt_here, one):
    folder, _, _ = one
    before = (folder / "runs.csv").read_bytes()
    answer = gebt_here("reproduce", "fig4", "--graph", "digits", "--out", folder)
    assert_refused(answer, str(folder), "--resume", "--force")
    assert (folder / "runs.csv").read_bytes() == before


def test_a_folder_of_another_experiment_is_refused(gebt_here, one):
    folder, _, _ = one
    options = ("--graph", "digits", "--quick", "--resume", "--out", folder)
    answer = gebt_here("reproduce", "fig2", *options)
    assert_refused(answer, "'fig4'", "'fig2'", "another folder")


def test_a_folder_of_other_options_is_refused(gebt_here, one):
    folder, _, _ = one
    options = ("--graph", "digits", "--resume", "--out", folder)
    answer = gebt_here("reproduce", "fig4", *options)
    assert_refused(answer, "quick = True", "another folder")


def test_rows_of_a_graph_that_has_changed_are_not_added(gebt_here, one, tmp_path):
    folder, path = tmp_path / "fig4", tmp_path / "fig4" / "experiment.json"
    shutil.copytree(one[0], folder)
    about = json.loads(path.read_text())
    assert about["fingerprints"] == {"digits": load("digits").fingerprint()}
    path.write_text(json.dumps(about | {"fingerprints": {"digits": "0" * 64}}))
    before = (folder / "runs.csv").read_bytes()
    options = ("--graph", "digits", "--quick", "--resume", "--out", folder)
    answer = gebt_here("reproduce", "fig4", *options)
    assert_refused(answer, "the graph digits is not what it was", "another folder")
    assert (folder / "runs.csv").read_bytes() == before


def test_an_unknown_graph_is_refused_before_anything_is_written(gebt_here, tmp_path):
    answer = gebt_here("reproduce", "fig2", "--graph", "digit", "--out", tmp_path / "x")
    assert_refused(answer, "'digit'", "Did you mean 'digits'?")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("resume", [[], ["--resume"]])
def test_a_folder_that_holds_something_else_is_refused(gebt_here, tmp_path, resume):
    (tmp_path / "thesis.tex").write_text("years of work")
    answer = gebt_here(
        "reproduce", "fig2", "--graph", "digits", "--out", tmp_path, *resume
    )
    assert_refused(answer, "not empty")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "it is no JSON that gebt writes"),
        ("[]", "must be an object"),
        ('{"experiment": 4}', "`experiment` must be text, got 4"),
        ('{"experiment": "fig4", "quick": 1}', "`quick` must be true or false"),
        (
            '{"experiment": "fig4", "quick": true, "machine": {}, "earlier": [3]}',
            "`earlier[0]` must be an object",
        ),
    ],
)
def test_a_record_that_is_none_is_named_and_left_as_it_was(
    gebt_here, tmp_path, content, words
):
    path = tmp_path / "experiment.json"
    path.write_text(content)
    options = ("--graph", "digits", "--quick", "--resume", "--out", tmp_path)
    assert_refused(gebt_here("reproduce", "fig4", *options), str(path), words)
    assert path.read_text() == content


@pytest.mark.parametrize("content", ["", "a,b\n1,2\n"])
def test_a_table_that_is_none_is_named(gebt_here, one, tmp_path, content):
    shutil.copy(one[0] / "experiment.json", tmp_path)
    (tmp_path / "runs.csv").write_text(content)
    options = ("--graph", "digits", "--quick", "--resume", "--out", tmp_path)
    assert_refused(gebt_here("reproduce", "fig4", *options), "runs.csv", "columns")


def test_other_csv_files_in_the_folder_are_left_alone(one, tmp_path):
    shutil.copytree(one[0], tmp_path / "x")
    (tmp_path / "x" / "notes.csv").write_text("mine\n1\n")
    assert tables_of(tmp_path / "x") == tables_of(one[0])


# -------------------------------------------------------------- the job lists


@pytest.mark.parametrize("graph", ["cora", "citeseer", "pubmed", "digits"])
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_no_job_is_listed_twice_and_every_method_is_known(name, graph):
    jobs = EXPERIMENTS[name].jobs(graph, 3)
    keys = [job.key for job in jobs]
    assert len(set(keys)) == len(keys)
    for job in jobs:
        assert job.method in ("distances", "tasks") or _method(job.method)
        assert (job.dataset, job.seed) == (graph, 3)
        assert 0 <= job.graph_ratio < 1 and 0 <= job.weight_ratio < 1


@pytest.mark.parametrize(
    ("dataset", "seed", "split"),
    [
        *(("tolokers", seed, seed % 10) for seed in (0, 3, 12)),
        ("tolokers:split=3", 1, None),
        ("digits", 1, None),
        ("synthetic:N=100", 1, None),
    ],
)
def test_each_seed_has_a_split_of_its_own_where_there_are_several(dataset, seed, split):
    assert _split(Job.dense(dataset, seed)) == split


def test_fig1_draws_at_every_epoch_and_where_the_detector_stops():
    jobs = EXPERIMENTS["fig1"].jobs("cora", 0)
    for ratio in (0.1, 0.3, 0.5, 0.7, 0.9):
        mine = [j.draw for j in jobs if j.graph_ratio == ratio]
        assert mine == [None, *DRAWS]
        assert all(j.weight_ratio == 0 for j in jobs if j.graph_ratio == ratio)


def test_fig4_has_the_supplements_three_stop_criteria():
    jobs = [j for j in EXPERIMENTS["fig4"].jobs("cora", 0) if j.method == "joint-EB"]
    for ratios in {(j.graph_ratio, j.weight_ratio) for j in jobs}:
        mine = [j for j in jobs if (j.graph_ratio, j.weight_ratio) == ratios]
        watched = {j.watch for j in mine if j.draw is None}
        assert watched == {None, "graph", "weights"}


def test_fig6_runs_every_baseline():
    assert {j.method for j in EXPERIMENTS["fig6"].jobs("cora", 0)} == set(METHODS)


def test_table2_runs_every_model_of_the_paper_beside_its_dense_self():
    jobs = EXPERIMENTS["table2"].jobs("cora", 0)
    for model in ("gcn", "sage", "gat", "gin"):
        methods = [j.method for j in jobs if j.model == model]
        assert methods[0] == "dense" and set(methods[1:]) == {"joint-EB"}
