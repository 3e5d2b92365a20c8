"""ResGCN: against PyG's layers and a dense computation, recomputation, memory."""

import pytest
import torch
from peers import (
    ResGCNPeer,
    assert_gradients_agree,
    close,
    dense,
    double,
    edge_index,
    largest_saved_tensor,
    shaken,
)
from torch import Tensor, nn

from gebt import SparseMatrix, compact, load_compact, save_compact
from gebt.deploy.cost import executed_macs
from gebt.models import ResGCN, build_model, describe_model
from gebt.models.resgcn import softmax_aggregate

DEPTHS = [1, 2, 7]


def with_value_one(graph):
    value = torch.ones_like(graph.adjacency.value)
    return graph.adjacency.with_value(value)


def buffers(module: nn.Module) -> list[Tensor]:
    return [buffer.clone() for buffer in module.buffers()]


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("layers", DEPTHS)
def test_outputs_gradients_and_statistics_equal_pyg(make_graph, layers, sparse, train):
    graph = double(make_graph(sparse=sparse))
    model = ResGCN(graph.num_features, 6, 3, layers=layers, dropout=0.0)
    peer = ResGCNPeer(shaken(model))
    model.train(train)
    peer.train(train)
    for norm in peer.norms:
        norm.train(train)
    out = model(graph.x, with_value_one(graph))
    expected = peer(dense(graph.x), edge_index(graph))
    close(out, expected)
    assert_gradients_agree(model, peer, out, expected)
    for ours, theirs in zip(model.norms, peer.norms, strict=True):
        for mine, other in zip(buffers(ours), buffers(theirs), strict=True):
            close(mine, other)


def aggregate_densely(h: Tensor, matrix: Tensor, linked: Tensor) -> Tensor:
    """From an N x N x H softmax, -inf where there is no link."""
    score = torch.where(linked[:, :, None], h[None], -torch.inf)
    share = score.softmax(dim=1).nan_to_num()  # a row without links: no share
    return (matrix[:, :, None] * share * h[None]).sum(dim=1)


def forward_densely(model: ResGCN, x: Tensor, matrix: Tensor, linked: Tensor) -> Tensor:
    def convolve(layer: nn.Module, h: Tensor) -> Tensor:
        near = aggregate_densely(h.relu() + 1e-7, matrix, linked)
        return (near + h) @ layer.weight + layer.bias

    h = convolve(model.layers[0], x @ model.encoder.weight + model.encoder.bias)
    for norm, layer in zip(model.norms, list(model.layers[1:]), strict=False):
        h = h + convolve(layer, norm(h).relu())
    h = model.norms[-1](h).relu()
    return h @ model.output.weight + model.output.bias


@pytest.mark.parametrize("layers", DEPTHS)
def test_weighted_links_and_their_gradients_equal_a_dense_computation(
    make_graph, layers
):
    graph = double(make_graph(nodes=60))
    model = shaken(ResGCN(graph.num_features, 6, 3, layers=layers))
    pattern, value = graph.adjacency.pattern, graph.adjacency.value
    ours, theirs = (value.clone().requires_grad_() for _ in range(2))
    at = (pattern.row.long(), pattern.col.long())
    linked = torch.zeros(pattern.shape, dtype=torch.bool).index_put(
        at, torch.tensor(True)
    )
    matrix = value.new_zeros(pattern.shape).index_put(at, theirs)
    out = model(graph.x, graph.adjacency.with_value(ours))
    expected = forward_densely(model, graph.x, matrix, linked)
    close(out, expected)
    weigh = torch.randn_like(out)
    parameters = list(model.parameters())
    found = torch.autograd.grad((out * weigh).sum(), [ours, *parameters])
    truth = torch.autograd.grad((expected * weigh).sum(), [theirs, *parameters])
    assert found[0].count_nonzero() > 0
    for mine, true in zip(found, truth, strict=True):
        close(mine, true)


def test_the_aggregation_of_one_row_by_hand():
    # Node 0 reads 0 and log 3 with values 1 and 2: (1 x 0 + 2 x 3 x log 3) / (1 + 3).
    h = torch.tensor([[5.0], [0.0], [3.0]])
    h[2] = h[2].log()
    row, col = torch.tensor([0, 0]), torch.tensor([1, 2])
    adjacency = SparseMatrix.from_coo(row, col, torch.tensor([1.0, 2.0]), (3, 3))
    out = softmax_aggregate(h, adjacency)
    torch.testing.assert_close(out[0], 1.5 * h[2])
    assert out[1:].tolist() == [[0.0], [0.0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gap", [0.0, 60.0, 85.0, 88.0, 100.0, 1e3, 1e4])
def test_rows_far_below_the_largest_feature_stay_means_with_gradients(gap, dtype):
    # Node 0 reads 0 and 5; the largest feature, at node 2, lies `gap` above 5.
    h = torch.tensor([[0.0], [5.0], [5.0 + gap]], dtype=dtype, requires_grad=True)
    row, col, one = torch.tensor([0, 0]), torch.tensor([0, 1]), torch.ones(2)
    adjacency = SparseMatrix.from_coo(row, col, one.to(dtype), (3, 3))
    out = softmax_aggregate(h, adjacency)[0]
    out.sum().backward()
    assert h.grad.isfinite().all()
    assert h.grad[2] == 0
    assert 2.5 <= float(out.detach()) < 5  # between the plain mean and the larger one
    if gap <= 60 or (dtype == torch.float64 and gap <= 600):
        pair = h.detach()[:2]
        expected = (pair.softmax(dim=0) * pair).sum(dim=0)
        torch.testing.assert_close(out, expected)


def test_large_features_aggregate_to_finite_numbers_with_finite_gradients(graph):
    h = (1e3 * torch.rand(graph.num_nodes, 4)).requires_grad_()
    out = softmax_aggregate(h, graph.adjacency)
    out.sum().backward()
    assert out.isfinite().all() and h.grad.isfinite().all()


def steps(graph, recompute: bool) -> list[Tensor]:
    """Two steps of training: outputs, gradients, statistics, the random state."""
    torch.manual_seed(1)
    model = ResGCN(24, 6, 3, layers=4, dropout=0.5, recompute=recompute).train()
    value = graph.adjacency.value.clone().requires_grad_()
    found = []
    for _ in range(2):
        parameters = [value, *model.parameters()]
        for parameter in parameters:
            parameter.grad = None
        out = model(graph.x, graph.adjacency.with_value(value), graph.split.train)
        out.square().sum().backward()
        found += [out.detach(), *(p.grad for p in parameters), *buffers(model)]
        with torch.no_grad():
            for parameter in parameters:
                parameter.sub_(0.01 * parameter.grad)
        found.append(torch.get_rng_state())
    return found


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
def test_recomputation_changes_not_one_bit(make_graph, sparse):
    graph = make_graph(sparse=sparse)
    plain, again = steps(graph, False), steps(graph, True)
    assert plain[1].count_nonzero() > 0, "the links' gradient"
    for a, b in zip(plain, again, strict=True):
        assert torch.equal(a, b)


def test_recomputation_in_evaluation_mode_leaves_the_statistics_alone(graph):
    model = ResGCN(24, 6, 3, layers=3, recompute=True)
    model.train()(graph.x, graph.adjacency).sum().backward()
    before = buffers(model)
    model.eval()(graph.x, graph.adjacency).sum().backward()
    for a, b in zip(before, buffers(model), strict=True):
        assert torch.equal(a, b)


def test_recomputation_leaves_the_statistics_alone_also_after_an_error(graph):
    model = ResGCN(24, 6, 3, layers=3, recompute=True).train()
    out = model(graph.x, graph.adjacency)
    before = buffers(model)
    momentum = [norm.momentum for norm in model.norms]
    shape = model.layers[1].weight.data
    model.layers[1].weight.data = torch.ones(2, 2)
    with pytest.raises(RuntimeError):
        out.sum().backward()
    model.layers[1].weight.data = shape
    assert [norm.momentum for norm in model.norms] == momentum
    for a, b in zip(before, buffers(model), strict=True):
        assert torch.equal(a, b)


def kept(graph, model) -> int:
    total = [0]

    def pack(tensor: Tensor) -> Tensor:
        total[0] += tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(graph.x, graph.adjacency)
    return total[0]


def test_recomputation_keeps_less(graph):
    sizes = [
        kept(graph, ResGCN(24, 16, 3, layers=9, recompute=recompute).train())
        for recompute in (True, False)
    ]
    assert 3 * sizes[0] < sizes[1]


def test_no_tensor_of_edges_times_features_is_kept_for_the_backward(make_graph):
    # 9,702 edges; 32 features.
    graph = double(make_graph(nodes=101, features=32, p_in=1.0, p_out=1.0))
    edges = graph.adjacency.pattern.nnz
    graph.adjacency.value.requires_grad_()
    model = ResGCN(32, 32, 3, layers=3).double().train()
    size = largest_saved_tensor(lambda: model(graph.x, graph.adjacency))
    assert size <= max(edges, graph.num_nodes * 32) < edges * 32
    peer = ResGCNPeer(model)
    theirs = largest_saved_tensor(lambda: peer(graph.x, edge_index(graph)))
    assert theirs >= edges * 32, "the check must see such a tensor where there is one"


@pytest.mark.parametrize("layers", [0, -1])
def test_a_depth_below_one_is_refused(layers):
    with pytest.raises(ValueError, match="`layers` must be at least 1, got"):
        ResGCN(4, 4, 2, layers=layers)


# ------------------------------------------------------------------- compaction


def outputs(model, graph):
    with torch.no_grad():
        return model.eval()(graph.x, graph.adjacency)


def pruned(case: int, features: int = 12) -> ResGCN:
    """With random statistics; single weights, whole rows and columns are gone."""
    draw = torch.Generator().manual_seed(case)
    width, layers = 1 + case % 8, 1 + case % 6
    model = shaken(ResGCN(features, width, 3, layers=layers))
    density = (0.02, 0.1, 0.3, 1.0)[case % 4]
    with torch.no_grad():
        for weight in (p for p in model.parameters() if p.dim() == 2):
            rows = torch.rand(weight.shape[0], 1, generator=draw) < 0.7
            columns = torch.rand(weight.shape[1], generator=draw) < 0.7
            some = torch.rand(weight.shape, generator=draw) < density
            weight.mul_(some & rows & columns)
    return model


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
def test_compaction_changes_no_output_and_a_second_finds_nothing(make_graph, sparse):
    graph = double(make_graph(nodes=30, p_in=0.2, features=12, sparse=sparse))
    channels = blocks = unread = features = 0
    for case in range(48):
        model = pruned(case)
        before = {name: t.clone() for name, t in model.state_dict().items()}
        expected = outputs(model, graph)
        fast, small = compact(model.train(), graph)
        close(outputs(fast, small), expected)
        again, same = compact(fast, small)
        assert again.arguments == fast.arguments
        assert torch.equal(outputs(again, same), outputs(fast, small))
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, before[name])
        width = fast.arguments["hidden"]
        channels += model.arguments["hidden"] - width
        blocks += len(model.layers) - len(fast.layers)
        unread += sum(width - n for n in fast.arguments.get("reads", []))
        features += 12 - small.num_features
    assert min(channels, blocks, unread, features) >= 20


def test_a_channel_goes_that_is_written_after_all_that_read_it(graph):
    model = shaken(ResGCN(24, 3, 3, layers=3)).float()
    with torch.no_grad():
        # Channel 0 is read by the first block alone, channel 1 by nothing.
        for reader in (*model.layers[1:], model.output):
            reader.weight[1] = 0
        for reader in (model.layers[2], model.output):
            reader.weight[0] = 0
        # So the last block, which writes channels 0 and 1 alone, does nothing.
        model.layers[2].weight[:, 2] = 0
    fast, small = compact(model, graph)
    assert fast.arguments | {"dropout": 0.5} == model.arguments | {
        "hidden": 2,
        "layers": 2,
        "reads": [3, 2, 1],
    }
    assert fast.norms[1].channels.tolist() == [1]
    torch.testing.assert_close(outputs(fast, small), outputs(model, graph))


def test_a_compact_model_goes_through_its_file(graph, tmp_path):
    model = pruned(5, 24).float()
    fast, small = compact(model, graph)
    assert fast.arguments["reads"]
    save_compact(tmp_path / "model", fast, small)
    again, loaded = load_compact(tmp_path / "model")
    assert torch.equal(outputs(again, loaded), outputs(fast, small))
    state = fast.state_dict()
    state["norms.0.channels"] = state["norms.0.channels"] + 99
    with pytest.raises(ValueError, match="channels of a norm must be among"):
        build_model(describe_model(fast), state)


@pytest.mark.parametrize("reads", [[4], [4, 4], [4, 4, 4, 4]])
def test_numbers_of_channels_for_other_depths_are_refused(reads):
    with pytest.raises(ValueError, match="`reads` must hold 3 numbers of channels"):
        ResGCN(4, 4, 2, layers=2, reads=reads)


def test_half_of_the_channels_cost_half_of_the_products(make_graph):
    graph = make_graph(nodes=200, features=8)
    model = ResGCN(8, 64, 3, layers=5)
    with torch.no_grad():
        for reader in model.layers:
            reader.weight[torch.randperm(64)[:32]] = 0
    after = executed_macs(*compact(model, graph))
    assert after < 0.55 * executed_macs(model, graph)
