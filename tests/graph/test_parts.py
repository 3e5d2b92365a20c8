"""Parts: which nodes and links are in them, and that one part is the whole."""

import logging
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch

import gebt
from gebt.graph.parts import Parts, part_of
from gebt.learn.loop import Learner, whole
from gebt.learn.tasks import NodeClassification
from gebt.models import GCN
from gebt.options import Fit
from gebt.prune.links import GraphSparsifier
from gebt.sparse import SparseMatrix


def test_a_part_has_the_links_between_its_nodes_under_their_own_numbers(graph):
    nodes = torch.randperm(graph.num_nodes)[: graph.num_nodes // 2].sort().values
    part = part_of(graph, nodes)
    full = graph.adjacency.to_dense()[nodes][:, nodes]
    assert torch.equal(part.adjacency.to_dense(), full)
    scores = torch.rand(graph.num_links)
    scored = graph.adjacency.with_value(scores[graph.link]).to_dense()
    there = part.adjacency.with_value(scores[part.link]).to_dense()
    assert torch.equal(there, scored[nodes][:, nodes])
    assert part.num_links == graph.num_links
    assert torch.equal(part.y, graph.y[nodes])
    for name, at in vars(part.split).items():
        whole_part = set(getattr(graph.split, name).tolist())
        assert set(nodes[at].tolist()) == whole_part & set(nodes.tolist())
    x = part.x.to_dense() if isinstance(part.x, SparseMatrix) else part.x
    of = graph.x.to_dense() if isinstance(graph.x, SparseMatrix) else graph.x
    assert torch.equal(x, of[nodes])


def test_a_node_is_dropped_from_in_a_part_as_in_the_whole(graph):
    nodes = torch.arange(3, graph.num_nodes, 2)
    part = part_of(graph, nodes)
    model = GCN(graph.num_features, 4, 3, dropout=0.5)
    alone = replace(
        graph, adjacency=graph.adjacency.select(torch.zeros_like(graph.link) > 0)
    )
    out = []
    for g, rows in ((alone, nodes), (part_of(alone, nodes), None)):
        torch.manual_seed(2)
        out.append(model(g.x, g.adjacency, rows))
    assert torch.allclose(*out, atol=1e-6)
    assert torch.equal(part.adjacency.nodes, nodes)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_an_epochs_parts_hold_each_node_once_and_are_others_in_the_next(graph, count):
    everywhere = torch.arange(graph.num_nodes)  # no part is without training nodes
    graph = replace(graph, split=replace(graph.split, train=everywhere))
    parts = Parts(graph, count, seed=3)
    met = [[part.adjacency.nodes for part in parts(epoch)] for epoch in (0, 1, 0)]
    for epoch in met:
        assert len(epoch) == count
        assert torch.equal(torch.cat(epoch).sort().values, everywhere)
    assert all(torch.equal(a, b) for a, b in zip(met[0], met[2], strict=True))
    if count > 1:
        assert not torch.equal(met[0][0], met[1][0])


def test_share_unseen_falls_to_zero_as_partners_change(graph):
    parts = Parts(graph, 4)
    shares = []
    for epoch in range(60):
        list(parts(epoch))
        shares.append(parts.share_unseen())
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0.5
    assert shares[-1] < 0.05


def test_one_part_is_the_whole_bit_for_bit(make_graph):
    graph = make_graph(nodes=80)
    states = []
    for batches in (whole(graph), Parts(graph, 1)):
        torch.manual_seed(0)
        model = GCN(graph.num_features, 8, 3)
        links = GraphSparsifier(graph, prune_ratio=0.5)
        learner = Learner(
            model, NodeClassification(), Fit(epochs=4), seed=1, groups=[links]
        )
        losses = [float(loss) for loss in learner.epochs(batches, 4)]
        states.append((losses, links.score.detach().clone(), model.state_dict()))
    one, other = states
    assert one[0] == other[0]
    assert torch.equal(one[1], other[1])
    assert all(torch.equal(one[2][name], other[2][name]) for name in one[2])


def test_weights_step_with_each_part_and_scores_once_by_the_mean_gradient(make_graph):
    graph = make_graph(nodes=80)
    model = GCN(graph.num_features, 8, 3, dropout=0.0)
    frozen = {name: p.detach().clone() for name, p in model.named_parameters()}
    links = GraphSparsifier(graph, prune_ratio=0.5, lr=0.1)
    task, parts = NodeClassification(), Parts(graph, 3, seed=2)
    expected = torch.zeros(graph.num_links)
    for part in parts(0):
        output = model(part.x, links.matrix(part), part.split.train)
        (grad,) = torch.autograd.grad(task.loss(output, part, "train"), links.score)
        expected += grad / 3
    # Weights that do not move, so that the gradients are those above.
    fit = Fit(epochs=1, lr=1e-12, weight_decay=0.0)
    learner = Learner(model, task, fit, seed=0, groups=[links])
    list(learner.epochs(parts, 1))
    torch.testing.assert_close(links.score.grad, expected, atol=1e-7, rtol=1e-4)
    state = learner.optimizer.state
    assert int(state[links.score]["step"]) == 1
    weights = dict(model.named_parameters())
    assert all(int(state[p]["step"]) == 3 for p in weights.values())
    assert any(not torch.equal(weights[name], frozen[name]) for name in frozen)


@pytest.mark.parametrize("alternate", [False, True])
def test_a_search_on_parts_draws_a_ticket_that_retrains_on_the_whole(alternate):
    graph = gebt.load("synthetic:N=300,E=1500,F=16,C=3,seed=1")
    model = GCN(graph.num_features, 8, 3)
    ticket = gebt.find_ticket(
        model, graph, graph_ratio=0.4, weight_ratio=0.5, parts=3, alternate=alternate
    )
    assert ticket.options["parts"] == 3
    small = ticket.open(model, graph)
    gebt.train(model, small, epochs=30)
    assert gebt.evaluate(model, small) > 45  # chance is 33


def test_links_that_never_met_are_warned_of():
    graph = gebt.load("synthetic:N=300,E=1500,F=16,C=3,seed=1")
    model = GCN(graph.num_features, 8, 3)
    detector = gebt.MaskDistanceDetector(threshold=1.9, window=1)
    with pytest.warns(UserWarning, match=r"\d\d% of the links were never in a part"):
        gebt.find_ticket(model, graph, parts=50, detector=detector)


def test_without_pymetis_nodes_are_drawn_one_by_one_and_told_of(graph, caplog):
    if find_spec("pymetis"):
        pytest.skip("pymetis is installed: clusters are METIS'")
    with caplog.at_level(logging.INFO, logger="gebt"):
        Parts(graph, 2)
    assert "pip install 'gebt[parts]'" in caplog.text


def test_metis_clusters_keep_more_links_than_single_nodes():
    pytest.importorskip("pymetis", reason="needs pymetis: pip install 'gebt[parts]'")
    graph = gebt.load("synthetic:N=2000,E=9000,F=8,C=4,seed=0")
    kept = sum(part.link.numel() for part in Parts(graph, 4)(0))
    assert kept > 1.2 * graph.link.numel() / 4


@pytest.mark.parametrize("count", [0, 41])
def test_fewer_than_one_part_and_more_than_nodes_are_refused(make_graph, count):
    with pytest.raises(ValueError, match=f"`parts` must .*got {count}"):
        Parts(make_graph(nodes=40), count)


def test_parts_of_a_graph_split_by_links_are_refused(graph):
    with pytest.raises(ValueError, match="split by links"):
        Parts(graph.hold_out_links(0.1, 0.2), 2)
