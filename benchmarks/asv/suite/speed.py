"""What `make asv` compares between two commits, by what both have of the public names.

A benchmark whose names a commit lacks is left out there (asv's n/a).
"""

import warnings
from typing import Any

import torch

import gebt

torch.set_num_threads(1)
warnings.simplefilter("ignore")


def need(home: Any, *names: str) -> list[Any]:
    """Things by name; asv leaves a benchmark out that lacks one."""
    if missing := [name for name in names if not hasattr(home, name)]:
        raise NotImplementedError(f"no {', '.join(missing)}")
    return [getattr(home, name) for name in names]


def blocks(nodes: int = 3000, features: int = 128, classes: int = 5) -> Any:
    """An undirected graph of as many communities, about ten neighbours a node."""
    draw = torch.Generator().manual_seed(0)
    y = torch.arange(nodes) % classes
    ends = torch.randint(nodes, (2, 5 * nodes), generator=draw)
    near = (ends[0] + classes * (ends[1] % 40)) % nodes
    ends[1] = torch.where(torch.rand(5 * nodes, generator=draw) < 0.8, near, ends[1])
    x = torch.randn(nodes, features, generator=draw)
    x[torch.arange(nodes), y] += 2
    parts = (torch.rand(nodes, generator=draw) * 3).long()
    from torch_geometric.data import Data

    both = torch.cat([ends, ends.flip(0)], dim=1)
    names = ("train_mask", "val_mask", "test_mask")
    masks = {name: parts == part for part, name in enumerate(names)}
    return gebt.Graph.from_pyg(Data(x=x, edge_index=both, y=y, **masks))


class Epochs:
    """Ten epochs on 3,000 nodes and 15,000 links, GCN of 64 units."""

    number, repeat = 1, 5

    def setup(self) -> None:
        self.find, self.fit, self.detector = need(
            gebt, "find_ticket", "train", "MaskDistanceDetector"
        )
        self.graph = blocks()
        self.time_training()  # torch imports its compiler with the first optimiser

    def _model(self) -> Any:
        torch.manual_seed(0)
        return gebt.models.GCN(128, 64, 5)

    def time_search(self) -> None:
        never = self.detector(warmup=1000)
        self.find(self._model(), self.graph, epochs=10, detector=never)

    def time_training(self) -> None:
        self.fit(self._model(), self.graph, epochs=10)

    def peakmem_search(self) -> None:
        self.time_search()


class Products:
    """A sparse matrix of 20,000 rows and 200,000 entries times 64 columns."""

    def setup(self) -> None:
        [matrix] = need(gebt, "SparseMatrix")
        draw = torch.Generator().manual_seed(0)
        row, col = torch.randint(20_000, (2, 200_000), generator=draw)
        value = torch.rand(200_000, generator=draw)
        self.x = torch.randn(20_000, 64, generator=draw).requires_grad_()
        a = matrix.from_coo(row, col, value, (20_000, 20_000))
        self.a = a.with_value(a.value.clone().requires_grad_())
        (self.a @ self.x).sum().backward()  # numba compiles
        self.out = self.a @ self.x
        self.one = torch.ones_like(self.out)

    def time_forward(self) -> None:
        with torch.no_grad():
            self.a @ self.x

    def time_backward(self) -> None:
        self.out.backward(self.one, retain_graph=True)


class Masks:
    """Of a million entries."""

    def setup(self) -> None:
        self.keep, detector = need(gebt, "keep_top", "MaskDistanceDetector")
        draw = torch.Generator().manual_seed(0)
        self.scores = torch.randn(1_000_000, generator=draw)
        self.mask = self.keep(self.scores, 0.5)
        self.detector = detector()

    def time_keep_top(self) -> None:
        self.keep(self.scores, 0.5)

    def time_detector(self) -> None:
        self.detector.update({"graph": self.mask})


class Inference:
    """A forward, before and after a ticket and its compaction."""

    def setup(self) -> None:
        find, compact = need(gebt, "find_ticket", "compact")
        self.graph = blocks()
        torch.manual_seed(0)
        self.model = gebt.models.GCN(128, 64, 5)
        ratios = {"graph_ratio": 0.5, "weight_ratio": 0.9}
        ticket = find(self.model, self.graph, epochs=10, **ratios)
        pruned = gebt.models.GCN(128, 64, 5)
        small = ticket.open(pruned, self.graph)
        self.fast, self.small = compact(pruned.eval(), small)
        self.model.eval()

    def time_dense(self) -> None:
        with torch.no_grad():
            self.model(self.graph.x, self.graph.adjacency)

    def time_compact(self) -> None:
        with torch.no_grad():
            self.fast(self.small.x, self.small.adjacency)


class Import:
    """In a process of its own; what `gebt --help` waits for, and a first search."""

    number, repeat = 1, 3

    def timeraw_command_line(self) -> str:
        return "import gebt.cli"

    def timeraw_search(self) -> str:
        return "import gebt; gebt.find_ticket"
