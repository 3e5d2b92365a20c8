"""Which nodes, or links, to train, validate and test on."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Split:
    """Node indices, int64, of each part."""

    train: Tensor
    val: Tensor
    test: Tensor


@dataclass(frozen=True, eq=False)
class LinkSplit:
    """Pairs of nodes, (P, 2) int64: links of each part and pairs to rank them among."""

    train: Tensor
    val: Tensor
    val_negative: Tensor
    test: Tensor
    test_negative: Tensor


def moved(split: Any, device: torch.device | str) -> Any:
    """A split on another device."""
    parts = {f.name: getattr(split, f.name).to(device) for f in fields(split)}
    return type(split)(**parts)


def stratified(y: np.ndarray, seed: int) -> dict[str, Tensor]:
    """Draw 60% of each class's nodes to train, 20% to validate and 20% to test on.

    A class of one node is trained on, of two, the other validates.

    Args:
        y: (N,) integer classes; a node with a negative one is in no part.
        seed: of the draw, from 0 on; the same on every machine.
    """
    drawn = np.random.RandomState(seed).permutation(np.flatnonzero(y >= 0))
    drawn = drawn[np.argsort(y[drawn], kind="stable")]
    first = np.searchsorted(y[drawn], y[drawn], side="left")
    count = np.searchsorted(y[drawn], y[drawn], side="right") - first
    # Node r of a class's n stands at (2 r + 1) / 2 n of it.
    place = 5 * (2 * (np.arange(drawn.size) - first) + 1)
    bounds = {"train": (0, 6), "val": (6, 8), "test": (8, 10)}
    return {
        part: torch.from_numpy(
            np.sort(drawn[(low * count <= place) & (place < high * count)])
        )
        for part, (low, high) in bounds.items()
    }


def read_split(
    data: Any, given: Mapping[str, Any] | None, n: int
) -> Split | LinkSplit | None:
    """The split of PyG's data: of its masks, unless one is given."""
    if given is not None and not isinstance(given, Mapping):
        raise ValueError(
            "`split` must be a mapping of 'train', 'val' and 'test' to node indices, "
            f"got a {type(given).__name__}."
        )
    if given is not None and any(isinstance(p, Mapping) for p in given.values()):
        return _link_split(given, n)
    parts: dict[str, Tensor] = {}
    for part, key in (("train", "train"), ("val", "valid"), ("test", "test")):
        if given is not None:
            index = as_tensor(f"split[{part!r}]", given.get(part, given.get(key)))
        else:
            mask = getattr(data, f"{part}_mask", None)
            if mask is not None and (mask.dtype != torch.bool or mask.shape != (n,)):
                raise ValueError(
                    f"`data.{part}_mask` must be boolean of shape ({n},), got "
                    f"{mask.dtype} {tuple(mask.shape)}. Of several splits, pick one "
                    "column first."
                )
            index = None if mask is None else mask.nonzero().squeeze(1)
        if index is None:
            if part == "train":
                if given is None:
                    return None
                raise ValueError(
                    f"`split` must name the training nodes 'train', got {list(given)}."
                )
            index = torch.empty(0, dtype=torch.int64)
        if index.dtype not in (torch.int32, torch.int64):
            raise ValueError(
                f"the {part} split must hold integer node indices, got {index.dtype}. "
                "Turn a mask into indices with `mask.nonzero().squeeze(1)`."
            )
        if index.dim() != 1:
            raise ValueError(
                f"the {part} split must be one list of node indices, got shape "
                f"{tuple(index.shape)}."
            )
        if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < n:
            raise ValueError(
                f"the {part} split must hold node indices in [0, {n}), got "
                f"{int(index.min())} to {int(index.max())}."
            )
        parts[part] = index.long()
    return Split(**parts)


def _link_split(given: Mapping[str, Mapping[str, Tensor]], n: int) -> LinkSplit:
    """From OGB's ``dataset.get_edge_split()``."""
    parts: dict[str, Tensor] = {}
    for part, key in (("train", "train"), ("val", "valid"), ("test", "test")):
        held = given.get(part, given.get(key, {}))
        if held and "edge" not in held:
            raise ValueError(
                f"the {part} split must name its links 'edge', got {list(held)}."
            )
        for name, entry in ((part, "edge"), (f"{part}_negative", "edge_neg")):
            pairs = held.get(entry, torch.empty((0, 2), dtype=torch.int64))
            pairs = as_tensor(f"split[{part!r}][{entry!r}]", pairs)
            whole = pairs.dtype in (torch.int32, torch.int64)
            if not whole or pairs.dim() != 2 or pairs.shape[1] != 2:
                raise ValueError(
                    f"{entry!r} of the {part} split must be integers of shape "
                    f"(pairs, 2), got {pairs.dtype} {tuple(pairs.shape)}."
                )
            if pairs.numel() and not 0 <= int(pairs.min()) <= int(pairs.max()) < n:
                raise ValueError(
                    f"{entry!r} of the {part} split must hold node indices in [0, {n})"
                    f", got {int(pairs.min())} to {int(pairs.max())}."
                )
            parts[name] = pairs.long()
    del parts["train_negative"]  # drawn anew each epoch
    return LinkSplit(**parts)


def as_tensor(name: str, given: Any) -> Any:
    """A tensor as it is, NumPy arrays and lists as tensors of their own, or None."""
    if given is None or isinstance(given, Tensor):
        return given
    try:
        tensor = torch.from_numpy(np.array(given, order="C"))
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"`{name}` must be a tensor, an array or a list of numbers, got a "
            f"{type(given).__name__} ({error})."
        ) from error
    if isinstance(given, np.ndarray) or not tensor.is_floating_point():
        return tensor
    # As torch makes tensors of Python's numbers; of none, whatever is asked for.
    return tensor.to(torch.get_default_dtype() if tensor.numel() else torch.int64)
