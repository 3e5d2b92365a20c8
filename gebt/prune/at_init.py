"""Tickets of a model that is never trained: scores choose among frozen weights.

A weight, or a link, is in the model while its score, from 0 to 1, is above one half.
Only scores learn; every five epochs the lowest leave for good, until as many are left
as shall be.

Source: Sreenivasan et al. 2022, "Rare Gems" (Gem-Miner), with these departures:

1. links have scores too, and rounds of their own;
2. counts are exact, and ties are resolved by a hash;
3. there are about a hundred steps, on the whole graph, for its 58,650 on batches: each
   gradient is divided by its root mean square, which small constants and few training
   nodes make small, and the pull of the L2 term is per search, not per step. With its
   own rate and lambda = 1e-4 scores hardly move; by Adam, with that in the gradient,
   all of them fell;
4. constants are 20 times as large, so that frozen sums of few can answer surely.

The last two were chosen on the validation nodes of Cora and CiteSeer. As there, what
was not frozen out is in the ticket, though its score be below one half.
"""

import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gebt._checks import check_ratio
from gebt.graph import Graph
from gebt.kernels.hashing import hashed
from gebt.prune.groups import Group
from gebt.prune.links import check_room, count_lost
from gebt.prune.masks import keep_top, removed_after
from gebt.prune.weights import ModelPruner, check_layers, prunable_weights
from gebt.sparse import SparseMatrix

EVERY = 5
"""Epochs between two rounds, in each of which the lowest scores are frozen out."""
_LR = 0.03  # of scores, for an average gradient
_PULL = 1.2  # towards 0 over a search; lambda = 1e-4 comes to 0.6 in the paper
_SCALE = 20.0  # of the constants
_SGD = 1e6  # Adam with this eps, and as many times the rate, is SGD with momentum


def rounds_of(epochs: int) -> int:
    """In how many rounds a search freezes scores out; the last leaves it an epoch.

    Raises:
        ValueError: if there is no room for one.
    """
    rounds = (epochs - 1) // EVERY
    if rounds < 1:
        raise ValueError(
            f"a search at initialisation freezes scores out every {EVERY} epochs: "
            f"`epochs` must be more than that, got {epochs}."
        )
    return rounds


def rounded(score: Tensor) -> Tensor:
    """1 where a score is above one half, else 0; the gradient is the score's own."""
    return (score > 0.5).to(score.dtype) + (score - score.detach())


def signed_constants(weight: Tensor) -> Tensor:
    """Each weight's sign, times 20 root mean squares of those that are not 0."""
    count = weight.count_nonzero().clamp(min=1)
    return weight.sign() * _SCALE * (weight.square().sum() / count).sqrt()


class _AtInit(nn.Module, Group):
    """Scores of what is there, and what has not been frozen out.

    Args:
        there: (n,) boolean; what is not never comes back.
        prune_ratio: share of the n to freeze out in the end, in [0, 1).
        epochs: that the search has.
        seed: of the first scores, uniform from 0 to 1, and of the order of equal ones.
        dtype: of what the scores stand for; they have 32 bits at least.
    """

    active: Tensor

    def __init__(
        self,
        there: Tensor,
        prune_ratio: float,
        epochs: int,
        seed: int,
        dtype: torch.dtype,
    ):
        super().__init__()
        self.prune_ratio = check_ratio("prune_ratio", prune_ratio)
        self.rounds = rounds_of(epochs)
        self._epochs = epochs
        # Not of the seed itself: from that the first weights are drawn, and scores
        # would be high where weights are positive.
        self._seed = zlib.crc32(f"{seed} scores of {self.name}".encode())
        draw = torch.Generator().manual_seed(self._seed)
        precise = torch.promote_types(dtype, torch.float32)
        first = torch.rand(there.numel(), generator=draw, dtype=precise)
        self.score = nn.Parameter(first.to(there.device))
        self.register_buffer("active", there.clone())

    def present(self) -> Tensor:
        """(n,) 1 for what is in the model now, else 0; differentiable in the scores."""
        return rounded(self.score) * self.active

    def scores(self) -> list[dict[str, Any]]:
        """The score."""
        return [{"params": [self.score], "lr": _LR * _SGD, "eps": _SGD}]

    def after_backward(self) -> None:
        """Divide the gradient by its root mean square."""
        if (grad := self.score.grad) is not None:
            square = grad.square().sum() / self.active.count_nonzero()
            grad.div_(square.sqrt().clamp(min=torch.finfo(grad.dtype).tiny))

    @torch.no_grad()
    def after_step(self) -> None:
        """Clip the scores to [0, 1]."""
        self.score.clamp_(0, 1)

    @torch.no_grad()
    def after_epoch(self, epoch: int, loss: Tensor) -> bool:
        """Pull the scores to 0; freeze the lowest out, if it is time to."""
        self.score.mul_(1 - _PULL / self._epochs)
        done, rest = divmod(epoch, EVERY)
        if not rest and done <= self.rounds:
            share = removed_after(self.prune_ratio, done, self.rounds)
            self.active.copy_(self.highest(share))
        return False

    def highest(self, share: float) -> Tensor:
        """(n,) what would be left without the lowest share of all n."""
        ranked = (self.score.detach().double() + 1) * self.active
        kept = keep_top(ranked, share, lambda at: hashed(at, self._seed))
        return kept & self.active

    def ranked(self) -> list[Tensor]:
        """The score."""
        return [self.score]


class InitLinks(_AtInit):
    """Links by their scores; a link that is in has its own weight.

    Models that count links, GraphSAGE's mean and the softmax of GAT, still count those
    that are out for now.

    Args:
        graph: the graph to sparsify, whole.
        prune_ratio: share of the full graph's links to remove, in (0, 1).
        epochs: that the search has.
        seed: of the first scores, and of the order of equal ones.

    Raises:
        ValueError: if the graph has lost more links than the ratio removes, or the
            epochs leave no room for a round.
    """

    name = "graph"

    def __init__(self, graph: Graph, prune_ratio: float, *, epochs: int, seed: int = 0):
        there, dtype = graph.present, graph.adjacency.dtype
        super().__init__(there, prune_ratio, epochs, seed, dtype)
        check_room(graph, count_lost(graph), prune_ratio)
        self._graph = graph

    def matrix(self, graph: Graph) -> SparseMatrix:
        """The adjacency, the values of links that are out 0."""
        return graph.adjacency.times(self.present(), graph.link)

    def masks(self) -> dict[str, Tensor]:
        """``"link"`` at the ratio."""
        return {"link": self.highest(self.prune_ratio)}

    def learned(self) -> dict[str, Tensor]:
        """1 for each link that the graph has: scores choose, and scale nothing."""
        return {"link": self._graph.present.to(self._graph.adjacency.dtype)}


class InitWeights(_AtInit):
    """Weights by their scores, all together; the model's become constants, in place.

    Args:
        model: whose `prunable_weights`; new, best.
        prune_ratio: share of them to remove, in (0, 1).
        epochs: that the search has.
        seed: of the first scores, and of the order of equal ones.
        keep: boolean masks by parameter name of an earlier pruning; what they drop
            counts towards the ratio, and is dropped by the new masks too.

    Raises:
        ValueError: if the model computes its layers again in the backward, ``keep``
            does not fit or has dropped more, or the epochs leave no room for a round;
            later, in a round that would leave nothing of a parameter.
    """

    name = "weights"

    def __init__(
        self,
        model: nn.Module,
        prune_ratio: float,
        *,
        epochs: int,
        seed: int = 0,
        keep: Mapping[str, Tensor] | None = None,
    ):
        weights, keep = prunable_weights(model), dict(keep or {})
        ModelPruner(model, prune_ratio, keep=keep)  # refuses what does not fit
        if getattr(model, "recompute", False):
            raise ValueError(
                "with `recompute=True` the backward reads the model's own weights, not "
                "those that scores let through. Build the model without it."
            )
        there = torch.cat(
            [keep.get(n, torch.ones_like(w)).flatten() != 0 for n, w in weights.items()]
        )
        [dtype, *_] = [weight.dtype for weight in weights.values()]
        super().__init__(there, prune_ratio, epochs, seed, dtype)
        self._earlier = {n: m for n, m in keep.items() if n not in weights}
        self._frozen: dict[str, Tensor] = {}
        for name, weight in weights.items():
            weight.data.copy_(signed_constants(weight.data))
            self._frozen[name] = weight.data

    def weights(self) -> dict[str, Tensor]:
        """The constants that are in, and 0 for the others, by parameter name."""
        present = self._by_name(self.present())
        return {n: w * present[n].to(w.dtype) for n, w in self._frozen.items()}

    def after_epoch(self, epoch: int, loss: Tensor) -> bool:
        """Freeze the lowest out, if it is time to; refuse to empty a parameter."""
        stop = super().after_epoch(epoch, loss)
        if epoch % EVERY == 0:
            check_layers(self._by_name(self.active), self.prune_ratio)
        return stop

    def masks(self) -> dict[str, Tensor]:
        """Boolean masks by parameter name, at the ratio."""
        return self._by_name(self.highest(self.prune_ratio)) | self._earlier

    def _by_name(self, flat: Tensor) -> dict[str, Tensor]:
        parts = flat.split([weight.numel() for weight in self._frozen.values()])
        pairs = zip(self._frozen.items(), parts, strict=True)
        return {name: part.view_as(weight) for (name, weight), part in pairs}
