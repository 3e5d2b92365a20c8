"""Graph sparsifiers: which links to keep."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from gebt._checks import check_choice
from gebt.graph import Graph
from gebt.kernels import sddmm
from gebt.prune.masks import keep_top
from gebt.sparse import SparseMatrix

Criterion = Literal["random", "degree", "similarity", "k-neighbour"]


class GraphSparsifier(nn.Module):
    """One learned score per link; it multiplies the link's edge weights.

    Scores start at 1, the unchanged graph. Both directions of an undirected link
    read the same score.

    Links that no gradient reaches keep the score 1: on Cora 18% of them with a GCN,
    49% with GraphSAGE or GAT. Among equal scores a fixed random order decides
    (`top_links`). Links that a pruned graph lacks have the score 0, so that pruning
    can go on where an earlier one stopped. Beside values of 16 bits scores have 32:
    their steps of a thousandth would be rounded away.

    Args:
        graph: the graph to sparsify.
        seed: of the order of equal scores.

    Attributes:
        score: (L,) parameter, float32 or float64.

    Source: You et al. 2022, Algorithms 1 and 2; departs in scoring links, not
    directed edges, so that the adjacency stays symmetric.
    """

    def __init__(self, graph: Graph, seed: int = 0):
        super().__init__()
        value = graph.adjacency.value
        precise = torch.promote_types(value.dtype, torch.float32)
        score = value.new_zeros(graph.num_links, dtype=precise)
        self.score = nn.Parameter(score.index_fill_(0, graph.link, 1))
        self._touched = torch.zeros_like(score, dtype=torch.bool)
        self._absent = graph.num_links - graph.links_kept
        self._order = random_order(graph.num_links, seed).to(value.device)
        self._graph = graph

    def forward(self) -> SparseMatrix:
        """The adjacency with each value times its link's score, differentiable."""
        full = self._graph.adjacency
        # index_select, not score[link]: its gradient repeats bit for bit on
        # several threads.
        score = self.score.index_select(0, self._graph.link)
        return full.with_value(full.value * score.to(full.dtype))

    def count_gradient(self) -> None:
        """Note which links the gradient of the loss, as it stands now, reaches."""
        if self.score.grad is not None:
            self._touched |= self.score.grad != 0

    def project(self, scores: Tensor, prune_ratio: float) -> Tensor:
        """`top_links` of any scores (L,), in this sparsifier's order."""
        return top_links(scores, prune_ratio, self._order)

    def mask(self, prune_ratio: float) -> Tensor:
        """(L,) boolean mask that keeps the links of largest magnitude.

        Args:
            prune_ratio: share of the full graph's links to drop, in [0, 1).

        Raises:
            ValueError: if the graph has lost more links than that already.
        """
        if int(prune_ratio * self.score.numel()) < self._absent:
            raise ValueError(
                f"the graph {self._graph.name!r} is already pruned: it lacks "
                f"{self._absent} of its {self.score.numel()} links, and a ratio of "
                f"{prune_ratio:g} removes fewer. Search the full graph, or remove more."
            )
        return self.project(self.score, prune_ratio)

    def share_untouched(self) -> float:
        """Share of links that no gradient reached: their order carries nothing."""
        present = self.score.numel() - self._absent
        return (present - int(self._touched.count_nonzero())) / present


def random_order(num_links: int, seed: int) -> Tensor:
    """(L,) an order of the links for `top_links`, drawn, the same on every device."""
    draw = torch.Generator("cpu").manual_seed(seed)
    return torch.randperm(num_links, generator=draw, device="cpu")


def top_links(scores: Tensor, prune_ratio: float, order: Tensor) -> Tensor:
    """`keep_top` where among equal scores an order decides, not the position.

    Nodes that come late in a data set are often those to test on, and would lose more
    links than others.

    Args:
        scores: (L,).
        prune_ratio: share of the links to drop, in [0, 1).
        order: (L,) of the links; of equal ones the first in it are kept.

    Returns:
        (L,) boolean, True = kept.
    """
    shuffled = keep_top(scores.index_select(0, order), prune_ratio)
    return torch.empty_like(shuffled).index_copy_(0, order, shuffled)


def random_links(
    num_links: int, prune_ratio: float, generator: torch.Generator
) -> Tensor:
    """(L,) boolean mask of links drawn at random: the control of every ticket."""
    return keep_top(torch.rand(num_links, generator=generator), prune_ratio)


def link_scores(
    graph: Graph, criterion: Criterion, generator: torch.Generator
) -> Tensor:
    """Scores of links that need no training; the larger, the sooner kept.

    Args:
        graph: with N nodes and L links, not pruned.
        criterion: ``"random"``; ``"degree"``, the product over both ends of the mean of
            1 / sqrt(degree) over a node and its neighbours, which keeps links of
            low-degree surroundings (after TEDDY); ``"similarity"``, the cosine of the
            ends' features; ``"k-neighbour"``, by a random order of each node's links,
            the better of a link's two places, so that every node keeps some.
        generator: for the random ones.

    Returns:
        (L,), none negative.
    """
    check_choice("criterion", criterion, Criterion)
    pattern, link = graph.adjacency.pattern, graph.link
    random = torch.rand(graph.num_links, generator=generator).to(link.device)
    if criterion == "random":
        return random
    row, col = pattern.row.long(), pattern.col.long()
    if criterion == "k-neighbour":
        order = (row + random[link].double()).argsort()  # by row, random within
        place = torch.empty_like(order)
        place[order] = torch.arange(order.numel(), device=order.device)
        rank = (place - pattern.crow.long()[row]).double()
        edge = 1 / (1 + rank) + 1e-9 * random[link]  # chance between equal places
    elif criterion == "degree":
        degree = torch.bincount(row, minlength=graph.num_nodes)
        low = degree.clamp(min=1).rsqrt()
        around = low.index_add(0, row, low[col]) / (pattern.crow.diff() + 1)
        edge = around[row] * around[col]
    else:
        x = graph.x if isinstance(graph.x, Tensor) else graph.x.to_dense()
        x = normalize(x, dim=1)
        edge = 1 + sddmm(pattern.crow, pattern.col, x, x).clamp(-1, 1)
    best = edge.new_zeros(graph.num_links)
    return best.scatter_reduce(0, link, edge, "amax")
