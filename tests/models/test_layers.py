"""Dropout."""

import pytest
import torch

from gebt.models._layers import dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_drops_its_share_scales_the_rest_and_is_unbiased(p):
    n = 400_000
    out = dropout(torch.ones(n // 100, 100), p, True)
    dropped = (out == 0).double().mean()
    five_sigma = 5 * (p * (1 - p) / n) ** 0.5
    assert abs(dropped - p) < five_sigma + 2**-16
    kept = out[out != 0]
    # p is rounded to a multiple of 2^-16.
    torch.testing.assert_close(
        kept, torch.full_like(kept, 1 / (1 - p)), rtol=2e-4, atol=0
    )
    assert abs(out.double().mean() - 1) < five_sigma / (1 - p) + 1e-6


def test_dropout_is_independent_across_entries():
    out = dropout(torch.ones(100_000, 4), 0.5, True) != 0
    pairs = (out[:, 0] & out[:, 1]).double().mean()
    assert abs(pairs - 0.25) < 0.01
    assert not torch.equal(out[:, 0], out[:, 1])


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7])
def test_dropout_takes_sizes_that_are_no_multiple_of_four(size):
    out = dropout(torch.ones(size, 1), 0.5, True)
    assert out.shape == (size, 1)
    assert set(out.flatten().tolist()) <= {0.0, 2.0}


def test_dropout_repeats_with_the_seed_only():
    x = torch.randn(50, 20)
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(dropout(x, 0.5, True))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_dropout_reaches_sparse_features_and_their_gradient(sparse_graph):
    x = sparse_graph.x
    value = x.value.detach().clone().requires_grad_()
    out = dropout(x.with_value(value), 0.5, True)
    assert out.pattern is x.pattern
    share = float((out.value == 0).float().mean())
    assert 0.3 < share < 0.7
    out.value.sum().backward()
    assert torch.equal(value.grad != 0, out.value != 0)


def test_dropout_does_nothing_in_evaluation_mode_or_at_zero(graph, sparse_graph):
    for x in (graph.x, sparse_graph.x):
        assert dropout(x, 0.5, False) is x
        assert dropout(x, 0.0, True) is x
