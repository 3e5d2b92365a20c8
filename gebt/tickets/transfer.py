"""A ticket's weights on another graph: the same features, other nodes, other targets.

What is learned below the head, the last matrix, is of the features, and serves any
graph that has them. The ticket that `transfer` makes of another is opened, retrained
and compacted like any.
"""

import logging
from dataclasses import replace

import torch
from torch import Tensor, nn

from gebt.graph import Graph
from gebt.learn.tasks import Task, describe_task, find_task
from gebt.models import build_model, can_build, describe_model
from gebt.models.heads import head_of
from gebt.prune.weights import prunable_weights
from gebt.randomness import Draws
from gebt.tickets.ticket import Ticket, check_unseen

NOT_OF_OTHERS = ("learned", "grow")
"""Criteria that know nothing of other graphs than the searched one."""
_log = logging.getLogger("gebt")


def transfer(
    ticket: Ticket, graph: Graph, *, task: Task | None = None, seed: int | None = None
) -> Ticket:
    """The ticket for another graph with the same features.

    Its links are those that the ticket's criterion chooses there, `Ticket.links_for`;
    all of them where that knows nothing of other graphs (``learned``, ``grow``), which
    is said. On the searched graph itself, for another task, they are the ticket's. The
    weights and their masks are the ticket's, too; but a head of another width, where
    there are other classes, is drawn anew and keeps all its weights.

    Args:
        ticket: drawn on some graph.
        graph: whole, not pruned before.
        task: what is learned there; by default the ticket's.
        seed: for a new head; by default the ticket's plus 1.

    Raises:
        ValueError: if the graph has other features or not what the task needs, or the
            head must be of another width and gebt cannot build the model.
    """
    check_unseen(graph, ticket.model)
    task = task or find_task(ticket.options["task"])
    task.check(graph)
    own = {"name": graph.name, "fingerprint": graph.fingerprint()}
    options = {**ticket.options, "task": describe_task(task)}
    moved = replace(ticket, options=options)
    if own["fingerprint"] != ticket.dataset["fingerprint"]:
        mask, options["graph_ratio"] = _links(ticket, graph)
        ones = torch.ones_like(mask, dtype=ticket.link_score.dtype)
        moved = replace(
            moved,
            masks={**ticket.masks, "graph": {"link": mask}},
            scores={"graph": {"link": ones}},
            dataset=own,
            share_untouched=0.0,
        )
    found = (ticket.model.get("arguments") or {}).get("num_outputs")
    wanted = task.num_outputs(graph)
    if found is None and not can_build(ticket.model):
        return moved  # who gives the model knows how wide it is
    return moved if found == wanted else _with_head(moved, wanted, seed)


def _links(ticket: Ticket, graph: Graph) -> tuple[Tensor, float]:
    """(L,) of another graph those to keep, and the share that this removes."""
    criterion = ticket.options.get("criterion", "learned")
    ratio = ticket.options["graph_ratio"]
    if criterion not in NOT_OF_OTHERS:
        return ticket.links_for(graph), ratio
    if ratio:
        _log.info(
            "the criterion %s knows the links of %s alone: all those of %s are kept",
            *(criterion, ticket.dataset["name"], graph.name),
        )
    return graph.present, 0.0


def _with_head(ticket: Ticket, outputs: int, seed: int | None) -> Ticket:
    """The ticket with a new head of so many outputs."""
    arguments = {**ticket.model["arguments"], "num_outputs": outputs}
    description = {**ticket.model, "arguments": arguments}
    with Draws(ticket.seed + 1 if seed is None else seed, build_model).used():
        model = build_model(description)
    new = {n: model.state_dict()[n] for n in head(model)}
    masks = {n: m for n, m in ticket.weight_masks.items() if n not in new}
    return replace(
        ticket,
        model=description,
        weights={**ticket.weights, **new},
        first_weights={**ticket.first_weights, **new},
        masks={**ticket.masks, "weights": masks},
    )


def head(model: nn.Module) -> set[str]:
    """The names of what depends on the number of outputs.

    Of a model that gebt cannot build the matrix that was registered last, and what its
    module has beside it.
    """
    described = describe_model(model)
    if can_build(described) and "num_outputs" in described["arguments"]:
        return head_of(described)
    last = [*prunable_weights(model)][-1]
    module, dot, _ = last.rpartition(".")  # none of what is the model's own
    beside = [n for n in model.state_dict() if dot and n.startswith(module + dot)]
    return {last, *beside}


def freeze(model: nn.Module) -> None:
    """Let only a model's head learn, all whose shape depends on the number of outputs.

    Of a model that gebt cannot build: the matrix that was registered last, and the bias
    beside it.

    Batch norms still follow the mean and variance of what they see, as in training.
    """
    learns = head(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in learns)
