"""Students: random links, weights that go little by little, the epoch that is kept."""

import copy
import math
from dataclasses import replace

import pytest
import torch

import gebt
from gebt.learn.loop import Learner, whole
from gebt.learn.student import GradualPruning, random_densities, train_student
from gebt.learn.tasks import NodeClassification
from gebt.models import GAT, GCN, GraphSAGE

pytestmark = pytest.mark.slow

TASK = NodeClassification()


def made(graph, kind=GCN, seed=1, **options):
    torch.manual_seed(seed)
    return kind(graph.num_features, 8, 3, **options)


@pytest.fixture
def loose(graph):
    """With 30 nodes in no part of the split."""
    split = graph.split
    parts = {"train": split.train[:24], "val": split.val[:30], "test": split.test}
    return replace(graph, split=gebt.Split(**parts))


@pytest.fixture
def taught(loose):
    """A trained model and its outputs."""
    model = made(loose)
    gebt.train(model, loose, epochs=40)
    with torch.no_grad():
        return model, model(loose.x, loose.adjacency)


# ------------------------------------------------------------- random densities


def drawn(graph, model, epochs=60, seed=0):
    learner = Learner(model, TASK, gebt.Fit(), seed=seed)
    batches = random_densities(graph, learner)
    return [batch for epoch in range(epochs) for batch in batches(epoch)]


@pytest.mark.parametrize("kind", [GCN, GraphSAGE, GAT])
def test_densities_are_uniform_and_both_entries_of_a_link_go_together(graph, kind):
    full = graph.link.numel()
    shares = []
    for thinned in drawn(graph, made(graph, kind), 300):
        present = thinned.adjacency.value != 0
        shares.append(int(present.count_nonzero()) / full)
        counts = torch.bincount(thinned.link[present], minlength=graph.num_links)
        assert set(counts.tolist()) <= {0, 2}
    shares = torch.tensor(shares)
    assert 0.45 < shares.mean() < 0.55 and 0.25 < shares.std() < 0.33
    assert shares.min() < 0.05 and shares.max() > 0.95


@pytest.mark.parametrize("kind", [GCN, gebt.models.GIN, GraphSAGE, GAT])
def test_what_a_model_sees_is_the_graph_without_the_links_that_are_gone(graph, kind):
    model = made(graph, kind).eval()
    thinned = drawn(graph, model, 3)[-1]
    there = thinned.adjacency.value != 0
    keep = torch.zeros(graph.num_links, dtype=torch.bool)
    keep[thinned.link[there]] = True
    assert 0 < keep.sum() < graph.num_links
    small = graph.keep_links(keep)
    with torch.no_grad():
        ours = model(thinned.x, thinned.adjacency)
        torch.testing.assert_close(ours, model(small.x, small.adjacency))


def test_the_same_seed_draws_the_same_links_and_torchs_own_state_stays(graph):
    model = made(graph)
    state = torch.get_rng_state()
    first, again, other = (drawn(graph, model, 4, seed) for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), state)
    for ours, theirs in zip(first, again, strict=True):
        assert torch.equal(ours.adjacency.value, theirs.adjacency.value)
    assert not torch.equal(first[0].adjacency.value, other[0].adjacency.value)


# -------------------------------------------------------------- gradual pruning


def test_weights_go_on_a_cubic_schedule_by_global_magnitude_and_stay_gone(graph):
    model = made(graph)
    pruning = GradualPruning(model, 0.9, 8)
    learner = Learner(model, TASK, gebt.Fit(lr=0.05), seed=0, hooks=[pruning])
    total = sum(mask.numel() for mask in pruning.masks.values())
    before = pruning.masks
    for epoch, _ in enumerate(learner.epochs(whole(graph), until=11), start=1):
        gone = 0.9 * (1 - (1 - min(1, epoch / 8)) ** 3)
        kept = sum(int(mask.sum()) for mask in pruning.masks.values())
        assert kept == total - int(gone * total)
        for name, weight in model.named_parameters():
            if name in before:
                assert not (pruning.masks[name] & ~before[name]).any()
                assert (weight[~pruning.masks[name]] == 0).all()
        before = pruning.masks
    assert set(before) == {"layers.0.weight", "layers.1.weight"}


def test_gradual_pruning_goes_on_where_another_was(graph):
    def learner():
        model = made(graph)
        hooks = [GradualPruning(model, 0.8, 6)]
        return Learner(model, TASK, gebt.Fit(), seed=2, hooks=hooks)

    one = learner()
    losses = [float(loss) for loss in one.epochs(whole(graph), 9)]
    first, second = learner(), learner()
    begun = [float(loss) for loss in first.epochs(whole(graph), 4)]
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert begun + [float(x) for x in second.epochs(whole(graph), 9)] == losses


# --------------------------------------------------------------------- students


def test_a_student_is_its_best_epoch_after_the_ramp_with_its_masks(loose, taught):
    model, logits = taught
    seen = []
    student = train_student(
        model, loose, logits, weight_ratio=0.7, epochs=35, seed=3, on_epoch=seen.append
    )
    assert [epoch.epoch for epoch in student.history] == [*range(1, 36)]
    assert len(seen) == 35
    values = [epoch.val for epoch in student.history]
    assert all(map(math.isnan, values[:24])) and not any(map(math.isnan, values[24:]))
    assert student.val == max(values[24:])
    assert student.best_epoch == 25 + values[24:].index(student.val)
    total = sum(mask.numel() for mask in student.masks.values())
    kept = sum(int(mask.sum()) for mask in student.masks.values())
    assert kept == total - int(0.7 * total)
    for name, weight in model.named_parameters():
        if name in student.masks:
            assert (weight[~student.masks[name]] == 0).all()
    assert not model.training


def test_the_same_seed_trains_the_same_student(loose, taught):
    model, logits = taught
    start = copy.deepcopy(model.state_dict())
    states = []
    for seed in (1, 1, 2):
        model.load_state_dict(start)
        state = torch.get_rng_state()
        train_student(model, loose, logits, epochs=10, seed=seed)
        assert torch.equal(torch.get_rng_state(), state)
        states.append(copy.deepcopy(model.state_dict()))
    name = "layers.0.weight"
    assert torch.equal(states[0][name], states[1][name])
    assert not torch.equal(states[0][name], states[2][name])


def test_a_student_never_reads_its_teachers_answers_on_the_split(loose, taught):
    model, logits = taught
    start = copy.deepcopy(model.state_dict())
    train_student(model, loose, logits, epochs=10)
    known = torch.cat([loose.split.train, loose.split.val, loose.split.test])
    blind = logits.clone()
    blind[known] = torch.nan
    again = made(loose)
    again.load_state_dict(start)
    train_student(again, loose, blind, epochs=10)
    for ours, theirs in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("kind", [GraphSAGE, GAT])
def test_models_that_count_links_become_students_too(loose, kind):
    model = made(loose, kind)
    gebt.train(model, loose, epochs=30)
    with torch.no_grad():
        logits = model(loose.x, loose.adjacency)
    student = train_student(model, loose, logits, weight_ratio=0.5, epochs=30)
    few = loose.keep_links(gebt.random_links(loose.num_links, 0.7, torch.Generator()))
    assert student.val > 60 and gebt.evaluate(model, few) > 60


def test_what_a_ticket_dropped_stays_dropped_in_a_student(loose, taught):
    model, logits = taught
    ticket = gebt.find_ticket(made(loose), loose, weight_ratio=0.3, epochs=60)
    small = ticket.open(model, loose)
    student = train_student(model, small, logits, weight_ratio=0.6, epochs=10)
    for name, mask in ticket.weight_masks.items():
        assert not (student.masks[name] & ~mask).any()
    student = train_student(model, small, logits, weight_ratio=0.0, epochs=5)
    assert student.masks.keys() == ticket.weight_masks.keys()


def test_what_cannot_be_trained_is_refused(loose, taught):
    model, logits = taught
    with pytest.raises(ValueError, match="`weight_ratio` is the share to remove"):
        train_student(model, loose, logits, weight_ratio=1.0)
    with pytest.raises(ValueError, match="the teacher of another graph"):
        train_student(model, loose, logits[1:])
    with pytest.raises(TypeError, match=r"train_student\(\): .*'epoch'"):
        train_student(model, loose, logits, epoch=3)
