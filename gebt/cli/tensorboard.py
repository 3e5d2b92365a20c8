"""What a run tells TensorBoard."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gebt.experiments.run import OnEpoch
    from gebt.graph import Graph
    from gebt.learn.training import Epoch

_SUFFIX = ".gebt"
"""Of event files: nobody else's end so."""


def check_tensorboard(_: str, asked: bool) -> None:
    """Refuse what is not installed, before torch is loaded."""
    if asked and find_spec("tensorboard") is None:
        raise ValueError(
            "`--tensorboard` needs tensorboard: pip install 'gebt[tensorboard]'."
        )


@contextmanager
def events(
    asked: bool,
    folder: Path,
    graph: "Graph",
    show: "OnEpoch | None",
    seeds: Sequence[int] = (),
) -> Iterator["OnEpoch | None"]:
    """A hook that shows epochs and writes them into event files below the folder.

    Tags are ``dense/loss``, ``search/distance_graph`` and so on, as the columns of
    ``history.csv``; of a phase that begins again ``dense-2``.

    Args:
        asked: whether to write at all.
        folder: of results, held by `results_folder`.
        graph: of the run; of several ranks that share it the first writes.
        show: the hook that shows them, if any.
        seeds: of the run; where there are several each has a file in its own folder.
    """
    if not asked or graph.world.rank:
        yield show
        return
    files = _Files(folder, seeds)

    def told(phase: str, epoch: "Epoch") -> None:
        if show is not None:
            show(phase, epoch)
        files.tell(phase, epoch)

    try:
        yield told
    finally:
        files.close()


class _Files:
    """An event file, or one of each seed.

    Args:
        folder: of results.
        seeds: of the run.
    """

    def __init__(self, folder: Path, seeds: Sequence[int]):
        self._folder, self._seeds = folder, seeds
        self._inside: str | None = None
        self._begun: Counter[str] = Counter()

    def tell(self, phase: str, epoch: "Epoch") -> None:
        """Write an epoch."""
        if epoch.epoch == 1 or self._inside is None:
            self._turn_to(self._place())
        self._begun[phase] += epoch.epoch == 1 or not self._begun[phase]
        again = self._begun[phase]
        name = phase if again == 1 else f"{phase}-{again}"
        distances = {f"distance_{k}": d for k, d in epoch.distances.items()}
        for tag, value in {"loss": epoch.loss, "val": epoch.val, **distances}.items():
            if value == value:  # NaN is what is not known yet
                self._writer.add_scalar(f"{name}/{tag}", value, epoch.epoch)

    def close(self) -> None:
        """Bring what is left to the disk."""
        if self._inside is not None:
            self._writer.close()

    def _place(self) -> str:
        """Where the seed under way has its file: the record has those before it."""
        if len(self._seeds) < 2:
            return ""
        from gebt.experiments.record import FILE, read_record

        done = (self._folder / FILE).is_file() and len(read_record(self._folder).runs)
        return f"seed-{self._seeds[done]}/"

    def _turn_to(self, inside: str) -> None:
        """A new file there, in the place of one that a killed run left."""
        if inside == self._inside:
            return
        from torch.utils.tensorboard import SummaryWriter

        from gebt.files.folders import record

        self.close()
        folder, ours = self._folder / inside, f"events.out.tfevents.*{_SUFFIX}"
        for path in folder.glob(ours):
            path.unlink()
        self._writer = SummaryWriter(folder, filename_suffix=_SUFFIX)
        self._inside = inside
        self._begun.clear()
        record(self._folder, [f"{inside}{path.name}" for path in folder.glob(ours)])
