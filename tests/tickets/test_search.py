"""Algorithms 1 and 2 on a small graph, every option and refusal."""

import math
import warnings
from dataclasses import replace

import pytest
import torch
from helpers import built, same
from torch import nn

import gebt
from gebt import (
    ADMM,
    Graph,
    GraphSparsifier,
    MaskDistanceDetector,
    ModelPruner,
    find_ticket,
)
from gebt.learn.training import copy_state
from gebt.models import GCN
from gebt.prune.groups import Group
from gebt.tickets.search import _check, _loss_and_finite


def quiet(model, graph, **options):
    """A search that may be cut short on purpose."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the masks did not settle", UserWarning)
        return find_ticket(model, graph, **options)


@pytest.mark.parametrize("ratios", [(0.2, 0.9), (0.6, 0.5), (0.33, 0.0), (0.0, 0.7)])
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
def test_the_search_settles_and_draws_exact_counts(make_graph, ratios, sparse):
    graph = make_graph(sparse=sparse)
    model = built(graph)
    ticket = find_ticket(model, graph, graph_ratio=ratios[0], weight_ratio=ratios[1])
    assert ticket.settled
    assert 4 <= ticket.epoch < 100
    links, weights = graph.num_links, 24 * 16 + 16 * 3
    assert ticket.links_kept == links - int(ratios[0] * links)
    if ratios[1]:
        assert ticket.num_weights == weights
        assert ticket.weights_kept == weights - int(ratios[1] * weights)
    else:
        assert ticket.weight_masks == {}
        assert ticket.weights_kept == ticket.num_weights == 0


def test_the_masks_are_the_largest_scores_and_weights(graph):
    model = built(graph)
    ticket = find_ticket(model, graph)
    assert same(ticket.weights, copy_state(model))
    score = ticket.link_score.abs()
    assert score[~ticket.link_mask].max() <= score[ticket.link_mask].min()
    kept, dropped = [], []
    for name, mask in ticket.weight_masks.items():
        kept.append(ticket.weights[name][mask].abs())
        dropped.append(ticket.weights[name][~mask].abs())
    assert torch.cat(dropped).max() <= torch.cat(kept).min()


def test_the_ticket_says_where_it_is_from(graph):
    model = built(graph)
    start = copy_state(model)
    ticket = find_ticket(model, graph, seed=7, graph_lr=0.002)
    assert same(ticket.first_weights, start)
    assert not same(ticket.weights, start)
    assert ticket.seed == 7
    assert ticket.dataset == {"name": "blocks", "fingerprint": graph.fingerprint()}
    assert ticket.model["class"] == "GCN"
    assert ticket.versions["gebt"] == gebt.__version__
    assert ticket.versions["torch"] == torch.__version__
    expected = {"graph_ratio": 0.2, "weight_ratio": 0.9, "graph_lr": 0.002, "lr": 0.01}
    assert expected.items() <= ticket.options.items()
    assert ticket.options["detector"]["scale"] == "reachable"


def test_distances_are_the_detectors_history(graph):
    detector = MaskDistanceDetector()
    seen = []
    ticket = find_ticket(built(graph), graph, detector=detector, on_epoch=seen.append)
    assert len(detector.history) == len(ticket.distances) == ticket.epoch == len(seen)
    for epoch, (reading, found) in enumerate(
        zip(detector.history, ticket.distances, strict=True)
    ):
        assert found.keys() == {"graph", "weights", "joint"}
        expected = {**reading.distances, "joint": reading.joint}
        if epoch == 0:
            assert all(math.isnan(v) for v in [*found.values(), *expected.values()])
        else:
            assert found == expected
    assert [e.epoch for e in seen] == list(range(1, ticket.epoch + 1))
    assert tuple(e.distances for e in seen) == ticket.distances
    assert ticket.distances[-1]["joint"] < 0.1
    assert not any(r.settled for r in detector.history[:-1])


def test_the_search_equals_a_plain_loop(graph):
    """Algorithm 2 written out with dense matrices, without dropout."""
    model = built(graph, dropout=0.0)
    start = copy_state(model)
    losses, penalty = [], ADMM(0.05, prune_ratio=0.4)
    ticket = quiet(
        model,
        graph,
        graph_ratio=0.4,
        weight_ratio=0.5,
        epochs=4,
        graph_lr=0.01,
        penalty=penalty,
        on_epoch=lambda e: losses.append(e.loss),
    )
    w, b, v, c = (
        start[f"layers.{k}.{name}"].requires_grad_()
        for k in (0, 1)
        for name in ("weight", "bias")
    )
    score = torch.ones(graph.num_links, requires_grad=True)
    adam = torch.optim.Adam(
        [
            {"params": [w, b], "weight_decay": 5e-4, "lr": 0.01},
            {"params": [v, c], "lr": 0.01},
            {"params": [score], "lr": 0.01},
        ]
    )
    row, col = graph.adjacency.pattern.row.long(), graph.adjacency.pattern.col.long()
    again, rows = ADMM(0.05, prune_ratio=0.4), graph.split.train
    again.reset(GraphSparsifier(graph).project)
    for loss in losses:
        value = graph.adjacency.value * score[graph.link]
        dense = torch.zeros(graph.num_nodes, graph.num_nodes)
        dense = dense.index_put((row, col), value) + torch.eye(graph.num_nodes)
        scale = dense.abs().sum(dim=1).rsqrt()
        norm = scale[:, None] * dense * scale
        out = norm @ (norm @ (graph.x @ w) + b).relu() @ v + c
        mine = nn.functional.cross_entropy(out[rows], graph.y[rows])
        assert loss == pytest.approx(float(mine.detach()), rel=1e-5)
        adam.zero_grad()
        (mine + again(score)).backward()
        adam.step()
        again.update(score)
    close = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(ticket.link_score, score.detach(), **close)
    torch.testing.assert_close(ticket.weights["layers.0.weight"], w.detach(), **close)


def test_frozen_weights_stay_bit_for_bit(graph):
    model = built(graph)
    gebt.train(model, graph, epochs=20)
    before = copy_state(model)
    ticket = find_ticket(
        model, graph, graph_ratio=0.3, weight_ratio=0, update_weights=False
    )
    assert same(before, copy_state(model))
    assert same(before, ticket.weights)
    assert ticket.links_kept == graph.num_links - int(0.3 * graph.num_links)
    assert not (ticket.link_score == 1).all()
    assert ticket.distances[-1].keys() == {"graph", "joint"}


def test_frozen_weights_have_no_mask(graph):
    with pytest.raises(ValueError, match="`weight_ratio` is 0.9.*Set `weight_ratio=0`"):
        find_ticket(built(graph), graph, update_weights=False)


def test_the_stop_criterion_is_what_the_detector_watches(graph):
    epochs = {}
    for watch in ("graph", "weights", None):
        detector = MaskDistanceDetector(watch=watch)
        ticket = find_ticket(built(graph), graph, detector=detector)
        watched = [watch] if watch else ["graph", "weights"]
        joints = [sum(d[w] for w in watched) for d in ticket.distances]
        assert joints[1:] == pytest.approx([d["joint"] for d in ticket.distances[1:]])
        # It stops at the first full window below the threshold, not before or after.
        assert joints[-1] < 0.1
        assert all(not j < 0.1 for j in joints[3:-1])
        epochs[watch] = ticket.epoch
    assert max(epochs["graph"], epochs["weights"]) <= epochs[None]


def test_alternate_runs_forward_twice_and_moves_the_weights_first(graph):
    class Counting(GCN):
        forwards = 0

        def forward(self, x, adjacency, rows=None):
            self.forwards += self.training
            return super().forward(x, adjacency, rows)

    tickets = {}
    for alternate in (False, True):
        torch.manual_seed(1)
        model = Counting(graph.num_features, 8, 3, dropout=0.0)
        ticket = quiet(model, graph, epochs=3, alternate=alternate)
        assert model.forwards == (6 if alternate else 3)
        tickets[alternate] = ticket
    assert tickets[True].options["alternate"] is True
    assert not torch.equal(tickets[True].link_score, tickets[False].link_score)


def test_alternate_equals_one_backward_for_the_weights_first_step(graph):
    first = {}
    for alternate in (False, True):
        model = built(graph, dropout=0.0)
        ticket = quiet(model, graph, epochs=1, alternate=alternate)
        first[alternate] = ticket.weights
    for name, weight in first[False].items():
        torch.testing.assert_close(first[True][name], weight)


def test_masks_are_measured_not_applied_unless_asked(graph):
    zeros = {}
    for mask_weights in (False, True):
        model = built(graph)
        ticket = quiet(model, graph, epochs=5, mask_weights=mask_weights)
        zeros[mask_weights] = {
            name: int(model.get_parameter(name)[~mask].count_nonzero())
            for name, mask in ticket.weight_masks.items()
        }
    assert all(count > 0 for count in zeros[False].values())
    assert all(count == 0 for count in zeros[True].values())


def test_a_strong_penalty_pulls_every_dropped_score_down_alike(graph):
    spread = {}
    for rho in (None, 1.0):
        ticket = quiet(
            built(graph),
            graph,
            graph_ratio=0.4,
            penalty=rho and ADMM(rho, prune_ratio=0.4),
            graph_lr=0.05,
            detector=MaskDistanceDetector(warmup=20),
            epochs=20,
        )
        dropped = ticket.link_score[~ticket.link_mask]
        assert dropped.mean() < 0.7
        spread[rho] = float(dropped.max() - dropped.min())
        described = {"name": "ADMM", "rho": 1.0, "prune_ratio": 0.4}
        assert ticket.options["penalty"] == (rho and described)
    assert spread[1.0] < 0.02
    assert spread[None] > 0.2


@pytest.mark.parametrize("unit", ["row", "column"])
def test_whole_units_can_be_pruned(graph, unit):
    ticket = quiet(built(graph), graph, epochs=4, weight_ratio=0.5, unit=unit)
    across = 1 if unit == "row" else 0
    for mask in ticket.weight_masks.values():
        assert torch.equal(mask.any(dim=across), mask.all(dim=across))


def test_each_layer_can_be_ranked_by_itself(graph):
    ticket = quiet(built(graph), graph, epochs=4, weight_ratio=0.5, scope="layer")
    assert [int(m.sum()) for m in ticket.weight_masks.values()] == [24 * 8, 24]


def test_masks_that_never_settle_are_reported(graph):
    with pytest.warns(UserWarning, match=r"did not settle within 2 epochs.*Allow more"):
        ticket = find_ticket(built(graph), graph, epochs=2)
    assert ticket.settled is False
    assert ticket.epoch == 2
    assert ticket.links_kept == graph.num_links - int(0.2 * graph.num_links)


def test_a_used_detector_is_refused(graph):
    detector = MaskDistanceDetector()
    detector.update({"graph": torch.tensor([True, False])})
    with pytest.raises(ValueError, match="`detector` has already seen 1 updates"):
        find_ticket(built(graph), graph, detector=detector)


@pytest.mark.parametrize(
    "options, words",
    [
        (
            {"graph_ratio": 0, "weight_ratio": 0},
            "are both 0: there is nothing to prune",
        ),
        ({"graph_ratio": 1.0}, r"`graph_ratio` is the share.*\[0, 1\), got 1.0"),
        ({"graph_ratio": -0.1}, r"`graph_ratio` is the share.*\[0, 1\), got -0.1"),
        ({"weight_ratio": 1.5}, r"`weight_ratio` is the share.*\[0, 1\), got 1.5"),
        ({"epochs": 0}, "`epochs` must be at least 1, got 0"),
        ({"scope": "model"}, "`scope` must be one of"),
        ({"unit": "block"}, "`unit` must be one of"),
        ({"decay": "none"}, "`decay` must be one of"),
        (
            {"detector": MaskDistanceDetector(watch="links")},
            r"watches \['links'\]",
        ),
    ],
    ids=lambda v: None if isinstance(v, str) else "-".join(v),
)
def test_options_out_of_range_are_refused(graph, options, words):
    model = built(graph)
    with pytest.raises(ValueError, match=words):
        find_ticket(model, graph, **options)


def test_a_graph_that_cannot_be_learned_from_is_refused(graph):
    with pytest.raises(ValueError, match="has no labels"):
        find_ticket(built(graph), replace(graph, y=None))
    with pytest.raises(ValueError, match="has no training nodes"):
        find_ticket(built(graph), replace(graph, split=None))


@pytest.mark.parametrize("weight_ratio", [0.0, 0.9])
def test_a_diverging_search_is_refused(graph, weight_ratio):
    with pytest.raises(
        ValueError, match=r"(loss|'\w+') became \S+ .*in epoch \d.*smaller learning"
    ):
        find_ticket(built(graph), graph, lr=1e20, weight_ratio=weight_ratio)


def test_the_same_seed_repeats_bit_for_bit(graph):
    tickets = []
    for seed, state in ((3, 1), (3, 2), (4, 1)):
        model = built(graph)
        torch.manual_seed(state)
        before = torch.get_rng_state()
        tickets.append(find_ticket(model, graph, seed=seed))
        assert torch.equal(torch.get_rng_state(), before)
    one, two, other = tickets
    assert one.epoch == two.epoch
    assert torch.equal(one.link_score, two.link_score)
    assert torch.equal(one.link_mask, two.link_mask)
    assert same(one.weights, two.weights) and same(one.weight_masks, two.weight_masks)
    assert not torch.equal(one.link_score, other.link_score)


def test_a_directed_graph_has_one_score_per_edge(data):
    data.edge_index = data.edge_index[:, data.edge_index[0] < data.edge_index[1]]
    graph = Graph.from_pyg(data)
    assert graph.num_links == data.edge_index.shape[1]
    ticket = find_ticket(built(graph), graph, graph_ratio=0.5)
    assert ticket.settled
    model = built(graph)
    small = ticket.open(model, graph)
    assert small.adjacency.pattern.nnz == graph.num_links - int(0.5 * graph.num_links)


def islands(make_graph):
    """Two small graphs side by side; only the first has training nodes."""
    from types import SimpleNamespace

    one, two = (make_graph(nodes=60, p_in=0.2, seed=seed) for seed in (0, 1))
    edges = [
        torch.stack([g.adjacency.pattern.col, g.adjacency.pattern.row]).long()
        for g in (one, two)
    ]
    data = SimpleNamespace(
        x=torch.cat([one.x, two.x]),
        y=torch.cat([one.y, two.y]),
        edge_index=torch.cat([edges[0], edges[1] + 60], dim=1),
    )
    split = {part: getattr(one.split, part) for part in ("train", "val", "test")}
    return Graph.from_pyg(data, split=split), one.num_links, two.num_links


def test_links_that_no_training_node_reaches_stay_at_one(make_graph):
    graph, reached, unreached = islands(make_graph)
    ticket = find_ticket(built(graph), graph)
    assert ticket.share_untouched == pytest.approx(unreached / (reached + unreached))
    # The second island's links have the higher node numbers.
    first = graph.adjacency.pattern.row < 60
    assert (ticket.link_score[graph.link[~first]] == 1).all()
    assert (ticket.link_score[graph.link[first]] != 1).all()


def test_every_link_is_reached_on_the_small_graph(graph):
    assert find_ticket(built(graph), graph).share_untouched == 0


class Blind(nn.Module):
    """A model that looks at no neighbour, or counts them whatever their value."""

    def __init__(self, features, counts):
        super().__init__()
        self.linear = nn.Linear(features, 3)
        self.counts = counts

    def forward(self, x, adjacency):
        degree = adjacency.pattern.crow.diff()[:, None] if self.counts else 1
        return self.linear(x * degree)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"alternate": True},
        {"update_weights": False, "weight_ratio": 0},
        {"penalty": ADMM(prune_ratio=0.2)},
    ],
    ids=["shared", "alternate", "frozen", "penalty"],
)
@pytest.mark.parametrize("counts", [False, True])
def test_links_that_no_gradient_reaches_are_refused_at_once(graph, counts, options):
    seen = []
    with pytest.raises(
        ValueError,
        match="no link received a gradient: the outputs of Blind do not depend on the "
        "adjacency's values.*Set `graph_ratio=0`",
    ):
        find_ticket(Blind(24, counts), graph, on_epoch=seen.append, **options)
    assert seen == []


def test_a_model_without_links_is_searched_for_its_weights_alone(graph):
    ticket = quiet(Blind(24, False), graph, graph_ratio=0, weight_ratio=0.5)
    assert ticket.link_mask.all() and ticket.share_untouched == 1
    assert ticket.weights_kept == 36


@pytest.mark.parametrize("alternate", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_links_that_a_gradient_reaches_are_searched_in_every_mode(
    graph, alternate, frozen
):
    options = {"update_weights": False, "weight_ratio": 0} if frozen else {}
    ticket = quiet(built(graph), graph, epochs=2, alternate=alternate, **options)
    assert ticket.share_untouched == 0


def test_decay_and_task_are_used_and_recorded(graph):
    tickets = {}
    for decay in ("first", "all"):
        model = built(graph, dropout=0.0)
        tickets[decay] = quiet(model, graph, epochs=3, weight_decay=0.5, decay=decay)
        assert tickets[decay].options["decay"] == decay
        assert tickets[decay].options["task"] == {"name": "node-classification"}
    last = [tickets[decay].weights["layers.1.weight"] for decay in ("first", "all")]
    assert not torch.equal(*last)


def test_of_links_that_no_gradient_reaches_the_seed_decides_which_stay(make_graph):
    graph, _, unreached = islands(make_graph)
    second = torch.ones(graph.num_links, dtype=torch.bool)
    second[graph.link[graph.adjacency.pattern.row < 60]] = False
    kept = []
    for seed in (0, 0, 1):
        model = built(graph, dropout=0.0)
        # Of the first island's links some are below 1 and some above it.
        ticket = quiet(model, graph, graph_ratio=0.5, epochs=3, seed=seed)
        kept.append(ticket.link_mask[second])
    assert torch.equal(kept[0], kept[1])
    assert not torch.equal(kept[0], kept[2])


def test_any_module_can_be_searched(graph):
    class Whole(nn.Module):
        """A model that cannot choose rows, and is no GCN."""

        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(graph.num_features, 3)

        def forward(self, x, adjacency):
            return adjacency @ self.linear(x)

    model = Whole()
    ticket = quiet(model, graph, weight_ratio=0.5, epochs=30)
    assert list(ticket.weight_masks) == ["linear.weight"]
    assert ticket.weights_kept == 36
    assert ticket.model == {"class": "Whole", "arguments": None}


def test_a_retrained_ticket_clears_the_floor(graph):
    model = built(graph)
    ticket = find_ticket(model, graph)
    small = ticket.open(model, graph)
    gebt.train(model, small, keep=ticket.weight_masks)
    assert gebt.evaluate(model, small) > 80


def test_a_ticket_of_cora_emerges_early(planetoid_root):
    graph = gebt.load("cora", planetoid_root)
    torch.manual_seed(0)
    model = GCN(graph.num_features, 16, graph.num_classes)
    ticket = find_ticket(model, graph, graph_ratio=0.2, weight_ratio=0.9)
    assert ticket.settled
    assert 9 <= ticket.epoch <= 35
    assert ticket.links_kept == 5278 - int(0.2 * 5278)
    weights = 1433 * 16 + 16 * 7
    assert ticket.weights_kept == weights - int(0.9 * weights)


def test_a_pruned_graph_is_not_searched(graph):
    import gebt

    keep = torch.arange(graph.num_links) % 2 == 0
    with pytest.raises(ValueError, match="already pruned.*Search the full graph"):
        gebt.find_ticket(gebt.models.GCN(24, 4, 3), graph.keep_links(keep))


def test_a_penalty_forgets_an_earlier_search(graph):
    import gebt

    penalty = gebt.ADMM(0.1, prune_ratio=0.3)

    def search():
        torch.manual_seed(0)
        model = gebt.models.GCN(24, 4, 3)
        detector = gebt.MaskDistanceDetector(threshold=2)
        return gebt.find_ticket(model, graph, detector=detector, penalty=penalty)

    assert torch.equal(search().link_score, search().link_score)


def test_what_is_copied_from_a_gpu_is_the_loss_and_whether_scores_are_finite():
    ranked = {"graph": [torch.randn(9)], "weights": [torch.randn(3, 2)], "fixed": []}
    loss = torch.tensor(0.25, requires_grad=True)
    numbers = _loss_and_finite(loss, ranked.values())
    assert numbers.tolist() == [0.25, 1, 1, 1]
    assert _check(numbers, ranked, 4) == 0.25
    ranked["weights"][0][2, 0] = float("nan")
    with pytest.raises(
        ValueError, match="group 'weights' became nan.*epoch 4.*smaller"
    ):
        _check(_loss_and_finite(loss, ranked.values()), ranked, 4)
    infinite = torch.tensor(float("inf"))  # named first, as on CPU
    with pytest.raises(ValueError, match="the loss became inf in epoch 4"):
        _check(_loss_and_finite(infinite, ranked.values()), ranked, 4)


@pytest.mark.cuda
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
def test_cuda_draws_the_ticket_that_the_cpu_draws(make_graph, sparse, tmp_path):
    """To rounding: Adam makes whole steps of gradients that are hardly there."""
    graph = make_graph(sparse=sparse)
    losses, tickets = [], []
    for device in ("cpu", "cuda"):
        there = graph.to(device)
        model = built(graph, dropout=0).to(device)
        seen = []
        ticket = quiet(model, there, epochs=6, on_epoch=seen.append)
        losses.append([epoch.loss for epoch in seen])
        ticket.save(tmp_path / device)
        tickets.append(gebt.Ticket.load(tmp_path / device))
    here, there = tickets
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert there.link_mask.is_cpu
    assert there.links_kept == here.links_kept
    assert there.weights_kept == here.weights_kept
    assert (there.link_mask == here.link_mask).float().mean() > 0.95
    assert (there.link_score - here.link_score).abs().median() < 1e-4
    there.open(built(graph), graph)  # a graph and a model on CPU


@pytest.mark.cuda
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_an_epoch_on_cuda_copies_twice_to_the_host(graph):
    there = graph.to("cuda")

    def waits(epochs):
        model = built(graph).to("cuda")
        detector = MaskDistanceDetector(threshold=1e-9)
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                find_ticket(model, there, epochs=epochs, detector=detector)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return sum("synchronizing CUDA" in str(w.message) for w in caught)

    waits(2)
    assert waits(12) - waits(2) == 10 * 2


@pytest.mark.cuda
@pytest.mark.parametrize("weight_ratio", [0.0, 0.9])
def test_a_diverging_search_on_cuda_is_refused(graph, weight_ratio):
    model = built(graph).to("cuda")
    with pytest.raises(
        ValueError, match=r"(loss|'\w+') became \S+ .*in epoch \d.*smaller learning"
    ):
        find_ticket(model, graph.to("cuda"), lr=1e20, weight_ratio=weight_ratio)


def test_outputs_that_are_no_tensor_are_refused(graph):
    class Two(GCN):
        def forward(self, x, adjacency, rows=None):
            return super().forward(x, adjacency, rows), x

    for job in (gebt.train, gebt.find_ticket, gebt.evaluate):
        with pytest.raises(ValueError, match="Two must give one tensor .* got a tuple"):
            job(Two(24, 4, 3), graph)


def test_why_no_link_received_a_gradient_is_told(graph):
    zeros = torch.zeros_like(graph.x)
    dead = built(graph)
    with torch.no_grad():
        dead.layers[1].weight.zero_()
        dead.layers[0].weight.zero_()
    one_class = replace(graph, y=torch.zeros_like(graph.y))
    nothing = graph.adjacency.with_value(torch.zeros_like(graph.adjacency.value))
    cases = [
        (replace(graph, adjacency=nothing), built(graph), "all edge weights are zero"),
        (replace(graph, x=zeros), built(graph), "all features are zero"),
        (replace(graph, x=zeros[:, :0]), GCN(0, 4, 3), "has no features"),
        (one_class, GCN(24, 4, 1), "all nodes are of one class"),
        (graph, dead, "all of the weight 'layers.0.weight' is zero"),
    ]
    for known, model, words in cases:
        with pytest.raises(ValueError, match=f"no link received.*{words}"):
            frozen = {"update_weights": False, "weight_ratio": 0}
            quiet(model, known, epochs=2, **frozen)


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_a_search_without_gradients_says_so(graph, off):
    with off(), pytest.raises(ValueError, match="gradients are switched off here"):
        find_ticket(built(graph), graph)
    with off(), pytest.raises(ValueError, match="gradients are switched off here"):
        gebt.train(built(graph), graph)


def test_the_penalty_drops_links_by_chance_not_by_position(make_graph):
    """Links in a part that no gradient reaches tie at every projection."""
    graph, reached, unreached = islands(make_graph)
    ticket = quiet(
        built(graph),
        graph,
        graph_ratio=0.4,
        weight_ratio=0,
        update_weights=False,
        penalty=ADMM(0.5, prune_ratio=0.4),
        graph_lr=0.05,
        epochs=5,
    )
    kept = ticket.link_mask[reached:]
    half = unreached // 2
    early, late = kept[:half].float().mean(), kept[half:].float().mean()
    assert abs(early - late) < 0.15, (early, late)
    # They moved by the penalty alone, and still count as untouched.
    assert ticket.share_untouched == pytest.approx(unreached / (reached + unreached))
    assert not (ticket.link_score[reached:] == 1).all()


def test_masks_of_an_earlier_pruning_stay_in_the_ticket(graph):
    model = built(graph)
    first = quiet(model, graph, weight_ratio=0.5, epochs=3)
    keep = first.weight_masks
    links = quiet(model, graph, weight_ratio=0, keep=keep, epochs=3)
    assert same(links.weight_masks, keep)
    more = quiet(model, graph, weight_ratio=0.8, keep=keep, epochs=3)
    assert more.weights_kept == more.num_weights - int(0.8 * more.num_weights)
    for name, mask in more.weight_masks.items():
        assert not (mask & ~keep[name]).any()
    small = links.open(model, graph)
    gebt.train(model, small, keep=links.weight_masks, epochs=3)
    for name, mask in keep.items():
        assert not model.get_parameter(name)[~mask].any()
    with pytest.raises(ValueError, match="`keep` has dropped .* bring some back"):
        find_ticket(model, graph, weight_ratio=0.3, keep=keep)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_a_model_takes_the_dtype_of_the_features(graph, dtype, tmp_path):
    value = graph.adjacency.value.to(dtype)
    adjacency = graph.adjacency.with_value(value)
    known = replace(graph, x=graph.x.to(dtype), adjacency=adjacency)
    ticket = quiet(built(graph), known, epochs=4)
    assert {t.dtype for t in ticket.weights.values()} == {dtype}
    assert ticket.link_score.std() > 0
    ticket.save(tmp_path / "a.safetensors")
    model = built(graph)
    again = gebt.Ticket.load(tmp_path / "a.safetensors")
    small = again.open(model, known)
    gebt.train(model, small, keep=again.weight_masks, epochs=2)
    assert model(small.x, small.adjacency).dtype == dtype
    gebt.evaluate(built(graph), known)


def test_a_compiled_model_is_refused_at_every_door(graph):
    model = torch.compile(built(graph))
    ticket = quiet(built(graph), graph, epochs=3)
    for door in (find_ticket, gebt.train, ticket.open):
        with pytest.raises(ValueError, match="compiled by `torch.compile`"):
            door(model, graph)


def test_pygs_data_and_a_ticket_for_its_masks_are_told_from_what_is_wanted(data, graph):
    ticket = quiet(built(graph), graph, epochs=3)
    doors = (find_ticket, gebt.train, gebt.evaluate, ticket.open, gebt.compact)
    for door in (*doors, gebt.measure_cost):
        with pytest.raises(TypeError, match="got a Data. Make one.*Graph.from_pyg"):
            door(built(graph), data)
    for door in (find_ticket, gebt.train):
        with pytest.raises(TypeError, match="a ticket's `weight_masks`, got a Ticket"):
            door(built(graph), graph, keep=ticket)
    kept = f"{ticket.links_kept} of 468 links, {ticket.weights_kept} of 432 weights"
    assert repr(ticket) == f"Ticket('blocks', epoch 3, not settled, {kept})"


class RandomLinks(Group):
    """Other links each epoch, at random."""

    name = "graph"
    prune_ratio = 0.5

    def __init__(self, graph):
        self._graph = graph
        self._draw = torch.Generator().manual_seed(0)

    def masks(self):
        count = self._graph.num_links
        return {"link": gebt.random_links(count, self.prune_ratio, self._draw)}

    def learned(self):
        return {"link": torch.ones(self._graph.num_links)}


def test_random_pruning_is_another_sparsifier(graph):
    model = GCN(graph.num_features, 8, 3)
    groups = [RandomLinks(graph), ModelPruner(model, 0.5)]
    with pytest.warns(UserWarning, match="did not settle within 5 epochs"):
        ticket = find_ticket(model, graph, groups=groups, epochs=5)
    assert ticket.links_kept == graph.num_links - int(0.5 * graph.num_links)
    assert all(d["graph"] > 0.3 for d in ticket.distances[1:])
    assert ticket.weights_kept == ticket.num_weights - int(0.5 * ticket.num_weights)
    ticket.open(model, graph)
    ratios = [ticket.options[f"{name}_ratio"] for name in ("graph", "weight")]
    assert ratios == [0.5, 0.5]


def test_a_pruner_alone_may_be_given_and_every_link_stays(graph):
    model = GCN(graph.num_features, 8, 3)
    pruner = ModelPruner(model, 0.3, unit="row")
    ticket = find_ticket(model, graph, groups=[pruner])
    assert ticket.link_mask.all() and (ticket.link_score == 1).all()
    assert "graph" not in ticket.distances[0]
    assert ticket.weight_masks.keys() == pruner.masks().keys()


class Heads(Group):
    """A group that gebt knows nothing of."""

    name = "heads"
    prune_ratio = 0.5

    def masks(self):
        return {"first": torch.tensor([True, False])}


def test_masks_of_other_groups_are_kept_but_said_not_to_be_applied(graph, tmp_path):
    model = GCN(graph.num_features, 8, 3)
    groups = [Heads(), ModelPruner(model, 0.5)]
    ticket = find_ticket(model, graph, groups=groups)
    ticket.save(tmp_path / "t.safetensors")
    again = gebt.Ticket.load(tmp_path / "t.safetensors")
    assert again.masks["heads"]["first"].tolist() == [True, False]
    with pytest.warns(UserWarning, match="the masks of heads are not applied"):
        again.open(model, graph)


def test_groups_of_one_name_are_refused(graph):
    model = GCN(graph.num_features, 8, 3)
    groups = [ModelPruner(model, 0.5), ModelPruner(model, 0.2)]
    with pytest.raises(ValueError, match="groups need names that differ"):
        find_ticket(model, graph, groups=groups)
