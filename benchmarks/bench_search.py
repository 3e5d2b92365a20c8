"""A search epoch and a plain epoch, and draw + retrain, beside PyG's.

A GCN of two layers of 128 units on a large graph, without the evaluation on PyG's
side. PyG runs its own `GCN` with and without learnable edge weights. Each is measured
in a process of its own, so that peak memory is its own, and twice: with memory in
pages of 4 KiB, as torch allocates it, and in huge pages (THP_MEM_ALLOC_ENABLE=1), as
gebt's command line does.

    python benchmarks/bench_search.py [--graph arxiv-like] [--threads 2] [--epochs 5]

Writes results/search.csv and prints it with the ratios.
"""

import argparse
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable

import torch
from common import RESULTS, write_results
from torch.nn.functional import cross_entropy

import gebt
from gebt.deploy.cost import peak_memory
from gebt.learn.loop import Learner, whole
from gebt.learn.tasks import NodeClassification
from gebt.options import Fit
from gebt.prune.links import GraphSparsifier

HIDDEN = 128
KINDS = (
    "gebt, plain epoch",
    "gebt, search epoch",
    "PyG, plain epoch",
    "PyG, learnable edge weights",
)


def step_of(kind: str, graph: gebt.Graph, hidden: int = HIDDEN) -> Callable[[], None]:
    """One epoch of a kind: forward, backward, step; a search's masks and detector."""
    torch.manual_seed(0)
    task = NodeClassification()
    if kind.startswith("gebt"):
        model = gebt.models.GCN(graph.num_features, hidden, graph.num_classes).train()
        groups = [GraphSparsifier(graph, prune_ratio=0.2), gebt.ModelPruner(model, 0.9)]
        groups = groups if "search" in kind else []
        learner = Learner(model, task, Fit(), seed=0, groups=groups)
        epochs = learner.epochs(whole(graph), until=sys.maxsize)
        detector = gebt.MaskDistanceDetector()

        def step() -> None:
            next(epochs)
            if groups:
                detector.update({group.name: group.masks() for group in groups})

        return step
    from torch_geometric.nn.models import GCN

    peer = GCN(graph.num_features, hidden, 2, graph.num_classes, dropout=0.5).train()
    edges = graph.adjacency.pattern.edge_index
    weight = graph.adjacency.value.clone()
    parameters = list(peer.parameters())
    if "learnable" in kind:
        weight.requires_grad_()
        parameters.append(weight)
    peer_optimizer = torch.optim.Adam(parameters, lr=0.01)
    x = graph.x.to_dense() if isinstance(graph.x, gebt.SparseMatrix) else graph.x
    rows, y = graph.split.train, graph.y[graph.split.train]

    def peer_step() -> None:
        loss = cross_entropy(peer(x, edges, weight)[rows], y)
        peer_optimizer.zero_grad()
        loss.backward()
        peer_optimizer.step()

    return peer_step


def measure(work: tuple[str, str, int, int]) -> dict:
    """Milliseconds and memory of one kind, in a process of its own."""
    kind, name, threads, epochs = work
    torch.set_num_threads(threads)
    graph = gebt.load(name)
    step = step_of(kind, graph)
    with peak_memory(torch.device("cpu")) as before:
        pass
    times, cpu = [], []
    with peak_memory(torch.device("cpu")) as peak:
        for _ in range(epochs + 1):
            start, start_cpu = time.perf_counter(), time.process_time()
            step()
            times.append(time.perf_counter() - start)
            cpu.append(time.process_time() - start_cpu)
    return {
        "graph": name,
        "kind": kind,
        "threads": threads,
        "ms": round(1000 * statistics.median(times[1:])),
        "ms_min": round(1000 * min(times[1:])),
        "cpu_ms": round(1000 * statistics.median(cpu[1:])),
        "peak_mib": round(peak[0] - before[0]),
    }


def draw_and_retrain(work: tuple[str, int, int]) -> dict:
    """Seconds of a search that stops and of retraining with its evaluations."""
    name, threads, epochs = work
    torch.set_num_threads(threads)
    graph = gebt.load(name)
    torch.manual_seed(0)
    model = gebt.models.GCN(graph.num_features, HIDDEN, graph.num_classes)
    start = time.perf_counter()
    ticket = gebt.find_ticket(
        model, graph, graph_ratio=0.5, weight_ratio=0.9, epochs=epochs
    )
    drawn = time.perf_counter() - start
    small = ticket.open(model, graph)
    gebt.train(model, small, keep=ticket.weight_masks, epochs=epochs)
    total = time.perf_counter() - start
    accuracy = gebt.evaluate(model, small)
    return {
        "epoch": ticket.epoch,
        "settled": ticket.settled,
        "draw_s": round(drawn, 1),
        "total_s": round(total, 1),
        "epochs": epochs,
        "test": round(accuracy, 2),
    }


def main() -> None:
    """Measure in turns, write, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--graph", default="arxiv-like")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--retrain", type=int, default=50, help="epochs of retraining")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    rows = []
    for huge, pages in (("0", "4 KiB"), ("1", "2 MiB")):
        os.environ["THP_MEM_ALLOC_ENABLE"] = huge
        # A fresh process each: memory that one kind leaves behind is not another's.
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            for kind in KINDS:
                work = (kind, args.graph, args.threads, args.epochs)
                rows.append(pool.apply(measure, (work,)) | {"pages": pages})
                print(rows[-1], flush=True)
            work = (args.graph, args.threads, args.retrain)
            whole = pool.apply(draw_and_retrain, (work,))
        print(whole, flush=True)
        plain, search, pyg, learnable = rows[-4:]
        as_many = whole["epoch"] + whole["epochs"]  # of PyG's, none evaluated
        gebt_s = {"ms": 1000 * whole["total_s"], "ms_min": "", "cpu_ms": ""}
        pyg_s = {"ms": as_many * pyg["ms"], "ms_min": "", "cpu_ms": ""}
        what = f"draw of {whole['epoch']} epochs + {whole['epochs']} of retraining"
        rows.append(plain | gebt_s | {"kind": f"gebt, {what}", "peak_mib": ""})
        rows.append(pyg | pyg_s | {"kind": f"PyG, {as_many} plain epochs, by product"})
        ratios = {
            "search epoch: PyG learnable / gebt": learnable["ms"] / search["ms"],
            "search epoch: memory gebt / PyG": search["peak_mib"]
            / learnable["peak_mib"],
            "plain epoch: PyG / gebt": pyg["ms"] / plain["ms"],
            "search / plain epoch, gebt": search["ms"] / plain["ms"],
            "as many epochs of PyG / draw + retrain": pyg_s["ms"] / gebt_s["ms"],
        }
        for name, ratio in ratios.items():
            print(f"pages of {pages}: {name}: {ratio:.2f}", flush=True)
    write_results(RESULTS / "search.csv", rows)


if __name__ == "__main__":
    main()
