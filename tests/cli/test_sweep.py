"""A grid of tickets: its flags, and that it is what single runs give, to the row."""

import json

import pytest
from helpers import call_gebt, read_rows

from gebt.cli.sweep import sweep_shares
from gebt.experiments.sweep import sweep_of


@pytest.mark.parametrize(
    "text, expected",
    [
        ("0.5", [0.5]),
        ("0.1:0.9:0.2", [0.1, 0.3, 0.5, 0.7, 0.9]),
        ("0.1:0.95:0.2", [0.1, 0.3, 0.5, 0.7, 0.9]),
        ("0:0.3:0.1", [0.0, 0.1, 0.2, 0.3]),  # 3 * 0.1 is more than 0.3
        ("0.9,0,0.1:0.3:0.1,0.2", [0.0, 0.1, 0.2, 0.3, 0.9]),
        ("0.2:0.2:0.1", [0.2]),
    ],
)
def test_shares_are_lists_and_ranges_with_both_ends(text, expected):
    assert sweep_shares("graph_ratio", text) == expected


@pytest.mark.parametrize(
    "text, words",
    [
        ("0.9:0.1:0.2", "the range 0.9:0.1:0.2 of `graph_ratio` is empty"),
        ("0.1:0.9:0", "the step of `graph_ratio` must be positive, got 0.1:0.9:0"),
        ("0.1:0.9:-0.1", "must be positive"),
        ("0.1:0.9:nan", "must be positive"),
        ("0.1:0.9", "such as 0,0.1:0.9:0.2, got '0.1:0.9'"),
        ("half", "got 'half'"),
        ("", "got ''"),
        ("0.1,,0.2", "got ''"),
        ("0.5:1:0.1", r"must lie in \[0, 1\), got 1.0"),
        ("-0.1", r"must lie in \[0, 1\), got -0.1"),
        ("nan", r"must lie in \[0, 1\), got nan"),
        ("0:0.9:1e-9", "must be at most 1000"),
    ],
)
def test_shares_that_are_none_are_refused(text, words):
    with pytest.raises(ValueError, match=words):
        sweep_shares("graph_ratio", text)


def test_a_grid_leaves_out_the_ticket_that_is_the_dense_model():
    jobs = sweep_of("gat", [0.0, 0.5], [0.0, 0.9], ["random", "voi"]).jobs("cora", 7)
    assert [(j.method, j.graph_ratio, j.weight_ratio) for j in jobs] == [
        ("dense", 0, 0),
        *((f"ticket by {c}", 0.0, 0.9) for c in ("random", "voi")),
        *((f"ticket by {c}", 0.5, 0.0) for c in ("random", "voi")),
        *((f"ticket by {c}", 0.5, 0.9) for c in ("random", "voi")),
    ]
    assert {(j.dataset, j.model, j.seed) for j in jobs} == {("cora", "gat", 7)}


SMALL = ("--weight-ratio", "0.5", "--epochs", "12", "--hidden", "8", "--quiet")


def sweep(*args):
    """Of digits, one seed, in this process and its pool's."""
    some = ("--graph-ratio", "0.2,0.6", *SMALL, "--jobs", "1", "--seeds", "1")
    assert call_gebt("sweep", "digits", *some, *args) == 0


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep by one criterion, gone on with by two: its folder, and its first rows."""
    folder = tmp_path_factory.mktemp("sweep") / "s"
    sweep("--criterion", "degree", "--out", folder)
    before = read_rows(folder / "runs.csv")
    sweep("--criterion", "degree,voi", "--out", folder)
    return folder, before


@pytest.mark.slow
def test_a_sweep_has_a_row_for_each_ticket_and_goes_on(swept):
    folder, before = swept
    rows = read_rows(folder / "runs.csv")
    assert len(before) == 3 and len(rows) == 5
    assert all(row in rows for row in before)  # times, too: none was run again
    found = [(row["links"], row["graph_ratio"]) for row in rows]
    tickets = [(c, r) for r in ("0.2", "0.6") for c in ("degree", "voi")]
    assert found == [("all", "0.0"), *tickets]
    page = (folder / "report.html").read_text()
    assert "digits, gcn: every combination" in page and "→ " in page
    assert "hidden 8; epochs 12; " in page and page.count("<svg") == 2


@pytest.mark.slow
def test_a_row_is_what_the_single_run_gives(swept, tmp_path):
    asked = ("--graph-ratio", "0.6", "--criterion", "degree", *SMALL)
    assert call_gebt("run", "digits", *asked, "--out", tmp_path / "r") == 0
    [run] = json.loads((tmp_path / "r" / "metrics.json").read_text())["runs"]
    rows = read_rows(swept[0] / "runs.csv")
    dense, ticket = (
        next(r for r in rows if (r["links"], r["graph_ratio"]) == key)
        for key in (("all", "0.0"), ("degree", "0.6"))
    )
    for row, scores in ((dense, run["dense"]), (ticket, run["retrained"])):
        for part in ("val", "test"):
            assert float(row[part]) == round(scores[part], 3)
    assert int(ticket["epoch"]) == run["ticket"]["epoch"]
    assert int(ticket["links_kept"]) == run["ticket"]["links_kept"]


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--graph-ratio", "0.1:0.9:0"], "the step of `--graph-ratio`"),
        (["--graph-ratio", "0", "--weight-ratio", "0"], "both 0: nothing to prune"),
        (["--criterion", "random,degre"], "Did you mean 'degree'"),
        (["--jobs", "0"], "--jobs"),
    ],
)
def test_what_makes_no_sweep_is_refused_in_one_line(flags, words, tmp_path, capsys):
    assert call_gebt("sweep", "digits", "--out", tmp_path / "s", *flags) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_another_sweep_in_the_same_folder_is_refused(swept, capsys):
    assert call_gebt("sweep", "digits", "--seeds", "1", "--out", swept[0]) == 2
    assert "holds changes = {'" in capsys.readouterr().err


def test_without_validation_nodes_a_sweep_has_its_page(tmp_path):
    nodes = ["id,a,y,split"]
    nodes += [f"{k},{k % 3},{k % 2},{('train', 'test')[k % 5 < 2]}" for k in range(40)]
    (tmp_path / "nodes.csv").write_text("\n".join(nodes))
    edges = [f"{k},{(k + step) % 40}" for k in range(40) for step in (1, 2, 5)]
    (tmp_path / "edges.csv").write_text("\n".join(["from,to", *edges]))
    tables = (tmp_path / "edges.csv", "--nodes", tmp_path / "nodes.csv", "--label", "y")
    grid = ("--graph-ratio", "0.2", "--criterion", "random", "--seeds", 2, "--jobs", 1)
    out = tmp_path / "out"
    assert not call_gebt("sweep", *tables, *grid, *SMALL, "--out", out)
    assert {row["val"] for row in read_rows(out / "runs.csv")} == {"nan"}
    assert "every combination" in (out / "report.html").read_text()
