"""A ticket's criterion prunes graphs whose nodes training never saw."""

from dataclasses import replace

import pytest
import torch
from helpers import as_dtype, header_of, same
from safetensors.torch import load_file
from torch import nn
from torch_geometric.nn import GCNConv

import gebt
from gebt import Ticket, find_ticket
from gebt.files import write_tensors
from gebt.learn.training import copy_state
from gebt.models import GCN, adapt
from gebt.prune.criteria import Context, score_links

ALONE = ["random", "degree", "low-degree", "similarity", "k-neighbour", "forest"]
INDUCTIVE = [*ALONE, "voi", "expected-gradient"]


@pytest.fixture(scope="module")
def taught():
    """A graph, a student of it in its own state, and its masks."""
    import conftest

    graph = gebt.Graph.from_pyg(conftest._make_data(p_out=0.05), name="blocks")
    torch.manual_seed(1)
    model = GCN(graph.num_features, 8, 3)
    gebt.train(model, graph, epochs=40)
    masks = gebt.train_student(model, graph, None, weight_ratio=0.5, epochs=40).masks
    return graph, copy_state(model), masks


@pytest.fixture
def draw(taught):
    """Draws the student's ticket by a criterion; its weights stay as they are."""

    def drawn(criterion, **options):
        graph, state, masks = taught
        model = GCN(graph.num_features, 8, 3)
        model.load_state_dict(state)
        given = {"graph_ratio": 0.6, "weight_ratio": 0, "update_weights": False}
        given |= {"criterion": criterion, "keep": masks, "seed": 3, **options}
        return find_ticket(model, graph, **given)

    return drawn


@pytest.fixture
def other(make_graph):
    """Other nodes with the same features, and no labels."""
    graph = make_graph(nodes=150, seed=1, p_out=0.05)
    return replace(graph, y=None, split=None, name="others")


def again(ticket, tmp_path):
    ticket.save(tmp_path / "t.safetensors")
    return Ticket.load(tmp_path / "t.safetensors")


# ------------------------------------------------------------------- what it gives


@pytest.mark.parametrize("criterion", [*ALONE, "voi"])
def test_on_the_searched_graph_it_is_the_tickets_own_mask(
    taught, draw, tmp_path, criterion
):
    graph, state, masks = taught
    ticket = draw(criterion)
    assert (ticket.epoch, ticket.settled) == (0, True)
    assert same(ticket.weights, state) and same(ticket.weight_masks, masks)
    assert torch.equal(ticket.links_for(graph), ticket.link_mask)
    assert torch.equal(again(ticket, tmp_path).links_for(graph), ticket.link_mask)


def test_without_the_other_half_expected_gradient_comes_close(taught, draw):
    graph, _, _ = taught
    ticket = draw("expected-gradient")
    mask = ticket.links_for(graph)
    agree = float((mask == ticket.link_mask).float().mean())
    # At 60% of links by chance 52% would agree.
    assert 0.8 < agree < 1


@pytest.mark.parametrize("criterion", INDUCTIVE)
@pytest.mark.parametrize("ratio", [None, 0.25, 0.0])
def test_other_nodes_lose_the_share_that_was_asked_for(
    draw, other, tmp_path, criterion, ratio
):
    ticket = draw(criterion)
    state = torch.get_rng_state()
    mask = ticket.links_for(other, graph_ratio=ratio)
    assert torch.equal(torch.get_rng_state(), state)
    assert mask.dtype == torch.bool and mask.shape == (other.num_links,)
    gone = int((0.6 if ratio is None else ratio) * other.num_links)
    assert int((~mask).sum()) == gone
    assert torch.equal(
        again(ticket, tmp_path).links_for(other, graph_ratio=ratio), mask
    )
    assert other.keep_links(mask).links_kept == other.num_links - gone


@pytest.mark.parametrize("criterion", ["voi", "expected-gradient"])
def test_it_is_the_pruned_weights_that_are_asked(taught, draw, other, criterion):
    graph, state, masks = taught
    ticket = draw(criterion)
    # As a user would deploy it: the ticket opened, on other nodes.
    model = GCN(graph.num_features, 8, 3)
    ticket.open(model, graph)
    expected = ticket.links_for(other, model=model)
    assert torch.equal(ticket.links_for(other), expected)
    grown = {n: t + ~masks[n] if n in masks else t for n, t in state.items()}
    assert torch.equal(replace(ticket, weights=grown).links_for(other), expected)
    elsewhere = {n: t + torch.randn_like(t) for n, t in state.items()}
    assert not torch.equal(
        replace(ticket, weights=elsewhere).links_for(other), expected
    )
    assert same(ticket.weights, state)


@pytest.mark.parametrize("criterion", ["voi", "expected-gradient"])
def test_criteria_that_ask_find_links_of_one_class_among_other_nodes(
    draw, make_graph, criterion
):
    graph = make_graph(nodes=150, seed=1, p_out=0.05)
    row, col = graph.adjacency.pattern.edge_index
    alike = (graph.y[row] == graph.y[col]).float()
    mask = draw(criterion).links_for(graph)
    assert float(alike[mask[graph.link]].mean()) > float(alike.mean()) + 0.05


def test_expected_gradient_is_the_mean_of_both_halves_and_learns_nothing(
    draw, other, taught
):
    graph, state, masks = taught
    ticket = draw("expected-gradient")
    assert {n: t.shape[0] for n, t in ticket.fitted.items()} == {
        "weights": 2,
        "means": 2,
        "deviations": 2,
    }
    swapped = {name: both.flip(0) for name, both in ticket.fitted.items()}
    mask = ticket.links_for(other)
    assert torch.equal(replace(ticket, fitted=swapped).links_for(other), mask)
    for half in (0, 1):
        one = {n: both[half].expand_as(both) for n, both in ticket.fitted.items()}
        assert not torch.equal(replace(ticket, fitted=one).links_for(other), mask)
    assert same(ticket.fitted, draw("expected-gradient").fitted)


@pytest.mark.slow
def test_a_ticket_of_find_cheapest_has_what_was_fitted(tmp_path):
    # Large enough for the pruned model to be faster at any time.
    graph = gebt.load("synthetic:N=400,E=8000,F=64,C=3,split=30-30-40,seed=1")
    other = gebt.load("synthetic:N=500,E=6000,F=64,C=3,seed=2")
    for criterion in ("expected-gradient", "voi"):
        how = {"max_drop": 40.0, "criteria": [criterion]}
        recipe = gebt._registry.MODELS["gcn"].changed(epochs=20, hidden=8)
        ticket = gebt.find_cheapest(graph, recipe=recipe, **how).ticket
        assert ticket.options["criterion"] == criterion
        assert bool(ticket.fitted) == (criterion == "expected-gradient")
        found = again(ticket, tmp_path)
        assert torch.equal(found.links_for(other), ticket.links_for(other))
        if criterion == "voi":
            assert torch.equal(found.links_for(graph), ticket.link_mask)


def test_weights_that_were_trained_on_are_asked_as_they_are_then(taught, draw):
    graph, state, masks = taught
    model = GCN(graph.num_features, 8, 3)
    model.load_state_dict(state)
    ticket = find_ticket(
        *(model, graph), graph_ratio=0.6, criterion="voi", weight_ratio=0.5, keep=masks
    )
    assert ticket.epoch > 0 and not same(ticket.weights, state)
    first = model
    first.load_state_dict(ticket.first_weights)
    assert torch.equal(ticket.links_for(graph, model=first), ticket.link_mask)


def test_a_ticket_that_keeps_all_links_keeps_all_of_another_graph(taught, other):
    graph, state, _ = taught
    model = GCN(graph.num_features, 8, 3)
    ticket = find_ticket(model, graph, graph_ratio=0, weight_ratio=0.5, epochs=30)
    assert ticket.options["criterion"] == "learned"
    assert ticket.links_for(other).all()


def test_a_directed_graph_and_float64(draw):
    torch.manual_seed(0)
    edges = torch.randint(30, (2, 120)).unique(dim=1)
    data = {"x": torch.randn(30, 24), "edge_index": edges[:, edges[0] != edges[1]]}
    graph = as_dtype(gebt.Graph.from_pyg(data, directed=True), torch.float64)
    for criterion in INDUCTIVE:
        kept = int(draw(criterion).links_for(graph).sum())
        assert kept == graph.num_links - int(0.6 * graph.num_links)


# -------------------------------------------------------------------- users' own


def test_a_users_criterion_is_called_with_what_it_has_fitted(
    own_registries, draw, other, tmp_path
):
    seen = []

    @gebt.criterion("mine")
    def mine(graph, context):
        if not context.unseen:
            context.fitted["shift"] = torch.tensor(7.0)
        seen.append((graph.name, context.unseen, float(context.fitted["shift"])))
        assert context.model(graph.x, graph.adjacency).shape == (graph.num_nodes, 3)
        assert (context.task.name, context.prune_ratio) == ("node-classification", 0.6)
        return torch.arange(graph.num_links).float()

    ticket = again(draw("mine"), tmp_path)
    mask = ticket.links_for(other)
    assert seen == [("blocks", False, 7.0), ("others", True, 7.0)]
    gone = int(0.6 * other.num_links)
    assert mask[gone:].all() and not mask[:gone].any()


@pytest.mark.parametrize(
    ("kept", "words"),
    [
        (3.0, "floating tensors into `context.fitted`, but 'shift' is <class 'float'>"),
        (torch.ones(2, dtype=torch.int64), "'shift' is torch.int64"),
        (torch.tensor([1.0, torch.nan]), "learned a 'shift' that is not finite"),
    ],
)
def test_what_a_file_cannot_hold_is_refused_when_it_is_fitted(
    own_registries, graph, kept, words
):
    @gebt.criterion("mine")
    def mine(graph, context):
        context.fitted["shift"] = kept
        return torch.zeros(graph.num_links)

    with pytest.raises(ValueError, match=words):
        score_links("mine", graph, Context(torch.Generator(), nn.Module()))


class Peer(nn.Module):
    """A model of PyG's layers."""

    def __init__(self):
        super().__init__()
        self.one, self.two = GCNConv(24, 8), GCNConv(8, 3)

    def forward(self, x, edge_index, edge_weight=None):
        return self.two(
            self.one(x, edge_index, edge_weight).relu(), edge_index, edge_weight
        )


def test_a_model_that_gebt_cannot_rebuild_is_given(graph, other, tmp_path):
    model = adapt(Peer())
    how = {"graph_ratio": 0.6, "weight_ratio": 0, "update_weights": False}
    ticket = again(find_ticket(model, graph, criterion="voi", **how), tmp_path)
    with pytest.raises(
        ValueError, match="'adapted Peer'.*`Ticket.open` and give it as"
    ):
        ticket.links_for(other)
    opened = adapt(Peer())
    ticket.open(opened, graph)
    assert torch.equal(ticket.links_for(graph, model=opened), ticket.link_mask)
    # Those that ask no model need none.
    ticket = find_ticket(model, graph, criterion="forest", **how)
    assert torch.equal(ticket.links_for(graph), ticket.link_mask)


# ------------------------------------------------------------------------ refusals


@pytest.mark.parametrize("criterion", ["learned", "grow"])
def test_what_knows_one_graph_alone_is_refused(draw, other, criterion):
    ticket = draw(criterion)
    with pytest.raises(ValueError, match=f"'{criterion}' is transductive"):
        ticket.links_for(other)


@pytest.mark.parametrize("criterion", ["forest", "voi"])
def test_a_graph_of_other_features_links_or_numbers_is_refused(
    draw, other, make_graph, criterion
):
    ticket = draw(criterion)
    with pytest.raises(ValueError, match="reads 24 features, but 'blocks' has 9"):
        ticket.links_for(make_graph(features=9))
    none = other.keep_links(torch.zeros(other.num_links, dtype=torch.bool))
    with pytest.raises(ValueError, match="'others' has no links to choose from"):
        ticket.links_for(none)
    with pytest.raises(
        ValueError, match="one floating dtype.*float64 and torch.float3"
    ):
        ticket.links_for(replace(other, x=other.x.double()))
    few = other.keep_links(torch.arange(other.num_links) < 10)
    with pytest.raises(ValueError, match="'others' is already pruned"):
        ticket.links_for(few)
    with pytest.raises(
        ValueError, match=r"`graph_ratio` .* must lie in \[0, 1\), got 1"
    ):
        ticket.links_for(other, graph_ratio=1.0)
    with pytest.raises(TypeError, match="`graph` must be a gebt.Graph"):
        ticket.links_for(other.x)


def test_a_model_of_other_features_or_numbers_is_refused(draw, other):
    ticket = draw("voi")
    with pytest.raises(ValueError, match="reads 5 features, but 'others' has 24"):
        ticket.links_for(other, model=GCN(5, 8, 3))
    with pytest.raises(ValueError, match="computes in torch.float64, but the features"):
        ticket.links_for(other, model=GCN(24, 8, 3).double())


def test_a_ticket_of_a_task_without_classes_is_refused(draw, other):
    ticket = draw("voi")
    options = {**ticket.options, "task": {"name": "link-prediction"}}
    with pytest.raises(ValueError, match="'voi' asks a model for the classes of nodes"):
        replace(ticket, options=options).links_for(other)


def test_a_ticket_without_its_regressions_opens_and_says_so(
    taught, draw, other, tmp_path
):
    """As gebt wrote them before it kept them."""
    path = tmp_path / "t.safetensors"
    draw("expected-gradient").save(path)
    tensors = load_file(path)
    tensors = {n: t for n, t in tensors.items() if not n.startswith("fitted/")}
    write_tensors(path, tensors, header_of(path))
    ticket = Ticket.load(path)
    ticket.open(GCN(24, 8, 3), taught[0])
    with pytest.raises(
        ValueError, match="lacks the weights, means, deviations that 'ex"
    ):
        ticket.links_for(other)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("weights", lambda t: None, "the ticket lacks the weights that 'expected-gr"),
        ("weights", lambda t: t[:, 1:], r"weights .* shape \(2, 23\).*got \(2, 22\)"),
        ("means", lambda t: t[:1], r"means .* shape \(2, 22\).*got \(1, 22\)"),
        ("deviations", lambda t: t.flatten(), r"deviations .* got \(44,\)"),
        ("deviations", lambda t: 0 * t, "deviations .* must be positive"),
        ("means", lambda t: t.int(), "'fitted/means' must be floating"),
        ("weights", lambda t: t * torch.inf, "'fitted/weights' must be finite"),
    ],
)
def test_regressions_that_do_not_fit_are_refused(
    draw, other, tmp_path, name, change, words
):
    path = tmp_path / "t.safetensors"
    draw("expected-gradient").save(path)
    tensors = load_file(path)
    changed = change(tensors.pop(f"fitted/{name}"))
    if changed is not None:
        tensors[f"fitted/{name}"] = changed
    write_tensors(path, tensors, header_of(path))
    with pytest.raises(ValueError, match=words):
        Ticket.load(path).links_for(other)


def test_regressions_beyond_all_measure_are_refused(draw, other):
    ticket = draw("expected-gradient")
    huge = dict(ticket.fitted, weights=torch.full_like(ticket.fitted["weights"], 3e38))
    with pytest.raises(ValueError, match="no finite scores"):
        replace(ticket, fitted=huge).links_for(other)


@pytest.mark.parametrize("value", [None, 3, ["voi"]])
def test_a_criterion_that_is_no_name_is_refused(draw, tmp_path, value):
    path = tmp_path / "t.safetensors"
    draw("voi").save(path)
    header = header_of(path)
    header["options"]["criterion"] = value
    write_tensors(path, load_file(path), header)
    with pytest.raises(ValueError, match="`options.criterion` must be text"):
        Ticket.load(path)
