"""`torchrun -m gebt`: joining the other ranks, and leaving when one is lost.

A rank that fails alone says why in torch's store, where all can read it. One that was
killed or stopped says nothing, and its beat there ends: so the others can name it.
"""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from threading import Thread
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gebt.graph import Graph
    from gebt.learn.tasks import Task

_ASKED = os.environ if "MASTER_ADDR" in os.environ else {}
RANKS, RANK = int(_ASKED.get("WORLD_SIZE", 1)), int(_ASKED.get("RANK", 0))
"""How many processes torchrun has started, and which this is."""
_GONE = 3  # the same, once others have lost their connection to it
_FOREVER = timedelta(days=30)
"""What a rank waits for another that lives: it may compute for hours."""


class Terminated(Exception):
    """By SIGTERM, as torchrun ends the others when one has failed."""


def mute() -> None:
    """Let rank 0 alone print."""
    if RANK:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (as long as the process)


def _patience() -> int:
    """Seconds without a beat, one a second, after which a rank counts as lost."""
    told = os.environ.get("GEBT_SILENCE", "20")
    if not told.isdecimal() or not int(told):
        raise ValueError(
            "GEBT_SILENCE is after how many seconds of silence a rank counts as lost, "
            f"a whole number above 0, got {told!r}."
        )
    return int(told)


class Watch:
    """Beats for this rank, and listens to the others' beats, in a thread.

    Args:
        store: torch's, for this thread alone.
    """

    def __init__(self, store: Any):
        self.on_loss: list[Callable[[], object]] = []
        self._store = store
        self._patience = _patience()
        self._last = [b""] * RANKS
        self._silent = [0] * RANKS
        self._beats = 0
        self._over = False
        self._beat()

    def start(self) -> None:
        """When all have made their first beat."""
        Thread(target=self._listen, daemon=True).start()

    def leave(self, words: str) -> None:
        """Stop; tell the others why, if it is this rank's own doing."""
        self._over = True
        with suppress(RuntimeError):
            self._store.set(f"left/{RANK}", words or "-")

    def culprits(self) -> str:
        """Who is to blame that this rank cannot go on, in words; "" if nobody is."""
        self.leave("")
        for _ in range(2 * _GONE):
            if found := self._lost(_GONE):
                return found
            time.sleep(1)
            self._beat()
        left = [r for r in range(RANKS) if r != RANK and self._words(r) == "-"]
        return f"rank {left[0]} has stopped, and so does this one." if left else ""

    def _words(self, rank: int) -> str:
        """Why a rank has left; "" if it has not."""
        with suppress(RuntimeError):
            if self._store.check([f"left/{rank}"]):
                return str(self._store.get(f"left/{rank}").decode())
        return ""

    def _listen(self) -> None:
        while not self._over:
            time.sleep(1)
            self._beat()
            if not self._over and (found := self._lost(self._patience)):
                self._stop(found)

    def _beat(self) -> None:
        self._beats += 1
        try:
            self._store.set(f"beat/{RANK}", str(self._beats))
            if self._beats == 1:
                return
            beats = self._store.multi_get([f"beat/{rank}" for rank in range(RANKS)])
        except RuntimeError:  # the store is rank 0's, or on its machine
            self._silent[0] += _GONE
            return
        for rank, beat in enumerate(beats):
            same = beat == self._last[rank] and rank != RANK
            self._silent[rank] = self._silent[rank] + 1 if same else 0
        self._last = beats

    def _lost(self, patience: int) -> str:
        """What there is to say of a rank that has failed, or is silent for so long."""
        for rank in range(RANKS):
            if words := self._words(rank):
                if words not in ("-", "done") and rank != RANK:
                    return f"rank {rank}: {words}"
                continue
            if self._silent[rank] >= patience:
                return (
                    f"rank {rank} of {RANKS} was killed or has stopped: nothing was "
                    f"heard of it for {self._silent[rank]} s. The others stop, too."
                )
        return ""

    def first_to_tell(self) -> bool:
        """Whether no other rank has told the user yet."""
        try:
            return self._store.add("told", 1) == 1
        except RuntimeError:
            return True

    def _stop(self, words: str) -> None:
        """End the process, whose main thread waits for someone who will not come."""
        self.leave("")
        for clean in self.on_loss:
            with suppress(Exception):
                clean()
        if self.first_to_tell():
            with suppress(OSError):
                print(f"gebt: {words}", file=sys.stderr, flush=True)
        os._exit(2)


watch: Watch | None = None
"""Of this process, once it has joined."""


def shared(
    read: Callable[[], tuple["Graph", "Task"]], on_gpu: bool
) -> tuple["Graph", "Task"]:
    """This rank's share of a graph, and the task; the whole in a single process.

    On each machine one rank reads first, since what it reads may be made then.

    Raises:
        ValueError: if a rank cannot read it, or reads another.
    """
    if RANKS == 1:
        return read()
    from gebt.graph import cut
    from gebt.world import Ranks

    _join(on_gpu)
    world = Ranks()
    here = os.environ.get("LOCAL_RANK", "0") == "0"
    early = world.attempt(lambda: read() if here else None)
    late = world.attempt(lambda: None if here else read())
    found = early or late
    assert found is not None
    graph, task = found
    prints = world.each(world.attempt(graph.fingerprint))
    for rank, other in enumerate(prints):
        if other != prints[0]:
            raise ValueError(
                f"rank {rank} sees another graph {graph.name!r} than rank 0: its "
                f"fingerprint is {other[:12]}, not {prints[0][:12]}. Give all ranks "
                "the same files."
            )
    return cut(graph, world, prints[0]), task


def _join(on_gpu: bool) -> None:
    """Join the others, once."""
    global watch
    import torch
    from torch import distributed as dist

    if watch is not None:
        return
    if on_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    with suppress(OSError, AttributeError):  # where the C library is not glibc
        # M_MMAP_THRESHOLD: what is freed of 1 MiB or more goes back to the system. By
        # default pieces of up to 32 MiB stay, a third of what a rank holds.
        ctypes.CDLL(None).mallopt(-3, 2**20)
    backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
    dist.init_process_group(backend, timeout=_FOREVER)
    store: Any = dist.distributed_c10d._get_default_store()
    store = store.clone()  # of its own, for the thread
    store.set_timeout(timedelta(seconds=10))
    watch = Watch(store)
    dist.barrier()
    watch.start()
    signal.signal(signal.SIGTERM, _terminate)


def _terminate(*_: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Terminated


def blame() -> str:
    """Who, if any, is to blame for this rank's error, in words."""
    if watch is None:
        return ""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun's, as one has ended
    return watch.culprits()


def leave(words: str, *, alone: bool) -> bool:
    """Tell the others why this rank ends; whether it shall tell the user.

    Args:
        words: an error's.
        alone: whether it is of this rank. Then the others shall tell of it; what all
            know the first does.
    """
    if watch is None:
        return RANK == 0
    if alone:
        watch.leave(words)
    return (RANK == 0 or not alone) and watch.first_to_tell()


def finish() -> None:
    """All ranks end together."""
    if watch is None:
        return
    from torch import distributed as dist

    dist.barrier()
    watch.leave("done")
    dist.destroy_process_group()
