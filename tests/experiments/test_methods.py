"""And the link scores behind its one-shot methods."""

from dataclasses import replace

import pytest
import torch
from helpers import same, tiny

import gebt
from gebt._registry import MODELS
from gebt.experiments import methods as baselines
from gebt.experiments.methods import METHODS, Setting, controls
from gebt.learn.tasks import NodeClassification
from gebt.learn.training import copy_state
from gebt.prune.criteria import Context, score_links
from gebt.prune.weights import prunable_weights

EPOCHS = 6
SEARCHED = {"joint-EB", "GEB", "SGCN", "UGS"}
WEIGHTS = {"joint-EB", "UGS", "IMP", "random"}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def setting(graph):
    recipe = MODELS["gcn"].changed(epochs=EPOCHS, hidden=8)
    return Setting(graph, NodeClassification(), recipe, 0.4, 0.36, seed=1)


def run(method, setting):
    if method not in WEIGHTS:
        setting = replace(setting, weight_ratio=0.0)
    return list(METHODS[method](setting))


def weights_kept(model):
    return sum(int(w.count_nonzero()) for w in prunable_weights(model).values())


def trained_again(setting, ticket, weights):
    """The ticket retrained by the setting, step by step."""
    model = setting.model()
    small = ticket.open(model, setting.graph, weights=weights)
    setting.train(model, small, ticket.weight_masks)
    return model


@pytest.mark.parametrize("method", METHODS)
def test_every_method_keeps_exactly_the_promised_links_and_weights(method, setting):
    total = sum(w.numel() for w in prunable_weights(setting.model()).values())
    links = setting.graph.num_links
    pruned = total - int(0.36 * total) if method in WEIGHTS else total
    outcomes = run(method, setting)
    assert outcomes
    for outcome in outcomes:
        whole = outcome.links == "all"
        expected = links if whole else links - int(0.4 * links)
        assert outcome.graph.links_kept == expected
        kept = total if method == "dense" else pruned
        assert weights_kept(outcome.model) == kept
        assert outcome.graph.num_links == links
        assert 0 <= outcome.val <= 100
        assert outcome.seconds > 0


@pytest.mark.parametrize("method", METHODS)
def test_every_method_repeats_under_its_seed(method, setting):
    first, again = run(method, setting), run(method, setting)
    for one, other in zip(first, again, strict=True):
        assert same(one.model.state_dict(), other.model.state_dict())
        assert torch.equal(one.graph.link, other.graph.link)
        assert (one.links, one.val) == (other.links, other.val)


@pytest.mark.parametrize("method", METHODS)
def test_another_seed_gives_another_model(method, setting):
    [first, *_], [other, *_] = (
        run(method, setting),
        run(method, replace(setting, seed=2)),
    )
    assert not same(first.model.state_dict(), other.model.state_dict())


@pytest.mark.parametrize(
    ("method", "links", "full_epochs", "epochs"),
    [
        ("dense", ["all"], EPOCHS, 0),
        ("SGCN", ["learned"], 2 * EPOCHS, EPOCHS),
        ("UGS", ["learned"], 2 * EPOCHS, EPOCHS),  # 36% in two rounds of 20%
        ("IMP", ["all"], 3 * EPOCHS, 0),
        ("random", ["random"], 0, EPOCHS),
        ("degree", ["degree"], 0, EPOCHS),
        ("similarity", ["similarity"], 0, EPOCHS),
        ("k-neighbour", ["k-neighbour"], 0, EPOCHS),
    ],
)
def test_epochs_before_and_on_the_pruned_graph_are_counted(
    method, links, full_epochs, epochs, setting
):
    outcomes = run(method, setting)
    assert [outcome.links for outcome in outcomes] == links
    for outcome in outcomes:
        before = outcome.full_epochs + outcome.frozen_epochs
        before += sum(count for _, count in outcome.rounds)
        assert (before, outcome.epochs) == (full_epochs, epochs)


def test_epochs_of_searches_count_those_up_to_the_draw(setting):
    long = replace(setting, recipe=setting.recipe.changed(epochs=60))
    joint = run("joint-EB", long)
    assert joint[0].ticket.settled and joint[0].ticket.epoch < 60
    assert {o.full_epochs for o in joint} == {joint[0].ticket.epoch}
    geb = run("GEB", long)
    assert geb[0].ticket.settled and geb[0].ticket.epoch < 60
    assert {o.full_epochs for o in geb} == {60}
    assert {o.frozen_epochs for o in geb} == {geb[0].ticket.epoch}
    assert {o.epochs for o in joint + geb} == {60}


@pytest.mark.slow
def test_training_is_worth_something(make_graph):
    graph = make_graph()
    recipe = MODELS["gcn"].changed(epochs=60)
    setting = Setting(graph, NodeClassification(), recipe, 0.2, 0.36, seed=0)
    for method in METHODS:  # three classes: chance is 33%
        assert run(method, setting)[0].val > 60, method


def test_geb_searches_the_links_of_the_pretrained_model_with_frozen_weights(setting):
    alone = replace(setting, weight_ratio=0.0)
    pretrained = alone.model()
    alone.train(pretrained, alone.graph)
    for outcome in run("GEB", setting):
        ticket = outcome.ticket
        assert ticket.options["update_weights"] is False
        assert not ticket.weight_masks
        for name, weight in pretrained.state_dict().items():
            assert torch.equal(ticket.weights[name], weight)


def test_geb_retrains_from_fresh_weights_not_from_the_pretrained(setting):
    for outcome in run("GEB", setting):
        variant = controls(outcome.ticket)[outcome.links]
        model = setting.model()
        variant.open(model, setting.graph, weights="fresh")
        for name, weight in prunable_weights(model).items():
            assert not torch.equal(weight, outcome.ticket.weights[name])
            assert not torch.equal(weight, prunable_weights(setting.model())[name])
        again = trained_again(setting, variant, "fresh")
        assert same(outcome.model.state_dict(), again.state_dict())


def test_geb_has_the_random_control_and_dense_is_the_other(setting):
    assert [o.links for o in run("GEB", setting)] == ["learned", "random"]


def test_joint_outcomes_are_one_ticket_on_three_sets_of_links(setting):
    outcomes = run("joint-EB", setting)
    assert [o.links for o in outcomes] == ["learned", "random", "all"]
    ticket = outcomes[0].ticket
    assert all(o.ticket is ticket for o in outcomes)
    for outcome in outcomes:
        again = trained_again(setting, controls(ticket)[outcome.links], "inherit")
        assert same(outcome.model.state_dict(), again.state_dict())


def test_controls_differ_from_their_ticket_in_the_links_alone(setting):
    ticket = run("joint-EB", setting)[0].ticket
    states, graphs = {}, {}
    for name, variant in controls(ticket).items():
        model = setting.model()
        graphs[name] = variant.open(model, setting.graph)
        states[name] = model.state_dict()
    for state in states.values():
        for name, weight in state.items():
            mask = ticket.weight_masks.get(name, torch.ones_like(weight))
            assert torch.equal(weight, ticket.weights[name] * mask)
    links = setting.graph.num_links
    kept = links - int(0.4 * links)
    counts = {name: g.links_kept for name, g in graphs.items()}
    assert counts == {"learned": kept, "random": kept, "all": links}
    masks = {name: variant.link_mask for name, variant in controls(ticket).items()}
    assert not torch.equal(masks["random"], masks["learned"])
    for name in ("random", "all"):  # the graph's own edge weights
        assert (graphs[name].adjacency.value == 1).all()
    assert (graphs["learned"].adjacency.value != 1).any()


def test_random_controls_are_drawn_anew_for_each_seed(setting):
    tickets = [run("joint-EB", replace(setting, seed=s))[0].ticket for s in (1, 2)]
    masks = [controls(ticket)["random"].link_mask for ticket in tickets]
    assert not torch.equal(*masks)
    again = controls(tickets[0])["random"].link_mask
    assert torch.equal(masks[0], again)


@pytest.mark.parametrize("method", ["joint-EB", "GEB"])
@pytest.mark.parametrize("draw", [1, 4])
def test_a_draw_at_an_epoch_is_drawn_there_and_has_no_controls(method, draw, setting):
    [outcome] = run(method, replace(setting, draw=draw))
    assert outcome.links == "learned"
    assert outcome.ticket.epoch == draw
    assert not outcome.ticket.settled


def test_a_draw_comes_where_the_detector_would_have_stopped_earlier(setting):
    long = replace(setting, recipe=setting.recipe.changed(epochs=60))
    stopped = run("joint-EB", long)[0].ticket.epoch
    [outcome] = run("joint-EB", replace(long, draw=stopped + 5))
    assert outcome.ticket.epoch == stopped + 5


def test_a_draw_is_that_epoch_of_the_same_search(setting):
    tickets = [
        run("joint-EB", replace(setting, draw=draw))[0].ticket for draw in (2, 5)
    ]
    early, late = (ticket.distances for ticket in tickets)
    assert [str(d) for d in early] == [str(d) for d in late[:2]]  # the first are NaN


@pytest.mark.parametrize("watch", ["graph", "weights"])
def test_a_watched_group_decides_alone_and_has_no_controls(watch, setting):
    [outcome] = run("joint-EB", replace(setting, watch=watch))
    assert outcome.ticket.options["detector"]["watch"] == [watch]


def test_sgcn_never_stops_early_and_pulls_by_admm(setting):
    long = replace(setting, recipe=setting.recipe.changed(epochs=60))
    [outcome] = run("SGCN", long)
    assert outcome.ticket.epoch == 60
    assert (
        outcome.ticket.options["penalty"].items()
        >= {"name": "ADMM", "prune_ratio": 0.4}.items()
    )
    assert run("GEB", long)[0].ticket.epoch < 60


def test_imp_rewinds_to_the_first_weights_after_each_round(setting):
    # Adam moves no weight by more than the learning rate in its first step, so after
    # one epoch a rewound weight is within it, and one that went on need not be.
    recipe = setting.recipe.changed(epochs=1, lr=0.1, weight_decay=0.0)
    [outcome] = run("IMP", replace(setting, recipe=recipe, weight_ratio=0.8))
    assert outcome.full_epochs == 8  # 7 rounds of 20%, and the last training
    first = copy_state(setting.model())
    moved = 0.0
    for name, weight in prunable_weights(outcome.model).items():
        weight = weight.detach()
        kept = weight != 0
        moved = max(moved, float((weight - first[name])[kept].abs().max()))
    assert 0.09 < moved < 0.1001


def test_imp_removes_the_least_of_what_the_round_before_left(setting):
    model, first = setting.model(), copy_state(setting.model())
    masks = {}
    for share in (0.2, 0.36):
        setting.train(model, setting.graph, masks)
        sizes = [w.flatten().abs() for w in prunable_weights(model).values()]
        least = torch.cat(sizes).sort().values[int(share * sum(map(len, sizes)))]
        masks = {n: w.abs() >= least for n, w in prunable_weights(model).items()}
        model.load_state_dict(first)
    setting.train(model, setting.graph, masks)
    [outcome] = run("IMP", setting)
    assert same(outcome.model.state_dict(), model.state_dict())


@pytest.fixture
def searches(monkeypatch):
    """The tickets that `baselines` finds from here on, with the graphs given."""
    found = []

    def recording(model, graph, **options):
        first = copy_state(model)
        ticket = gebt.find_ticket(model, graph, **options)
        found.append((graph, first, ticket))
        return ticket

    monkeypatch.setattr(baselines, "find_ticket", recording)
    return found


def test_ugs_drops_more_each_round_and_nothing_comes_back(setting, searches):
    hard = replace(setting, graph_ratio=0.4, weight_ratio=0.59)
    [outcome] = run("UGS", hard)
    assert len(searches) == 4  # 1 - 0.8^4 = 0.59
    links = setting.graph.num_links
    total = searches[0][2].num_weights
    link_before = torch.ones(links, dtype=torch.bool)
    masks_before = None
    for done, (graph, _, ticket) in enumerate(searches, start=1):
        share = 0.4 if done == 4 else 1 - 0.6 ** (done / 4)
        assert ticket.links_kept == links - int(share * links)
        share = 0.59 if done == 4 else 1 - 0.41 ** (done / 4)
        assert ticket.weights_kept == total - int(share * total)
        assert ticket.epoch == EPOCHS
        assert graph.links_kept == int(link_before.sum())
        assert not (ticket.link_mask & ~link_before).any()
        for name, mask in ticket.weight_masks.items():
            if masks_before is not None:
                assert not (mask & ~masks_before[name]).any()
                assert not ticket.weights[name][~masks_before[name]].any()
        link_before, masks_before = ticket.link_mask, ticket.weight_masks
    assert torch.equal(outcome.graph.link.unique(), link_before.nonzero().flatten())
    for name, mask in masks_before.items():
        assert not prunable_weights(outcome.model)[name][~mask].any()


def test_ugs_rewinds_weights_and_link_values_after_each_round(setting, searches):
    [outcome] = run("UGS", setting)
    first = copy_state(setting.model())
    for _, start, _ in searches:
        for name, weight in start.items():
            assert torch.equal(weight, first[name])
    assert (outcome.graph.adjacency.value == 1).all()


def test_ugs_at_its_own_end_points_drops_5_and_20_percent_a_round(graph, searches):
    recipe = MODELS["gcn"].changed(epochs=1, hidden=8)
    rounds = 5
    ratios = 1 - 0.95**rounds, 1 - 0.8**rounds
    list(METHODS["UGS"](Setting(graph, NodeClassification(), recipe, *ratios, seed=0)))
    assert len(searches) == rounds
    _, _, ticket = searches[0]
    links, total = graph.num_links, ticket.num_weights
    assert ticket.links_kept == pytest.approx(0.95 * links, abs=1)
    assert ticket.weights_kept == pytest.approx(0.8 * total, abs=1)


@pytest.mark.parametrize("criterion", ["degree", "similarity", "k-neighbour"])
def test_a_one_shot_method_keeps_the_links_of_highest_score(criterion, setting):
    [outcome] = run(criterion, setting)
    scores = score_links(
        criterion, setting.graph, Context(seeded(setting.seed), setting.model())
    )
    kept = torch.zeros(setting.graph.num_links, dtype=torch.bool)
    kept[outcome.graph.link] = True
    assert scores[~kept].max() <= scores[kept].min()
    assert (outcome.graph.adjacency.value == 1).all()


def test_among_links_of_equal_score_chance_decides_and_not_position():
    n = 200
    ring = tiny([(i, (i + 1) % n) for i in range(n)], nodes=n)  # all degrees are 2
    parts = {"train": torch.arange(20), "val": torch.arange(20, 60)}
    split = gebt.Split(**parts, test=torch.arange(60, n))
    ring = replace(ring, y=torch.arange(n) % 2, split=split)
    recipe = MODELS["gcn"].changed(epochs=1)
    setting = Setting(ring, NodeClassification(), recipe, 0.5, 0.0, seed=0)
    kept = []
    for seed in (0, 0, 1):
        [outcome] = run("degree", replace(setting, seed=seed))
        kept.append(outcome.graph.link.unique())
        assert 70 < kept[-1].float().mean() < 130
    assert torch.equal(kept[0], kept[1])
    assert not torch.equal(kept[0], kept[2])


def test_random_weights_are_drawn_over_all_layers_together(setting):
    [outcome] = run("random", replace(setting, weight_ratio=0.5))
    shares = [
        float((weight != 0).float().mean())
        for weight in prunable_weights(outcome.model).values()
    ]
    assert all(0.25 < share < 0.75 for share in shares)


def test_a_setting_gives_the_same_new_model_at_every_call(setting):
    settings = (setting, setting, replace(setting, seed=2))
    one, again, other = (s.model().state_dict() for s in settings)
    assert same(one, again)
    assert not same(one, other)


def test_outcomes_hold_the_model_of_the_best_validation_epoch(setting):
    for method in ("dense", "joint-EB"):
        for outcome in run(method, setting):
            val = gebt.evaluate(outcome.model, outcome.graph, "val")
            assert val == pytest.approx(outcome.val)
