"""A detector that remembers: the distances of all pairs of a search's epochs."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gebt.prune.detector import Group, MaskDistanceDetector, Reading, Total


class RecordingDetector(MaskDistanceDetector):
    """A detector that keeps every mask, eight entries a byte, for pictures.

    Of groups of more than 16 million entries, or of which other ranks have parts, it
    keeps nothing.
    """

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self._packed: list[dict[str, np.ndarray]] = []
        self._reachable: dict[str, int] = {}

    def update(
        self, groups: Mapping[str, Group], total: Total | None = None
    ) -> Reading:
        """As the base class."""
        copies = {}
        for group, masks in groups.items():
            parts = [masks] if isinstance(masks, Tensor) else list(masks.values())
            size = sum(part.numel() for part in parts)
            if total is not None and total(group, [size]) != [size]:
                continue  # of other ranks' masks nothing is known here
            if size > 2**24:
                continue
            entries = torch.cat([part.flatten() for part in parts])
            copies[group] = entries.to("cpu", non_blocking=True)
        # This waits for a GPU, so the copies from there are complete after it.
        reading = super().update(groups, total)
        packed = {}
        for group, copy in copies.items():
            kept_or_not = copy.numpy()
            packed[group] = np.packbits(kept_or_not)
            if group not in self._reachable:
                kept = int(np.count_nonzero(kept_or_not))
                dropped = kept_or_not.size - kept
                self._reachable[group] = max(1, 2 * min(kept, dropped))
        self._packed.append(packed)
        return reading

    def state_dict(self) -> dict[str, Any]:
        """As the base class, and the masks, each as bytes."""
        packed = [
            {group: torch.from_numpy(mask) for group, mask in masks.items()}
            for masks in self._packed
        ]
        return {
            **super().state_dict(),
            "packed": packed,
            "reachable": dict(self._reachable),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """As the base class."""
        super().load_state_dict(state)
        self._packed = [
            {group: mask.cpu().numpy() for group, mask in masks.items()}
            for masks in state["packed"]
        ]
        self._reachable = dict(state["reachable"])

    def pairs(self) -> list[dict[str, Any]]:
        """Distances of the masks of all pairs of epochs, of some 60 if there are more.

        Scaled to [0, 1] by the largest distance that such masks can have.
        """
        every = -(-len(self._packed) // 60)
        epochs = range(0, len(self._packed), max(1, every))
        rows = []
        for group, scale in self._reachable.items():
            for a in epochs:
                for b in range(0, a, every):
                    apart = self._packed[a][group] ^ self._packed[b][group]
                    distance = int(np.unpackbits(apart).sum()) / scale
                    rows.append(
                        {
                            "group": group,
                            "epoch": a + 1,
                            "other": b + 1,
                            "distance": round(distance, 5),
                        }
                    )
        return rows
