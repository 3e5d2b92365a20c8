"""Graph sparsifiers: which links to keep."""

import torch
from torch import Tensor, nn

from gebt.graph import Graph
from gebt.masks import keep_top
from gebt.sparse import SparseMatrix


class GraphSparsifier(nn.Module):
    """One learned score per link; it multiplies the link's edge weights.

    Scores start at 1, the unchanged graph. Both directions of an undirected link
    read the same score.

    Args:
        graph: the graph to sparsify.

    Attributes:
        score: (L,) parameter.

    Source: You et al. 2022, Algorithms 1 and 2; departs in scoring links, not
    directed edges, so that the adjacency stays symmetric.
    """

    def __init__(self, graph: Graph):
        super().__init__()
        if (present := graph.links_kept) < graph.num_links:
            raise ValueError(
                f"the graph {graph.name!r} is already pruned: it has {present} of its "
                f"{graph.num_links} links. Search the full graph."
            )
        value = graph.adjacency.value
        self.score = nn.Parameter(value.new_ones(graph.num_links))
        self._graph = graph

    def forward(self) -> SparseMatrix:
        """The adjacency with each value times its link's score, differentiable."""
        full = self._graph.adjacency
        # index_select, not score[link]: its gradient repeats bit for bit on
        # several threads.
        score = self.score.index_select(0, self._graph.link)
        return full.with_value(full.value * score)

    def mask(self, prune_ratio: float) -> Tensor:
        """(L,) boolean mask that keeps the links of largest |score|."""
        return keep_top(self.score, prune_ratio)

    def share_untouched(self) -> float:
        """Share of links whose score never moved: their order carries nothing."""
        return float((self.score.detach() == 1).float().mean())


def random_links(
    num_links: int, prune_ratio: float, generator: torch.Generator
) -> Tensor:
    """(L,) boolean mask of links drawn at random: the control of every ticket."""
    return keep_top(torch.rand(num_links, generator=generator), prune_ratio)
