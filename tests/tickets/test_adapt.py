"""One ticket, many tasks: nothing is forgotten, files come back, others are refused."""

from dataclasses import fields, replace

import pytest
import torch
from helpers import same
from torch import nn

from gebt import (
    Adaptation,
    AmongClasses,
    adapt_ticket,
    checkpoints,
    compact,
    evaluate,
    find_ticket,
    split_classes,
    train,
)
from gebt.models import GAT, GCN, GIN, GraphSAGE, ResGCN
from gebt.models.heads import head_of
from gebt.models.recipe import CLASSES


@pytest.fixture
def graph(make_graph):
    return make_graph(nodes=180, classes=6)


def ticket_of(graph, model=None, task=None, seed=0):
    torch.manual_seed(seed)
    task = task or AmongClasses([0, 1])
    model = model or GCN(graph.num_features, 8, len(task.classes))
    how = {"graph_ratio": 0.3, "weight_ratio": 0.4, "epochs": 15, "seed": seed}
    return find_ticket(model, graph, task=task, **how)


def opened(adapted, ticket, graph):
    model, small = adapted.open(ticket, graph)
    with torch.no_grad():
        return model(small.x, small.adjacency)


def same_adaptation(one, other):
    for field in fields(Adaptation):
        ours, theirs = getattr(one, field.name), getattr(other, field.name)
        if field.name in ("masks", "own"):
            assert same(ours, theirs)
        elif field.name == "links":
            assert torch.equal(ours, theirs)
        else:
            assert ours == theirs
    return True


def test_nothing_is_forgotten_bit_for_bit(graph, tmp_path):
    first, second, third = split_classes(graph, 3, seed=4)
    ticket = ticket_of(graph, task=first)
    before = ticket.fingerprint()
    learned = adapt_ticket(ticket, graph, second, epochs=20, seed=1, link_groups=4)
    said = opened(learned, ticket, graph)
    learned.save(tmp_path / "second.safetensors")
    adapt_ticket(ticket, graph, third, epochs=20, seed=2, unit="element")
    assert ticket.fingerprint() == before
    assert torch.equal(opened(learned, ticket, graph), said)
    again = Adaptation.load(tmp_path / "second.safetensors")
    assert torch.equal(opened(again, ticket, graph), said)


@pytest.mark.parametrize("unit", ["row", "column", "element", None])
@pytest.mark.parametrize("binary", [False, True])
def test_it_opens_at_the_score_it_was_learned_at_and_survives_its_file(
    graph, tmp_path, unit, binary
):
    ticket, task = ticket_of(graph), AmongClasses([5, 2, 3])
    how = {"unit": unit, "binary": binary, "link_groups": 3, "epochs": 12, "lr": 0.2}
    learned = adapt_ticket(ticket, graph, task, **how)
    model, small = learned.open(ticket, graph)
    assert evaluate(model, small, "val", task=task) == learned.val
    assert learned.classes == (5, 2, 3)
    if binary and unit:
        [mask] = learned.masks.values()
        assert mask.dtype == torch.bool
        assert unit == "column" or not mask.all()
    learned.save(tmp_path / "a.safetensors")
    assert same_adaptation(Adaptation.load(tmp_path / "a.safetensors"), learned)


def test_what_is_stored_is_counted(graph):
    ticket = ticket_of(graph)
    head = 4 * (8 * 3 + 3)
    sizes = {"row": 4 * 24, "column": 4 * 8, "element": 4 * 24 * 8}
    for unit, size in sizes.items():
        how = {"unit": unit, "epochs": 2, "link_groups": 5}
        task = AmongClasses([1, 2, 3])
        soft = adapt_ticket(ticket, graph, task, **how)
        assert soft.stored_bytes == size + 4 * 5 + head
        bits = adapt_ticket(ticket, graph, task, binary=True, **how)
        assert bits.stored_bytes == size // 32 + 4 * 5 + head
    probe = adapt_ticket(ticket, graph, task, unit=None, epochs=2)
    assert probe.stored_bytes == head


def test_weights_that_the_ticket_drops_stay_dropped(graph):
    ticket = ticket_of(graph)
    learned = adapt_ticket(ticket, graph, AmongClasses([2, 4]), epochs=10)
    model, small = learned.open(ticket, graph)
    weight = model.layers[0].weight
    gone = ~ticket.weight_masks["layers.0.weight"]
    assert gone.any() and not weight[gone].any()
    factor = learned.masks["layers.0.weight"]
    expected = ticket.weights["layers.0.weight"] * ~gone * factor
    assert torch.equal(weight, expected)
    assert torch.equal(model.layers[0].bias, ticket.weights["layers.0.bias"])
    assert small.links_kept == ticket.links_kept
    fast, less = compact(model, small)
    found = fast(less.x, less.adjacency)
    torch.testing.assert_close(found, model(small.x, small.adjacency))


def test_channels_that_the_ticket_drops_compute_nothing(graph):
    torch.manual_seed(0)
    model = GCN(24, 8, 2, layers=3, residual=True, norm="batch")
    how = {"unit": "channel", "graph_ratio": 0.3, "weight_ratio": 0.5, "epochs": 40}
    ticket = find_ticket(model, graph, task=AmongClasses([0, 1]), **how)
    learned = adapt_ticket(ticket, graph, AmongClasses([2, 3, 4]), epochs=4)
    model, small = learned.open(ticket, graph)
    assert evaluate(model, small, "val", task=AmongClasses([2, 3, 4])) == learned.val
    for mask, norm in zip(ticket.channel_masks.values(), model.norms, strict=True):
        assert not mask.all()
        assert not norm.weight[~mask].any() and not norm.bias[~mask].any()


def test_it_fits_better_than_a_head_alone(graph):
    ticket, task, losses = ticket_of(graph), AmongClasses([1, 2, 4]), {}
    for unit, groups in (("row", 8), (None, 0)):
        told = []
        how = {
            "unit": unit,
            "link_groups": groups,
            "epochs": 60,
            "on_epoch": told.append,
        }
        learned = adapt_ticket(ticket, graph, task, **how)
        losses[unit] = sum(epoch.loss for epoch in told[-10:])
        assert learned.val > 100 / 3
    assert losses["row"] < losses[None]
    assert not learned.masks and not learned.links.numel()


MODELS = [
    (GIN, {}),
    (GraphSAGE, {}),
    (GCN, {"layers": 3, "residual": True, "norm": "batch"}),
    (GAT, {"heads": 2}),
    (ResGCN, {"layers": 3}),
]


@pytest.mark.parametrize(("kind", "options"), MODELS)
def test_every_model_has_a_head_of_its_own_for_each_task(graph, kind, options):
    torch.manual_seed(0)
    arguments = {"num_features": 24, "hidden": 8, "num_outputs": 2, **options}
    model = kind(**arguments)
    ticket = ticket_of(graph, model)
    head = head_of(ticket.model)
    assert head and head < {*model.state_dict()}
    task = AmongClasses([1, 2, 3])
    learned = adapt_ticket(ticket, graph, task, epochs=6, link_groups=2)
    opens, small = learned.open(ticket, graph)
    assert evaluate(opens, small, "val", task=task) == learned.val
    frozen = {*dict(opens.named_parameters())} - {*learned.masks, *head}
    state = {name: opens.state_dict()[name] for name in frozen}
    masks = {n: ticket.weight_masks[n] for n in frozen if n in ticket.weight_masks}
    assert not masks  # whatever can be pruned has factors
    assert same(state, {name: ticket.weights[name] for name in frozen})
    assert {*learned.own} - head == {name for name, _ in opens.named_buffers()}


def test_weights_that_were_trained_on_are_another_ticket(graph):
    task = AmongClasses([0, 1])
    ticket = ticket_of(graph, task=task)
    model = GCN(graph.num_features, 8, 2)
    small = ticket.open(model, graph)
    train(model, small, task=task, epochs=30)
    trained = ticket.with_weights(model)
    assert same(trained.weights, model.state_dict())
    assert trained.fingerprint() != ticket.fingerprint()
    with pytest.raises(ValueError, match="parameters differ from this GCN's"):
        ticket.with_weights(GCN(graph.num_features, 9, 2))


def test_a_ticket_keeps_its_fingerprint_in_a_file(graph, tmp_path):
    ticket = ticket_of(graph)
    ticket.save(tmp_path / "t.safetensors")
    assert type(ticket).load(tmp_path / "t.safetensors").fingerprint() == (
        ticket.fingerprint()
    )


class Broken(Exception):
    """The power is gone."""


def test_it_goes_on_bit_for_bit_from_a_checkpoint(graph, tmp_path):
    ticket, task = ticket_of(graph), AmongClasses([3, 4])

    def learn(on_epoch=None):
        how = {"epochs": 9, "seed": 5, "on_epoch": on_epoch}
        return adapt_ticket(ticket, graph, task, **how)

    def breaking(epoch):
        if epoch.epoch == 7:
            raise Broken

    unbroken = learn()
    with pytest.raises(Broken), checkpoints(tmp_path / "c", every=3):
        learn(breaking)
    with checkpoints(tmp_path / "c", every=3) as journal:
        assert journal.resumed
        assert same_adaptation(learn(), unbroken)


# --------------------------------------------------------------------- refusals


def test_masks_of_another_ticket_are_refused(graph):
    learned = adapt_ticket(ticket_of(graph), graph, AmongClasses([2, 3]), epochs=2)
    other = ticket_of(graph, seed=1)
    with pytest.raises(ValueError, match="the masks are for the ticket") as error:
        learned.open(other, graph)
    assert other.fingerprint()[:12] in str(error.value)
    assert learned.ticket[:12] in str(error.value) and "\n" not in str(error.value)


def test_another_graph_is_refused(graph, make_graph):
    ticket, task = ticket_of(graph), AmongClasses([2, 3])
    other = make_graph(nodes=180, classes=6, seed=1)
    with pytest.raises(ValueError, match="the ticket was drawn on the graph"):
        adapt_ticket(ticket, other, task)
    learned = adapt_ticket(ticket, graph, task, epochs=2)
    with pytest.raises(ValueError, match="the ticket was drawn on the graph"):
        learned.open(ticket, other)


class Headless(nn.Module):
    """Its constructor takes no number of outputs."""

    def __init__(self, width: int = 2):
        super().__init__()
        self.linear = nn.Linear(24, width)
        self.arguments = {"width": width}

    def forward(self, x, adjacency):
        return adjacency @ self.linear(x)


def test_a_model_that_cannot_get_another_head_is_refused(graph, monkeypatch):
    ticket, task = ticket_of(graph, Headless()), AmongClasses([2, 3])
    with pytest.raises(ValueError, match="cannot rebuild a model of class 'Headless'"):
        adapt_ticket(ticket, graph, task)
    monkeypatch.setitem(CLASSES, "Headless", Headless)
    ticket = ticket_of(graph, Headless())
    with pytest.raises(ValueError, match="a Headless has no `num_outputs`"):
        adapt_ticket(ticket, graph, task)


def test_options_that_cannot_be_are_refused(graph):
    ticket, task = ticket_of(graph), AmongClasses([2, 3])
    with pytest.raises(ValueError, match="`link_groups` must .*, got -1"):
        adapt_ticket(ticket, graph, task, link_groups=-1)
    with pytest.raises(ValueError, match="9 is none"):
        adapt_ticket(ticket, graph, AmongClasses([2, 9]))
    with pytest.raises(TypeError, match=r"adapt_ticket\(\): "):
        adapt_ticket(ticket, graph, task, epoch=3)


def test_a_file_that_is_none_is_refused(graph, tmp_path):
    ticket = ticket_of(graph)
    ticket.save(tmp_path / "t.safetensors")
    with pytest.raises(ValueError, match="not a gebt adaptation"):
        Adaptation.load(tmp_path / "t.safetensors")
    how = {"unit": "element", "binary": True, "epochs": 1}
    learned = adapt_ticket(ticket, graph, AmongClasses([2, 3]), **how)
    name = "layers.0.weight"
    wrong = replace(learned, masks={"layers.9.weight": learned.masks[name]})
    with pytest.raises(ValueError, match="no weight for the mask of 'layers.9.weight'"):
        wrong.open(ticket, graph)
    wrong = replace(learned, masks={name: learned.masks[name][:3]})
    with pytest.raises(ValueError, match="no weight for the mask of 'layers.0.weight'"):
        wrong.open(ticket, graph)
    wrong = replace(learned, masks={name: learned.masks[name].float() * torch.nan})
    wrong.save(tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="must be finite"):
        Adaptation.load(tmp_path / "a.safetensors")
