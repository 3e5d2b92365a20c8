"""Methods of single experiments: one set of weights on every criterion's links.

Each trains weights once and then asks what they are worth on which links; unlike those
of `gebt.experiments.methods` they are no ways to a ticket.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gebt._registry import MODELS
from gebt.experiments import in_order
from gebt.experiments.at_init import AT_INIT
from gebt.experiments.channels import CNN, eb_train, eb_train_images
from gebt.experiments.methods import Method, Outcome, Setting
from gebt.experiments.operators import supertickets
from gebt.experiments.unseen import without_test_nodes
from gebt.graph import Graph, Split
from gebt.learn.student import student_of, train_student
from gebt.learn.training import evaluate, train
from gebt.models.gcn import GCN
from gebt.models.recipe import Recipe
from gebt.prune.links import links_by
from gebt.prune.masks import keep_top
from gebt.prune.units import slim, unit_scores

CRITERIA = (
    *("voi", "expected-gradient", "grow"),
    *("low-degree", "k-neighbour", "forest", "random"),
)
INDUCTIVE = tuple(name for name in CRITERIA if name != "grow")
"""Those that are functions of any graph."""
SHARES = (0.2, 0.4, 0.6, 0.8, 0.95)
"""Of the links, removed."""
NO_LINKS, ALL_LINKS = "no links", "all links"
PERMUTED = "voi, beliefs permuted"
LEARNED = "learned"
ASKED, OTHERS = "grow, half asked: the asked", "grow, half asked: the others"
DRAWN = (LEARNED, "random", "low-degree", "k-neighbour", "voi")
"""What links a search's weights get."""
_EPOCHS = 200  # of a dense model at least, so that it has learned all it can

OWN_PATH, DEEP, WIDE = "gcn-own", "gcn-res6", "gcn-64"
_SIX: Any = {"layers": 6, "residual": True, "norm": "batch"}
VARIANTS: Mapping[str, Recipe] = {
    CNN.model: CNN,
    OWN_PATH: replace(MODELS["gcn"], build=partial(GCN, residual=True)),
    DEEP: replace(MODELS["gcn-res"], build=partial(GCN, **_SIX)).changed(
        weight_decay=0.0, epochs=300, patience=60
    ),
    WIDE: MODELS["gcn"].changed(hidden=64, dropout=0.2, epochs=200),
}
"""Recipes that experiments alone know: GCN with a path of each node's own features, and
of six layers with batch norm, too, and of more units; a CNN for images of digits."""


class Answers(nn.Module):
    """What a criterion that asks a model is told instead of its answers.

    Args:
        model: that is asked.
        change: from the answers (N, C) to others.
    """

    def __init__(self, model: nn.Module, change: Callable[[Tensor], Tensor]):
        super().__init__()
        self.model = model
        self._change = change

    def forward(self, x: Any, adjacency: Any) -> Tensor:
        """(N, C)."""
        return self._change(self.model(x, adjacency))


def student(setting: Setting) -> Iterator[Outcome]:
    """A dense model, and its student, scored as it is on every criterion's links.

    The student's outcome has a row for each: at every one of `SHARES`, or at the
    setting's ratio alone where that is not 0. Nothing is retrained.
    """
    graph = setting.graph
    start = time.process_time()
    dense, val, epochs = _dense(setting, graph)
    yield Outcome("dense", dense, graph, val, epochs, 0, _since(start))
    answers = _answers(dense, graph)
    model, masks, more = _student_of(setting, graph, dense, answers)
    seconds = _since(start)
    shares = (setting.graph_ratio,) if setting.graph_ratio else SHARES
    rows = list(_on_links(setting, model, masks, answers, shares))
    val = evaluate(model, graph, "val", task=setting.task)
    spent = epochs + more, 0, seconds
    yield Outcome("all", model, graph, val, *spent, beside=rows)


def inductive(setting: Setting) -> Iterator[Outcome]:
    """A student that never saw test nodes, on the links that its tickets find for them.

    A dense model and its student learn on the graph without test nodes. By each
    criterion a ticket is drawn there, and prunes the full graph by `Ticket.links_for`;
    nothing is retrained. Validation scores are those on the graph without test nodes,
    with the ticket's own links. With no links to remove, the dense model alone, with
    all links.
    """
    graph, seen = setting.graph, without_test_nodes(setting.graph)
    start = time.process_time()
    dense, val, epochs = _dense(setting, seen)
    spent: Any = {"full_epochs": 0, "epochs": 0, "rounds": ((seen, epochs),)}
    if not setting.graph_ratio:
        yield Outcome("dense", dense, graph, val, seconds=_since(start), **spent)
        return
    model, masks, more = _student_of(setting, seen, dense, _answers(dense, seen))
    spent["rounds"] = ((seen, epochs + more),)
    seconds = _since(start)
    options: Any = {"weight_ratio": 0.0, "update_weights": False, "keep": masks}
    for links in (*INDUCTIVE, ALL_LINKS, NO_LINKS):
        start = time.process_time()
        if links in INDUCTIVE:
            ticket = setting.search(model, graph=seen, criterion=links, **options)
            small = graph.keep_links(ticket.links_for(graph))
            own = seen.keep_links(ticket.link_mask)
        else:
            small, own = (
                at.keep_links(
                    at.link.new_full((at.num_links,), links == ALL_LINKS).bool()
                )
                for at in (graph, seen)
            )
        alone = seconds + _since(start)
        val = evaluate(model, own, "val", task=setting.task)
        yield Outcome(links, model, small, val, seconds=alone, **spent)


def _dense(setting: Setting, graph: Graph) -> tuple[nn.Module, float, int]:
    """A dense model trained on a graph, its validation score and its epochs."""
    fit = setting.recipe.fit
    if not setting.quick:
        fit = replace(fit, epochs=max(fit.epochs, _EPOCHS))
    model = setting.model()
    val = train(model, graph, fit=fit, seed=setting.seed, task=setting.task).val
    return model, val, fit.epochs


def _student_of(
    setting: Setting, graph: Graph, dense: nn.Module, answers: Tensor
) -> tuple[nn.Module, Mapping[str, Tensor], int]:
    """A dense model's student on the same graph, its masks and its epochs."""
    fit = student_of(setting.recipe.fit)
    model = setting.model()
    model.load_state_dict(dense.state_dict())
    masks = train_student(
        *(model, graph, answers),
        weight_ratio=setting.weight_ratio,
        scope=setting.recipe.scope,
        fit=fit,
        seed=setting.seed,
        task=setting.task,
    ).masks
    return model, masks, fit.epochs


def _on_links(
    setting: Setting,
    model: nn.Module,
    masks: Mapping[str, Tensor],
    dense: Tensor,
    shares: Sequence[float],
) -> Iterator[dict[str, Any]]:
    """A student's scores on each criterion's links, and on those of the controls.

    Each row has the dense model's test score on the same nodes.
    """
    graph = setting.graph
    draw = torch.Generator().manual_seed(setting.seed)
    order = torch.randperm(graph.num_nodes, generator=draw).to(graph.link.device)
    asked, parts = _halves(graph, draw)
    controls = {
        PERMUTED: ("voi", Answers(model, lambda out: out[order])),
        # No gradient of the others' answers: they are not asked.
        ASKED: ("grow", Answers(model, lambda o: torch.where(asked, o, o.detach()))),
    }
    asks = {name: (name, model) for name in CRITERIA} | controls

    def row(links: str, share: float, keep: Tensor, seconds: float) -> dict[str, Any]:
        at = parts.get(links, graph)
        answers = _answers(model, graph.keep_links(keep))
        return {
            "links": links,
            "share": share,
            "val": _score(setting, answers, at, "val"),
            "test": _score(setting, answers, at, "test"),
            "dense": _score(setting, dense, at, "test"),
            "cpu_seconds": round(seconds, 4),
        }

    none = torch.zeros(graph.num_links, dtype=torch.bool, device=graph.link.device)
    yield row(ALL_LINKS, 0.0, ~none, 0.0)
    yield row(NO_LINKS, 1.0, none, 0.0)
    for share in shares:
        for name, (criterion, teller) in asks.items():
            start = time.process_time()
            how: Any = (share, setting.seed, setting.task)
            keep = links_by(criterion, graph, teller, *how).masks()["link"]
            seconds = _since(start)
            yield row(name, share, keep, seconds)
            if name == ASKED:
                yield row(OTHERS, share, keep, seconds)
        # As GEB learns links: for given weights, which are the student's here.
        start = time.process_time()
        frozen: Any = {"update_weights": False, "weight_ratio": 0.0, "keep": masks}
        ticket = setting.search(deepcopy(model), graph_ratio=share, **frozen)
        yield row(LEARNED, share, ticket.link_mask, _since(start))


def _halves(graph: Graph, draw: torch.Generator) -> tuple[Tensor, dict[str, Graph]]:
    """(N, 1) a random half of the nodes but those to train on; the graph split by it.

    Of the two graphs one is validated and tested on that half, one on the others.
    """
    assert isinstance(graph.split, Split)
    flag = torch.rand(graph.num_nodes, generator=draw).to(graph.link.device) < 0.5
    flag.index_fill_(0, graph.split.train, False)
    found = {}
    for name, mine in ((ASKED, flag), (OTHERS, ~flag)):
        parts = {p: getattr(graph.split, p) for p in ("val", "test")}
        split = {part: nodes[mine[nodes]] for part, nodes in parts.items()}
        found[name] = replace(graph, split=replace(graph.split, **split))
    return flag.unsqueeze(1), found


@torch.no_grad()
def _answers(model: nn.Module, graph: Graph) -> Tensor:
    """(N, C) in evaluation mode."""
    out: Tensor = model.eval()(graph.x, graph.adjacency)
    return out


def _score(setting: Setting, answers: Tensor, graph: Graph, part: Any) -> float:
    rows = setting.task.rows(graph, part)
    assert rows is not None
    return round(setting.task.score(answers[rows], graph, part), 3)


def _since(start: float) -> float:
    return time.process_time() - start


def drawn(setting: Setting) -> Iterator[Outcome]:
    """A search's weights, as they are when it is drawn, retrained on several links.

    `voi` asks the search's weights, before any is pruned.
    """
    start = time.process_time()
    searched = setting.model()
    ticket = setting.search(searched)
    seconds = _since(start)
    for links in DRAWN:
        start = time.process_time()
        variant = ticket
        if links != LEARNED:
            how: Any = (setting.graph_ratio, setting.seed, setting.task)
            kept = links_by(links, setting.graph, searched, *how)
            variant = ticket.with_links(kept.masks()["link"])
        model = setting.model()
        small = variant.open(model, setting.graph)
        val = setting.train(model, small, variant.weight_masks)
        epochs = ticket.epoch, setting.recipe.fit.epochs
        spent = seconds + _since(start)
        yield Outcome(links, model, small, val, *epochs, spent, ticket)


def units(setting: Setting) -> Iterator[Outcome]:
    """A model without a share of its hidden units, the setting's ratio of weights.

    Without its least units, and without as many at random, both trained on; and as
    narrow a model from scratch.
    """
    start = time.process_time()
    dense: Any = setting.model()
    setting.train(dense, setting.graph)
    seconds, epochs = _since(start), setting.recipe.fit.epochs
    ratio = setting.weight_ratio
    least = slim(dense, ratio)
    draw = torch.Generator().manual_seed(setting.seed)
    chance = [torch.rand(each.numel(), generator=draw) for each in unit_scores(dense)]
    random = dense.slim([keep_top(each, ratio).to(_device(dense)) for each in chance])
    recipe = setting.recipe.changed(
        hidden=least.arguments["hidden"][0], dropout=least.dropout
    )
    scratch = replace(setting, recipe=recipe).model()
    for name, model, before in (
        ("largest units", least, epochs),
        ("random units", random, epochs),
        ("from scratch", scratch, 0),
    ):
        start = time.process_time()
        val = setting.train(model, setting.graph)
        spent = _since(start) + seconds * bool(before)
        yield Outcome(name, model, setting.graph, val, before, epochs, spent)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


STUDIES: Mapping[str, Method] = {
    "units": units,
    "student": student,
    "drawn": drawn,
    "inductive": inductive,
    **AT_INIT,
    "eb-train": eb_train,
    "eb-train-images": eb_train_images,
    "targets": in_order.targets,
    "ordered": in_order.ordered,
    "transferred": in_order.transferred,
    "supertickets": supertickets,
}
"""Every such method, by name."""
