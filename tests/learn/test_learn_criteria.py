"""Criteria that ask a model: by hand, what they may not read, and their controls."""

import math
from dataclasses import replace

import pytest
import torch
from helpers import as_dtype, tiny
from torch import nn
from torch_geometric.nn import GCNConv

import gebt
from gebt.learn import criteria
from gebt.learn.tasks import LinkPrediction, MultiLabel, NodeClassification
from gebt.models import GAT, GCN, GIN, GraphSAGE, ResGCN, adapt
from gebt.prune.criteria import Context, score_links

ASKING = ["voi", "expected-gradient", "grow"]


def scored(name, graph, model, ratio=0.5, seed=0, task=None):
    draw = torch.Generator().manual_seed(seed)
    return score_links(name, graph, Context(draw, model, ratio, task))


class Says(nn.Module):
    """The same answers with any links; counts the entries that it is shown."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(torch.as_tensor(logits))
        self.shown = []

    def forward(self, x, adjacency):
        self.shown.append(adjacency.pattern.nnz)
        return self.logits + 0 * (adjacency @ self.logits)


class Sum(nn.Module):
    """A node's features and its neighbours': linear in the links."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, x, adjacency):
        return self.scale * (x + adjacency @ x)


def random_tiny(seed, nodes=14, links=30, classes=3):
    draw = torch.Generator().manual_seed(seed)
    pairs = torch.randint(nodes, (links, 2), generator=draw).sort(1).values
    pairs = [(a, b) for a, b in pairs.unique(dim=0).tolist() if a != b]
    x = torch.randn(nodes, classes, generator=draw)
    return tiny(pairs, x.tolist(), nodes=nodes), sorted(pairs), x


def taught(graph, kind=GCN, **options):
    torch.manual_seed(2)
    model = kind(graph.num_features, 8, 3, **options)
    gebt.train(model, graph, epochs=60)
    return model


def same_class(graph, kept):
    """The share of the kept links that join nodes of one class."""
    pattern = graph.adjacency.pattern
    same = (graph.y[pattern.row.long()] == graph.y[pattern.col.long()]).float()
    return float(same[kept[graph.link]].mean())


# -------------------------------------------------------------------------- voi


def voi_by_loops(pairs, logits, wanted):
    """The definition, node by node: the links chosen, in the order of the rounds."""
    q = logits.double().softmax(1).tolist()
    classes = len(q[0])
    e = [[0.8 * p + 0.2 / classes for p in row] for row in q]
    b, count = [list(row) for row in q], [0] * len(q)
    degree = [sum(n in pair for pair in pairs) for n in range(len(q))]

    def normal(row):
        return [p / sum(row) for p in row]

    def side(u, v):
        after = normal([p * s for p, s in zip(b[u], e[v], strict=True)])
        gain = max(after) - after[b[u].index(max(b[u]))]
        return gain / math.sqrt(degree[u]) + 0.02 / (degree[u] * (1 + count[u]))

    rounds, chosen = [], set()
    for done in range(1, 13):
        more = wanted * done // 12 - len(chosen)
        score = {p: side(*p) + side(*p[::-1]) for p in pairs if p not in chosen}
        best = sorted(score, key=score.get, reverse=True)[:more]
        for u, v in best:
            b[u] = normal([p * s for p, s in zip(b[u], e[v], strict=True)])
            b[v] = normal([p * s for p, s in zip(b[v], e[u], strict=True)])
            count[u], count[v] = count[u] + 1, count[v] + 1
        chosen |= {*best}
        rounds += best
    return rounds


@pytest.mark.parametrize("seed", [0, 1, 3, 4])  # in 2 two links are equal
def test_voi_chooses_in_rounds_what_its_definition_does(seed):
    graph, pairs, logits = random_tiny(seed)
    graph = as_dtype(graph, torch.float64)
    logits = logits.double()
    expected = voi_by_loops(pairs, 2 * logits, len(pairs) - int(0.3 * len(pairs)))
    places = scored("voi", graph, Says(2 * logits), 0.3)
    order = places.argsort(descending=True)[: len(expected)]
    assert [pairs[link] for link in order] == expected
    assert int((places > 0).sum()) == len(expected)


def test_voi_prefers_what_may_change_an_answer_by_hand():
    # 0 is unsure, 1 is sure of another class, 2 is sure of 0's own best class; 3 and 4
    # are sure of one class: nothing changes between them. All have one or two links.
    logits = torch.tensor([[0.6, 0.4], [0.01, 0.99], [0.99, 0.01], [0.99, 0.01]]).log()
    graph = tiny([(0, 1), (0, 2), (2, 3)], [[1.0]] * 4)
    places = scored("voi", graph, Says(logits), 0.6)
    assert places.argmax() == 0


@pytest.mark.parametrize("ratio", [0.0, 0.4, 0.8])
def test_voi_never_shows_the_model_a_link(graph, ratio):
    model = Says(torch.randn(graph.num_nodes, 3))
    scored("voi", graph, model, ratio)
    assert model.shown == [0]


def test_voi_reads_no_label(graph):
    model = taught(graph)
    blind = replace(graph, y=None, split=None)
    assert torch.equal(scored("voi", graph, model), scored("voi", blind, model))


def test_voi_of_beliefs_of_other_nodes_is_as_good_as_chance(make_graph):
    graph = make_graph(p_out=0.05)
    beliefs = 3.0 * torch.eye(3)[graph.y] + torch.randn(graph.num_nodes, 3)
    overall = same_class(graph, torch.ones(graph.num_links, dtype=torch.bool))
    assert same_class(graph, scored("voi", graph, Says(beliefs)) > 0) > overall + 0.05
    found = []
    for _ in range(30):
        permuted = beliefs[torch.randperm(graph.num_nodes)]
        found.append(same_class(graph, scored("voi", graph, Says(permuted)) > 0))
    assert sum(found) / len(found) == pytest.approx(overall, abs=0.02)


# ------------------------------------------------------------ expected gradient


def test_gradients_are_those_of_the_loss_on_the_links_that_were_drawn(graph):
    torch.manual_seed(0)
    graph = as_dtype(graph, torch.float64)
    model = GCN(graph.num_features, 4, 3).double().eval()
    halves = graph.split.val.tensor_split(2)
    context = Context(torch.Generator().manual_seed(3), model)
    found = criteria._gradients(graph, context, NodeClassification(), halves)

    def losses(value):
        a = graph.adjacency
        output = model(graph.x, a.with_value(a.value * value[graph.link])).detach()
        terms = nn.functional.cross_entropy(output, graph.y, reduction="none")
        return torch.stack([terms[half].sum() for half in halves])

    draw, total = torch.Generator().manual_seed(3), torch.zeros(2, 4).double()
    for _ in range(24):
        each = torch.rand(1 + graph.num_links, generator=draw)
        present = (each[1:] < 0.05 + 0.45 * each[0]).double()
        for link, step in enumerate(1e-6 * torch.eye(graph.num_links)[:4].double()):
            total[:, link] += (losses(present + step) - losses(present)) / 1e-6
    torch.testing.assert_close(found[:, :4], total / 24, rtol=1e-3, atol=1e-5)


def test_a_regression_finds_a_gain_that_depends_on_the_ends(graph):
    alone = torch.randn(graph.num_nodes, 3).log_softmax(1)
    adjacency = graph.adjacency
    every = torch.arange(adjacency.pattern.nnz)
    gain = 3 * adjacency.at_columns(alone.exp())[:, 0]  # of each message
    half = graph.split.val[::2]
    target = torch.zeros(graph.num_links).index_add(
        0, graph.link, gain * criteria._into(adjacency, half)
    )
    fitted = criteria._regressed(graph, alone, half, target)
    predicted = criteria._predicted(adjacency, alone, *fitted)
    assert predicted.shape == every.shape
    # Messages to nodes that it was not fitted on, too.
    assert torch.corrcoef(torch.stack([predicted, gain]))[0, 1] > 0.95


def test_each_half_is_scored_by_what_the_other_one_taught(graph, monkeypatch):
    adjacency, val = graph.adjacency, graph.split.val
    taught_by = []

    def regressed(graph, alone, nodes, target):
        taught_by.append(nodes)
        return torch.tensor(float(len(taught_by))), alone, alone

    def predicted(adjacency, alone, weights, *scale):
        return weights.expand(adjacency.pattern.nnz)  # 1 or 2, as who taught it

    gains = {}

    def in_rounds(graph, context, score):
        none = torch.zeros(graph.num_links, dtype=torch.bool)
        gains["link"] = score(none)
        return gains["link"]

    monkeypatch.setattr(criteria, "_regressed", regressed)
    monkeypatch.setattr(criteria, "_predicted", predicted)
    monkeypatch.setattr(criteria, "in_rounds", in_rounds)
    scored("expected-gradient", graph, taught(graph))
    one, two = taught_by
    assert sorted([*one.tolist(), *two.tolist()]) == sorted(val.tolist())
    into = torch.full((graph.num_nodes,), 1.5)
    into[one], into[two] = 2.0, 1.0
    expected = torch.zeros(graph.num_links).index_add(
        0, graph.link, adjacency.at_rows(into)
    )
    torch.testing.assert_close(gains["link"], expected, atol=1e-4, rtol=0)


def test_expected_gradient_reads_labels_of_validation_nodes_alone(graph):
    model = taught(graph)
    before = scored("expected-gradient", graph, model)
    y = torch.randint(3, graph.y.shape)
    y[graph.split.val] = graph.y[graph.split.val]
    y[graph.split.train[:3]] = torch.arange(3)
    other = replace(graph, y=y)
    assert torch.equal(before, scored("expected-gradient", other, model))
    y = graph.y.clone()
    y[graph.split.val] = (y[graph.split.val] + 1) % 3
    worse = scored("expected-gradient", replace(graph, y=y), model)
    assert not torch.equal(before, worse)


def test_expected_gradient_asks_an_unseen_graph_for_no_label_and_no_gradient(graph):
    model = taught(graph)
    context = Context(torch.Generator().manual_seed(0), model, 0.6)
    score_links("expected-gradient", graph, context)
    fitted = {name: both.clone() for name, both in context.fitted.items()}
    shapes = {name: tuple(both.shape) for name, both in fitted.items()}
    assert shapes == {"weights": (2, 23), "means": (2, 22), "deviations": (2, 22)}
    graph, _, x = random_tiny(0)
    model = Says(2 * x)
    context = replace(context, model=model, unseen=True)
    with torch.no_grad():
        places = score_links("expected-gradient", graph, context)
    assert model.shown == [0]
    assert int((places > 0).sum()) == graph.num_links - int(0.6 * graph.num_links)
    for name, both in fitted.items():
        assert torch.equal(context.fitted[name], both)


def test_expected_gradient_finds_links_that_help(make_graph):
    graph = make_graph(p_out=0.05)
    model = taught(graph)
    overall = same_class(graph, torch.ones(graph.num_links, dtype=torch.bool))
    kept = scored("expected-gradient", graph, model, 0.6) > 0
    assert same_class(graph, kept) > overall + 0.1


# ------------------------------------------------------------------------- grow


def grow_by_loops(pairs, x, wanted):
    """The definition for `Sum`: gradients of the cross-entropy by hand."""
    full = x.clone()
    for u, v in pairs:
        full[u], full[v] = full[u] + x[v], full[v] + x[u]
    answers = torch.eye(x.shape[1])[full.argmax(1)]
    out, chosen = x.clone(), []
    for done in range(1, 13):
        slope = answers - out.softmax(1)
        score = {
            (u, v): float(slope[u] @ x[v] + slope[v] @ x[u])
            for u, v in pairs
            if (u, v) not in chosen
        }
        more = wanted * done // 12 - len(chosen)
        best = sorted(score, key=score.get, reverse=True)[:more]
        for u, v in best:
            out[u], out[v] = out[u] + x[v], out[v] + x[u]
        chosen += best
    return chosen


@pytest.mark.parametrize("seed", range(5))
def test_grow_adds_in_rounds_what_its_definition_does(seed):
    graph, pairs, x = random_tiny(seed)
    expected = grow_by_loops(pairs, x, len(pairs) - int(0.4 * len(pairs)))
    places = scored("grow", graph, Sum(), 0.4)
    order = places.argsort(descending=True)[: len(expected)]
    assert [pairs[link] for link in order] == expected


def test_grow_reads_the_answers_and_keeps_them(make_graph):
    graph = make_graph(p_out=0.05)
    model = taught(graph)
    with torch.no_grad():
        answers = model(graph.x, graph.adjacency).argmax(1)

    def agreement(kept):
        small = graph.keep_links(kept)
        with torch.no_grad():
            return float((model(small.x, small.adjacency).argmax(1) == answers).sum())

    grown = agreement(scored("grow", graph, model, 0.8) > 0)
    random = [
        agreement(
            gebt.random_links(graph.num_links, 0.8, torch.Generator().manual_seed(s))
        )
        for s in range(5)
    ]
    assert grown > max(random)


def test_grow_keeps_probabilities_where_the_metric_is_of_ranks():
    graph, _, x = random_tiny(1, classes=2)
    hard = scored("grow", graph, Sum(), 0.6)
    soft = scored("grow", replace(graph, metric="ROC-AUC"), Sum(), 0.6)
    assert not torch.equal(hard, soft)


# -------------------------------------------------------------------- all three


class Peer(nn.Module):
    """A model of PyG's layers."""

    def __init__(self, num_features, hidden, num_outputs):
        super().__init__()
        self.one, self.two = GCNConv(num_features, hidden), GCNConv(hidden, num_outputs)

    def forward(self, x, edge_index, edge_weight=None):
        return self.two(
            self.one(x, edge_index, edge_weight).relu(), edge_index, edge_weight
        )


@pytest.mark.parametrize("criterion", ASKING)
@pytest.mark.parametrize(
    "kind", [GCN, GIN, GraphSAGE, GAT, ResGCN, lambda *sizes: adapt(Peer(*sizes))]
)
def test_any_model_can_be_asked_and_is_not_changed(graph, criterion, kind):
    torch.manual_seed(0)
    model = kind(graph.num_features, 8, 3)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    state = torch.get_rng_state()
    first, again = (scored(criterion, graph, model) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(torch.get_rng_state(), state)
    kept = graph.num_links - int(0.5 * graph.num_links)
    assert int((first > 0).sum()) == kept
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("criterion", ASKING)
def test_a_directed_graph_and_links_that_are_gone(criterion):
    draw = torch.Generator().manual_seed(0)
    edges = torch.randint(30, (2, 120), generator=draw).unique(dim=1)
    data = {
        "x": torch.randn(30, 6, generator=draw),
        "edge_index": edges[:, edges[0] != edges[1]],
        "y": torch.arange(30) % 3,
    }
    split = {
        "train": torch.arange(10),
        "val": torch.arange(10, 20),
        "test": torch.arange(20, 30),
    }
    graph = gebt.Graph.from_pyg(data, directed=True, split=split)
    graph = graph.keep_links(torch.arange(graph.num_links) % 3 > 0)
    model = taught(graph)
    places = scored(criterion, graph, model, 0.6)
    assert (places[::3] == 0).all()
    assert int((places > 0).sum()) == graph.num_links - int(0.6 * graph.num_links)


@pytest.mark.parametrize("criterion", ASKING)
def test_a_search_uses_them_at_its_ratio_for_a_distilled_task_too(graph, criterion):
    model = taught(graph)
    with torch.no_grad():
        task = gebt.Distilled(NodeClassification(), model(graph.x, graph.adjacency))
    expected = scored(criterion, graph, model, 0.7, task=task)
    ticket = gebt.find_ticket(
        model, graph, graph_ratio=0.7, criterion=criterion, task=task, epochs=80
    )
    assert torch.equal(ticket.link_mask, expected > 0)


@pytest.mark.parametrize("criterion", ASKING)
@pytest.mark.parametrize("task", [MultiLabel(), LinkPrediction()])
def test_other_tasks_than_classes_are_refused(graph, criterion, task):
    with pytest.raises(
        ValueError, match=f"'{criterion}' asks .* task is '{task.name}'"
    ):
        scored(criterion, graph, GCN(24, 4, 3), task=task)


@pytest.mark.parametrize("criterion", ASKING)
def test_a_model_that_diverged_is_refused(graph, criterion):
    with pytest.raises(ValueError, match="outputs of Says are not finite"):
        scored(criterion, graph, Says(torch.full((120, 3), torch.nan)))


@pytest.mark.parametrize("criterion", ["expected-gradient", "grow"])
def test_a_model_blind_to_links_is_refused_where_gradients_are_needed(graph, criterion):
    class Blind(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(24, 3)

        def forward(self, x, adjacency):
            return self.linear(x)

    with pytest.raises(ValueError, match="outputs of Blind do not depend on"):
        scored(criterion, graph, Blind())


def test_expected_gradient_needs_labels_and_validation_nodes(graph):
    model = GCN(24, 4, 3)
    split = graph.split
    one = gebt.Split(train=split.train, val=split.val[:1], test=split.test)
    with pytest.raises(ValueError, match="at least 2, but 'blocks' has 1"):
        scored("expected-gradient", replace(graph, split=one), model)
    touched = graph.adjacency.at_rows(torch.isin(torch.arange(120), split.val))
    far = torch.ones(graph.num_links, dtype=torch.bool)
    far[graph.link[touched]] = False
    with pytest.raises(ValueError, match="'blocks' has next to none"):
        scored("expected-gradient", graph.keep_links(far), model)
    with pytest.raises(ValueError, match="'blocks' has no labels"):
        scored("expected-gradient", replace(graph, y=None), model)
    with pytest.raises(ValueError, match="'blocks' has no training nodes"):
        scored("expected-gradient", replace(graph, split=None), model)
