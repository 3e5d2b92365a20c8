"""The search, its masks and a ticket's inference on a GPU, beside PyG's.

Search epochs are those of bench_search.py, on the GPU; on a small graph also as a CUDA
graph, captured once and replayed. Gradients, masks and products are checked before
anything is timed. Times are medians between synchronisations, memory is what torch has
allocated at once.

    python benchmarks/bench_cuda_loop.py [--parts small masks] [--repeats 20]

Writes results/cuda-loop.csv and prints it with ratios. Parts are written as they are
done; products-like is drawn first where it is not on disk, in minutes. Without a GPU it
says so; exit code 2.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import torch
from bench_search import HIDDEN, step_of
from common import RESULTS, write_results
from torch import Tensor

import gebt
from gebt.deploy.compaction import compact
from gebt.deploy.cost import peak_memory, time_calls
from gebt.experiments.inference import inference_costs
from gebt.learn.loop import parameter_groups, run
from gebt.learn.tasks import NodeClassification
from gebt.options import Fit
from gebt.prune.masks import keep_top, numpy_keep
from gebt.prune.weights import apply_masks

CORA_SIZE = "synthetic:N=2708,E=5278,F=1433,C=7"
OURS, PEERS = "gebt, search epoch", "PyG, learnable edge weights"
KINDS = (OURS, PEERS, "gebt, plain epoch", "PyG, plain epoch")
DEVICE = torch.device("cuda")
LINKS = 60_000_000
COLUMNS = ("part", "graph", "what", "ms", "ms_min", "ms_max", "peak_mib", "error")
WORST = 1e-3
"""Largest norm of an error over the norm of what the CPU computes, in float32."""
WORST_HALF = 5e-3

Row = dict[str, object]


class Search:
    """A search epoch whose step can be captured: nothing in it waits for the GPU."""

    def __init__(self, graph: gebt.Graph, dropout: float = 0.5):
        torch.manual_seed(0)
        model = gebt.models.GCN(
            graph.num_features, HIDDEN, graph.num_classes, dropout=dropout
        )
        self.graph, self.model = graph, model.to(graph.adjacency.device).train()
        self.task = NodeClassification()
        self.sparsifier = gebt.GraphSparsifier(graph)
        self.pruner = gebt.ModelPruner(self.model, 0.9)
        self.detector = gebt.MaskDistanceDetector(threshold=1e-9)
        self.masks: dict = {}
        groups = parameter_groups(self.model, Fit())
        groups.append({"params": [self.sparsifier.score], "lr": 0.001})
        on_gpu = graph.adjacency.device.type == "cuda"
        self.optimizer = torch.optim.Adam(groups, fused=True, capturable=on_gpu)

    def loss(self) -> Tensor:
        """The training loss."""
        rows = self.task.rows(self.graph, "train")
        output = run(self.model, self.graph.x, self.sparsifier(), rows)
        return self.task.loss(output, self.graph, "train")

    def step(self) -> Tensor:
        """Forward, backward, step, masks; the loss."""
        # None, not zero: captured, the gradients then stay where they first were.
        self.optimizer.zero_grad()
        loss = self.loss()
        loss.backward()
        self.optimizer.step()
        self.masks = {"graph": self.sparsifier.mask(0.2), "w": self.pruner.masks()}
        return loss.detach()

    def epoch(self, step: Callable[[], Tensor]) -> float:
        """The step, and what is copied to the host after it."""
        loss = step()
        self.detector.update(self.masks)
        return float(loss)


def captured(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """The step as a CUDA graph, after three that are not captured."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    # All on one stream: autograd remembers where a parameter's gradient was added up.
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        loss = step()

    def replay() -> Tensor:
        graph.replay()
        return loss

    return replay


def gradient_error(name: str, root: str | None) -> float:
    """Of the scores' gradient on the GPU, without dropout, against the CPU's."""
    here = gebt.load(name, root)
    found = []
    for graph in (here, here.to(DEVICE)):
        search = Search(graph, dropout=0.0)
        search.loss().backward()
        found.append(search.sparsifier.score.grad.cpu().double())
    return error_of(found[1], found[0])


def error_of(found: Tensor, truth: Tensor) -> float:
    """Norm of the error over the norm of the truth."""
    return ((found - truth).norm() / truth.norm()).item()


def timed(call: Callable[[], object], repeats: int) -> Row:
    """Milliseconds of a call, and the most memory it needs beyond what was there."""
    with peak_memory(DEVICE) as before:
        pass
    with peak_memory(DEVICE) as peak:
        spent = [1000 * s for s in time_calls(call, repeats, DEVICE)]
    return {
        "ms": round(statistics.median(spent), 4),
        "ms_min": round(min(spent), 4),
        "ms_max": round(max(spent), 4),
        "peak_mib": round(peak[0] - before[0], 1),
    }


def epochs(
    part: str, name: str, root: str | None, kinds: tuple[str, ...], repeats: int
) -> Iterator[Row]:
    """Epochs of these kinds on one graph, each with nothing else on the GPU."""
    graph = gebt.load(name, root).to(DEVICE)
    for kind in kinds:
        with DEVICE:
            step = step_of(kind, graph)
        yield {"part": part, "graph": name, "what": kind, **timed(step, repeats)}
        del step
        torch.cuda.empty_cache()


def small(root: str | None, repeats: int) -> Iterator[Row]:
    """A graph of Cora's size: how long launches take, and a CUDA graph without them."""
    name = "cora"
    try:
        gebt.load(name, root)
    except OSError:
        name = CORA_SIZE
    rows = epochs("small", name, root, KINDS, repeats)
    yield from checked("gradients", gradient_error(name, root), WORST, rows)
    graph = gebt.load(name, root).to(DEVICE)
    # Without dropout both see the same numbers, so they must come to the same losses.
    one, other = (Search(graph, dropout=0.0) for _ in range(2))
    eager = [one.epoch(one.step) for _ in range(20)][3:]
    replay = captured(other.step)
    replayed = [other.epoch(replay) for _ in range(17)]
    error = max(abs(a / b - 1) for a, b in zip(replayed, eager, strict=True))
    still = Search(graph)
    replay = captured(torch.no_grad()(still.loss))
    if len({replay().item() for _ in range(5)}) < 5:
        print("WRONG: replays drop the same entries again")
        return
    for what in ("eager", "captured"):
        search = Search(graph)
        step = captured(search.step) if what == "captured" else search.step
        row = {"part": "small", "graph": name, "what": f"{OURS}, {what}"}
        rows = [row | timed(partial(search.epoch, step), repeats)]
        yield from checked("losses of a captured epoch", error, WORST, rows)


def checked(
    what: str, error: float, worst: float, rows: Iterable[Row]
) -> Iterator[Row]:
    """The rows with their error, or a line that says why there are none."""
    if not error < worst:
        print(f"WRONG {what}: an error of {error:.1e}, at most {worst:.0e} is rounding")
        return
    for row in rows:
        yield row | {"error": f"{error:.1e}"}


def large(root: str | None, repeats: int) -> Iterator[Row]:
    """A search epoch on arxiv-like beside PyG with learnable edge weights."""
    rows = epochs("large", "arxiv-like", root, KINDS, repeats)
    error = gradient_error("arxiv-like", root)
    yield from checked("gradients", error, WORST, rows)


def huge(root: str | None, repeats: int) -> Iterator[Row]:
    """A full-batch search epoch on products-like; PyG's E x F may not fit."""
    name, few = "products-like", min(repeats, 5)
    rows = epochs("huge", name, root, (OURS,), few)
    yield from checked("gradients", gradient_error(name, root), WORST, rows)
    try:
        yield from epochs("huge", name, root, (PEERS,), few)
    except torch.cuda.OutOfMemoryError:
        print(f"huge: {PEERS}: out of memory")


def masks(root: str | None, repeats: int) -> Iterator[Row]:
    """Masks of as many links as products-like has; scores lie near 1, as learned."""
    scores = 1 + 0.01 * torch.randn(LINKS)
    scores[::5] = 1  # untouched
    there = scores.to(DEVICE)
    for ratio in (0.2, 0.5, 0.9):
        found = keep_top(there, ratio).cpu()
        if not torch.equal(found, numpy_keep(scores, int(ratio * LINKS))):
            print(f"WRONG masks at ratio {ratio}")
            continue
        row = {"part": "masks", "graph": f"{LINKS} scores", "what": f"ratio {ratio}"}
        yield row | timed(partial(keep_top, there, ratio), repeats) | {"error": 0}
    row = {"part": "masks", "graph": f"{LINKS} scores", "what": "a full sort"}
    yield row | timed(there.abs().sort, repeats)


def inference(root: str | None, repeats: int) -> Iterator[Row]:
    """A ticket at 0.5/0.9 of a GCN of three layers beside PyG's on the full graph."""
    name = "arxiv-like"
    graph = gebt.load(name, root).to(DEVICE)
    error = compaction_error(graph)
    found = inference_costs(
        graph, hidden=[256, 256], ratios=[(0.5, 0.9)], repeats=repeats
    )
    rows = (
        {"part": "inference", "graph": name, **{k: row[k] for k in ("ms", "peak_mib")}}
        | {"what": f"{row['what']} {row['graph_ratio']}/{row['weight_ratio']}"}
        for row in found
    )
    yield from checked("outputs of a compact model", error, WORST, rows)


@torch.no_grad()
def compaction_error(graph: gebt.Graph) -> float:
    """Of a compact model's outputs against those of the masked one."""
    torch.manual_seed(0)
    model = gebt.models.GCN(graph.num_features, [256, 256], graph.num_classes)
    model = model.to(graph.adjacency.device).eval()
    apply_masks(model, gebt.ModelPruner(model, 0.9).masks())
    truth = model(graph.x, graph.adjacency)
    fast, few = compact(model, graph)
    return error_of(fast(few.x, few.adjacency), truth)


@torch.no_grad()
def weights(root: str | None, repeats: int) -> Iterator[Row]:
    """A pruned weight's product in half precision: masked, 2:4 and without its units.

    Each against the masked weight of the same zeros; a unit is an output of the layer.
    """
    from torch.nn.functional import linear
    from torch.sparse import to_sparse_semi_structured

    torch.manual_seed(0)
    n = 169_344  # arxiv-like's nodes, to a multiple of 64, which 2:4 wants
    for width in (128, 256, 512, 1024):
        x = torch.randn(n, width, device=DEVICE).half()
        dense = torch.randn(width, width, device=DEVICE) / width**0.5  # (out, in)
        in_fours = dense.view(-1, 4)
        two = torch.zeros_like(in_fours, dtype=torch.bool)
        two.scatter_(1, in_fours.abs().topk(2, dim=1).indices, True)
        half = (in_fours * two).view_as(dense).half()
        units = keep_top(dense.norm(dim=1), 0.9)
        without = (dense * units[:, None]).half()
        narrow = without[units].contiguous()
        calls: list[tuple[str, Tensor, Callable[[], Tensor]]] = [
            ("50% zeros, masked", half, lambda x=x, w=half: linear(x, w)),
            ("90% of units zero, masked", without, lambda x=x, w=without: linear(x, w)),
            ("90% of units gone", narrow, lambda x=x, w=narrow: linear(x, w)),
        ]
        name = f"{n} x {width} x {width}"
        try:
            fours = to_sparse_semi_structured(half)
            linear(x, fours)
            product = ("50% zeros, 2:4", half, lambda x=x, w=fours: linear(x, w))
            calls.insert(1, product)
        except (RuntimeError, NotImplementedError) as failure:
            print(f"weights: 2:4 cannot run {name}: {failure}"[:150])
        for what, weight, call in calls:
            truth = linear(x[:4096].float(), weight.float())
            error = error_of(call()[:4096].float(), truth)
            row = {"part": "weights", "graph": name, "what": what}
            rows = [row | timed(call, repeats)]
            yield from checked(what, error, WORST_HALF, rows)


PARTS = {
    part.__name__: part for part in (small, large, masks, inference, weights, huge)
}


def ratios(rows: list[Row]) -> Iterator[str]:
    """How many times as long the peer takes as gebt, part by part."""
    for part, slow, fast in (
        ("small", PEERS, OURS),
        ("small", f"{OURS}, eager", f"{OURS}, captured"),
        ("large", PEERS, OURS),
        ("huge", PEERS, OURS),
        ("inference", "PyG, full graph 0.0/0.0", "compact 0.5/0.9"),
    ):
        ms = {row["what"]: row["ms"] for row in rows if row["part"] == part}
        if slow in ms and fast in ms:
            yield f"{part}: {slow} / {fast}: {ms[slow] / ms[fast]:.2f}"


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--root", default=None)
    parser.add_argument("--out", type=Path, default=RESULTS / "cuda-loop.csv")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("bench_cuda_loop.py needs a GPU: torch.cuda.is_available() is False.")
        sys.exit(2)
    name = torch.cuda.get_device_properties(0).name
    machine = f"{name}, CUDA {torch.version.cuda}"
    rows: list[Row] = []
    for part in args.parts:
        for row in PARTS[part](args.root, args.repeats):
            print(*row.values(), sep="\t", flush=True)
            rows.append(row)
        torch.cuda.empty_cache()
        write_results(args.out, rows, machine, columns=COLUMNS)
    print(*ratios(rows), f"Written: {args.out}", sep="\n")


if __name__ == "__main__":
    main()
