"""Scores that choose among frozen weights and links: rounds, gradients, refusals."""

import pytest
import torch
from helpers import built, same
from torch.nn.functional import cross_entropy

from gebt import (
    GraphSparsifier,
    MaskDistanceDetector,
    checkpoints,
    evaluate,
    find_ticket,
    train,
)
from gebt._registry import MODELS
from gebt.learn.loop import Learner
from gebt.learn.tasks import NodeClassification
from gebt.learn.training import copy_state, new_model
from gebt.models import GCN
from gebt.prune.at_init import (
    InitLinks,
    InitWeights,
    rounded,
    rounds_of,
    signed_constants,
)
from gebt.prune.masks import removed_after
from gebt.prune.weights import ModelPruner, check_layers, prunable_weights

LOSS = torch.zeros(())


def test_rounded_is_a_step_forward_and_the_identity_backward():
    score = torch.tensor([0.0, 0.3, 0.5, 0.500001, 1.0], requires_grad=True)
    out = rounded(score)
    assert out.tolist() == [0, 0, 0, 1, 1]
    weight = torch.randn(5)
    (out * weight).sum().backward()
    assert torch.equal(score.grad, weight)


def test_signed_constants_by_hand():
    weight = torch.tensor([[3.0, -4.0], [0.0, 5.0]])
    size = 20 * (50 / 3) ** 0.5
    expected = torch.tensor([[size, -size], [0.0, size]])
    torch.testing.assert_close(signed_constants(weight), expected)


@pytest.mark.parametrize("epochs", [6, 24, 101, 102])
@pytest.mark.parametrize("ratio", [0.5, 0.95, 0.99])
def test_each_round_leaves_what_the_schedule_says(graph, epochs, ratio):
    links = InitLinks(graph, ratio, epochs=epochs, seed=3)
    n, rounds = graph.num_links, (epochs - 1) // 5
    assert links.rounds == rounds == rounds_of(epochs)
    expected = n
    for epoch in range(1, epochs + 1):
        before = links.active.clone()
        with torch.no_grad():
            links.score.uniform_()
        pulled = links.score.detach() * (1 - 1.2 / epochs)
        links.after_epoch(epoch, LOSS)
        if epoch % 5 == 0 and epoch // 5 <= rounds:
            # The paper's rate, of what is active, in each round.
            share = (1 - ratio) ** (epoch / 5 / rounds)
            expected = n - int((1 - share if epoch // 5 < rounds else ratio) * n)
            out, kept = before & ~links.active, links.active
            if out.any():
                assert pulled[out].max() <= pulled[kept].min()
        assert links.active.sum() == expected
        assert not (links.active & ~before).any()
        assert links.masks()["link"].sum() == n - int(ratio * n)
    assert torch.equal(links.masks()["link"], links.active)


def test_rounds_remove_at_the_papers_rate():
    for done in range(1, 19):
        left = 1 - removed_after(0.99, done, 19)
        rate = 1 - torch.exp(torch.tensor(0.01).double().log() / 19)
        assert left == pytest.approx(float((1 - rate) ** done))
    assert removed_after(0.99, 19, 19) == 0.99


def test_what_was_frozen_out_is_gone_though_its_score_rises(graph):
    weights = InitWeights(built(graph), 0.9, epochs=11)
    weights.after_epoch(5, LOSS)
    gone = ~weights.active
    assert gone.any()
    with torch.no_grad():
        weights.score.copy_(gone.to(weights.score))
    assert not weights.present()[gone].any()
    flat = torch.cat([mask.flatten() for mask in weights.masks().values()])
    assert not flat[gone].any()
    weights.after_epoch(10, LOSS)
    assert not weights.active[gone].any()


def test_scores_get_the_gradients_of_what_they_let_through(make_graph):
    graph = make_graph(sparse=False)
    model = built(graph, dropout=0.0).double()
    double = graph.adjacency.with_value(graph.adjacency.value.double())
    from dataclasses import replace

    graph = replace(graph, x=graph.x.double(), adjacency=double)
    groups = [
        InitLinks(graph, 0.5, epochs=21, seed=5),
        InitWeights(model, 0.5, epochs=21, seed=5),
    ]
    for group in groups:
        for epoch in (5, 10):
            group.after_epoch(epoch, LOSS)
    learner = Learner(model, NodeClassification(), None, seed=0, groups=groups)
    loss = learner.loss(graph)
    loss.backward()
    # By hand, densely: D^-1/2 (A + I) D^-1/2 of the links that are in.
    links, weights = groups
    on = ((links.score.detach() > 0.5) & links.active).double().requires_grad_()
    n, pattern = graph.num_nodes, graph.adjacency.pattern
    value = graph.adjacency.value * on[graph.link]
    dense = torch.zeros(n, n).double()
    dense = dense.index_put((pattern.row.long(), pattern.col.long()), value)
    # |value| has no slope at 0, as in the model.
    scale = (dense.abs().sum(dim=1) + 1).rsqrt()
    matrix = scale[:, None] * (dense + torch.eye(n)) * scale
    flat = ((weights.score.detach() > 0.5) & weights.active).double().requires_grad_()
    sizes = [w.numel() for w in prunable_weights(model).values()]
    first, second = (
        w.detach() * part.view_as(w)
        for w, part in zip(
            prunable_weights(model).values(), flat.split(sizes), strict=True
        )
    )
    h = (matrix @ graph.x @ first).relu()
    out = (matrix @ h @ second)[graph.split.train]
    expected = cross_entropy(out, graph.y[graph.split.train])
    torch.testing.assert_close(loss, expected)
    expected.backward()
    for group, by_hand in ((links, on), (weights, flat)):
        torch.testing.assert_close(
            group.score.grad, by_hand.grad * group.active, rtol=1e-9, atol=1e-14
        )
        assert not group.score.grad[~group.active].any()
        assert group.score.grad[group.active & (group.score <= 0.5)].any()
        group.after_backward()
        square = group.score.grad.square().sum() / group.active.sum()
        torch.testing.assert_close(square, torch.ones(()).double())


def test_only_scores_move_and_within_0_and_1(graph):
    model = built(graph)
    groups = [InitLinks(graph, 0.4, epochs=40), InitWeights(model, 0.8, epochs=40)]
    before = copy_state(model)
    first = [group.score.detach().clone() for group in groups]
    learner = Learner(model, NodeClassification(), None, seed=0, groups=groups)
    for _ in learner.epochs(lambda epoch: (graph,), 40):
        for group in groups:
            assert 0 <= group.score.min() and group.score.max() <= 1
    assert same(copy_state(model), before)
    for group, then in zip(groups, first, strict=True):
        assert not torch.equal(group.score, then)


@pytest.mark.parametrize("ratios", [(0.2, 0.9), (0.0, 0.8), (0.5, 0.0)])
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
def test_a_ticket_at_initialisation_has_exact_counts_and_frozen_weights(
    make_graph, ratios, sparse
):
    graph = make_graph(sparse=sparse)
    model = built(graph)
    start = copy_state(model)
    seen = []
    how = {"graph_ratio": ratios[0], "weight_ratio": ratios[1], "epochs": 30}
    ticket = find_ticket(model, graph, method="init", on_epoch=seen.append, **how)
    assert ticket.settled and ticket.epoch == 26  # the last of 5 rounds, and one more
    assert len(seen) == 26 and ticket.options["method"] == "init"
    links, n = graph.num_links, 24 * 16 + 16 * 3
    assert ticket.links_kept == links - int(ratios[0] * links)
    assert torch.equal(ticket.link_score, torch.ones(links))
    assert same(ticket.weights, ticket.first_weights)
    if ratios[1]:
        assert ticket.weights_kept == n - int(ratios[1] * n)
        for name, weight in prunable_weights(model).items():
            assert torch.equal(weight.sign(), start[name].sign())
            assert weight.abs().unique().numel() == 1
    else:
        assert same(ticket.weights, start)
    # Told of is the score of what scores let through: after the last round that is a
    # part of the ticket.
    assert 0 <= seen[-1].val <= 100


def test_an_epoch_is_scored_with_the_weights_that_are_in(graph):
    model = built(graph)
    seen = []
    group = InitWeights(model, 0.9, epochs=6, seed=2)
    find_ticket(
        model,
        graph,
        groups=[group],
        update_weights=False,
        epochs=6,
        detector=MaskDistanceDetector(threshold=9.0, window=1, warmup=5),
        on_epoch=lambda epoch: seen.append((epoch.val, group.weights())),
    )
    val, weights = seen[-1]
    assert val == evaluate(model, graph, "val", weights=weights)
    copy = built(graph)
    copy.load_state_dict({**model.state_dict(), **weights})
    assert val == evaluate(copy, graph, "val")


def test_a_ticket_learns_better_than_as_many_random_weights(graph):
    model = built(graph)
    ticket = find_ticket(model, graph, method="init", graph_ratio=0, weight_ratio=0.95)
    small = ticket.open(model, graph)
    found = train(model, small).val
    draw = torch.Generator().manual_seed(0)
    masks = {
        name: mask.flatten()[torch.randperm(mask.numel(), generator=draw)].view_as(mask)
        for name, mask in ticket.weight_masks.items()
    }
    model.load_state_dict(dict(ticket.weights))
    assert found >= train(model, graph, keep=masks).val


def test_first_scores_know_nothing_of_the_first_weights(graph):
    agree = []
    for seed in range(20):
        model = new_model(graph, MODELS["gcn"], NodeClassification(), seed)
        signs = torch.cat([w.flatten() > 0 for w in prunable_weights(model).values()])
        group = InitWeights(model, 0.9, epochs=10, seed=seed)
        agree.append(float((signs == (group.score > 0.5)).float().mean()))
    assert 0.45 < sum(agree) / 20 < 0.55


@pytest.mark.parametrize("at", [1, 5, 17])
def test_a_search_at_initialisation_goes_on_bit_for_bit(graph, tmp_path, at):
    class Broken(Exception):
        """The power is gone."""

    def search(on_epoch):
        how = {"method": "init", "epochs": 22, "seed": 4, "on_epoch": on_epoch}
        return find_ticket(built(graph), graph, **how)

    def breaking(epoch):
        if epoch.epoch == at + 1:
            raise Broken

    whole = search(lambda epoch: None)
    with pytest.raises(Broken), checkpoints(tmp_path, every=1):
        search(breaking)
    with checkpoints(tmp_path, every=1):
        again = search(lambda epoch: None)
    assert repr(again.distances) == repr(whole.distances)
    assert same(again.weights, whole.weights)
    for group, masks in whole.masks.items():
        assert same(again.masks[group], masks)


def test_one_pruning_goes_on_where_another_stopped(graph):
    model = built(graph)
    keep = ModelPruner(model, 0.3).masks()
    small = graph.keep_links(GraphSparsifier(graph, seed=1).mask(0.3))
    how = {"method": "init", "epochs": 12, "keep": keep}
    ticket = find_ticket(model, small, graph_ratio=0.5, weight_ratio=0.6, **how)
    assert not (ticket.link_mask & ~small.present).any()
    assert ticket.links_kept == graph.num_links - int(0.5 * graph.num_links)
    for name, mask in ticket.weight_masks.items():
        assert not (mask & ~keep[name]).any()
    assert ticket.weights_kept == ticket.num_weights - int(0.6 * ticket.num_weights)
    with pytest.raises(ValueError, match="`keep` has dropped"):
        find_ticket(model, graph, weight_ratio=0.2, **how)
    with pytest.raises(ValueError, match="is already pruned"):
        find_ticket(model, small, graph_ratio=0.2, weight_ratio=0.6, **how)


def test_links_may_be_chosen_by_a_criterion(graph):
    how = {"method": "init", "epochs": 12, "graph_ratio": 0.5, "weight_ratio": 0.6}
    ticket = find_ticket(built(graph), graph, criterion="low-degree", **how)
    early = find_ticket(built(graph), graph, criterion="low-degree", graph_ratio=0.5)
    assert torch.equal(ticket.link_mask, early.link_mask)


def test_a_round_that_would_leave_nothing_of_a_layer_is_refused(graph):
    model = built(graph)
    group = InitWeights(model, 0.9, epochs=11)
    with torch.no_grad():
        group.score[-48:] = 0  # the second layer's
    with pytest.raises(ValueError, match=r"0\.9 leaves nothing of 'layers\.1\.weight'"):
        group.after_epoch(5, LOSS)
    with pytest.raises(ValueError, match="all of its 2 weights go. Remove fewer"):
        check_layers({"a": torch.zeros(2, dtype=torch.bool)}, 0.5)


def test_what_it_cannot_do_is_refused(graph):
    how = {"method": "init", "epochs": 12}
    with pytest.raises(ValueError, match="every 5 epochs: `epochs` must be more"):
        find_ticket(built(graph), graph, method="init", epochs=5)
    for option in ({"mask_weights": True}, {"scope": "layer"}, {"graph_lr": 0.1}):
        name = next(iter(option))
        with pytest.raises(ValueError, match=f"trains no weights, and has no `{name}`"):
            find_ticket(built(graph), graph, **how, **option)
    with pytest.raises(ValueError, match="`method` must be"):
        find_ticket(built(graph), graph, method="late")
    model = GCN(graph.num_features, 4, 3, recompute=True)
    with pytest.raises(ValueError, match="Build the model without it"):
        find_ticket(model, graph, **how)


class Blind(torch.nn.Module):
    """Reads no link."""

    def __init__(self, features):
        super().__init__()
        self.map = torch.nn.Linear(features, 3)

    def forward(self, x, adjacency):
        return self.map(x)


def test_links_that_a_model_does_not_read_are_refused(graph):
    model = Blind(graph.num_features)
    with pytest.raises(ValueError, match="no link received a gradient"):
        find_ticket(model, graph, method="init", epochs=12)
    ticket = find_ticket(model, graph, method="init", epochs=12, graph_ratio=0)
    assert ticket.weights_kept == 72 - int(0.9 * 72)
