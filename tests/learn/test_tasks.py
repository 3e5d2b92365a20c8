"""Losses and metrics by hand and against peers, refusals, searches."""

import json
import math
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from helpers import run_python
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from gebt import (
    Graph,
    LinkPrediction,
    LinkSplit,
    MultiLabel,
    NodeClassification,
    Split,
    evaluate,
    find_ticket,
    train,
)
from gebt.learn.metrics import average_precision
from gebt.learn.tasks import TASKS, describe_task, find_task, hits, roc_auc, task_for
from gebt.models import GCN, gcn_norm

OUTPUT = torch.tensor([[2.0, 0.0], [0.0, 0.0], [-1.0, 3.0], [1.0, 0.0]])
LABELS = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 0]], dtype=torch.bool)


def literal(graph, y, train, val=()):
    split = Split(*(torch.tensor(part, dtype=torch.int64) for part in (train, val, ())))
    labels = torch.zeros(graph.num_nodes, dtype=torch.int64)
    labels[: len(y)] = torch.tensor(y)
    return replace(graph, y=labels, split=split)


def labelled(graph, labels=LABELS):
    """The first nodes have these labels and train, the others have none."""
    y = torch.zeros(graph.num_nodes, labels.shape[1], dtype=torch.bool)
    y[: len(labels)] = labels
    split = Split(torch.arange(len(labels)), *torch.empty(2, 0, dtype=torch.int64))
    return replace(graph, y=y, split=split)


def paired(graph, train, held_out=(), negative=()):
    """Literal pairs; validation and test have the same."""
    parts = [torch.tensor(p).long().view(-1, 2) for p in (train, held_out, negative)]
    return replace(graph, split=LinkSplit(parts[0], *parts[1:], *parts[1:]))


@pytest.fixture
def cliques(make_graph):
    """Eight dense blocks, so that most links can be told from other pairs."""
    full = make_graph(classes=8, p_in=0.5)
    return full.hold_out_links(val=0.1, test=0.2)


# One class per node.


def test_the_loss_is_the_mean_cross_entropy_of_the_part(graph):
    known = literal(graph, [0, 1, 1, 1], train=[0, 2], val=[1])
    task = NodeClassification()
    loss = task.loss(OUTPUT[[0, 2]], known, "train")
    by_hand = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-4))) / 2
    assert float(loss) == pytest.approx(by_hand, rel=1e-6)
    assert float(task.loss(OUTPUT[[1]], known, "val")) == pytest.approx(math.log(2))


def test_the_score_of_several_classes_is_the_percentage_right(graph):
    known = literal(graph, [0, 1, 1, 1, 2], train=[0, 1, 2, 3])
    output = torch.nn.functional.pad(OUTPUT, (0, 1), value=-9)
    task = NodeClassification()
    # Node 1 ties and takes the first class, node 3 is plainly wrong.
    assert task.score(output, known, "train") == 50.0
    assert task.metric(known) == "accuracy"


def test_the_score_of_two_classes_is_the_roc_auc_of_their_difference(graph):
    known = literal(graph, [0, 1, 0, 1], train=[0, 1, 2, 3])
    known = replace(known, metric="ROC-AUC")
    task = NodeClassification()
    # Differences -2, 0, 4, -1: both positives, 0 and -1, beat -2 and neither 4.
    assert task.score(OUTPUT, known, "train") == 50.0
    assert task.score(OUTPUT + torch.arange(4)[:, None], known, "train") == 50.0
    assert task.metric(known) == "ROC-AUC"


def test_the_metric_is_the_data_sets_and_no_part_of_a_graph_switches_it(data, graph):
    two = data.subgraph(data.y < 2)
    task = NodeClassification()
    assert task.metric(graph) == task.metric(Graph.from_pyg(two)) == "accuracy"
    known = Graph.from_pyg(two, metric="ROC-AUC")
    links = torch.rand(known.num_links) < 0.5
    for part in (known, known.keep_links(links), known.reorder(), known.to("cpu")):
        assert task.metric(part) == "ROC-AUC"
    assert task.metric(replace(known, y=torch.zeros_like(known.y))) == "ROC-AUC"
    with pytest.raises(
        ValueError, match="ROC-AUC, which takes two classes, but it has"
    ):
        task.check(replace(graph, metric="ROC-AUC"))
    with pytest.raises(ValueError, match="`metric` must be one of .*got 'f1'"):
        Graph.from_pyg(data, metric="f1")


def test_a_task_comes_back_from_its_description():
    for task in (NodeClassification(), MultiLabel(), LinkPrediction(k=3, width=5)):
        again = find_task(json.loads(json.dumps(describe_task(task))))
        assert type(again) is type(task) and vars(again) == vars(task)
    assert vars(find_task("link-prediction")) == vars(LinkPrediction())


@pytest.mark.parametrize(
    "described",
    [
        {},
        {"name": None},
        {"name": ["link-prediction"]},
        {"name": "link-prediction", "k": "3"},
        {"name": "link-prediction", "k": 0},
        {"name": "link-prediction", "depth": 3},
        {"name": "multi-label", "k": 3},
    ],
)
def test_a_description_that_is_odd_is_refused_in_words(described):
    with pytest.raises(ValueError, match="no task|has no option|must be at least 1"):
        find_task(described)


def test_rows_are_the_nodes_of_the_part(graph):
    task = NodeClassification()
    for part in ("train", "val", "test"):
        assert torch.equal(task.rows(graph, part), getattr(graph.split, part))
    assert task.rows(replace(graph, split=None), "val").numel() == 0


@pytest.mark.parametrize("task", [NodeClassification(), MultiLabel()])
def test_a_split_of_links_has_no_nodes_to_learn_from(graph, task):
    known = labelled(graph) if task.name == "multi-label" else graph
    known = paired(known, [[0, 1]], [[1, 2]])
    assert task.rows(known, "val").numel() == 0
    with pytest.raises(ValueError, match="no training nodes"):
        task.check(known)


def test_a_whole_graph_passes_the_check(graph):
    NodeClassification().check(graph)


def test_a_graph_without_labels_is_refused(graph):
    for task in (NodeClassification(), MultiLabel()):
        with pytest.raises(ValueError, match="'blocks' has no labels: set `data.y`"):
            task.check(replace(graph, y=None))


def test_a_graph_without_training_nodes_is_refused(graph):
    for split in (None, literal(graph, [0], train=[]).split):
        with pytest.raises(
            ValueError, match="no training nodes: mark some in `data.train_mask`"
        ):
            NodeClassification().check(replace(graph, split=split))


def test_a_negative_label_is_refused_on_training_nodes_only(graph):
    with pytest.raises(ValueError, match="training node of 'blocks' has the label -1"):
        NodeClassification().check(literal(graph, [0, -1], train=[0, 1]))
    NodeClassification().check(literal(graph, [0, -1], train=[0]))


def test_two_classes_are_learned_and_scored_by_roc_auc(make_graph):
    graph = replace(make_graph(classes=2, p_in=0.04, p_out=0.02), metric="ROC-AUC")
    model = GCN(graph.num_features, 8, 2)
    train(model, graph, epochs=40)
    with torch.no_grad():
        chance = model(graph.x, graph.adjacency, graph.split.test).softmax(dim=1)
    expected = roc_auc_score(graph.y[graph.split.test], chance[:, 1])
    assert evaluate(model, graph) == pytest.approx(100 * expected, abs=1e-9)
    assert 85 < 100 * expected < 100


# ROC-AUC and average precision.


def test_roc_auc_counts_the_pairs_in_the_right_order_and_half_of_the_ties():
    score = torch.tensor([1.0, 1.0, 0.0, 2.0])
    positive = torch.tensor([True, False, False, True])
    # 1 against 1 is half, 1 against 0 and 2 against both are whole: 3.5 of 4.
    assert roc_auc(score, positive) == 87.5
    assert roc_auc(-score, positive) == 12.5
    assert roc_auc(score, ~positive) == 12.5
    assert roc_auc(torch.ones(4), positive) == 50.0


def test_average_precision_is_the_mean_precision_at_the_positives():
    score = torch.tensor([4.0, 3.0, 2.0, 2.0, 1.0])
    positive = torch.tensor([True, False, True, False, True])
    # Places 1, then 3 and 4 at once, then 5: 1/1, 2/4 and 3/5.
    assert average_precision(score, positive) == pytest.approx(100 * 2.1 / 3)
    assert math.isnan(average_precision(score, torch.zeros(5, dtype=torch.bool)))
    known = Graph.from_pyg(
        {"x": torch.ones(5, 1), "edge_index": [[0], [1]], "y": positive.long()},
        split={"train": [0, 1, 2, 3, 4]},
        metric="AP",
    )
    output = torch.stack([torch.zeros(5), score], dim=1)
    task = NodeClassification()
    assert task.metric(known) == "AP"
    assert task.score(output, known, "train") == pytest.approx(70)
    with pytest.raises(ValueError, match="AP, which takes two classes, but it has 3"):
        task.check(replace(known, y=torch.tensor([0, 1, 2, 0, 1])))


@pytest.mark.parametrize("levels", [None, 50, 3])
@pytest.mark.parametrize("share", [0.02, 0.5])
def test_average_precision_is_scikit_learns(levels, share):
    for seed in range(5):
        draw = torch.Generator().manual_seed(seed)
        score = torch.randn(400, generator=draw)
        if levels:
            score = (score * levels).round()
        positive = torch.rand(400, generator=draw) < share
        positive[seed] = True
        expected = 100 * average_precision_score(positive, score)
        assert average_precision(score, positive) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("levels", [None, 50, 3])
@pytest.mark.parametrize("share", [0.02, 0.5])
def test_roc_auc_is_scikit_learns(levels, share):
    for seed in range(5):
        draw = torch.Generator().manual_seed(seed)
        score = torch.randn(701, generator=draw)
        if levels:
            score = (score * levels / 4).round()
        positive = torch.rand(701, generator=draw) < share
        expected = 100 * roc_auc_score(positive, score)
        assert roc_auc(score, positive) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("kind", [True, False])
def test_roc_auc_of_one_kind_alone_is_nan(kind):
    assert math.isnan(roc_auc(torch.rand(5), torch.full((5,), kind)))


# Several labels per node.


def test_the_loss_is_the_mean_binary_cross_entropy_of_every_label(graph):
    output = torch.tensor([[2.0, 0.0, -1.0], [0.0, 0.0, 0.0], [3.0, -2.0, 1.0]])
    # How far each output is on the label's side.
    margins = [2, 0, -1, 0, 0, 0, 3, -2, -1]
    by_hand = sum(math.log(1 + math.exp(-m)) for m in margins) / 9
    loss = MultiLabel().loss(output, labelled(graph), "train")
    assert float(loss) == pytest.approx(by_hand, rel=1e-6)


def test_micro_f1_by_hand(graph):
    known, task = labelled(graph), MultiLabel()
    said = torch.tensor([[1.0, 2, 0], [-1, -1, 3], [5, -1, -1]])
    # Of four labels two are said, of four said two are right; 0 says no.
    assert task.score(said, known, "train") == 50.0
    assert task.score(LABELS.float() - 0.5, known, "train") == 100.0
    assert task.score(torch.full((3, 3), -1.0), known, "train") == 0.0
    assert task.metric(known) == "micro-F1"
    none = labelled(graph, torch.zeros_like(LABELS))
    assert task.score(torch.full((3, 3), -1.0), none, "train") == 0.0


@pytest.mark.parametrize("shift", [-9.0, -1.0, 0.0, 1.0, 9.0])
def test_micro_f1_is_scikit_learns(graph, shift):
    for seed in range(5):
        draw = torch.Generator().manual_seed(seed)
        labels = torch.rand(61, 7, generator=draw) < 0.3
        output = torch.randn(61, 7, generator=draw) + shift
        expected = f1_score(
            labels.int(), (output > 0).int(), average="micro", zero_division=0
        )
        score = MultiLabel().score(output, labelled(graph, labels), "train")
        assert score == pytest.approx(100 * expected, abs=1e-9)


def test_a_task_that_does_not_fit_the_labels_is_refused_and_names_the_other(graph):
    with pytest.raises(
        ValueError, match="'blocks' has one class per node.*'node-classification'"
    ):
        MultiLabel().check(graph)
    with pytest.raises(
        ValueError, match="'blocks' has 3 labels per node.*Use the task 'multi-label'"
    ):
        NodeClassification().check(labelled(graph))
    MultiLabel().check(labelled(graph))


@pytest.mark.parametrize("outputs", [1, 2])
def test_too_few_outputs_are_refused(graph, outputs):
    words = f"the model gives {outputs} outputs per node, but 'blocks' has 3 classes"
    for task, known in (
        (NodeClassification(), graph),
        (MultiLabel(), labelled(graph)),
    ):
        output = torch.zeros(task.rows(known, "train").numel(), outputs)
        for measure in (task.loss, task.score):
            with pytest.raises(ValueError, match=words):
                measure(output, known, "train")


def test_an_output_without_a_label_is_refused_and_without_a_class_is_not(graph):
    with pytest.raises(ValueError, match="gives 4 outputs per node, but .* 3 classes"):
        MultiLabel().score(torch.zeros(3, 4), labelled(graph), "train")
    output = torch.eye(4)[graph.y[graph.split.train]]
    assert NodeClassification().score(output, graph, "train") == 100.0


def test_a_multi_label_ticket_is_drawn_retrained_and_scored(graph):
    seen = (gcn_norm(graph.adjacency) @ graph.x)[:, :4]
    known = replace(graph, y=seen > seen.median(dim=0).values)
    task = MultiLabel()
    model = GCN(graph.num_features, 16, task.num_outputs(known))
    ticket = find_ticket(model, known, weight_ratio=0.5, task=task)
    assert ticket.settled and ticket.options["task"] == {"name": "multi-label"}
    small = ticket.open(model, known)
    done = train(model, small, keep=ticket.weight_masks, task=task)
    # Saying yes to everything scores 67; four seeds gave 77 to 82.
    assert evaluate(model, small, task=task) > 72
    assert done.val == evaluate(model, small, "val", task=task)


# Links.


def test_hits_counts_the_links_above_the_kth_negative_by_hand():
    linked = torch.tensor([3.0, 2.0, 1.0])
    negative = torch.tensor([0.0, 2.0, 2.0])
    # A link that ties with the bar is no hit.
    assert hits(linked, negative, 1) == pytest.approx(100 / 3)
    assert hits(linked, negative, 2) == pytest.approx(100 / 3)
    assert hits(linked, negative, 3) == 100.0
    assert hits(linked - 1, negative, 3) == pytest.approx(200 / 3)


def test_hits_of_fewer_negatives_than_k_is_100():
    assert hits(torch.zeros(3), torch.ones(4), 5) == 100.0
    assert hits(torch.zeros(3), torch.ones(5), 5) == 0.0


def test_hits_is_ogbs():
    if find_spec("ogb") is None:
        pytest.skip("needs ogb: pip install 'gebt[ogb]'")
    cases = []
    for seed in range(4):
        draw = np.random.default_rng(seed)
        linked, negative = draw.normal(0.5, 1, 83), draw.normal(0, 1, 199)
        if seed % 2:  # heavy ties
            linked, negative = linked.round(), negative.round()
        cases.append((linked.tolist(), negative.tolist()))
    cases.append(([0.0, 1.0], [0.5] * 49))
    # A process of its own: the import takes seconds, warns, and asks the network
    # for ogb's newest version.
    code = """
import json, sys
import torch
from ogb.linkproppred import Evaluator
judge = Evaluator("ogbl-collab")
for pos, neg in json.load(sys.stdin):
    scores = {"y_pred_pos": torch.tensor(pos), "y_pred_neg": torch.tensor(neg)}
    print(judge.eval(scores)["hits@50"])
"""
    lines = run_python(code, given=json.dumps(cases)).splitlines()[-len(cases) :]
    theirs = [100 * float(line) for line in lines]
    ours = [hits(torch.tensor(pos), torch.tensor(neg), 50) for pos, neg in cases]
    assert ours == pytest.approx(theirs, abs=1e-9)
    assert len(set(ours)) > 3


def test_the_loss_of_links_is_binary_cross_entropy_of_inner_products(graph):
    known = paired(graph, [[0, 1], [2, 3], [4, 4]])
    output = torch.randn(graph.num_nodes, 5, dtype=torch.float64)
    task = LinkPrediction(width=5)
    torch.manual_seed(8)
    loss = task.loss(output, known, "train")
    torch.manual_seed(8)
    drawn = torch.randint_like(known.split.train, graph.num_nodes)
    total = 0.0
    for pairs, side in ((known.split.train, 1), (drawn, -1)):
        for a, b in pairs.tolist():
            total += math.log(1 + math.exp(-side * float(output[a] @ output[b])))
    assert float(loss) == pytest.approx(total / 6, rel=1e-10)


def test_negatives_are_drawn_anew_each_time(graph):
    known = paired(graph, [[0, 1], [2, 3], [4, 5]])
    output = torch.randn(graph.num_nodes, 5)
    losses = {float(LinkPrediction().loss(output, known, "train")) for _ in range(5)}
    assert len(losses) == 5


def test_links_are_scored_among_the_negatives_of_their_part(graph):
    output = torch.zeros(graph.num_nodes, 1)
    output[:4, 0] = torch.tensor([1.0, 2.0, 3.0, -1.0])
    known = paired(graph, [[0, 1]], [[0, 1], [1, 2]], [[0, 2], [3, 2]])
    # Links 2 and 6; negatives 3 and -3.
    assert LinkPrediction(k=1).score(output, known, "val") == 50.0
    assert LinkPrediction(k=2).score(output, known, "test") == 100.0
    assert LinkPrediction(k=1).metric(known) == "Hits@1"


def test_all_nodes_are_read_where_a_part_has_links_and_none_where_not(graph):
    task = LinkPrediction()
    known = paired(graph, [[0, 1]])
    assert task.rows(known, "train") is None
    for other in (known, graph, replace(graph, split=None)):
        assert task.rows(other, "val").numel() == 0


def test_training_links_have_no_score(cliques):
    model = GCN(cliques.num_features, 4, 8)
    with pytest.raises(ValueError, match="Hits@K needs negatives; the training links"):
        evaluate(model, cliques, "train", task=LinkPrediction())


def test_a_graph_without_a_split_of_links_is_refused(graph):
    words = r"'blocks' has no split of its links: use `graph.hold_out_links\(\)`"
    for known in (graph, replace(graph, split=None), paired(graph, [], [[0, 1]])):
        with pytest.raises(ValueError, match=words):
            LinkPrediction().check(known)


@pytest.mark.parametrize("count", [0, 2])
def test_fewer_negatives_than_k_are_refused(graph, count):
    known = paired(graph, [[0, 1]], [[1, 2]], [[2, 3]] * count)
    words = f"Hits@3 needs at least 3 negative pairs, but the val split .* has {count}"
    with pytest.raises(ValueError, match=words):
        LinkPrediction(k=3).check(known)
    LinkPrediction(k=2).check(paired(graph, [[0, 1]], [[1, 2]], [[2, 3]] * 2))
    LinkPrediction(k=3).check(paired(graph, [[0, 1]]))  # nothing to score


@pytest.mark.parametrize("name", ["k", "width"])
@pytest.mark.parametrize("value", [0, -3])
def test_k_and_width_are_at_least_one(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be at least 1, got {value}"):
        LinkPrediction(**{name: value})


def test_a_link_prediction_ticket_is_drawn_retrained_and_scored(cliques):
    task = LinkPrediction(k=10, width=16)
    model = GCN(cliques.num_features, 16, task.num_outputs(cliques), dropout=0.0)
    before = evaluate(model, cliques, task=task)
    ticket = find_ticket(model, cliques, weight_ratio=0.5, task=task)
    described = {"name": "link-prediction", "k": 10, "width": 16}
    assert ticket.options["task"] == described
    assert ticket.links_kept == cliques.num_links - int(0.2 * cliques.num_links)
    small = ticket.open(model, cliques)
    done = train(model, small, keep=ticket.weight_masks, task=task)
    # A random ranking hits 6, an untrained model 22 to 32; four seeds gave 85 to 90.
    assert before < 50 < 75 < evaluate(model, small, task=task)
    assert done.val == evaluate(model, small, "val", task=task) > 75


def test_the_same_seed_draws_the_same_negatives(cliques):
    losses = []
    for seed in (3, 3, 4):
        torch.manual_seed(1)
        model = GCN(cliques.num_features, 8, 8, dropout=0.0)
        task = LinkPrediction(width=8)
        done = train(model, cliques, epochs=3, seed=seed, task=task)
        losses.append([epoch.loss for epoch in done.history])
    assert losses[0] == losses[1] != losses[2]


# By name.


def test_tasks_are_found_by_name_or_by_the_labels(graph):
    first = ["node-classification", "multi-label", "link-prediction"]
    last = "node-classification-among"
    assert list(TASKS) == [*first, "ordinal", "regression", "hierarchical", last]
    for name, kind in TASKS.items():
        found = find_task(name)
        assert type(found) is kind and found.name == name
    assert task_for(graph).name == "node-classification"
    assert task_for(replace(graph, y=None)).name == "node-classification"
    assert task_for(labelled(graph)).name == "multi-label"
    assert task_for(graph.hold_out_links()).name == "link-prediction"


def test_an_unknown_task_lists_those_there_are():
    with pytest.raises(
        ValueError,
        match="no task 'clustering'; gebt knows node-classification, multi-label, link",
    ):
        find_task("clustering")


def test_models_are_as_wide_as_the_task_needs(graph):
    assert NodeClassification().num_outputs(graph) == 3
    assert MultiLabel().num_outputs(labelled(graph, LABELS[:, :2])) == 2
    assert LinkPrediction(width=7).num_outputs(graph) == 7


def test_ogbs_split_of_links_is_learned_as_it_comes(data, cliques):
    held = cliques.split
    pattern = cliques.adjacency.pattern
    data.x = cliques.x
    data.edge_index = torch.stack([pattern.col, pattern.row]).long()
    ogb = {
        "train": {"edge": held.train, "weight": torch.ones(len(held.train))},
        "valid": {"edge": held.val, "edge_neg": held.val_negative},
        "test": {"edge": held.test, "edge_neg": held.test_negative},
    }
    graph = Graph.from_pyg(data, split=ogb)
    task = LinkPrediction(k=10, width=8)
    scores = []
    for known in (graph, replace(cliques, y=graph.y)):
        torch.manual_seed(1)
        model = GCN(graph.num_features, 8, 8)
        train(model, known, epochs=3, task=task)
        scores.append(evaluate(model, known, task=task))
    assert scores[0] == scores[1]
