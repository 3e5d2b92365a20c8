"""What a search epoch takes on 1 process and on 2 and 4 ranks: time, memory, bytes.

    python benchmarks/bench_ranks.py [GRAPH] [--hidden 64] [--cores 2]

Checked: after as many epochs 99.9% of the links of all are the same. All use the same
cores: one process as many threads as there are, ranks share them. Each row's epoch is
the median of those after the first. Its parts are of a second run, in which all ranks
meet before they exchange: so waiting for others and exchanging can be told apart, and
nothing overlaps. CPU seconds are of all ranks, and say more than the time where
something else uses the cores. The graph lies in a file that all map. Memory that is
freed goes back to the system, of one process too.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, write_results
from safetensors.torch import load_file
from torch import Tensor
from torch import distributed as dist

import gebt
from gebt.deploy.cost import peak_memory
from gebt.files import Fields, Tensors, write_tensors
from gebt.graph import cut
from gebt.graph.storage import pack, unpack
from gebt.models import GCN
from gebt.world import ALONE, Ranks, World

EPOCHS = 6


class TimedRanks(Ranks):
    """Ranks that count bytes and, if asked, seconds."""

    def __init__(self, parts: bool):
        super().__init__()
        self.parts, self.sent = parts, 0
        self.seconds = {"wait": 0.0, "exchange": 0.0, "sums": 0.0}

    def _met(self) -> float:
        start = time.perf_counter()
        if self.parts:
            dist.barrier()
        now = time.perf_counter()
        self.seconds["wait"] += now - start
        return now

    def exchange(
        self,
        rows: Tensor,
        send: Sequence[int],
        receive: Sequence[int],
        into: Tensor | None = None,
    ) -> Callable[[], Tensor]:
        """See `World`."""
        others = sum(send) - send[self.rank]
        self.sent += others * rows[:1].numel() * rows.element_size()
        start = self._met()
        wait = super().exchange(rows, send, receive, into)
        if self.parts:
            wait()
            self.seconds["exchange"] += time.perf_counter() - start
        return wait

    def sum(self, tensor: Tensor) -> Tensor:
        """See `World`."""
        start = self._met()
        total = super().sum(tensor)
        self.seconds["sums"] += time.perf_counter() - start
        return total


class Ticking(gebt.MaskDistanceDetector):
    """Notes when each epoch ends."""

    def __init__(self, world: World):
        super().__init__(1e-12)
        self.world, self.at = world, [time.perf_counter()]
        self.cpu = [time.process_time()]
        self.before: dict[str, float] = {}
        self.sent = 0

    def update(self, *masks: Any) -> gebt.Reading:
        """As the base class."""
        reading = super().update(*masks)
        self.at.append(time.perf_counter())
        self.cpu.append(time.process_time())
        if len(self.at) == 2 and isinstance(self.world, TimedRanks):
            self.before, self.sent = dict(self.world.seconds), self.world.sent
        return reading


def measure(path: Path, hidden: int, parts: bool) -> dict[str, Any]:
    """One rank's part of the search: what it took here."""
    world: World = ALONE
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
        world = TimedRanks(parts)
    header = json.loads(path.with_suffix(".json").read_text())
    start = time.perf_counter()
    with peak_memory(torch.device("cpu")) as setup:
        graph = unpack(Tensors(load_file(path), str(path)), Fields(header, str(path)))
        if isinstance(world, Ranks):
            graph = cut(graph, world, "")
    ready = time.perf_counter() - start
    torch.manual_seed(0)
    classes = graph.num_classes
    model = GCN(graph.num_features, hidden, classes)
    detector = Ticking(world)
    how: Any = {"graph_ratio": 0.2, "weight_ratio": 0.9, "detector": detector}
    with peak_memory(torch.device("cpu")) as peak:
        ticket = gebt.find_ticket(model, graph, epochs=EPOCHS, **how)
    ticks = [b - a for a, b in zip(detector.at[1:-1], detector.at[2:], strict=True)]
    spent = [b - a for a, b in zip(detector.cpu[1:-1], detector.cpu[2:], strict=True)]
    mask = ticket.link_mask
    if graph.share is not None:
        every = world.gather(graph.share.links), world.gather(mask)
        mask = torch.empty_like(every[1]).index_copy_(0, *every)
    found = {
        "epoch_s": statistics.median(ticks),
        "cpu_s": statistics.median(spent),
        "peak_mib": peak[0],
        "setup_mib": setup[0],
        "setup_s": ready,
        "nodes": graph.num_nodes,
        "halo": 0 if graph.share is None else graph.adjacency.halo.size,  # type: ignore[attr-defined]
        "inner": 0 if graph.share is None else graph.adjacency.inner,  # type: ignore[attr-defined]
    }
    if world.rank == 0:
        torch.save(mask, path.with_name("mask"))
    if isinstance(world, TimedRanks):
        epochs = len(ticks)
        for name, seconds in world.seconds.items():
            found[f"{name}_s"] = (seconds - detector.before[name]) / epochs
        found["sent_mib"] = (world.sent - detector.sent) / epochs / 2**20
    return found


def start(
    path: Path, ranks: int, cores: int, hidden: int, parts: bool
) -> list[dict[str, Any]]:
    """Every rank's finding."""
    args = [__file__, "--worker", str(path), "--hidden", str(hidden)]
    args += ["--parts"] * parts
    command = [sys.executable, *args]
    if ranks > 1:
        run = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks)]
        command = [sys.executable, *run, *args]
    threads = str(max(1, cores // ranks))
    env = {**os.environ, "OMP_NUM_THREADS": threads, "PYTHONWARNINGS": "ignore"}
    env["MALLOC_MMAP_THRESHOLD_"] = str(2**20)  # as `gebt` sets it under torchrun
    for old in path.parent.glob("found-*"):
        old.unlink()
    subprocess.run(command, env=env, check=True)
    files = sorted(path.parent.glob("found-*"))
    return [json.loads(file.read_text()) for file in files]


def main() -> None:
    """Measure, and write the table."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("graph", nargs="?", default="arxiv-like")
    asked.add_argument("--hidden", type=int, default=64)
    asked.add_argument("--cores", type=int, default=2)
    asked.add_argument("--reorder", action="store_true")
    asked.add_argument("--worker", type=Path)
    asked.add_argument("--parts", action="store_true")
    given = asked.parse_args()
    if given.worker:
        found = measure(given.worker, given.hidden, given.parts)
        rank = os.environ.get("RANK", "0")
        given.worker.with_name(f"found-{rank}").write_text(json.dumps(found))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.safetensors"
        graph = gebt.load(given.graph)
        tensors, header = pack(graph.reorder() if given.reorder else graph)
        write_tensors(path, tensors, {})
        path.with_suffix(".json").write_text(json.dumps(header))
        del graph, tensors
        rows: list[dict[str, Any]] = []
        first = torch.empty(0)
        for ranks in (1, 2, 4):
            apart = start(path, ranks, given.cores, given.hidden, parts=True)
            each = start(path, ranks, given.cores, given.hidden, parts=False)
            mask = torch.load(path.with_name("mask"))
            first = mask if ranks == 1 else first
            rows.append(row(ranks, given, each, apart))
            rows[-1]["same_links"] = same = float((mask == first).float().mean())
            print(rows[-1], flush=True)
            assert same >= 0.999, "the links differ"
    one = dict(rows[0])
    for found in rows:
        found["of_one_time"] = round(found["epoch_s"] / one["epoch_s"], 2)
        found["of_one_cpu"] = round(found["cpu_s"] / one["cpu_s"], 2)
        found["of_one_memory"] = round(found["peak_mib"] / one["peak_mib"], 2)
    name = given.graph.replace(":", "-") + "-reordered" * given.reorder
    notes = f"{given.graph}, GCN-{given.hidden}, float32, {given.cores} cores"
    write_results(RESULTS / "ranks" / f"{name}.csv", rows, notes)


def row(
    ranks: int,
    given: argparse.Namespace,
    each: list[dict[str, Any]],
    apart: list[dict[str, Any]],
) -> dict[str, Any]:
    """The slowest rank's time, the largest's memory."""

    def most(name: str, of: list[dict[str, Any]] = each) -> float:
        return round(max(one.get(name, 0.0) for one in of), 3)

    parts = {f"{n}_s": most(f"{n}_s", apart) for n in ("exchange", "wait", "sums")}
    return {
        "graph": given.graph,
        "ranks": ranks,
        "threads": max(1, given.cores // ranks),
        "epoch_s": most("epoch_s"),
        "cpu_s": round(sum(one["cpu_s"] for one in each), 3),
        "apart_s": most("epoch_s", apart),
        **parts,
        "peak_mib": round(most("peak_mib")),
        "setup_mib": round(most("setup_mib")),
        "setup_s": round(most("setup_s"), 1),
        "sent_mib": round(sum(one.get("sent_mib", 0) for one in each), 1),
        "nodes": round(most("nodes")),
        "halo": round(most("halo")),
        "inner": round(most("inner")),
    }


if __name__ == "__main__":
    main()
