"""Tickets of links and whole channels: drawn, kept in files, opened, slimmed."""

import warnings

import pytest
import torch

import gebt
from gebt import GraphSparsifier, ModelPruner
from gebt.models import GCN
from gebt.prune.channels import ChannelPruner, drop_channels


def model_for(graph, norm="batch"):
    torch.manual_seed(4)
    return GCN(graph.num_features, 12, 3, layers=3, norm=norm)


def drawn(graph, model=None, **options):
    given = {"graph_ratio": 0.3, "weight_ratio": 0.5, "epochs": 60, "unit": "channel"}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the masks did not settle")
        return gebt.find_ticket(model or model_for(graph), graph, **given | options)


def test_links_and_channels_are_drawn_together_by_eb_trains_rule(graph):
    ticket = drawn(graph)
    channels = torch.cat([*ticket.channel_masks.values()])
    assert int(channels.sum()) == 12 and channels.numel() == 24
    assert ticket.links_kept == 468 - int(0.3 * 468)
    assert ticket.options["weight_ratio"] == 0.5 and ticket.options["unit"] == "channel"
    rule = ticket.options["detector"]
    assert (rule["scale"], rule["window"], rule["threshold"]) == ("size", 5, 0.1)
    assert ticket.distances[-1].keys() == {"graph", "channels", "joint"}
    assert "12 of 24 channels" in repr(ticket) and "weights" not in repr(ticket)


def test_a_slimmed_ticket_is_the_masked_one_and_is_trained_on(graph, tmp_path):
    ticket = drawn(graph)
    ticket.save(tmp_path / "t.safetensors")
    ticket = gebt.Ticket.load(tmp_path / "t.safetensors")
    model = model_for(graph)
    masked = ticket.open(model, graph)
    small, alone = ticket.slim(model, masked)
    outputs = [
        m.eval()(at.x, at.adjacency) for m, at in ((model, masked), (small, alone))
    ]
    assert torch.allclose(*outputs, atol=1e-5)
    widths = [int(mask.sum()) for mask in ticket.channel_masks.values()]
    assert small.arguments["hidden"] == widths
    gebt.train(model, masked, epochs=3)
    fast, _ = gebt.compact(model, masked)
    assert all(a <= b for a, b in zip(fast.arguments["hidden"], widths, strict=True))
    assert gebt.train(small, alone, epochs=3).best_epoch


def test_weights_of_an_earlier_pruning_stay_gone_and_forbid_slimming(graph):
    model = model_for(graph)
    keep = ModelPruner(model, 0.2).masks()
    ticket = drawn(graph, model, keep=keep)
    opened = ticket.open(model, graph)
    for name, mask in keep.items():
        assert not (opened.weight_masks[name] & ~mask).any()
    with pytest.raises(ValueError, match="this one has weights' masks, too"):
        ticket.slim(model, opened)
    plain = drawn(graph, unit="element")
    with pytest.raises(ValueError, match="by its masks of channels alone.*has none"):
        plain.slim(model, opened)


def test_channels_as_a_group_of_ones_own_choice(graph):
    model = model_for(graph)
    groups = [
        GraphSparsifier(graph, prune_ratio=0.2),
        ChannelPruner(model, 0.25, pull=0.01),
    ]
    ticket = drawn(graph, model, groups=groups)
    assert ticket.options["weight_ratio"] == 0.25
    small = drop_channels(model, ticket.channel_masks)
    assert sum(small.arguments["hidden"]) == 18


def test_a_model_without_norms_says_what_ranks_its_units(graph):
    with pytest.warns(
        UserWarning, match="ranked layer by layer, by the norms of their"
    ):
        ticket = drawn(graph, model_for(graph, "none"))
    assert [int(m.sum()) for m in ticket.channel_masks.values()] == [6, 6]


def test_a_file_with_masks_that_no_layer_has_is_refused_when_opened(graph):
    ticket = drawn(graph)
    ticket.masks["channels"]["7"] = torch.ones(3, dtype=torch.bool)
    with pytest.raises(ValueError, match="Are they of another model"):
        ticket.open(model_for(graph), graph)
