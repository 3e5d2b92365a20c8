"""Hostile files: seeded mutants of whole ones are read, or refused in words.

A kind of file is an entry of `KINDS`. 300 mutants in the suite, of all kinds together;
``pytest tests/files/test_fuzz.py --fuzz 100000`` for more.
"""

import csv
import gzip
import io
import json
import math
import random
import resource
import shutil
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
import typer
from helpers import TooSlow, assert_refused, header_of, in_time
from safetensors.torch import load, save
from torch import Tensor

import gebt
from gebt._checks import check_count
from gebt._registry import MODELS
from gebt.cli.app import app
from gebt.cli.common import load_of
from gebt.cli.config import Call, read_run
from gebt.cli.flags import Device
from gebt.experiments.report import page_of
from gebt.experiments.run import Options, Recorder, retrain, run_seeds
from gebt.experiments.verify import contents_of
from gebt.files import hash_of, write_csv, write_json
from gebt.models import GAT, GCN, GraphSAGE, ResGCN, build_model

pytestmark = pytest.mark.slow

RUN: Any = typer.main.get_command(app).commands["run"]  # type: ignore[attr-defined]
USAGE_ERROR: Any = typer.BadParameter.__mro__[2]  # as gebt.cli.entry finds it
GRAPH = "synthetic:N=60,E=350,F=8,C=3"
DEEP: Any = []
for _ in range(50):
    DEEP = [DEEP]
HOSTILE: list[Any] = [
    *(None, True, -1, 0, 1, 3.5, 1e308, math.nan, math.inf, 10**12, 2**63, 10**40),
    *("", "x" * 1000, "\0", "\ud800", "link-prediction", [], [1], {}, {"a": 1}, DEEP),
]
DTYPES = [
    *(torch.bool, torch.uint8, torch.int8, torch.int32, torch.int64, torch.uint16),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64),
    torch.float8_e4m3fn,
]
EXTREMES = [-1, 0, 1, 3, 2**31 - 1, 2**31, 2**62, -(2**63), math.nan, math.inf, 1e30]


# ------------------------------------------------------------------ whole files


def write_tickets(folder: Path) -> None:
    """A ticket of some models on a graph, and one of its links."""
    graph = gebt.load(GRAPH)
    models = {
        "gcn": GCN(8, [4, 5], 3),
        "gat": GAT(8, 4, 3, heads=2),
        "resgcn": ResGCN(8, 4, 3, layers=2),
        "links": GraphSAGE(8, 4, 64),
        "asked": GCN(8, 4, 3),
    }
    for name, model in models.items():
        task = gebt.LinkPrediction() if name == "links" else None
        searched = graph.hold_out_links() if task else graph
        options: Any = {"graph_ratio": 0.3, "weight_ratio": 0.5, "epochs": 3}
        options["criterion"] = "expected-gradient" if name == "asked" else "learned"
        ticket = gebt.find_ticket(model, searched, task=task, **options)
        ticket.save(folder / f"{name}.safetensors")


@cache
def adapted() -> tuple[gebt.Ticket, gebt.Graph]:
    """A ticket that tasks are learned over."""
    torch.manual_seed(0)
    graph, ratios = gebt.load(GRAPH), {"graph_ratio": 0.3, "weight_ratio": 0.5}
    return gebt.find_ticket(GCN(8, [4, 5], 3), graph, epochs=3, **ratios), graph


def write_adaptations(folder: Path) -> None:
    """What two tasks add to a ticket."""
    task = gebt.AmongClasses([2, 0])
    bits: Any = {"unit": "element", "binary": True}
    for name, how in (("soft", {"link_groups": 4}), ("bits", bits)):
        found = gebt.adapt_ticket(*adapted(), task, epochs=2, **how)
        found.save(folder / f"{name}.safetensors")


def write_compacts(folder: Path) -> None:
    """A compact model of some kinds of graphs."""
    plain = gebt.load(GRAPH)
    assert isinstance(plain.x, Tensor)
    words = gebt.SparseMatrix.from_dense(plain.x * (plain.x > 1))
    graphs = {
        "gcn": (plain, GCN(8, [4, 5], 3)),
        "sage": (replace(plain, x=words), GraphSAGE(8, 4, 3)),
        "gat": (plain.reorder(), GAT(8, 4, 3, heads=2)),
        "resgcn": (plain.hold_out_links(), ResGCN(8, 4, 3, layers=2)),
    }
    for name, (graph, model) in graphs.items():
        small = gebt.compact(model, graph)
        gebt.save_compact(folder / f"{name}.safetensors", *small)


def write_runs(folder: Path) -> None:
    """A folder as `gebt run` writes it, of two seeds, and one as `reproduce` does."""
    graph, task = gebt.load(GRAPH), gebt.NodeClassification()
    options = Options(MODELS["gcn"].changed(hidden=4, epochs=3), threshold=2.0)
    run_seeds(graph, task, options, range(2), folder / "run")
    for seed in (0, 1):
        shutil.rmtree(folder / "run" / f"seed-{seed}")
    about = {
        "experiment": "fig6",
        "quick": True,
        "seeds": 1,
        "graphs": ["digits"],
        "machine": {"torch": "2", "cores": 2},
        "earlier": [{"torch": "1"}],
    }
    write_json(folder / "experiment" / "experiment.json", about)
    shares = {"graph_ratio": 0.3, "weight_ratio": 0.5, "val": 70.0, "ms": 1.0}
    dense = {"graph_ratio": 0.0, "weight_ratio": 0.0, "val": 71.5, "ms": 2.0}
    tried = [
        gebt.Candidate(criterion="dense", **dense),
        gebt.Candidate(criterion="random", **shares),
        gebt.Candidate(criterion="forest", **shares, retrained=71.0, chosen=True),
    ]
    write_csv(folder / "cheapest" / "frontier.csv", [asdict(each) for each in tried])
    for name in ("metrics.json", "history.csv"):
        shutil.copy(folder / "run" / name, folder / "cheapest")


def write_tables(folder: Path) -> None:
    """Edge lists and nodes of users, in the ways that they may be written."""
    draw = random.Random(0)
    ends = draw.sample([(a, b) for a in range(20) for b in range(a)], 60)
    edges = [{"source": a, "target": b, "weight": (a + b) / 7} for a, b in ends]
    nodes = [
        {"id": i, "x0": i / 3, "x1": i % 5, "class": "abc"[i % 3]} for i in range(20)
    ]
    words = [f"node {i}, {chr(228)}" for i in range(20)]
    named = [
        {**e, "source": words[e["source"]], "target": words[e["target"]]} for e in edges
    ]
    write_csv(folder / "numbers" / "edges.csv", edges)
    write_csv(folder / "numbers" / "nodes.csv", nodes)
    write_csv(folder / "words" / "edges.csv", named)
    write_csv(
        folder / "words" / "nodes.csv", [n | {"id": words[n["id"]]} for n in nodes]
    )
    for name in ("edges", "nodes"):
        text = (folder / "words" / f"{name}.csv").read_bytes()
        tabs = table_of(table_in(text, ","), "\t")
        (folder / "tabs").mkdir(exist_ok=True)
        (folder / "tabs" / f"{name}.tsv.gz").write_bytes(gzip.compress(tabs, mtime=0))


def go_on(folder: Path) -> None:
    """A training of three epochs that is kept in a folder."""
    torch.manual_seed(0)
    with gebt.checkpoints(folder, every=1):
        gebt.train(GCN(8, [4, 5], 3), gebt.load(GRAPH), epochs=3)


def write_checkpoints(folder: Path) -> None:
    """Of a training that was broken off, and of a search."""

    def broken(epoch: Any) -> None:
        if epoch.epoch == 2:
            raise KeyboardInterrupt

    graph = gebt.load(GRAPH)
    for name, call in (("train", gebt.train), ("search", gebt.find_ticket)):
        torch.manual_seed(0)
        with suppress(KeyboardInterrupt), gebt.checkpoints(folder / name, every=1):
            call(GCN(8, [4, 5], 3), graph, epochs=3, on_epoch=broken)


def write_exports(folder: Path) -> None:
    """A compact model as a program."""
    folder = folder / "export"
    folder.mkdir()
    gebt.export(folder / "model.pt2", *gebt.compact(GCN(8, 4, 3), gebt.load(GRAPH)))


def write_configs(folder: Path) -> None:
    """The flags of a run, as that writes them."""
    flags = {"dataset": GRAPH, "graph_ratio": 0.3, "weight_ratio": 0.5, "seeds": 2}
    flags |= {"model": "gcn", "lr": 0.01, "hidden": 16, "quiet": False, "split": None}
    Call("run", flags).save(folder / "run.toml")


# --------------------------------------------------------------------- mutants


def damaged(content: bytes, draw: random.Random) -> bytes:
    """Bytes flipped, overwritten, cut out, added or cut off; half of it early on."""
    end = min(len(content), 4000) if draw.random() < 0.5 else len(content)
    at, size = draw.randrange(max(1, end)), draw.choice([1, 2, 8, 200])
    noise = bytes(draw.choices(b'0123456789"{}[]:,.-eE\0\xff nutfa', k=size))
    match draw.randrange(6):
        case 0 if content:
            flipped = content[at] ^ 1 << draw.randrange(8)
            return content[:at] + bytes([flipped]) + content[at + 1 :]
        case 1:
            return content[:at] + noise + content[at + size :]
        case 2:
            return content[:at] + noise + content[at:]
        case 3:
            return content[:at] + content[at + size :]
        case 4:  # the length of a safetensors header
            return (
                struct.pack("<Q", draw.choice([0, 1, 2**20, 2**40, 2**63]))
                + (content[8:])
            )
        case _:
            return content[:at]


def places(content: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where each value of a JSON tree is; the tree itself too."""
    yield at
    if isinstance(content, dict | list):
        keys = content if isinstance(content, dict) else range(len(content))
        for key in keys:
            yield from places(content[key], (*at, key))


def changed(content: Any, draw: random.Random) -> Any:
    """A JSON tree with one value that is another, gone, or somebody else's."""
    content = deepcopy(content)
    every = [place for place in places(content) if place]
    if draw.random() < 0.02:
        return draw.choice(HOSTILE)
    # Else most would hit the many numbers of `distances` and `runs`.
    shallow = [place for place in every if len(place) < 4 and 0 not in place[1:]]
    *parents, key = draw.choice(shallow if draw.random() < 0.7 else every)
    inside = content
    for parent in parents:
        inside = inside[parent]
    match draw.randrange(8):
        case 0:
            del inside[key]
        case 1:
            other: Any = content
            for step in draw.choice(every):
                other = other[step]
            inside[key] = deepcopy(other)
        case 2 if isinstance(inside, dict):
            inside[f"{key}x"] = inside.pop(key)
        case _:
            inside[key] = draw.choice(HOSTILE)
    return content


def text_of(content: Any, draw: random.Random) -> str:
    """Mutated JSON: by structure, or now and then by its letters."""
    if draw.random() < 0.1:
        return damaged(json.dumps(content).encode(), draw).decode(errors="ignore")
    return json.dumps(changed(content, draw))


def other_tensor(tensor: Tensor, draw: random.Random) -> Tensor:
    """Of another dtype, shape or range."""
    flat = tensor.flatten().clone()
    match draw.randrange(9):
        case 0 | 1:
            return tensor.float().nan_to_num(0).to(draw.choice(DTYPES))
        case 2:
            return tensor[None]
        case 3:
            return flat
        case 4:
            return flat[: draw.choice([0, 1, max(0, flat.numel() - 1)])]
        case 5:
            return torch.cat([flat, flat[:1]])
        case 6:
            return tensor.new_zeros(draw.choice([(), (0,), (0, 2**40), (3, 0), (7, 2)]))
        case _:
            value = draw.choice(EXTREMES)
            if not tensor.is_floating_point():
                value = int(value) if math.isfinite(value) else 0
                boolean = tensor.dtype == torch.bool
                ends = torch.iinfo(torch.int8 if boolean else tensor.dtype)
                value = max(ends.min, min(ends.max, value))
            if flat.numel():
                at = draw.choice([0, -1, draw.randrange(flat.numel())])
                flat[slice(None) if draw.random() < 0.2 else at] = value
            return flat.view(tensor.shape)


def other_tensors(tensors: dict[str, Tensor], draw: random.Random) -> None:
    """Change one of a file's tensors, or the place of one."""
    name, other = draw.choice(list(tensors)), draw.choice(list(tensors))
    match draw.randrange(8):
        case 0:
            del tensors[name]
        case 1:
            tensors[name] = tensors[other].clone()
        case 2:
            tensors[draw.choice([f"{name}x", "x/y", "/", "", "split/val"])] = (
                tensors.pop(name)
            )
        case _:
            tensors[name] = other_tensor(tensors[name], draw)


def mutated_tensors(content: bytes, draw: random.Random) -> bytes:
    """A safetensors file's mutant; more often than not its checksum is right."""
    if draw.random() < 0.25:
        return damaged(content, draw)
    header, tensors = header_of(content), load(content)
    text = json.dumps(header)
    if draw.random() < 0.5:
        other_tensors(tensors, draw)
    else:
        text = text_of(header, draw)
    text = text.replace(header["sha256"], hash_of(tensors))
    return save(tensors, metadata={"gebt": text.encode(errors="ignore").decode()})


def mutated_json(content: bytes, draw: random.Random) -> bytes:
    """A JSON file's mutant."""
    if draw.random() < 0.25:
        return damaged(content, draw)
    return text_of(json.loads(content), draw).encode(errors="ignore")


CELLS = [
    *("", " ", "nan", "inf", "-inf", "1e999", "-1", "0", "1.5", "x", "True", "\0", '"'),
    *("9" * 30, str(2**31), str(2**63), "1_000", "0x10", "1,2", "\n", "=1+1", "\u0661"),
    "x" * 5000,
]


def table_in(content: bytes, delimiter: str) -> list[list[str]]:
    """The rows of a table, its header first."""
    text = io.StringIO(content.decode(), newline="")
    return list(csv.reader(text, delimiter=delimiter))


def table_of(rows: list[list[str]], delimiter: str) -> bytes:
    """A table of rows."""
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter, lineterminator="\n").writerows(rows)
    return text.getvalue().encode(errors="ignore")


def mutated_table(content: bytes, draw: random.Random) -> bytes:
    """A table's mutant: a cell, row or column that is another, gone, or there twice."""
    if draw.random() < 0.25:
        return damaged(content, draw)
    delimiter = "\t" if b"\t" in content else ","
    rows = table_in(content, delimiter)
    at, column = draw.randrange(len(rows)), draw.randrange(len(rows[0]))
    match draw.randrange(8):
        case 0:
            del rows[at]
        case 1:
            rows.insert(draw.randrange(len(rows)), rows[at])
        case 2:
            for row in rows:
                del row[column]
        case 3:
            for row in rows:
                row.append(row[column])
        case 4:
            rows[at] = rows[at][:column]
        case 5:
            other = draw.choice(CELLS)
            for row in rows[1:]:
                row[column] = other
        case _:
            rows[at][column] = draw.choice(CELLS)
    return table_of(rows, delimiter)


def mutated_toml(content: bytes, draw: random.Random) -> bytes:
    """A file of flags whose mutant has other names, values, or letters."""
    if draw.random() < 0.25:
        return damaged(content, draw)
    lines = [line.partition(" = ") for line in content.decode().splitlines()]
    at = draw.randrange(len(lines))
    values = [json.dumps(each, default=str) for each in HOSTILE]
    value = draw.choice([*values, "nan", "inf", "1979-05-27", "{ a = 1 }", "0x10"])
    key = lines[draw.randrange(len(lines))][0] if draw.random() < 0.2 else lines[at][0]
    other = [key, " = ", value if draw.random() < 0.8 else lines[at][2]]
    every = [*lines[:at], other, *lines[at + 1 :]]
    return "\n".join(map("".join, every)).encode(errors="ignore")


def mutated_gzip(content: bytes, draw: random.Random) -> bytes:
    """Of what is in it, or of itself."""
    if draw.random() < 0.25:
        return damaged(content, draw)
    return gzip.compress(mutated_table(gzip.decompress(content), draw), 1, mtime=0)


MUTATORS = {
    ".safetensors": mutated_tensors,
    ".json": mutated_json,
    ".csv": mutated_table,
    ".gz": mutated_gzip,
    ".toml": mutated_toml,
}
"""By a file's suffix; any other is `damaged`."""


# ------------------------------------------------------------------ what reads


def use_ticket(path: Path) -> None:
    """As `gebt cost` and `gebt retrain`, for one epoch; on a graph, if it can."""
    contents_of(path)
    ticket = gebt.Ticket.load(path)
    check_count("epochs", ticket.options["epochs"])
    graph, task = load_of(ticket, None, Device.cpu)
    model = build_model(dict(ticket.model))
    retrain(ticket, model, graph, task, 1, Recorder())
    build_model(dict(ticket.model)).load_state_dict(dict(ticket.weights))
    ticket.open(model, graph, weights="rewind", links="binary")
    ticket.open(model, graph, weights="fresh")
    if ticket.fitted:
        ticket.links_for(graph, graph_ratio=0.5)
    ticket.save(path)


def use_adaptation(path: Path) -> None:
    """As a user would, who has the ticket."""
    contents_of(path)
    ticket, graph = adapted()
    found = replace(gebt.Adaptation.load(path), ticket=ticket.fingerprint())
    model, small = found.open(ticket, graph)
    with torch.no_grad():
        model(small.x, small.adjacency)
    found.save(path)


def use_compact(path: Path) -> None:
    """As a user would."""
    contents_of(path)
    model, graph = gebt.load_compact(path)
    with torch.no_grad():
        graph.restore(model(graph.x, graph.adjacency))
    repr(graph)
    graph.fingerprint()
    if graph.y is not None and isinstance(graph.split, gebt.Split):
        gebt.evaluate(model, graph)
    gebt.save_compact(path, model, graph)


def use_folder(path: Path) -> None:
    """As `gebt verify`, and `gebt report` up to drawing."""
    contents_of(path)
    page_of(path.parent)


def use_tables(path: Path) -> None:
    """As `gebt run edges.csv --nodes nodes.csv --label class`."""
    end = path.name.partition(".")[2]
    folder = path.parent
    spec = f"{folder}/edges.{end}:nodes={folder}/nodes.{end},label=class"
    repr(gebt.load(spec))


def use_checkpoint(path: Path) -> None:
    """As `gebt verify`; of a training, as `gebt resume`."""
    contents_of(path)
    if path.parent.name == "train":
        with TemporaryDirectory() as folder:  # its files go when it is done
            shutil.copy(path, folder)
            go_on(Path(folder))


def use_export(path: Path) -> None:
    """As `gebt verify`."""
    contents_of(path)


def use_config(path: Path) -> None:
    """As `gebt verify`, and `gebt run --config` up to running."""
    read_run(path)
    try:
        RUN.make_context("run", ["--config", str(path)])
    except USAGE_ERROR as error:  # which the command line tells in one line
        raise ValueError(str(error)) from error


@contextmanager
def bounded() -> Iterator[None]:
    """Inside, at most 2 GiB more memory than now may be asked for."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    limit = pages * resource.getpagesize() + 2**31
    resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@dataclass(frozen=True)
class Kind:
    """A kind of file: how whole ones are written, and what reads one.

    ``together`` are the files of a folder, which are read together.
    """

    write: Callable[[Path], None]
    use: Callable[[Path], None]
    together: bool = False


KINDS = {
    "ticket": Kind(write_tickets, use_ticket),
    "adaptation": Kind(write_adaptations, use_adaptation),
    "compact": Kind(write_compacts, use_compact),
    "folder": Kind(write_runs, use_folder, together=True),
    "tables": Kind(write_tables, use_tables, together=True),
    "checkpoint": Kind(write_checkpoints, use_checkpoint),
    "export": Kind(write_exports, use_export),
    "config": Kind(write_configs, use_config),
}


def prepare(kind: str, folder: Path) -> list[Path]:
    """Write the whole files of a kind and read each once: the files."""
    folder.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        KINDS[kind].write(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        KINDS[kind].use(path)
    return files


def outcome(kind: str, files: list[Path], seed: int, folder: Path) -> str:
    """What became of one mutant: "" if it was read, else the error's first line."""
    draw = random.Random(seed)
    path = draw.choice(files)
    mutant = folder / path.parent.name / path.name
    if KINDS[kind].together:
        shutil.copytree(path.parent, mutant.parent, dirs_exist_ok=True)
    mutant.parent.mkdir(exist_ok=True)
    mutate = MUTATORS.get(path.suffix, damaged)
    mutant.write_bytes(mutate(path.read_bytes(), draw))
    try:
        with in_time(2), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            KINDS[kind].use(mutant)
    except (ValueError, OSError) as error:
        return f"refused: {type(error).__name__} {error}".splitlines()[0]
    except (Exception, TooSlow) as error:
        return f"RAW: {path.name}: {type(error).__name__} {error}".splitlines()[0]
    return ""


@pytest.mark.skipif(
    not Path("/proc/self/statm").is_file(), reason="limits memory as Linux does"
)
@pytest.mark.parametrize("kind", KINDS)
def test_no_mutant_ends_in_anything_but_a_reading_or_words(kind, tmp_path, request):
    files = prepare(kind, tmp_path / "whole")
    folder = tmp_path / "mutants"
    folder.mkdir()
    count = request.config.getoption("--fuzz") // len(KINDS)
    with bounded():
        found = [outcome(kind, files, seed, folder) for seed in range(count)]
    raw = {seed: text for seed, text in enumerate(found) if text.startswith("RAW")}
    assert not raw
    refused = len(list(filter(None, found)))
    # A program's checksums are of nearly every byte.
    assert 0 < refused < count + (kind == "export"), "some mutants are harmless"


@pytest.fixture(scope="module")
def ticket(tmp_path_factory):
    """A whole ticket."""
    folder = tmp_path_factory.mktemp("tickets")
    model, graph = GCN(8, 4, 3), gebt.load(GRAPH)
    gebt.find_ticket(model, graph, epochs=30).save(folder / "t.safetensors")
    return folder / "t.safetensors"


@pytest.mark.parametrize("command", ["cost", "retrain"])
@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("options.epochs", "many"),
        ("options.epochs", math.nan),
        ("options.lr", None),
        ("options.task", ["link-prediction"]),
        ("options.detector", 3),
        ("model.arguments.hidden", 10**11),
        ("model.arguments.num_features", 1e308),
        ("model.class", {}),
        ("dataset.name", 7),
        ("seed", 10**40),
        ("distances", {"graph": []}),
        ("options", DEEP),
    ],
)
def test_a_hostile_ticket_is_one_line_and_exit_code_2(
    ticket, tmp_path, gebt_here, command, place, value
):
    *parents, key = place.split(".")
    content = ticket.read_bytes()
    header = header_of(content)
    inside = header
    for parent in parents:
        inside = inside[parent]
    assert key in inside
    inside[key] = value
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(save(load(content), metadata={"gebt": json.dumps(header)}))
    answer = gebt_here(command, path)
    assert_refused(answer, path.name)
    assert len(answer.stderr) < 500
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
