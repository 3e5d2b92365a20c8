"""Classes in order: losses, answers and errors by hand, and what is refused."""

import json
import math
from dataclasses import replace

import pytest
import torch
from helpers import assert_refused
from torch.nn.functional import cross_entropy

import gebt
from gebt import (
    Hierarchical,
    MaskDistanceDetector,
    NodeClassification,
    Ordinal,
    Regression,
    Split,
    absolute_error,
    find_ticket,
    train,
)
from gebt.learn.tasks import describe_task, find_task
from gebt.models import GCN

EVERY = [Ordinal(), Regression(), Hierarchical()]


def literal(graph, y, classes):
    """The first nodes have these labels and train, the last has the last class."""
    split = Split(torch.arange(len(y)), *torch.empty(2, 0, dtype=torch.int64))
    labels = torch.zeros(graph.num_nodes, dtype=torch.int64)
    labels[: len(y)] = torch.tensor(y)
    labels[-1] = classes - 1
    return replace(graph, y=labels, split=split)


@pytest.fixture
def ordered():
    return gebt.load("synthetic:N=300,E=1500,F=16,C=6,ordinal=1")


# ---------------------------------------------------------------- ordinal


def test_the_target_is_a_gaussian_around_the_label(graph):
    known = literal(graph, [0, 2], classes=4)
    output = torch.randn(2, 4)
    loss = Ordinal(spread=0.8).loss(output, known, "train")
    by_hand = 0.0
    for row, label in zip(output.log_softmax(dim=1).tolist(), (0, 2), strict=True):
        bell = [math.exp(-(((k - label) / 0.8) ** 2) / 2) for k in range(4)]
        share = [b / sum(bell) for b in bell]
        by_hand += sum(t * (math.log(t) - p) for t, p in zip(share, row, strict=True))
    assert float(loss) == pytest.approx(by_hand / 2, rel=1e-5)


def test_its_loss_is_zero_at_the_target_and_nowhere_below(graph):
    known = literal(graph, [1, 3], classes=5)
    away = (torch.arange(5) - torch.tensor([[1], [3]])) / 0.5
    exact = -away.square() / 2
    task = Ordinal(spread=0.5)
    assert float(task.loss(exact, known, "train")) == pytest.approx(0, abs=1e-6)
    assert float(task.loss(exact + torch.randn(2, 5), known, "train")) > 0


def test_a_narrow_gaussian_is_cross_entropy(graph):
    known = literal(graph, [0, 3, 1], classes=4)
    output = torch.randn(3, 4, requires_grad=True)
    loss = Ordinal(spread=0.05).loss(output, known, "train")
    plain = cross_entropy(output, torch.tensor([0, 3, 1]))
    torch.testing.assert_close(loss, plain)
    ours, theirs = (torch.autograd.grad(each, output)[0] for each in (loss, plain))
    torch.testing.assert_close(ours, theirs)


def test_the_answer_is_the_median_not_the_likeliest_class(graph):
    known = literal(graph, [0, 0, 0], classes=4)
    shares = [[0.4, 0.15, 0.2, 0.25], [0.6, 0.2, 0.1, 0.1], [0.0, 0.0, 0.0, 1.0]]
    answers = Ordinal().answers(torch.tensor(shares).log(), known)
    assert answers.tolist() == [1, 0, 3]


@pytest.mark.parametrize("task", EVERY)
def test_score_and_error_are_accuracy_and_mean_distance(graph, task):
    known = literal(graph, [0, 5, 2, 3], classes=6)
    output = torch.randn(4, task.num_outputs(known))
    off = [
        abs(a - b)
        for a, b in zip(task.answers(output, known).tolist(), [0, 5, 2, 3], strict=True)
    ]
    assert task.score(output, known, "train") == 100 * off.count(0) / 4
    assert task.absolute_error(output, known, "train") == sum(off) / 4
    assert task.metric(known) == "accuracy"


# ------------------------------------------------- regression and hierarchy


def test_regression_is_squared_error_from_the_middle_and_rounds(graph):
    known = literal(graph, [0, 4, 2], classes=5)
    output = torch.tensor([[-2.6], [0.4], [9.0]])
    assert Regression().answers(output, known).tolist() == [0, 2, 4]
    loss = Regression().loss(output, known, "train")
    assert float(loss) == pytest.approx((0.6**2 + 1.6**2 + 9**2) / 3)


def test_hierarchy_answers_the_coarse_class_first(graph):
    known = literal(graph, [0], classes=4)
    task = Hierarchical([0, 0, 1, 1])
    # Coarse 1, though the likeliest class of all is 0, of coarse 0.
    output = torch.tensor([[0.0, 1.0, 9.0, 0.0, 2.0, 1.0]])
    assert task.num_outputs(known) == 6
    assert task.answers(output, known).tolist() == [2]


def test_its_loss_is_that_of_the_product_of_both_probabilities(graph):
    known = literal(graph, [1, 2, 4], classes=5)
    task = Hierarchical([0, 1, 1, 0, 2])
    output = torch.randn(3, 8)
    coarse, fine = output[:, :3].softmax(dim=1), output[:, 3:].exp()
    members = {0: [0, 3], 1: [1, 2], 2: [4]}
    chance = []
    for row, (label, group) in enumerate(((1, 1), (2, 1), (4, 2))):
        among = fine[row, label] / fine[row, members[group]].sum()
        chance.append(coarse[row, group] * among)
    expected = -torch.stack(chance).log().mean()
    torch.testing.assert_close(task.loss(output, known, "train"), expected)


def test_the_coarse_classes_are_consecutive_unless_told(ordered):
    assert Hierarchical().groups(ordered) == [0, 0, 0, 1, 1, 1]
    assert Hierarchical([0, 1, 0, 1, 0, 1]).groups(ordered) == [0, 1, 0, 1, 0, 1]


# ------------------------------------------------------------------- whole


@pytest.mark.parametrize("task", EVERY)
def test_each_is_learned_searched_and_reopened(ordered, task, tmp_path):
    torch.manual_seed(0)
    model = GCN(16, 16, task.num_outputs(ordered))
    train(model, ordered, epochs=60, task=task)
    # All at class 2 or 3 would be off by 1.5.
    assert absolute_error(model, ordered, task=task) < 1.0
    ticket = find_ticket(model, ordered, task=task, detector=MaskDistanceDetector(2))
    ticket.save(tmp_path / "t.safetensors")
    again = find_task(gebt.Ticket.load(tmp_path / "t.safetensors").options["task"])
    assert type(again) is type(task) and vars(again) == vars(task)


def test_descriptions_keep_options():
    for task in (Ordinal(spread=2.0), Hierarchical([0, 1, 0]), Regression()):
        again = find_task(json.loads(json.dumps(describe_task(task))))
        assert type(again) is type(task) and vars(again) == vars(task)
    assert find_task("ordinal:2").spread == 2
    assert find_task("hierarchical:0,0,1").coarse == [0, 0, 1]
    assert find_task("link-prediction:7").k == 7


# ----------------------------------------------------------------- refusals


@pytest.mark.parametrize("task", EVERY)
def test_two_classes_and_several_labels_have_no_order(make_graph, graph, task):
    with pytest.raises(ValueError, match="2 classes, which have no order to learn"):
        task.check(make_graph(classes=2))
    several = replace(graph, y=torch.ones(graph.num_nodes, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="3 labels per node"):
        task.check(several)


def test_only_classes_in_order_have_an_absolute_error(graph):
    model = GCN(graph.num_features, 4, 3)
    with pytest.raises(ValueError, match="'node-classification' have no order"):
        absolute_error(model, graph, task=NodeClassification())
    with pytest.raises(ValueError, match="gives 3 outputs per node, but 'regression'"):
        absolute_error(model, graph, task=Regression())
    nothing = replace(graph, split=replace(graph.split, test=torch.empty(0).long()))
    assert math.isnan(absolute_error(model, nothing, task=Ordinal()))


@pytest.mark.parametrize("coarse", [[0, 0, 0], [0, 2, 2], [1, 2, 1], [-1, 0, 1]])
def test_coarse_classes_have_no_gaps(coarse):
    with pytest.raises(ValueError, match="numbered from 0 without gaps, got"):
        Hierarchical(coarse)


def test_each_class_has_a_coarse_class(ordered):
    with pytest.raises(ValueError, match="for 3 classes, but .* has 6: give each"):
        Hierarchical([0, 0, 1]).check(ordered)


@pytest.mark.parametrize("spread", [0.0, -1.0, math.nan])
def test_a_gaussian_has_a_spread(spread):
    with pytest.raises(ValueError, match="`spread` must be positive"):
        Ordinal(spread)


SMALL = "synthetic:N=300,E=1500,F=16,C=6,ordinal=1"


@pytest.mark.parametrize(
    "task, words",
    [
        ("hierarchical:0,0,1", "`coarse` has a coarse class for 3 classes"),
        ("hierarchical:0,x", "hierarchical takes coarse, in numbers, behind a colon"),
        ("hierarchical:0.5,1", "no option coarse"),
        ("ordinal:", "ordinal takes spread, in numbers"),
        ("ordinal:1,2", "no option spread"),
        ("ordinal:0", "`spread` must be positive"),
        ("regression:3", "regression takes nothing behind a colon"),
        ("ordnial", "Did you mean 'ordinal'"),
    ],
)
def test_the_command_line_says_it_in_one_line(gebt_here, tmp_path, task, words):
    assert_refused(gebt_here("search", SMALL, "--task", task), words)
    assert not list(tmp_path.iterdir())


def test_a_run_tells_the_error_beside_the_accuracy(gebt_here, tmp_path):
    few = ("--epochs", 10, "--threshold", 2, "--out", "o")
    told = gebt_here("run", SMALL, "--task", "hierarchical:0,0,1,1,2,2", *few)
    assert told.returncode == 0, told.stderr
    assert "test error, classes" in told.stdout and "test accuracy, %" in told.stdout
    [run] = json.loads((tmp_path / "o/metrics.json").read_text())["runs"]
    errors = run["absolute_error"]
    assert 0 < errors["dense"] < 5 and f"{errors['ticket']:.2f}" in told.stdout
    model, small = gebt.load_compact(tmp_path / "o/compact.safetensors")
    task = Hierarchical([0, 0, 1, 1, 2, 2])
    assert absolute_error(model, small, task=task) == errors["ticket"]
    saved = (tmp_path / "o/run.toml").read_text()
    assert 'task = "hierarchical:0,0,1,1,2,2"' in saved
