"""Same outputs from less, for any masks and any biases."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from helpers import as_dtype, header_of, shaken
from safetensors.torch import load_file
from torch import nn

import gebt
from gebt import Graph, SparseMatrix, compact, load_compact, save_compact
from gebt.files import write_tensors
from gebt.models import CLASSES, GAT, GCN, GIN, GraphSAGE, ResGCN


def outputs(model, graph):
    model.eval()
    with torch.no_grad():
        return model(graph.x, graph.adjacency)


def randomly_pruned(kind, features, case):
    """A stack with random masks and biases; dead rows and columns included."""
    draw = torch.Generator().manual_seed(case)
    depth = case % 4 + 1
    widths = torch.randint(1, 9, (depth - 1,), generator=draw).tolist()
    model = kind(features, widths, 3).double()
    density = (0.02, 0.1, 0.3, 1.0)[(case // 4) % 4]
    for layer in model.layers:
        # Positive on the whole, so that units of no input are often not zero.
        nn.init.normal_(layer.bias, 0.5, 1.0, generator=draw)
        alive = [torch.rand(n, generator=draw) < 0.8 for n in layer.weight.shape]
        for weight in layer.weights():
            nn.init.normal_(weight, generator=draw)
            keep = torch.rand(weight.shape, generator=draw) < density
            with torch.no_grad():
                weight.mul_(keep & alive[0][:, None] & alive[1])
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


STACKS = pytest.mark.parametrize("kind", [GCN, GIN, GraphSAGE])


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("case", range(32))
@STACKS
def test_compaction_changes_no_output(make_graph, kind, case, sparse):
    graph = uneven(make_graph(nodes=30, p_in=0.2, features=12, sparse=sparse))
    assert isinstance(graph.x, SparseMatrix) == sparse
    model = randomly_pruned(kind, 12, case)
    expected = outputs(model, graph)
    fast, small = compact(model, graph)
    out = outputs(fast, small)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("case", range(32))
@STACKS
def test_a_second_compaction_finds_nothing_to_drop(make_graph, kind, case):
    graph = uneven(make_graph(nodes=30, p_in=0.2, features=12))
    fast, small = compact(randomly_pruned(kind, 12, case), graph)
    again, same = compact(fast, small)
    assert again.arguments == fast.arguments
    assert same.x is small.x and same.adjacency is small.adjacency
    assert torch.equal(outputs(again, same), outputs(fast, small))


@STACKS
def test_the_random_cases_hold_what_they_are_meant_to(kind):
    """Constant units, units that nothing reads, dead features, wholly dead layers."""
    from gebt.models._stack import live_units

    constant = dead = features = whole = 0
    for case in range(32):
        layers = randomly_pruned(kind, 12, case).stacked()
        live = live_units(layers)
        features += int((~live[0]).sum())
        for k, layer in enumerate(layers[:-1]):
            dead += int((~live[k + 1]).sum())
            reached = torch.stack(
                [(weight[live[k]] != 0).any(dim=0) for weight in layer.weights()]
            ).any(dim=0)
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
        "num_outputs": 3,
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
    assert fast.arguments["hidden"] == [1]
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
    assert fast.arguments["hidden"] == [1, 1]
    assert fast.layers[2].inner_bias.tolist() == [6.0, 8.0]  # relu(2) * (3, 4)
    torch.testing.assert_close(outputs(fast, small), outputs(model, graph))


def test_a_unit_behind_an_inner_bias_is_not_constant(make_graph):
    """A (0 + c) + b differs from row to row, because A's row sums do."""
    graph = as_dtype(make_graph(features=2), torch.float64)
    model = GCN(2, (2, 1), 2).double()
    with torch.no_grad():
        # Layer 1's only unit is reached by unit 0 alone, which is constant.
        model.layers[0].weight.copy_(torch.tensor([[0.0, 1.0], [0.0, 1.0]]))
        model.layers[0].bias.copy_(torch.tensor([1.0, 0.0]))
        model.layers[1].weight.copy_(torch.tensor([[2.0], [0.0]]))
    fast, small = compact(model, graph)
    assert fast.arguments["hidden"] == [0, 1]
    out = outputs(fast, small)
    assert out.std(dim=0).min() > 0
    torch.testing.assert_close(out, outputs(model, graph), rtol=1e-10, atol=1e-10)


def test_a_constant_of_graphsage_folds_into_both_biases_by_hand(make_graph):
    graph = uneven(make_graph(features=2))
    model = GraphSAGE(2, 2, 2).double()
    first, last = model.layers
    # Unit 0 computes relu(0.5) whatever the input is; unit 1 a node's own feature 1.
    with torch.no_grad():
        first.weight.zero_()
        first.own_weight.copy_(torch.tensor([[0.0, 0.0], [0.0, 3.0]]))
        first.bias.copy_(torch.tensor([0.5, 0.1]))
        last.weight.copy_(torch.tensor([[4.0, 6.0], [1.0, 1.0]]))
        last.own_weight.copy_(torch.tensor([[2.0, 8.0], [5.0, 7.0]]))
        last.bias.copy_(torch.tensor([0.25, 0.5]))
    fast, small = compact(model, graph)
    assert fast.arguments["hidden"] == [1]
    assert fast.layers[0].own_weight.tolist() == [[3.0]]
    assert fast.layers[1].inner_bias.tolist() == [2.0, 3.0]  # 0.5 * (4, 6)
    assert fast.layers[1].bias.tolist() == [1.25, 4.5]  # and 0.5 * (2, 8)
    assert torch.equal(small.x, graph.x[:, 1:])
    torch.testing.assert_close(outputs(fast, small), outputs(model, graph))


def test_a_unit_that_only_a_nodes_own_weight_reads_stays(make_graph):
    graph = as_dtype(make_graph(features=3), torch.float64)
    model = GraphSAGE(3, 3, 2).double()
    with torch.no_grad():
        model.layers[0].weight[2] = 0  # feature 2 is read by `own_weight` alone
        model.layers[1].weight[1] = 0  # unit 1 too
        model.layers[1].own_weight[2] = 0  # unit 2 by `weight` alone
    fast, small = compact(model, graph)
    assert fast.arguments == model.arguments
    assert torch.equal(outputs(fast, small), outputs(model, graph))


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("depth", [1, 2, 3])
@STACKS
def test_a_model_of_which_everything_is_pruned_gives_its_bias(
    make_graph, kind, sparse, depth
):
    graph = make_graph(sparse=sparse)
    model = kind(24, [5] * (depth - 1), 3)
    for layer in model.layers:
        for weight in layer.weights():
            nn.init.zeros_(weight)
        nn.init.normal_(layer.bias)
    fast, small = compact(model, graph)
    assert fast.arguments["hidden"] == [0] * (depth - 1)
    assert small.x.shape == (120, 0)
    out = outputs(fast, small)
    assert torch.equal(out, model.layers[-1].bias.expand(120, 3))


def test_links_of_value_zero_count_in_the_mean_and_in_the_attention(make_graph):
    graph = uneven(make_graph())
    assert not graph.adjacency.value.all()
    for model in (
        GraphSAGE(24, 8, 3),
        GAT(24, 4, 3, heads=2),
        ResGCN(24, 8, 3, layers=2),
    ):
        _, small = compact(model.double(), graph)
        assert small.adjacency is graph.adjacency


DEEP = {
    "GAT": lambda features: GAT(features, 4, 3, heads=3, output_heads=2),
    "ResGCN": lambda features: ResGCN(features, 6, 3, layers=3),
}


def with_dead_features(name, features, share, case=0):
    """A GAT or ResGCN of which a share of the features is read by nothing."""
    torch.manual_seed(case)
    model = shaken(DEEP[name](features))
    for buffer_name, buffer in model.named_buffers():
        if buffer_name.endswith("num_batches_tracked"):
            buffer.fill_(7)
    first = model.encoder if name == "ResGCN" else model.layers[0]
    with torch.no_grad():
        first.weight[torch.randperm(features)[: int(share * features)]] = 0
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(torch.rand_like(parameter) < 0.7)
    return model


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("name", DEEP)
def test_features_that_nothing_reads_leave_gat_and_resgcn(
    make_graph, name, share, sparse
):
    graph = uneven(make_graph(sparse=sparse))
    for case in range(4):
        model = with_dead_features(name, 24, share, case)
        expected = outputs(model, graph)
        fast, small = compact(model.train(), graph)
        assert model.training and not fast.training
        assert small.num_features <= 24 - int(share * 24)
        assert fast.arguments["num_features"] == small.num_features
        out = outputs(fast, small)
        torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
        with torch.no_grad():
            for parameter in fast.parameters():
                parameter.add_(1)
        assert torch.equal(outputs(model, graph), expected)


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
    model = randomly_pruned(GCN, 24, 5).float().train()
    before = {n: w.clone() for n, w in model.state_dict().items()}
    fingerprint = graph.fingerprint()
    fast, _ = compact(model, graph)
    with torch.no_grad():
        for parameter in fast.parameters():
            parameter.add_(1)
    assert graph.fingerprint() == fingerprint
    assert all(torch.equal(w, before[n]) for n, w in model.state_dict().items())
    assert model.training and not fast.training


@STACKS
def test_a_ticket_compacts_to_the_same_predictions(graph, kind):
    model = kind(graph.num_features, 16, 3)
    ticket = gebt.find_ticket(model, graph, weight_ratio=0.95)
    pruned = ticket.open(model, graph)
    gebt.train(model, pruned, keep=ticket.weight_masks, epochs=20)
    fast, small = compact(model, pruned)
    assert fast.arguments["hidden"][0] < 16
    torch.testing.assert_close(outputs(fast, small), outputs(model, pruned))
    assert gebt.evaluate(fast, small) == gebt.evaluate(model, pruned)


def test_another_model_is_refused(graph):
    with pytest.raises(ValueError, match="cannot compact a Linear: gebt knows"):
        compact(nn.Linear(24, 3), graph)


@pytest.mark.parametrize("kind", CLASSES.values())
def test_a_model_for_other_features_is_refused(graph, kind):
    with pytest.raises(ValueError, match="reads 7 features, but the graph has 24"):
        compact(kind(7, 4, 3), graph)


def bare(graph):
    return replace(graph, y=None, split=None)


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("change", [None, bare], ids=["whole", "bare"])
@pytest.mark.parametrize("case", [1, 5, 10])
def test_a_compact_model_survives_its_file(make_graph, tmp_path, case, sparse, change):
    graph = make_graph(sparse=sparse)
    graph = change(graph) if change else graph
    fast, small = compact(randomly_pruned(GCN, 24, case).float(), graph)
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
        assert_same_split(loaded, graph)


def assert_same_split(loaded, graph):
    assert type(loaded.split) is type(graph.split)
    for part, expected in vars(graph.split).items():
        assert torch.equal(getattr(loaded.split, part), expected)


@pytest.mark.parametrize("links", [False, True], ids=["nodes", "links"])
@pytest.mark.parametrize("kind", CLASSES.values())
def test_every_model_survives_its_file_with_any_split(
    make_graph, tmp_path, kind, links
):
    graph = make_graph(sparse=True)
    graph = graph.hold_out_links(0.1, 0.2) if links else graph
    graph = replace(graph, metric="ROC-AUC")
    model = kind(24, 4, 3, dropout=0.25)
    model.train()(graph.x, graph.adjacency)  # for the statistics of the norms
    fast, small = compact(model, graph)
    save_compact(tmp_path / "model.safetensors", fast, small)
    again, loaded = load_compact(tmp_path / "model.safetensors")
    assert type(again) is kind and not again.training
    assert again.arguments == fast.arguments
    assert torch.equal(outputs(again, loaded), outputs(fast, small))
    assert loaded.fingerprint() == small.fingerprint()
    assert loaded.metric == "ROC-AUC"
    assert_same_split(loaded, small)
    for name, value in fast.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)


def test_what_could_not_be_loaded_again_is_not_saved(graph, tmp_path):
    from torch_geometric.nn import models

    for model in (models.GCN(24, 4, 2, 3), gebt.models.adapt(models.GIN(24, 4, 2, 3))):
        words = f"cannot save a .*{type(model).__name__} as a compact model"
        with pytest.raises(ValueError, match=words):
            save_compact(tmp_path / "model", model, graph)
    assert not list(tmp_path.iterdir())


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


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64]
)
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("kind", CLASSES.values())
def test_a_compact_model_comes_back_in_its_own_dtype(
    make_graph, tmp_path, kind, sparse, dtype
):
    graph = as_dtype(make_graph(sparse=sparse), dtype)
    model = kind(24, 4, 3).to(dtype)
    for parameter in model.parameters():
        nn.init.normal_(parameter)  # every bit of a float64 is in use
    fast, small = compact(model, graph)
    save_compact(tmp_path / "model", fast, small)
    before = torch.get_rng_state()
    again, loaded = load_compact(tmp_path / "model")
    assert torch.equal(torch.get_rng_state(), before)
    assert loaded.x.dtype == loaded.adjacency.dtype == dtype
    theirs = again.state_dict()
    for name, value in fast.state_dict().items():
        assert theirs[name].dtype == value.dtype
        assert torch.equal(theirs[name], value)
    found = [(n, p.requires_grad, p.device.type) for n, p in again.named_parameters()]
    assert found == [(n, True, "cpu") for n, _ in fast.named_parameters()]
    assert torch.equal(outputs(again, loaded), outputs(fast, small))


def test_a_model_of_another_dtype_than_its_graph_is_not_saved(graph, tmp_path):
    words = "must be of one dtype, are torch.float32, torch.float64"
    with pytest.raises(ValueError, match=words):
        save_compact(tmp_path / "model", GCN(24, 4, 3).double(), graph)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def whole(make_graph, tmp_path):
    """A file with every tensor there is, but for a split of links."""
    path = tmp_path / "model.safetensors"
    graph = make_graph(sparse=True).reorder()
    save_compact(path, *compact(GCN(24, 4, 3), graph))
    return path


def put(at, value):
    """A change that sets one entry."""

    def change(tensor):
        tensor[at] = value
        return tensor

    return change


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("adjacency/crow", lambda t: t.float(), "must be int32 or int64 of shape"),
        ("adjacency/crow", lambda t: t.float() * torch.nan, "must be int32 or int64"),
        ("adjacency/crow", lambda t: t[1:], r"of shape \(121\), is torch.int32 \(120"),
        ("adjacency/crow", put(1, -1), r"must lie in \[0, \d+\), but has -1"),
        ("adjacency/crow", put(0, 1), "must rise from 0 to"),
        ("adjacency/crow", put(-1, 3), "must rise from 0 to"),
        ("adjacency/crow", put(1, 900), "must rise from 0 to"),
        ("adjacency/col", put(3, 120), r"must lie in \[0, 120\), but has 0 to 120"),
        ("adjacency/col", put(3, -1), r"must lie in \[0, 120\), but has -1"),
        ("adjacency/col", lambda t: t[1:], "'adjacency/col' must be int32 or int64"),
        ("adjacency/value", lambda t: t.int(), "must be floating of shape"),
        ("adjacency/value", put(0, torch.nan), "must be finite, but holds NaN"),
        ("adjacency/value", lambda t: t.double(), "must be of one dtype, are torch.f"),
        ("x/crow", lambda t: t.bool(), "'x/crow' must be int32 or int64"),
        ("x/col", put(0, 24), r"must lie in \[0, 24\)"),
        ("x/value", put(0, torch.inf), "must be finite"),
        ("x/value", lambda t: t.half(), "must be of one dtype"),
        ("link", lambda t: t.double(), "'link' must be int32 or int64"),
        ("link", lambda t: t[None], "'link' must be int32 or int64 of shape"),
        ("link", put(0, 468), r"must lie in \[0, 468\), but has 0 to 468"),
        ("y", put(0, 2**40), "'y' must lie in"),
        ("y", lambda t: t.float(), "'y' must be int32 or int64"),
        ("y", lambda t: t[1:], r"'y' must be int32 or int64 of shape \(120\)"),
        ("y", lambda t: t > 0, r"'y' must be boolean of shape \(120, any\)"),
        ("split/train", put(0, 120), r"'split/train' must lie in \[0, 120\)"),
        ("split/test", lambda t: t.float(), "'split/test' must be int32 or int64"),
        ("split/val", lambda t: None, "it lacks 'split/val'"),
        ("split/val_negative", lambda t: torch.zeros(1, 2).long(), "split/train' must"),
        ("order", put(0, 5), "'order' must name every node once"),
        ("order", lambda t: t.float(), "'order' must be int32 or int64"),
        ("model/layers.0.weight", lambda t: t[:, 1:], "and its tensors differ"),
        (
            "model/layers.0.weight",
            lambda t: t.int(),
            "must be floating, is torch.int32",
        ),
        (
            "model/layers.0.bias",
            lambda t: t.half(),
            "must be of one dtype, are torch.f",
        ),
        ("model/layers.9.bias", lambda t: torch.ones(1), "differ: .'layers.9.bias"),
    ],
)
def test_a_tensor_of_another_kind_or_range_is_named(whole, name, change, words):
    tensors, header = load_file(whole), header_of(whole)
    if (tensor := change(tensors.pop(name, None))) is not None:
        tensors[name] = tensor
    write_tensors(whole, tensors, header)
    with pytest.raises(ValueError, match=f"not a whole compact model.*{words}"):
        load_compact(whole)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"graph": 3}, "`graph` must be an object"),
        ({"graph": {"name": 3, "num_links": 468}}, "`graph.name` must be text"),
        ({"graph": {"name": "a", "num_links": 10**12}}, "`graph.num_links` must be"),
        ({"graph": {"name": "a", "num_links": 9}}, r"must lie in \[0, 9\)"),
        ({"shapes": {}}, "it lacks 'adjacency' in `shapes`"),
        ({"shapes": {"adjacency": [120, 120], "x": [120]}}, "`shapes.x` must be two"),
        ({"shapes": {"adjacency": [120, 120], "x": [120, 9**9]}}, "reads 24 features"),
        ({"shapes": {"adjacency": [120, 9**9], "x": [120, 24]}}, "square, for as many"),
        ({"shapes": {"adjacency": 3, "x": [120, 24]}}, "`shapes.adjacency` must be"),
        ({"model": 3}, "`model` must be an object"),
    ],
)
def test_a_header_of_a_compact_model_is_checked_field_by_field(whole, change, words):
    write_tensors(whole, load_file(whole), header_of(whole) | change)
    with pytest.raises(ValueError, match=f"not a whole compact model.*{words}"):
        load_compact(whole)


@pytest.mark.parametrize("name", ["hidden", "num_features", "num_outputs"])
@pytest.mark.parametrize("size", [10**11, 2**31 - 1, 2**20])
def test_a_claimed_width_is_refused_before_memory_is_asked_for(whole, name, size):
    header = header_of(whole)
    header["model"]["arguments"][name] = size
    write_tensors(whole, load_file(whole), header)
    with pytest.raises(ValueError, match="not a whole compact model.*cannot rebuild"):
        load_compact(whole)


def test_layers_that_no_tensor_is_for_are_refused_before_they_are_built(
    make_graph, tmp_path
):
    path = tmp_path / "model.safetensors"
    save_compact(path, ResGCN(24, 4, 3, layers=2), make_graph())
    header = header_of(path)
    header["model"]["arguments"]["layers"] = 10**6
    write_tensors(path, load_file(path), header)
    with pytest.raises(ValueError, match="`layers` must be a whole number from 1 to"):
        load_compact(path)


@pytest.mark.parametrize("labels", ["classes", "several", "missing"])
def test_labels_of_any_kind_and_an_order_come_back(make_graph, tmp_path, labels):
    graph = make_graph().reorder()
    if labels == "several":
        graph = replace(graph, y=torch.rand(120, 3) > 0.5)
    elif labels == "missing":
        graph = replace(graph, y=graph.y.index_fill(0, torch.tensor([3, 5]), -1))
    save_compact(tmp_path / "model", GCN(24, 4, 3), graph)
    _, loaded = load_compact(tmp_path / "model")
    assert torch.equal(loaded.y, graph.y) and loaded.y.dtype == graph.y.dtype
    assert torch.equal(loaded.order, graph.order)
    assert_same_split(loaded, graph)


def test_compaction_of_a_directed_graph(data):
    data.edge_index = data.edge_index[:, data.edge_index[0] < data.edge_index[1]]
    graph = as_dtype(Graph.from_pyg(data), torch.float64)
    model = randomly_pruned(GCN, 24, 9)
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


@pytest.mark.parametrize("kind", [GCN, GIN, GraphSAGE])
def test_wide_weights_of_mostly_zeros_become_sparse_and_say_so(
    kind, graph, tmp_path, caplog
):
    pytest.importorskip("numba", reason="needs numba: pip install 'gebt[fast]'")
    model = kind(graph.num_features, [256, 256], 3)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.layers[1].weights():
            weight.mul_(torch.rand(weight.shape, generator=draw) < 0.1)
    expected = outputs(model, graph)
    with caplog.at_level("INFO", logger="gebt"):
        small, pruned = compact(model, graph)
    words = "layer 2 multiplies by its weight, 256 x 256 with 90% zeros, as a sparse"
    assert words in caplog.text
    assert [set(layer.sparse) for layer in small.layers] == [
        set(),
        {"weight", "own_weight"} if kind is GraphSAGE else {"weight"},
        set(),
    ]
    torch.testing.assert_close(outputs(small, pruned), expected, rtol=1e-4, atol=1e-5)

    save_compact(tmp_path / "small", small, pruned)
    again, there = load_compact(tmp_path / "small")
    assert again.layers[1].sparse.keys() == small.layers[1].sparse.keys()
    assert torch.equal(outputs(again, there), outputs(small, pruned))

    # A copy's weights may become others as often as these have.
    copy = deepcopy(small)
    assert not copy.layers[1].sparse
    torch.testing.assert_close(outputs(copy, pruned), expected, rtol=1e-4, atol=1e-5)

    # With gradients, and once a weight changes, the weight itself is read.
    small(pruned.x, pruned.adjacency).sum().backward()
    assert small.layers[1].weight.grad.abs().sum() > 0
    with torch.no_grad():
        small.layers[2].weight.mul_(1)
        small.layers[1].weight.mul_(2)
        changed = outputs(small, pruned)
        small.layers[1].pick_sparse_weights()
    torch.testing.assert_close(outputs(small, pruned), changed, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(changed, expected)


def test_the_graph_says_which_features_are_left(sparse_graph, tmp_path):
    model = GCN(sparse_graph.num_features, 4, 3)
    gone = torch.rand(sparse_graph.num_features) < 0.4
    with torch.no_grad():
        model.layers[0].weight[gone] = 0
    small, graph = gebt.compact(model, sparse_graph)
    assert torch.equal(graph.columns, (~gone).nonzero().squeeze(1))
    with torch.no_grad():
        small.layers[0].weight[1] = 0
    smaller, left = gebt.compact(small, graph)
    assert torch.equal(left.x.to_dense(), sparse_graph.x.to_dense()[:, left.columns])
    assert left.columns.numel() == graph.columns.numel() - 1
    gebt.save_compact(tmp_path / "c", smaller, left)
    assert torch.equal(gebt.load_compact(tmp_path / "c")[1].columns, left.columns)
    assert sparse_graph.columns is None
