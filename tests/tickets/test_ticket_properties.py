"""What is saved is what is loaded, for any groups, names and numbers."""

import tempfile
from pathlib import Path

import pytest
import torch
from helpers import same
from hypothesis import given, settings
from hypothesis import strategies as st

from gebt import Fit, MaskDistanceDetector, Search, Ticket

pytestmark = pytest.mark.slow

# What a parameter may be called: torch forbids a dot within, joins with dots.
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
GROUPS = st.sampled_from(["units", "heads", "a group"])
OPTIONS = {
    **{"task": "node-classification", "graph_ratio": 0.2, "weight_ratio": 0.5},
    **Fit().to_dict(),
    **Search().to_dict(),
    "detector": MaskDistanceDetector().options(),
}
FINITE = st.floats(0, 1e6)
SHAPES = st.lists(st.integers(0, 3), min_size=1, max_size=3)


@st.composite
def tensors(draw, shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    return torch.rand(shape, generator=generator).mul(2).sub(1).to(dtype)


@st.composite
def tickets(draw):
    floating = st.sampled_from([torch.float32, torch.float64, torch.bfloat16])
    shapes = draw(st.dictionaries(NAMES, SHAPES, min_size=1, max_size=3))
    weights, first = (
        {name: draw(tensors(shape)) for name, shape in shapes.items()} for _ in range(2)
    )
    links = draw(st.integers(1, 9))
    masks = {"graph": {"link": draw(tensors([links])) > 0}}
    if draw(st.booleans()):
        masks["weights"] = {name: w > 0 for name, w in weights.items()}
    for group in draw(st.sets(GROUPS)):
        masks[group] = {draw(NAMES): draw(tensors(draw(SHAPES))) > 0}
    epochs = draw(st.integers(1, 3))
    distances = [
        {"graph": draw(FINITE | st.just(float("nan"))), "joint": draw(FINITE)}
        for _ in range(epochs)
    ]
    return Ticket(
        masks=masks,
        scores={"graph": {"link": draw(tensors([links], draw(floating)))}},
        weights=weights,
        first_weights=first,
        epoch=epochs,
        settled=draw(st.booleans()),
        share_untouched=draw(st.floats(0, 1)),
        distances=tuple(distances),
        options=OPTIONS,
        seed=draw(st.integers(-(2**63), 2**64 - 2)),
        dataset={"name": draw(NAMES), "fingerprint": "f"},
        model={"class": "Mine", "arguments": None},
        versions={"gebt": "0", "torch": "0", "python": "0"},
    )


@settings(max_examples=30)
@given(tickets())
def test_a_ticket_comes_back_as_it_was_saved(ticket):
    with tempfile.TemporaryDirectory() as folder:
        ticket.save(Path(folder) / "t.safetensors")
        found = Ticket.load(Path(folder) / "t.safetensors")
    for part in ("weights", "first_weights"):
        assert same(getattr(found, part), getattr(ticket, part))
    for part in ("masks", "scores"):
        ours, theirs = getattr(found, part), getattr(ticket, part)
        assert ours.keys() == theirs.keys()
        assert all(same(ours[group], theirs[group]) for group in ours)
    assert repr(found.distances) == repr(ticket.distances)
    for name in ("epoch", "settled", "share_untouched", "options", "seed", "dataset"):
        assert getattr(found, name) == getattr(ticket, name)
    assert (found.model, found.versions) == (ticket.model, ticket.versions)
