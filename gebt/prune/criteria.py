"""Criteria: functions that score links, by name; users register their own.

A criterion is given a graph and a `Context` and gives scores (L,), the larger the
sooner kept.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import normalize

from gebt._registry import CRITERIA
from gebt.graph import Graph
from gebt.kernels import sddmm


@dataclass(frozen=True)
class Context:
    """What a criterion may use beside the graph.

    Attributes:
        generator: on CPU, for what is drawn.
        model: that will be trained, or has been; as it is, and not to be changed.
        prune_ratio: share of the full graph's links that will go, in [0, 1): some
            criteria choose links one after the other.
        task: what is learned, a `gebt.learn.tasks.Task`; None for one class per node.
        fitted: floating tensors by name: a criterion that learns something from a graph
            puts it here, and it is saved with the ticket.
        unseen: whether nothing was trained on the graph (`Ticket.links_for`). Then
            ``fitted`` is as it was saved, and the criterion learns nothing more.
    """

    generator: Generator
    model: nn.Module
    prune_ratio: float = 0.0
    task: Any = None
    fitted: dict[str, Tensor] = field(default_factory=dict)
    unseen: bool = False


Criterion = Callable[[Graph, Context], Tensor]
SHARED = ("random", "degree", "low-degree")
"""Names of the criteria that ranks can ask together, each of its own links."""
BY_RATIO: set[str] = set()
"""Names of the criteria whose order depends on how many links will go."""


def criterion(name: str, *, by_ratio: bool = False) -> Callable[[Criterion], Criterion]:
    """Register a function as a criterion for links.

    ``find_ticket(..., criterion=name)`` then keeps the links that it scores highest,
    as does ``gebt run --criterion name --plugin FILE``, with FILE the function's own::

        @gebt.criterion("longest")
        def longest(graph, context):
            row, col = graph.adjacency.pattern.edge_index
            none = torch.zeros(graph.num_links)
            return none.index_copy(0, graph.link.long(), (row - col).abs().float())

    Args:
        name: in lower case.
        by_ratio: whether the order of links depends on how many will go, as where they
            are chosen one after the other; `find_cheapest` then asks at every share.

    Raises:
        ValueError: if the name is one of gebt's own.
    """

    def register(function: Criterion) -> Criterion:
        CRITERIA.add(name, function, function.__module__)
        if by_ratio:
            BY_RATIO.add(name)
        else:
            BY_RATIO.discard(name)
        return function

    return register


def score_links(name: str, graph: Graph, context: Context) -> Tensor:
    """Scores (L,) of a criterion, by name, checked.

    Raises:
        ValueError: if there is no such criterion, it gives anything but one finite
            number for each link, or it has learned anything but finite numbers.
    """
    if graph.share is not None and name not in SHARED:
        raise ValueError(
            f"the criterion {name!r} looks at the whole graph, which no rank has. With "
            f"several ranks use 'learned' or {', '.join(map(repr, SHARED))}, or run "
            "one process."
        )
    scores = CRITERIA.find(name)(graph, context)
    shape = (graph.num_links,)
    if not isinstance(scores, Tensor) or scores.shape != shape:
        shown = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores)
        raise ValueError(
            f"the criterion {name!r} must give a tensor with one score for each of the "
            f"{graph.num_links} links, got {shown}."
        )
    if not scores.isfinite().all():
        raise ValueError(f"the criterion {name!r} must give finite scores.")
    for key, kept in context.fitted.items():
        if not isinstance(kept, Tensor) or not kept.is_floating_point():
            kind = str(kept.dtype if isinstance(kept, Tensor) else type(kept))
            raise ValueError(
                f"the criterion {name!r} must put floating tensors into "
                f"`context.fitted`, but {key!r} is {kind}."
            )
        if not kept.isfinite().all():
            raise ValueError(
                f"the criterion {name!r} has learned a {key!r} that is not finite."
            )
        context.fitted[key] = kept.detach()
    return scores.detach().to(graph.adjacency.device)


@criterion("learned")
def learned(graph: Graph, context: Context) -> Tensor:
    """By scores learned together with the weights, as the paper does."""
    if context.unseen:
        raise ValueError(transductive("learned", "one score for each link"))
    raise ValueError("links are learned by a search: use `gebt.find_ticket`.")


@criterion("random")
def random(graph: Graph, context: Context) -> Tensor:
    """At random: the control of every other."""
    draw = torch.rand(graph.links_in_all, generator=context.generator)
    if graph.share is not None:
        draw = draw[graph.share.links.cpu()]
    return draw.to(graph.link.device)


@criterion("degree")
def degree(graph: Graph, context: Context) -> Tensor:
    """Links of low-degree surroundings first, after TEDDY (Seo et al. 2024).

    The product over both ends of the mean of 1 / sqrt(degree) over a node and its
    neighbours.
    """
    adjacency, row = graph.adjacency, graph.adjacency.pattern.row
    count = adjacency.row_counts()
    low = count.clamp(min=1).rsqrt()
    around = low.index_add(0, row, adjacency.at_columns(low)) / (count + 1)
    return _better(graph, adjacency.at_rows(around) * adjacency.at_columns(around))


@criterion("low-degree")
def low_degree(graph: Graph, context: Context) -> Tensor:
    """1 / degree, of both ends together: links that their nodes have few others of.

    In a directed graph of the node alone that reads the other.
    """
    low = 1 / graph.adjacency.row_counts().clamp(min=1)
    return sum_of_ends(graph, graph.adjacency.at_rows(low))


@criterion("similarity")
def similarity(graph: Graph, context: Context) -> Tensor:
    """The cosine of the ends' features, plus 1."""
    pattern = graph.adjacency.pattern
    x = graph.x if isinstance(graph.x, Tensor) else graph.x.to_dense()
    x = normalize(x, dim=1)
    return _better(graph, 1 + sddmm(pattern.crow, pattern.col, x, x).clamp(-1, 1))


@criterion("k-neighbour")
def k_neighbour(graph: Graph, context: Context) -> Tensor:
    """The better of a link's places in a random order of each end's links.

    So every node keeps some. After NeuralSparse (Zheng et al. 2020).
    """
    chance = random(graph, context)
    pattern, link = graph.adjacency.pattern, graph.link
    row = pattern.row.long()
    order = (row + chance[link].double()).argsort()  # by row, random within
    place = torch.empty_like(order)
    place[order] = torch.arange(order.numel(), device=order.device)
    rank = (place - pattern.crow.long()[row]).double()
    # Chance between equal places.
    return _better(graph, 1 / (1 + rank) + 1e-9 * chance[link])


def in_rounds(
    graph: Graph,
    context: Context,
    score: Callable[[Tensor], Tensor],
    rounds: int = 12,
) -> Tensor:
    """Choose links in equal rounds, each by scores that know those chosen before.

    Among equal scores a random order decides.

    Args:
        graph: whose links.
        context: how many to choose, and the random order.
        score: given (L,) boolean, which are chosen so far, gives (L,) scores.
        rounds: how many.

    Returns:
        (L,) the sooner chosen the larger; 0 for links that are not chosen.
    """
    device, total = graph.link.device, graph.num_links
    chosen = torch.zeros(total, dtype=torch.bool, device=device)
    taken = ~graph.present  # what is gone cannot be chosen
    wanted = total - max(int(context.prune_ratio * total), int(taken.sum()))
    order = torch.randperm(total, generator=context.generator).to(device)
    place = torch.zeros(total, dtype=torch.float64, device=device)
    for done in range(1, rounds + 1):
        before = int(chosen.count_nonzero())
        more = wanted * done // rounds - before
        if more == 0:
            continue
        found = score(chosen).masked_fill(taken, -torch.inf).index_select(0, order)
        best = order[found.argsort(descending=True, stable=True)[:more]]
        place[best] = torch.arange(more, device=device).neg().double() + wanted - before
        chosen.index_fill_(0, best, True)
        taken.index_fill_(0, best, True)
    return place


def transductive(name: str, what: str) -> str:
    """Why a criterion has nothing to say of an unseen graph, in words."""
    return (
        f"the criterion {name!r} is transductive: it has learned {what} of the "
        "searched graph, and nothing of others. Draw the ticket by another criterion."
    )


def sum_of_ends(graph: Graph, edge: Tensor) -> Tensor:
    """(L,) the sum over a link's entries; 0 for links that the graph lacks."""
    return graph.by_links(edge, "sum")


def _better(graph: Graph, edge: Tensor) -> Tensor:
    """(L,) the larger of a link's entries; 0 for links that the graph lacks."""
    return graph.by_links(edge, "amax")
