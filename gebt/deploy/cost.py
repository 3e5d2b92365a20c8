"""What inference costs: operations, bytes, milliseconds and memory, measured."""

import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from gebt.graph import Graph, check_graph
from gebt.prune.weights import prunable_weights
from gebt.sparse import SparseMatrix


@dataclass(frozen=True)
class Cost:
    """Cost of one forward over all nodes, in evaluation mode.

    Attributes:
        macs_paper: multiply-accumulates by the paper's convention, see `paper_macs`;
            None for a model it has none for.
        macs_executed: multiply-accumulates of the matrix products that ran.
        parameter_bytes: of the model's parameters.
        index_bytes: of the positions of the adjacency and of sparse features.
        latency_ms: median time of a forward, milliseconds.
        peak_mib: largest memory of the process (on CUDA: allocated on the device)
            during a forward, MiB.
    """

    macs_paper: int | None
    macs_executed: int
    parameter_bytes: int
    index_bytes: int
    latency_ms: float
    peak_mib: float


def measure_cost(model: nn.Module, graph: Graph, *, repeats: int = 50) -> Cost:
    """Measure a model's inference on all nodes of a graph.

    Args:
        model: with ``forward(x, adjacency)``; left in evaluation mode.
        graph: what it runs on.
        repeats: timed forwards, rounded up to a multiple of ten.
    """
    check_graph(graph)
    model.eval()
    matrices = [graph.adjacency]
    if isinstance(graph.x, SparseMatrix):
        matrices.append(graph.x)
    with torch.no_grad(), peak_memory(graph.adjacency.device) as peak:
        model(graph.x, graph.adjacency)
    return Cost(
        macs_paper=paper_macs(model, graph),
        macs_executed=executed_macs(model, graph),
        parameter_bytes=sum(p.numel() * p.element_size() for p in model.parameters()),
        index_bytes=sum(
            t.numel() * t.element_size()
            for m in matrices
            for t in (m.pattern.crow, m.pattern.col)
        ),
        latency_ms=latencies([(model, graph)], repeats=repeats)[0],
        peak_mib=peak[0],
    )


@torch.no_grad()
def latencies(
    runs: Sequence[tuple[nn.Module, Graph]], *, repeats: int = 50
) -> list[float]:
    """Median milliseconds of a forward of each model on its graph.

    Models are timed in turns of ten calls at most, so that a machine that changes its
    speed changes it for all of them. Of ranks that share a graph all have the first's
    times.

    Args:
        runs: models with their graphs; left in evaluation mode.
        repeats: timed forwards of each, rounded up to whole turns.
    """
    times: list[list[float]] = [[] for _ in runs]
    turn = min(repeats, 10)
    for _ in range(-(-repeats // turn)):
        for found, (model, graph) in zip(times, runs, strict=True):
            forward = partial(model.eval(), graph.x, graph.adjacency)
            found += time_calls(forward, turn, graph.adjacency.device)
    found = [1000 * statistics.median(each) for each in times]
    return runs[0][1].world.told(found) if runs else found


def paper_macs(model: nn.Module, graph: Graph) -> int | None:
    """Inference MACs as the paper counts them; None for a model it has no count for.

    Features are dense and no self-loop counts. Each model's ``paper_macs`` says how, of
    w the weights kept, E twice the links kept, and N, F, H, C as ever.

    Args:
        model: with pruned weights set to zero.
        graph: pruned, with its features as they were searched.

    Source: decoded from the tables of You et al. 2022, which it reproduces.
    """
    count = getattr(model, "paper_macs", None)
    if count is None:
        return None
    weights = prunable_weights(model).values()
    kept = sum(int(weight.count_nonzero()) for weight in weights)
    entries = graph.world.total(graph.adjacency.pattern.nnz)
    return count(graph.nodes_in_all, entries, kept)


@torch.no_grad()
def executed_macs(model: nn.Module, graph: Graph) -> int:
    """MACs of the matrix products of one real forward in evaluation mode."""
    with FlopCounterMode(display=False) as counter:
        model.eval()(graph.x, graph.adjacency)
    return graph.world.total(counter.get_total_flops() // 2)


def time_calls(
    call: Callable[[], object],
    repeats: int,
    device: torch.device,
    *,
    warmup: int = 5,
) -> list[float]:
    """Seconds of each of ``repeats`` calls, after some that are not counted."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    for _ in range(warmup):
        call()
    times = []
    for _ in range(repeats):
        wait()
        start = time.perf_counter()
        call()
        wait()
        times.append(time.perf_counter() - start)
    return times


@contextmanager
def peak_memory(device: torch.device) -> Iterator[list[float]]:
    """The largest memory in use inside the block, MiB, in a list filled at its end.

    On CUDA what torch has allocated there; else the process's resident memory. Where
    the system cannot reset its high-water mark (only Linux can), the mark since the
    start of the process.
    """
    # Blocks nest: starting one resets the mark, so the others take it over first.
    seen = [0.0]
    for at, block in _open_blocks:
        block[0] = max(block[0], _high_water_mib(at))
    _open_blocks.append((device, seen))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            pass
    peak: list[float] = []
    try:
        yield peak
    finally:
        # By identity: blocks that have seen the same amount are equal.
        _open_blocks[:] = [other for other in _open_blocks if other[1] is not seen]
    peak.append(max(seen[0], _high_water_mib(device)))


_open_blocks: list[tuple[torch.device, list[float]]] = []


def _high_water_mib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 2**10
    except (OSError, IndexError):
        unit = 1 if sys.platform == "darwin" else 2**10
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
