"""Gem-Miner as the experiments run it, and other ways to prune a new model.

Sources: Gem-Miner, Sreenivasan et al. 2022; SNIP, Lee et al. 2019; SynFlow, Tanaka et
al. 2020; smart ratios, Su et al. 2020. All score links as they score weights, by the
links' values.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gebt.experiments.methods import Method, Outcome, Setting, controls
from gebt.learn.loop import Learner, run
from gebt.prune.at_init import signed_constants
from gebt.prune.links import GraphSparsifier, random_links, top_links
from gebt.prune.masks import keep_top, removed_after
from gebt.prune.weights import apply_masks, check_layers, prunable_weights
from gebt.tickets.ticket import Ticket, Weights

GEM = "gem-miner"
FOUND, RANDOM = "found", "random links"
SHUFFLED, RENEWED, CONSTANTS = "shuffled weights", "new weights", "constants"
_ROUNDS = 100  # of SynFlow
_LAST = 0.3  # share of the last layer's weights that smart ratios keep

Chosen = tuple[Mapping[str, Tensor], Tensor, int]
"""Masks by parameter name, and of the links (L,); epochs that it took to find them."""


def gem_miner(setting: Setting) -> Iterator[Outcome]:
    """A ticket found at initialisation, then trained, and its controls.

    These are the same weights on as many random links, and, on the same links, as many
    random weights of each parameter, and new weights in the place of the constants.
    """
    start = time.process_time()
    how: Any = {"method": "init", "scope": "global", "detector": None}
    ticket = setting.search(setting.model(), **how)
    seconds = time.process_time() - start
    tickets = {FOUND: ticket, SHUFFLED: _shuffled(ticket), RENEWED: ticket}
    if setting.graph_ratio:
        tickets[RANDOM] = controls(ticket)["random"]
    for name, variant in tickets.items():
        start = time.process_time()
        model = setting.model()
        weights: Weights = "fresh" if name == RENEWED else "inherit"
        small = variant.open(model, setting.graph, weights=weights)
        val = setting.train(model, small, variant.weight_masks)
        spent = seconds + time.process_time() - start
        epochs = ticket.epoch, setting.recipe.fit.epochs
        yield Outcome(name, model, small, val, *epochs, spent, ticket)


def _shuffled(ticket: Ticket) -> Ticket:
    """The same number of weights of each parameter, at random."""
    draw = torch.Generator().manual_seed(ticket.seed)
    masks = {
        name: mask.flatten()[torch.randperm(mask.numel(), generator=draw)].view_as(mask)
        for name, mask in ticket.weight_masks.items()
    }
    return replace(ticket, masks={**ticket.masks, "weights": masks})


def _pruned(setting: Setting, *, choose: Any) -> Iterator[Outcome]:
    """A new model, pruned by what a function chooses, and trained.

    Once from its first weights, and once from Gem-Miner's constants.
    """
    start = time.process_time()
    masks, links, before = choose(setting)
    check_layers(masks, setting.weight_ratio)
    small, after = setting.graph.keep_links(links), setting.recipe.fit.epochs
    seconds = time.process_time() - start
    for name in (FOUND, CONSTANTS):
        start = time.process_time()
        model = setting.model()
        if name == CONSTANTS:
            for weight in prunable_weights(model).values():
                weight.data.copy_(signed_constants(weight.data))
        val = setting.train(model, small, masks)
        spent = seconds + time.process_time() - start
        yield Outcome(name, model, small, val, before, after, spent)


def _joint(setting: Setting) -> Chosen:
    """Joint-EB's masks alone."""
    ticket = setting.search(setting.model())
    return ticket.weight_masks, ticket.link_mask, ticket.epoch


def _snip(setting: Setting) -> Chosen:
    """The largest |gradient x value| of the training loss; one forward and backward."""
    model, links = setting.model().eval(), GraphSparsifier(setting.graph, setting.seed)
    fit, seed = setting.recipe.fit, setting.seed
    learner = Learner(model, setting.task, fit, seed=seed, groups=[links])
    with learner.drawing():
        learner.loss(setting.graph).backward()
    scores = {n: _saliency(w) for n, w in prunable_weights(model).items()}
    kept = top_links(_saliency(links.score), setting.graph_ratio, seed)
    return _top(scores, setting.weight_ratio), kept, 0


def _synflow(setting: Setting) -> Chosen:
    """The largest parts in the sum of all outputs, in 100 rounds, without data.

    All features are 1, and weights and links are their magnitudes, so that each part is
    of all paths through it.
    """
    model, graph = setting.model().eval(), setting.graph
    weights, value = prunable_weights(model), graph.adjacency.value
    ones = torch.ones(graph.num_nodes, graph.num_features).to(value)
    links = torch.ones(graph.num_links).to(value).requires_grad_()
    magnitudes = graph.adjacency.with_value(value.abs())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_()
    masks: dict[str, Tensor] = {}
    kept = graph.present
    for done in range(1, _ROUNDS + 1):
        model.zero_grad()
        links.grad = None
        run(model, ones, magnitudes.times(links, graph.link), None).sum().backward()
        scores = {n: _saliency(w) for n, w in weights.items()}
        masks = _top(scores, removed_after(setting.weight_ratio, done, _ROUNDS))
        share = removed_after(setting.graph_ratio, done, _ROUNDS)
        kept = top_links(_saliency(links), share, setting.seed)
        apply_masks(model, masks)
        with torch.no_grad():
            links.mul_(kept)
    return masks, kept, 0


def _smart(setting: Setting) -> Chosen:
    """Random links, and as many random weights of each layer as smart ratios say."""
    draw = torch.Generator().manual_seed(setting.seed)
    kept = random_links(setting.graph.num_links, setting.graph_ratio, draw)
    weights = prunable_weights(setting.model())
    sizes = [weight.numel() for weight in weights.values()]
    masks = {}
    for (name, weight), count in zip(
        weights.items(), smart_counts(sizes, setting.weight_ratio), strict=True
    ):
        order = torch.randperm(weight.numel(), generator=draw)
        masks[name] = (order < count).view_as(weight)
    return masks, kept, 0


def smart_counts(sizes: Sequence[int], ratio: float) -> list[int]:
    """How many weights each layer keeps; together as many as the ratio says.

    Of the last layer 30%; of layer l of L, a share that goes with k^2 + k, k = L-l+1.
    What is more than a layer has goes to those after it.

    Raises:
        ValueError: if there is not enough for the last layer's share.
    """
    total = sum(sizes)
    left = total - int(ratio * total)
    counts = [min(left, round(_LAST * sizes[-1]))]
    left -= counts[0]
    depth = len(sizes)
    shares = [(k * k + k) * n for k, n in zip(range(depth, 1, -1), sizes, strict=False)]
    found = []
    for k, size in enumerate(sizes[:-1]):
        count = min(size, round(left * shares[k] / sum(shares[k:])))
        found.append(count)
        left -= count
    if depth > 1 and not all(found):
        raise ValueError(
            f"a weight ratio of {ratio:g} leaves {total - int(ratio * total)} weights, "
            f"and {counts[0]} of them are the last layer's by smart ratios. Remove "
            "fewer."
        )
    return [*found, counts[0] + left]


def _saliency(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return (parameter.detach() * parameter.grad).abs()


def _top(scores: Mapping[str, Tensor], ratio: float) -> dict[str, Tensor]:
    """The highest of all parameters together."""
    flat = keep_top(torch.cat([s.flatten() for s in scores.values()]), ratio)
    parts = flat.split([score.numel() for score in scores.values()])
    pairs = zip(scores.items(), parts, strict=True)
    return {name: part.view_as(score) for (name, score), part in pairs}


AT_INIT: Mapping[str, Method] = {
    GEM: gem_miner,
    "joint-EB masks": partial(_pruned, choose=_joint),
    "SNIP": partial(_pruned, choose=_snip),
    "SynFlow": partial(_pruned, choose=_synflow),
    "smart ratio": partial(_pruned, choose=_smart),
}
"""Methods by name."""
