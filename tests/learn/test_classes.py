"""Some classes as a task: whose nodes, which outputs, and what is refused."""

import pytest
import torch
from helpers import call_gebt

from gebt import (
    AmongClasses,
    MaskDistanceDetector,
    evaluate,
    find_ticket,
    load,
    split_classes,
    train,
)
from gebt.learn.tasks import NodeClassification, describe_task, find_task
from gebt.models import GCN


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_its_nodes_are_those_of_its_classes(graph, part):
    rows = AmongClasses([2, 0]).rows(graph, part)
    every = getattr(graph.split, part)
    assert torch.equal(rows, every[graph.y[every] != 1])
    assert rows.numel() < every.numel()


def test_output_k_is_the_kth_class(graph):
    task = AmongClasses([2, 0])
    rows = task.rows(graph, "test")
    right = torch.stack([graph.y[rows] == 2, graph.y[rows] == 0], dim=1).float()
    assert task.score(right, graph, "test") == 100
    assert task.score(1 - right, graph, "test") == 0
    assert task.loss(100 * right, graph, "test") < 1e-6


def test_without_a_choice_it_is_classification(graph):
    ours, output = AmongClasses(), torch.randn(graph.num_nodes, 3)
    ours.check(graph)
    rows = ours.rows(graph, "train")
    assert torch.equal(rows, graph.split.train) and ours.num_outputs(graph) == 3
    loss = ours.loss(output[rows], graph, "train")
    assert loss == NodeClassification().loss(output[rows], graph, "train")


def test_a_ticket_of_it_is_retrained_from_the_command_line(tmp_path):
    graph = load("digits")
    task = split_classes(graph, 3, seed=1)[0]
    model = GCN(graph.num_features, 8, task.num_outputs(graph))
    path = tmp_path / "ticket.safetensors"
    detector = MaskDistanceDetector(2.0)
    find_ticket(model, graph, task=task, detector=detector).save(path)
    options = ("--epochs", "3", "--quiet", "--out", tmp_path / "out")
    assert not call_gebt("retrain", path, *options)
    assert find_task(describe_task(task)).classes == task.classes
    named = ",".join(map(str, task.classes))
    assert find_task(f"{task.name}:{named}").classes == task.classes


def test_a_model_learns_it(graph):
    task = AmongClasses([1, 2])
    torch.manual_seed(0)
    model = GCN(graph.num_features, 16, task.num_outputs(graph))
    train(model, graph, task=task, epochs=60)
    assert evaluate(model, graph, task=task) > 70


def test_nodes_without_a_class_are_in_no_part(make_graph):
    graph = make_graph()
    graph.y[graph.split.test[:5]] = -1
    graph.y[graph.split.test[5]] = -7
    rows = AmongClasses([0, 1, 2]).rows(graph, "test")
    assert torch.equal(rows, graph.split.test[6:])


@pytest.mark.parametrize("classes", [[1], [1, 1], [0, 1, 0]])
def test_it_wants_two_classes_that_differ(classes):
    with pytest.raises(ValueError, match="`classes` must be two or more that differ"):
        AmongClasses(classes)


def test_it_says_which_class_a_graph_lacks(graph):
    for beyond in (3, -1):
        with pytest.raises(ValueError, match=f"'blocks' are 0 to 2: {beyond} is none"):
            AmongClasses([1, beyond]).check(graph)
    graph.y[graph.split.train] = graph.y[graph.split.train].clamp(max=1)
    graph.y[graph.split.test[0]] = 2
    with pytest.raises(ValueError, match="no training node of the class 2"):
        AmongClasses([1, 2]).check(graph)


def test_a_graphs_classes_are_dealt_evenly_and_all_of_them(make_graph):
    graph = make_graph()
    graph.y[0] = 39
    for tasks, seed in ((1, 0), (3, 1), (8, 2), (20, 3)):
        found = split_classes(graph, tasks, seed=seed)
        sizes = [len(task.classes) for task in found]
        assert len(found) == tasks and max(sizes) - min(sizes) <= 1
        assert sorted(c for task in found for c in task.classes) == [*range(40)]
    deals = {tuple(t.classes for t in split_classes(graph, 8, seed=s)) for s in (0, 0)}
    assert len(deals) == 1
    assert deals != {tuple(t.classes for t in split_classes(graph, 8, seed=1))}


@pytest.mark.parametrize("tasks", [0, 2, -1])
def test_two_classes_must_be_left_to_each_task(graph, tasks):
    with pytest.raises(ValueError, match=f"`tasks` must .*got {tasks}"):
        split_classes(graph, tasks)
