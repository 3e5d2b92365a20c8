"""GAT: against PyG's layer, attention by hand, memory."""

import json
import math

import pytest
import torch
from helpers import as_dtype, same, shaken
from peers import (
    StackPeer,
    assert_equals_pyg,
    close,
    double,
    edge_index,
    largest_saved_tensor,
)
from torch import nn

import gebt
from gebt import SparseMatrix, compact, load_compact, save_compact
from gebt.deploy.cost import executed_macs
from gebt.models import GAT, build_model, describe_model


@pytest.mark.parametrize("residual", [False, True], ids=["alone", "own"])
@pytest.mark.parametrize("hidden", [[], 5, [17, 9]], ids=["1", "2", "3"])
@pytest.mark.parametrize("output_heads", [1, 3])
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
def test_outputs_and_every_gradient_equal_pyg(
    make_graph, sparse, output_heads, hidden, residual
):
    graph = double(make_graph(sparse=sparse))
    options = {"heads": 4, "output_heads": output_heads, "residual": residual}
    assert_equals_pyg(GAT(graph.num_features, hidden, 3, **options), graph)


def test_each_hidden_layer_and_an_input_map_have_heads_times_hidden_units():
    def shapes(hidden=5, **options):
        model = GAT(9, hidden, 2, heads=3, **options)
        return [tuple(layer.weight.shape) for layer in model.layers]

    assert shapes() == [(9, 15), (15, 2)]
    assert shapes(output_heads=4) == [(9, 15), (15, 8)]
    assert shapes(layers=1) == shapes([]) == [(9, 2)]
    assert shapes(layers=3) == shapes([5, 5]) == [(9, 15), (15, 15), (15, 2)]
    assert shapes([5, 4]) == [(9, 15), (15, 12), (12, 2)]
    assert shapes(layers=1, input_map=True, output_map=True) == shapes(layers=3)
    norms = GAT(9, [5, 4], 2, heads=3, norm="batch", output_map=True).norms
    assert [norm.num_features for norm in norms] == [15, 12]


def test_gat_of_two_layers_is_described_and_named_as_it_was_before():
    plain = GAT(9, 5, 2)
    assert describe_model(plain)["arguments"] == {
        "num_features": 9,
        "hidden": 5,
        "num_outputs": 2,
        "heads": 8,
        "output_heads": 1,
        "dropout": 0.6,
    }
    for alike in (GAT(9, [5], 2), GAT(9, 5, 2, layers=2)):
        assert describe_model(alike) == describe_model(plain)
    assert list(plain.state_dict()) == [
        f"layers.{k}.{name}"
        for k in (0, 1)
        for name in ("weight", "source", "target", "bias")
    ]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"heads": 0}, "`heads` must be at least 1, got 0"),
        ({"output_heads": -1}, "`output_heads` must be at least 1, got -1"),
        ({"hidden": [4, 0]}, "`hidden` must be at least 1, got 0"),
        ({"hidden": [4], "layers": 2}, r"all layers, \[4\]: leave out `layers`"),
        ({"norm": "graph"}, "`norm` must be one of 'none', 'batch', 'layer', got 'gr"),
        (
            {"output_map": True, "output_heads": 2},
            "with `output_map` that is a linear map: leave out `output_heads`, 2",
        ),
    ],
)
def test_a_shape_that_cannot_be_is_refused_also_from_a_file(options, words):
    arguments = {"num_features": 9, "hidden": 4, "num_outputs": 2} | options
    with pytest.raises(ValueError, match=words):
        GAT(**arguments)
    state = GAT(9, 4, 2).state_dict()
    with pytest.raises(ValueError, match="cannot rebuild a GAT"):
        build_model({"class": "GAT", "arguments": arguments}, state)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"layers": 10**9}, "`layers` must be a whole number from 1 to 8, got 1000000"),
        ({"hidden": [3] * 99}, "`hidden` must be at most 8 widths"),
        ({"hidden": [10**12]}, r"`hidden\[0\]` must be a whole number"),
        ({"hidden": 2**20, "heads": 2**20}, "its description and its tensors differ"),
        ({"residual": 1}, "`residual` must be true or false"),
        ({"residual": True}, "its tensors differ.*layers.0.own_weight"),
        ({"norm": "batch"}, "its tensors differ.*norms.0"),
        ({"norm": ["none"]}, "`norm` must be text"),
        ({"inner_bias": True}, "its tensors differ.*layers.1.inner_bias"),
        ({"folded": True}, "its tensors differ.*layers.0.source"),
        (
            {"heads": [1, 2]},
            r"`heads` must be one number, or .* of 1 .*\[1, 2",
        ),
        ({"heads": [0]}, "`heads` must be at least 1, got 0"),
    ],
)
def test_a_description_is_checked_field_by_field(option, words):
    model = GAT(4, 3, 2)
    description = json.loads(json.dumps(describe_model(model)))
    description["arguments"] |= option
    with pytest.raises(ValueError, match=words):
        build_model(description, model.state_dict())


def test_values_multiply_the_attention_after_its_softmax_by_hand():
    # Two heads that copy x; attention on the source alone: log 3 at node 1, else 0.
    # Node 0 reads itself and node 1 (value 0.5): 1/4 x 4 + 0.5 x 3/4 x 8 = 4.
    adjacency = SparseMatrix.from_coo(
        torch.tensor([0]), torch.tensor([1]), torch.tensor([0.5]), (2, 2)
    )
    model = GAT(2, 1, 1, heads=2).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        first, last = model.layers
        first.weight.copy_(torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
        first.source[0, :, 0] = math.log(3) / 8
        first.target[0, :, 0] = 0.0
        last.weight.fill_(0.5)
    x = torch.tensor([[4.0, 0.0], [8.0, 0.0]])
    hidden = first(x, model.matrix(adjacency))
    share = 3**0.5  # exp(log 3 / 8 x 4) at node 0 itself; 3 at node 1
    expected = (share * 4 + 0.5 * 3 * 8) / (share + 3)
    torch.testing.assert_close(hidden[0], torch.tensor([expected, expected]))
    torch.testing.assert_close(hidden[1], torch.tensor([8.0, 8.0]))


def test_no_tensor_of_edges_times_features_is_kept_for_the_backward(make_graph):
    # 9,702 edges; 32 features and heads of 32 units.
    graph = double(make_graph(nodes=101, features=32, p_in=1.0, p_out=1.0))
    edges = graph.adjacency.pattern.nnz
    value = graph.adjacency.value.requires_grad_()
    model = GAT(32, 32, 32, heads=4, dropout=0.5).double().train()

    def forward():
        return model(graph.x, graph.adjacency)

    # Per edge and head some numbers, and (N, 4 x 32) hidden features.
    assert largest_saved_tensor(forward) <= 4 * (edges + graph.num_nodes)
    assert 4 * (edges + graph.num_nodes) < edges * 32
    peer = StackPeer(model)
    theirs = largest_saved_tensor(lambda: peer(graph.x, edge_index(graph), value))
    assert theirs >= edges * 32, "the check must see such a tensor where there is one"


def test_attention_is_dropped_in_training_only(graph):
    model = GAT(graph.num_features, 4, 3, dropout=0.5)
    layer, looped = model.layers[0], model.matrix(graph.adjacency)
    layer.train()  # the layer alone drops attention, not its input
    first, second = (layer(graph.x, looped) for _ in range(2))
    assert not torch.allclose(first, second)
    layer.eval()
    assert torch.equal(*(layer(graph.x, looped) for _ in range(2)))


def test_weights_are_pruned_and_attention_vectors_are_not():
    from gebt.prune.weights import prunable_weights

    model = GAT(7, 4, 3, heads=2)
    assert list(prunable_weights(model)) == ["layers.0.weight", "layers.1.weight"]
    assert isinstance(model.layers[0].source, nn.Parameter)


# ----------------------------------------------- tickets, students, compaction

RICH = {"layers": 3, "residual": True, "norm": "batch", "heads": 2}


def outputs(model, graph):
    with torch.no_grad():
        return model.eval()(graph.x, graph.adjacency)


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_a_ticket_of_a_deep_gat_goes_through_files_to_the_same_answers(
    graph, tmp_path, norm
):
    shape = RICH | {"norm": norm, "input_map": True, "output_map": True}
    model = GAT(24, 8, 3, dropout=0.2, **shape)
    options = {"unit": "row", "weight_ratio": 0.3, "epochs": 30}
    gebt.find_ticket(model, graph, **options).save(tmp_path / "ticket")
    ticket = gebt.Ticket.load(tmp_path / "ticket")
    assert {"layers.1.own_weight", "layers.4.weight"} < ticket.weight_masks.keys()
    pruned = ticket.open(model, graph)
    gebt.train(model, pruned, keep=ticket.weight_masks, epochs=40)
    assert gebt.evaluate(model, pruned) > 60
    fast, small = compact(model, pruned)
    assert small.num_features < 24
    torch.testing.assert_close(outputs(fast, small), outputs(model, pruned))
    save_compact(tmp_path / "model", fast, small)
    again, loaded = load_compact(tmp_path / "model")
    assert again.arguments == fast.arguments
    assert same(again.state_dict(), fast.state_dict())
    assert torch.equal(outputs(again, loaded), outputs(fast, small))


def test_a_deep_gat_becomes_a_student_that_does_with_few_links(graph):
    model = GAT(24, 4, 3, **RICH)
    gebt.train(model, graph, epochs=30)
    logits = outputs(model, graph)
    student = gebt.train_student(model, graph, logits, weight_ratio=0.5, epochs=30)
    few = graph.keep_links(gebt.random_links(graph.num_links, 0.7, torch.Generator()))
    assert student.val > 60 and gebt.evaluate(model, few) > 60


@pytest.mark.parametrize("input_map", [False, True], ids=["own path", "map"])
def test_only_features_that_no_weight_of_the_first_layer_reads_go(graph, input_map):
    model = shaken(GAT(24, 4, 3, **RICH, input_map=input_map)).float()
    first = model.layers[0]
    weights = [first.weight] if input_map else [first.weight, first.own_weight]
    with torch.no_grad():
        weights[0][[2, 3, 5]] = 0
        weights[-1][[3, 5, 7]] = 0
        model.layers[1].own_weight[[1, 4]] = 0  # reads no features
    fast, small = compact(model, graph)
    gone = {2, 3, 5, 7} if input_map else {3, 5}
    kept = [i for i in range(24) if i not in gone]
    assert torch.equal(small.x, graph.x[:, kept])
    assert fast.arguments["num_features"] == len(kept)
    units = [layer.bias.numel() for layer in model.layers]
    assert [layer.bias.numel() for layer in fast.layers] == units
    torch.testing.assert_close(outputs(fast, small), outputs(model, graph))


@pytest.mark.parametrize("input_map", [False, True])
def test_paper_macs_are_of_the_first_attention(graph, input_map):
    model = GAT(24, 4, 3, **RICH, input_map=input_map)
    first = 8 if input_map else 24
    kept = 24 * 8 * input_map + 2 * (first * 8 + 8 * 8 + 8 * 3)
    expected = 120 * kept + 2 * graph.adjacency.pattern.nnz * first
    assert gebt.measure_cost(model, graph, repeats=1).macs_paper == expected


@pytest.mark.parametrize("norm", ["none", "batch", "layer"])
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
def test_heads_and_units_leave_and_no_output_changes(make_graph, norm, sparse):
    graph = double(make_graph(nodes=30, p_in=0.2, features=12, sparse=sparse))
    heads = units = averaged = kept = 0
    for case in range(24):
        draw = torch.Generator().manual_seed(case)
        counts = torch.randint(1, 5, (case % 3,), generator=draw).tolist()
        widths = torch.randint(1, 6, (case % 3,), generator=draw).tolist()
        options = {"heads": counts, "output_heads": case % 4 + 1, "norm": norm}
        model = shaken(GAT(12, widths, 3, residual=case % 5 == 0, **options))
        with torch.no_grad():
            for layer in model.layers:
                for weight in layer.weights():
                    rows = torch.rand(weight.shape[0], generator=draw) < 0.7
                    some = torch.rand(weight.shape[1], generator=draw) < 0.7
                    weight.mul_(rows[:, None] & some)
                # A head of which no weight is left.
                layer.weight[:, : layer.out_width] *= case % 2
                layer.bias *= torch.rand(layer.bias.shape, generator=draw) < 0.7
        expected = outputs(model, graph)
        fast, small = compact(model, graph)
        close(outputs(fast, small), expected)
        again, same_graph = compact(fast, small)
        assert again.arguments == fast.arguments
        assert torch.equal(outputs(again, same_graph), outputs(fast, small))
        torch.testing.assert_close(
            outputs(fast.float(), as_dtype(small, torch.float32)),
            outputs(model.float(), as_dtype(graph, torch.float32)),
            atol=1e-5,
            rtol=1e-5,
        )
        ours, theirs = fast.stacked(), model.stacked()
        kept += sum(layer.heads for layer in ours)
        averaged += theirs[-1].heads - ours[-1].heads
        for a, b in zip(ours[:-1], theirs[:-1], strict=True):
            heads += b.heads - a.heads
            units += b.heads * b.out_width - a.heads * a.out_width
    assert min(heads, averaged, units - heads, kept) >= 5


def test_what_the_attention_alone_reads_leaves_by_hand(graph):
    """All but the last unit of each head are read by the attention alone: a map."""
    model = GAT(24, 5, 3, heads=2)
    first, last = model.layers
    with torch.no_grad():
        last.weight[[*range(4), *range(5, 9)]] = 0
    fast, small = compact(model, graph)
    ours = fast.layers[0]
    assert (ours.heads, ours.out_width) == (2, 1)
    assert ours.weight.shape == (24, 6)
    assert torch.equal(ours.weight[:, 3], first.weight[:, 9])
    source = first.weight[:, 5:] @ first.source[0, 1]
    torch.testing.assert_close(ours.weight[:, 4], source)
    torch.testing.assert_close(outputs(fast, small), outputs(model, graph))


def test_where_hardly_a_unit_goes_the_attention_keeps_its_vectors(graph):
    model = GAT(24, 2, 3, heads=2)
    with torch.no_grad():
        model.layers[1].weight[0] = 0
        model.layers[0].weight[7] = 0
    fast, small = compact(model, graph)
    assert not fast.layers[0].folded
    assert fast.layers[0].weight.shape == (23, 4)
    torch.testing.assert_close(outputs(fast, small), outputs(model, graph))


def test_half_of_the_heads_cost_half_of_the_products(make_graph):
    graph = make_graph(nodes=200, features=32)
    model = GAT(32, 8, 3, heads=8)
    with torch.no_grad():
        model.layers[0].weight[:, 32:] = 0
    after = executed_macs(*compact(model, graph))
    assert after < 0.65 * executed_macs(model, graph)
