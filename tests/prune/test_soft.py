"""Soft masks: factors by hand, the same outputs at first, weights that stay."""

import pytest
import torch
from helpers import built, same, tiny
from torch import nn

from gebt import train
from gebt.learn.training import copy_state
from gebt.prune.soft import SoftMask, groups_by_degree


def frozen(graph, head=("layers.1.weight", "layers.1.bias")):
    model = built(graph)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in head)
    return model


def set_numbers(soft, values):
    [number] = [p for name, p in soft.named_parameters() if name.startswith("number")]
    with torch.no_grad():
        number.copy_(torch.tensor(values).view(number.shape))
    return number


def outputs(model, graph, rows=None):
    return model.eval()(graph.x, graph.adjacency, rows)


@pytest.mark.parametrize(
    ("binary", "expected"), [(False, [1.0, 1.75, 0.5, 0.0]), (True, [1.0, 1, 1, 0])]
)
def test_a_factor_is_0_or_at_least_a_half(binary, expected):
    model = nn.Linear(4, 2).requires_grad_(False)
    soft = SoftMask(model, unit="column", binary=binary)
    number = set_numbers(soft, [0.0, 0.75, -0.5, -1.75])
    [factor] = soft.factors().values()
    assert factor.tolist() == [expected]
    factor.sum().backward()
    assert (number.grad > 0).all()  # what was dropped may return


@pytest.mark.parametrize("unit", ["row", "column", "element", None])
def test_at_first_it_is_the_model_bit_for_bit(graph, unit):
    model = frozen(graph)
    soft = SoftMask(model, unit=unit, link_group=groups_by_degree(graph, 4))
    assert torch.equal(outputs(soft, graph), outputs(model, graph))
    rows = torch.tensor([5, 0, 7])
    few = outputs(soft, graph, rows)
    torch.testing.assert_close(few, outputs(soft, graph)[rows])


def test_it_multiplies_what_it_says(graph):
    soft = SoftMask(frozen(graph), unit="row", link_group=groups_by_degree(graph, 3))
    assert [*soft.factors()] == ["layers.0.weight", "links"]  # the head has none
    with torch.no_grad():
        for parameter in soft.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.rand_like(parameter) - 0.5)
    factors = soft.factors()
    plain = built(graph)
    plain.load_state_dict(copy_state(soft.model))
    with torch.no_grad():
        plain.layers[0].weight.mul_(factors["layers.0.weight"])
    group = groups_by_degree(graph, 3)
    scaled = graph.adjacency.value * factors["links"][group]
    adjacency = graph.adjacency.with_value(scaled.detach())
    expected = plain.eval()(graph.x, adjacency)
    assert not torch.equal(expected, outputs(soft.model, graph))
    torch.testing.assert_close(outputs(soft, graph), expected)


def test_training_moves_numbers_and_head_and_nothing_else(graph):
    soft = SoftMask(frozen(graph), unit="row", link_group=groups_by_degree(graph, 2))
    before = copy_state(soft)
    train(soft, graph, epochs=5)
    moved = {n for n, t in soft.state_dict().items() if not torch.equal(t, before[n])}
    assert moved == {n for n, p in soft.named_parameters() if p.requires_grad}
    frozen_ones = {n: t for n, t in before.items() if n not in moved}
    assert same(frozen_ones, {n: soft.state_dict()[n] for n in frozen_ones})
    assert [*frozen_ones] == ["model.layers.0.weight", "model.layers.0.bias"]


class Everyone(nn.Module):
    """Cannot choose rows."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(24, 3).requires_grad_(False)

    def forward(self, x, adjacency):
        return adjacency @ self.linear(x)


def test_a_model_that_computes_all_rows_gives_some(graph):
    soft = SoftMask(Everyone())
    rows = torch.tensor([3, 1])
    assert torch.equal(outputs(soft, graph, rows), outputs(soft, graph)[rows])
    train(soft, graph, epochs=2)
    assert soft.factors()["linear.weight"].ne(1).any()


def test_links_are_grouped_by_the_product_of_their_ends_degrees():
    # A star of four leaves with a tail of two: products 4, 4, 4, 8, 4 and 2, and four
    # times that, as both directions count.
    star = tiny([(0, 1), (0, 2), (0, 3), (0, 4), (4, 5), (5, 6)])
    group = groups_by_degree(star, 3)
    adjacency = star.adjacency.with_value(group + 1.0).to_dense() - 1
    assert torch.equal(adjacency, adjacency.t())
    ends = ((0, 1), (0, 2), (0, 4), (4, 5), (5, 6))
    assert [int(adjacency[end]) for end in ends] == [2, 2, 2, 2, 0]
    assert groups_by_degree(star, 1).tolist() == [0] * 12
    none = star.keep_links(torch.zeros(6, dtype=torch.bool))
    assert groups_by_degree(none, 4).shape == (0,)


@pytest.mark.parametrize("groups", [1, 2, 5, 8])
def test_groups_are_about_equal_and_the_same_both_ways(graph, groups):
    group = groups_by_degree(graph, groups)
    assert 0 <= int(group.min()) <= int(group.max()) < groups
    for link in range(graph.num_links):
        assert group[graph.link == link].unique().numel() == 1
    assert int(group.max()) == groups - 1  # so that a mask says how many there were
    counts = group.bincount(minlength=groups)
    assert counts.max() <= 3 * len(group) / groups


def test_a_unit_it_does_not_know_is_refused(graph):
    with pytest.raises(ValueError, match=r"`unit` must be .*, got 'kernel'"):
        SoftMask(frozen(graph), unit="kernel")
