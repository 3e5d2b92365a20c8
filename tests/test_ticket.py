"""gebt.ticket: saved and loaded bit for bit, opened as asked, refused if unfit."""

import io
import json
import pickle
import struct
from dataclasses import fields, replace

import pytest
import torch
from safetensors.torch import load_file, save_file

import gebt
from gebt import Ticket, find_ticket
from gebt.files import write_tensors
from gebt.models import GAT, GCN, GIN, GraphSAGE, ResGCN, build_model
from gebt.training import copy_state


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


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def header(path):
    content = path.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    return json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["gebt"])


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
        if isinstance(ours, torch.Tensor):
            assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)
        elif field.name in ("weight_masks", "weights", "first_weights"):
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
    assert "link_mask" in load_file(saved)
    found = header(saved)
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
    torch.save({"link_mask": torch.ones(3)}, bomb)
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
    entries = {k: v for k, v in (header(path) | changes).items() if v is not None}
    write_tensors(path, tensors, entries)


def test_another_format_is_refused(saved):
    rewritten(saved, format=99)
    with pytest.raises(
        ValueError, match="ticket format 99, this version of gebt reads 2"
    ):
        Ticket.load(saved)


@pytest.mark.parametrize("name", ["link_mask", "link_score"])
def test_a_missing_tensor_is_refused(saved, name):
    rewritten(saved, drop=name)
    with pytest.raises(ValueError, match=f"not a whole ticket: it lacks '{name}'"):
        Ticket.load(saved)


def test_a_missing_header_entry_is_refused(saved):
    rewritten(saved, seed=None)
    with pytest.raises(ValueError, match="not a whole ticket: it lacks 'seed'"):
        Ticket.load(saved)


def test_masks_and_scores_that_do_not_match_are_refused(ticket, tmp_path):
    for broken in (
        replace(ticket, link_mask=ticket.link_mask[1:]),
        replace(ticket, link_mask=ticket.link_mask.float()),
    ):
        broken.save(tmp_path / "t")
        with pytest.raises(ValueError, match="masks and scores that do not match"):
            Ticket.load(tmp_path / "t")


def test_a_missing_weight_is_refused_when_opened(graph, saved):
    rewritten(saved, drop="weights/layers.1.bias")
    with pytest.raises(ValueError, match=r"parameters differ.*layers\.1\.bias"):
        Ticket.load(saved).open(built(graph), graph)


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
