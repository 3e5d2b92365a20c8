"""Units that a ticket emptied: the masked model beside its compact form.

Of every hidden layer a share of the units is emptied, as a ticket of whole units does:
of GAT heads, of ResGCN channels of each block and of the residual stack units, all that
is read of them. ``scattered`` empties single units of GAT instead, in all heads.
Outputs are checked, then both forms are timed in turns.

    python benchmarks/bench_units.py [--threads 1] [--repeats 30]

Writes results/units-<threads>-threads.csv and prints it.
"""

import argparse

import torch
from common import RESULTS, write_results

import gebt
from gebt.deploy.cost import executed_macs, latencies
from gebt.models import GAT, GCN, ResGCN

GRAPH = "synthetic:N=20000,E=100000,F=128,C=7"
MODELS = {
    "gat, heads": lambda f, c: GAT(f, 8, c, heads=8, layers=3),
    "gat, scattered": lambda f, c: GAT(f, 8, c, heads=8, layers=3),
    "gat, own paths, heads": lambda f, c: GAT(
        f, 8, c, heads=8, layers=3, residual=True
    ),
    "resgcn, 7 layers": lambda f, c: ResGCN(f, 128, c, layers=7),
    "gcn, own paths": lambda f, c: GCN(f, 64, c, layers=3, residual=True, norm="batch"),
}


@torch.no_grad()
def empty(name: str, model: torch.nn.Module, share: float) -> None:
    """Set to zero the weights that read a share of each layer's units."""
    if isinstance(model, ResGCN):
        for reader in (*model.layers, model.output):
            rows = reader.weight.shape[0]
            reader.weight[torch.randperm(rows)[: int(share * rows)]] = 0
        return
    for reader in model.stacked()[1:]:
        rows = reader.weight.shape[0]
        gone = torch.arange(int(share * rows))  # of GAT whole heads
        if "scattered" in name:
            gone = torch.arange(rows).view(8, 8)[:, : int(share * 8)].flatten()
        for weight in reader.weights():
            weight[gone] = 0


def measure(name: str, share: float, graph: gebt.Graph, repeats: int) -> dict:
    """One row."""
    torch.manual_seed(0)
    model = MODELS[name](graph.num_features, graph.num_classes).eval()
    empty(name, model, share)
    fast, small = gebt.compact(model, graph)
    with torch.no_grad():
        whole, ours = model(graph.x, graph.adjacency), fast(small.x, small.adjacency)
    torch.testing.assert_close(ours, whole, rtol=1e-4, atol=1e-5)
    masked, compact = latencies([(model, graph), (fast, small)], repeats=repeats)
    macs = [executed_macs(*each) / 1e6 for each in ((model, graph), (fast, small))]
    return {
        "model": name,
        "units emptied": share,
        "masked ms": round(masked, 1),
        "compact ms": round(compact, 1),
        "masked / compact": round(masked / compact, 2),
        "masked MMACs": round(macs[0]),
        "compact MMACs": round(macs[1]),
    }


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=30)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    graph = gebt.load(GRAPH)
    rows = []
    for name in MODELS:
        for share in (0.0, 0.5, 0.75):
            rows.append(measure(name, share, graph, args.repeats))
            print(*rows[-1].values(), sep="\t", flush=True)
    path = RESULTS / f"units-{args.threads}-threads.csv"
    write_results(path, rows, f"{GRAPH}, float32")


if __name__ == "__main__":
    main()
