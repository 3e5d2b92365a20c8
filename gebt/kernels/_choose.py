"""Which implementation of an operation runs: the first that does not refuse."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

_asked: str | None = None


@dataclass(frozen=True)
class Implementation:
    """One way to compute an operation.

    Attributes:
        name: what a user asks for, such as ``"torch"``.
        run: the function; every implementation of an operation has its signature.
        refuses: takes the same arguments; None, or a sentence that says why not.
    """

    name: str
    run: Callable[..., Tensor]
    refuses: Callable[..., str | None]


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Run every kernel inside the block with the implementation of that name.

    Asking by name never falls back: an implementation that cannot take its
    arguments raises, and says why.

    Args:
        name: ``"torch"`` or ``"reference"``, which every kernel has, or ``"bag"``,
            which only `spmm` has.
    """
    global _asked
    before, _asked = _asked, name
    try:
        yield
    finally:
        _asked = before


def choose(
    operation: str, implementations: Sequence[Implementation], *args: Tensor
) -> Callable[..., Tensor]:
    """The implementation that was asked for, else the first that does not refuse."""
    if _asked is None:
        for implementation in implementations:
            if implementation.refuses(*args) is None:
                return implementation.run
        raise AssertionError(f"{operation}: the reference must not refuse")
    for implementation in implementations:
        if implementation.name == _asked:
            if why := implementation.refuses(*args):
                raise ValueError(f"backend {_asked!r} cannot run {operation}: {why}.")
            return implementation.run
    known = ", ".join(repr(i.name) for i in implementations)
    raise ValueError(f"{operation} has no backend {_asked!r}. It has {known}.")


def never(*args: Tensor) -> None:
    """The reference's refusal: none."""


def refuses_csr(*args: Tensor) -> str | None:
    """Why torch's CSR kernels cannot run on these dense operands, if they cannot."""
    for dense in args:
        if dense.is_floating_point() and dense.dtype.itemsize < 4:
            return f"torch's CSR kernels need float32 or float64, not {dense.dtype}"
    return None
