"""The distilled loss by hand, and whose answers the teacher is asked for."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

import gebt
from gebt.learn.distilled import Distilled
from gebt.learn.tasks import LinkPrediction, MultiLabel, NodeClassification
from gebt.models import GCN

TASK = NodeClassification()


def split_of(train, val, test):
    return gebt.Split(*map(torch.tensor, (train, val, test)))


@pytest.fixture
def small(graph):
    """Nodes 3, 5 and all from 8 on are in no part of the split."""
    return replace(graph, split=split_of([6, 0], [1, 4], [2, 7]))


def test_the_loss_is_cross_entropy_plus_the_mean_divergence_of_nobodys_nodes(small):
    small = replace(small, split=split_of([6, 0], [1, 4], [*range(8, 120), 2, 7]))
    logits = torch.full((120, 3), torch.nan)  # what nobody may read
    logits[3] = torch.tensor([0.5, 0.3, 0.2]).log()
    logits[5] = torch.tensor([0.1, 0.1, 0.8]).log()
    task = Distilled(TASK, logits, weight=4)
    task.check(small)
    assert task.rows(small, "train").tolist() == [6, 0, 3, 5]
    output = torch.tensor([[1.0, 0, 0], [0, 2.0, 0], [0, 0, 0], [0, 0, 0]])
    third = torch.tensor(1 / 3).log()
    divergence = [
        sum(p * (torch.tensor(p).log() - third) for p in row)
        for row in ([0.5, 0.3, 0.2], [0.1, 0.1, 0.8])
    ]
    expected = cross_entropy(output[:2], small.y[[6, 0]]) + 4 * sum(divergence) / 2
    torch.testing.assert_close(task.loss(output, small, "train"), expected)


def test_other_parts_and_scores_are_the_tasks_own(small):
    task = Distilled(TASK, torch.randn(120, 3))
    output = torch.randn(2, 3)
    for part in ("val", "test"):
        assert torch.equal(task.rows(small, part), TASK.rows(small, part))
        assert task.loss(output, small, part) == TASK.loss(output, small, part)
        assert task.score(output, small, part) == TASK.score(output, small, part)
    assert task.name == TASK.name and task.metric(small) == TASK.metric(small)
    assert task.num_outputs(small) == 3


def test_where_all_nodes_have_a_part_it_is_the_tasks_own_loss(graph):
    task = Distilled(TASK, torch.full((120, 3), torch.nan))
    assert torch.equal(task.rows(graph, "train"), graph.split.train)
    output = torch.randn(graph.split.train.numel(), 3)
    assert task.loss(output, graph, "train") == TASK.loss(output, graph, "train")


def test_what_a_matrix_keeps_for_the_rows_serves_all_graphs_of_one_split(small):
    task = Distilled(TASK, torch.randn(120, 3))
    rows = task.rows(small, "train")
    fewer = small.keep_links(torch.arange(small.num_links) % 2 == 0)
    assert task.rows(fewer, "train") is rows
    other = replace(small, split=split_of([0], [1], [2]))
    assert task.rows(other, "train").numel() == 118
    assert task.rows(small, "train").tolist() == rows.tolist()


def test_a_model_learns_a_teachers_answers_where_there_are_no_labels(small):
    logits = 4 * torch.eye(3)[torch.arange(120).flip(0) % 3]  # not the labels
    free = torch.ones(120, dtype=torch.bool)
    free[:8] = False
    free[[3, 5]] = True
    torch.manual_seed(1)
    model = GCN(small.num_features, 16, 3, dropout=0.0)
    gebt.train(model, small, task=Distilled(TASK, logits), epochs=150, lr=0.05)
    with torch.no_grad():
        found = model(small.x, small.adjacency).argmax(dim=1)
    right = (found == logits.argmax(dim=1))[free].float().mean()
    assert right > 0.8


@pytest.mark.parametrize("task", [LinkPrediction(), MultiLabel()])
def test_other_tasks_than_classes_are_refused(task):
    with pytest.raises(ValueError, match=f"but the task is '{task.name}'"):
        Distilled(task, torch.randn(120, 3))


def test_a_teacher_of_another_graph_or_width_is_refused_in_one_line(small):
    with pytest.raises(ValueError, match="for 119 nodes, but 'blocks' has 120"):
        gebt.train(GCN(24, 4, 3), small, task=Distilled(TASK, torch.randn(119, 3)))
    with pytest.raises(
        ValueError, match="gives 4 outputs per node, but the model .* 3"
    ):
        gebt.train(GCN(24, 4, 3), small, task=Distilled(TASK, torch.randn(120, 4)))
    with pytest.raises(ValueError, match=r"a row for each node .* got \(120,\)"):
        Distilled(TASK, torch.randn(120))
    with pytest.raises(ValueError, match="`weight` must not be negative"):
        Distilled(TASK, torch.randn(120, 3), weight=-1)
