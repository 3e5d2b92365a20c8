"""gebt.tasks: loss and score by hand, refusals."""

import math
from dataclasses import replace

import pytest
import torch

from gebt import NodeClassification, Split

OUTPUT = torch.tensor([[2.0, 0.0], [0.0, 0.0], [-1.0, 3.0], [1.0, 0.0]])


def literal(graph, y, train, val=()):
    split = Split(*(torch.tensor(part, dtype=torch.int64) for part in (train, val, ())))
    labels = torch.zeros(graph.num_nodes, dtype=torch.int64)
    labels[: len(y)] = torch.tensor(y)
    return replace(graph, y=labels, split=split)


def test_the_loss_is_the_mean_cross_entropy_of_the_part(graph):
    known = literal(graph, [0, 1, 1, 1], train=[0, 2], val=[1])
    task = NodeClassification()
    loss = task.loss(OUTPUT[[0, 2]], known, "train")
    by_hand = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-4))) / 2
    assert float(loss) == pytest.approx(by_hand, rel=1e-6)
    assert float(task.loss(OUTPUT[[1]], known, "val")) == pytest.approx(math.log(2))


def test_the_score_is_the_percentage_right(graph):
    known = literal(graph, [0, 1, 1, 1], train=[0, 1, 2, 3])
    # Node 1 ties and takes the first class, node 3 is plainly wrong.
    assert NodeClassification().score(OUTPUT, known, "train") == 50.0


def test_rows_are_the_nodes_of_the_part(graph):
    task = NodeClassification()
    for part in ("train", "val", "test"):
        assert torch.equal(task.rows(graph, part), getattr(graph.split, part))
    assert task.rows(replace(graph, split=None), "val").numel() == 0


def test_a_whole_graph_passes_the_check(graph):
    NodeClassification().check(graph)


def test_a_graph_without_labels_is_refused(graph):
    with pytest.raises(ValueError, match="'blocks' has no labels: set `data.y`"):
        NodeClassification().check(replace(graph, y=None))


def test_a_graph_without_training_nodes_is_refused(graph):
    for split in (None, literal(graph, [0], train=[]).split):
        with pytest.raises(
            ValueError, match="no training nodes: set `data.train_mask`"
        ):
            NodeClassification().check(replace(graph, split=split))


def test_a_negative_label_is_refused_on_training_nodes_only(graph):
    with pytest.raises(ValueError, match="training node of 'blocks' has the label -1"):
        NodeClassification().check(literal(graph, [0, -1], train=[0, 1]))
    NodeClassification().check(literal(graph, [0, -1], train=[0]))
