"""What several commands do first and last: graphs, recipes, folders."""

import os
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gebt._registry import MODELS, parse_table
from gebt.cli import ranks
from gebt.cli.flags import Changes, Device
from gebt.cli.ranks import RANK, RANKS

if TYPE_CHECKING:
    from gebt.graph import Graph
    from gebt.learn.tasks import Task
    from gebt.models.recipe import Recipe
    from gebt.tickets.ticket import Ticket

_SMALL = 20_000_000
"""Entries of features and adjacency below which one thread is used: on two a Cora
epoch is no faster, and far slower as soon as something else wants a core."""


def recipe_of(model: str, task: str | None, changes: Changes) -> "Recipe":
    """The model's recipe with what was given on the command line."""
    from gebt.learn.tasks import LinkPrediction
    from gebt.models.recipe import for_links

    recipe = MODELS.find(model)
    if task and task.partition(":")[0] == LinkPrediction.name:
        recipe = for_links(recipe)
    return recipe.changed(**changes)


def load_of(
    ticket: "Ticket", root: Path | None, device: Device
) -> tuple["Graph", "Task"]:
    """The graph and the task that a ticket was drawn for."""
    return load_graph(ticket.dataset["name"], root, device, ticket.options.get("task"))


def load_graph(
    dataset: str,
    root: Path | None,
    device: Device,
    described: str | Mapping[str, Any] | None,
    split: int | None = None,
) -> tuple["Graph", "Task"]:
    """A graph where it is to be, and its task, the one described or by its labels."""
    import torch

    from gebt.datasets import load
    from gebt.learn.tasks import find_task, prepare, task_for

    if device is Device.cuda and not torch.cuda.is_available():
        raise ValueError(
            "`--device cuda` was asked for, but torch sees no CUDA device. Use "
            "`--device cpu`, or install a CUDA build of torch on a machine with a GPU."
        )
    asked = find_task(described) if described else None
    on_gpu = device is Device.cuda or (
        device is Device.auto and torch.cuda.is_available()
    )

    def read() -> tuple["Graph", "Task"]:
        graph = load(dataset, root, split=split)
        task = asked or task_for(graph)
        return prepare(graph, task), task

    graph, task = ranks.shared(read, on_gpu)
    use_threads(graph.adjacency.pattern.nnz + graph.x.shape[0] * graph.x.shape[1])
    return (graph.to("cuda") if on_gpu else graph), task


def use_threads(entries: int) -> None:
    """Take one thread for so many entries of features and adjacency, if few."""
    import torch

    if entries < _SMALL and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


@contextmanager
def results(
    folder: Path,
    names: Collection[str],
    graph: "Graph | None" = None,
    *,
    hint: str = "",
    **options: Any,
) -> Iterator[None]:
    """`results_folder`; an interruption names it, if something is in it.

    Of the ranks that share a graph the first holds it, for all.
    """
    from gebt.files.folders import results_folder

    try:
        with ExitStack() as stack:
            if graph is not None and graph.share is not None:
                from gebt.graph.pieces import piece_path

                pieces = [Path(n) for n in names if n.endswith(".safetensors")]
                ends = range(1, RANKS)
                each = (piece_path(p, r, RANKS) for p in pieces for r in ends)
                names = [*names, *map(str, each)]
                held = results_folder(folder, names, **options)
                enter = partial(stack.enter_context, held)
                if ranks.watch is not None:
                    ranks.watch.on_loss.append(stack.close)
                graph.world.attempt(enter if RANK == 0 else lambda: None)
            else:
                stack.enter_context(results_folder(folder, names, **options))
            yield
    except KeyboardInterrupt as error:
        kept = any((folder / name).exists() for name in names)
        state = f"what was finished is in {folder}{hint}" if kept else "nothing written"
        raise Interrupted(f"interrupted; {state}.") from error


class Interrupted(Exception):
    """Ctrl-C, and what it left."""


def default_folder(dataset: str, before: str = "") -> Path:
    """A folder of a new name below ``runs``."""
    if path := parse_table(dataset):
        dataset = Path(path[0]).name
    base = Path("runs") / f"{before}{dataset}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder, number = base, 2
    while folder.exists():
        folder, number = base.with_name(f"{base.name}-{number}"), number + 1
    return folder
