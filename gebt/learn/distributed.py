"""Learning on a graph that several ranks share: what the loop is given for that.

Every rank has the model whole and the share of the graph that `gebt.graph.cut` gives
it. Losses and scores are of all shares, see `gebt.learn.tasks`; here the weights'
gradients are summed, and batch norms take their statistics over all ranks' nodes.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from gebt.models import LinearStack
from gebt.prune.groups import Hook
from gebt.world import World


def over_ranks(model: nn.Module, world: World) -> list[Hook]:
    """Let a model learn on the shares of several ranks; who sees to it.

    Args:
        model: the same on every rank; its batch norms are changed.
        world: who shares it.

    Raises:
        ValueError: if it is of a kind that reads more of other nodes than sums.
    """
    if world.size == 1:
        return []
    if not isinstance(model, LinearStack):
        raise ValueError(
            f"several ranks can train GCN, GIN and GraphSAGE, with norms and own paths "
            f"or without; a {type(model).__name__} needs one process."
        )
    for module in [*model.modules()]:
        for name, norm in module.named_children():
            if isinstance(norm, nn.BatchNorm1d):
                setattr(module, name, SharedBatchNorm(norm, world))
    return [SummedGradients(model, world)]


class SummedGradients(Hook):
    """After each backward every rank has the weights' gradients of all shares.

    Args:
        model: the same on every rank.
        world: who shares it.
    """

    def __init__(self, model: nn.Module, world: World):
        self._model, self._world = model, world

    def after_backward(self) -> None:
        """One sum of them all."""
        found = [p.grad for p in self._model.parameters() if p.grad is not None]
        if not found:
            return
        total = self._world.sum(torch.cat([grad.flatten() for grad in found]))
        sizes = [grad.numel() for grad in found]
        for grad, summed in zip(found, total.split(sizes), strict=True):
            grad.copy_(summed.view_as(grad))


class SharedBatchNorm(nn.BatchNorm1d):
    """A batch norm whose statistics in training are over all ranks' nodes.

    Torch's own, `torch.nn.SyncBatchNorm`, is for CUDA alone.

    Args:
        norm: whose parameters and statistics it takes over.
        world: the ranks.
    """

    def __init__(self, norm: nn.BatchNorm1d, world: World):
        super().__init__(norm.num_features, norm.eps, norm.momentum)
        self.world = world
        self._parameters, self._buffers = norm._parameters, norm._buffers
        self.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        """(n, H) to (n, H)."""
        if not self.training:
            return super().forward(x)
        count = self.world.total(x.shape[0])
        out, mean, variance = _Normed.apply(
            x, self.weight, self.bias, self.eps, count, self.world
        )
        with torch.no_grad():
            assert self.num_batches_tracked is not None and self.momentum is not None
            assert self.running_mean is not None and self.running_var is not None
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            unbiased = variance * (count / max(1, count - 1))
            self.running_var.lerp_(unbiased, self.momentum)
        return out


class _Normed(torch.autograd.Function):
    """The normed rows, and mean and variance of all ranks' rows."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        count: int,
        world: World,
    ) -> tuple[Tensor, ...]:
        mean = world.sum(x.sum(dim=0)) / count
        centred = x - mean
        variance = world.sum(centred.square().sum(dim=0)) / count
        scale = (variance + eps).rsqrt()
        ctx.save_for_backward(x, mean, scale, weight)
        ctx.shared = count, world
        out = torch.addcmul(bias, centred, scale * weight)
        ctx.mark_non_differentiable(mean, variance)
        return out, mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        x, mean, scale, weight = ctx.saved_tensors
        count, world = ctx.shared
        normed = (x - mean) * scale
        for_bias, for_weight = grad.sum(dim=0), (grad * normed).sum(dim=0)
        both = world.sum(torch.stack([for_bias, for_weight])) / count
        for_x = torch.addcmul(grad - both[0], normed, both[1], value=-1)
        return for_x.mul_(scale * weight), for_weight, for_bias, None, None, None
