"""`gebt run --model super`: the search, its files, and what it refuses."""

import json

import pytest

from gebt import Ticket, load_compact

GRAPH = "synthetic:N=200,E=600,F=12,C=3"
SHORT = ("--model", "super", "--epochs", "20", "--hidden", "2", "--quiet")


def test_run_searches_a_supernet_and_its_ticket_can_be_retrained(gebt_here, tmp_path):
    done = gebt_here("run", GRAPH, *SHORT, "--out", "one")
    assert done.returncode == 0, done.stderr
    ticket = Ticket.load(tmp_path / "one" / "ticket.safetensors")
    assert ticket.model["class"] == "SuperGNN" and ticket.epoch == 20
    assert ticket.links_kept == ticket.num_links  # none unless asked for
    metrics = json.loads((tmp_path / "one" / "metrics.json").read_text())
    assert metrics["options"]["model"] == "super"
    model, graph = load_compact(tmp_path / "one" / "compact.safetensors")
    assert model(graph.x, graph.adjacency).isfinite().all()
    path = tmp_path / "one" / "ticket.safetensors"
    again = gebt_here("retrain", path, "--epochs", "2", "--quiet", "--out", "two")
    assert again.returncode == 0, again.stderr
    done = gebt_here("run", "--config", "one/run.toml", "--out", "same", "--quiet")
    assert done.returncode == 0, done.stderr
    assert path.read_bytes() == (tmp_path / "same" / path.name).read_bytes()


def test_links_leave_by_what_ranks_them_and_search_draws_the_same(gebt_here, tmp_path):
    ratio = ("--graph-ratio", "0.4", "--criterion", "random")
    for command in ("run", "search"):
        done = gebt_here(command, GRAPH, *SHORT, *ratio, "--out", command)
        assert done.returncode == 0, done.stderr
    tickets = [
        Ticket.load(tmp_path / command / "ticket.safetensors")
        for command in ("run", "search")
    ]
    assert (tickets[0].link_mask == tickets[1].link_mask).all()
    assert tickets[0].links_kept == tickets[0].num_links - int(
        0.4 * tickets[0].num_links
    )


def test_max_drop_takes_a_supernet_as_any_other_model(gebt_here, tmp_path):
    done = gebt_here("run", GRAPH, *SHORT, "--max-drop", "5", "--out", "cheap")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "cheap" / "metrics.json").is_file()


@pytest.mark.parametrize("flag", ["threshold", "window", "parts"])
def test_flags_of_the_detector_are_refused_in_a_line(gebt_here, flag):
    done = gebt_here("run", GRAPH, *SHORT, f"--{flag}", "1")
    assert done.returncode == 2
    assert f"`--{flag}` is not of a supernet's search" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
