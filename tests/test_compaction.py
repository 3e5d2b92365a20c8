"""gebt.compaction: same outputs from less, for any masks and any biases."""

import json
import struct
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import gebt
from gebt import Graph, SparseMatrix, compact, load_compact, save_compact
from gebt.files import write_tensors
from gebt.models import GCN


def double(graph):
    x = graph.x
    x = x.with_value(x.value.double()) if isinstance(x, SparseMatrix) else x.double()
    adjacency = graph.adjacency
    return replace(graph, x=x, adjacency=adjacency.with_value(adjacency.value.double()))


def outputs(model, graph):
    model.eval()
    with torch.no_grad():
        return model(graph.x, graph.adjacency)


def randomly_pruned(features, case):
    """A model with random masks and biases; dead rows and columns included."""
    draw = torch.Generator().manual_seed(case)
    depth = case % 4 + 1
    widths = torch.randint(1, 9, (depth - 1,), generator=draw).tolist()
    model = GCN(features, widths, 3).double()
    density = (0.02, 0.1, 0.3, 1.0)[(case // 4) % 4]
    for layer in model.layers:
        nn.init.normal_(layer.weight, generator=draw)
        # Positive on the whole, so that units of no input are often not zero.
        nn.init.normal_(layer.bias, 0.5, 1.0, generator=draw)
        keep = torch.rand(layer.weight.shape, generator=draw) < density
        alive = [torch.rand(n, generator=draw) < 0.8 for n in layer.weight.shape]
        with torch.no_grad():
            layer.weight.mul_(keep & alive[0][:, None] & alive[1])
    return model


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("case", range(32))
def test_compaction_changes_no_output(make_graph, case, sparse):
    graph = double(make_graph(nodes=30, p_in=0.2, features=12, sparse=sparse))
    assert isinstance(graph.x, SparseMatrix) == sparse
    model = randomly_pruned(12, case)
    expected = outputs(model, graph)
    fast, small = compact(model, graph)
    out = outputs(fast, small)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("case", range(32))
def test_a_second_compaction_finds_nothing_to_drop(make_graph, case):
    graph = double(make_graph(nodes=30, p_in=0.2, features=12))
    fast, small = compact(randomly_pruned(12, case), graph)
    again, same = compact(fast, small)
    assert again.arguments == fast.arguments
    assert same.x is small.x and same.adjacency is small.adjacency
    assert torch.equal(outputs(again, same), outputs(fast, small))


def test_the_random_cases_hold_what_they_are_meant_to():
    """Constant units, units that nothing reads, dead features, wholly dead layers."""
    from gebt.compaction import _read_by_something

    constant = dead = features = whole = 0
    for case in range(32):
        weights = [layer.weight for layer in randomly_pruned(12, case).layers]
        live = _read_by_something(weights)
        features += int((~live[0]).sum())
        for k, weight in enumerate(weights[:-1]):
            dead += int((~live[k + 1]).sum())
            reached = (weight[live[k]] != 0).any(dim=0)
            constant += int((live[k + 1] & ~reached).sum())
        whole += any(not units.any() for units in live)
    assert min(constant, dead, features, whole) >= 5


def test_a_dead_unit_and_a_dead_feature_by_hand(make_graph):
    graph = make_graph(features=3)
    model = GCN(3, 3, 3)
    # Unit 1 is read by nothing; feature 2 is read by unit 1 alone.
    first = torch.tensor([[1.0, 5.0, 0.0], [0.0, 6.0, 2.0], [0.0, 7.0, 0.0]])
    second = torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.0, 0.0], [3.0, 4.0, 0.0]])
    with torch.no_grad():
        model.layers[0].weight.copy_(first)
        model.layers[0].bias.copy_(torch.tensor([0.1, 0.2, 0.3]))
        model.layers[1].weight.copy_(second)
    fast, small = compact(model, graph)
    assert fast.arguments | {"dropout": 0.5} == {
        "num_features": 2,
        "hidden": [2],
        "num_classes": 3,
        "dropout": 0.5,
        "inner_bias": False,
    }
    assert fast.layers[0].weight.tolist() == [[1.0, 0.0], [0.0, 2.0]]
    assert torch.equal(fast.layers[0].bias, torch.tensor([0.1, 0.3]))
    assert fast.layers[1].weight.tolist() == [[1.0, 0.0, 2.0], [3.0, 4.0, 0.0]]
    assert torch.equal(small.x, graph.x[:, :2])
    torch.testing.assert_close(outputs(fast, small), outputs(model, graph))


def test_a_constant_unit_folds_into_the_inner_bias_by_hand(make_graph):
    graph = make_graph(features=2)
    model = GCN(2, 3, 2)
    # Unit 0 computes relu(0.5), unit 2 relu(-1) = 0, whatever the input is.
    with torch.no_grad():
        model.layers[0].weight.copy_(torch.tensor([[0.0, 1.0, 0.0], [0.0, 2.0, 0.0]]))
        model.layers[0].bias.copy_(torch.tensor([0.5, 0.1, -1.0]))
        model.layers[1].weight.copy_(torch.tensor([[4.0, 6.0], [1.0, 1.0], [8.0, 8.0]]))
        model.layers[1].bias.copy_(torch.tensor([0.01, 0.02]))
    fast, small = compact(model, graph)
    assert fast.hidden == [1]
    assert fast.layers[0].weight.tolist() == [[1.0], [2.0]]
    assert fast.layers[0].inner_bias.tolist() == [0.0]
    assert fast.layers[1].inner_bias.tolist() == [2.0, 3.0]  # 0.5 * (4, 6)
    assert torch.equal(fast.layers[1].bias, model.layers[1].bias)
    assert small.x is graph.x
    torch.testing.assert_close(outputs(fast, small), outputs(model, graph))


def test_a_unit_behind_a_constant_zero_is_constant_too(make_graph):
    graph = make_graph(features=2)
    model = GCN(2, (2, 2), 2)
    with torch.no_grad():
        # Unit 0 of layer 0 is relu(-1) = 0 and all that unit 0 of layer 1 reads.
        model.layers[0].weight.copy_(torch.tensor([[0.0, 1.0], [0.0, 1.0]]))
        model.layers[0].bias.copy_(torch.tensor([-1.0, 0.0]))
        model.layers[1].weight.copy_(torch.tensor([[5.0, 0.0], [0.0, 1.0]]))
        model.layers[1].bias.copy_(torch.tensor([2.0, 0.0]))
        model.layers[2].weight.copy_(torch.tensor([[3.0, 4.0], [1.0, 1.0]]))
    fast, small = compact(model, graph)
    assert fast.hidden == [1, 1]
    assert fast.layers[2].inner_bias.tolist() == [6.0, 8.0]  # relu(2) * (3, 4)
    torch.testing.assert_close(outputs(fast, small), outputs(model, graph))


def test_a_unit_behind_an_inner_bias_is_not_constant(make_graph):
    """A (0 + c) + b differs from row to row, because A's row sums do."""
    graph = double(make_graph(features=2))
    model = GCN(2, (2, 1), 2).double()
    with torch.no_grad():
        # Layer 1's only unit is reached by unit 0 alone, which is constant.
        model.layers[0].weight.copy_(torch.tensor([[0.0, 1.0], [0.0, 1.0]]))
        model.layers[0].bias.copy_(torch.tensor([1.0, 0.0]))
        model.layers[1].weight.copy_(torch.tensor([[2.0], [0.0]]))
    fast, small = compact(model, graph)
    assert fast.hidden == [0, 1]
    out = outputs(fast, small)
    assert out.std(dim=0).min() > 0
    torch.testing.assert_close(out, outputs(model, graph), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_model_of_which_everything_is_pruned_gives_its_bias(
    make_graph, sparse, depth
):
    graph = make_graph(sparse=sparse)
    model = GCN(24, [5] * (depth - 1), 3)
    for layer in model.layers:
        nn.init.zeros_(layer.weight)
        nn.init.normal_(layer.bias)
    fast, small = compact(model, graph)
    assert fast.hidden == [0] * (depth - 1)
    assert small.x.shape == (120, 0)
    out = outputs(fast, small)
    assert torch.equal(out, model.layers[-1].bias.expand(120, 3))


def test_links_of_value_zero_leave_the_adjacency(graph):
    score = torch.rand(graph.num_links) + 0.5
    score[::3] = 0
    everything = torch.ones(graph.num_links, dtype=torch.bool)
    pruned = graph.keep_links(everything, score)
    model = GCN(graph.num_features, 8, 3)
    _, small = compact(model, pruned)
    assert small.links_kept == graph.num_links - len(score[::3])
    assert (small.adjacency.value != 0).all()
    assert small.link.shape == small.adjacency.value.shape
    assert pruned.links_kept == graph.num_links
    torch.testing.assert_close(outputs(model, small), outputs(model, pruned))


def test_an_unpruned_model_keeps_everything(graph):
    model = GCN(graph.num_features, 8, 3, dropout=0.3)
    fast, small = compact(model, graph)
    assert fast.arguments == model.arguments
    assert small.x is graph.x and small.adjacency is graph.adjacency
    assert torch.equal(outputs(fast, small), outputs(model, graph))


def test_compaction_changes_neither_the_model_nor_the_graph(graph):
    model = randomly_pruned(24, 5).float().train()
    before = {n: w.clone() for n, w in model.state_dict().items()}
    fingerprint = graph.fingerprint()
    fast, _ = compact(model, graph)
    with torch.no_grad():
        for parameter in fast.parameters():
            parameter.add_(1)
    assert graph.fingerprint() == fingerprint
    assert all(torch.equal(w, before[n]) for n, w in model.state_dict().items())
    assert model.training and not fast.training


def test_a_ticket_compacts_to_the_same_predictions(graph):
    model = GCN(graph.num_features, 16, 3)
    ticket = gebt.find_ticket(model, graph, weight_ratio=0.95)
    pruned = ticket.open(model, graph)
    gebt.train(model, pruned, keep=ticket.weight_masks, epochs=20)
    fast, small = compact(model, pruned)
    assert fast.hidden[0] < 16
    torch.testing.assert_close(outputs(fast, small), outputs(model, pruned))
    assert gebt.evaluate(fast, small) == gebt.evaluate(model, pruned)


def test_another_model_is_refused(graph):
    with pytest.raises(ValueError, match="cannot compact a Linear: gebt knows"):
        compact(nn.Linear(24, 3), graph)


def test_a_model_for_other_features_is_refused(graph):
    with pytest.raises(ValueError, match="reads 7 features, but the graph has 24"):
        compact(GCN(7, 4, 3), graph)


def bare(graph):
    return replace(graph, y=None, split=None)


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("change", [None, bare], ids=["whole", "bare"])
@pytest.mark.parametrize("case", [1, 5, 10])
def test_a_compact_model_survives_its_file(make_graph, tmp_path, case, sparse, change):
    graph = make_graph(sparse=sparse)
    graph = change(graph) if change else graph
    fast, small = compact(randomly_pruned(24, case).float(), graph)
    save_compact(tmp_path / "model.safetensors", fast, small)
    again, loaded = load_compact(tmp_path / "model.safetensors")
    assert not again.training
    assert again.arguments == fast.arguments
    assert isinstance(loaded.x, SparseMatrix) == sparse
    assert torch.equal(outputs(again, loaded), outputs(fast, small))
    assert (loaded.name, loaded.num_links) == ("blocks", graph.num_links)
    assert loaded.fingerprint() == small.fingerprint()
    if change:
        assert loaded.y is None and loaded.split is None
    else:
        for part in ("train", "val", "test"):
            assert torch.equal(getattr(loaded.split, part), getattr(graph.split, part))


@pytest.fixture
def saved(graph, tmp_path):
    path = tmp_path / "model.safetensors"
    save_compact(path, *compact(GCN(24, 4, 3), graph))
    return path


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no compact model file at .*nowhere"):
        load_compact(tmp_path / "nowhere")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_file_is_refused(saved, share):
    content = saved.read_bytes()
    saved.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match="not a readable compact model file"):
        load_compact(saved)


def test_a_ticket_is_not_a_compact_model(graph, tmp_path):
    ticket = gebt.find_ticket(GCN(24, 4, 3), graph)
    ticket.save(tmp_path / "ticket")
    with pytest.raises(ValueError, match="not a gebt compact model.*'ticket'"):
        load_compact(tmp_path / "ticket")


def header_of(path):
    content = path.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    return json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["gebt"])


@pytest.mark.parametrize(
    "name",
    ["link", "x", "adjacency/col", "model/layers.0.weight", "model/layers.1.bias"],
)
def test_a_missing_tensor_is_refused(saved, name):
    tensors, header = load_file(saved), header_of(saved)
    del tensors[name]
    write_tensors(saved, tensors, header)
    with pytest.raises(
        ValueError, match=f"(?s)not a whole compact model.*{name.split('/')[-1]}"
    ):
        load_compact(saved)


def test_a_model_that_gebt_does_not_know_is_refused(saved):
    header = header_of(saved) | {"model": {"class": "Elsewhere", "arguments": {}}}
    write_tensors(saved, load_file(saved), header)
    with pytest.raises(ValueError, match="cannot rebuild a model of class 'Elsewhere'"):
        load_compact(saved)


def test_compaction_of_a_directed_graph(data):
    data.edge_index = data.edge_index[:, data.edge_index[0] < data.edge_index[1]]
    graph = double(Graph.from_pyg(data))
    model = randomly_pruned(24, 9)
    expected = outputs(model, graph)
    out = outputs(*compact(model, graph))
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("key", ["adjacency/col", "adjacency/crow"])
def test_positions_out_of_range_are_refused_on_load(tmp_path, graph, key):
    path = tmp_path / "compact.safetensors"
    save_compact(path, *compact(GCN(24, 4, 3), graph))
    tensors, header = load_file(path), header_of(path)
    tensors[key][-1] += 10_000
    write_tensors(path, tensors, header)
    with pytest.raises(ValueError, match="not a whole compact model.*adjacency"):
        load_compact(path)
