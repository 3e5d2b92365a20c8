"""What a run tells TensorBoard."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gebt.experiments.run import OnEpoch
    from gebt.graph import Graph
    from gebt.learn.training import Epoch


def check_tensorboard(_: str, asked: bool) -> None:
    """Refuse what is not installed, before torch is loaded."""
    if asked and find_spec("tensorboard") is None:
        raise ValueError(
            "`--tensorboard` needs tensorboard: pip install 'gebt[tensorboard]'."
        )


@contextmanager
def events(
    asked: bool, folder: Path, graph: "Graph", show: "OnEpoch | None"
) -> Iterator["OnEpoch | None"]:
    """A hook that shows epochs and writes them into an event file in the folder.

    Tags are ``dense/loss``, ``search/distance_graph`` and so on, as the columns of
    ``history.csv``; of a phase that begins again, as each seed's does, ``dense-2``.

    Args:
        asked: whether to write at all.
        folder: of results, held by `results_folder`.
        graph: of the run; of several ranks that share it the first writes.
        show: the hook that shows them, if any.
    """
    if not asked or graph.world.rank:
        yield show
        return
    from torch.utils.tensorboard import SummaryWriter

    from gebt.files.folders import record

    begun: Counter[str] = Counter()

    def told(phase: str, epoch: "Epoch") -> None:
        if show is not None:
            show(phase, epoch)
        begun[phase] += epoch.epoch == 1 or not begun[phase]
        name = phase if begun[phase] == 1 else f"{phase}-{begun[phase]}"
        distances = {f"distance_{k}": d for k, d in epoch.distances.items()}
        for tag, value in {"loss": epoch.loss, "val": epoch.val, **distances}.items():
            if value == value:  # NaN is what is not known yet
                writer.add_scalar(f"{name}/{tag}", value, epoch.epoch)

    others = {*folder.iterdir()}
    with SummaryWriter(folder) as writer:
        record(folder, [path.name for path in folder.iterdir() if path not in others])
        yield told
