"""Hostile files: seeded mutants of whole ones are read, or refused in words.

300 mutants in the suite; ``pytest tests/test_fuzz.py --fuzz 20000`` for more.
"""

import json
import math
import random
import resource
import shutil
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import TooSlow, assert_refused, header_of, in_time
from safetensors.torch import load, save
from torch import Tensor

import gebt
from gebt._checks import check_count
from gebt._registry import MODELS
from gebt.cli.common import load_of
from gebt.cli.flags import Device
from gebt.experiments.report import page_of
from gebt.experiments.run import Options, Recorder, retrain, run_seeds
from gebt.files import hash_of, write_json
from gebt.models import GAT, GCN, GraphSAGE, ResGCN, build_model

pytestmark = pytest.mark.slow

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
                if tensor.dtype == torch.int32:
                    value = max(-(2**31), min(2**31 - 1, value))
                value = min(2**62, value)
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


def mutated(path: Path, draw: random.Random) -> bytes:
    """A file's mutant, by what it is."""
    content = path.read_bytes()
    if path.suffix == ".safetensors":
        return mutated_tensors(content, draw)
    if path.suffix == ".json" and draw.random() < 0.75:
        return text_of(json.loads(content), draw).encode(errors="ignore")
    return damaged(content, draw)


# ------------------------------------------------------------------ what reads


def use_ticket(path: Path) -> None:
    """As `gebt cost` and `gebt retrain`, for one epoch; on a graph, if it can."""
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


def use_compact(path: Path) -> None:
    """As a user would."""
    model, graph = gebt.load_compact(path)
    with torch.no_grad():
        graph.restore(model(graph.x, graph.adjacency))
    repr(graph)
    graph.fingerprint()
    if graph.y is not None and isinstance(graph.split, gebt.Split):
        gebt.evaluate(model, graph)
    gebt.save_compact(path, model, graph)


def use_folder(path: Path) -> None:
    """As `gebt report`, up to drawing."""
    page_of(path.parent)


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


KINDS: dict[str, tuple[Callable[[Path], None], Callable[[Path], None]]] = {
    "ticket": (write_tickets, use_ticket),
    "compact": (write_compacts, use_compact),
    "folder": (write_runs, use_folder),
}


def prepare(kind: str, folder: Path) -> list[Path]:
    """Write the whole files of a kind and read each once: the files."""
    write, use = KINDS[kind]
    folder.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        use(path)
    return files


def outcome(kind: str, files: list[Path], seed: int, folder: Path) -> str:
    """What became of one mutant: "" if it was read, else the error's first line."""
    draw = random.Random(seed)
    path = draw.choice(files)
    mutant = folder / path.parent.name / path.name
    if kind == "folder":
        shutil.copytree(path.parent, mutant.parent, dirs_exist_ok=True)
    mutant.parent.mkdir(exist_ok=True)
    mutant.write_bytes(mutated(path, draw))
    try:
        with in_time(2), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            KINDS[kind][1](mutant)
    except (ValueError, OSError) as error:
        return f"refused: {type(error).__name__} {error}".splitlines()[0]
    except (Exception, TooSlow) as error:
        return f"RAW: {path.name}: {type(error).__name__} {error}".splitlines()[0]
    return ""


@pytest.mark.skipif(
    not Path("/proc/self/statm").is_file(), reason="limits memory as Linux does"
)
@pytest.mark.parametrize("kind", ["ticket", "compact", "folder"])
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
    assert 0 < refused < count, "some mutants are harmless, most are not"


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
