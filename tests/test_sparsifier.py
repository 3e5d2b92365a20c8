"""gebt.sparsifier: one score per link, read by both directions."""

import pytest
import torch

from gebt import GraphSparsifier, random_links
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


def test_share_untouched_counts_scores_that_never_moved(graph):
    sparsifier = GraphSparsifier(graph)
    assert sparsifier.share_untouched() == 1.0
    with torch.no_grad():
        sparsifier.score[: graph.num_links // 2] += 0.001
    moved = graph.num_links // 2 / graph.num_links
    assert sparsifier.share_untouched() == pytest.approx(1 - moved)


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
