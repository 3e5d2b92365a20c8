"""Channels found by tracing, and dropped physically: any module's own outputs."""

import operator

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gebt.prune.chains import drop_chains, find_chains
from gebt.prune.channels import masks_without
from gebt.prune.weights import apply_masks


class Convolved(nn.Module):
    """Two chains, one of which a linear map reads flattened."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 6, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(6)
        self.out = nn.Linear(6 * 16, 3)

    def forward(self, x):
        h = F.max_pool2d(self.bn1(self.first(x)).relu(), 2)
        h = torch.flatten(F.relu(self.bn2(self.second(h))), 1)
        return self.out(F.dropout(h, 0.5, self.training))


class Own(nn.Module):
    """``relu(bn(A W h + U h))``, as graph models with own paths are."""

    def __init__(self):
        super().__init__()
        self.near, self.own = nn.Linear(5, 4), nn.Linear(5, 4)
        self.bn, self.out = nn.BatchNorm1d(4), nn.Linear(4, 2)

    def forward(self, x, adjacency):
        h = torch.relu(self.bn(adjacency @ self.near(x) + self.own(x)))
        return adjacency @ self.out(adjacency @ h)


class Block(nn.Module):
    """A residual block: its inner channels may go, those of the sum may not."""

    def __init__(self):
        super().__init__()
        self.before = nn.Conv2d(2, 3, 1)
        self.a, self.bn_a = nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5)
        self.b, self.bn_b = nn.Conv2d(5, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.after = nn.Conv2d(3, 2, 1)

    def forward(self, x):
        h = self.before(x)
        return self.after(F.relu(h + self.bn_b(self.b(self.bn_a(self.a(h)).relu()))))


def lively(model):
    """With statistics and scales that are not those of birth, in evaluation mode."""
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            for tensor in (norm.weight, norm.bias, norm.running_mean):
                nn.init.normal_(tensor)
            nn.init.uniform_(norm.running_var, 0.5, 2)
    return model.eval()


CASES = {
    "convolutions": (
        Convolved,
        {"bn1": (("first",), {"second": 1}), "bn2": (("second",), {"out": 16})},
        lambda: (torch.randn(3, 1, 8, 8),),
    ),
    "own path": (
        Own,
        {"bn": (("own", "near"), {"out": 1})},
        lambda: (torch.randn(7, 5), torch.rand(7, 7)),
    ),
    "residual": (
        Block,
        {"bn_a": (("a",), {"b": 1})},
        lambda: (torch.randn(2, 2, 4, 4),),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_chains_are_found_and_dropping_them_is_masking_them(case):
    build, expected, inputs = CASES[case]
    model, given = lively(build()), inputs()
    chains = find_chains(model)
    assert {c.norm: (set(c.writers), c.readers) for c in chains} == {
        name: (set(writers), readers) for name, (writers, readers) in expected.items()
    }
    keep = {}
    for chain in chains:
        keep[chain.norm] = (
            torch.rand(model.get_submodule(chain.norm).num_features) < 0.6
        )
        keep[chain.norm][0] = True
    before = {n: t.clone() for n, t in model.state_dict().items()}
    small = drop_chains(model, keep)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    masks = masks_without(model, keep)
    apply_masks(model, masks)
    assert torch.allclose(small(*given), model(*given), atol=1e-5)
    sizes = [sum(p.numel() for p in m.parameters()) for m in (model, small)]
    dropped = sum(int((~mask).sum()) for mask in masks.values())
    assert sizes[1] == sizes[0] - dropped and dropped > 0
    small.train()(*given).square().sum().backward()
    assert all(p.grad is not None for p in small.parameters())


def test_what_modules_say_of_their_widths_is_true_after_it():
    keep = {"bn1": torch.tensor([True, False, True, True])}
    small = drop_chains(Convolved(), keep)
    assert (small.first.out_channels, small.bn1.num_features) == (3, 3)
    assert (small.second.in_channels, small.out.in_features) == (3, 96)
    assert small.bn2.num_features == 6  # not named, whole


MAP, CONV = nn.Linear(3, 4), nn.Conv2d(1, 4, 1)
NORM, NORM2 = nn.BatchNorm1d(4), nn.BatchNorm2d(4)


@pytest.mark.parametrize(
    "layers",
    [
        [MAP, nn.ReLU(), nn.Linear(4, 2)],  # no norm
        [MAP, NORM],  # the outputs
        [MAP, NORM, nn.Softmax(1), nn.Linear(4, 2)],  # channels are mixed
        [CONV, NORM2, nn.Linear(8, 2)],  # it reads another axis
        [CONV, NORM2, nn.Flatten(2), nn.Linear(4, 2)],
        [nn.Conv2d(4, 4, 1, groups=2), NORM2, nn.Conv2d(4, 1, 1)],
    ],
)
def test_channels_that_something_else_reads_or_writes_stay(layers):
    with pytest.raises(ValueError, match="gebt finds no channels that could leave a"):
        find_chains(nn.Sequential(*layers))


def test_a_map_that_is_called_twice_keeps_its_channels():
    class Twice(Own):
        def forward(self, x, adjacency):
            return super().forward(x, adjacency) + self.out(self.near(x))

    with pytest.raises(ValueError, match="gebt finds no channels"):
        find_chains(Twice())


def test_what_cannot_be_traced_says_why():
    class Branching(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(ValueError, match="channels of a Branching: torch.fx cannot"):
        find_chains(Branching())


def test_a_sum_with_a_scaled_part_is_not_taken_for_a_plain_one():
    class Scaled(Own):
        def forward(self, x, adjacency):
            both = torch.add(self.near(x), self.own(x), alpha=2)
            return self.out(torch.relu(self.bn(operator.mul(both, 1.0))))

    with pytest.raises(ValueError, match="gebt finds no channels"):
        find_chains(Scaled())


@pytest.mark.parametrize(
    "layers",
    [
        (nn.Linear(10, 16), nn.BatchNorm1d(8), nn.Linear(16, 4)),  # over tokens
        (nn.Linear(10, 8), nn.BatchNorm1d(8), nn.Conv1d(8, 4, 1)),
    ],
)
def test_a_norm_over_another_axis_has_no_chain(layers):
    with pytest.raises(ValueError, match="finds no channels"):
        find_chains(nn.Sequential(*layers))
