"""What every model promises: rows, seeds, relabelling, descriptions."""

import json

import pytest
import torch
from peers import SMALL, close, double, shaken
from torch import nn

from gebt import SparseMatrix
from gebt.models import CLASSES, GAT, GCN, GIN, GraphSAGE, build_model, describe_model

NAMES = list(SMALL)
STACKS = [name for name in NAMES if name != "ResGCN"]


def test_these_are_all_the_models():
    assert {*SMALL, "SuperGNN"} == set(CLASSES)  # which has a file of its own
    assert all(type(SMALL[name](4, 2)) is CLASSES[name] for name in NAMES)


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("wanted", [[7], [31, 2, 119, 2], [], None], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_rows_are_the_rows_of_the_full_output(make_graph, name, wanted, sparse):
    # Few links, so that two hops do not reach everything.
    graph = double(make_graph(sparse=sparse, p_in=0.01, p_out=0.001))
    model = shaken(SMALL[name](graph.num_features, 3))
    rows = graph.split.train if wanted is None else torch.tensor(wanted).long()
    weigh = torch.randn(rows.numel(), 3, dtype=torch.float64)
    results = []
    for choose in (True, False):
        value = graph.adjacency.value.clone().requires_grad_()
        adjacency = graph.adjacency.with_value(value)
        if choose:
            out = model(graph.x, adjacency, rows)
        else:
            out = model(graph.x, adjacency)[rows]
        parameters = [value, *model.parameters()]
        grads = torch.autograd.grad((out * weigh).sum(), parameters)
        results.append((out, *grads))
    for mine, full in zip(*results, strict=True):
        close(mine, full)


@pytest.mark.parametrize("name", NAMES)
def test_rows_of_a_dense_graph_are_right_too(make_graph, name):
    # Every hop reads nearly all nodes: nothing is renumbered.
    graph = double(make_graph(p_in=0.9, p_out=0.5))
    model = shaken(SMALL[name](graph.num_features, 3))
    rows = torch.tensor([90, 3, 57])
    full = model(graph.x, graph.adjacency)
    close(model(graph.x, graph.adjacency, rows), full[rows])


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_right_after_the_values_changed_in_place(graph, name):
    # The row blocks are kept with the adjacency; a stale one must not be used.
    model = shaken(SMALL[name](graph.num_features, 3)).float()
    rows = torch.tensor([50, 3])
    adjacency = graph.adjacency.with_value(graph.adjacency.value.clone())
    before = model(graph.x, adjacency, rows)
    adjacency.value.mul_(0.1)
    after = model(graph.x, adjacency, rows)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, model(graph.x, adjacency)[rows])


@pytest.mark.parametrize("name", NAMES)
def test_isolated_nodes_depend_on_themselves_alone(make_graph, name):
    graph = double(make_graph())
    model = shaken(SMALL[name](graph.num_features, 3))
    alone = torch.tensor([0, 57, 119])
    x = torch.randn_like(graph.x)
    x[alone] = graph.x[alone]
    out, other = model(graph.x, graph.adjacency), model(x, graph.adjacency)
    assert out.isfinite().all()
    close(out[alone], other[alone])
    assert not torch.isclose(out, other).all(dim=1)[1:57].any()
    grad = torch.autograd.grad(out[alone].sum(), list(model.parameters()))
    assert all(g.isfinite().all() for g in grad)


@pytest.mark.parametrize("name", NAMES)
def test_sparse_and_dense_features_agree(make_graph, name):
    graph = double(make_graph(sparse=True))
    model = shaken(SMALL[name](graph.num_features, 3))
    sparse = model(graph.x, graph.adjacency)
    close(sparse, model(graph.x.to_dense(), graph.adjacency))


@pytest.mark.parametrize("name", NAMES)
def test_relabelling_the_nodes_relabels_the_output(make_graph, name):
    graph = double(make_graph())
    model = shaken(SMALL[name](graph.num_features, 3))
    new = torch.randperm(graph.num_nodes)
    old = new.argsort()
    pattern = graph.adjacency.pattern
    moved = SparseMatrix.from_coo(
        new[pattern.row], new[pattern.col], graph.adjacency.value, pattern.shape
    )
    close(model(graph.x[old], moved), model(graph.x, graph.adjacency)[old])


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("name", NAMES)
def test_training_repeats_bit_for_bit_with_the_seed_only(make_graph, name, sparse):
    graph = make_graph(sparse=sparse)
    model = SMALL[name](graph.num_features, 3, dropout=0.5)
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        value = graph.adjacency.value.clone().requires_grad_()
        adjacency = graph.adjacency.with_value(value)
        out = model.train()(graph.x, adjacency, graph.split.train)
        grads = torch.autograd.grad(out.square().sum(), [value, *model.parameters()])
        results.append((out, *grads))
    first, second, other = results
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.allclose(first[0], other[0])


@pytest.mark.parametrize("name", NAMES)
def test_evaluation_drops_nothing(graph, name):
    model = SMALL[name](graph.num_features, 3, dropout=0.9).eval()
    outputs = [model(graph.x, graph.adjacency) for _ in range(2)]
    assert torch.equal(*outputs)


@pytest.mark.parametrize("kind", [GCN, GIN, GraphSAGE])
def test_features_are_dropped_too(graph, kind):
    # One layer without hidden units: only dropout on the features can matter.
    model = kind(graph.num_features, [], 3, dropout=0.5).train()
    first, second = (model(graph.x, graph.adjacency) for _ in range(2))
    assert not torch.allclose(first, second)


@pytest.mark.parametrize("p", [-0.1, 1, 1.5])
@pytest.mark.parametrize("name", NAMES)
def test_a_dropout_out_of_range_is_refused(name, p):
    with pytest.raises(ValueError, match=r"`dropout` must lie in \[0, 1\), got"):
        SMALL[name](4, 2, dropout=p)


@pytest.mark.parametrize("kind", [GCN, GIN, GraphSAGE])
def test_hidden_is_one_width_or_a_sequence_of_them(kind):
    def shapes(hidden):
        return [layer.weight.shape for layer in kind(9, hidden, 2).layers]

    assert shapes(5) == [(9, 5), (5, 2)]
    assert shapes((5, 4)) == [(9, 5), (5, 4), (4, 2)]
    assert shapes([]) == [(9, 2)]
    assert kind(9, (5, 4), 2).arguments["hidden"] == [5, 4]


OPTIONS = [(name, {"dropout": 0.3}) for name in NAMES]
OPTIONS += [(name, {"inner_bias": True}) for name in ("GCN", "GIN", "GraphSAGE")]
OPTIONS += [(name, {"recompute": True}) for name in NAMES]


@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=str)
def test_a_description_rebuilds_the_model(make_graph, name, options):
    graph = double(make_graph())
    model = shaken(SMALL[name](graph.num_features, 3, **options))
    description = json.loads(json.dumps(describe_model(model)))
    again = build_model(description).double().eval()
    assert describe_model(again) == describe_model(model)
    assert again.arguments | options == again.arguments
    again.load_state_dict(model.state_dict())
    outputs = [m(graph.x, graph.adjacency) for m in (model, again)]
    assert torch.equal(*outputs)


def test_other_options_of_gat_and_resgcn_are_described_too():
    description = describe_model(GAT(4, 3, 2, heads=5, output_heads=2))
    assert description["arguments"] == {
        "num_features": 4,
        "hidden": 3,
        "num_outputs": 2,
        "heads": 5,
        "output_heads": 2,
        "dropout": 0.6,
    }
    assert describe_model(SMALL["ResGCN"](4, 2))["arguments"]["layers"] == 3


def test_only_gebts_own_models_are_rebuilt():
    description = describe_model(nn.Linear(2, 2))
    assert description == {"class": "Linear", "arguments": None}
    with pytest.raises(ValueError, match="cannot rebuild a model of class 'Linear'"):
        build_model(description)
    with pytest.raises(ValueError, match="cannot rebuild a model of class None"):
        build_model({})
