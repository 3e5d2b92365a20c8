"""What can be pruned, and what goes on beside learning."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from gebt.graph import Graph
from gebt.sparse import SparseMatrix
from gebt.world import ALONE, World


class Hook:
    """What goes on beside the steps of a training; by default nothing does."""

    def after_backward(self) -> None:
        """Between each backward and its step."""

    def after_step(self) -> None:
        """After each step of the optimiser."""

    def after_epoch(self, epoch: int, loss: Tensor) -> bool:
        """After each epoch, counted from 1, with its loss; True ends the training."""
        return False

    def at_end(self) -> None:
        """After the last epoch."""

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on later."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> Any:
        """Go on where `state_dict` was taken."""


class Group(Hook):
    """Something that a search prunes.

    Attributes:
        name: its key in the detector and in the ticket: ``"graph"`` for links,
            ``"weights"`` for weights.
        prune_ratio: share of it to remove, in [0, 1); at 0 the detector does not see
            it.
        world: who holds the parts of its masks; by default this process has them whole.
    """

    name: str
    prune_ratio: float
    world: World = ALONE

    def scores(self) -> list[dict[str, Any]]:
        """Groups of the optimiser: what is learned beside the weights, and how."""
        return []

    def matrix(self, graph: Graph) -> SparseMatrix | None:
        """What stands for a graph's adjacency; None where its own does."""
        return None

    def weights(self) -> dict[str, Tensor]:
        """What stands for a model's parameters, by name; for the others they do."""
        return {}

    def ranked(self) -> list[Tensor]:
        """What the masks are made of, to look for NaN in."""
        return []

    def masks(self) -> dict[str, Tensor]:
        """Boolean masks by name, True = kept, as they would be now."""
        raise NotImplementedError

    def learned(self) -> dict[str, Tensor]:
        """Scores by name, for the ticket."""
        return {}
