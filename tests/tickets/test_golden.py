"""Tickets that must not change, whatever moves: drawn before, compared one by one.

Each case of `CASES` searches a generated graph and retrains. Its ticket lies in
``golden`` beside this file as gebt 0.1 wrote it, with what retraining it gave. In
float64 and on one thread masks, epochs and distances come out alike on every machine;
other numbers to the last few bits, which MKL rounds by the processor.

After a change that is meant to draw other tickets: ``python`` this file.
"""

import json
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gebt
from gebt import ADMM, Graph, LinkPrediction, MaskDistanceDetector, Ticket
from gebt.kernels import backend
from gebt.models import GAT, GCN, GIN, GraphSAGE, ResGCN

FOLDER = Path(__file__).parent / "golden"
NAME = "synthetic:N=60,E=150,F=8,C=3,split=40-30-30,seed=3"


def undirected() -> Graph:
    graph = gebt.load(NAME)
    weight = 1 + torch.arange(graph.num_links, dtype=torch.float64) / graph.num_links
    adjacency = graph.adjacency.with_value(weight[graph.link])
    return replace(graph, x=graph.x.double(), adjacency=adjacency)


def directed() -> Graph:
    from types import SimpleNamespace

    graph = undirected()
    edges = graph.adjacency.pattern.edge_index[:, ::3]
    data = SimpleNamespace(x=graph.x, y=graph.y, edge_index=edges)
    return Graph.from_pyg(data, split=vars(graph.split), directed=True, name="directed")


def held_out() -> Graph:
    return undirected().hold_out_links(0.1, 0.2, seed=1)


@dataclass(frozen=True)
class Case:
    """A search and a retraining.

    Attributes:
        model: given F and the number of outputs.
        search: options of `find_ticket`.
        graph: what is searched.
        before: epochs of training before the search (Algorithm 1).
        weights: what retraining starts from.
    """

    model: Callable[[int, int], nn.Module]
    search: dict[str, Any] = field(default_factory=dict)
    graph: Callable[[], Graph] = undirected
    before: int = 0
    weights: str = "inherit"


def gcn(features: int, outputs: int) -> nn.Module:
    return GCN(features, [6, 5], outputs, dropout=0.4)


FROZEN = {"update_weights": False, "weight_ratio": 0.0, "epochs": 30}
CASES = {
    "gcn": Case(gcn),
    "gat": Case(lambda f, c: GAT(f, 4, c, heads=2, dropout=0.3)),
    "gin": Case(lambda f, c: GIN(f, 6, c, dropout=0.2), weights="rewind"),
    "sage": Case(lambda f, c: GraphSAGE(f, 6, c), weights="fresh"),
    "resgcn": Case(
        lambda f, c: ResGCN(f, 6, c, layers=3, recompute=True), {"scope": "layer"}
    ),
    "admm": Case(gcn, {"penalty": ADMM(0.05, prune_ratio=0.4), "graph_ratio": 0.4}),
    "alternate": Case(gcn, {"alternate": True, "graph_lr": 0.01}),
    "masked": Case(gcn, {"mask_weights": True, "decay": "all", "weight_decay": 0.1}),
    "rows": Case(gcn, {"unit": "row", "weight_ratio": 0.3}),
    "columns": Case(gcn, {"unit": "column", "scope": "layer", "weight_ratio": 0.3}),
    "keep": Case(gcn, {"keep": "an earlier search", "weight_ratio": 0.8}),
    "links-alone": Case(gcn, {"weight_ratio": 0.0}),
    "weights-alone": Case(gcn, {"graph_ratio": 0.0}),
    "directed": Case(gcn, graph=directed),
    "link-prediction": Case(
        gcn, {"task": LinkPrediction(k=3, width=4), "weight_decay": 0.0}, held_out
    ),
    "algorithm-1": Case(gcn, FROZEN, before=20, weights="fresh"),
    "sgcn": Case(
        gcn,
        {
            **FROZEN,
            "penalty": ADMM(0.05, prune_ratio=0.4),
            "graph_ratio": 0.4,
            "detector": {"warmup": 30},
        },
        before=20,
    ),
    "paper": Case(
        gcn,
        {
            "alternate": True,
            "mask_weights": True,
            "detector": {"scale": "first", "compare": "previous", "combine": "mean"},
        },
    ),
}


def draw(name: str) -> tuple[Ticket, dict[str, Any]]:
    """The ticket of a case, and what retraining it gives."""
    case = CASES[name]
    graph = case.graph()
    options = {"graph_ratio": 0.3, "weight_ratio": 0.5, "epochs": 60, "seed": 4}
    options |= case.search
    if "detector" in options:
        options["detector"] = MaskDistanceDetector(**options["detector"])
    task = options.get("task")
    torch.manual_seed(5)
    model = case.model(8, 4 if task else 3).double()
    with backend("reference"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the masks did not settle")
        if "keep" in options:
            earlier = gebt.find_ticket(model, graph, weight_ratio=0.5, epochs=5)
            options["keep"] = earlier.weight_masks
        if case.before:
            gebt.train(model, graph, epochs=case.before, seed=2)
        losses: list[float] = []
        given: Any = {**options, "on_epoch": lambda e: losses.append(e.loss)}
        ticket = gebt.find_ticket(model, graph, **given)
        weights: Any = case.weights
        small = ticket.open(model, graph, weights=weights)
        keep = ticket.weight_masks
        training = gebt.train(model, small, keep=keep, epochs=8, task=task, seed=6)
        found = {
            "search": losses,
            "retrain": [[epoch.loss, epoch.val] for epoch in training.history],
            "best": training.best_epoch,
            "test": gebt.evaluate(model, small, task=task),
        }
    return ticket, found


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", CASES)
def test_the_ticket_is_the_one_that_was_drawn_before(name):
    theirs = Ticket.load(FOLDER / f"{name}.safetensors")
    ours, found = draw(name)
    assert torch.equal(ours.link_mask, theirs.link_mask)
    assert ours.weight_masks.keys() == theirs.weight_masks.keys()
    for key, mask in theirs.weight_masks.items():
        assert torch.equal(ours.weight_masks[key], mask), key
    close(ours.link_score, theirs.link_score)
    for group in ("weights", "first_weights"):
        assert getattr(ours, group).keys() == getattr(theirs, group).keys()
        for key, weight in getattr(theirs, group).items():
            close(getattr(ours, group)[key], weight)
    for one in ("epoch", "settled", "share_untouched", "seed"):
        assert getattr(ours, one) == getattr(theirs, one), one
    assert ours.dataset == theirs.dataset
    assert ours.options == theirs.options
    assert json.dumps(ours.distances) == json.dumps(theirs.distances)
    expected = json.loads((FOLDER / f"{name}.json").read_text())
    assert found["best"] == expected.pop("best")
    for what, numbers in expected.items():
        close(torch.tensor(found[what]), torch.tensor(numbers))


def test_nothing_else_lies_there():
    kept = {path.name for path in FOLDER.iterdir()}
    assert kept == {f"{n}.{end}" for n in CASES for end in ("safetensors", "json")}


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[1:] or CASES:
        ticket, found = draw(name)
        ticket.save(FOLDER / f"{name}.safetensors")
        (FOLDER / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
