"""A user's model by name goes all the way that gebt's own go."""

import sys
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

import gebt
from gebt._registry import MODELS
from gebt.learn.tasks import task_for
from gebt.learn.training import new_model
from gebt.models import CLASSES, GCN, build_model, describe_model, register
from gebt.models.recipe import row
from gebt.prune.weights import prunable_weights

pytestmark = pytest.mark.usefixtures("own_registries")


class Mine(nn.Module):
    """Two hops without weights between them."""

    def __init__(self, num_features, hidden, num_outputs, *, dropout=0.5, hops=1):
        super().__init__()
        self.first = nn.Parameter(torch.randn(num_features, hidden) * 0.3)
        self.last = nn.Linear(hidden, num_outputs)
        self.drop = nn.Dropout(dropout)
        self.hops = hops
        self.scale = torch.tensor(0.5)  # in no file
        self.register_buffer("one", torch.ones(1), persistent=False)

    def forward(self, x, adjacency):
        h = x @ self.first
        for _ in range(self.hops):
            h = h + self.scale * self.one * (adjacency @ h)
        return self.last(self.drop(torch.relu(h)))


def outputs(model, graph):
    with torch.no_grad():
        return model.eval()(graph.x, graph.adjacency)


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
def test_a_users_model_goes_from_its_name_to_a_compact_file(
    make_graph, tmp_path, sparse
):
    fit = gebt.Fit(epochs=40, lr=0.02, decay="all")
    register("mine", partial(Mine, hops=2), hidden=12, dropout=0.25, fit=fit)
    graph = make_graph(sparse=sparse)
    recipe, task = MODELS.find("Mine"), task_for(graph)
    model = new_model(graph, recipe, task, seed=1)
    described = {
        "hops": 2,
        "num_features": 24,
        "hidden": 12,
        "num_outputs": 3,
        "dropout": 0.25,
    }
    assert describe_model(model) == {"class": "Mine", "arguments": described}
    again = new_model(graph, recipe, task, seed=1)
    assert torch.equal(model.first, again.first), "the seed's, as gebt's own"
    assert torch.equal(model.last.weight, again.last.weight)
    assert (
        len(gebt.train(model, graph, fit=recipe.fit, seed=1, task=task).history) == 40
    )
    assert gebt.evaluate(model, graph) > 60

    model = new_model(graph, recipe, task, seed=1)
    search = gebt.Search(scope="layer")
    ticket = gebt.find_ticket(
        model, graph, weight_ratio=0.5, fit=recipe.fit, search=search
    )
    ticket.save(tmp_path / "ticket")
    ticket = gebt.Ticket.load(tmp_path / "ticket")
    model = build_model(dict(ticket.model))
    small = ticket.open(model, graph)
    gebt.train(model, small, epochs=20)
    fast, smaller = gebt.compact(model, small)
    assert fast is not model and not fast.training
    assert smaller.links_kept == ticket.links_kept
    expected = outputs(model, small)
    assert torch.equal(outputs(fast, smaller), expected)
    cost = gebt.measure_cost(fast, smaller, repeats=1)
    assert cost.macs_paper is None and cost.macs_executed > 0

    gebt.save_compact(tmp_path / "compact", fast, smaller)
    state = torch.get_rng_state()
    again, loaded = gebt.load_compact(tmp_path / "compact")
    assert torch.equal(torch.get_rng_state(), state)
    assert type(again) is Mine and not again.training
    assert torch.equal(outputs(again, loaded), expected)
    assert describe_model(again) == describe_model(model)
    for name, weight in prunable_weights(again).items():
        assert torch.equal(weight == 0, ~ticket.weight_masks[name])


class Knowing(Mine):
    """One that knows how it shrinks and what it costs."""

    ignores_zeros = True

    def shrink(self):
        reads = (self.first != 0).any(dim=1)
        small = Knowing(int(reads.sum()), self.first.shape[1], 3)
        state = self.state_dict() | {"first": self.first[reads]}
        small.load_state_dict(state)
        return small.eval(), reads

    def paper_macs(self, nodes, entries, kept):
        return nodes * kept + entries


def test_a_model_that_knows_how_it_shrinks_is_asked(graph):
    register("knowing", Knowing)
    score = torch.ones(graph.num_links)
    score[:9] = 0
    graph = graph.keep_links(torch.ones_like(score, dtype=torch.bool), score)
    model = MODELS["knowing"].new(24, 3)
    with torch.no_grad():
        model.first[5:] = 0
    fast, small = gebt.compact(model, graph)
    assert small.num_features == 5
    assert small.links_kept == graph.num_links - 9
    torch.testing.assert_close(outputs(fast, small), outputs(model, graph))
    cost = gebt.measure_cost(fast, small, repeats=1)
    assert cost.macs_paper == 120 * (5 * 16 + 16 * 3) + small.adjacency.pattern.nnz
    with pytest.raises(ValueError, match="reads 7 features, but the graph has 24"):
        gebt.compact(Knowing(7, 4, 3), graph)


def test_a_model_of_no_name_is_compacted_and_saved_by_nobody(graph, tmp_path):
    with pytest.raises(ValueError, match="cannot compact a Mine: gebt knows .*GCN"):
        gebt.compact(Mine(24, 4, 3), graph)
    register("mine", Mine)
    by_hand, _ = gebt.compact(Mine(24, 4, 3), graph)
    with pytest.raises(ValueError, match="cannot save a Mine .*`arguments`"):
        gebt.save_compact(tmp_path / "compact", by_hand, graph)


def test_the_table_of_models_has_a_users():
    register("mine", Mine, about="two hops")
    assert list(MODELS)[-1] == "mine"
    words = "hidden 16, dropout 0.5, lr 0.01, weight decay 0.0005 on the first layer"
    expected = ["mine", "two hops", f"{words}, 100 epochs", "nothing"]
    assert row(MODELS["mine"]) == expected
    register("mine", Mine, about="another", source="a paper")
    assert row(MODELS["mine"])[1:3] == ["another", f"{words}, 100 epochs (a paper)"]


def test_registering_again_replaces():
    register("mine", Mine, hidden=4)

    class Other(Mine):
        pass

    Other.__name__ = "Mine"
    register("mine", Other, hidden=8)
    assert (MODELS["mine"].build, MODELS["mine"].hidden) == (Other, 8)
    assert CLASSES["Mine"] is Other
    arguments = MODELS["mine"].arguments(24, 3)
    assert type(build_model({"class": "Mine", "arguments": arguments})) is Other


@pytest.mark.parametrize("name", ["gcn", "resgcn14"])
@pytest.mark.parametrize("kind", [Mine, GCN])
def test_names_that_are_gebts_own_are_refused(name, kind):
    before = MODELS[name]
    with pytest.raises(ValueError, match=f"the model '{name}' is gebt's own"):
        register(name, kind)
    assert MODELS[name] is before and "Mine" not in CLASSES


def test_a_class_called_as_gebts_own_is_refused():
    class Other(Mine):
        pass

    Other.__name__ = "GCN"
    with pytest.raises(ValueError, match="class GCN is called as one of gebt's"):
        register("mine", Other)
    assert CLASSES["GCN"] is GCN and "mine" not in MODELS
    register("wide", GCN, hidden=64)
    assert MODELS["wide"].new(24, 3).arguments["hidden"] == [64]


class NoDropout(nn.Module):
    def __init__(self, num_features, hidden, num_outputs):
        super().__init__()


class OneMore(Mine):
    def __init__(self, num_features, hidden, num_outputs, dropout, depth):
        super().__init__(num_features, hidden, num_outputs)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (nn.Linear, "cannot rebuild a Linear: it takes in_features, .* not"),
        (NoDropout, "it takes num_features, hidden, num_outputs, not 'dropout'"),
        (OneMore, "cannot register OneMore: it lacks 'depth'"),
        (nn.Module, "it takes args, kwargs, not"),
        (lambda *_, **__: Mine(4, 3, 2), "must be a class of torch modules, got <lam"),
        (dict, "must be a class of torch modules, got dict"),
        (partial(Mine, hops=torch.relu), "`hops` must be a whole number, got <"),
        (partial(Mine, hops=0), "`hops` must be a whole number from 1"),
        (partial(Mine, width=2), "it takes num_features, .* not 'width'"),
    ],
)
def test_what_files_could_not_rebuild_is_refused_at_once(build, words):
    with pytest.raises(ValueError, match=words):
        register("mine", build)
    assert "mine" not in MODELS


@pytest.mark.parametrize(
    ("name", "hidden"), [("Mine", 4), ("mine ", 4), ("", 4), ("mine", 0)]
)
def test_a_wrong_name_or_width_is_refused(name, hidden):
    with pytest.raises(ValueError, match="lower-case|at least 1"):
        register(name, Mine, hidden=hidden)
    assert "Mine" not in CLASSES


class Said(Mine):
    def __init__(
        self,
        num_features: "int",
        hidden: "int",
        num_outputs: "int",
        dropout: "float",
        norm: "str" = "none",
        widths=None,
        deep: "bool" = False,
    ):
        super().__init__(num_features, hidden, num_outputs, dropout=dropout)
        self.said = norm, widths, deep


def test_options_are_rebuilt_as_the_signature_or_the_file_says():
    register("said", partial(Said, norm="batch", widths=[3, 4], deep=True))
    again = build_model(describe_model(MODELS["said"].new(4, 2)))
    assert again.said == ("batch", [3, 4], True)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("hops", value) for value in ("many", 0.5, {}, None, [1])),
        *(("dropout", "x"), ("dropout", 7), ("hidden", 0.5), ("num_features", 1e308)),
        *(("num_outputs", 2**30), ("num_outputs", "three"), ("width", 3)),
    ],
)
def test_a_hostile_argument_of_a_users_model_is_refused_in_words(name, value):
    register("mine", Mine)
    described = describe_model(model := MODELS["mine"].new(24, 3))
    described["arguments"] |= {name: value}
    with pytest.raises(ValueError, match="cannot rebuild a Mine"):
        build_model(described, model.state_dict())


PLUGIN = """
import gebt, torch
class Plugged(torch.nn.Module):
    def __init__(self, num_features, hidden, num_outputs, dropout=0.5):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(num_features, num_outputs))
    def forward(self, x, adjacency):
        return x @ self.weight + adjacency @ (x @ self.weight)
gebt.models.register("plugged", Plugged, hidden=4, fit=gebt.Fit(epochs=30))
"""


def test_files_find_a_plugins_class_as_the_command_line_does(
    graph, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "gebt_plugins.plugged", None)  # gone afterwards
    (path := tmp_path / "plugged.py").write_text(PLUGIN)
    described = {"num_features": 24, "hidden": 4, "num_outputs": 3, "dropout": 0.5}
    with pytest.raises(ValueError, match="class 'Plugged'.* Register it, by `gebt.mod"):
        build_model({"class": "Plugged", "arguments": described})
    ticket = gebt.find_ticket(GCN(24, 4, 3), graph, epochs=30)
    model = {"class": "Plugged", "arguments": described}
    replace(ticket, model=model).save(tmp_path / "another's")
    monkeypatch.setenv("GEBT_PLUGINS", str(path))
    with pytest.raises(ValueError, match="not a whole ticket: cannot rebuild a Plugg"):
        gebt.Ticket.load(tmp_path / "another's")
    assert type(build_model(model)) is MODELS["plugged"].kind
