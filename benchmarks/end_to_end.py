"""What a ticket saves over PyG's own GCN example, training and inference.

Checks first: gebt's GCN gives PyG's outputs on the same weights, the compact ticket
gives the masked model's. Then times, in one process on one thread, the competitors
in turn: PyG's recipe (GCNConv, dense row-normalised features, dropout 0.5 on
features and hidden layer, Adam 0.01, weight decay 5e-4 on the first layer, evaluation
each epoch, 100 epochs), the same without dropout on the features, and drawing and
retraining a ticket at 0.2/0.9. CPU seconds; medians, minimum and maximum.

Then the seconds until both reach the same validation accuracy, there and on arxiv-like
(GCN-128, one run). Inference: turns of 20 calls on end, as a service makes them.

    python benchmarks/end_to_end.py [--repeats 5] [--graphs cora citeseer] [--root DIR]

Prints tables and writes results/end_to_end.csv.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from common import RESULTS, write_results
from rich.console import Console
from rich.table import Table
from torch_geometric.nn import GCNConv

import gebt
from gebt.prune.detector import MaskDistanceDetector
from gebt.prune.links import GraphSparsifier
from gebt.prune.weights import ModelPruner

EPOCHS = 100
HIDDEN = 16
LARGE = ("arxiv-like", 128, 20)  # hidden units, epochs
TARGETS = {  # PyG over ticket: training, without feature dropout, inference
    "cora": (25, 6, 15),
    "citeseer": (60, 10, 25),
}


def new_gcn(graph: gebt.Graph, hidden: int, seed: int) -> gebt.models.GCN:
    """A GCN for a graph, initialised from a seed."""
    torch.manual_seed(seed)
    return gebt.models.GCN(graph.num_features, hidden, graph.num_classes)


class PyGExample(torch.nn.Module):
    """The model of PyG's GCN example."""

    def __init__(
        self, num_features: int, hidden: int, num_classes: int, feature_dropout: bool
    ):
        super().__init__()
        self.first = GCNConv(num_features, hidden, cached=True)
        self.second = GCNConv(hidden, num_classes, cached=True)
        self.feature_dropout = feature_dropout

    def forward(self, x: torch.Tensor, edge_index: torch.Tensor) -> torch.Tensor:
        """Class scores of all nodes."""
        if self.feature_dropout:
            x = F.dropout(x, 0.5, self.training)
        x = self.first(x, edge_index).relu()
        return self.second(F.dropout(x, 0.5, self.training), edge_index)


class Peer:
    """PyG's side: dense features, an edge index, masks."""

    def __init__(self, graph: gebt.Graph, hidden: int = HIDDEN):
        self.hidden = hidden
        self.x = graph.x.to_dense() if hasattr(graph.x, "to_dense") else graph.x
        pattern = graph.adjacency.pattern
        self.edge_index = torch.stack([pattern.col.long(), pattern.row.long()])
        self.y = graph.y
        self.classes = graph.num_classes
        self.masks = []
        for part in ("train", "val", "test"):
            mask = torch.zeros(graph.num_nodes, dtype=torch.bool)
            mask[getattr(graph.split, part)] = True
            self.masks.append(mask)

    def model(self, feature_dropout: bool = True) -> PyGExample:
        """A new model."""
        torch.manual_seed(0)
        return PyGExample(self.x.shape[1], self.hidden, self.classes, feature_dropout)

    def train(
        self,
        feature_dropout: bool,
        epochs: int = EPOCHS,
        on_epoch: Callable[[float], object] = lambda val: None,
    ) -> PyGExample:
        """PyG's examples/gcn.py: train, test after each epoch; tell the percent."""
        model = self.model(feature_dropout)
        optimizer = torch.optim.Adam(
            [
                {"params": model.first.parameters(), "weight_decay": 5e-4},
                {"params": model.second.parameters(), "weight_decay": 0},
            ],
            lr=0.01,
        )
        train_mask = self.masks[0]
        for _ in range(epochs):
            model.train()
            optimizer.zero_grad()
            out = model(self.x, self.edge_index)
            F.cross_entropy(out[train_mask], self.y[train_mask]).backward()
            optimizer.step()
            model.eval()
            with torch.no_grad():
                predicted = model(self.x, self.edge_index).argmax(dim=-1)
            right = [
                int((predicted[mask] == self.y[mask]).sum()) / int(mask.sum())
                for mask in self.masks
            ]
            on_epoch(100 * right[1])
        return model.eval()


def draw_and_retrain(
    graph: gebt.Graph,
    hidden: int = HIDDEN,
    epochs: int = EPOCHS,
    on_epoch: Callable[[float], object] | None = None,
) -> tuple[torch.nn.Module, gebt.Graph]:
    """Search and retrain a joint ticket at 0.2/0.9; tell the percent of each epoch."""
    model = new_gcn(graph, hidden, 0)
    ticket = gebt.find_ticket(model, graph, graph_ratio=0.2, weight_ratio=0.9)
    small = ticket.open(model, graph)
    gebt.train(
        model,
        small,
        keep=ticket.weight_masks,
        epochs=epochs,
        on_epoch=on_epoch and (lambda epoch: on_epoch(epoch.val)),
    )
    return model.eval(), small


def seconds_to_the_same(
    graph: gebt.Graph, hidden: int, epochs: int, repeats: int
) -> tuple[float, dict[str, list[float]]]:
    """A validation accuracy that both reach, and the seconds until they do.

    It is half a point below the lower one of the two best that PyG's training and a
    ticket's draw and retraining reach in as many epochs each, the draw not counted as
    epochs but as time.
    """
    peer = Peer(graph, hidden)
    curves: dict[str, list[list[tuple[float, float]]]] = {"PyG": [], "ticket": []}
    for _ in range(repeats):
        for who, curve in curves.items():
            points: list[tuple[float, float]] = []
            start = time.perf_counter()

            def note(val: float, to: list = points, start: float = start) -> None:
                to.append((time.perf_counter() - start, val))

            if who == "PyG":
                peer.train(feature_dropout=True, epochs=epochs, on_epoch=note)
            else:
                draw_and_retrain(graph, hidden, epochs, note)
            curve.append(points)
    best = [max(val for _, val in curve[0]) for curve in curves.values()]
    target = min(best) - 0.5
    return target, {
        who: [next(t for t, val in points if val >= target) for points in curve]
        for who, curve in curves.items()
    }


@torch.no_grad()
def check(graph: gebt.Graph, peer: Peer, model: torch.nn.Module, small: gebt.Graph):
    """The same outputs as PyG's, and as the masked model's."""
    ours, theirs = new_gcn(graph, HIDDEN, 0).eval(), peer.model().eval()
    for layer, conv in zip(ours.layers, (theirs.first, theirs.second), strict=True):
        conv.lin.weight.copy_(layer.weight.t())
        conv.bias.copy_(layer.bias.uniform_(-1, 1))
    torch.testing.assert_close(
        ours(graph.x, graph.adjacency), theirs(peer.x, peer.edge_index)
    )
    fast, compact = gebt.compact(model, small)
    torch.testing.assert_close(
        fast(compact.x, compact.adjacency), model(small.x, small.adjacency)
    )


def in_turn(
    calls: dict[str, Callable[[], object]],
    turns: int,
    clock: Callable[[], float],
    each: int = 1,
) -> dict[str, list[float]]:
    """Seconds of a call: in each turn every competitor runs ``each`` times on end."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(turns):
        for name, call in calls.items():
            start = clock()
            for _ in range(each):
                call()
            times[name].append((clock() - start) / each)
    return times


class Stopwatch:
    """Adds up the time of some functions while a search runs."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def wrap(self, function: Callable) -> Callable:
        """The function, timed."""

        def timed(*args, **kwargs):
            start = time.perf_counter()
            result = function(*args, **kwargs)
            self.seconds += time.perf_counter() - start
            return result

        return timed


def detector_share(graph: gebt.Graph, hidden: int, epochs: int) -> tuple[float, float]:
    """Share of a search's epochs spent in the detector, and in masks and detector."""
    detector, masks = Stopwatch(), Stopwatch()
    watched = [
        (MaskDistanceDetector, "update", detector),
        (GraphSparsifier, "mask", masks),
        (ModelPruner, "masks", masks),
    ]
    originals = [getattr(owner, name) for owner, name, _ in watched]
    stamps = []
    for (owner, name, watch), original in zip(watched, originals, strict=True):
        setattr(owner, name, watch.wrap(original))
    try:
        model = new_gcn(graph, hidden, 0)

        def stamp(_: object) -> None:
            if not stamps:  # the first epoch builds what the others reuse
                detector.seconds = masks.seconds = 0.0
            stamps.append(time.perf_counter())

        gebt.find_ticket(
            model,
            graph,
            epochs=epochs,
            detector=MaskDistanceDetector(threshold=1e-9, warmup=epochs - 1),
            on_epoch=stamp,
        )
    finally:
        for (owner, name, _), original in zip(watched, originals, strict=True):
            setattr(owner, name, original)
    total = stamps[-1] - stamps[0]
    both = detector.seconds + masks.seconds
    return detector.seconds / total, both / total


def million_links() -> gebt.Graph:
    """A random graph with 1,000,000 links, 169,343 nodes and 128 dense features."""
    generator = torch.Generator().manual_seed(0)
    n, links = 169_343, 1_000_000
    ends = torch.randint(n, (2, links + 1000), generator=generator)
    pair = torch.unique(ends.amin(0) * n + ends.amax(0))
    pair = pair[pair // n != pair % n]
    pair = pair[torch.randperm(pair.numel(), generator=generator)[:links]]

    class Data:
        x = torch.randn(n, 128, generator=generator)
        edge_index = torch.stack([pair // n, pair % n])
        y = torch.randint(40, (n,), generator=generator)

    nodes = torch.randperm(n, generator=generator)
    parts = {"train": nodes[:90_000], "val": nodes[90_000:120_000]}
    parts["test"] = nodes[120_000:]
    return gebt.Graph.from_pyg(
        Data, split=parts, directed=False, name="random, 1 M links"
    )


def main() -> None:
    """Check, time, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--graphs", nargs="+", default=list(TARGETS))
    parser.add_argument("--root", default=None)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    console = Console(width=100)
    rows: list[dict[str, object]] = []

    def tell(
        graph: str,
        what: str,
        times: dict[str, list[float]],
        scale: float,
        goals: dict[str, int],
    ) -> None:
        table = Table(title=f"{graph}: {what}", title_justify="left")
        for title in ("", "median", "min", "max", "times the ticket", "target"):
            table.add_column(title, justify="right" if title else "left")
        ours = statistics.median(times["ticket"])
        for name, found in times.items():
            middle = statistics.median(found)
            goal = goals.get(name)
            # The ratio of the pairs of one turn, so that drift cancels out.
            pairs = [a / b for a, b in zip(found, times["ticket"], strict=True)]
            ratio = statistics.median(pairs)
            table.add_row(
                name,
                f"{scale * middle:.3f}",
                f"{scale * min(found):.3f}",
                f"{scale * max(found):.3f}",
                f"{ratio:.1f}",
                f">= {goal}" if goal else "",
            )
            rows.append(
                {
                    "graph": graph,
                    "what": what,
                    "who": name,
                    "n": len(found),
                    "median": scale * middle,
                    "min": scale * min(found),
                    "max": scale * max(found),
                    "times_ticket_paired": round(ratio, 2),
                    "times_ticket_medians": round(middle / ours, 2),
                    "target": goal or "",
                }
            )
        console.print(table)

    for name in args.graphs:
        graph = gebt.load(name, args.root)
        peer = Peer(graph)
        model, small = draw_and_retrain(graph)
        check(graph, peer, model, small)
        peer.train(feature_dropout=False)  # warm up
        training = in_turn(
            {
                "PyG": lambda peer=peer: peer.train(feature_dropout=True),
                "PyG, no feature dropout": lambda peer=peer: peer.train(
                    feature_dropout=False
                ),
                "gebt, dense": lambda graph=graph: gebt.train(
                    new_gcn(graph, HIDDEN, 0), graph, epochs=EPOCHS
                ),
                "ticket": lambda graph=graph: draw_and_retrain(graph),
            },
            args.repeats,
            time.process_time,
        )
        with_dropout, without, forward = TARGETS[name]
        goals = {"PyG": with_dropout, "PyG, no feature dropout": without}
        tell(name, "training, CPU s", training, 1, goals)

        fast, compact = gebt.compact(model, small)
        dense, theirs = new_gcn(graph, HIDDEN, 0).eval(), peer.model().eval()
        with torch.no_grad():
            calls = {
                "PyG": lambda m=theirs, p=peer: m(p.x, p.edge_index),
                "gebt, dense": lambda m=dense, g=graph: m(g.x, g.adjacency),
                "ticket": lambda m=fast, g=compact: m(g.x, g.adjacency),
            }
            in_turn(calls, 2, time.perf_counter, each=20)
            inference = in_turn(calls, 20 * args.repeats, time.perf_counter, each=20)
        tell(name, "inference, ms", inference, 1000, {"PyG": forward})

    for name, hidden, epochs in (*((g, HIDDEN, EPOCHS) for g in args.graphs), LARGE):
        graph = gebt.load(name, args.root)
        repeats = args.repeats if hidden == HIDDEN else 1
        target, found = seconds_to_the_same(graph, hidden, epochs, repeats)
        tell(name, f"wall s to {target:.1f}% on validation", found, 1, {})

    table = Table(title="search epochs: time in the detector", title_justify="left")
    for title in ("", "detector", "masks + detector", "target"):
        table.add_column(title)
    cases = [
        (gebt.load(name, args.root), HIDDEN, 60, "< 2%, < 10%") for name in ("cora",)
    ]
    cases.append((million_links(), HIDDEN, 6, "masks + detector < 3%"))
    for graph, hidden, epochs, target in cases:
        shares = [detector_share(graph, hidden, epochs) for _ in range(args.repeats)]
        found = [statistics.median(s) for s in zip(*shares, strict=True)]
        table.add_row(graph.name, f"{found[0]:.2%}", f"{found[1]:.2%}", target)
        for what, position in (("detector", 0), ("masks + detector", 1)):
            values = [share[position] for share in shares]
            rows.append(
                {
                    "graph": graph.name,
                    "what": "share of a search epoch",
                    "who": what,
                    "n": len(values),
                    "median": found[position],
                    "min": min(values),
                    "max": max(values),
                    "times_ticket_paired": "",
                    "times_ticket_medians": "",
                    "target": target,
                }
            )
    console.print(table)
    path = RESULTS / "end_to_end.csv"
    write_results(path, rows)
    console.print(f"Written: {path}")


if __name__ == "__main__":
    main()
