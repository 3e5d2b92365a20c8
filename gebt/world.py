"""Processes that share one piece of work, each holding a part of it.

`ALONE` is a single process, in which every sum is what it was. `Ranks` are several,
by torch.distributed: whatever they call here, all of them call, in the same order.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")
Reduced = Callable[[str], Tensor]
"""A loss, given how torch shall reduce it: ``"mean"`` or ``"sum"``."""


class World:
    """One process.

    Attributes:
        rank: which process this is, of ``size``.
    """

    rank = 0
    size = 1

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, the same bits on each; no gradient."""
        return tensor

    def total(self, number: int) -> int:
        """The sum of a number over all ranks."""
        return number

    def most(self, number: int) -> int:
        """The largest of a number over all ranks."""
        return number

    def least(self, tensor: Tensor) -> Tensor:
        """The smallest entry of all ranks' tensors, a scalar; no gradient."""
        return tensor.detach().min()

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all ranks, one rank after the other; no gradient."""
        return rows

    def mean(self, loss: Reduced, count: int) -> Tensor:
        """A mean loss over all ranks' entries, the same on each.

        Its gradient on a rank is of what that rank's entries add to it: gradients of
        what all ranks hold are to be summed.

        Args:
            loss: of this rank's entries.
            count: how many those are.
        """
        return loss("mean")

    def sums(self, tensor: Tensor) -> Tensor:
        """As `sum`, differentiable: every rank's loss counts."""
        return tensor

    def attempt(self, action: Callable[[], T]) -> T:
        """What an action gives; if it fails on one rank it fails on all.

        Raises:
            ValueError: on ranks where it went well, with the rank and words of another;
                its own error where it did not. An OSError remains one.
        """
        return action()

    def told(self, thing: T) -> T:
        """What rank 0 has."""
        return thing

    def each(self, thing: Any) -> list[Any]:
        """What every rank has, rank 0's first."""
        return [thing]


ALONE = World()


class Ranks(World):
    """The processes of torch.distributed's default group, which is there already."""

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def sum(self, tensor: Tensor) -> Tensor:
        """See `World`."""
        total = tensor.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    def total(self, number: int) -> int:
        """See `World`."""
        return int(self.sum(torch.tensor(number, device=self.device)))

    def most(self, number: int) -> int:
        """See `World`."""
        found = torch.tensor(number, device=self.device)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found)

    def least(self, tensor: Tensor) -> Tensor:
        """See `World`."""
        own = tensor.detach()
        found = own.min() if own.numel() else _highest(own)
        dist.all_reduce(found, dist.ReduceOp.MIN)
        return found

    def gather(self, rows: Tensor) -> Tensor:
        """See `World`."""
        counts = rows.new_tensor([rows.shape[0]], dtype=torch.int64)
        each = [torch.empty_like(counts) for _ in range(self.size)]
        dist.all_gather(each, counts)
        sizes = [int(n) for n in each]
        send, receive = [rows.shape[0]] * self.size, sizes
        everywhere = rows.detach().repeat(self.size, *[1] * (rows.dim() - 1))
        return self.exchange(everywhere, send, receive)()

    def mean(self, loss: Reduced, count: int) -> Tensor:
        """See `World`."""
        mean: Tensor = _Mean.apply(loss("sum"), count, self)
        return mean

    def sums(self, tensor: Tensor) -> Tensor:
        """See `World`."""
        total: Tensor = _Sum.apply(tensor, self)
        return total

    def attempt(self, action: Callable[[], T]) -> T:
        """See `World`."""
        try:
            done, error = action(), None
        except (ValueError, OSError, MemoryError) as raised:
            error = raised
        words = error and (str(error) or type(error).__name__)
        failed = {r: said for r, said in enumerate(self.each(words)) if said}
        if error is not None:
            raise error
        for rank, said in failed.items():
            raise ValueError(f"rank {rank}: {said}")
        return done

    def told(self, thing: T) -> T:
        """See `World`."""
        held = [thing]
        dist.broadcast_object_list(held)
        return held[0]

    def each(self, thing: Any) -> list[Any]:
        """See `World`."""
        things: list[Any] = [None] * self.size
        dist.all_gather_object(things, thing)
        return things

    def exchange(
        self,
        rows: Tensor,
        send: Sequence[int],
        receive: Sequence[int],
        into: Tensor | None = None,
    ) -> Callable[[], Tensor]:
        """Send rows to the other ranks and get theirs; begins at once.

        Args:
            rows: (sum of ``send``, ...) for rank 0 first, then for rank 1, and so on.
            send: how many each rank gets.
            receive: how many each rank has for this one.
            into: where to put them; by default a new tensor.

        Returns:
            What waits for the rows of rank 0, then of rank 1, and so on: (sum of
            ``receive``, ...).
        """
        flags = rows.dtype == torch.bool
        rows = rows.view(torch.uint8) if flags else rows
        into = into.view(torch.uint8) if flags and into is not None else into
        shape = (sum(receive), *rows.shape[1:])
        found = rows.new_empty(shape) if into is None else into
        work = dist.all_to_all_single(
            found, rows.contiguous(), list(receive), list(send), async_op=True
        )

        def wait() -> Tensor:
            work.wait()
            return found.view(torch.bool) if flags else found

        return wait

    @property
    def device(self) -> torch.device:
        """Where the group's own numbers must be."""
        nccl = dist.get_backend() == "nccl"
        return torch.device("cuda", torch.cuda.current_device()) if nccl else _CPU


_CPU = torch.device("cpu")


def _highest(like: Tensor) -> Tensor:
    info = torch.finfo if like.is_floating_point() else torch.iinfo
    return like.new_tensor(info(like.dtype).max)


class _Mean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, total: Tensor, count: int, world: World) -> Tensor:
        both = world.sum(torch.stack([total, total.new_tensor(count)]))
        ctx.count = both[1]
        return both[0] / both[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad / ctx.count, None, None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, world: World) -> Tensor:
        ctx.world = world
        return world.sum(tensor)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.world.sum(grad), None
