"""The loop against plain PyTorch, its promises and refusals."""

import math
from dataclasses import replace

import pytest
import torch
from helpers import built, same
from torch import nn

from gebt import LinkPrediction, LinkSplit, ModelPruner, Split, evaluate, train
from gebt.learn.loop import parameter_groups
from gebt.learn.training import copy_state
from gebt.models import GAT, GCN, GIN, GraphSAGE, ResGCN
from gebt.options import Fit


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
def test_training_learns_the_small_graph(make_graph, sparse):
    graph = make_graph(sparse=sparse)
    model = built(graph)
    done = train(model, graph, epochs=60)
    assert len(done.history) == 60
    assert done.history[-1].loss < 0.7 * done.history[0].loss
    assert evaluate(model, graph, "test") > 85


def test_the_model_holds_the_best_validation_epoch(make_graph):
    graph = make_graph(features=3, p_in=0.05, p_out=0.03)
    model = built(graph)
    states, scores = [], []

    def keep_all(epoch):
        states.append(copy_state(model))
        scores.append(epoch.val)

    # A large rate, so that validation goes up and down.
    done = train(model, graph, epochs=30, lr=0.3, on_epoch=keep_all)
    best = scores.index(max(scores))
    assert 0 < best < 29 and scores[-1] < max(scores)
    assert done.best_epoch == best + 1
    assert done.val == scores[best]
    assert same(copy_state(model), states[best])
    assert evaluate(model, graph, "val") == done.val


def test_of_equally_good_epochs_the_first_is_kept(graph):
    model = built(graph)
    done = train(model, graph, epochs=30, lr=0.3)
    scores = [e.val for e in done.history]
    assert scores.count(max(scores)) > 1
    assert done.best_epoch == scores.index(max(scores)) + 1


def test_patience_ends_a_training_and_keeps_the_best_of_its_epochs(graph):
    whole = train(built(graph), graph, epochs=40, lr=0.3)
    model = built(graph)
    done = train(model, graph, epochs=40, lr=0.3, patience=3)
    assert len(done.history) == done.best_epoch + 3 < 40
    assert done.history == whole.history[: len(done.history)]
    assert all(epoch.until == 40 for epoch in done.history)
    assert evaluate(model, graph, "val") == done.val


def test_without_validation_nodes_patience_never_ends(graph):
    empty = torch.empty(0, dtype=torch.int64)
    graph = replace(graph, split=Split(graph.split.train, empty, empty))
    assert len(train(built(graph), graph, epochs=9, patience=1).history) == 9


def test_without_validation_nodes_the_last_epoch_is_kept(graph):
    empty = torch.empty(0, dtype=torch.int64)
    graph = replace(graph, split=Split(graph.split.train, empty, empty))
    model = built(graph)
    states = []
    done = train(
        model, graph, epochs=3, on_epoch=lambda e: states.append(copy_state(model))
    )
    assert done.best_epoch == 3
    assert math.isnan(done.val)
    assert all(math.isnan(e.val) for e in done.history)
    assert same(copy_state(model), states[-1])


def test_masked_weights_stay_zero_under_weight_decay(graph):
    model = built(graph)
    masks = ModelPruner(model, 0.8).masks()
    revived = []  # weights that are dropped and yet not zero, after each epoch

    def look(epoch):
        revived.append(
            sum(
                int(model.get_parameter(name)[~mask].count_nonzero())
                for name, mask in masks.items()
            )
        )

    train(model, graph, keep=masks, epochs=10, weight_decay=0.1, on_epoch=look)
    assert revived == [0] * 10
    for name, mask in masks.items():
        assert model.get_parameter(name)[mask].count_nonzero() > 0.9 * mask.sum()


def test_the_same_seed_repeats_bit_for_bit(graph):
    runs = []
    for seed in (3, 3, 4):
        model = built(graph)
        done = train(model, graph, epochs=8, seed=seed)
        runs.append((done, copy_state(model)))
    assert runs[0][0] == runs[1][0]
    assert same(runs[0][1], runs[1][1])
    assert [e.loss for e in runs[0][0].history] != [e.loss for e in runs[2][0].history]


def test_torchs_own_random_state_neither_matters_nor_moves(graph):
    losses = []
    for state in (11, 12):
        model = built(graph)
        torch.manual_seed(state)
        before = torch.get_rng_state()
        done = train(model, graph, epochs=3)
        assert torch.equal(torch.get_rng_state(), before)
        losses.append([e.loss for e in done.history])
    assert losses[0] == losses[1]


def test_training_equals_a_plain_pytorch_loop(graph):
    model = built(graph, dropout=0.0)
    start = copy_state(model)
    done = train(model, graph, epochs=5, lr=0.02, weight_decay=0.05)

    w, b, v, c = (
        start[f"layers.{k}.{name}"].requires_grad_()
        for k in (0, 1)
        for name in ("weight", "bias")
    )
    dense = graph.adjacency.to_dense() + torch.eye(graph.num_nodes)
    scale = dense.sum(dim=1).rsqrt()
    norm = scale[:, None] * dense * scale
    adam = torch.optim.Adam(
        [{"params": [w, b], "weight_decay": 0.05}, {"params": [v, c]}], lr=0.02
    )
    rows = graph.split.train
    for epoch in done.history:
        out = norm @ (norm @ (graph.x @ w) + b).relu() @ v + c
        loss = nn.functional.cross_entropy(out[rows], graph.y[rows])
        assert epoch.loss == pytest.approx(float(loss.detach()), rel=1e-5)
        adam.zero_grad()
        loss.backward()
        adam.step()


def decayed(model, decay="first"):
    groups = parameter_groups(model, Fit(decay=decay))
    names = {id(p): name for name, p in model.named_parameters()}
    found = {
        names[id(p)]: group["weight_decay"] for group in groups for p in group["params"]
    }
    assert found.keys() == set(names.values())
    assert set(found.values()) <= {0.0, 5e-4}
    return sorted(name for name, decay in found.items() if decay)


def test_weight_decay_is_on_the_first_layer_only():
    from torch_geometric.nn import GCN as PyGGCN

    first = ["layers.0.bias", "layers.0.weight"]
    assert decayed(GCN(5, (4, 3), 2)) == first
    assert decayed(PyGGCN(5, 4, num_layers=2, out_channels=2)) == [
        "convs.0.bias",
        "convs.0.lin.weight",
    ]
    plain = nn.Sequential(nn.ReLU(), nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 2)))
    assert decayed(plain) == ["1.0.bias", "1.0.weight"]
    assert decayed(nn.Linear(3, 2)) == ["bias", "weight"]


def test_weight_decay_does_not_take_layer_10_for_layer_1():
    class Late(nn.Module):
        """A list whose first item has no parameters, and eleven items."""

        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(
                [nn.ReLU(), *(nn.Linear(2, 2) for _ in range(10))]
            )

    assert decayed(Late()) == ["layers.1.bias", "layers.1.weight"]


@pytest.mark.parametrize("kind", [GCN, GAT, GIN, GraphSAGE, ResGCN])
def test_decay_all_is_on_every_parameter(kind):
    model = kind(5, 4, 2)
    everything = sorted(name for name, _ in model.named_parameters())
    assert decayed(model, "all") == everything
    assert 0 < len(decayed(model, "first")) < len(everything)


def test_decay_all_leaves_frozen_parameters_out():
    model = GCN(5, 4, 2)
    model.layers[0].bias.requires_grad_(False)
    [group] = parameter_groups(model, Fit(decay="all"))
    assert len(group["params"]) == 3
    assert (group["lr"], group["weight_decay"]) == (0.01, 5e-4)


def test_decay_decides_which_weights_shrink(graph):
    """With so much decay that it is all there is to the gradient."""
    names = ("layers.0.weight", "layers.1.weight")

    def sizes(model):
        return [float(model.get_parameter(name).detach().norm()) for name in names]

    left = {}
    for decay in ("first", "all"):
        model, seen = built(graph), []
        before = sizes(model)
        train(
            model,
            graph,
            epochs=15,
            weight_decay=1e4,
            decay=decay,
            on_epoch=lambda _, seen=seen, model=model: seen.append(sizes(model)),
        )
        left[decay] = [a / b for a, b in zip(seen[-1], before, strict=True)]
    assert left["first"][0] < 0.5 and left["all"][0] < 0.5
    assert left["all"][1] < 0.7 < 0.9 < left["first"][1]


def test_an_unknown_decay_is_refused_before_training(graph):
    model = built(graph)
    before = copy_state(model)
    with pytest.raises(ValueError, match="`decay` must be one of .*'last'"):
        train(model, graph, decay="last")
    assert same(before, copy_state(model))


def test_a_model_without_parameters_is_refused(graph):
    with pytest.raises(ValueError, match="ReLU has no parameters to train"):
        train(nn.ReLU(), graph)


@pytest.mark.parametrize("broken", ["rate", "weights"])
def test_a_diverging_loss_is_refused(graph, broken):
    model = built(graph, dropout=0.0)
    if broken == "weights":
        nn.init.constant_(model.layers[0].weight, float("nan"))
    words = {
        "rate": r"(loss|part) became \S+ in epoch \d+. Try a smaller",
        "weights": r"loss became nan in epoch 1. Features.*smaller learning rate",
    }
    with pytest.raises(ValueError, match=words[broken]):
        train(model, graph, lr=1e20, epochs=20)


@pytest.mark.parametrize("epochs", [0, -3])
def test_at_least_one_epoch_is_needed(graph, epochs):
    with pytest.raises(ValueError, match="`epochs` must be at least 1, got"):
        train(built(graph), graph, epochs=epochs)


def test_masks_that_do_not_fit_are_refused_before_training(graph):
    model = built(graph)
    before = copy_state(model)
    with pytest.raises(ValueError, match="'layers.9.weight', which GCN does not have"):
        train(model, graph, keep={"layers.9.weight": torch.ones(2, dtype=torch.bool)})
    assert same(before, copy_state(model))


def test_a_graph_without_labels_is_refused(graph):
    with pytest.raises(ValueError, match="has no labels"):
        train(built(graph), replace(graph, y=None))


class Whole(nn.Module):
    """A model that cannot choose rows, and is no GCN."""

    def __init__(self, features, classes):
        super().__init__()
        self.linear = nn.Linear(features, classes)

    def forward(self, x, adjacency):
        return adjacency @ self.linear(x)


def test_a_model_without_rows_trains(graph):
    model = Whole(graph.num_features, 3)
    train(model, graph, epochs=60, lr=0.05)
    assert evaluate(model, graph) > 80


def test_rows_make_no_difference_to_training(graph):
    class All(GCN):
        def forward(self, x, adjacency):
            return super().forward(x, adjacency)

    losses = []
    for kind in (GCN, All):
        torch.manual_seed(1)
        model = kind(graph.num_features, 8, 3, dropout=0.0)
        losses.append([e.loss for e in train(model, graph, epochs=5).history])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_evaluate_counts_the_right_answers(graph):
    model = built(graph).train()
    score = evaluate(model, graph, "test")
    assert not model.training
    rows = graph.split.test
    right = model(graph.x, graph.adjacency)[rows].argmax(dim=1) == graph.y[rows]
    assert score == pytest.approx(100 * float(right.double().mean()))


def test_evaluate_is_nan_for_an_empty_part(graph):
    empty = torch.empty(0, dtype=torch.int64)
    bare = replace(graph, split=Split(graph.split.train, empty, empty))
    model = built(graph)
    assert math.isnan(evaluate(model, bare, "val"))
    assert math.isnan(evaluate(model, bare, "test"))
    assert math.isnan(evaluate(model, replace(graph, split=None), "train"))
    assert not math.isnan(evaluate(model, bare, "train"))


def test_evaluate_is_nan_for_a_part_without_links(graph):
    held, task = graph.hold_out_links(), LinkPrediction(width=3)
    model = built(graph)
    none = torch.empty((0, 2), dtype=torch.int64)
    bare = replace(held, split=LinkSplit(held.split.train, *[none] * 4))
    assert math.isnan(evaluate(model, bare, "val", task=task))
    assert math.isnan(evaluate(model, bare, task=task))
    assert math.isnan(evaluate(model, graph, task=task))
    assert 0 <= evaluate(model, held, task=task) <= 100


def test_links_train_without_validation_to_the_last_epoch(graph):
    held, task = graph.hold_out_links(), LinkPrediction(width=3)
    none = torch.empty((0, 2), dtype=torch.int64)
    split = replace(held.split, val=none, val_negative=none)
    done = train(built(graph), replace(held, split=split), epochs=3, task=task)
    assert done.best_epoch == 3 and math.isnan(done.val)


def test_a_task_that_reads_all_nodes_runs_a_model_with_and_without_rows(graph):
    held, task = graph.hold_out_links(0.1, 0.2), LinkPrediction(width=3)
    for model in (built(graph, dropout=0.0), Whole(graph.num_features, 3)):
        done = train(model, held, epochs=40, task=task)
        assert done.history[-1].loss < done.history[0].loss
        assert evaluate(model, held, "val", task=task) == done.val


def test_evaluate_can_use_another_adjacency(graph):
    model = built(graph)
    train(model, graph, epochs=20)
    keep = torch.zeros(graph.num_links, dtype=torch.bool)
    lonely = graph.keep_links(keep)
    assert lonely.adjacency.pattern.nnz == 0
    score = evaluate(model, graph, adjacency=lonely.adjacency)
    assert score == evaluate(model, lonely)
    assert score != evaluate(model, graph)


def test_on_epoch_is_called_each_epoch_with_what_history_holds(graph):
    seen = []
    done = train(built(graph), graph, epochs=4, on_epoch=seen.append)
    assert tuple(seen) == done.history
    assert [e.epoch for e in seen] == [1, 2, 3, 4]
    assert all(e.distances == {} for e in seen)


def test_frozen_parameters_stay(graph):
    model = built(graph)
    model.layers[0].weight.requires_grad_(False)
    before = copy_state(model)
    train(model, graph, epochs=3)
    assert torch.equal(model.layers[0].weight, before["layers.0.weight"])
    assert not torch.equal(model.layers[1].weight, before["layers.1.weight"])


def test_dense_training_on_cora_reaches_the_known_accuracy(planetoid_root):
    import gebt

    graph = gebt.load("cora", planetoid_root)
    torch.manual_seed(0)
    model = GCN(graph.num_features, 16, graph.num_classes)
    train(model, graph, epochs=100)
    assert evaluate(model, graph, "test") > 78


def test_weight_decay_looks_through_a_module_that_only_wraps_one():
    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = GCN(5, 4, 2)

    assert decayed(Wrapper()) == ["net.layers.0.bias", "net.layers.0.weight"]


def test_an_unknown_part_of_the_split_is_refused(graph):
    with pytest.raises(ValueError, match="`part` must be one of .*'valid'"):
        evaluate(built(graph), graph, "valid")


def test_the_model_is_left_in_evaluation_mode_without_validation_too(graph):
    from dataclasses import replace

    split = replace(graph.split, val=torch.empty(0, dtype=torch.int64))
    model = built(graph)
    train(model, replace(graph, split=split), epochs=1)
    assert not model.training


def test_too_few_classes_are_refused(graph):
    model = GCN(graph.num_features, 4, 2)
    with pytest.raises(ValueError, match="gives 2 outputs per node, but .* 3 classes"):
        train(model, graph, epochs=1)
