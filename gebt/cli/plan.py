"""`gebt plan`: will it fit, and how long will it take?"""

import re
from typing import Annotated

import typer

from gebt._checks import check_count
from gebt._registry import MODELS, check_dataset
from gebt.cli.common import use_threads
from gebt.cli.flags import Model, flags
from gebt.cli.show import out_console, print_rows


def _check(graph: str) -> str:
    return graph if re.match(r"[\d.e+-]+,", graph) else check_dataset(graph)


@flags
def plan(
    graph: Annotated[
        str,
        typer.Argument(
            metavar="GRAPH|N,E,F",
            help="Graph by name, which need not be on disk, or how many nodes, links "
            "and features it has.",
            callback=lambda value: value and _check(value),
        ),
    ],
    model: Model = "gcn",
    hidden: Annotated[
        int | None,
        typer.Option(
            help="Width of the hidden layers. [dim]default: the model's[/]",
            metavar="N",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Tell the memory and the time of an epoch, before anything is loaded.

    Measured for some ten seconds on a smaller graph of the same shape. Memory is all
    that the process holds at its peak, Python and torch included.
    """
    if hidden is not None:
        check_count("hidden", hidden)
    from gebt.datasets.sizes import size_of
    from gebt.experiments.plan import available_mib, forecast

    size = size_of(graph)
    recipe = MODELS.find(model)
    recipe = recipe if hidden is None else recipe.changed(hidden=hidden)
    use_threads(2 * size.links + size.nodes * size.features)
    found = forecast(size, recipe)
    rows = [
        (kind, _memory(found.mib[kind]), _time(found.seconds[kind]))
        for kind in found.mib
    ]
    title = (
        f"{graph}: {size.nodes:,} nodes, {size.links:,} links, {size.features:,} "
        f"features; {recipe.in_words()}"
    )
    print_rows(title, ("", "memory", "time"), rows)
    free, most = available_mib(), max(found.mib.values())
    fits = "It fits" if most < free else "It does not fit"
    out_console.print(
        f"{fits} here, where {_memory(free)} are free. Measured on {found.links:,} "
        "links of the same shape.",
        style="dim",
    )
    if most >= free:
        out_console.print(
            "A narrower model, `gebt search --parts` or several processes take less.",
            style="dim",
        )


def _memory(mib: float) -> str:
    return f"{mib / 1024:.1f} GiB" if mib >= 1024 else f"{mib:.0f} MiB"


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"
