"""Test nodes come at the end: what is left without them, and what then is scored."""

from dataclasses import replace

import pytest
import torch
from helpers import same

import gebt
from gebt import _registry
from gebt._registry import EXPERIMENTS
from gebt.experiments.inductive import LINKS, MODELS, WEIGHTS
from gebt.experiments.methods import Setting
from gebt.experiments.runner import KEY, Job
from gebt.experiments.studies import INDUCTIVE, inductive
from gebt.experiments.unseen import without_test_nodes
from gebt.learn.student import student_of, train_student
from gebt.learn.tasks import NodeClassification
from gebt.learn.training import evaluate, new_model, train
from gebt.prune.weights import prunable_weights
from gebt.report.page import Table

TASK = NodeClassification()


@pytest.fixture
def setting(graph):
    recipe = _registry.MODELS["gcn"].changed(epochs=6, hidden=8)
    return Setting(graph, TASK, recipe, 0.4, 0.5, seed=1, quick=True)


def seven(directed=False):
    """Seven nodes, of which 1 and 4 are to test on; weights say which edge is which."""
    pairs = torch.tensor([(0, 1), (0, 2), (1, 3), (2, 5), (3, 6), (4, 5), (5, 6)]).t()
    weight = torch.arange(1.0, 8.0)
    if not directed:
        pairs, weight = torch.cat([pairs, pairs.flip(0)], 1), weight.repeat(2)
    data = {
        "x": torch.eye(7),
        "edge_index": pairs,
        "edge_weight": weight,
        "y": torch.arange(7) % 3,
    }
    split = {"train": [6, 0], "val": [3, 2], "test": [4, 1]}
    return gebt.Graph.from_pyg(data, split=split, directed=directed)


@pytest.mark.parametrize("directed", [False, True])
def test_what_is_left_without_test_nodes_by_hand(directed):
    graph = seven(directed)
    seen = without_test_nodes(graph)
    # Of 0 2 3 5 6 and the links 0-2, 2-5, 3-6 and 5-6, of weight 2, 4, 5 and 7.
    x = seen.x if isinstance(seen.x, torch.Tensor) else seen.x.to_dense()
    assert torch.equal(x, torch.eye(7)[[0, 2, 3, 5, 6]])
    dense = torch.zeros(5, 5)
    for source, target, weight in ((0, 1, 2), (1, 3, 4), (2, 4, 5), (3, 4, 7)):
        dense[target, source] = weight
        if not directed:
            dense[source, target] = weight
    assert torch.equal(seen.adjacency.to_dense(), dense)
    assert seen.num_links == seen.links_kept == 4
    for link in range(4):  # both directions of a link are one
        assert seen.adjacency.value[seen.link == link].unique().numel() == 1
    assert torch.equal(seen.y, torch.tensor([0, 2, 0, 2, 0]))
    parts = {part: index.tolist() for part, index in vars(seen.split).items()}
    assert parts == {"train": [4, 0], "val": [2, 1], "test": []}


def test_it_learns_as_the_graph_that_never_had_them(graph):
    """Of the same data, read without those nodes."""
    kept = torch.ones(120, dtype=torch.bool)
    kept[graph.split.test] = False
    place = kept.cumsum(0) - 1
    edges = graph.adjacency.pattern.edge_index
    edges = place[edges[:, kept[edges].all(0)]]
    split = {part: place[getattr(graph.split, part)] for part in ("train", "val")}
    data = {"x": graph.x[kept], "edge_index": edges, "y": graph.y[kept]}
    other = gebt.Graph.from_pyg(data, split=split)
    assert without_test_nodes(graph).fingerprint() == other.fingerprint()


def test_a_graph_without_test_nodes_or_links_between_others_is_refused(graph):
    with pytest.raises(ValueError, match="'blocks' has no test nodes to leave out"):
        without_test_nodes(replace(graph, split=None))
    with pytest.raises(ValueError, match="has no test nodes"):
        without_test_nodes(without_test_nodes(graph))
    star = seven()
    split = replace(star.split, test=torch.tensor([0, 1, 3, 4, 5]))
    with pytest.raises(ValueError, match="has no links to learn on"):
        without_test_nodes(replace(star, split=split))


def test_links_are_kept_at_the_promised_share(setting):
    outcomes = {outcome.links: outcome for outcome in inductive(setting)}
    assert [*outcomes] == [*INDUCTIVE, "all links", "no links"]
    links = setting.graph.num_links
    kept = {name: outcome.graph.links_kept for name, outcome in outcomes.items()}
    promised = dict.fromkeys(INDUCTIVE, links - int(0.4 * links))
    assert kept == promised | {"all links": links, "no links": 0}
    for outcome in outcomes.values():
        weights = prunable_weights(outcome.model).values()
        total = sum(w.numel() for w in weights)
        kept = sum(int(w.count_nonzero()) for w in weights)
        assert kept == total - int(0.5 * total)
        [(seen, epochs)] = outcome.rounds
        assert (seen.num_nodes, epochs) == (120 - 36, 6 + 8)


def test_its_steps_by_hand(setting):
    graph, recipe = setting.graph, setting.recipe
    seen = without_test_nodes(graph)
    dense = new_model(graph, recipe, TASK, seed=1)
    val = train(dense, seen, fit=recipe.fit, seed=1).val
    [whole] = inductive(replace(setting, graph_ratio=0.0))
    assert (whole.links, whole.val, whole.graph) == ("dense", val, graph)
    assert same(whole.model.state_dict(), dense.state_dict())
    model = new_model(graph, recipe, TASK, seed=1)
    model.load_state_dict(dense.state_dict())
    how = {"weight_ratio": 0.5, "fit": student_of(recipe.fit), "seed": 1}
    masks = train_student(model, seen, dense(seen.x, seen.adjacency), **how).masks
    for outcome in inductive(setting):
        assert same(outcome.model.state_dict(), model.state_dict())
        if outcome.links not in INDUCTIVE:
            continue
        ticket = gebt.find_ticket(
            *(model, seen),
            criterion=outcome.links,
            graph_ratio=0.4,
            weight_ratio=0,
            update_weights=False,
            keep=masks,
            seed=1,
        )
        small = graph.keep_links(ticket.links_for(graph))
        assert torch.equal(outcome.graph.link, small.link)
        own = seen.keep_links(ticket.link_mask)
        assert outcome.val == evaluate(model, own, "val")


def test_until_the_end_nothing_of_test_nodes_is_known(setting):
    graph = setting.graph
    test = graph.split.test
    x, y = graph.x.clone(), graph.y.clone()
    x[test], y[test] = torch.randn(test.numel(), 24), (y[test] + 1) % 3
    gone = graph.adjacency.at_rows(torch.isin(torch.arange(120), test))
    keep = torch.ones(graph.num_links, dtype=torch.bool)
    keep[graph.link[gone]] = False
    keep[graph.link[gone][::2]] = True  # half of their links are others
    other = replace(graph, x=x, y=y).keep_links(keep)
    number = keep.cumsum(0) - 1
    other = replace(other, link=number[other.link], num_links=int(keep.sum()))
    ours, theirs = inductive(setting), inductive(replace(setting, graph=other))
    for mine, their in zip(ours, theirs, strict=True):
        assert same(mine.model.state_dict(), their.model.state_dict())
        assert mine.val == their.val


def test_its_jobs_are_the_dense_model_and_both_shares_of_each_model():
    jobs = EXPERIMENTS.find("inductive").jobs("cora", 3)
    ratios = [(0.0, 0.0), *((share, WEIGHTS) for share in LINKS)]
    found = [(job.model, (job.graph_ratio, job.weight_ratio)) for job in jobs]
    assert found == [(model, both) for model in MODELS for both in ratios]
    assert {(job.method, job.seed) for job in jobs} == {("inductive", 3)}


def row(links, share, test, val=50.0, seed=0, model="gcn"):
    job = Job("cora", model, "inductive", share, WEIGHTS if share else 0.0, seed)
    cells = dict(zip(KEY, job.key, strict=True))
    return cells | {"links": links, "test": str(test), "val": str(val)}


def test_its_tables_are_paired_and_validation_chooses_seed_by_seed():
    rows = []
    for seed, (voi, other) in enumerate([(60, 50), (50, 60)]):
        rows += [row("dense", 0.0, 80, seed=seed)]
        rows += [row("dense", 0.0, 78, 60, seed, "gcn-own")]
        rows += [row("voi", 0.4, 82 + seed, voi, seed)]
        rows += [row("voi", 0.4, 70 + seed, other, seed, "gcn-own")]
        rows += [row("random", 0.4, 79 + 2 * seed, seed=seed)]
        rows += [row("random", 0.4, 69, seed=seed, model="gcn-own")]
    page = EXPERIMENTS.find("inductive").page("cora", {"runs": rows})
    best, plain, own = [item for item in page if isinstance(item, Table)]
    assert plain.title == "cora, gcn: dense 80.0 ± 0.0"
    [cells] = [dict(zip(best.header, each, strict=True)) for each in best.rows]
    assert cells["removed"] == "40% / 90%"
    assert cells["test"].startswith("76.5")  # 82 of gcn, then 71 of gcn-own
    assert "(-1.5" in cells["- dense"]  # 78, which validates better
    assert "(-3.5" in cells["- gcn's dense"]
    assert "(+2.5" in cells["- random"]  # 79, then 69
    cells = [dict(zip(plain.header, each, strict=True)) for each in plain.rows]
    found = {each["links"]: each for each in cells}
    assert found["voi"]["40% / 90%"] == "82.5 ± 0.7"
    assert found["voi"]["40% / 90%: - dense"] == "no difference (+2.5 ± 6.4)"
    assert found["voi"]["40% / 90%: - random"] == "no difference (+2.5 ± 6.4)"
    assert found["random"]["40% / 90%: - random"] == "-"
    assert found["forest"]["40% / 90%"] == "-"
    assert not any(column.startswith("80%") for column in plain.header)
    assert own.title == "cora, gcn-own: dense 78.0 ± 0.0"
