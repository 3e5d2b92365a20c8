"""What prunes before training: counts, controls, and scores by hand."""

from dataclasses import replace

import pytest
import torch

from gebt._registry import MODELS
from gebt.experiments.at_init import (
    AT_INIT,
    FOUND,
    RANDOM,
    RENEWED,
    SHUFFLED,
    _snip,
    gem_miner,
    smart_counts,
)
from gebt.experiments.gem_miner import LINKS, WEIGHTS
from gebt.experiments.methods import Setting
from gebt.experiments.runner import EXPERIMENTS
from gebt.learn.tasks import NodeClassification
from gebt.prune.weights import prunable_weights


@pytest.fixture
def setting(graph):
    recipe = MODELS["gcn"].changed(epochs=7, hidden=8)
    return Setting(graph, NodeClassification(), recipe, 0.4, 0.8, seed=1, quick=True)


@pytest.mark.parametrize("method", AT_INIT)
def test_every_method_keeps_what_the_ratios_say(setting, method):
    graph = setting.graph
    for outcome in AT_INIT[method](setting):
        weights = prunable_weights(outcome.model).values()
        n = sum(weight.numel() for weight in weights)
        kept = sum(int(weight.count_nonzero()) for weight in weights)
        assert kept <= n - int(0.8 * n)
        assert outcome.graph.links_kept == graph.num_links - int(0.4 * graph.num_links)
        assert outcome.seconds > 0


def test_controls_share_counts_of_links_and_of_each_layers_weights(setting):
    found = {outcome.links: outcome for outcome in gem_miner(setting)}
    assert {*found} == {FOUND, SHUFFLED, RENEWED, RANDOM}
    ours, other = found[FOUND], found[SHUFFLED]
    assert torch.equal(ours.graph.present, other.graph.present)
    assert not torch.equal(ours.graph.present, found[RANDOM].graph.present)
    masks = [outcome.graph.weight_masks for outcome in (ours, other)]
    for name, mask in masks[0].items():
        assert mask.sum() == masks[1][name].sum()
    assert any((mask != masks[1][name]).any() for name, mask in masks[0].items())
    whole = gem_miner(replace(setting, graph_ratio=0.0))
    assert [outcome.links for outcome in whole] == [FOUND, SHUFFLED, RENEWED]


def test_snip_keeps_what_the_loss_would_miss_most(setting):
    masks, links, _ = _snip(setting)
    model, graph = setting.model().eval(), setting.graph
    rows = graph.split.train
    out = model(graph.x, graph.adjacency)[rows]
    torch.nn.functional.cross_entropy(out, graph.y[rows]).backward()
    scores = {n: (w * w.grad).abs() for n, w in prunable_weights(model).items()}
    kept = torch.cat([scores[n][mask] for n, mask in masks.items()])
    gone = torch.cat([scores[n][~mask] for n, mask in masks.items()])
    assert gone.max() <= kept.min() * (1 + 1e-4)
    assert links.sum() == graph.num_links - int(0.4 * graph.num_links)


def test_smart_counts_by_hand():
    assert smart_counts([22928, 112], 0.99) == [197, 34]
    # (3^2 + 3) : (2^2 + 2) = 2 : 1 for layers of one size.
    assert smart_counts([100, 100, 10], 0.7) == [40, 20, 3]
    assert smart_counts([10, 100, 10], 0.5) == [10, 47, 3]
    assert smart_counts([10, 10], 0.1) == [10, 8]
    assert smart_counts([50], 0.5) == [25]
    with pytest.raises(ValueError, match="leaves 2 weights, and 2 of them"):
        smart_counts([90, 110], 0.99)


def test_the_experiment_has_every_method_at_every_ratio():
    jobs = EXPERIMENTS["gem-miner"].jobs("cora", 0)
    assert len({job.key for job in jobs}) == len(jobs)
    cells = {(job.graph_ratio, job.weight_ratio) for job in jobs} - {(0.0, 0.0)}
    assert cells == {(links, weights) for links in LINKS for weights in WEIGHTS}
