"""Saved and loaded bit for bit, opened as asked, refused if unfit."""

import io
import pickle
from copy import deepcopy
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from helpers import header_of, same
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

import gebt
from gebt import Ticket, find_ticket
from gebt.files import write_tensors
from gebt.learn.training import copy_state, train
from gebt.models import GAT, GCN, GIN, GraphSAGE, ResGCN, build_model


def built(graph, hidden=8, seed=1):
    torch.manual_seed(seed)
    return GCN(graph.num_features, hidden, 3)


@pytest.fixture
def ticket(graph):
    return find_ticket(built(graph), graph, graph_ratio=0.3, weight_ratio=0.6)


@pytest.fixture
def saved(ticket, tmp_path):
    ticket.save(tmp_path / "t.safetensors")
    return tmp_path / "t.safetensors"


def without_nan(distances):
    """With None for NaN, which is not equal to itself."""
    return [{k: v if v == v else None for k, v in d.items()} for d in distances]


@pytest.mark.parametrize("ratios", [(0.3, 0.6), (0.3, 0.0), (0.0, 0.6)])
@pytest.mark.parametrize("unit", ["element", "row"])
def test_a_ticket_survives_its_file_bit_for_bit(graph, tmp_path, ratios, unit):
    model = built(graph)
    ticket = find_ticket(
        model, graph, graph_ratio=ratios[0], weight_ratio=ratios[1], unit=unit, seed=5
    )
    ticket.save(tmp_path / "deep" / "t.safetensors")
    again = Ticket.load(tmp_path / "deep" / "t.safetensors")
    for field in fields(Ticket):
        ours, theirs = getattr(ticket, field.name), getattr(again, field.name)
        if field.name in ("masks", "scores"):
            assert ours.keys() == theirs.keys()
            assert all(same(ours[group], theirs[group]) for group in ours)
        elif field.name in ("weights", "first_weights"):
            assert same(ours, theirs)
        elif field.name == "distances":
            assert isinstance(theirs, tuple)
            assert without_nan(ours) == without_nan(theirs)
            # NaN, before there is an earlier mask, comes back as NaN.
            assert theirs[0]["joint"] != theirs[0]["joint"]
        else:
            assert ours == theirs
    assert (again.links_kept, again.weights_kept) == (
        ticket.links_kept,
        ticket.weights_kept,
    )


def test_a_loaded_ticket_opens_like_the_drawn_one(graph, ticket, saved):
    results = []
    for one in (ticket, Ticket.load(saved)):
        model = built(graph, seed=9)
        small = one.open(model, graph)
        results.append(model.eval()(small.x, small.adjacency))
    assert torch.equal(*results)


@pytest.mark.parametrize("kind", [GAT, GIN, GraphSAGE, ResGCN])
def test_a_ticket_of_any_model_is_rebuilt_from_its_file_alone(graph, tmp_path, kind):
    torch.manual_seed(1)
    model = kind(graph.num_features, 8, 3)
    ticket = find_ticket(model, graph, weight_ratio=0.5, epochs=60)
    small = ticket.open(model, graph)
    expected = model.eval()(small.x, small.adjacency)
    ticket.save(tmp_path / "t.safetensors")
    again = Ticket.load(tmp_path / "t.safetensors")
    rebuilt = build_model(dict(again.model))
    small = again.open(rebuilt, graph)
    assert torch.equal(rebuilt.eval()(small.x, small.adjacency), expected)


def test_the_file_is_safetensors_and_its_header_says_it_all(graph, ticket, saved):
    assert "masks/graph/link" in load_file(saved)
    found = header_of(saved)
    assert found["kind"] == "ticket"
    assert found["dataset"]["fingerprint"] == graph.fingerprint()
    assert found["options"]["graph_ratio"] == 0.3
    assert found["options"]["task"] == {"name": "node-classification"}
    assert found["options"]["decay"] == "first"
    assert found["options"]["detector"]["threshold"] == 0.1
    assert found["seed"] == 0
    assert found["versions"].keys() == {"gebt", "torch", "python"}
    assert found["distances"] == without_nan(ticket.distances)
    assert found["model"]["class"] == "GCN"


def test_nothing_is_unpickled(saved, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a file of gebt must not be unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    Ticket.load(saved)
    bomb = io.BytesIO()
    monkeypatch.undo()
    torch.save({"masks/graph/link": torch.ones(3)}, bomb)
    path = tmp_path / "pickled.pt"
    path.write_bytes(bomb.getvalue())
    with pytest.raises(ValueError, match="not a readable ticket file"):
        Ticket.load(path)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_refused(saved, share):
    content = saved.read_bytes()
    saved.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match="truncated or corrupt.*Write it again"):
        Ticket.load(saved)


def test_random_bytes_are_refused(tmp_path):
    draw = torch.Generator().manual_seed(0)
    for size in (7, 8, 100, 5000):
        noise = torch.randint(0, 256, (size,), generator=draw).tolist()
        path = tmp_path / f"{size}.safetensors"
        path.write_bytes(bytes(noise))
        with pytest.raises(ValueError, match="not a readable ticket file"):
            Ticket.load(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no ticket file at .*nowhere"):
        Ticket.load(tmp_path / "nowhere")


def test_another_kind_of_file_is_refused(graph, tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"weight": torch.ones(2)}, path)
    with pytest.raises(ValueError, match="not a gebt ticket.*kind = None"):
        Ticket.load(path)
    gebt.save_compact(path, *gebt.compact(built(graph), graph))
    with pytest.raises(ValueError, match="not a gebt ticket.*'compact model'"):
        Ticket.load(path)


def rewritten(path, *, drop=None, **changes):
    """The file again, without one tensor or with header entries replaced."""
    tensors = load_file(path)
    if drop:
        del tensors[drop]
    entries = {k: v for k, v in (header_of(path) | changes).items() if v is not None}
    write_tensors(path, tensors, entries)


def test_another_format_is_refused(saved):
    rewritten(saved, format=99)
    with pytest.raises(
        ValueError, match="ticket format 99, this version of gebt reads 2"
    ):
        Ticket.load(saved)


@pytest.mark.parametrize("name", ["masks/graph/link", "scores/graph/link"])
def test_a_missing_tensor_is_refused(saved, name):
    rewritten(saved, drop=name)
    with pytest.raises(ValueError, match=f"not a whole ticket: it lacks '{name}'"):
        Ticket.load(saved)


def test_a_missing_header_entry_is_refused(saved):
    rewritten(saved, seed=None)
    with pytest.raises(ValueError, match="not a whole ticket: it lacks 'seed'"):
        Ticket.load(saved)


class Largest(TorchDispatchMode):
    """Of the tensors that are made inside and have memory, the entries of one."""

    entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.device.type != "meta":
            self.entries = max(self.entries, out.numel())
        return out


W = "layers.1.weight"


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        (
            "masks/graph/link",
            lambda t: t[1:],
            r"'scores/graph/link' must be floating of shape \(467",
        ),
        (
            "masks/graph/link",
            lambda t: t.float(),
            "'masks/graph/link' must be boolean of shape",
        ),
        (
            "masks/graph/link",
            lambda t: t[None],
            "'masks/graph/link' must be boolean of shape",
        ),
        (
            "scores/graph/link",
            lambda t: t.int(),
            "'scores/graph/link' must be floating",
        ),
        (
            "scores/graph/link",
            lambda t: t * torch.nan,
            "'scores/graph/link' must be finite",
        ),
        (f"masks/weights/{W}", lambda t: t.int(), "must be boolean of shape"),
        (f"masks/weights/{W}", lambda t: t.t(), r"boolean of shape \(8, 3\)"),
        (f"weights/{W}", lambda t: t.double(), f"first_weights/{W}' must be like weig"),
        (f"first_weights/{W}", lambda t: t.double(), "must be like weights/layers.1.w"),
        (f"first_weights/{W}", lambda t: None, "must be like weights/layers.1.weight"),
        (f"weights/{W}", lambda t: None, "one of the ticket's weights"),
        ("masks/weights/x", lambda t: torch.ones(1) > 0, "one of the ticket's weights"),
    ],
)
def test_tensors_of_another_kind_or_size_are_refused(saved, name, change, words):
    tensors = load_file(saved)
    if (tensor := change(tensors.pop(name, None))) is not None:
        tensors[name] = tensor
    write_tensors(saved, tensors, header_of(saved))
    with pytest.raises(ValueError, match=f"t.safetensors is not a whole .*{words}"):
        Ticket.load(saved)


def with_field(entries, place, value):
    """The header with one field, ``a.b.c``, set to a value."""
    entries = deepcopy(entries)
    *parents, name = place.split(".")
    inside = entries
    for parent in parents:
        inside = inside[parent]
    inside[name] = value
    return entries


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        ("epoch", -1, "`epoch` must be a whole number from 0"),
        ("epoch", True, "`epoch` must be a whole number, got True"),
        ("settled", 1, "`settled` must be true or false"),
        ("share_untouched", 1.5, "`share_untouched` must be a finite number at least"),
        ("distances", {}, "`distances` must be a list of objects"),
        ("distances", [{"graph": "x"}], r"`distances\[0\].graph` must be a finite"),
        ("options", None, "`options` must be an object"),
        ("options.epochs", "many", "`options.epochs` must be a whole number, got 'ma"),
        ("options.epochs", 0, "`options.epochs` must be a whole number from 1"),
        ("options.lr", None, "`options.lr` must be a finite number at least 0, got N"),
        ("options.weight_decay", -1, "`options.weight_decay` must be"),
        ("options.decay", "none", "`options.decay` must be one of first, all"),
        ("options.graph_ratio", 2, "`options.graph_ratio` must be"),
        ("options.detector", 3, "`options.detector` must be an object"),
        ("options.detector.threshold", [], "`options.detector.threshold` must be"),
        ("options.task", 3, "`options.task` must be text"),
        ("options.task", {"name": 3}, "`options.task.name` must be text"),
        ("options.task", {"name": "x", "k": "y"}, "`options.task.k` must be a whole"),
        ("options.penalty", 3, "`options.penalty` must be text"),
        ("seed", 2**64 - 1, "`seed` must be a whole number from"),
        ("seed", 0.5, "`seed` must be a whole number"),
        ("dataset.name", None, "`dataset.name` must be text"),
        ("dataset.fingerprint", 3, "`dataset.fingerprint` must be text"),
        ("versions.gebt", 3, "`versions.gebt` must be text"),
        ("model.class", ["GCN"], "`model.class` must be text"),
        ("model.arguments", [1], "cannot rebuild a GCN: its content must be an object"),
        ("model.arguments.hidden", 10**11, "`hidden` must be a whole number from 1"),
        ("model.arguments.hidden", 10**6, r"tensors differ: .*\(24, 1000000\)"),
        ("model.arguments.hidden", [1] * 99, "`hidden` must be at most 4 widths"),
        ("model.arguments.hidden", "8", "`hidden` must be a whole number, got '8'"),
        ("model.arguments.dropout", "0", "`dropout` must be a finite number"),
        ("model.arguments.dropout", 2, r"`dropout` must lie in \[0, 1\), got 2"),
        ("model.arguments.inner_bias", 1, "`inner_bias` must be true or false"),
        ("model.arguments.wings", 2, "takes num_features, .*, not 'wings'"),
    ],
)
def test_a_header_field_of_another_type_or_range_is_named(saved, place, value, words):
    write_tensors(saved, load_file(saved), with_field(header_of(saved), place, value))
    with pytest.raises(ValueError, match=f"t.safetensors is not a whole .*{words}"):
        Ticket.load(saved)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("options.task", "node-classification"),
        ("options.task", {"name": "link-prediction", "k": 3, "width": 8}),
        ("options.task", {"name": "mine", "share": 0.5, "of": None}),
        ("options.penalty", None),
        ("options.penalty", "ADMM(rho=0.001)"),
        ("options.penalty", {"name": "ADMM", "rho": 0.001}),
        ("options.of_a_later_version", [1]),
        ("distances", []),
        ("seed", -5),
        ("model", {"class": "Mine", "arguments": None}),
        ("model", {"class": "adapted GCN", "arguments": None}),
        ("model", {"class": "Mine", "arguments": {"anything": [1]}}),
    ],
)
def test_what_tickets_may_hold_is_read(saved, place, value):
    written = with_field(header_of(saved), place, value)
    write_tensors(saved, load_file(saved), written)
    ticket = Ticket.load(saved)
    found = {name: getattr(ticket, name) for name in ("options", "seed", "model")}
    assert found == {name: written[name] for name in found}


def test_a_ticket_of_ones_own_class_that_has_a_name_of_gebts_is_read(graph, tmp_path):
    class GCN(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.arguments = object()  # its own affair
            self.map = torch.nn.Linear(24, 3)

        def forward(self, x, adjacency):
            return adjacency @ self.map(x)

    model = GCN()
    find_ticket(model, graph).save(tmp_path / "t")
    ticket = Ticket.load(tmp_path / "t")
    assert ticket.model == {"class": "GCN", "arguments": None}
    ticket.open(GCN(), graph)
    with pytest.raises(ValueError, match="cannot rebuild a model of class 'GCN'"):
        build_model(dict(ticket.model))


def test_a_mask_may_be_of_any_parameter(saved):
    tensors = load_file(saved)
    tensors["masks/weights/layers.0.bias"] = torch.ones(8, dtype=torch.bool)
    write_tensors(saved, tensors, header_of(saved))
    assert "layers.0.bias" in Ticket.load(saved).weight_masks


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_tickets_numbers_may_be_of_any_floating_dtype(saved, dtype):
    tensors = load_file(saved).items()
    tensors = {n: t.to(dtype) if t.is_floating_point() else t for n, t in tensors}
    write_tensors(saved, tensors, header_of(saved))
    ticket = Ticket.load(saved)
    assert ticket.link_score.dtype == dtype
    assert {t.dtype for t in ticket.weights.values()} == {dtype}


def test_a_claimed_width_allocates_nothing(saved):
    """Not even one that a machine's memory could hold."""
    hidden = with_field(header_of(saved), "model.arguments.hidden", [2**20])
    write_tensors(saved, load_file(saved), hidden)
    with Largest() as seen, pytest.raises(ValueError, match="tensors differ"):
        Ticket.load(saved)
    assert 0 < seen.entries < 2**16


def test_equal_tickets_make_equal_files(ticket, saved, tmp_path):
    ticket.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == saved.read_bytes()


def test_saving_replaces_a_file_and_leaves_no_other(ticket, saved):
    replace(ticket, seed=42).save(saved)
    assert Ticket.load(saved).seed == 42
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]


def test_opening_prunes_the_graph_and_the_model(graph, ticket):
    model = built(graph, seed=9)
    small = ticket.open(model, graph)
    assert small.links_kept == ticket.links_kept == 468 - int(0.3 * 468)
    assert small.num_links == graph.num_links
    assert ticket.link_mask[small.link].all()
    for name, weight in ticket.weights.items():
        mask = ticket.weight_masks.get(name, torch.ones_like(weight, dtype=torch.bool))
        assert torch.equal(model.state_dict()[name], weight * mask)
    kept = sum(int(model.get_parameter(n).count_nonzero()) for n in ticket.weight_masks)
    assert kept == ticket.weights_kept


def test_opening_changes_neither_the_graph_nor_the_ticket(graph, ticket):
    fingerprint, count = graph.fingerprint(), graph.links_kept
    weights = {n: w.clone() for n, w in ticket.weights.items()}
    model = built(graph)
    small = ticket.open(model, graph)
    gebt.train(model, small, keep=ticket.weight_masks, epochs=3)
    assert (graph.fingerprint(), graph.links_kept) == (fingerprint, count)
    assert same(weights, ticket.weights)


@pytest.mark.parametrize("weights", ["inherit", "rewind", "fresh"])
def test_the_weights_are_the_ones_asked_for(graph, ticket, weights):
    model = built(graph, seed=9)
    source = {
        "inherit": ticket.weights,
        "rewind": ticket.first_weights,
        "fresh": copy_state(built(graph, seed=ticket.seed + 1)),
    }
    ticket.open(model, graph, weights=weights)
    expected = {
        name: w * ticket.weight_masks.get(name, True)
        for name, w in source[weights].items()
    }
    assert same(copy_state(model), expected)


def test_the_links_are_learned_or_binary(make_data):
    data = make_data()
    low, high = data.edge_index.sort(dim=0).values
    data.edge_weight = ((low * 31 + high) % 5 + 1).float()
    graph = gebt.Graph.from_pyg(data)
    ticket = find_ticket(built(graph), graph, graph_ratio=0.3)
    stays = ticket.link_mask[graph.link]
    plain = graph.adjacency.value[stays]
    binary = ticket.open(built(graph), graph, links="binary")
    assert torch.equal(binary.adjacency.value, plain)
    learned = ticket.open(built(graph), graph, links="learned")
    factor = ticket.link_score[graph.link[stays]]
    assert torch.equal(learned.adjacency.value, plain * factor)
    assert not torch.equal(learned.adjacency.value, plain)


def test_opening_on_another_graph_is_refused(graph, make_graph, ticket):
    other = replace(make_graph(seed=1), name="elsewhere")
    model = built(graph, seed=9)
    before = copy_state(model)
    with pytest.raises(
        ValueError,
        match="drawn on the graph 'blocks'.*'elsewhere'.*Load the graph it was",
    ):
        ticket.open(model, other)
    assert same(before, copy_state(model))
    with pytest.raises(ValueError, match="drawn on the graph 'blocks'"):
        ticket.open(model, ticket.open(built(graph), graph))


def test_opening_in_another_model_is_refused(graph, ticket):
    wide = built(graph, hidden=9)
    before = copy_state(wide)
    with pytest.raises(
        ValueError, match=r"drawn for a model GCN.*layers\.0\.weight.*9"
    ):
        ticket.open(wide, graph)
    assert same(before, copy_state(wide))
    with pytest.raises(ValueError, match="differ from this Linear's"):
        ticket.open(torch.nn.Linear(3, 3), graph)


def test_unknown_choices_are_refused(graph, ticket):
    with pytest.raises(ValueError, match="`weights` must be one of.*'reset'"):
        ticket.open(built(graph), graph, weights="reset")
    with pytest.raises(ValueError, match="`links` must be one of.*'ones'"):
        ticket.open(built(graph), graph, links="ones")


def test_a_flipped_bit_is_refused(saved):
    content = bytearray(saved.read_bytes())
    content[-5] ^= 0x40
    saved.write_bytes(content)
    with pytest.raises(ValueError, match="corrupt: its contents do not match"):
        Ticket.load(saved)


def test_fresh_weights_are_drawn_again_from_the_seed(graph, ticket):
    model = built(graph)
    model.load_state_dict(ticket.weights)  # as after the search itself
    ticket.open(model, graph, weights="fresh", seed=77)
    expected = built(graph, seed=77).layers[0].weight
    expected = expected * ticket.weight_masks["layers.0.weight"]
    assert torch.equal(model.layers[0].weight, expected)


def test_an_opened_ticket_carries_its_masks_and_weights_do_not_grow_back(graph, ticket):
    model = built(graph)
    small = ticket.open(model, graph)
    assert isinstance(small, gebt.Graph) and same(
        small.weight_masks, ticket.weight_masks
    )
    for given in (small, small.to("cpu"), small.reorder()):
        ticket.open(model, graph)
        train(model, given, epochs=3)
        for name, mask in ticket.weight_masks.items():
            assert not model.get_parameter(name)[~mask].any()
    more = find_ticket(model, small, graph_ratio=0.5, weight_ratio=0.8, epochs=40)
    for name, mask in more.weight_masks.items():
        assert not (mask & ~ticket.weight_masks[name]).any()
    train(model, small, keep={}, epochs=3)  # asked for
    grown = [model.get_parameter(n)[~m].any() for n, m in ticket.weight_masks.items()]
    assert any(grown)


def test_a_compact_graph_carries_no_masks_of_the_larger_model(graph, ticket):
    model = built(graph)
    small = ticket.open(model, graph)
    fast, compacted = gebt.compact(model, small)
    assert type(compacted) is gebt.Graph
    train(fast, compacted, epochs=1)


def test_a_ticket_of_format_2_still_opens(tmp_path):
    path = Path(__file__).parent / "format-2.safetensors"
    assert header_of(path)["format"] == 2
    old = Ticket.load(path)
    assert old.masks.keys() == {"graph", "weights"} and old.scores.keys() == {"graph"}
    assert old.masks["weights"].keys() == old.weights.keys() - {
        name for name in old.weights if "bias" in name
    }
    old.save(tmp_path / "t.safetensors")
    assert header_of(tmp_path / "t.safetensors")["format"] == 3
    new = Ticket.load(tmp_path / "t.safetensors")
    assert torch.equal(new.link_mask, old.link_mask)
    assert same(new.weight_masks, old.weight_masks)
    assert new.options == old.options and new.options["criterion"] == "learned"


def test_other_links_for_the_same_weights(ticket):
    every = torch.ones_like(ticket.link_mask)
    other = ticket.with_links(every)
    assert other.links_kept == every.numel() and (other.link_score == 1).all()
    assert same(other.weight_masks, ticket.weight_masks)
    assert ticket.links_kept < every.numel()
