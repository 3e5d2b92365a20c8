"""Scales pulled to zero by their costs; masked weights that go on learning."""

import pytest
import torch
from helpers import same

from gebt.deploy.cost import executed_macs
from gebt.learn.loop import Learner, whole
from gebt.learn.tasks import NodeClassification
from gebt.models import OPERATORS, SuperGNN
from gebt.options import Fit
from gebt.prune.operators import RERANKED, Operators, unit_costs, unit_macs
from gebt.prune.weights import prunable_weights

TASK = NodeClassification()


@pytest.fixture
def model(graph):
    torch.manual_seed(torch.seed() % 1000)
    return SuperGNN(graph.num_features, 4, 3, dropout=0.0)


def test_macs_of_units_add_up_to_what_a_forward_executes(sparse_graph):
    # 16 everywhere: no operand is padded, and no product is done the other way round.
    graph = sparse_graph
    for name in OPERATORS:
        widths = {each: [16, 16, 1] if each == name else [0] * 3 for each in OPERATORS}
        model = SuperGNN(graph.num_features, 16, 16, layers=3, **widths)
        macs = unit_macs(model, graph.x, graph.adjacency)
        assert [len(each) for each in macs] == [16, 16, 1]
        counted = sum(float(each.sum()) for each in macs)
        assert counted == executed_macs(model, graph), name


def test_costs_are_those_of_the_units_parts_in_the_sum(graph):
    """An operator of twice the outputs costs twice as much at the same scale."""
    model = SuperGNN(graph.num_features, 4, 3).eval()
    before = unit_costs(model, graph.x, graph.adjacency)
    macs = unit_macs(model, graph.x, graph.adjacency)
    with torch.no_grad():
        for parameter in model.layers[0].branches["hops"].parameters():
            parameter.mul_(2)
    after = unit_costs(model, graph.x, graph.adjacency)
    hops = [each[0][-1] / each[0][0] for each in (before, after)]
    torch.testing.assert_close(hops[1], 2 * hops[0])
    for cost, of in zip(before, macs, strict=True):
        torch.testing.assert_close((cost / of).mean(), cost.new_ones(()))
    normed = SuperGNN(graph.num_features, 4, 3, norm="batch").eval()
    costs = unit_costs(normed, graph.x, graph.adjacency)
    assert torch.equal(costs[0], unit_macs(normed, graph.x, graph.adjacency)[0])


def grouped(model, graph, **changed):
    given = {"prune_ratio": 0.5, "epochs": 100, "rho": 0.1, "threshold": 0.05} | changed
    return Operators(model, unit_costs(model, graph.x, graph.adjacency), **given)


def learner_of(model, *groups, **fit):
    return Learner(model, TASK, Fit(weight_decay=0.0, **fit), seed=0, groups=groups)


def test_the_gradient_is_that_of_the_loss_and_the_costs_written_out(graph, model):
    group = grouped(model, graph, rho=0.3)
    group.epoch = 4  # a fifth of the way to the whole pull
    costs = unit_costs(model, graph.x, graph.adjacency)
    mean = torch.cat(costs).mean()
    out = model(graph.x, graph.adjacency)[graph.split.train]
    pull = sum(
        (cost / mean * scale.abs()).sum()
        for cost, scale in zip(costs, model.scales(), strict=True)
    )
    loss = torch.nn.functional.cross_entropy(out, graph.y[graph.split.train])
    wanted = torch.autograd.grad(loss + 0.3 / 5 * pull, model.scales())

    out = model(graph.x, graph.adjacency)[graph.split.train]
    torch.nn.functional.cross_entropy(out, graph.y[graph.split.train]).backward()
    group.after_backward()
    for scale, grad in zip(model.scales(), wanted, strict=True):
        torch.testing.assert_close(scale.grad, grad.float())


def test_a_scale_that_would_change_its_sign_rests_at_zero_until_the_loss_pulls_more(
    graph, model
):
    group = grouped(model, graph, rho=10.0, prune_ratio=0.0)
    learner = learner_of(model, group, lr=0.3)
    for _ in learner.epochs(whole(graph), 30):
        pass
    every = torch.cat([scale.detach() for scale in model.scales()])
    assert (every == 0).sum() > 10 and (every >= 0).all()


def test_forwards_have_masked_weights_and_the_stored_ones_go_on_learning(graph, model):
    group = grouped(model, graph, rho=0.0)
    learner = learner_of(model, group)
    epochs = learner.epochs(whole(graph), 2 * RERANKED)
    for _ in range(RERANKED):
        next(epochs)
    masks = {name: mask.clone() for name, mask in group._masks.items()}
    dropped = sum(int((~mask).sum()) for mask in masks.values())
    total = sum(mask.numel() for mask in masks.values())
    assert dropped == int(0.5 / 3 * total)  # a third of the way: 25 of 75 epochs
    weights = prunable_weights(model)
    assert all(bool((weights[n][~m] == 0).all()) for n, m in masks.items())
    stored = {name: tensor.clone() for name, tensor in group._stored.items()}
    next(epochs)
    moved = torch.cat([(group._stored[n] - stored[n])[~m] for n, m in masks.items()])
    assert (moved != 0).float().mean() > 0.9
    assert all(bool((weights[n][~m] == 0).all()) for n, m in masks.items())
    group.restore()
    assert same({n: w.detach() for n, w in weights.items()}, group._stored)


def test_pruned_weights_return_where_they_have_grown(graph, model):
    group = grouped(model, graph, rho=0.0, epochs=2 * RERANKED)
    group.epoch = RERANKED - 1
    group.after_epoch(RERANKED, torch.zeros(()))
    [name, *_] = group._masks
    gone = ~group._masks[name]
    assert gone.any()
    group._stored[name][gone] = 100.0
    assert group.masks()[name][gone].all()


def test_what_stays_keeps_its_stored_weights_and_masks(graph, model):
    group = grouped(model, graph, rho=0.0, epochs=2 * RERANKED)
    group.epoch = RERANKED - 1
    group.after_epoch(RERANKED, torch.zeros(()))
    masks, stored = dict(group._masks), dict(group._stored)
    with torch.no_grad():
        model.scales()[0][[0, 5, 23]] = 0.01
        model.scales()[1][2] = -0.04
    keep = group.marked()
    assert [int((~each).sum()) for each in keep] == [3, 1]
    small = group.leave(keep)
    assert same(group._stored, model.taken(stored, keep))
    assert same(group._masks, model.taken(masks, keep))
    assert [len(scale) for scale in small.scales()] == [21, 5]
    for _ in learner_of(small, group).epochs(whole(graph), 2):
        pass  # and goes on


def test_it_goes_on_where_its_state_was_taken(graph, model):
    state = model.state_dict()
    found = []
    for stop in (0, 30):
        model.load_state_dict({n: t.clone() for n, t in state.items()})
        group = grouped(model, graph)
        learner = learner_of(model, group)
        if stop:
            for _ in learner.epochs(whole(graph), stop):
                pass
            kept = learner.state_dict()
            model = SuperGNN(graph.num_features, 4, 3, dropout=0.0)
            group = grouped(model, graph)
            learner = learner_of(model, group)
            learner.load_state_dict(kept)
        else:
            state = {n: t.clone() for n, t in state.items()}
        for _ in learner.epochs(whole(graph), 60):
            pass
        found.append(({n: t.clone() for n, t in group._stored.items()}, group.masks()))
    assert same(found[0][0], found[1][0]) and same(found[0][1], found[1][1])


def test_ratios_that_empty_a_layer_are_refused(graph, model):
    with torch.no_grad():
        for name, weight in prunable_weights(model).items():
            if name.startswith("layers.1"):
                weight.mul_(1e-6)
    with pytest.raises(ValueError, match=r"at a ratio of 0.9 layer 2 of 2 keeps no"):
        grouped(model, graph, prune_ratio=0.9).masks()
    with torch.no_grad():
        model.scales()[1].fill_(0.01)
    with pytest.raises(ValueError, match="every scale of layer 2 of 2 .*Lower `rho`"):
        grouped(model, graph).marked()
    with pytest.raises(ValueError, match="`rho` must not be negative"):
        grouped(model, graph, rho=-1)
    with pytest.raises(ValueError, match="`threshold` must be positive"):
        grouped(model, graph, threshold=0)
