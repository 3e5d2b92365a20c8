"""SuperGNN: each operator against its formula on dense matrices, and what may leave."""

from dataclasses import replace

import pytest
import torch
from helpers import same, shaken
from peers import close, dense, double
from torch import nn

from gebt.deploy.compaction import compact
from gebt.deploy.cost import executed_macs
from gebt.models import OPERATORS, SuperGNN, build_model, describe_model
from gebt.sparse import SparseMatrix


def alone(name, units=5, layers=2):
    """Widths by which one operator is all that a supernet has."""
    return {
        each: [units * (each == name)] * (layers - 1) + [int(each == name)]
        for each in OPERATORS
    }


def by_hand(name, branch, x, a, linked):
    """(N, H) of one operator: x (N, F), a (N, N), and where a has entries."""
    eye = torch.eye(len(a), dtype=a.dtype)
    weight = branch.weight
    if name == "skip":
        return x @ weight + branch.bias
    if name == "sage":
        mean = a / linked.sum(dim=1, keepdim=True).clamp(min=1)
        return mean @ x @ weight + x @ branch.own_weight + branch.bias
    if name == "gin":
        looped = a + eye
        return looped / (looped.sum().detach() / len(a)) @ x @ weight + branch.bias
    if name == "gat":
        z = x @ weight
        towards = (z * branch.target[0]).sum(dim=1)
        score = towards[:, None] + (z * branch.source[0]).sum(dim=1)
        score = nn.functional.leaky_relu(score, 0.2)
        score = score.masked_fill(~(linked | eye.bool()), -torch.inf)
        return score.softmax(dim=1) * (a + eye) @ z + branch.bias
    scale = (a.abs().sum(dim=1) + 1).rsqrt()
    norm = scale[:, None] * (a + eye) * scale
    times = 2 if name == "hops" else 1
    return torch.matrix_power(norm, times) @ x @ weight + branch.bias


def reference(model, x, a, linked):
    h = x
    for layer in model.stages():
        outs = [by_hand(n, b, h, a, linked) for n, b in layer.branches.items()]
        if layer.outputs is not None:
            return sum(w * out for w, out in zip(layer.scale.weight, outs, strict=True))
        h = torch.cat(outs, dim=1)
        if isinstance(layer.scale, nn.BatchNorm1d):
            norm = layer.scale
            h = (h - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
            h = h * norm.weight + norm.bias
        else:
            h = h * layer.scale.weight
        h = torch.relu(h)
    return h


@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("name", [*OPERATORS, "all"])
def test_outputs_and_every_gradient_equal_the_formula(make_graph, name, sparse, norm):
    graph = double(make_graph(sparse=sparse))
    widths = {} if name == "all" else alone(name)
    model = shaken(SuperGNN(graph.num_features, 5, 3, norm=norm, **widths))
    value = graph.adjacency.value.clone().requires_grad_()
    adjacency = graph.adjacency.with_value(value)
    ours = model(graph.x, adjacency)

    row, col = graph.adjacency.pattern.row.long(), graph.adjacency.pattern.col.long()
    theirs_value = value.detach().clone().requires_grad_()
    nodes = graph.num_nodes
    a = torch.zeros(nodes, nodes, dtype=torch.float64)
    a = a.index_put((row, col), theirs_value)
    linked = torch.zeros(nodes, nodes, dtype=torch.bool)
    linked[row, col] = True
    theirs = reference(model, dense(graph.x), a, linked)
    close(ours, theirs)
    upstream = torch.randn_like(ours)
    every = [*model.parameters()]
    unread = {"allow_unused": name == "skip", "materialize_grads": name == "skip"}
    found = torch.autograd.grad((ours * upstream).sum(), [*every, value], **unread)
    wanted = torch.autograd.grad(
        (theirs * upstream).sum(), [*every, theirs_value], **unread
    )
    for mine, other in zip(found, wanted, strict=True):
        close(mine, other)


def test_units_that_stay_keep_their_weights_and_those_whose_scale_is_zero_matter_not(
    graph,
):
    # But for GAT, whose attention reads all of its units.
    widths = {"gat": [0, 0, 0]}
    model = SuperGNN(graph.num_features, 6, 3, layers=3, norm="batch", **widths)
    shaken(model)
    graph = double(graph)
    keep = [torch.rand(len(scale)) < 0.5 for scale in model.scales()]
    for scale, mask in zip(model.scales(), keep, strict=True):
        mask[0] = True
        scale.data.mul_(mask)
    for layer, mask in zip(model.stages()[:-1], keep, strict=False):
        layer.scale.bias.data.mul_(mask)  # a constant would stay
    small = model.with_units(keep)
    close(small(graph.x, graph.adjacency), model(graph.x, graph.adjacency))
    assert [len(s) for s in small.scales()] == [int(k.sum()) for k in keep]
    assert sum(p.numel() for p in small.parameters()) < sum(
        p.numel() for p in model.parameters()
    )
    assert small.taken(small.state_dict(), [s > -9e9 for s in small.scales()]).keys()


def test_an_operator_without_units_is_gone_and_files_rebuild_what_is_left(graph):
    model = SuperGNN(graph.num_features, 3, 3, layers=2)
    keep = [torch.zeros(18, dtype=torch.bool), torch.zeros(6, dtype=torch.bool)]
    keep[0][[4, 10]] = True  # one unit of SAGE's, one of GAT's
    keep[1][5] = True  # and two hops
    small = model.with_units(keep)
    assert [[*layer.branches] for layer in small.stages()] == [
        ["sage", "gat"],
        ["hops"],
    ]
    again = build_model(describe_model(small), small.state_dict())
    assert same(again.state_dict(), small.state_dict())
    outputs = [m.eval()(graph.x, graph.adjacency) for m in (small, again)]
    assert torch.equal(*outputs)


@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("share", [0.5, 0.95, 1.0])
def test_compact_gives_the_same_outputs_for_fewer_operations(make_graph, share, norm):
    graph = double(make_graph(sparse=True))
    model = shaken(SuperGNN(graph.num_features, 4, 3, layers=3, norm=norm))
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.data.mul_(torch.rand_like(parameter) >= share)
    fast, small = compact(model, graph)
    close(fast(small.x, small.adjacency), model(graph.x, graph.adjacency))
    assert executed_macs(fast, small) <= executed_macs(model, graph)
    if share == 1:
        assert executed_macs(fast, small) < executed_macs(model, graph) / 2


def test_what_cannot_be_built_is_refused_in_a_line():
    with pytest.raises(ValueError, match="layer 1 of 2 has no units of any operator"):
        SuperGNN(4, 3, 2, **{name: [0, 1] for name in OPERATORS})
    with pytest.raises(ValueError, match="`gat` must hold a number of units for each"):
        SuperGNN(4, 3, 2, gat=[3])
    with pytest.raises(ValueError, match="`gin` must hold .* the last one's 1 or 0"):
        SuperGNN(4, 3, 2, gin=[3, 2])
    with pytest.raises(ValueError, match="none could leave"):
        SuperGNN(4, 3, 2, norm="layer")


def test_a_directed_weighted_graph_without_links_runs(make_graph):
    graph = make_graph()
    none = torch.zeros(graph.num_links, dtype=torch.bool)
    bare = graph.keep_links(none)
    model = SuperGNN(graph.num_features, 3, 2).eval()
    assert model(bare.x, bare.adjacency).isfinite().all()
    empty = SparseMatrix.from_coo(
        torch.empty(0, dtype=torch.int64),
        torch.empty(0, dtype=torch.int64),
        torch.empty(0),
        bare.adjacency.shape,
    )
    close_to = model(replace(bare, adjacency=empty).x, empty)
    torch.testing.assert_close(model(bare.x, bare.adjacency), close_to)
