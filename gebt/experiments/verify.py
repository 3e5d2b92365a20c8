"""What a file that gebt wrote holds, and whether it is whole: `gebt verify`.

A kind of file is one entry of `_KINDS` or `_NAMES`: a function from its path to what is
to be said of it. It reads by the reader that the rest of gebt uses, which checks sums,
shapes and numbers, and adds what that need not look at.
"""

from collections.abc import Callable, Mapping
from fnmatch import fnmatch
from pathlib import Path

from torch import Tensor

from gebt._provenance import in_words
from gebt.deploy.export import read_export
from gebt.deploy.storage import load_compact
from gebt.experiments.cheapest import FRONTIER, read_frontier
from gebt.experiments.record import facts, read_record
from gebt.experiments.runner import columns_of, read_about, read_table, source_of
from gebt.files import kind_of, read_tensors, shown
from gebt.learn.checkpoint import unpacked
from gebt.models import can_build, describe_model
from gebt.tickets.adapt import Adaptation
from gebt.tickets.ticket import Ticket

Facts = Mapping[str, str]


def contents_of(path: Path) -> Facts:
    """What a file holds, in words, once all of it has been checked.

    Raises:
        FileNotFoundError: if there is no such file, or one that belongs to it is not
            there.
        ValueError: if it is not whole, or nothing that gebt writes.
    """
    if path.is_dir():
        inside = sorted(file.name for file in path.iterdir() if _reader(file.name))
        named = f" Name a file in it: {', '.join(inside)}." if inside else ""
        raise FileNotFoundError(f"{path} is a folder.{named}")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file at {path}.")
    read = _reader(path.name)
    if read is None:
        raise ValueError(
            f"{path} is none of the files that gebt writes: they are called "
            f"{', '.join(_NAMES)}."
        )
    return read(path)


def _reader(name: str) -> Callable[[Path], Facts] | None:
    return next((r for pattern, r in _NAMES.items() if fnmatch(name, pattern)), None)


def _tensors(path: Path) -> Facts:
    kind = kind_of(path)
    if kind not in _KINDS:
        raise ValueError(
            f"{path} is not whole, or of a newer gebt: its header says that it is a "
            f"{kind!r}, which is none of {', '.join(_KINDS)}."
        )
    return {"holds": kind, **_KINDS[kind](path)}


def _ticket(path: Path) -> Facts:
    ticket = Ticket.load(path)
    at = f"{path} is not a whole ticket"
    state = "settled" if ticket.settled else "not settled: the epochs ran out"
    ratios = ticket.options["graph_ratio"], ticket.options["weight_ratio"]
    masks = {f"{group} kept": _kept(m) for group, m in ticket.masks.items()}
    named = {"graph kept": "links kept"}
    known = "" if can_build(ticket.model) else "; not one that gebt can build"
    return {
        "content": _files(path, "ticket"),
        "graph": f"{ticket.dataset['name']}, {ticket.dataset['fingerprint'][:12]}",
        "model": f"{ticket.model['class']}{_arguments(ticket.model)}{known}",
        "drawn": f"at epoch {ticket.epoch} ({state}), seed {ticket.seed}",
        "asked to remove": "{:.0%} of the links, {:.0%} of the weights".format(*ratios),
        **{named.get(what, what): text for what, text in masks.items()},
        "weights": _finite(at, ticket.weights),
        "weights at the start": _finite(at, ticket.first_weights),
        "written by": _by(ticket.versions),
    }


def _adaptation(path: Path) -> Facts:
    found = Adaptation.load(path)
    classes = f", classes {', '.join(map(str, found.classes))}" if found.classes else ""
    sizes = [f"{mask.numel():,} of {name}" for name, mask in found.masks.items()]
    sizes += [f"{found.links.numel()} of groups of links"] * bool(found.links.numel())
    return {
        "content": "as its checksum says",
        "for the ticket": found.ticket[:12],
        "task": f"{found.task}{classes}",
        "factors": ", ".join(sizes) or "none",
        "of its own": _finite(f"{path} is not a whole adaptation", found.own),
        "stored": f"{found.stored_bytes:,} bytes",
    }


def _compact(path: Path) -> Facts:
    model, graph = load_compact(path)
    described = describe_model(model)
    links = f"{graph.links_kept:,} of {graph.num_links:,} links"
    size = f"{graph.num_nodes:,} nodes, {links}, {graph.num_features:,} features"
    return {
        "content": _files(path, "compact model"),
        "graph": f"{graph.name}, {graph.fingerprint()[:12]}: {size}",
        "model": f"{described['class']}{_arguments(described)}",
        "weights": _finite(f"{path} is not a whole compact model", model.state_dict()),
    }


def _piece(path: Path) -> Facts:
    tensors, marks = read_tensors(path, kind_of(path))
    ranks = marks.whole("pieces", 1)
    return {
        "content": "as its checksum says",
        "tensors": _finite(f"{path} is not whole", tensors.content),
        "belongs to": f"{ranks} files of as many ranks: verify the first for all",
    }


def _training(path: Path) -> Facts:
    tensors, header = read_tensors(path, "training")
    of = header.fields("of")
    try:
        unpacked(header.content.get("state"), tensors.content)
    except (ValueError, TypeError, LookupError) as error:
        raise ValueError(f"{path} is not a whole training: {shown(error)}.") from error
    return {
        "content": "as its checksum says",
        "model": of.text("model"),
        "task": of.text("task"),
        "seed": f"{of.whole('seed', -(2**63), 2**64)}",
        "state": "finished" if header.flag("finished") else "under way",
        "spent": f"{header.number('seconds', 0):.1f} s",
        "tensors": _finite(f"{path} is not a whole training", tensors.content),
    }


def _exported(path: Path) -> Facts:
    header = read_export(path)
    model, graph = header.fields("model"), header.fields("graph")
    counts = {name: graph.whole(name, 0) for name in ("nodes", "links", "features")}
    size = ", ".join(f"{count:,} {name}" for name, count in counts.items())
    given = {"none": "nothing: the graph is in it", "features": "x"}
    inputs = header.text("inputs")
    return {
        "holds": header.text("kind"),
        "content": "as its checksums say",
        "model": f"{model.text('class')}{_arguments(model.content)}",
        "graph": f"{graph.text('name')}, {graph.text('fingerprint')[:12]}: {size}",
        "takes": given.get(inputs, "x, edge_index, edge_weight"),
        "written by": _by({name: header.text(name) for name in ("gebt", "torch")}),
    }


def _files(path: Path, kind: str) -> str:
    """Said when all have been read."""
    _, header = read_tensors(path, kind, checksum=False)
    ranks = header.whole("pieces", 1) if "pieces" in header else 1
    return f"{ranks}, as their checksums say" if ranks > 1 else "as its checksum says"


def _arguments(described: Mapping[str, object]) -> str:
    found = described.get("arguments")
    if not isinstance(found, Mapping):
        return ""
    return f"({', '.join(f'{name}={value}' for name, value in found.items())})"


def _kept(masks: Mapping[str, Tensor]) -> str:
    kept = sum(int(mask.count_nonzero()) for mask in masks.values())
    every = sum(mask.numel() for mask in masks.values())
    return f"{kept:,} of {every:,}" + (f" ({kept / every:.1%})" if every else "")


def _finite(at: str, tensors: Mapping[str, Tensor]) -> str:
    """How many tensors and numbers; a ValueError if one is NaN or infinite."""
    for name, tensor in tensors.items():
        wide = tensor.float() if tensor.element_size() == 1 else tensor  # float8
        if lost := tensor.numel() - int(wide.isfinite().count_nonzero()):
            raise ValueError(
                f"{at}: {lost:,} of the {tensor.numel():,} numbers of {name} are NaN "
                "or infinite. Train with a lower learning rate."
            )
    numbers = sum(tensor.numel() for tensor in tensors.values())
    return f"{len(tensors)} tensors, {numbers:,} numbers, all finite"


def _by(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _record(path: Path) -> Facts:
    record = read_record(path.parent)
    return {
        "holds": "record of a run",
        "graph": record.dataset,
        "task": f"{record.task}, {record.metric}",
        "runs": record.seeds,
        "options": _listed(record.options),
        "written by": in_words(record.provenance),
    }


def _experiment(path: Path) -> Facts:
    about = read_about(path.parent)
    assert about is not None  # it is there
    seeds = f"{about.whole('seeds', 1)}" if "seeds" in about else "not said"
    return {
        "holds": "record of an experiment",
        "experiment": about.text("experiment") + " (quick)" * about.flag("quick"),
        "seeds": seeds,
        "written by": in_words(facts(about, source_of(about))),
    }


def _table(path: Path) -> Facts:
    rows = read_table(path, columns_of(path.stem))
    if path.name == FRONTIER:
        read_frontier(path.parent)
    columns = ", ".join(rows[0]) if rows else "none"
    return {"holds": "table", "rows": f"{len(rows):,}", "columns": columns}


def _listed(options: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in options.items())


_KINDS: dict[str, Callable[[Path], Facts]] = {
    "ticket": _ticket,
    "adaptation": _adaptation,
    "compact model": _compact,
    "training": _training,
    "piece of a ticket": _piece,
    "piece of a compact model": _piece,
}
"""Safetensors files, by what their headers say."""
_NAMES: dict[str, Callable[[Path], Facts]] = {
    "*.safetensors": _tensors,
    "*.pt2": _exported,
    "*.onnx": _exported,
    "metrics.json": _record,
    "experiment.json": _experiment,
    "*.csv": _table,
}
"""All files, by their names."""
