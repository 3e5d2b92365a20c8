"""Registers an operation with torch: schema, kernel, fake, gradient, FLOPs."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.flop_counter import register_flop_formula

_library = torch.library.Library("gebt", "DEF")


def observed() -> bool:
    """Whether a compiler, a tracer or the FLOP counter is looking on."""
    return bool(torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack())


def register(
    schema: str,
    *,
    run: Callable[..., Tensor],
    fake: Callable[..., Tensor],
    backward: Callable[..., tuple[Tensor | None, ...]],
    flops: Callable[..., int],
    saves: Callable[[tuple, Tensor], tuple] = lambda inputs, output: inputs,
) -> Callable[..., Tensor]:
    """Define ``gebt::<schema>`` and return the callable.

    The gradient is once differentiable; ``saves`` chooses what it finds saved from
    the operation's inputs and its output.

    Compilers, tracers and the FLOP counter see the registered operation. In plain
    eager execution the callable goes to the same kernel and gradient by an autograd
    function: the dispatcher's two turns through Python take 35 us a call, a third of
    the inference of a ticket on Cora.
    """
    name = schema.partition("(")[0]
    qualified = f"gebt::{name}"

    def remember(ctx: Any, inputs: tuple, output: Any) -> None:
        ctx.save_for_backward(*saves(inputs, output))

    once = once_differentiable(backward)
    _library.define(schema)
    _library.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(qualified, fake, lib=_library)
    torch.library.register_autograd(
        qualified, once, setup_context=remember, lib=_library
    )
    packet = getattr(torch.ops.gebt, name)
    register_flop_formula(packet)(flops)
    registered = packet.default

    def forward(ctx: Any, *args: Any) -> Tensor:
        output = run(*args)
        remember(ctx, args, output)
        return output

    # Not with a separate `setup_context`: torch then inspects the signature at
    # every call, which takes as long as the dispatcher.
    methods = {"forward": staticmethod(forward), "backward": staticmethod(once)}
    eager: Any = type(name, (torch.autograd.Function,), methods)

    def call(*args: Tensor | None) -> Tensor:
        if observed():
            return registered(*args)
        if torch.is_grad_enabled() and any(
            a is not None and a.requires_grad for a in args
        ):
            return eager.apply(*args)
        return run(*args)

    return call
