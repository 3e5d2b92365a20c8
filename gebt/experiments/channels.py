"""EB-Train's method as the experiments run it: tickets of whole channels."""

import time
import warnings
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gebt.experiments.methods import Outcome, Setting
from gebt.graph import Graph, Split
from gebt.learn.loop import Learner
from gebt.learn.tasks import Part
from gebt.learn.training import evaluate, keep_best
from gebt.models.recipe import Recipe
from gebt.options import EB_TRAIN, Fit
from gebt.prune.channels import ChannelPruner, drop_channels
from gebt.prune.detector import MaskDistanceDetector
from gebt.tickets.ticket import Ticket

DENSE, TICKET, RANDOM = "dense", "ticket", "random channels"
LOW = "ticket by bfp8"
PRECISIONS = ("bf16", "bfp8")
_BATCH = 20


class DigitsCNN(nn.Module):
    """Three convolutions with batch norm on images of 8 x 8; it reads no link.

    Args:
        num_features: 64, the pixels.
        hidden: channels of the first two convolutions; the third has twice as many.
        num_outputs: C.
        dropout: before the linear map to the outputs.
    """

    def __init__(
        self, num_features: int, hidden: int, num_outputs: int, dropout: float
    ):
        super().__init__()
        if num_features != 64:
            raise ValueError(f"a DigitsCNN reads 64 pixels, not {num_features}.")
        widths = (1, hidden), (hidden, hidden), (hidden, 2 * hidden)
        blocks = [
            nn.Sequential(
                nn.Conv2d(*width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width[1]),
                nn.ReLU(),
            )
            for width in widths
        ]
        pool = nn.MaxPool2d(2)
        self.features = nn.Sequential(*blocks[:2], pool, blocks[2], pool, nn.Flatten())
        self.output = nn.Sequential(
            nn.Dropout(dropout), nn.Linear(8 * hidden, num_outputs)
        )

    def forward(self, x: Tensor, adjacency: Any, rows: Tensor | None = None) -> Tensor:
        """(N, 64) to (N, C), or to those of the rows (R,) alone."""
        if rows is not None:
            x = x[rows]
        return self.output(self.features(x.view(-1, 1, 8, 8)))

    def shrink(self) -> tuple[nn.Module, Tensor]:
        """As it is, for `compact`: its channels have left already."""
        return deepcopy(self).eval(), torch.ones(64, dtype=torch.bool)


CNN = Recipe(
    "cnn",
    "three convolutions with batch norm",
    "",
    DigitsCNN,
    hidden=24,
    dropout=0.0,
    fit=Fit(lr=0.01, weight_decay=1e-4, decay="all", epochs=160),
)


def eb_train(setting: Setting) -> Iterator[Outcome]:
    """A ticket of links and channels, slimmed and trained on for the epochs left.

    As many random channels of each layer with the same weights and links; and the
    ticket of a search in 8 bits. Beside the first, how far the masks of searches in few
    bits, and of one by another dropout, equal its own, with their unpruned models'
    scores; in the place of the dense model's, its own.
    """
    ticket, seconds, scores = _searched(setting, "full")
    shuffled = _shuffled(ticket.channel_masks, setting.seed)
    random = replace(ticket, masks={**ticket.masks, "channels": shuffled})
    others = {name: _searched(setting, name) for name in PRECISIONS}
    seeded = replace(setting, seed=setting.seed + 1000)
    others["other dropout"] = _searched(setting, "full", seeded)
    beside = [
        {
            "links": name,
            "share": setting.graph_ratio,
            **of_model,
            "dense": scores["test"],
            "cpu_seconds": round(spent, 4),
            "equal_links": _equal(ticket, other, "graph"),
            "equal_channels": _equal(ticket, other, "channels"),
        }
        for name, (other, spent, of_model) in others.items()
    ]
    low, low_seconds, _ = others["bfp8"]
    found = {TICKET: (ticket, seconds), RANDOM: (random, seconds)}
    found[LOW] = low, low_seconds
    for name, (each, spent) in found.items():
        start = time.process_time()
        model = setting.model()
        model, small = each.slim(model, each.open(model, setting.graph))
        left = max(1, setting.recipe.fit.epochs - each.epoch)
        rest = replace(setting, recipe=setting.recipe.changed(epochs=left))
        val = rest.train(model, small)
        spent += time.process_time() - start
        yield Outcome(
            *(name, model, small, val, each.epoch, left, spent, each),
            beside=beside if name == TICKET else (),
        )


def eb_train_images(setting: Setting) -> Iterator[Outcome]:
    """EB-Train of a model that reads images alone, through the loop in small batches.

    Dense; without the channels that the ticket drops, trained on for the epochs left;
    without as many random ones of each layer.
    """
    graph, fit = setting.graph, setting.recipe.fit
    batches = partial(_batches, graph, setting.seed)
    begun: Any = {"task": setting.task, "seed": setting.seed}
    start = time.process_time()
    model = setting.model()
    val = keep_best(Learner(model, fit=fit, **begun), batches, fit, graph).val
    spent = time.process_time() - start
    yield Outcome(DENSE, model, graph, val, fit.epochs, 0, spent)
    start = time.process_time()
    model = setting.model()
    pruner = ChannelPruner(model, setting.weight_ratio)
    detector = MaskDistanceDetector(0.1, **EB_TRAIN)
    learner = Learner(model, fit=fit, groups=[pruner], **begun)
    for _ in learner.epochs(batches, fit.epochs):
        if detector.update({"channels": pruner.masks()}).settled:
            break
    seconds, epoch = time.process_time() - start, learner.epoch
    rest = replace(fit, epochs=max(1, fit.epochs - epoch))
    masks = pruner.masks()
    kinds = {TICKET: masks, RANDOM: _shuffled(masks, setting.seed)}
    for name, keep in kinds.items():
        start = time.process_time()
        small = drop_channels(model, keep)
        val = keep_best(Learner(small, fit=rest, **begun), batches, rest, graph).val
        spent = seconds + time.process_time() - start
        drawn = detector.history[-1]
        yield Outcome(
            *(name, small, graph, val, epoch, rest.epochs, spent), drawn=drawn
        )


def _batches(graph: Graph, seed: int, epoch: int) -> Iterator[Graph]:
    """An epoch's graphs: the same, each with some of the nodes to train on."""
    assert isinstance(graph.split, Split)
    draw = torch.Generator().manual_seed((seed << 20) + epoch)
    train = graph.split.train
    order = torch.randperm(train.numel(), generator=draw).to(train.device)
    for some in train[order].split(_BATCH):
        yield replace(graph, split=replace(graph.split, train=some))


def _shuffled(masks: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """As many channels of each layer, at random."""
    draw = torch.Generator().manual_seed(seed)
    return {
        name: mask[torch.randperm(mask.numel(), generator=draw).to(mask.device)]
        for name, mask in masks.items()
    }


def _searched(
    setting: Setting, precision: str, by: Setting | None = None
) -> tuple[Ticket, float, dict[str, float]]:
    """A ticket of a new model's channels, its CPU seconds, its model's own scores."""
    start = time.process_time()
    options: Mapping[str, Any] = {"unit": "channel", "precision": precision}
    rule = MaskDistanceDetector(0.1, **EB_TRAIN)
    model = setting.model()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "not every hidden layer")
        ticket = (by or setting).search(model, detector=rule, **options)
    spent = time.process_time() - start
    parts: tuple[Part, ...] = ("val", "test")
    scored = partial(evaluate, model, setting.graph, task=setting.task)
    return ticket, spent, {part: round(scored(part), 3) for part in parts}


def _equal(a: Ticket, b: Ticket, group: str) -> float:
    """The share of a group's mask entries that two tickets have in common."""
    mine, theirs = (torch.cat([*ticket.masks[group].values()]) for ticket in (a, b))
    return round(float((mine == theirs).float().mean()), 4)
