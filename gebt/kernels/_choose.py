"""Which implementation of an operation runs: the first that does not refuse."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

_log = logging.getLogger("gebt")
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
        name: ``"numba"``, ``"torch"`` or ``"reference"``, which every kernel has, or
            ``"bag"``, which only `spmm` has.
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


def refuses_numba(gathered: Tensor) -> str | None:
    """Why numba's loops cannot, or had better not, run.

    Args:
        gathered: the floating operand whose rows are read out of order.
    """
    if _asked is None:
        # On 2.3 million entries with 128 columns `embedding_bag` was faster (138 ms
        # against 183), SDDMM no slower: benchmarks/results/kernels-2-threads.csv.
        return "numba's loops run only where they are asked for by name"
    if not gathered.is_cpu or gathered.dtype not in (torch.float32, torch.float64):
        return (
            "numba's loops are for float32 and float64 on CPU, not "
            f"{gathered.dtype} on {gathered.device}"
        )
    if not _numba_is_there():
        return "numba is not installed: pip install 'gebt[fast]'"
    return None


@cache
def _numba_is_there() -> bool:
    return find_spec("numba") is not None


def compiled(name: str, *args: Tensor) -> None:
    """Run a loop of `gebt.kernels._compiled` on as many threads as torch would.

    A compilation, which takes seconds once per machine and dtype, is logged.
    """
    start = time.perf_counter()
    import numba
    from numba.core import config

    from gebt.kernels import _compiled

    loop: Any = getattr(_compiled, name)
    threads = torch.get_num_threads()
    most: Any = config
    numba.set_num_threads(min(threads, most.NUMBA_NUM_THREADS))
    known = len(loop.signatures)
    loop(*(arg.detach().numpy() for arg in args))
    if torch.get_num_threads() != threads:
        # numba shares OpenMP with torch, and starting its threads sets torch's number.
        torch.set_num_threads(threads)
    if len(loop.signatures) > known and not sum(loop.stats.cache_hits.values()):
        seconds = time.perf_counter() - start
        _log.info("compiled %s for this machine in %.1f s, once", name, seconds)
