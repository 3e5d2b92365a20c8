"""A supernet's search: units leave, a ticket stays, of an ordinary model."""

import re

import pytest
import torch
from helpers import same

from gebt import Ticket, checkpoints, compact, find_super_ticket, train
from gebt.learn.loop import Learner, begin, whole
from gebt.learn.tasks import NodeClassification
from gebt.models import GCN, OPERATORS, SuperGNN, build_model
from gebt.options import Fit
from gebt.prune.links import GraphSparsifier
from gebt.tickets.super_ticket import EVERY, _Segment

FIT = Fit(epochs=60, lr=0.05, weight_decay=1e-3, decay="all")
HOW = {"rho": 0.05, "weight_ratio": 0.5, "fit": FIT}


@pytest.fixture
def model(graph):
    torch.manual_seed(0)
    return SuperGNN(graph.num_features, 4, graph.num_classes, dropout=0.3)


def test_the_outcome_is_an_ordinary_model_and_a_ticket_that_opens_compacts_and_saves(
    graph, model, tmp_path
):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    epochs = []
    small, ticket = find_super_ticket(model, graph, **HOW, on_epoch=epochs.append)
    assert same(model.state_dict(), before)  # it is another model that was trained
    assert [e.epoch for e in epochs] == [*range(1, 61)] and epochs[-1].val > 60
    assert sum(map(len, small.scales())) < sum(map(len, model.scales()))
    kept = sum(int(mask.sum()) for mask in ticket.weight_masks.values())
    total = sum(mask.numel() for mask in ticket.weight_masks.values())
    assert kept == total - int(0.5 * total)

    ticket.save(tmp_path / "ticket.safetensors")
    ticket = Ticket.load(tmp_path / "ticket.safetensors")
    again = build_model(dict(ticket.model), ticket.weights)
    assert same(again.state_dict(), small.state_dict())
    opened = ticket.open(again, graph)
    found = train(again, opened, epochs=30)
    assert found.val > 60
    fast, least = compact(again, opened)
    torch.testing.assert_close(
        fast(least.x, least.adjacency), again(graph.x, graph.adjacency)
    )


def test_the_first_weights_are_those_that_the_units_began_with(graph, model):
    small, ticket = find_super_ticket(model, graph, **HOW)
    began = model.state_dict()
    maps = r"layers\.0\.branches\.\w+\.(own_)?weight"
    layers = [name for name in ticket.first_weights if re.fullmatch(maps, name)]
    assert layers
    for name in layers:
        columns = {tuple(column.tolist()) for column in began[name].t()}
        found = ticket.first_weights[name].t()
        assert all(tuple(column.tolist()) in columns for column in found)


def test_where_no_unit_leaves_it_is_one_training_but_for_dropout(graph):
    """Adam's moments go from one learner to the next; there is no other state."""
    torch.manual_seed(1)
    model = SuperGNN(graph.num_features, 3, graph.num_classes, dropout=0.0)
    how = {"rho": 0.0, "threshold": 1e-9, "weight_ratio": 0.0}
    small, _ = find_super_ticket(model, graph, **how, fit=FIT)
    learner = Learner(model, NodeClassification(), FIT, seed=0)
    for _ in learner.epochs(whole(graph), FIT.epochs):
        pass
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(small.state_dict()[name], tensor, atol=2e-4, rtol=0)


def test_moments_of_the_units_that_stay_go_on(graph, model):
    task = NodeClassification()
    learner = Learner(
        model, task, FIT, seed=0, hooks=begin(model, graph, task, None)[1]
    )
    segment = _Segment(learner, graph, 0, 10, None)
    for _ in learner.epochs(whole(graph), EVERY):
        pass
    keep = [torch.rand(len(scale)) < 0.6 for scale in model.scales()]
    for mask in keep:
        mask[:2] = True
    taken = segment.moments(keep)
    small = model.with_units(keep)
    assert taken.keys() == dict(small.named_parameters()).keys()
    state = learner.optimizer.state
    of = {name: state[p]["exp_avg_sq"] for name, p in model.named_parameters()}
    wanted = model.taken(of, keep)
    assert same({n: m["exp_avg_sq"] for n, m in taken.items()}, wanted)
    assert all(int(m["step"]) == EVERY for m in taken.values())


def test_links_are_learned_beside_it_where_they_are_given(graph, model):
    links = GraphSparsifier(graph, 0, prune_ratio=0.3)
    _, ticket = find_super_ticket(model, graph, groups=[links], **HOW)
    assert ticket.links_kept == graph.num_links - int(0.3 * graph.num_links)
    assert (ticket.link_score != 1).any() and ticket.options["graph_ratio"] == 0.3


@pytest.mark.parametrize("at", [4, 20, 21, 47])
def test_a_search_that_was_killed_goes_on_bit_for_bit(graph, model, tmp_path, at):
    def breaking(epoch):
        if epoch.epoch == at:
            raise KeyboardInterrupt

    whole, told = [], []
    groups = [[GraphSparsifier(graph, 0, prune_ratio=0.3)] for _ in range(3)]
    _, wanted = find_super_ticket(
        model, graph, groups=groups[0], **HOW, on_epoch=whole.append
    )
    with pytest.raises(KeyboardInterrupt), checkpoints(tmp_path / "c", every=3):
        find_super_ticket(model, graph, groups=groups[1], **HOW, on_epoch=breaking)
    assert (tmp_path / "c").is_dir()
    with checkpoints(tmp_path / "c", every=3):
        _, found = find_super_ticket(
            model, graph, groups=groups[2], **HOW, on_epoch=told.append
        )
    assert repr(told) == repr(whole)
    assert same(found.weights, wanted.weights)
    assert same(found.first_weights, wanted.first_weights)
    assert same(found.weight_masks, wanted.weight_masks)
    assert torch.equal(found.link_score, wanted.link_score)


def test_twice_the_same(graph, model):
    found = [find_super_ticket(model, graph, **HOW, seed=5) for _ in range(2)]
    assert same(found[0][1].weights, found[1][1].weights)
    assert same(found[0][1].weight_masks, found[1][1].weight_masks)


def test_what_cannot_be_searched_is_refused_in_a_line(graph):
    widths = {name: [4 * (name == "gat"), int(name == "gat")] for name in OPERATORS}
    one = SuperGNN(graph.num_features, 4, graph.num_classes, **widths)
    with pytest.raises(ValueError, match="one branch a layer, gat, gat: there is noth"):
        find_super_ticket(one, graph)
    with pytest.raises(ValueError, match="of a SuperGNN, not of a GCN"):
        find_super_ticket(GCN(graph.num_features, 4, 3), graph)
    model = SuperGNN(graph.num_features, 4, graph.num_classes)
    with pytest.raises(ValueError, match="without units. Lower `rho`, 1e"):
        find_super_ticket(model, graph, rho=1e9, epochs=60, lr=0.1)
    with pytest.raises(ValueError, match=r"`weight_ratio` is the share to remove"):
        find_super_ticket(model, graph, weight_ratio=1.0)
