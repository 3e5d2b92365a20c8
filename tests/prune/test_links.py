"""One score per link, read by both directions."""

from dataclasses import replace

import pytest
import torch

from gebt import GraphSparsifier, keep_top, random_links
from gebt.models import GCN


def test_scores_start_at_one_and_change_nothing(graph):
    sparsifier = GraphSparsifier(graph)
    assert sparsifier.score.tolist() == [1.0] * graph.num_links
    assert torch.equal(sparsifier().value, graph.adjacency.value)
    assert sparsifier().pattern is graph.adjacency.pattern


def test_both_directions_read_the_same_score(graph):
    sparsifier = GraphSparsifier(graph)
    torch.nn.init.normal_(sparsifier.score)
    dense = sparsifier().to_dense()
    assert torch.equal(dense, dense.t())
    row, col = graph.adjacency.pattern.row.long(), graph.adjacency.pattern.col.long()
    assert torch.equal(dense[row, col], sparsifier.score[graph.link])


def test_a_score_multiplies_the_edge_weight(make_data):
    import gebt

    data = make_data()
    forward = data.edge_index[0] * 1000 + data.edge_index[1]
    back = data.edge_index[1] * 1000 + data.edge_index[0]
    data.edge_weight = (torch.minimum(forward, back) % 7 + 1).float()
    graph = gebt.Graph.from_pyg(data)
    assert graph.num_links == data.edge_index.shape[1] // 2
    sparsifier = GraphSparsifier(graph)
    torch.nn.init.constant_(sparsifier.score, -0.5)
    assert torch.equal(sparsifier().value, -0.5 * graph.adjacency.value)


def test_a_links_gradient_is_the_sum_of_both_directed_entries(graph):
    model = GCN(graph.num_features, 6, 3).eval()
    sparsifier = GraphSparsifier(graph)
    model(graph.x, sparsifier()).square().sum().backward()

    value = graph.adjacency.value.clone().requires_grad_()
    model(graph.x, graph.adjacency.with_value(value)).square().sum().backward()
    expected = torch.zeros(graph.num_links)
    for entry, link in enumerate(graph.link.tolist()):
        expected[link] += value.grad[entry]
    assert (expected != 0).all()
    torch.testing.assert_close(sparsifier.score.grad, expected, rtol=1e-5, atol=1e-5)


def test_the_mask_keeps_the_largest_magnitudes(graph):
    sparsifier = GraphSparsifier(graph)
    torch.nn.init.normal_(sparsifier.score)
    mask = sparsifier.mask(0.3)
    score = sparsifier.score.detach().abs()
    assert mask.sum() == graph.num_links - int(0.3 * graph.num_links)
    assert score[~mask].max() <= score[mask].min()


def test_share_untouched_counts_links_that_no_gradient_reached(graph):
    sparsifier = GraphSparsifier(graph)
    sparsifier.count_gradient()  # there is none yet
    assert sparsifier.share_untouched() == 1.0
    half = graph.num_links // 2
    sparsifier.score.grad = torch.zeros_like(sparsifier.score)
    sparsifier.score.grad[:half] = torch.randn(half)
    sparsifier.count_gradient()
    with torch.no_grad():
        sparsifier.score -= 0.001  # whatever else moves it
    sparsifier.score.grad.zero_()
    sparsifier.count_gradient()
    assert sparsifier.share_untouched() == pytest.approx(1 - half / graph.num_links)


def test_scores_beside_half_precision_keep_their_steps(graph):
    half = replace(
        graph, adjacency=graph.adjacency.with_value(graph.adjacency.value.bfloat16())
    )
    sparsifier = GraphSparsifier(half)
    assert sparsifier.score.dtype == torch.float32
    with torch.no_grad():
        sparsifier.score += 0.001  # bfloat16 next to 1 knows steps of 0.004
    assert bool((sparsifier.score > 1).all())
    assert sparsifier().dtype == torch.bfloat16
    out = sparsifier() @ torch.randn(graph.num_nodes, 3).bfloat16()
    out.float().square().sum().backward()
    assert sparsifier.score.grad is not None
    kept = half.keep_links(sparsifier.mask(0.5), sparsifier.score.detach())
    assert kept.adjacency.dtype == torch.bfloat16


@pytest.mark.parametrize("ratio", [0.0, 0.2, 0.9])
def test_random_links_are_exact_in_count_and_seeded(ratio):
    masks = [
        random_links(1001, ratio, torch.Generator().manual_seed(seed))
        for seed in (5, 5, 6)
    ]
    assert all(int(m.sum()) == 1001 - int(ratio * 1001) for m in masks)
    assert torch.equal(masks[0], masks[1])
    if ratio:
        assert not torch.equal(masks[0], masks[2])


def test_random_links_leave_torchs_own_generator_alone():
    before = torch.get_rng_state()
    random_links(50, 0.5, torch.Generator().manual_seed(1))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.9])
def test_equal_scores_are_not_resolved_by_position(make_graph, ratio):
    graph = make_graph(nodes=300)
    half = graph.num_links // 2
    for seed in range(5):
        mask = GraphSparsifier(graph, seed).mask(ratio)
        assert mask.sum() == graph.num_links - int(ratio * graph.num_links)
        early, late = (part.float().mean() for part in (mask[:half], mask[half:]))
        # Five deviations of the difference of two halves of a random mask.
        spread = 2 * (ratio * (1 - ratio) / graph.num_links) ** 0.5
        assert abs(early - late) < 5 * spread


def test_equal_scores_are_resolved_the_same_at_every_call_of_a_seed(graph):
    state = torch.get_rng_state()
    one, two, other = (GraphSparsifier(graph, seed) for seed in (3, 3, 4))
    mask = one.mask(0.5)
    assert torch.equal(mask, one.mask(0.5)) and torch.equal(mask, two.mask(0.5))
    assert not torch.equal(mask, other.mask(0.5))
    assert torch.equal(torch.get_rng_state(), state)


def test_the_order_of_equal_scores_decides_nothing_else(graph):
    score = torch.randn(graph.num_links)
    masks = []
    for seed in (0, 1):
        sparsifier = GraphSparsifier(graph, seed)
        with torch.no_grad():
            sparsifier.score.copy_(score)
        masks.append(sparsifier.mask(0.4))
    assert torch.equal(masks[0], masks[1])
    assert torch.equal(masks[0], keep_top(score, 0.4))


@pytest.mark.parametrize("levels", [1, 3, 1000])
def test_raising_the_ratio_never_revives_a_link(graph, levels):
    sparsifier = GraphSparsifier(graph, seed=7)
    with torch.no_grad():
        sparsifier.score.copy_(torch.randint(1, levels + 1, (graph.num_links,)))
    before = sparsifier.mask(0.0)
    assert before.all()
    for ratio in (0.05, 0.2, 0.21, 0.5, 0.9, 0.99):
        mask = sparsifier.mask(ratio)
        assert mask.sum() == graph.num_links - int(ratio * graph.num_links)
        assert not (mask & ~before).any()
        before = mask


def test_the_order_of_equal_scores_is_the_same_whatever_the_default_device(graph):
    expected = GraphSparsifier(graph, 5).mask(0.3)
    with torch.device("meta"):
        sparsifier = GraphSparsifier(graph, 5)
    assert torch.equal(sparsifier.mask(0.3), expected)


@pytest.mark.cuda
def test_masks_on_cuda_are_those_of_the_cpu(graph):
    here, there = GraphSparsifier(graph, 5), GraphSparsifier(graph.to("cuda"), 5)
    assert there.mask(0.3).device.type == "cuda"
    assert torch.equal(there.mask(0.3).cpu(), here.mask(0.3))


def test_links_that_a_pruned_graph_lacks_are_dropped_before_any_other(graph):
    stays = torch.arange(graph.num_links) % 4 != 0
    sparsifier = GraphSparsifier(graph.keep_links(stays), seed=2)
    assert torch.equal(sparsifier.score.detach() != 0, stays)
    for ratio in (0.25, 0.4, 0.9):
        mask = sparsifier.mask(ratio)
        assert mask.sum() == graph.num_links - int(ratio * graph.num_links)
        assert not (mask & ~stays).any()
    assert sparsifier.share_untouched() == 1
    with pytest.raises(ValueError, match="already pruned: it lacks 117 of its 468"):
        sparsifier.mask(0.2)
