"""Fit and Search: checked at birth, to and from a dict, named one by one in a call."""

import json

import pytest

import gebt
from gebt import ADMM, Fit, MaskDistanceDetector, Search
from gebt.models import GCN


def test_options_come_back_from_what_a_file_holds():
    fit = Fit(epochs=7, lr=0.3, decay="all")
    search = Search(
        graph_lr=0.5,
        unit="row",
        alternate=True,
        penalty=ADMM(0.01, prune_ratio=0.2),
        detector=MaskDistanceDetector(0.2, watch="graph"),
    )
    found = json.loads(json.dumps({**fit.to_dict(), **search.to_dict(), "else": 1}))
    assert Fit.from_dict(found) == fit
    again = Search.from_dict(found)
    assert again.to_dict() == search.to_dict()
    assert again.detector.watch == ("graph",) and again.penalty.rho == 0.01


def test_a_ticket_tells_how_it_was_searched(graph):
    fit = Fit(epochs=40, lr=0.02)
    search = Search(graph_lr=0.01, scope="layer", criterion="degree")
    options = {"weight_ratio": 0.5, "fit": fit, "search": search}
    ticket = gebt.find_ticket(GCN(24, 8, 3), graph, **options)
    assert Fit.from_dict(ticket.options) == fit
    again = Search.from_dict(ticket.options)
    assert (again.graph_lr, again.scope) == (0.01, "layer")
    assert again.criterion == "degree" and again.detector.threshold == 0.1


def test_a_field_named_in_the_call_changes_that_one(graph):
    model = GCN(24, 8, 3)
    found = gebt.train(model, graph, fit=Fit(epochs=9, lr=0.5), epochs=2)
    assert len(found.history) == 2


@pytest.mark.parametrize("call", [gebt.train, gebt.find_ticket])
def test_an_unknown_option_is_named_with_the_nearest(graph, call):
    words = rf"{call.__name__}\(\): there is no option 'epoch'.*Did you mean 'epochs'"
    with pytest.raises(TypeError, match=words):
        call(GCN(24, 8, 3), graph, epoch=2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"epochs": 0}, "`epochs` must be at least 1, got 0"),
        ({"lr": 0.0}, "`lr` must be positive, got 0.0"),
        ({"weight_decay": -1.0}, "`weight_decay` must not be negative, got -1.0"),
        ({"decay": "last"}, "`decay` must be one of 'first', 'all', got 'last'"),
        ({"graph_lr": 0.0}, "`graph_lr` must be positive, got 0.0"),
        ({"scope": "all"}, "`scope` must be one of 'global', 'layer', got 'all'"),
        (
            {"unit": "cell"},
            "`unit` must be one of 'element', 'row', 'column', 'channel'",
        ),
    ],
)
def test_options_are_checked_at_birth(graph, options, words):
    with pytest.raises(ValueError, match=words):
        gebt.find_ticket(GCN(24, 8, 3), graph, **options)


def test_the_two_functions_take_at_most_ten_parameters():
    import inspect

    for call in (gebt.train, gebt.find_ticket):
        assert len(inspect.signature(call).parameters) <= 10
