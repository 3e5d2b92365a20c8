"""A ticket's weights on another graph, frozen or not."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import assert_refused, same

import gebt
from gebt import (
    Hierarchical,
    MaskDistanceDetector,
    Ordinal,
    Ticket,
    find_ticket,
    freeze,
    train,
    transfer,
)
from gebt._registry import MODELS
from gebt.cli.resume import words_of
from gebt.models import GCN, build_model
from gebt.tickets.transfer import head

ONE = "synthetic:N=300,E=1500,F=16,C=6,ordinal=1"
OTHER = ONE + ",seed=1"


@pytest.fixture(scope="module")
def graphs():
    return gebt.load(ONE), gebt.load(OTHER)


def drawn(graph, criterion="learned", hidden=8):
    torch.manual_seed(0)
    model = GCN(16, hidden, 6)
    options = {"graph_ratio": 0.4, "weight_ratio": 0.5, "criterion": criterion}
    options |= {"task": Ordinal(), "detector": MaskDistanceDetector(2)}
    return find_ticket(model, graph, **options)


def test_the_weights_are_the_tickets_and_all_links_are_kept_and_it_is_said(
    graphs, caplog
):
    one, other = graphs
    ticket = drawn(one)
    with caplog.at_level("INFO", "gebt"):
        moved = transfer(ticket, other)
    assert "all those of synthetic:" in caplog.text and OTHER[10:15] in caplog.text
    model = build_model(dict(moved.model))
    small = moved.open(model, other)
    assert small.links_kept == other.num_links
    assert same(moved.weights, ticket.weights)
    assert same(moved.weight_masks, ticket.weight_masks)
    for name, mask in ticket.weight_masks.items():
        expected = ticket.weights[name] * mask
        assert torch.equal(model.get_parameter(name).detach(), expected)
    assert moved.options["graph_ratio"] == 0 and ticket.options["graph_ratio"] == 0.4


def test_a_criterion_of_any_graph_chooses_the_links(graphs, caplog):
    one, other = graphs
    ticket = drawn(one, "low-degree")
    with caplog.at_level("INFO", "gebt"):
        moved = transfer(ticket, other)
    assert torch.equal(moved.link_mask, ticket.links_for(other))
    assert moved.links_kept == other.num_links - int(0.4 * other.num_links)
    assert not caplog.text


def test_on_its_own_graph_a_ticket_keeps_its_links_for_another_task(graphs):
    one, _ = graphs
    ticket = drawn(one)
    moved = transfer(ticket, one, task=Hierarchical())
    assert torch.equal(moved.link_mask, ticket.link_mask)
    assert torch.equal(moved.link_score, ticket.link_score)


def test_other_classes_get_a_new_head_that_is_whole(graphs):
    one, _ = graphs
    ticket = drawn(one)
    other = gebt.load("synthetic:N=200,E=900,F=16,C=4,ordinal=1")
    moved, again = transfer(ticket, other), transfer(ticket, other)
    assert same(moved.weights, again.weights)
    assert not same(moved.weights, transfer(ticket, other, seed=9).weights)
    assert moved.model["arguments"]["num_outputs"] == 4
    assert [*moved.weight_masks] == ["layers.0.weight"]
    assert torch.equal(
        moved.weights["layers.0.weight"], ticket.weights["layers.0.weight"]
    )
    model = build_model(dict(moved.model))
    train(model, moved.open(model, other), epochs=2, task=Ordinal())


def test_it_is_a_ticket_that_can_be_saved(graphs, tmp_path):
    moved = transfer(drawn(graphs[0]), graphs[1], task=Hierarchical([0, 0, 0, 1, 1, 1]))
    moved.save(tmp_path / "t.safetensors")
    again = Ticket.load(tmp_path / "t.safetensors")
    assert same(again.weights, moved.weights)
    assert again.dataset["name"] == graphs[1].name
    assert again.options["task"] == {
        "name": "hierarchical",
        "coarse": [0, 0, 0, 1, 1, 1],
    }


@pytest.mark.parametrize("name", ["gcn", "gcn-res", "gat", "sage", "gin"])
def test_frozen_only_the_head_changes(graphs, name):
    graph = graphs[1]
    model = MODELS[name].new(16, 6)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    freeze(model)
    train(model, graph, epochs=3, task=Ordinal())
    changed = {
        n for n, p in model.named_parameters() if not torch.equal(p.detach(), before[n])
    }
    assert changed == head(model)
    assert all(n.startswith(f"layers.{len(model.layers) - 1}.") for n in changed)


class Bare(torch.nn.Module):
    """Its matrices are its own, in no module."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Parameter(torch.randn(16, 8))
        self.last = torch.nn.Parameter(torch.randn(8, 6))

    def forward(self, x, adjacency):
        return adjacency @ (adjacency @ (x @ self.first)).relu() @ self.last


def test_the_head_of_a_model_without_modules_is_its_last_matrix(graphs):
    model = Bare()
    freeze(model)
    assert head(model) == {"last"}
    assert not model.first.requires_grad and model.last.requires_grad
    train(model, graphs[0], epochs=1)


def test_other_features_are_refused(graphs):
    ticket = drawn(graphs[0])
    wider = gebt.load("synthetic:N=200,E=900,F=17,C=6,ordinal=1")
    with pytest.raises(ValueError, match=r"reads 16 features, but .* has\s+17"):
        transfer(ticket, wider)
    with pytest.raises(ValueError, match="no labels"):
        transfer(ticket, replace(graphs[1], y=None))


def test_a_generator_gives_the_same_features_to_every_seed(graphs):
    """What classes are like: a model of one graph knows the other."""
    one, other = graphs
    torch.manual_seed(0)
    model = GCN(16, 16, 6)
    train(model, one, epochs=60, task=Ordinal())
    here, there = (gebt.evaluate(model, each, task=Ordinal()) for each in graphs)
    assert there > here - 20 and there > 40
    assert not torch.equal(one.x, other.x)


# ----------------------------------------------------------- the command line


@pytest.fixture(scope="module")
def ticket(tmp_path_factory, graphs):
    path = tmp_path_factory.mktemp("ticket") / "ticket.safetensors"
    drawn(graphs[0]).save(path)
    return path


def test_retrain_from_is_transfer_and_training(gebt_here, tmp_path, ticket, graphs):
    given = ("--from", ticket, "--epochs", 4, "--out")
    for out, more in (("all", ()), ("frozen", ("--frozen",))):
        result = gebt_here("retrain", OTHER, *given, out, *more)
        assert result.returncode == 0, result.stderr
        assert "all those of synthetic:" in result.stderr
        record = json.loads((tmp_path / out / "metrics.json").read_text())
        assert (record["dataset"], record["task"]) == (graphs[1].name, "ordinal")
        [run] = record["runs"]
        assert run["ticket"]["links_kept"] == 1500
        moved = transfer(Ticket.load(ticket), graphs[1])
        model = build_model(dict(moved.model))
        small = moved.open(model, graphs[1])
        if more:
            freeze(model)
        fit = gebt.Fit.from_dict({**moved.options, "epochs": 4})
        val = train(model, small, fit=fit, seed=moved.seed, task=Ordinal()).val
        assert run["retrained"]["val"] == val
        assert run["absolute_error"]["ticket"] == gebt.absolute_error(
            model, small, task=Ordinal()
        )


def test_retrain_from_learns_another_task(gebt_here, tmp_path, ticket):
    given = ("--from", ticket, "--epochs", 2, "--task", "regression", "--out", "o")
    result = gebt_here("retrain", OTHER, *given)
    assert result.returncode == 0, result.stderr
    record = json.loads((tmp_path / "o/metrics.json").read_text())
    assert record["task"] == "regression"


@pytest.mark.parametrize(
    "words, said",
    [
        (["{ticket}", "--frozen"], "`--frozen` is of another graph"),
        (["{ticket}", "--task", "ordinal"], "`--task` is of another graph"),
        (["digits", "--from", "{ticket}"], "reads 16 features, but 'digits' has 64"),
        (["digtis", "--from", "{ticket}"], "Did you mean 'digits'"),
        (["digits", "--from", "absent"], "no ticket file"),
        (
            [OTHER, "--from", "{ticket}", "--task", "hierarchical:0,1"],
            "coarse class for 2 classes",
        ),
        ([OTHER, "--from", "{ticket}", "--task", "multi-label"], "one class per node"),
    ],
)
def test_what_does_not_fit_is_one_line(gebt_here, tmp_path, ticket, words, said):
    given = [word.replace("{ticket}", str(ticket)) for word in words]
    assert_refused(gebt_here("retrain", *given), said)
    assert not list(tmp_path.iterdir())


def test_resuming_gives_the_words_again():
    flags = {"ticket_path": Path(OTHER), "from_": Path("t"), "frozen": True}
    assert words_of(flags) == ["--from", "t", "--frozen", "--", OTHER]


def test_from_stands_in_a_config_file(gebt_here, tmp_path, ticket):
    (tmp_path / "c.toml").write_text(f'from = "{ticket}"\nepochs = 2\nout = "o"\n')
    result = gebt_here("retrain", OTHER, "--config", "c.toml")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "o/metrics.json").is_file()


def test_all_operators_of_a_supernets_last_layer_are_its_head(graphs):
    one, other = graphs
    torch.manual_seed(0)
    model = gebt.models.SuperGNN(16, 4, 6)
    freeze(model)
    learns = {name for name, p in model.named_parameters() if p.requires_grad}
    assert learns == {n for n in head(model) if "branches" in n}
    assert {name.split(".")[3] for name in learns} == {*gebt.models.OPERATORS}
    small, ticket = gebt.find_super_ticket(model.requires_grad_(), one, epochs=10)
    few = replace(other, y=other.y % 3)
    moved = transfer(ticket, few)
    new = build_model(moved.model)
    pruned = moved.open(new, few)
    assert new(pruned.x, pruned.adjacency).shape == (300, 3)
