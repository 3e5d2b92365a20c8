"""Own paths, norms, maps and depth: against PyG, rows, files, compaction."""

import json
import sys

import pytest
import torch
from helpers import as_dtype, shaken
from peers import SHAPES, assert_equals_pyg, close, double, said
from torch import nn

import gebt
from gebt import SparseMatrix, compact, load_compact, save_compact
from gebt.models import CLASSES, GAT, GCN, GIN, GraphSAGE, build_model, describe_model

# GCN and GAT in every shape, the others, which share GCN's code, in some; features in
# turns.
KINDS = [(GCN, shape) for shape in SHAPES]
KINDS += [(GIN, shape) for shape in SHAPES[-2:]]
KINDS += [(GraphSAGE, shape) for shape in SHAPES[:11:5]]
KINDS += [(GAT, shape | {"heads": 2}) for shape in SHAPES]
CASES = [
    pytest.param(kind, shape, n % 2 == 1, id=f"{kind.__name__}-{said(shape)}")
    for n, (kind, shape) in enumerate(KINDS)
]
BY_KIND = pytest.mark.parametrize(("kind", "shape", "sparse"), CASES)


def batch_norms(model):
    return [m for m in model.modules() if isinstance(m, nn.BatchNorm1d)]


@BY_KIND
def test_outputs_and_every_gradient_equal_pyg(make_graph, kind, shape, sparse):
    graph = double(make_graph(sparse=sparse))
    model = kind(graph.num_features, [24, 7, 30], 3, dropout=0.0, **shape)
    assert_equals_pyg(model, graph)
    # In training the statistics are the batch's, and move those kept.
    peer = assert_equals_pyg(model, graph, training=True)
    for ours, theirs in zip(batch_norms(model), batch_norms(peer), strict=True):
        close(ours.running_mean, theirs.running_mean)
        close(ours.running_var, theirs.running_var)


@BY_KIND
def test_rows_are_the_rows_of_the_full_output(make_graph, kind, shape, sparse):
    # Few links, so that three hops do not reach everything.
    graph = double(make_graph(sparse=sparse, p_in=0.01, p_out=0.001))
    model = kind(graph.num_features, [9, 5, 7], 3, dropout=0.0, **shape)
    for wanted, training in (([31, 2, 119, 2], True), ([5, 3], False)):
        shaken(model).train(training)
        rows = torch.tensor(wanted).long()
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


def rows_computed(model, graph, rows):
    """Of each layer's output, in one forward."""
    seen = []
    hooks = [
        layer.register_forward_hook(lambda *args: seen.append(args[2].shape[0]))
        for layer in model.layers
    ]
    model(graph.x, graph.adjacency, rows)
    for hook in hooks:
        hook.remove()
    return seen


def test_only_batch_norm_in_training_computes_every_row(make_graph):
    graph = make_graph(p_in=0.01, p_out=0.001)
    rows = torch.tensor([3])
    for norm in ("none", "layer", "batch"):
        for output_map in (False, True):
            model = GCN(24, [9] * (2 + output_map), 3, norm=norm, output_map=output_map)
            last = [1] * (1 + output_map)
            few = rows_computed(model.eval(), graph, rows)
            assert few[2:] == last and max(few) < 30
            every = rows_computed(model.train(), graph, rows)
            if norm == "batch":
                assert every == [120] * (2 + output_map) + [1]
            else:
                assert every == few


def test_one_width_and_a_number_of_layers():
    def shapes(**options):
        return [tuple(w.weight.shape) for w in GCN(9, 5, 2, **options).layers]

    assert shapes(layers=1) == [(9, 2)]
    assert shapes(layers=3) == [(9, 5), (5, 5), (5, 2)]
    assert shapes(output_map=True) == [(9, 5), (5, 5), (5, 2)]
    assert shapes(layers=1, input_map=True, output_map=True) == shapes(layers=3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"norm": "graph"}, "`norm` must be one of 'none', 'batch', 'layer', got 'gr"),
        ({"layers": 0}, "`layers` must be at least 1, got 0"),
        ({"hidden": [4], "layers": 2}, r"all layers, \[4\]: leave out `layers`"),
        (
            {"hidden": [4], "input_map": True, "output_map": True},
            r"`hidden` must hold 2 widths or more, .* got \[4\]",
        ),
        ({"norm_over": [9]}, r"`norm_over` is for layer norms.* got \[9\] for `norm='"),
        ({"norm": "layer", "norm_over": [9, 9]}, "one number for each of 1; got"),
        ({"norm": "layer", "norm_over": [3]}, "of 4 units cannot be over 3"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        GCN(9, num_outputs=2, **{"hidden": 4} | options)


def test_graphsage_has_its_own_path_already():
    with pytest.raises(ValueError, match="GraphSAGE has a path of the node's own feat"):
        GraphSAGE(9, 4, 2, residual=True)


def test_a_plain_stack_is_described_as_it_was_before():
    assert set(describe_model(GCN(4, 3, 2))["arguments"]) == {
        *("num_features", "hidden", "num_outputs", "dropout", "inner_bias"),
    }
    assert list(GCN(4, 3, 2).state_dict()) == [
        *("layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias"),
    ]


@BY_KIND
def test_a_description_rebuilds_the_model(make_graph, kind, shape, sparse):
    graph = make_graph(sparse=sparse)
    model = shaken(kind(graph.num_features, 6, 3, layers=3, **shape)).float()
    description = json.loads(json.dumps(describe_model(model)))
    again = build_model(description, model.state_dict()).eval()
    assert again.arguments == model.arguments
    assert torch.equal(again(graph.x, graph.adjacency), model(graph.x, graph.adjacency))


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"norm": 3}, "`norm` must be text"),
        ({"norm": "graph"}, "`norm` must be one of"),
        ({"norm_over": 3}, "`norm_over` must be"),
        ({"norm_over": [10**12]}, r"`norm_over\[0\]` must be a whole number"),
        ({"residual": 1}, "`residual` must be true or false"),
        ({"layers": 2}, "leave out `layers`"),
    ],
)
def test_a_description_is_checked_field_by_field(option, words):
    description = describe_model(GCN(4, 3, 2, norm="layer"))
    description["arguments"] |= option
    with pytest.raises(ValueError, match=words):
        build_model(description)


def test_dropout_draws_from_gebts_own_streams(graph):
    from gebt.randomness import Draws

    for norm in ("batch", "layer"):
        assert Draws(0, GCN(4, 3, 2, norm=norm, output_map=True))._ours


# ------------------------------------------------------------------- compaction


def randomly_pruned(kind, shape, case):
    """With random masks, biases and statistics; dead rows and columns included."""
    draw = torch.Generator().manual_seed(case)
    maps = shape["input_map"] + shape["output_map"]
    depth = max(0, case % 3) + maps
    widths = torch.randint(2, 9, (depth,), generator=draw).tolist()
    model = shaken(kind(12, widths, 3, **shape))
    density = (0.04, 0.15, 0.4, 1.0)[case % 4]
    with torch.no_grad():
        for layer in model.layers:
            nn.init.normal_(layer.bias, 0.5, 1.0, generator=draw)
            alive = [torch.rand(n, generator=draw) < 0.7 for n in layer.weight.shape]
            for weight in (w for w in layer.parameters() if w.dim() == 2):
                nn.init.normal_(weight, generator=draw)
                keep = torch.rand(weight.shape, generator=draw) < density
                weight.mul_(keep & alive[0][:, None] & alive[1])
        for norm in model.norms:
            # Some of a batch norm's units are gone by their factor.
            norm.weight.mul_(torch.rand(norm.weight.shape, generator=draw) < 0.8)
    return model


def uneven(graph):
    """In float64, with links of value zero and random ones, and isolated nodes."""
    score = torch.rand(graph.num_links) + 0.5
    score[::5] = 0
    alone = torch.tensor([0, 7, graph.num_nodes - 1])
    pattern = graph.adjacency.pattern
    keep = torch.ones(graph.num_links, dtype=torch.bool)
    touches = torch.isin(pattern.row, alone) | torch.isin(pattern.col, alone)
    keep[graph.link[touches]] = False
    return as_dtype(graph.keep_links(keep, score), torch.float64)


def outputs(model, graph):
    with torch.no_grad():
        return model.eval()(graph.x, graph.adjacency)


@BY_KIND
def test_compaction_changes_no_output_and_a_second_finds_nothing(
    make_graph, kind, shape, sparse
):
    graph = uneven(make_graph(nodes=30, p_in=0.2, features=12, sparse=sparse))
    assert isinstance(graph.x, SparseMatrix) == sparse
    for case in range(4):
        model = randomly_pruned(kind, shape, case)
        before = {n: w.clone() for n, w in model.state_dict().items()}
        expected = outputs(model, graph)
        fast, small = compact(model.train(), graph)
        close(outputs(fast, small), expected)
        assert not batch_norms(fast)
        again, same = compact(fast, small)
        assert again.arguments == fast.arguments
        assert same.x is small.x and same.adjacency is small.adjacency
        assert torch.equal(outputs(again, same), outputs(fast, small))
        with torch.no_grad():
            for parameter in fast.parameters():
                parameter.add_(1)
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, before[name])


def test_the_random_cases_hold_what_they_are_meant_to(make_graph):
    """Units of a layer norm that go, some twice; units that stay though unread."""
    graph = uneven(make_graph(nodes=30, p_in=0.2, features=12))
    shape = {"residual": True, "norm": "layer", "input_map": False, "output_map": True}
    gone = unread = 0
    for case in range(12):
        fast, _ = compact(randomly_pruned(GCN, shape, case), graph)
        for k, norm in fast.normed().items():
            gone += norm.over - fast.layers[k].width
            after = torch.stack(
                [(w != 0).any(dim=1) for w in fast.layers[k + 1].weights()]
            )
            unread += int((~after.any(dim=0)).sum())
    assert min(gone, unread) >= 5


def test_units_leave_a_layer_norm_in_two_steps(make_graph):
    """A compact model pruned again: what went before still counts."""
    graph = uneven(make_graph(nodes=30, p_in=0.2, features=12))
    model = shaken(GCN(12, 6, 3, norm="layer"))
    for dead in ([1, 4], [0, 2]):
        with torch.no_grad():
            model.layers[0].weight[:, dead] = 0
            model.layers[1].weight[dead] = 0
        expected = outputs(model, graph)
        fast, small = compact(model, graph)
        close(outputs(fast, small), expected)
        model = fast
    assert fast.arguments["hidden"] == [2] and fast.arguments["norm_over"] == [6]


def test_a_units_share_of_the_layer_norm_by_hand(make_graph):
    graph = as_dtype(make_graph(features=1), torch.float64)
    model = GCN(1, 3, 1, norm="layer", residual=True).double()
    first, last = model.layers
    with torch.no_grad():
        first.weight.zero_()
        first.own_weight.copy_(torch.tensor([[3.0, 0, 0]]))
        first.bias.copy_(torch.tensor([0.0, 1, 5]))
        last.weight.zero_()
        last.own_weight.copy_(torch.tensor([[1.0], [0], [0]]))
    fast, small = compact(model, graph)
    assert fast.arguments["hidden"] == [1] and fast.arguments["norm_over"] == [3]
    assert fast.norms[0].absent.tolist() == [3.0, 8.0]  # the mean of 1 and 5
    close(outputs(fast, small), outputs(model, graph))


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_a_compact_model_survives_its_file(graph, tmp_path, norm):
    shape = {"residual": True, "norm": norm, "input_map": True, "output_map": True}
    model = shaken(GCN(24, [7, 6, 5], 3, **shape)).float()
    with torch.no_grad():
        model.layers[1].own_weight[:, 2] = 0
        model.layers[1].weight[:, 2] = 0
        for weight in model.layers[2].weights():
            weight[2] = 0
    fast, small = compact(model, graph)
    assert fast.arguments["hidden"] == [7, 5, 5]
    torch.testing.assert_close(outputs(fast, small), outputs(model, graph))
    save_compact(tmp_path / "model", fast, small)
    again, loaded = load_compact(tmp_path / "model")
    assert again.arguments == fast.arguments
    assert torch.equal(outputs(again, loaded), outputs(fast, small))


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_a_ticket_of_such_a_model_compacts_to_the_same_predictions(graph, norm):
    model = GCN(24, 16, 3, layers=3, residual=True, norm=norm, output_map=True)
    detector = gebt.MaskDistanceDetector(threshold=2.0)
    options = {"unit": "row", "weight_ratio": 0.6, "detector": detector}
    ticket = gebt.find_ticket(model, graph, **options)
    pruned = ticket.open(model, graph)
    gebt.train(model, pruned, keep=ticket.weight_masks, epochs=5)
    fast, small = compact(model, pruned)
    torch.testing.assert_close(outputs(fast, small), outputs(model, pruned))
    assert sum(p.numel() for p in fast.parameters()) < sum(
        p.numel() for p in model.parameters()
    )


def test_paper_macs_count_every_weight_and_the_first_product(graph):
    model = GCN(24, 8, 3, residual=True, input_map=True, output_map=True)
    entries = graph.adjacency.pattern.nnz
    kept = 24 * 8 + 2 * 2 * 8 * 8 + 8 * 3
    assert gebt.measure_cost(model, graph, repeats=1).macs_paper == (
        120 * kept + entries * 8
    )


@pytest.mark.parametrize(
    ("kind", "shape", "sparse"),
    [case for case in CASES if case.values[0] is not GAT],  # it loses whole heads
)
def test_without_units_that_nothing_reads_a_slimmer_stack_is_the_same(
    make_graph, kind, shape, sparse
):
    graph = double(make_graph(sparse=sparse))
    model = shaken(kind(graph.num_features, [9, 5, 7], 3, dropout=0.0, **shape))
    widths = [layer.width for layer in model.stacked()[:-1]]
    keep = [torch.arange(width) % 3 != 1 for width in widths]
    with torch.no_grad():
        for units, reader in zip(keep, model.stacked()[1:], strict=True):
            for weight in reader.weights():
                weight[~units] = 0
    small = model.slim(keep)
    assert small.arguments["hidden"] == [int(units.sum()) for units in keep]
    assert not small.training
    ours, theirs = (m(graph.x, graph.adjacency) for m in (small, model))
    if shape.get("norm") != "layer":  # that is over all units, read or not
        close(ours, theirs)
    # It learns, and is written and read, as any other.
    small.train()(graph.x, graph.adjacency).sum().backward()
    assert all(p.grad is not None for p in small.parameters())
    again = build_model(describe_model(small), small.state_dict())
    close(
        again.eval()(graph.x, graph.adjacency), small.eval()(graph.x, graph.adjacency)
    )


def test_a_slimmer_layer_norm_is_over_the_units_that_are_left(graph):
    torch.manual_seed(0)
    model = GCN(graph.num_features, 6, 3, norm="layer")
    small = model.slim([torch.tensor([True, False, True, True, False, False])])
    assert small.normed()[0].over == 3 and small.normed()[0].absent is None


RECOMPUTED = [
    ("GCN", {"residual": True, "norm": "batch", "layers": 3}),
    ("GCN", {"input_map": True, "output_map": True, "norm": "layer"}),
    ("GIN", {}),
    ("GraphSAGE", {"norm": "batch", "layers": 3}),
    ("GAT", {"norm": "batch", "residual": True, "input_map": True}),
]


@pytest.mark.parametrize("name, shape", RECOMPUTED, ids=str)
@pytest.mark.parametrize("sparse", [False, True])
def test_recomputing_a_layer_changes_not_one_bit(make_graph, name, shape, sparse):
    graph, found = make_graph(sparse=sparse), []
    for recompute in (False, True):
        torch.manual_seed(2)
        model = CLASSES[name](24, 8, 3, dropout=0.5, recompute=recompute, **shape)
        state = [value.clone() for value in model.state_dict().values()]
        value = graph.adjacency.value.clone().requires_grad_()
        out = model.train()(
            graph.x, graph.adjacency.with_value(value), graph.split.train
        )
        out.square().sum().backward()
        gradients = [p.grad for p in model.parameters()]
        found.append([*state, out, value.grad, *gradients, *model.buffers()])
    for kept, again in zip(*found, strict=True):
        assert torch.equal(kept, again)


@pytest.mark.parametrize("name", ["GCN", "GraphSAGE", "GAT"])
def test_recomputing_a_layer_keeps_less(graph, name):
    sizes = []
    for recompute in (False, True):
        model = CLASSES[name](24, 16, 3, layers=8, recompute=recompute).train()
        kept = [0]

        def pack(tensor, kept=kept):
            kept[0] += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(graph.x, graph.adjacency)
        sizes.append(kept[0])
    assert 1.5 * sizes[1] < sizes[0]


@pytest.mark.parametrize("kind", [GCN, GIN, GraphSAGE])
@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("residual", [False, True])
def test_as_on_large_graphs_outputs_gradients_and_draws_are_the_same(
    make_graph, kind, norm, residual, monkeypatch
):
    graph = double(make_graph(nodes=61))
    link, found = graph.link, []
    residual = residual and kind is not GraphSAGE
    for large in (False, True):
        if large:  # one kernel for a propagation, dropout block by block
            monkeypatch.setattr(sys.modules["gebt.kernels.propagate"], "_LARGE", 0)
            monkeypatch.setattr("gebt.models._layers._MANY", 0)
            monkeypatch.setattr(sys.modules["gebt.kernels.dropout"], "_ROWS", 10)
        torch.manual_seed(2)
        width = graph.num_features
        model = kind(width, 12, 3, layers=3, norm=norm, residual=residual)
        score = torch.linspace(-1, 2, graph.num_links).double().requires_grad_()
        adjacency = graph.adjacency.times(score, link)
        out = model.double().train()(graph.x, adjacency, graph.split.train)
        out.square().sum().backward()
        gradients = [p.grad for p in model.parameters()]
        found.append([out, score.grad, *gradients, *model.buffers()])
    for small, at_scale in zip(*found, strict=True):
        torch.testing.assert_close(at_scale, small, rtol=1e-10, atol=1e-10)
