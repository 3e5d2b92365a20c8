"""Checkpoints: what a run has done, on disk, so that a killed one can go on.

All that a run of gebt decides follows from its arguments, from what its trainings come
to and from what it measures on the way. A `Journal` keeps those two, in their order.
Begun again with the journal, the run goes through the same code: a training that is
finished there is not done again, the one that was under way goes on where it was, and
what was measured is not measured again. So it takes the same decisions, and ends with
the same bits on a CPU.

Nothing here is unpickled: states are tensors in a safetensors file, and JSON.
"""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gebt._checks import check_count
from gebt.files import (
    read_json,
    read_tensors,
    shown,
    write_json,
    write_tensors,
)
from gebt.files.folders import is_checkpoint, sweep

if TYPE_CHECKING:
    from gebt.learn.loop import Learner

_FORMAT = 2
_SECONDS, _SHARE = 10.0, 0.02  # at most so often, and of the time, by default
_MEASURED = "measured.json"
_BROKEN = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError)
"""What loading a state that is not whole may raise, beside ValueError."""


@dataclass(frozen=True)
class Clock:
    """A moment, or the time between two: seconds by the wall and of the CPU."""

    wall: float
    cpu: float

    @classmethod
    def now(cls) -> "Clock":
        """This moment, after a GPU, if one is in use, has done what it was given.

        With checkpoints: as if the trainings found there had taken place just now.
        """
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        now = cls(time.perf_counter(), time.process_time())
        journal = _current.get()
        return now if journal is None else now + journal.earlier

    def __sub__(self, other: "Clock") -> "Clock":
        return Clock(self.wall - other.wall, self.cpu - other.cpu)

    def __add__(self, other: "Clock") -> "Clock":
        return Clock(self.wall + other.wall, self.cpu + other.cpu)


class Journal:
    """The trainings of a run and what it measured, in order; see `checkpoints`.

    Args:
        folder: of the files.
        every: epochs between two checkpoints of a training; by default as many as keep
            them at most every ten seconds and below 2% of the time.

    Attributes:
        resumed: whether the folder held a journal.
        earlier: what those trainings took that were found there.
        good: the last checkpoint, in words; "" while there is none.
    """

    def __init__(self, folder: Path, every: int | None = None):
        if every is not None:
            check_count("every", every)
        self.folder, self.every = folder, every
        sweep(folder, is_checkpoint)
        self.resumed = any(map(is_checkpoint, _names(folder)))
        self.earlier = Clock(0.0, 0.0)
        self.good = ""
        self.learning = self.asked_to_stop = False
        self._part = ""
        self._trainings = 0
        self._found, self._measured = self._read_measured(), 0
        # In the order of what happened: later decisions rest on earlier numbers.
        self._pending: dict[str, Callable[[Path], None]] = {}
        self._last, self._took = time.monotonic(), 0.0

    def due(self) -> bool:
        """Whether it is time to write."""
        rest = max(_SECONDS, self._took / _SHARE)
        return self.every is not None or time.monotonic() - self._last >= rest

    def training(self, learner: "Learner", until: int) -> "Progress":
        """The next training, as far as it was; its learner is put there."""
        name = f"{self._part}training-{self._trainings}.safetensors"
        self._trainings += 1
        return Progress(self, self.folder / name, learner, until)

    def measured(self, measure: Callable[[], list[float]]) -> list[float]:
        """What was measured here before, or else is now."""
        if self._measured == len(self._found):
            self._found.append(measure())
            content = {"format": _FORMAT, "measured": [*self._found]}
            self.keep(self._part + _MEASURED, lambda path: write_json(path, content))
        self._measured += 1
        return self._found[self._measured - 1]

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """A part of the run that counts by itself, and is forgotten once it is over."""
        before = self._part, self._trainings, self._found, self._measured
        self._part, self._trainings, self._measured = f"{name}-", 0, 0
        self._found = self._read_measured()
        yield
        for file in [n for n in self._pending if n.startswith(self._part)]:
            del self._pending[file]
        _remove(self.folder, self._part)
        self._part, self._trainings, self._found, self._measured = before

    def keep(self, name: str, write: Callable[[Path], None]) -> None:
        """Write a file when it is time to, after those that are older."""
        self._pending[name] = write
        if self.due():
            self.flush()

    def flush(self) -> None:
        """Write what waits.

        Raises:
            OSError: if something cannot be written; says what is whole.
        """
        if not self._pending:
            return
        start = time.monotonic()
        for name, write in [*self._pending.items()]:
            try:
                write(self.folder / name)
            except OSError as error:
                state = f"The last one, {self.good}, is whole" if self.good else ""
                state = state or "There is none before it"
                reason = error.strerror or str(error.__cause__ or error)
                raise OSError(
                    f"the checkpoint {self.folder / name} cannot be written: {reason}. "
                    f"{state}. Make room and go on from there."
                ) from error
            del self._pending[name]
        self._last = time.monotonic()
        self._took = self._last - start

    def stop_if_asked(self) -> None:
        """End as Ctrl-C does, if that was pressed."""
        if self.asked_to_stop:
            raise KeyboardInterrupt

    def on_interrupt(self, *_: Any) -> None:
        """Ctrl-C: in a training after its epoch, elsewhere and the second time now."""
        if not self.learning or self.asked_to_stop:
            raise KeyboardInterrupt
        self.asked_to_stop = True

    def _read_measured(self) -> list[list[float]]:
        path = self.folder / (self._part + _MEASURED)
        if not path.is_file():
            return []
        content = read_json(path, "list of what was measured")
        content.whole("format", _FORMAT, _FORMAT)
        found: Any = content.content.get("measured")
        if not isinstance(found, list) or not all(
            isinstance(group, list)
            and all(isinstance(n, float) and math.isfinite(n) for n in group)
            for group in found
        ):
            content.fail("measured", "a list of lists of numbers")
        return found


class Progress:
    """One training of a journal.

    Args:
        journal: whose.
        path: of its file, which is read if it is there.
        learner: put where that says.
        until: how many epochs it shall complete at most.

    Attributes:
        finished: whether there is nothing left to do.

    Raises:
        ValueError: if the file is not whole, or of another training.
    """

    def __init__(self, journal: Journal, path: Path, learner: "Learner", until: int):
        self._journal, self._path, self._learner = journal, path, learner
        self._of = {**learner.described(), "until": until}
        self._start = Clock.now()
        self.finished = path.is_file() and self._read()

    def after_epoch(self) -> None:
        """Write, if it is time to and all weights are finite."""
        journal, learner = self._journal, self._learner
        every = journal.every
        wanted = journal.due() if every is None else learner.epoch % every == 0
        if (wanted or journal.asked_to_stop) and learner.is_finite():
            self._write(learner.state_dict(), finished=False)
            journal.flush()
        journal.stop_if_asked()

    def finish(self) -> None:
        """Keep what the training came to."""
        self._write(_copied(self._learner.state_dict(finished=True)), finished=True)
        self._journal.stop_if_asked()

    def _write(self, state: Any, finished: bool) -> None:
        tensors: dict[str, Tensor] = {}
        spent = Clock.now() - self._start
        header = {
            "kind": "training",
            "format": _FORMAT,
            "of": self._of,
            "finished": finished,
            "seconds": spent.wall,
            "cpu_seconds": spent.cpu,
            "state": packed(state, tensors),
        }
        epoch = self._learner.epoch

        def write(path: Path) -> None:
            write_tensors(path, tensors, header)
            self._journal.good = f"of epoch {epoch}, {path}"

        self._journal.keep(self._path.name, write)

    def _read(self) -> bool:
        tensors, header = read_tensors(self._path, "training")
        header.whole("format", _FORMAT, _FORMAT)
        theirs = header.fields("of").content
        for name, ours in self._of.items():
            if theirs.get(name) != ours:
                raise ValueError(
                    f"{self._path} is a checkpoint of another training: its {name} is "
                    f"{shown(theirs.get(name))}, here {shown(ours)}. Do what was done "
                    "there, or delete it."
                )
        spent = [header.number(name, 0) for name in ("seconds", "cpu_seconds")]
        finished = header.flag("finished")
        device = self._learner.optimizer.param_groups[0]["params"][0].device
        there = {name: tensor.to(device) for name, tensor in tensors.content.items()}
        try:
            state = unpacked(header.content["state"], there)
            self._learner.load_state_dict(state)
        except (ValueError, *_BROKEN) as error:
            raise ValueError(
                f"{self._path} is not a whole training: {shown(str(error))}. Delete it."
            ) from error
        self._journal.earlier += Clock(*spent)
        self._journal.good = f"of epoch {self._learner.epoch}, {self._path}"
        return finished


_current: ContextVar[Journal | None] = ContextVar("journal", default=None)


@contextmanager
def checkpoints(folder: str | Path, every: int | None = None) -> Iterator[Journal]:
    """Inside, every training of gebt is kept in a folder, and goes on from there.

    Killed at any moment, even by SIGKILL or a power cut, and called again, the same
    code goes on where it was, and ends as it would have:

        with gebt.checkpoints("checkpoint"):
            ticket = gebt.find_ticket(model, graph)

    The block must do the same each time: a training with another seed, model or `Fit`
    than it had is refused. Ctrl-C waits for the end of an epoch and writes; a second
    one does not wait. When the block has ended without an error its files are deleted.

    Args:
        folder: for the files; made when the first is written.
        every: epochs between two checkpoints of a training; by default as many as keep
            them at most every ten seconds and below 2% of the time.

    Raises:
        OSError: in the block, if a checkpoint cannot be written, on a full disk say;
            the one before it is whole.
        ValueError: in the block, if a file there is not whole, or of another training.
    """
    journal = Journal(Path(folder), every)
    token = _current.set(journal)
    # Python lets the main thread alone listen; who ignores Ctrl-C goes on doing so.
    listens = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT) if listens else None
    listens = before is signal.default_int_handler
    if listens:
        signal.signal(signal.SIGINT, journal.on_interrupt)
    try:
        yield journal
    except KeyboardInterrupt:
        journal.flush()
        raise
    finally:
        if listens:
            signal.signal(signal.SIGINT, before)
        _current.reset(token)
    _remove(journal.folder)


def current() -> Journal | None:
    """The journal that is kept here, if any."""
    return _current.get()


def measured(measure: Callable[[], list[float]]) -> list[float]:
    """Numbers that no two calls would give alike: those of the journal, if it has them.

    What is decided by them is then decided as it was before.
    """
    journal = _current.get()
    return measure() if journal is None else journal.measured(measure)


def part(name: str) -> AbstractContextManager[None]:
    """A part of a run that is forgotten once it is over; see `Journal.part`."""
    journal = _current.get()
    return nullcontext() if journal is None else journal.part(name)


def diverged(
    what: str, epoch: int, advice: str = "Try a smaller learning rate."
) -> ValueError:
    """An error that says what became of what, and where the last checkpoint is."""
    journal = _current.get()
    good = ""
    if journal is not None:
        good = "There is no checkpoint before that. "
        if journal.good:
            good = f"The last good checkpoint is {journal.good}. "
    return ValueError(f"{what} in epoch {epoch}. {good}{advice}")


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()] if folder.is_dir() else []


def _remove(folder: Path, start: str = "") -> None:
    """Delete the files of a journal, those whose names begin so."""
    for name in _names(folder):
        if is_checkpoint(name) and name.startswith(start):
            (folder / name).unlink()
    if folder.is_dir() and not start and not _names(folder):
        folder.rmdir()


# ----------------------------------------------------------- states as tensors and JSON


def packed(state: Any, tensors: dict[str, Tensor]) -> Any:
    """A state as JSON, its tensors aside.

    Args:
        state: of mappings, lists, tuples, tensors, numbers, strings and None.
        tensors: filled.
    """
    match state:
        case Tensor():
            name = str(len(tensors))
            tensors[name] = state
            return {"tensor": name}
        case Mapping():
            items = [[packed(k, tensors), packed(v, tensors)] for k, v in state.items()]
            return {"items": items}
        case tuple():
            return {"tuple": [packed(each, tensors) for each in state]}
        case list():
            return [packed(each, tensors) for each in state]
        case float() if not math.isfinite(state):
            return {"float": str(state)}
        case None | bool() | int() | float() | str():
            return state
    raise TypeError(f"a checkpoint holds no {type(state).__name__}.")


def unpacked(content: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The other way round; tensors are copies.

    Raises:
        ValueError: if it is nothing that `packed` gives; also LookupError, TypeError.
    """
    match content:
        case {"tensor": name}:
            return tensors[name].clone()
        case {"items": items}:
            return {unpacked(k, tensors): unpacked(v, tensors) for k, v in items}
        case {"tuple": items}:
            return tuple(unpacked(each, tensors) for each in items)
        case {"float": number}:
            return float(number)
        case list():
            return [unpacked(each, tensors) for each in content]
        case None | bool() | int() | float() | str():
            return content
    raise ValueError(f"{shown(content)} is nothing that a checkpoint holds")


def _copied(state: Any) -> Any:
    """A state whose tensors nobody changes."""
    if isinstance(state, Tensor):
        return state.detach().clone()
    if isinstance(state, Mapping):
        return {key: _copied(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(map(_copied, state))
    return state
