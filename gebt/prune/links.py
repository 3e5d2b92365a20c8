"""Graph sparsifiers: which links to keep."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gebt._checks import check_ratio
from gebt.graph import Graph
from gebt.kernels.hashing import hashed
from gebt.prune.criteria import Context, score_links
from gebt.prune.groups import Group
from gebt.prune.masks import keep_top
from gebt.prune.penalties import ADMM
from gebt.sparse import SparseMatrix


class GraphSparsifier(nn.Module, Group):
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
        prune_ratio: share of the full graph's links to remove, in [0, 1).
        lr: learning rate of the scores.
        penalty: L_reg of Eq. 3, or none.

    Attributes:
        score: (L,) parameter, float32 or float64.

    Raises:
        ValueError: if the graph has lost more links than the ratio removes.

    Source: You et al. 2022, Algorithms 1 and 2; departs in scoring links, not
    directed edges, so that the adjacency stays symmetric.
    """

    name = "graph"
    touched: Tensor

    def __init__(
        self,
        graph: Graph,
        seed: int = 0,
        *,
        prune_ratio: float = 0.0,
        lr: float = 0.001,
        penalty: ADMM | None = None,
    ):
        super().__init__()
        precise = torch.promote_types(graph.adjacency.dtype, torch.float32)
        self._present = graph.present
        self.score = nn.Parameter(self._present.to(precise))
        self.register_buffer("touched", torch.zeros_like(self._present))
        self.prune_ratio = check_ratio("prune_ratio", prune_ratio)
        self._lr = lr
        self._penalty = penalty
        self._lost = count_lost(graph)
        check_room(graph, self._lost, prune_ratio)
        self._seed = seed
        self._graph = graph
        self.world = graph.world
        if penalty is not None:
            penalty.reset(self.project)

    def forward(self, graph: Graph | None = None) -> SparseMatrix:
        """The adjacency with each value times its link's score, differentiable.

        Args:
            graph: a part of the searched graph, with its link ids; by default all.
        """
        graph = graph or self._graph
        return graph.adjacency.times(self.score, graph.link)

    def matrix(self, graph: Graph) -> SparseMatrix:
        """`forward`."""
        return self.forward(graph)

    def scores(self) -> list[dict[str, Any]]:
        """The score, without weight decay."""
        return [{"params": [self.score], "lr": self._lr}]

    def after_backward(self) -> None:
        """Note whom the loss reached; then comes the penalty, which reaches all."""
        if not self.score.requires_grad:
            return
        self.count_gradient()
        if self._penalty is not None:
            self._penalty(self.score).backward()

    def after_epoch(self, epoch: int, loss: Tensor) -> bool:
        """Let the penalty's dual grow."""
        if self._penalty is not None:
            self._penalty.update(self.score)
        return False

    def count_gradient(self) -> None:
        """Note which links the gradient of the loss, as it stands now, reaches."""
        if self.score.grad is not None:
            self.touched |= self.score.grad != 0

    def project(self, scores: Tensor, prune_ratio: float) -> Tensor:
        """`top_links` of any scores (L,), with this sparsifier's seed."""
        return top_links(scores, prune_ratio, self._seed, self._graph)

    def mask(self, prune_ratio: float) -> Tensor:
        """(L,) boolean mask that keeps the links of largest magnitude.

        Args:
            prune_ratio: share of the full graph's links to drop, in [0, 1).

        Raises:
            ValueError: if the graph has lost more links than that already.
        """
        check_room(self._graph, self._lost, prune_ratio)
        return self.project(self.score, prune_ratio)

    def masks(self) -> dict[str, Tensor]:
        """``"link"`` at the ratio; at 0 the links that the graph has."""
        ratio = self.prune_ratio
        return {"link": self.project(self.score, ratio) if ratio else self._present}

    def ranked(self) -> list[Tensor]:
        """The score."""
        return [self.score]

    def learned(self) -> dict[str, Tensor]:
        """The score, a copy."""
        return {"link": self.score.detach().clone()}

    def share_untouched(self) -> float:
        """Share of links that no gradient reached: their order carries nothing."""
        present = self._graph.links_in_all - self._lost
        touched = self.world.total(int(self.touched.count_nonzero()))
        return (present - touched) / present

    def get_extra_state(self) -> Any:
        """The penalty's part of `state_dict`."""
        return None if self._penalty is None else self._penalty.state_dict()

    def set_extra_state(self, state: Any) -> None:
        """The penalty's part of `load_state_dict`."""
        if self._penalty is not None:
            self._penalty.load_state_dict(state)


class RankedLinks(Group):
    """Links by fixed scores, known before the search; only weights are learned.

    Args:
        graph: the graph to sparsify; its edge weights stay as they are.
        prune_ratio: share of the full graph's links to remove, in [0, 1).
        scores: (L,) the larger, the sooner kept; see `gebt.prune.criteria`.
        seed: of the order of equal scores.
        fitted: what the criterion has learned from the graph, by name; for the ticket.

    Raises:
        ValueError: if the scores do not fit, or the graph has lost more links than
            the ratio removes.
    """

    name = "graph"

    def __init__(
        self,
        graph: Graph,
        prune_ratio: float,
        scores: Tensor,
        seed: int = 0,
        fitted: Mapping[str, Tensor] | None = None,
    ):
        self.prune_ratio = check_ratio("prune_ratio", prune_ratio)
        self.fitted = fitted or {}
        self.world = graph.world
        self._present = graph.present.to(scores.device)
        check_room(graph, count_lost(graph), prune_ratio)
        # By magnitude those rank first that score highest, those that are gone last.
        above = (scores.double() - self.world.least(scores) + 1) * self._present
        self._mask = top_links(above, prune_ratio, seed, graph) & self._present
        self._dtype = graph.adjacency.dtype

    def masks(self) -> dict[str, Tensor]:
        """``"link"``, always the same."""
        return {"link": self._mask}

    def learned(self) -> dict[str, Tensor]:
        """1 for each link that the graph has."""
        return {"link": self._present.to(self._dtype)}


def links_by(
    criterion: str,
    graph: Graph,
    model: nn.Module,
    prune_ratio: float,
    seed: int,
    task: Any = None,
    fitted: Mapping[str, Tensor] | None = None,
) -> RankedLinks:
    """The links that a criterion keeps; the same for one seed.

    Args:
        criterion: by name, see `gebt.prune.criteria`.
        graph: whose links.
        model: that will be trained, or that the criterion asks.
        prune_ratio: share of the full graph's links to remove, in [0, 1).
        seed: of what the criterion draws, and of the order of equal scores.
        task: what is learned; None for one class per node.
        fitted: what the criterion has learned from the graph that was trained on, if
            this is another; None for it to learn from this one.
    """
    draw = torch.Generator().manual_seed(seed)
    unseen = fitted is not None
    context = Context(draw, model, prune_ratio, task, dict(fitted or {}), unseen)
    scores = score_links(criterion, graph, context)
    return RankedLinks(graph, prune_ratio, scores, seed, context.fitted)


def count_lost(graph: Graph) -> int:
    """How many links a graph has lost; a GPU is waited for."""
    present = graph.world.total(int(graph.present.count_nonzero()))
    return graph.links_in_all - present


def check_room(graph: Graph, lost: int, prune_ratio: float) -> None:
    """Refuse a ratio that would remove fewer links than the graph has lost."""
    links = graph.links_in_all
    if prune_ratio and int(prune_ratio * links) < lost:
        raise ValueError(
            f"the graph {graph.name!r} is already pruned: it lacks {lost} of its "
            f"{links} links, and a ratio of {prune_ratio:g} removes fewer. "
            "Search the full graph, or remove more."
        )


def top_links(
    scores: Tensor, prune_ratio: float, seed: int, graph: Graph | None = None
) -> Tensor:
    """`keep_top` where among equal scores a hash of the link decides, not the position.

    Nodes that come late in a data set are often those to test on, and would lose more
    links than others.

    Args:
        scores: (L,).
        prune_ratio: share of the links to drop, in [0, 1).
        seed: of the hash.
        graph: whose links, where it may be one rank's share; the share is of the links
            of all ranks.

    Returns:
        (L,) boolean, True = kept.
    """
    if graph is None or graph.share is None:
        return keep_top(scores, prune_ratio, lambda links: hashed(links, seed))
    ids, total = graph.share.links, graph.world.sum
    return keep_top(scores, prune_ratio, lambda at: hashed(ids[at], seed), total)


def random_links(
    num_links: int,
    prune_ratio: float,
    generator: torch.Generator,
    graph: Graph | None = None,
) -> Tensor:
    """(L,) boolean mask of links drawn at random: the control of every ticket.

    Args:
        num_links: L.
        prune_ratio: share of the links to drop, in [0, 1).
        generator: on CPU.
        graph: as for `top_links`.
    """
    seed = int(torch.randint(2**62, (), generator=generator))
    return top_links(torch.ones(num_links), prune_ratio, seed, graph)
