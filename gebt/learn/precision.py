"""Searches in few bits: what decides which ticket is drawn needs no more.

Sources: You et al., "Drawing Early-Bird Tickets", ICLR 2020, Sec. 4; block floating
point with stochastic rounding, Yang et al., "SWALP", ICML 2019.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Generator, Tensor, nn

from gebt.options import Precision
from gebt.prune.groups import Hook

_BITS = 8


@contextmanager
def lowered(model: nn.Module, precision: Precision, seed: int) -> Iterator[list[Hook]]:
    """Inside, a model computes in a precision; gives who sees to it in the loop.

    Args:
        model: its weights stay in its own dtype.
        precision: ``"full"`` as it is; ``"bf16"`` forwards under torch's autocast;
            ``"bfp8"`` what `BlockFloat` does.
        seed: of the rounding.
    """
    if precision == "full":
        yield []
    elif precision == "bf16":
        with _autocast(model):
            yield []
    else:
        rounding = BlockFloat(model, seed)
        layers = [m for m in model.modules() if any(True for _ in m.parameters(False))]
        handles = [m.register_forward_hook(rounding.activation) for m in layers]
        try:
            yield [rounding]
        finally:
            for handle in handles:
                handle.remove()


@contextmanager
def _autocast(model: nn.Module) -> Iterator[None]:
    """Inside, a model's forward runs in bfloat16 where torch thinks that safe."""
    forward: Callable[..., Tensor] = model.forward
    like = next(model.parameters())

    @wraps(forward)
    def low(*args: Any, **kwargs: Any) -> Tensor:
        with torch.autocast(like.device.type, torch.bfloat16):
            return forward(*args, **kwargs).to(like.dtype)

    vars(model)["forward"] = low
    try:
        yield
    finally:
        del vars(model)["forward"]


class BlockFloat(Hook):
    """Weights, gradients, activations and their gradients in 8 bits.

    Each row of a tensor shares an exponent, its largest entry's; entries are whole
    multiples of a step, rounded up or down at random, right on average. Simulated:
    numbers are still stored as floats. The optimiser's own state and what is learned
    beside the weights keep theirs.

    Args:
        model: whose weights are rounded now and after each step.
        seed: of the rounding.
    """

    def __init__(self, model: nn.Module, seed: int):
        self._model = model
        self._draw = Generator(next(model.parameters()).device).manual_seed(seed)
        self.after_step()

    @torch.no_grad()
    def after_backward(self) -> None:
        """Round the weights' gradients."""
        for parameter in self._model.parameters():
            if parameter.grad is not None:
                parameter.grad.copy_(block_float(parameter.grad, self._draw))

    @torch.no_grad()
    def after_step(self) -> None:
        """Round the weights."""
        for parameter in self._model.parameters():
            parameter.copy_(block_float(parameter, self._draw))

    def activation(self, module: nn.Module, _: Any, output: Any) -> Any:
        """A layer's output, and later its gradient, rounded; not in evaluation mode.

        Of several in a tuple each; what holds no floating numbers stays.
        """
        if isinstance(output, tuple):
            return tuple(self.activation(module, _, each) for each in output)
        rounds = isinstance(output, Tensor) and output.is_floating_point()
        if not module.training or not rounds:
            return output
        return _Rounded.apply(output, self._draw)

    def state_dict(self) -> dict[str, Any]:
        """Where the random numbers are."""
        return {"draw": self._draw.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self._draw.set_state(state["draw"])


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, draw: Generator) -> Tensor:
        ctx.draw = draw
        return block_float(x, draw)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return block_float(grad, ctx.draw), None


def block_float(x: Tensor, draw: Generator, bits: int = _BITS) -> Tensor:
    """The nearest numbers of so many bits, at random one of the two beside each.

    Args:
        x: (N, ...) floating; each of N rows is a block. A vector is one.
        draw: on its device.
        bits: of each number, its sign included.

    Returns:
        As ``x``: in a block, multiples of ``2^(e - bits + 2)`` of magnitude below
        ``2^(e + 1)``, where ``2^e`` is the power of 2 at or below its largest entry.
    """
    if not x.numel():
        return x
    within = tuple(range(x.dim() > 1, x.dim()))
    largest = x.abs().amax(dim=within, keepdim=True)
    # It is a mantissa in [0.5, 1) times 2^exponent.
    exponent = torch.frexp(largest).exponent
    step = torch.ldexp(torch.ones_like(largest), exponent - (bits - 1))
    step.clamp_(min=torch.finfo(x.dtype).tiny)  # of denormal numbers it would be 0
    noise = torch.empty_like(x).uniform_(generator=draw)
    most = 2 ** (bits - 1) - 1
    return noise.add_(x / step).floor_().clamp_(-most, most).mul_(step)
