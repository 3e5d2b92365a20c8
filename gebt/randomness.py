"""Random numbers that belong to whoever draws them: nothing global moves.

A `Draws` holds the streams of one seed. Inside its `used` block whatever gebt draws,
in that thread alone, comes from there: dropout, negatives, first weights. Outside,
torch's own generators serve, as a user of a plain module expects.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

_current: ContextVar["Draws | None"] = ContextVar("draws", default=None)


class Draws:
    """The random streams of a seed, one for each device.

    Args:
        seed: of all of them.
        users: the models and tasks that will draw.
    """

    def __init__(self, seed: int, *users: object):
        self._seed = seed
        self._ours = all(map(_draws_here, users))
        self._streams: dict[torch.device, Generator] = {}

    def stream(self, device: torch.device) -> Generator:
        """The generator of a device; the same object at every call."""
        if device not in self._streams:
            self._streams[device] = Generator(device).manual_seed(self._seed)
        return self._streams[device]

    def state_dict(self) -> dict[str, Tensor]:
        """Where each stream is, by device."""
        return {str(d): stream.get_state() for d, stream in self._streams.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on where `state_dict` was taken."""
        for device, where in state.items():
            self.stream(torch.device(device)).set_state(where.cpu())

    @contextmanager
    def used(self) -> Iterator[None]:
        """Inside, in this thread, all random numbers come from these streams.

        Other people's modules, such as PyG's, ask torch's own generators. They get
        these streams in their place, at 10 us for each operation of theirs.
        """
        token = _current.set(self)
        try:
            with nullcontext() if self._ours else _Redirected(self):
                yield
        finally:
            _current.reset(token)

    @contextmanager
    def _again(self, stream: Generator, state: Tensor) -> Iterator[None]:
        now = stream.get_state()
        stream.set_state(state)
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)
            stream.set_state(now)


def stream(device: torch.device) -> Generator | None:
    """Where to draw from now; None is torch's own generator."""
    draws = _current.get()
    return None if draws is None else draws.stream(device)


def drawn_again(device: torch.device) -> AbstractContextManager[None]:
    """A block inside which is drawn what is drawn from now on.

    For a forward that the backward computes again, perhaps in another thread.
    """
    draws = _current.get()
    if draws is None:
        return nullcontext()
    stream = draws.stream(device)
    return draws._again(stream, stream.get_state())


class _Redirected(TorchDispatchMode):
    """Hands every operation of torch that draws the streams of a `Draws`.

    What torch lets draw from its own generators alone (dropout inside its fused
    attention) still does.
    """

    def __init__(self, draws: Draws):
        super().__init__()
        self._draws = draws

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Called by torch in place of each operation."""
        kwargs = kwargs or {}
        seeded = torch.Tag.nondeterministic_seeded in func.tags
        if not seeded or kwargs.get("generator") is not None:
            return func(*args, **kwargs)
        if torch._C._current_autograd_node() is not None:
            raise ValueError(
                f"the model draws by {func} in its backward, as activation "
                "checkpointing does: what it drew in the forward is not known there. "
                "Turn checkpointing off, or dropout."
            )
        here = next((a.device for a in args if isinstance(a, Tensor)), "cpu")
        stream = self._draws.stream(torch.device(kwargs.get("device") or here))
        operation, how = func.overloadpacket, func._overloadname
        if operation in _LIKE:
            out = torch.empty_like(args[0], **kwargs)
            return _LIKE[operation](out, *args[1:], generator=stream)
        if operation is torch.ops.aten.native_dropout:
            return _native_dropout(stream, *args)
        if how in _SEEDED and _SEEDED[how] in operation.overloads():
            func = getattr(operation, _SEEDED[how])
        if any(argument.name == "generator" for argument in func._schema.arguments):
            if kwargs.get("generator") is None:
                kwargs = {**kwargs, "generator": stream}
        return func(*args, **kwargs)


def _native_dropout(
    stream: Generator, x: Tensor, p: float, train: bool | None
) -> tuple[Tensor, Tensor]:
    """Torch's on CUDA: the output, and what was kept."""
    if train is False:
        return x.clone(), torch.ones_like(x, dtype=torch.bool)
    kept = torch.empty_like(x, dtype=torch.bool).bernoulli_(1 - p, generator=stream)
    return x * kept * (0.0 if p == 1 else 1 / (1 - p)), kept


_LIKE: dict[Any, Any] = {
    torch.ops.aten.rand_like: Tensor.uniform_,
    torch.ops.aten.randn_like: Tensor.normal_,
    torch.ops.aten.randint_like: Tensor.random_,
}
_SEEDED = {"default": "generator", "low": "low_generator"}
"""Of an operation's form without a generator, the form with one."""


def _draws_here(user: object) -> bool:
    """Whether something, with all its parts, draws by `stream` alone."""
    parts = user.modules() if isinstance(user, nn.Module) else [user]
    return all(
        type(part) in _DRAW_NOTHING or type(part).__module__.startswith("gebt.")
        for part in parts
    )


_DRAW_NOTHING = (nn.ModuleList, nn.ModuleDict, nn.BatchNorm1d)
"""Torch's modules in gebt's own models."""
