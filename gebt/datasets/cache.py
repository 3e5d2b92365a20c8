"""What was parsed once is kept as a file of gebt's own, and mapped from then on.

Beside the files that it was made from, as safetensors. Its header says which format it
has and which files those were. Where it does not fit them, or is not whole, it is made
again; where it cannot be written, the graph is parsed each time.
"""

import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from gebt.files import Fields, read_tensors, write_tensors
from gebt.graph import Graph
from gebt.graph.storage import pack, unpack
from gebt.sparse import SparseMatrix

try:
    import fcntl
except ImportError:  # not a POSIX system: there several processes parse at once
    fcntl = None  # type: ignore[assignment]

_log = logging.getLogger("gebt")
CACHE = "gebt-cache.safetensors"
FORMAT = 1
"""Raised whenever the same files shall give another graph, or are kept otherwise."""


def cached(
    folder: Path, sources: Sequence[str], made: str, parse: Callable[[], Graph]
) -> Graph:
    """The graph that was kept, else the one that is parsed now, and kept.

    Of several processes that ask at once one parses; the others wait and map its file.

    Args:
        folder: that the sources are in, and the cache.
        sources: files below it. They are the same while their sizes and times are, or,
            if only the times differ, as in a copy, their SHA-256: to hash gigabytes at
            each load would take longer than to map them.
        made: what the graph depends on beside the files.
        parse: makes the graph.

    Returns:
        A graph whose tensors lie over the file's memory map. Indices are checked to
        be in range and numbers to be finite, but nothing is hashed.
    """
    path = folder / CACHE
    read = partial(_read, path, folder, sources, made)
    with suppress(OSError, ValueError):
        return read()
    with one_at_a_time(folder):
        try:
            return read()  # by another process, meanwhile
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            reason = str(error).removesuffix(" Write it again.").removesuffix(".")
            _log.info("%s: it is made again", reason)
        started = time.perf_counter()
        stamps = [_stamp(folder, source) for source in sources]
        graph = parse()
        try:
            for stamp in stamps:
                stamp["sha256"] = _digest(folder / stamp["name"])
            tensors, header = pack(graph)
            weighted = graph.adjacency.weight is not None
            about = {"format": FORMAT, "made": made, "weighted": weighted}
            header |= {"kind": "cache", **about, "sources": stamps}
            for half in folder.glob(f".{CACHE}.*"):  # of a process that was killed
                half.unlink()
            write_tensors(path, tensors, header, checksum=False)
        except OSError as error:  # a read-only folder, a full disk
            _log.info("not kept, but made at each load: %s", error)
            return graph
        seconds, size = time.perf_counter() - started, path.stat().st_size / 2**20
        _log.info("made in %.0f s, kept in %s (%.0f MiB)", seconds, path, size)
        del graph, tensors
        return read()


def kept(folder: Path, made: str, draw: Callable[[], Graph]) -> Graph:
    """`cached` for a graph that is made from no files, in a folder of its own."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # a read-only root
        return draw()
    try:
        return cached(folder, (), made, draw)
    finally:
        with suppress(OSError):  # it holds the graph, if nothing went wrong
            folder.rmdir()


def _read(path: Path, folder: Path, sources: Sequence[str], made: str) -> Graph:
    """The graph of a cache.

    Raises:
        ValueError: if it is of other files or another format, or not whole.
    """
    tensors, header = read_tensors(path, "cache", checksum=False)
    if (found := header.whole("format", 0)) != FORMAT:
        raise ValueError(f"{path} is of format {found}, this gebt's is {FORMAT}")
    stamps = header.each("sources")
    same = [stamp.text("name") for stamp in stamps] == [*sources]
    if not same or header.text("made") != made:
        raise ValueError(f"{path} is of another graph")
    for stamp in stamps:
        if not _is_same(folder, stamp):
            raise ValueError(f"{path} is of another {stamp.text('name')}")
    graph = unpack(tensors, header)
    if header.flag("weighted"):  # the values are the data's own weights
        pattern, value = graph.adjacency.pattern, graph.adjacency.value
        graph = replace(graph, adjacency=SparseMatrix(pattern, value, value))
    return graph


def _stamp(folder: Path, source: str) -> dict[str, Any]:
    about = (folder / source).stat()
    return {"name": source, "size": about.st_size, "time": about.st_mtime_ns}


def _is_same(folder: Path, known: Fields) -> bool:
    """Whether a file is the one that a stamp with its hash is of."""
    now = _stamp(folder, known.text("name"))
    if now["size"] != known.whole("size", 0):
        return False
    if now["time"] == known.whole("time", -(2**63)):
        return True
    return _digest(folder / now["name"]) == known.text("sha256")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which the system releases if this process is killed."""
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
