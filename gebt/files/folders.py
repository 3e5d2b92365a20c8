"""Folders of results: which files in one are gebt's, and who is writing there now.

``.gebt`` in a folder lists the files that gebt wrote: what it does not list is never
deleted. ``.gebt-lock`` is held as long as a command writes. ``checkpoint/`` holds what
`gebt resume` goes on from, as long as there is something to go on with.
"""

import os
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # not a POSIX system: there the file itself is the lock
    fcntl = None  # type: ignore[assignment]

RECORD, LOCK = ".gebt", ".gebt-lock"
_OURS = re.compile(
    r"(seed-\d+/)?[a-z]+(-\d+of\d+)?\.(safetensors|json|toml|csv|html)"
    r"|checkpoint/run\.json"
    r"|figures/[\w.-]+\.(png|svg)|(seed-\d+/)?events\.out\.tfevents\.[\w.-]+"
)
"""What a record may list: it was read from a file, and leads to deletions."""
CALL = "checkpoint/run.json"
"""Of what command the checkpoints are; there from their start to the command's end."""
_CHECKPOINT = re.compile(r"([a-z]+-\d+-)?(training-\d+\.safetensors|measured\.json)")
_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{16}")
"""What a file of that name is called while it is written."""
_UNFINISHED = "unfinished"
"""In a record: a command has ended before its time."""


@contextmanager
def results_folder(
    folder: Path,
    names: Collection[str],
    *,
    force: bool = False,
    resume: bool = False,
    spare: Path | None = None,
) -> Iterator[None]:
    """Hold a folder for results while they are written.

    Where nothing was written in the end, nothing is left: no folder that was not there
    before, no empty one in it.

    Args:
        folder: new or empty; made with its parents.
        names: every file that may be written, as paths below the folder.
        force: take a folder that holds something. What an earlier run wrote is
            deleted, all else stays.
        resume: take a folder that holds something, and delete nothing.
        spare: a file not to delete, since the command reads it.

    Raises:
        FileExistsError: if it is a file; if it holds something and neither ``force``
            nor ``resume`` was given; if a file of one of the names is there that no
            record says gebt wrote; if another process is writing there.
    """
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} exists and is not a folder.")
    if not (force or resume) and not is_free(folder):
        go_on = f" To go on with that one: gebt resume {folder}."
        raise FileExistsError(
            f"the folder {folder} exists and is not empty. Choose another, or pass "
            "--force to replace the files of an earlier run in it."
            + (go_on if (folder / CALL).is_file() else "")
        )
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder):
            known = {*names, *_recorded(folder)}
            if not resume:
                refuse_others(folder, names)
            ours = {RECORD, *(Path(name).name for name in known)}
            for parent in {folder, *((folder / name).parent for name in known)}:
                sweep(parent, ours.__contains__)
            if not resume:
                _clear(folder, spare)
            _write(folder, {*_recorded(folder), *names})
            state = {_UNFINISHED}
            try:
                yield
                state.clear()
            finally:
                with suppress(OSError):  # a full disk, told of already
                    _record_what_is_there(folder, state)
                _remove_empty(folder, names)
    finally:
        for path in made:
            with suppress(OSError):  # it holds something
                path.rmdir()


def is_free(folder: Path) -> bool:
    """Whether there is no such folder, or nothing in it but what a killed run left."""
    if not folder.exists():
        return True
    call, known = folder / CALL, (RECORD, LOCK)
    begun = [*call.parent.iterdir()] if call.parent.is_dir() else []
    there = [path for path in folder.iterdir() if path != call.parent]
    left = [path.name for path in (*there, *begun) if path.name not in known]
    return all(_written(name) in (RECORD, call.name) for name in left)


def is_whole(folder: Path) -> bool:
    """Whether every file is there that a command in it was to write."""
    names = _recorded(folder)
    if _UNFINISHED in _lines(folder):
        return False
    return bool(names) and all((folder / name).exists() for name in names)


def refuse_others(folder: Path, names: Collection[str]) -> None:
    """Raise a FileExistsError if a file of a name is there that gebt did not write."""
    for name in set(names) - _recorded(folder):
        path = folder / name
        there = path.parent if path.parent.is_file() else path
        if there.exists():
            raise FileExistsError(
                f"{there} is in the way: no record in {folder} says that gebt wrote "
                "it. Move it away or delete it, or choose another folder."
            )


def is_checkpoint(name: str) -> bool:
    """Whether a file in the folder of checkpoints of that name is one."""
    return _CHECKPOINT.fullmatch(name) is not None


def sweep(folder: Path, ours: Callable[[str], bool]) -> None:
    """Delete what a killed process was writing; the caller sees that no other is."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if (name := _written(path.name)) and ours(name):
            path.unlink()


def _written(name: str) -> str:
    """The name of the file that is written under a temporary one; "" for another."""
    found = _TEMPORARY.fullmatch(name)
    return found[1] if found else ""


def has_checkpoints(folder: Path) -> bool:
    """Whether there are some in a folder of results."""
    return any(_checkpoints(folder))


def clear_checkpoints(folder: Path) -> None:
    """Delete those in a folder of results that is whole, `CALL` last.

    Killed on the way, it has `CALL`, or a record of what is there.
    """
    sweep((folder / CALL).parent, is_checkpoint)
    for path in _checkpoints(folder):
        path.unlink()
    _record_what_is_there(folder, but={CALL})
    (folder / CALL).unlink(missing_ok=True)
    with suppress(OSError):  # it holds something, or is not there
        (folder / CALL).parent.rmdir()


def _checkpoints(folder: Path) -> list[Path]:
    inside = (folder / CALL).parent
    there = inside.iterdir() if inside.is_dir() else ()
    return [path for path in there if is_checkpoint(path.name)]


def record(folder: Path, names: Collection[str]) -> None:
    """Put files that gebt writes on the record of their folder."""
    state = {_UNFINISHED} & {*_lines(folder)}
    _write(folder, {*_recorded(folder), *names, *state})


def _clear(folder: Path, spare: Path | None) -> None:
    """Delete what an earlier run wrote."""
    earlier = _recorded(folder)
    if CALL in earlier:
        for path in _checkpoints(folder):
            path.unlink()
    for path in (folder / name for name in earlier):
        if spare is None or path.resolve() != spare.resolve():
            path.unlink(missing_ok=True)
    _remove_empty(folder, earlier)


def _remove_empty(folder: Path, names: Collection[str]) -> None:
    for parent in {(folder / name).parent for name in names} - {folder}:
        with suppress(OSError):  # it holds something, or is not there
            parent.rmdir()


def _recorded(folder: Path) -> set[str]:
    """The files that gebt wrote, by a record that may be absent, or anything."""
    return {line for line in _lines(folder) if _OURS.fullmatch(line)}


def _lines(folder: Path) -> list[str]:
    try:
        return (folder / RECORD).read_text(errors="replace").splitlines()
    except OSError:
        return []


def _record_what_is_there(
    folder: Path, state: Collection[str] = (), *, but: Collection[str] = ()
) -> None:
    names = {name for name in _recorded(folder) if (folder / name).exists()}
    if names := names - {*but}:
        _write(folder, {*names, *state})
    else:
        (folder / RECORD).unlink()


def _write(folder: Path, names: Collection[str]) -> None:
    from gebt.files import write_bytes  # imports torch: seconds

    write_bytes(folder / RECORD, "".join(f"{n}\n" for n in sorted(names)).encode())


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which the system releases if this process is killed."""
    path = folder / LOCK
    exclusive = 0 if fcntl else os.O_EXCL
    refused = FileExistsError(
        f"another gebt is writing to {folder}. Wait until it is done, or choose "
        "another folder." + ("" if fcntl else f" If none is, delete {path}.")
    )
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | exclusive, 0o666)
    except FileExistsError:
        raise refused from None
    try:
        if fcntl:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Not the file of one who has just removed it.
                if not os.path.samestat(os.fstat(handle), os.stat(path)):
                    raise refused
            except (BlockingIOError, FileNotFoundError):
                raise refused from None
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
    finally:
        os.close(handle)
