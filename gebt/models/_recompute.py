"""Activation checkpointing: a step keeps its input, and is computed again."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from gebt.randomness import drawn_again, stream


def recomputed(step: Callable[[Any], Any], h: Any, norm: nn.Module | None) -> Any:
    """``step(h)``, of which the backward finds nothing kept but the input.

    Args:
        step: must not work in place on its input.
        h: features, dense or sparse.
        norm: what the step normalises by; a batch norm counts the batch once.
    """
    if not torch.is_grad_enabled():
        return step(h)
    # With `use_reentrant=False` the learned link values, which reach the step inside
    # a SparseMatrix, get their gradients too.
    return checkpoint(
        step,
        h,
        use_reentrant=False,
        # Torch's own generators, where those draw.
        preserve_rng_state=stream(h.device) is None,
        context_fn=partial(_contexts, norm, h.device),
    )


def _contexts(norm: Any, device: torch.device) -> tuple[Any, Any]:
    """Of the forward, which begins now, and of its recomputation."""
    again = drawn_again(device)
    if not isinstance(norm, nn.BatchNorm1d):
        return nullcontext(), again
    return nullcontext(), _repeated(norm, again)


@contextmanager
def _repeated(
    norm: nn.BatchNorm1d, draws: AbstractContextManager[None]
) -> Iterator[None]:
    """Inside, a forward draws as before and leaves the running statistics alone."""
    momentum, norm.momentum = norm.momentum, 0.0
    count = norm.num_batches_tracked
    before = None if count is None else count.clone()
    try:
        with draws:
            yield
    finally:
        norm.momentum = momentum
        if count is not None and before is not None:
            count.copy_(before)
