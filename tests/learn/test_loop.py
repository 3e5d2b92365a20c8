"""The loop: what it moves, its hooks, its batches, and that it goes on where it was."""

import copy

import pytest
import torch

from gebt import ADMM, Fit, ModelPruner
from gebt.learn.loop import Kept, Learner, whole
from gebt.learn.tasks import NodeClassification
from gebt.models import GCN
from gebt.prune.groups import Hook
from gebt.prune.links import GraphSparsifier

TASK = NodeClassification()


def made(graph, **options):
    """A learner that draws dropout, learns links under a penalty and keeps masks."""
    torch.manual_seed(3)
    model = GCN(graph.num_features, 8, 3)
    masks = {"layers.0.weight": torch.rand(graph.num_features, 8) > 0.3}
    groups = [
        GraphSparsifier(graph, prune_ratio=0.3, penalty=ADMM(0.05, prune_ratio=0.3)),
        ModelPruner(model, 0.5),
    ]
    hooks = [Kept(model, masks), *options.pop("hooks", [])]
    return Learner(model, TASK, Fit(), seed=1, groups=groups, hooks=hooks, **options)


def losses(learner, graph, until):
    return [float(loss) for loss in learner.epochs(whole(graph), until)]


@pytest.mark.parametrize("alternate", [False, True])
def test_a_learner_goes_on_where_another_was(graph, alternate):
    one = made(graph, alternate=alternate)
    whole_run = losses(one, graph, 8)

    first = made(graph, alternate=alternate)
    begun = losses(first, graph, 5)
    state = copy.deepcopy(first.state_dict())
    losses(first, graph, 6)  # what goes on there does not reach the state
    second = made(graph, alternate=alternate)
    second.load_state_dict(state)
    assert second.epoch == 5
    assert begun + losses(second, graph, 8) == whole_run
    for ours, theirs in zip(one.groups, second.groups, strict=True):
        for name, mask in ours.masks().items():
            assert torch.equal(mask, theirs.masks()[name]), name
    ours, theirs = one.groups[0], second.groups[0]
    assert torch.equal(ours.score, theirs.score)
    assert ours.share_untouched() == theirs.share_untouched() < 1


def test_hooks_are_called_in_their_places_and_one_may_end_it(graph):
    called = []

    class Watch(Hook):
        def after_backward(self):
            called.append(learner.model.layers[0].weight.grad is not None)

        def after_step(self):
            called.append("step")

        def after_epoch(self, epoch, loss):
            called.append((epoch, float(loss)))
            return epoch == 2

    learner = made(graph, hooks=[Watch()])
    found = losses(learner, graph, 9)
    assert len(found) == learner.epoch == 2
    assert called == [True, "step", (1, found[0]), True, "step", (2, found[1])]


def test_batches_are_asked_for_each_epoch_and_share_the_scores(graph):
    even = torch.arange(graph.num_links) % 2 == 0
    parts = [graph.keep_links(even), graph.keep_links(~even)]
    asked = []

    def batches(epoch):
        asked.append(epoch)
        return parts

    learner = made(graph)
    [first, _] = learner.epochs(batches, until=2)
    assert asked == [0, 1]
    sparsifier = learner.groups[0]
    reached = sparsifier.touched
    assert reached[even].any() and reached[~even].any()
    alone = made(graph)
    [turn] = alone._turns
    steps = [
        float(alone.step(part, turn, last=part is parts[-1]).detach()) for part in parts
    ]
    assert float(first) == pytest.approx(sum(steps) / 2, rel=1e-6)


def test_what_is_kept_is_zero_after_every_step(graph):
    learner = made(graph)
    for _ in learner.epochs(whole(graph), until=3):
        mask = learner.hooks[2]._masks["layers.0.weight"]
        weight = learner.model.layers[0].weight
        assert (weight[~mask] == 0).all() and (weight[mask] != 0).any()


def test_with_nothing_to_move_there_is_nothing_to_learn(graph):
    with pytest.raises(ValueError, match="GCN has no parameters to train"):
        Learner(GCN(24, 4, 3), TASK, None, seed=0)
