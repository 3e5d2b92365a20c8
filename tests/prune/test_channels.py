"""Channels by their norms' scales: masks, pull, slimming, and EB-Train's promise."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gebt
from gebt.models import GCN, GIN, GraphSAGE
from gebt.options import EB_TRAIN
from gebt.prune.channels import ChannelPruner, drop_channels, masks_without
from gebt.prune.weights import apply_masks


def chain(*scales):
    """A module with one batch norm for each list of scales."""
    widths = [2, *map(len, scales)]
    layers = []
    for before, scale in zip(widths, scales, strict=False):
        norm = nn.BatchNorm1d(len(scale))
        norm.weight.data = torch.tensor(scale)
        layers += [nn.Linear(before, len(scale)), norm, nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], 1))


def test_all_channels_are_ranked_together_by_the_scales_magnitudes():
    pruner = ChannelPruner(chain([0.5, -3.0, 2.0], [1.0, 0.1, -0.2]), 0.5)
    masks = {name: mask.tolist() for name, mask in pruner.masks().items()}
    assert masks == {"1": [False, True, True], "4": [True, False, False]}
    assert pruner.by_scale


def test_a_layer_keeps_its_largest_channel_and_the_count_is_exact():
    pruner = ChannelPruner(chain([5.0, 6.0, 7.0, 8.0], [0.1, 0.3, 0.2]), 0.5)
    masks = pruner.masks()
    assert masks["4"].tolist() == [False, True, False]
    assert sum(int(mask.sum()) for mask in masks.values()) == 7 - 3


def test_the_pull_is_an_l1_subgradient_on_the_scales_alone():
    model = chain([0.5, -3.0, 0.0], [1.0, -1.0])
    model(torch.randn(5, 2)).sum().backward()
    before = {name: p.grad.clone() for name, p in model.named_parameters()}
    ChannelPruner(model, 0.5, pull=0.25).after_backward()
    moved = {n: p.grad - before[n] for n, p in model.named_parameters()}
    assert torch.allclose(moved.pop("1.weight"), torch.tensor([0.25, -0.25, 0.0]))
    assert torch.allclose(moved.pop("4.weight"), torch.tensor([0.25, -0.25]))
    assert not any(each.any() for each in moved.values())


def test_without_norms_units_are_ranked_by_weights_layer_by_layer_and_not_pulled():
    torch.manual_seed(0)
    model = GCN(5, [6, 4], 3)
    with pytest.warns(UserWarning, match="GCN has a batch norm: its units are ranked"):
        pruner = ChannelPruner(model, 0.5)
    assert [int(mask.sum()) for mask in pruner.masks().values()] == [3, 2]
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    pruner.after_backward()
    assert not any(parameter.grad.any() for parameter in model.parameters())


def test_what_leaves_a_layer_nothing_is_refused():
    with pytest.raises(ValueError, match="keeps 1 of 6 channels, fewer than there are"):
        ChannelPruner(chain([1.0] * 3, [1.0] * 3), 0.9)
    model = chain([1.0, 1.0], [1.0, 1.0])
    keep = {"1": torch.tensor([False, False]), "4": torch.tensor([True, True])}
    with pytest.raises(ValueError, match="`keep` leaves the layer 1 no channel"):
        drop_channels(model, keep)
    with pytest.raises(ValueError, match="of these sizes: {'1': 2, '4': 2}; got {'1'"):
        drop_channels(model, {"1": torch.tensor([True, True])})
    with pytest.raises(ValueError, match="finds no channels that could leave a Seq"):
        ChannelPruner(nn.Sequential(nn.Linear(2, 2)), 0.5)
    with pytest.raises(ValueError, match="`pull` must not be negative"):
        ChannelPruner(model, 0.5, pull=-1.0)


def test_a_scale_that_is_not_a_number_has_no_rank():
    with pytest.raises(ValueError, match="NaN"):
        ChannelPruner(chain([1.0, float("nan"), 2.0], [1.0, 3.0]), 0.4).masks()


@pytest.mark.parametrize("kind", [GCN, GIN, GraphSAGE])
def test_a_slimmed_stack_computes_what_the_masked_one_does(graph, kind):
    model = kind(graph.num_features, 9, 3, layers=3, norm="batch")
    for norm in model.norms:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
        nn.init.normal_(norm.running_mean)
    keep = ChannelPruner(model, 0.6).masks()
    small = drop_channels(model, keep)
    assert [layer.width for layer in small.stacked()[:-1]] == [
        int(mask.sum()) for mask in keep.values()
    ]
    apply_masks(model, masks_without(model, keep))
    outputs = [m.eval()(graph.x, graph.adjacency) for m in (model, small)]
    assert torch.allclose(*outputs, atol=1e-5)


def digits():
    """scikit-learn's, (1797, 1, 8, 8), and their classes."""
    from sklearn.datasets import load_digits

    pixels, y = load_digits(return_X_y=True)
    return torch.from_numpy(pixels / 16).float().view(-1, 1, 8, 8), torch.from_numpy(y)


def convolutions(width):
    def block(before, after):
        conv = nn.Conv2d(before, after, 3, padding=1, bias=False)
        return conv, nn.BatchNorm2d(after), nn.ReLU()

    return nn.Sequential(
        *block(1, width),
        *(*block(width, width), nn.MaxPool2d(2)),
        *(*block(width, 2 * width), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(8 * width, 10)),
    )


def fitted(model, x, y, epochs, pruner=None):
    """EB-Train's loop, as anyone would write it: the epochs it took."""
    detector = gebt.MaskDistanceDetector(0.1, **EB_TRAIN)
    how = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4}
    optimizer = torch.optim.SGD(model.parameters(), **how)
    for epoch in range(1, epochs + 1):
        model.train()
        for rows in torch.randperm(len(x)).split(60):
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            if pruner:
                pruner.after_backward()
            optimizer.step()
        if pruner and detector.update({"channels": pruner.masks()}).settled:
            return epoch
    return epochs


def test_half_the_channels_of_a_cnn_leave_early_in_a_users_own_loop():
    torch.manual_seed(2)
    x, y = digits()
    order = torch.randperm(len(x))
    seen, unseen = order[:600], order[600:]

    def accuracy(model):
        with torch.no_grad():
            right = model.eval()(x[unseen]).argmax(1) == y[unseen]
        return 100 * right.float().mean().item()

    dense, searched = convolutions(24), convolutions(24)
    fitted(dense, x[seen], y[seen], 14)
    pruner = ChannelPruner(searched, 0.5)
    drawn = fitted(searched, x[seen], y[seen], 160, pruner)
    assert drawn < 14
    small = gebt.drop_channels(searched, pruner.masks())
    fitted(small, x[seen], y[seen], 14 - drawn)
    sizes = [sum(p.numel() for p in m.parameters()) for m in (dense, small)]
    assert sizes[1] < 0.6 * sizes[0]
    # Of 1,197 images six are half a percent; `gebt reproduce eb-train` has more seeds.
    assert accuracy(small) >= accuracy(dense) - 1 and accuracy(dense) > 95


def test_what_is_frozen_stays_so(graph):
    model = GCN(graph.num_features, 8, 3, norm="batch")
    gebt.freeze(model)
    small = drop_channels(model, ChannelPruner(model, 0.5).masks())
    learns = {name: p.requires_grad for name, p in model.named_parameters()}
    assert {name: p.requires_grad for name, p in small.named_parameters()} == learns
    assert True in learns.values() and False in learns.values()


def test_single_weights_masks_are_not_of_channels(graph):
    model = GCN(graph.num_features, 8, 3, norm="batch")
    with pytest.raises(ValueError, match="`mask_weights` is of single weights"):
        gebt.find_ticket(model, graph, unit="channel", mask_weights=True)
