"""L_reg of Eq. 3: what pulls link scores towards a pruned graph."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from gebt._checks import check_ratio
from gebt.prune.masks import keep_top

Project = Callable[[Tensor, float], Tensor]


class ADMM:
    """``rho * ||s - Z + U||^2``, summed over links.

    Z is the pruned projection of s + U and U the running dual, which adds up how
    far s has stayed from being sparse. The reference code divides the sum by N^2,
    which makes it inert; here every link feels ``rho`` itself.

    Args:
        rho: weight of each link's term.
        prune_ratio: share of links that Z drops, in [0, 1).

    Source: Li et al. 2020 (SGCN), used as Eq. 3 of You et al. 2022.
    """

    def __init__(self, rho: float = 1e-3, *, prune_ratio: float):
        if not rho > 0:
            raise ValueError(f"`rho` must be positive, got {rho}.")
        self.rho = rho
        self.prune_ratio = check_ratio("prune_ratio", prune_ratio)
        self.reset()

    def options(self) -> dict[str, Any]:
        """What it was created with, and its name, as numbers and strings."""
        return {"name": "ADMM", "rho": self.rho, "prune_ratio": self.prune_ratio}

    def reset(self, project: Project = keep_top) -> None:
        """Begin a search: forget the dual of an earlier one.

        Args:
            project: which scores (L,) Z keeps at a ratio; `find_ticket` gives its
                sparsifier's rule, so that among equal scores, as all are at first, not
                the position decides.
        """
        self._keep = project
        self._dual: Tensor | None = None
        self._target: Tensor | None = None

    def __call__(self, scores: Tensor) -> Tensor:
        """The penalty, a scalar that is differentiable in the scores (L,)."""
        if self._dual is None or self._target is None:
            self._dual = torch.zeros_like(scores)
            self._target = self._project(scores.detach())
        return self.rho * (scores - self._target + self._dual).square().sum()

    @torch.no_grad()
    def update(self, scores: Tensor) -> None:
        """After each epoch: project, then let the dual grow."""
        if self._dual is None:
            self._dual = torch.zeros_like(scores)
        self._target = self._project(scores + self._dual)
        self._dual += scores - self._target

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on later."""
        return {"dual": self._dual, "target": self._target}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        copies = {n: None if t is None else t.clone() for n, t in state.items()}
        self._dual, self._target = copies["dual"], copies["target"]

    def _project(self, scores: Tensor) -> Tensor:
        return scores * self._keep(scores, self.prune_ratio)
