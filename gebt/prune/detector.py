"""The early-bird detector: says when pruning masks have stopped changing.

It sees boolean masks in named groups and nothing else, no graph and no model,
so that it fits into any training loop:

    detector = MaskDistanceDetector()
    for epoch in range(epochs):
        ...
        if detector.update({"graph": link_mask, "weights": weight_mask}).settled:
            break

Source: You et al. 2022, Algorithms 1 and 2.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from gebt._checks import check_choice, check_count, check_not_negative, check_positive

Scale = Literal["reachable", "kept", "size", "first"]
Compare = Literal["window", "previous"]
Combine = Literal["sum", "mean"]
Group = Tensor | Mapping[str, Tensor]
Total = Callable[[str, list[int]], list[int]]
Shapes = dict[str, list[tuple[str, torch.Size]]]
Bits = list[list[int]] | Tensor
"""On CPU each part of each group as one long integer, which Python compares in few
steps; elsewhere all masks in one boolean vector."""


@dataclass(frozen=True)
class Reading:
    """What one update found.

    Attributes:
        epoch: completed updates, this one included.
        distances: per group, the largest scaled distance it is compared on; NaN
            as long as there is no earlier mask.
        joint: the watched groups' distances combined, the largest over the window.
        settled: the joint distance has stayed below the threshold.
    """

    epoch: int
    distances: dict[str, float]
    joint: float
    settled: bool


class MaskDistanceDetector:
    """Detects that the masks of an early-bird ticket have settled.

    The distance between two masks of a group is their Hamming distance divided
    by ``scale``; the watched groups' distances are combined into one. The masks
    have settled when that stays below the threshold for a whole window.

    Args:
        threshold: joint distance below which the masks count as stable, > 0.
        window: number of comparisons that must all be below it, at least 1.
        scale: what a Hamming distance is divided by. ``"reachable"``: the
            largest distance that masks of these sizes can have, so that it lies
            in [0, 1]. ``"kept"``: twice the kept entries. ``"size"``: all
            entries. ``"first"``: the group's own first non-zero distance, as in
            the paper's figures.
        compare: ``"window"`` compares the new mask with each of the last
            ``window`` masks, as the paper's code does; ``"previous"`` queues the
            distances of consecutive masks, as its Algorithms 1 and 2 do.
        combine: ``"sum"`` (the paper) or ``"mean"`` (its code) over the groups.
        watch: names of the groups that count; by default all.
        warmup: first readings that cannot settle, for distances that start small.

    Attributes:
        history: every `Reading` so far, oldest first.
    """

    def __init__(
        self,
        threshold: float = 0.1,
        window: int = 3,
        *,
        scale: Scale = "reachable",
        compare: Compare = "window",
        combine: Combine = "sum",
        watch: Iterable[str] | None = None,
        warmup: int = 0,
    ):
        check_positive("threshold", threshold)
        check_count("window", window)
        check_not_negative("warmup", warmup)
        check_choice("scale", scale, Scale)
        check_choice("compare", compare, Compare)
        check_choice("combine", combine, Combine)
        if isinstance(watch, str):
            watch = (watch,)
        if watch is not None and not (watch := tuple(watch)):
            raise ValueError("`watch` is empty: name a group, or leave it out for all.")
        self.threshold = threshold
        self.window = window
        self.scale = scale
        self.compare = compare
        self.combine = combine
        self.watch = watch
        self.warmup = warmup
        self.history: list[Reading] = []
        self._groups: Shapes = {}
        self._sizes: dict[str, int] = {}
        self._masks: deque[Any] = deque(maxlen=self._lookback)
        self._kept: deque[list[int]] = deque(maxlen=self._lookback)
        self._queue: deque[list[float]] = deque(maxlen=window)
        self._first: dict[str, float] = {}

    @property
    def _lookback(self) -> int:
        return self.window if self.compare == "window" else 1

    @property
    def settled(self) -> bool:
        """Whether the latest update found the masks settled."""
        return bool(self.history) and self.history[-1].settled

    def update(self, masks: Mapping[str, Group], total: Total | None = None) -> Reading:
        """Compare new masks with the earlier ones.

        Args:
            masks: per group a boolean tensor, True = kept, or a mapping of them
                (one per parameter, say), which counts as one concatenated mask.
                The groups and their shapes must stay the same; the tensors are
                copied and may change afterwards.
            total: where a group's masks are one rank's part of all, what adds up its
                counts over the ranks; given the group's name and the counts.

        Returns:
            The reading, also appended to ``history``.

        Raises:
            TypeError: if a mask is not boolean.
            ValueError: if the groups or shapes differ from the first update's, a
                watched group is missing, or no watched mask can ever change.
        """
        bits = self._bits(masks)
        kept, *hamming = self._count(bits)
        sizes = self._sizes
        if total is not None:
            table = zip(sizes.items(), kept, *hamming, strict=True)
            summed = {n: total(n, [size, *counts]) for (n, size), *counts in table}
            sizes = {name: counts[0] for name, counts in summed.items()}
            columns = [counts[1:] for counts in summed.values()]
            kept, *hamming = map(list, zip(*columns, strict=True))
        comparisons = [
            [
                self._scaled(name, size, *counts)
                for (name, size), *counts in zip(
                    sizes.items(), kept, then, far, strict=True
                )
            ]
            for then, far in zip(self._kept, hamming, strict=True)
        ]
        watched = [
            i
            for i, (name, size) in enumerate(sizes.items())
            if 0 < kept[i] < size and (self.watch is None or name in self.watch)
        ]
        if not watched:
            raise ValueError(
                "no watched mask can change: each of "
                f"{list(self.watch or sizes)} keeps all or none of its entries. "
                "Prune at least one of them at a ratio above 0."
            )
        if self.compare == "window":
            self._queue.clear()
        self._queue.extend(comparisons)
        self._masks.append(bits)
        self._kept.append(kept)

        queue, nan = self._queue, float("nan")
        joint = max([sum([d[i] for i in watched]) for d in queue], default=nan)
        if self.combine == "mean":
            joint /= len(watched)
        largest = [max(d) for d in zip(*queue, strict=True)] or [nan] * len(sizes)
        epoch = len(self.history) + 1
        reading = Reading(
            epoch=epoch,
            distances=dict(zip(sizes, largest, strict=True)),
            joint=joint,
            settled=len(queue) == self.window
            and joint < self.threshold
            and epoch > self.warmup,
        )
        self.history.append(reading)
        return reading

    def _bits(self, masks: Mapping[str, Group]) -> Bits:
        """Check the masks and copy them, so that none changes under us."""
        if masks.keys() == self._groups.keys():
            masks = {name: masks[name] for name in self._groups}  # in our order
        found: Shapes = {}
        pieces: list[list[Tensor]] = []
        for name, group in masks.items():
            parts = group if isinstance(group, Mapping) else {"": group}
            found[name] = [_check_mask(name, key, part) for key, part in parts.items()]
            pieces.append(list(parts.values()))
        if not found or found != self._groups:
            self._start(found)
        if pieces[0][0].is_cpu:
            return [[_integer(part) for part in parts] for parts in pieces]
        return torch.cat([part.flatten() for parts in pieces for part in parts])

    def _start(self, found: Shapes) -> None:
        if self._groups:
            raise ValueError(
                "`masks` must have the same groups and shapes at every update: "
                f"expected {_describe(self._groups)}, got {_describe(found)}. "
                "Start a new detector if the model has changed."
            )
        if not found:
            raise ValueError("`masks` is empty: give at least one group.")
        if empty := [name for name, shapes in found.items() if not shapes]:
            raise ValueError(f"`masks[{empty[0]!r}]` has no masks in it.")
        if missing := set(self.watch or ()) - set(found):
            raise ValueError(
                f"`watch` names {sorted(missing)}, but `masks` has only the "
                f"groups {list(found)}."
            )
        self._lay_out(found)

    def _lay_out(self, groups: Shapes) -> None:
        self._groups = groups
        self._sizes = {
            name: sum(shape.numel() for _, shape in shapes)
            for name, shapes in groups.items()
        }

    def _count(self, bits: Bits) -> list[list[int]]:
        """Per group, the kept entries, then the Hamming distance to each old mask."""
        if self._masks and type(self._masks[-1]) is not type(bits):
            # Restored from a state, or the masks have moved to another device.
            old = [self._vector(mask) for mask in self._masks]
            self._masks.clear()
            if isinstance(bits, list):
                self._masks.extend(self._integers(mask.cpu()) for mask in old)
            else:
                self._masks.extend(mask.to(bits.device) for mask in old)
        if isinstance(bits, list):
            kept = [sum([part.bit_count() for part in group]) for group in bits]
            return [kept, *[_differing(bits, then) for then in self._masks]]
        rows = torch.stack([torch.zeros_like(bits), *self._masks]) ^ bits
        groups = rows.split(list(self._sizes.values()), dim=1)
        counts = torch.stack([group.count_nonzero(dim=1) for group in groups], dim=1)
        return counts.tolist()  # one transfer for all of them

    def _vector(self, bits: Bits) -> Tensor:
        """All of one update's masks as a boolean vector."""
        if isinstance(bits, Tensor):
            return bits
        return torch.cat(
            [
                _unpack(part, shape.numel())
                for group, shapes in zip(bits, self._groups.values(), strict=True)
                for part, (_, shape) in zip(group, shapes, strict=True)
            ]
        )

    def _integers(self, vector: Tensor) -> Bits:
        """The other way round."""
        groups = self._groups.values()
        sizes = [shape.numel() for shapes in groups for _, shape in shapes]
        parts = iter(vector.split(sizes))
        return [[_integer(next(parts)) for _ in shapes] for shapes in groups]

    def _scaled(
        self, name: str, size: int, kept: int, then: int, hamming: int
    ) -> float:
        if hamming == 0:
            return 0.0
        if self.scale == "reachable":
            return hamming / min(kept + then, 2 * size - kept - then)
        if self.scale == "kept":
            return hamming / (2 * kept) if kept else 1.0
        if self.scale == "size":
            return hamming / size
        return hamming / self._first.setdefault(name, hamming)

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on later: tensors, numbers and strings only."""
        return {
            "options": self.options(),
            "groups": {
                name: [(key, list(shape)) for key, shape in parts]
                for name, parts in self._groups.items()
            },
            "masks": [self._vector(mask) for mask in self._masks],
            "kept": [list(k) for k in self._kept],
            "queue": [list(q) for q in self._queue],
            "first": dict(self._first),
            "history": [asdict(r) for r in self.history],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            ValueError: if that detector had other options.
        """
        theirs, ours = state["options"], self.options()
        if theirs != ours:
            differing = {k: (theirs.get(k), v) for k, v in ours.items()}
            raise ValueError(
                "the state was saved by a detector with other options "
                "(saved, here): "
                f"{ {k: v for k, v in differing.items() if v[0] != v[1]} }. "
                "Create the detector with the saved ones."
            )
        self._lay_out(
            {
                name: [(key, torch.Size(shape)) for key, shape in parts]
                for name, parts in state["groups"].items()
            }
        )
        self._masks = deque(state["masks"], maxlen=self._lookback)
        self._kept = deque(map(list, state["kept"]), maxlen=self._lookback)
        self._queue = deque(map(list, state["queue"]), maxlen=self.window)
        self._first = dict(state["first"])
        self.history = [Reading(**reading) for reading in state["history"]]

    def options(self) -> dict[str, Any]:
        """What it was created with, as numbers and strings."""
        return {
            "threshold": self.threshold,
            "window": self.window,
            "scale": self.scale,
            "compare": self.compare,
            "combine": self.combine,
            "watch": None if self.watch is None else list(self.watch),
            "warmup": self.warmup,
        }


def _check_mask(name: str, key: str, mask: Any) -> tuple[str, torch.Size]:
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        where = f"[{name!r}]" + (f"[{key!r}]" if key else "")
        raise TypeError(
            f"`masks{where}` must be a boolean tensor, True = kept, got {got}."
        )
    return key, mask.shape


def _integer(mask: Tensor) -> int:
    return int.from_bytes(np.packbits(mask.numpy()).tobytes(), "little")


def _unpack(integer: int, size: int) -> Tensor:
    packed = np.frombuffer(integer.to_bytes(-(-size // 8), "little"), dtype=np.uint8)
    return torch.from_numpy(np.unpackbits(packed, count=size).astype(bool))


def _differing(a: list[list[int]], b: list[list[int]]) -> list[int]:
    return [
        sum([(i ^ j).bit_count() for i, j in zip(mine, theirs, strict=True)])
        for mine, theirs in zip(a, b, strict=True)
    ]


def _describe(groups: Shapes) -> str:
    return str(
        {
            name: {key: tuple(shape) for key, shape in parts}
            if parts[0][0]
            else tuple(parts[0][1])
            for name, parts in groups.items()
        }
    )
