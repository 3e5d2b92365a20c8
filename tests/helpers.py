"""What the tests of several rooms share; fixtures are in conftest.py."""

import csv
import json
import os
import random
import signal
import struct
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gebt import Graph, SparseMatrix, load
from gebt.datasets import DATASETS
from gebt.models import GCN

# ------------------------------------------------------------ models and graphs


def built(graph: Graph, hidden: int = 16, dropout: float = 0.5, seed: int = 1) -> GCN:
    """A GCN for a graph of three classes, always the same."""
    torch.manual_seed(seed)
    return GCN(graph.num_features, hidden, 3, dropout=dropout)


def tiny(
    pairs: Any, x: Any = None, *, nodes: int | None = None, directed: bool = False
) -> Graph:
    """A graph from (source, target) pairs; features are one column of ones."""
    edge_index = torch.tensor(pairs, dtype=torch.int64).t().reshape(2, -1)
    nodes = nodes or int(edge_index.max()) + 1
    x = torch.ones(nodes, 1) if x is None else torch.tensor(x)
    return Graph.from_pyg({"x": x, "edge_index": edge_index}, directed=directed)


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Whether two states or masks have the same names and the same bits."""
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def shaken(model: nn.Module) -> nn.Module:
    """The model in float64, all its parameters and statistics random, in eval mode."""
    model.double()  # first: the numbers must need all of their digits
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model.eval()


def as_dtype(graph: Graph, dtype: torch.dtype) -> Graph:
    """The graph with its features and weights in a dtype."""
    x, adjacency = graph.x, graph.adjacency
    sparse = isinstance(x, SparseMatrix)
    return replace(
        graph,
        x=x.with_value(x.value.to(dtype)) if sparse else x.to(dtype),
        adjacency=adjacency.with_value(adjacency.value.to(dtype)),
    )


def same_as_pyg(graph: Graph, data: Any, split: int | None = None) -> None:
    """The graph's tensors are those of PyG's data, of its split of that number."""
    x = graph.x if isinstance(graph.x, Tensor) else graph.x.to_dense()
    torch.testing.assert_close(x, data.x, rtol=1e-6, atol=1e-7)
    assert torch.equal(graph.y, data.y)
    proper = data.edge_index[:, data.edge_index[0] != data.edge_index[1]]
    peer = torch.zeros(graph.num_nodes, graph.num_nodes)
    peer[proper[1], proper[0]] = 1
    assert torch.equal(graph.adjacency.to_dense(), peer)
    for part in ("train", "val", "test"):
        mask = data[f"{part}_mask"]
        mask = mask if mask.dim() == 1 else mask[:, split]
        nodes = mask.nonzero().squeeze(1)
        assert torch.equal(getattr(graph.split, part), nodes), part


def tolokers_like() -> dict[str, np.ndarray]:
    """What the file of a small tolokers holds: 12 nodes, 30 links, 10 splits."""
    draw = np.random.RandomState(0)
    part = np.stack([draw.permutation(np.arange(12) % 4) for _ in range(10)])
    ends = np.stack(np.triu_indices(12, 1)[::-1], axis=1)
    return {
        "edges": ends[draw.permutation(len(ends))[:30]],
        "node_features": draw.rand(12, 10).astype(np.float32),
        "node_labels": np.arange(12) % 2,
        "train_masks": part < 2,
        "val_masks": part == 2,
        "test_masks": part == 3,
    }


# -------------------------------------------------------------------- processes


def run_python(
    code: str, *args: str, threads: int = 1, given: str | None = None, **variables: str
) -> str:
    """What code prints in a process of its own, without deterministic mode."""
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *args],
        env={**os.environ, "OMP_NUM_THREADS": str(threads), **variables},
        input=given,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout


Answer = subprocess.CompletedProcess[str]


def run_gebt(*args: Any, cwd: Any, stdout: Any = subprocess.PIPE, **env: Any) -> Answer:
    """`python -m gebt` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "gebt", *map(str, args)],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100", **env},
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
    )


def launch(
    number: int, *arguments: object, cwd: Path | None = None, **env: str
) -> "subprocess.Popen[str]":
    """Start torchrun, so many ranks."""
    run = [sys.executable, "-m", "torch.distributed.run"]
    standalone = ["--standalone", "--nproc-per-node", str(number)]
    return subprocess.Popen(
        [*run, *standalone, *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
        cwd=cwd,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def lines(process: "subprocess.Popen[str]") -> tuple[str, list[str]]:
    """What it printed, and what gebt said of errors."""
    out, errors = process.communicate(timeout=120)
    return out, [line for line in errors.splitlines() if line.startswith("gebt:")]


def call_gebt(*args: Any) -> Any:
    """The same command line in this process: its exit code."""
    from gebt import cli

    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setattr(sys, "argv", ["gebt", *map(str, args)])
        patch.setattr(warnings, "showwarning", warnings.showwarning)
        warnings.simplefilter("ignore")  # as Python does by default, for most
        warnings.simplefilter("default", UserWarning)
        with pytest.raises(SystemExit) as stop:
            cli.main()
    return stop.value.code


def assert_refused(answer: Answer, *words: str) -> None:
    """One line, which holds the words, and exit code 2."""
    assert answer.returncode == 2, answer
    lines = answer.stderr.strip().splitlines()
    assert len(lines) == 1, answer.stderr
    assert lines[0].startswith("gebt: ")
    for word in words:
        assert word in lines[0]


class TooSlow(BaseException):
    """Code took its time: not one of the errors that it may end in."""


@contextmanager
def in_time(seconds: float) -> Iterator[None]:
    """Inside, more of this process's own time is an error."""

    def stop(*_: Any) -> None:
        raise TooSlow

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


# ------------------------------------------------------------------------ files


def mutants(content: bytes, draw: random.Random) -> bytes:
    """The content with one to three accidents, drawn."""
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 3))):
        size = max(len(changed), 1)
        # Headers are short and do most: half of the accidents happen near an end.
        edge = draw.choice((size, size, min(size, 300)))
        at = (
            draw.randrange(edge)
            if draw.random() < 0.8
            else size - 1 - draw.randrange(edge)
        )
        length = min(draw.choice((1, 2, 4, 8, 64, 1000)), size)
        match draw.choice(
            ("flip", "flip", "flip", "set", "set", "cut", "drop", "put", "copy")
        ):
            case "flip" if changed:
                changed[at] ^= 1 << draw.randrange(8)
            case "set":
                changed[at : at + length] = draw.choice(
                    (b"\x00" * length, b"\xff" * length, draw.randbytes(length))
                )
            case "cut":
                del changed[at:]
            case "drop":
                del changed[at : at + length]
            case "put":
                changed[at:at] = draw.randbytes(length)
            case "copy":
                other = draw.randrange(size)
                changed[other:other] = changed[at : at + length]
    return bytes(changed)


def check_garbled(name: str, root: Path, seeds: int = 40) -> None:
    """Whatever is in one of a dataset's files, `load` makes a graph or one clear error.

    Args:
        name: of the dataset.
        root: that holds its files whole.
        seeds: how many times one of them is garbled.
    """
    files = [root / file for file in DATASETS[name].files if (root / file).is_file()]
    for seed in range(seeds):
        draw = random.Random(seed)
        path = draw.choice(files)
        whole = path.read_bytes()
        path.write_bytes(mutants(whole, draw))
        try:
            with in_time(2), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                load(name, root)
        except ValueError as error:
            assert "truncated or corrupt" in str(error), (seed, path)
            assert "\n" not in str(error) and len(str(error)) < 1000, (seed, path)
        path.write_bytes(whole)


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a table, read without gebt."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def header_of(content: Path | bytes) -> Any:
    """What gebt wrote into a safetensors file's header."""
    if isinstance(content, Path):
        content = content.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    return json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["gebt"])
