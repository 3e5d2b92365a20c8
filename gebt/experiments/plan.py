"""Whether a graph will fit: memory and time of an epoch, before it is loaded.

Graphs of the same shape, but smaller, are drawn and their epochs measured. Memory is a
constant and so much a node and its links, which two sizes tell. Where gebt computes
otherwise from some size on, it does so on a graph k times smaller from a k-th of it on.
"""

import ctypes
import gc
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gebt.datasets.sizes import Size
from gebt.datasets.synthetic import Synthetic
from gebt.deploy.cost import peak_memory
from gebt.graph import Graph, Split
from gebt.learn.loop import Learner, whole
from gebt.learn.tasks import NodeClassification
from gebt.learn.training import new_model
from gebt.models.recipe import Recipe
from gebt.prune.detector import MaskDistanceDetector
from gebt.prune.links import GraphSparsifier
from gebt.prune.weights import ModelPruner
from gebt.sparse import Pattern, SparseMatrix

KINDS = ("inference", "plain epoch", "search epoch")
"""A forward for all nodes; an epoch of training; one of a search of links and weights,
with its masks and their distance."""
_CLASSES = 40
_LINKS, _NUMBERS = 1_000_000, 100_000_000
"""Of the graph that is drawn, at most: links, and numbers that its products gather."""
_GROWTH = 1.13
"""Seconds grow with this power of the links: `docs/speed.md`, 10^5 to 6e7 of them."""
_SWITCHES = (
    ("gebt.kernels.propagate", "_LARGE"),
    ("gebt.models._layers", "_MANY"),
    ("gebt.sparse.pattern", "BLOCK"),
)
"""From which size on something else is done, and how much at once."""
_MMAP_THRESHOLD = 2**25
"""glibc's at its largest, which that soon is: blocks below it come from the heap, where
some of what was freed stays. See mallopt(3)."""


@dataclass(frozen=True)
class Forecast:
    """What an epoch will take.

    Attributes:
        mib: by one of `KINDS`, the most memory that the process will hold, MiB; the
            graph, torch and the rest of Python in it.
        seconds: by kind, of each epoch but the first, with the machine to itself.
        links: of the larger graph that was drawn to find out.
    """

    mib: Mapping[str, float]
    seconds: Mapping[str, float]
    links: int


def forecast(
    size: Size,
    recipe: Recipe,
    seconds: float = 10.0,
    clock: Callable[[], float] = time.perf_counter,
) -> Forecast:
    """Measure a graph of the same shape, at most so large that it takes seconds.

    Args:
        size: of the graph.
        recipe: the model that will be trained for classes of nodes.
        seconds: that measuring shall take, about; drawing the graph comes on top.
        clock: what tells the seconds of an epoch.

    Raises:
        ValueError: where the system does not tell how much memory a process has held,
            as Linux does.
    """
    if not Path("/proc/self/clear_refs").exists():
        raise ValueError("only Linux tells how much memory a process has held.")
    gathered = 2 * size.links * min(recipe.hidden, size.features)
    scale = max(1.0, size.links / _LINKS, gathered / _NUMBERS)
    # Of two sizes the difference is what grows; of one, all would seem to.
    scales = [scale, 3 * scale] if scale > 1 else [scale]
    graphs = [_drawn(size, each) for each in scales]
    mib, spent = dict[str, float](), dict[str, float]()
    for kind in KINDS:
        with _switching_at(scale):  # what a kind alone needs is loaded at its first use
            step_of(kind, _anew(graphs[0]), recipe)()
        peaks = []
        for graph, each in zip(graphs, scales, strict=True):
            with _switching_at(each):
                others = sum(_mib(other) for other in graphs if other is not graph)
                alone = seconds / len(KINDS) / len(graphs)
                peak, times = _measured(kind, graph, recipe, alone, clock)
                peaks.append(peak - others)
                spent.setdefault(kind, times * each**_GROWTH)
        mib[kind] = peaks[0]
        if len(graphs) > 1:
            (large, small), far = (g.num_links for g in graphs), size.links
            mib[kind] += (far - large) * (peaks[0] - peaks[1]) / (large - small)
    return Forecast(mib, spent, graphs[0].num_links)


def step_of(kind: str, graph: Graph, recipe: Recipe) -> Callable[[], object]:
    """One epoch of one of `KINDS`."""
    task = NodeClassification()
    model = new_model(graph, recipe, task, 0)
    if kind == "inference":
        model.eval()

        def forward() -> None:
            with torch.inference_mode():
                model(graph.x, graph.adjacency)

        return forward
    searched = kind == "search epoch"
    groups = [GraphSparsifier(graph, prune_ratio=0.2), ModelPruner(model, 0.9)]
    learner = Learner(model, task, recipe.fit, seed=0, groups=groups * searched)
    epochs = learner.epochs(whole(graph), until=sys.maxsize)
    detector = MaskDistanceDetector()

    def step() -> None:
        next(epochs)
        if searched:
            detector.update({group.name: group.masks() for group in groups})

    return step


def _drawn(size: Size, scale: float) -> Graph:
    """A graph of that shape, so many times smaller."""
    nodes, links = (math.ceil(n / scale) for n in (size.nodes, size.links))
    nodes = max(nodes, 2, math.isqrt(2 * links) + 2)
    classes = min(_CLASSES, nodes)
    dense = size.stored is None
    width = size.features if dense else 1
    sizes: Any = {"nodes": nodes, "links": links, "features": width}
    graph = Synthetic(classes=classes, **sizes).make()
    draw = torch.Generator().manual_seed(0)
    if size.train is not None:
        order = torch.randperm(nodes, generator=draw)
        train = order[: max(1, round(size.train / size.nodes * nodes))].sort()[0]
        assert isinstance(graph.split, Split)
        graph = replace(graph, split=replace(graph.split, train=train))
    if size.stored is not None:
        stored = math.ceil(size.stored / size.nodes * nodes)
        row = torch.randint(nodes, (stored,), generator=draw)
        col = torch.randint(size.features, (stored,), generator=draw)
        shape = nodes, size.features
        x = SparseMatrix.from_coo(row, col, torch.rand(stored, generator=draw), shape)
        graph = replace(graph, x=x)
    return graph


def _anew(graph: Graph) -> Graph:
    """The graph with nothing yet derived from it."""

    def again(matrix: SparseMatrix) -> SparseMatrix:
        pattern = matrix.pattern
        return SparseMatrix(
            Pattern(pattern.crow, pattern.col, pattern.shape), matrix.value
        )

    x = graph.x if isinstance(graph.x, Tensor) else again(graph.x)
    return replace(graph, x=x, adjacency=again(graph.adjacency))


def _mib(graph: Graph) -> float:
    """What its tensors take."""
    x, a = graph.x, graph.adjacency
    kept = [a.pattern.crow, a.pattern.col, a.value, graph.link]
    kept += [x] if isinstance(x, Tensor) else [x.pattern.crow, x.pattern.col, x.value]
    return sum(each.numel() * each.element_size() for each in kept) / 2**20


def _measured(
    kind: str, graph: Graph, recipe: Recipe, seconds: float, clock: Callable[[], float]
) -> tuple[float, float]:
    """The most MiB held, and the least seconds of an epoch after the first.

    The least: what else the machine does only adds.
    """
    graph = _anew(graph)
    _give_back()
    times = []
    began = time.perf_counter()
    with peak_memory(torch.device("cpu")) as peak:
        step = step_of(kind, graph, recipe)
        for done in count():
            start = clock()
            step()
            times.append(clock() - start)
            passed = time.perf_counter() - began
            if done >= 2 and passed > (min(1, seconds) if done >= 50 else seconds):
                break
    return peak[0], min(times[1:])


def _give_back() -> None:
    """Give the system back what is held of it and not in use."""
    gc.collect()
    with _GLIBC:
        ctypes.CDLL(None).malloc_trim(0)


def _map_from(size: int) -> None:
    """Take blocks of so many bytes or more from the system, and give them back."""
    with _GLIBC:
        library = ctypes.CDLL(None)
        for option, value in ((-3, size), (-1, 2 * size)):  # M_MMAP_, M_TRIM_THRESHOLD
            library.mallopt(option, value)


_GLIBC = suppress(OSError, AttributeError)
"""Around what other C libraries do not have."""


@contextmanager
def _switching_at(scale: float) -> Iterator[None]:
    """Inside, what is done from some size on is done from a smaller one on.

    By gebt, and by the C library.
    """
    modules = [(import_module(module), name) for module, name in _SWITCHES]
    before = [(module, name, getattr(module, name)) for module, name in modules]
    try:
        for module, name, size in before:
            setattr(module, name, max(1, int(size / scale)))
        _map_from(int(_MMAP_THRESHOLD / scale))
        yield
    finally:
        _map_from(_MMAP_THRESHOLD)
        for module, name, size in before:
            setattr(module, name, size)


def available_mib() -> float:
    """Memory that a new process can have; infinite where the system tells of none."""
    try:
        lines = Path("/proc/meminfo").read_text()
        return int(lines.split("MemAvailable:")[1].split()[0]) / 2**10
    except (OSError, IndexError):
        return math.inf
