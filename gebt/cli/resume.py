"""Runs that survive: commands that leave checkpoints, and the one that goes on."""

import hashlib
import logging
import os
import shlex
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gebt._version import __version__
from gebt.cli.common import results
from gebt.cli.config import Call
from gebt.cli.ranks import RANKS

if TYPE_CHECKING:
    from gebt.files import Fields
    from gebt.graph import Graph

RESUMABLE = ("run", "search", "retrain")
_FORMAT = 1
_ARGUMENTS = ("dataset", "ticket_path")
_NOT_KEPT = ("out", "force")
"""What going on says by itself."""
_log = logging.getLogger("gebt")
_earlier: ContextVar["Fields | None"] = ContextVar("earlier", default=None)


@contextmanager
def resumable(
    folder: Path,
    names: Collection[str],
    graph: "Graph",
    call: Call,
    every: int | None,
    **options: Any,
) -> Iterator[None]:
    """`results`, with checkpoints that `gebt resume` goes on from.

    Not where several ranks share the graph.

    Args:
        folder: of the results.
        names: of the files that may be written.
        graph: whose results.
        call: of the command.
        every: epochs between two checkpoints; 0 for none, None for the default.
        options: of `results`.

    Raises:
        ValueError: if it goes on with something else than was begun.
    """
    if RANKS > 1 and every:
        raise ValueError(
            f"`--checkpoint-every` is of one process, and torchrun has started {RANKS}."
        )
    if RANKS > 1 or every == 0:
        with results(folder, names, graph, **options):
            yield
        return
    from gebt.files import write_json
    from gebt.files.folders import CALL, clear_checkpoints, has_checkpoints
    from gebt.learn.checkpoint import checkpoints

    earlier, about = _earlier.get(), _described(graph, call)
    if earlier is not None:
        _check(earlier, about, folder)
    hint = f"; gebt resume {shlex.quote(str(folder))} goes on"
    options |= {"hint": hint, "resume": earlier is not None}
    path = folder / CALL
    with results(folder, [*names, CALL], graph, **options):
        try:
            with checkpoints(path.parent, every) as journal:
                journal.resumed = earlier is not None  # between seeds it holds nothing
                write_json(path, about)
                yield
                write_json(path, {**about, "finished": True})
            clear_checkpoints(folder)
        except BaseException:
            kept = any((folder / name).exists() for name in names)
            if not (kept or has_checkpoints(folder)):
                path.unlink(missing_ok=True)
            raise


def _described(graph: "Graph", call: Call) -> dict[str, Any]:
    """What is called, and all that its results depend on."""
    import torch

    flags = dict(call.flags)
    values = [v for value in flags.values() for v in _each(value)]
    files = [v for v in values if isinstance(v, Path) and v.is_file()]
    digests = {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
    flags["device"] = graph.adjacency.device.type
    return {
        "format": _FORMAT,
        "gebt": __version__,
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "folder": os.getcwd(),
        "data": os.environ.get("GEBT_DATA"),
        "command": call.command,
        "words": words_of(flags),
        "of": {f"the graph {graph.name}": graph.fingerprint(), **digests},
        "finished": False,
    }


def words_of(flags: Mapping[str, Any]) -> list[str]:
    """The words on the command line that give flags these values."""
    words, rest = [], []
    for name, value in flags.items():
        for each in _each(value):
            if name in _ARGUMENTS:
                rest.append(str(each))
            elif name not in _NOT_KEPT:
                flag = f"--{name.rstrip('_').replace('_', '-')}"
                words += [flag] if each is True else [flag, str(each)]
    return [*words, "--", *rest]


def _each(value: Any) -> list[Any]:
    """The values of a flag that was given."""
    if isinstance(value, list):
        return value
    return [] if value is None or value is False else [value]


def _check(earlier: "Fields", now: Mapping[str, Any], folder: Path) -> None:
    """Refuse what would not end as it was begun; tell of what may end otherwise."""
    then = earlier.fields("of").content
    for name, digest in now["of"].items():
        if then.get(name) != digest:
            raise ValueError(
                f"{name} is not what it was when {folder} was begun. Bring it back, or "
                "start again in another folder."
            )
    for what in ("torch", "threads"):
        if earlier.content.get(what) != now[what]:
            _log.warning(
                "begun with %s %s, goes on with %s: last digits may differ",
                *(what, earlier.content.get(what), now[what]),
            )


def resume(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder of the results.")
    ],
) -> None:
    """Go on with a gebt run, search or retrain that was killed or interrupted.

    It ends with the files that it would have had, times and peak memory aside.
    """
    from gebt.files.folders import CALL, is_whole

    if not (folder / CALL).is_file():
        if not is_whole(folder):
            raise ValueError(
                f"there is no checkpoint in {folder} to go on from: gebt "
                f"{', '.join(RESUMABLE)} leave one there until they have finished."
            )
        _tidy(folder)
        return
    from gebt.cli.app import app
    from gebt.files import read_json

    call = read_json(folder / CALL, "record of a command")
    call.whole("format", _FORMAT, _FORMAT)
    if (theirs := call.text("gebt")) != __version__:
        raise ValueError(
            f"{folder} was begun by gebt {theirs}, and this is {__version__}. Go on "
            "with that version, or start again in another folder."
        )
    if call.flag("finished"):
        _tidy(folder)
        return
    words = call.content.get("words")
    if not isinstance(words, list) or not all(isinstance(w, str) for w in words):
        call.fail("words", "a list of texts")
    if (begun := call.text("folder")) != os.getcwd() and Path(begun).is_dir():
        folder = folder.resolve()
        os.chdir(begun)
    if call.content.get("data") is not None:
        os.environ["GEBT_DATA"] = call.text("data")
    _earlier.set(call)
    line = [call.text("command", RESUMABLE), "--out", str(folder), *words]
    app(line, standalone_mode=False, prog_name="gebt")


def _tidy(folder: Path) -> None:
    """Say that a folder is whole; do what one that was killed at its end had not."""
    from gebt.files.folders import clear_checkpoints, results_folder

    with results_folder(folder, [], resume=True):
        clear_checkpoints(folder)
    print(f"Finished already: {folder}{os.sep}")
