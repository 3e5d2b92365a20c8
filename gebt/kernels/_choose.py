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

_MANY = 100_000
"""Entries from which numba's loops are faster: benchmarks/results/kernels-*.csv."""
_TRITON_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_TRITON_IS_FASTER: tuple[str, ...] = ("spmm", "sddmm", "edge_softmax")
"""Operations that Triton runs on CUDA although torch could:
benchmarks/results/cuda-kernels.csv."""
_log = logging.getLogger("gebt")
_asked: tuple[str, ...] = ()


@dataclass(frozen=True)
class Implementation:
    """One way to compute an operation.

    Attributes:
        name: what a user asks for, such as ``"torch"``.
        run: the function; every implementation of an operation has its signature.
        refuses: takes the same arguments; None, or a sentence that says why not.
    """

    name: str
    run: Callable[..., Any]
    refuses: Callable[..., str | None]


@contextmanager
def backend(*names: str) -> Iterator[None]:
    """Run every kernel inside the block with the first of these that it has.

    Asking by name never falls back: an implementation that cannot take its
    arguments raises, and says why.

    Args:
        names: ``"numba"``, ``"torch"`` or ``"reference"``, which every kernel has;
            ``"triton"``, which every sparse one has, for CUDA; ``"bag"`` or
            ``"torch-sparse"``, which only `spmm` has. Training needs more than `spmm`:
            ask for ``backend("torch-sparse", "torch")``.
    """
    global _asked
    before, _asked = _asked, names
    try:
        yield
    finally:
        _asked = before


def choose(
    operation: str, implementations: Sequence[Implementation], *args: Any
) -> Callable[..., Any]:
    """The implementation that was asked for, else the first that does not refuse."""
    if not _asked:
        for implementation in implementations:
            if implementation.refuses(*args) is None:
                return implementation.run
        raise AssertionError(f"{operation}: the reference must not refuse")
    named = {i.name: i for i in implementations}
    for name in _asked:
        if name in named:
            if why := named[name].refuses(*args):
                raise ValueError(f"backend {name!r} cannot run {operation}: {why}.")
            return named[name].run
    asked, known = (", ".join(map(repr, names)) for names in (_asked, named))
    raise ValueError(f"{operation} has no backend {asked}. It has {known}.")


def asked_by_name() -> bool:
    """Whether the caller is inside a `backend` block."""
    return bool(_asked)


def never(*args: Any) -> None:
    """The reference's refusal: none."""


def refuses_csr(*args: Tensor) -> str | None:
    """Why torch's CSR kernels cannot run on these dense operands, if they cannot."""
    for dense in args:
        if dense.is_floating_point() and dense.dtype.itemsize < 4:
            return f"torch's CSR kernels need float32 or float64, not {dense.dtype}"
    return None


def refuses_numba(gathered: Tensor, entries: int, least: int = _MANY) -> str | None:
    """Why numba's loops cannot, or had better not, run.

    Args:
        gathered: the floating operand whose rows are read out of order.
        entries: how many there are to loop over.
        least: from how many on the loop is faster.
    """
    if not _asked and entries < least:
        return f"numba's loops gain nothing on fewer than {least} entries"
    if not gathered.is_cpu or gathered.dtype not in (torch.float32, torch.float64):
        return (
            "numba's loops are for float32 and float64 on CPU, not "
            f"{gathered.dtype} on {gathered.device}"
        )
    if not installed("numba"):
        return "numba is not installed: pip install 'gebt[fast]'"
    return None


def refuses_triton(operation: str, x: Tensor, torch_refuses: str | None) -> str | None:
    """Why Triton's kernels cannot, or had better not, run.

    Unless asked for by name they run on CUDA only, and there only where torch cannot
    or where `_TRITON_IS_FASTER` says so.

    Args:
        operation: its name.
        x: an operand whose dtype and device are those of all.
        torch_refuses: why torch's own kernels cannot run; None if they can.
    """
    if not _asked:
        if not x.is_cuda:
            return "Triton's kernels are for CUDA"
        if torch_refuses is None and operation not in _TRITON_IS_FASTER:
            return "nobody has measured that it is faster than torch's kernels"
    if not (x.is_cuda or x.is_cpu):
        return f"Triton's kernels are for CUDA, not {x.device}"
    if x.dtype not in _TRITON_DTYPES:
        return (
            f"Triton's kernels are for floating dtypes of 16 to 64 bits, not {x.dtype}"
        )
    if not installed("triton"):
        return "Triton is not installed: pip install triton"
    if x.is_cpu and not _interpreted():
        return (
            "on CPU Triton's kernels run only in its interpreter, which is slow and "
            "for tests: set TRITON_INTERPRET=1 before gebt or torch imports Triton"
        )
    return None


def _interpreted() -> bool:
    from gebt.kernels import _triton

    return _triton.INTERPRETED


@cache
def installed(package: str) -> bool:
    """Whether a package could be imported, without importing it."""
    return find_spec(package) is not None


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
