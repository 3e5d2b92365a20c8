"""A supernet's ticket against single operators as dear, and its page."""

import pytest
import torch

import gebt
from gebt._registry import EXPERIMENTS, MODELS
from gebt.deploy.compaction import compact
from gebt.deploy.cost import executed_macs
from gebt.experiments.methods import Setting
from gebt.experiments.operators import FRESH, RANDOM, SINGLE, SUPERNET, TICKET
from gebt.experiments.runner import KEY
from gebt.experiments.studies import STUDIES
from gebt.learn.tasks import NodeClassification
from gebt.learn.training import evaluate
from gebt.models import GAT, GCN, GIN, GraphSAGE, SuperGNN
from gebt.prune.weights import prunable_weights
from gebt.report.page import Figure, Table

TASK = NodeClassification()
PARTS = "train", "val", "test"


@pytest.fixture(scope="module")
def outcomes():
    """Of both supernets what the method gives, by what it is called."""
    draw = torch.Generator().manual_seed(3)
    x = (torch.rand(90, 40, generator=draw) < 0.1).float()
    source = torch.randint(90, (300,), generator=draw)
    edges = torch.stack([source, (source + 1 + torch.arange(300) % 80) % 90])
    edges = edges.unique(dim=1)
    y = torch.randint(3, (90,), generator=draw)
    part = torch.arange(90) % 3
    masks = {
        f"{name}_mask": part == k for k, name in enumerate(("train", "val", "test"))
    }
    data = {"x": x, "edge_index": edges, "y": y, **masks}
    graph = gebt.Graph.from_pyg(data, directed=False)
    found = {}
    for name in ("super", "super-res"):
        recipe = MODELS.find(name).changed(epochs=12, hidden=3, lr=0.1)
        setting = Setting(graph, TASK, recipe, 0.0, 0.5, seed=1, quick=True)
        found[name] = {o.links: o for o in STUDIES["supertickets"](setting)}
    return graph, found


@pytest.mark.parametrize("name", ["super", "super-res"])
def test_single_operators_cost_no_less_than_the_ticket_and_one_unit_less_would(
    outcomes, name
):
    graph, found = outcomes[0], outcomes[1][name]
    assert [*found] == [SUPERNET, TICKET, FRESH, RANDOM, *SINGLE]
    for outcome in found.values():
        assert outcome.val == evaluate(outcome.model, graph, "val", task=TASK)
    ticket = found[TICKET]
    assert ticket.ticket.epoch == 12 and (ticket.full_epochs, ticket.epochs) == (12, 12)
    macs = executed_macs(*compact(ticket.model, graph))
    classes = dict(zip(SINGLE, (GCN, GraphSAGE, GIN, GAT), strict=True))
    for single, kind in classes.items():
        model = found[single].model
        assert type(model) is kind
        assert executed_macs(model, graph) >= macs
        hidden = model.arguments["hidden"]
        width = hidden if isinstance(hidden, int) else hidden[0]
        if width > 1:
            less = {"hidden": [width - 1] * (len(model.layers) - 1)}
            narrower = kind(**model.arguments | less)
            assert executed_macs(narrower, graph) < macs


def test_controls_are_as_large_as_the_ticket(outcomes):
    found = {name: each.model for name, each in outcomes[1]["super"].items()}
    sizes = [[len(s) for s in found[n].scales()] for n in (TICKET, FRESH, RANDOM)]
    assert sizes[0] == sizes[1] == sizes[2]
    kept = [
        {n: w != 0 for n, w in prunable_weights(found[name]).items()}
        for name in (TICKET, FRESH)
    ]
    assert all(torch.equal(kept[0][n], kept[1][n]) for n in kept[0])
    assert isinstance(found[SUPERNET], SuperGNN)


def test_in_deeper_supernets_single_operators_have_the_supernets_shape(outcomes):
    for name in SINGLE:
        model = outcomes[1]["super-res"][name].model
        assert len(model.layers) == 3 and model.arguments["norm"] == "batch"
        assert model.arguments.get("residual", False) == (name != "sage")
        assert model.arguments["dropout"] == MODELS["super-res"].dropout


def test_the_page_compares_the_ticket_with_each_and_says_what_stays():
    experiment = EXPERIMENTS["supertickets"]
    jobs = [job for seed in range(3) for job in experiment.jobs("cora", seed)]
    assert {job.model for job in jobs} == {"super", "super-res"}
    rows, links = [], []
    for job in jobs:
        key = {name: str(value) for name, value in zip(KEY, job.key, strict=True)}
        kinds = [TICKET, SUPERNET, *SINGLE] if job.method == "supertickets" else ["all"]
        for n, kind in enumerate(kinds):
            worse = 10 * (
                job.model == "super-res"
            )  # so that validation takes the other
            row = {"links": kind, "test": str(80 - n), "val": str(80 + n - worse)}
            row |= {"inference_ms": "2.0", "dense_ms": "4.0", "cpu_seconds": "3.0"}
            rows.append(key | row | {"macs_executed": str(10**6 * (n + 1))})
        for name, share in (("gcn", "0.5"), ("gat", "0.25")):
            links.append(key | {"links": name, "share": share})
    table, left, figure = experiment.page("cora", {"runs": rows, "links": links})
    assert isinstance(table, Table) and isinstance(figure, Figure)
    names = [row[0] for row in table.rows]
    assert names == [TICKET, SUPERNET, *SINGLE, names[-2], "best single by validation"]
    assert table.rows[2][2].startswith("+2.0") and table.rows[2][4] == "3.00"
    assert table.rows[-1][2].startswith("+5.0")  # GAT, by these numbers
    assert [[*row] for row in left.rows] == [["50%", "25%"]]
    assert figure.draw().axes
    assert [*experiment.page("cora", {})] == []
