"""Requests per second of docs/examples/serve.py, and how long an answer takes.

A GCN-16 of random weights, 90% of them pruned, and half of Cora's links is compacted,
exported and served by a process of its own. As many clients as asked for, threads of
this process with a connection each, ask for one node at a time as fast as they can, of
outputs that are computed once and of ones that are computed for each request. The first
answers are checked. Clients and server share the machine's cores.

    python benchmarks/bench_serve.py [--seconds 5] [--clients 1 4] [--root DIR]

Writes results/serve.csv and prints it.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from http.client import HTTPConnection
from pathlib import Path

import torch
from common import RESULTS, write_results
from end_to_end import new_gcn

import gebt

SERVER = Path(__file__).parent.parent / "docs" / "examples" / "serve.py"


def exported(graph: gebt.Graph, path: Path) -> list[int]:
    """Write the program; the class of each node."""
    model = new_gcn(graph, 16, 0).eval()
    for layer in model.layers:
        layer.weight.mul_(torch.rand_like(layer.weight) > 0.9)
    links = torch.rand(graph.num_links) < 0.5
    fast, small = gebt.compact(model, graph.keep_links(links))
    gebt.export(path, fast, small)
    return fast(small.x, small.adjacency).argmax(dim=1).tolist()


def ask(port: int, nodes: int, until: float, seconds: list[float], found: dict) -> None:
    """One client: how long each answer took, and the class of each node."""
    connection = HTTPConnection("127.0.0.1", port)
    node = threading.get_ident() % nodes
    while (start := time.perf_counter()) < until:
        node = (node + 7919) % nodes
        connection.request("GET", f"/predict?node={node}")
        answer = json.loads(connection.getresponse().read())
        seconds.append(time.perf_counter() - start)
        found[node] = answer["classes"][0]
    connection.close()


def load(
    port: int, clients: int, duration: float, classes: list[int]
) -> dict[str, float]:
    """Requests per second, and milliseconds of an answer."""
    taken: list[list[float]] = [[] for _ in range(clients)]
    found: dict[int, int] = {}
    until = time.perf_counter() + duration
    threads = [
        threading.Thread(target=ask, args=(port, len(classes), until, each, found))
        for each in taken
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(classes[node] == each for node, each in found.items())
    every = sorted(second for each in taken for second in each)

    def at(share: float) -> float:
        return round(1000 * every[int(share * (len(every) - 1))], 2)

    rate = round(len(every) / duration)
    return {"requests/s": rate, "p50 ms": at(0.5), "p99 ms": at(0.99)}


@torch.no_grad()
def main() -> None:
    """Serve, ask, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--root", default=None)
    args = parser.parse_args()
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pt2"
        classes = exported(gebt.load("cora", args.root), path)
        for computed, flags in (("once", []), ("for each request", ["--fresh"])):
            command = [sys.executable, SERVER, path, "--port", "0", *flags]
            server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            try:
                port = int(re.search(r":(\d+)/", server.stdout.readline())[1])
                load(port, 1, 1, classes)  # warm up
                for clients in args.clients:
                    row = {"computed": computed, "clients": clients}
                    rows.append(row | load(port, clients, args.seconds, classes))
                    print(*rows[-1].values(), sep="\t", flush=True)
            finally:
                server.terminate()
                server.wait()
                server.stdout.close()
    write_results(RESULTS / "serve.csv", rows, "cora", f"{args.seconds:g} s each")


if __name__ == "__main__":
    main()
