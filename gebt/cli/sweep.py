"""`gebt sweep`: many tickets of one graph, in parallel, and their frontier."""

import math
from pathlib import Path
from typing import Annotated

import typer

from gebt._checks import check_count, check_ratio
from gebt._registry import CRITERIA, parse_table
from gebt.cli.common import results
from gebt.cli.flags import (
    Changes,
    DatasetName,
    Force,
    Model,
    Quiet,
    Root,
    Seeds,
    Tables,
    flags,
    folder_by_default,
)
from gebt.cli.show import counting, print_tables, tell_folder

_MOST = 1000  # shares of a list


def sweep_shares(name: str, text: str) -> list[float]:
    """The shares that a text lists, such as ``"0,0.1:0.9:0.2"``, in order, each once.

    Args:
        name: the flag's, for messages.
        text: numbers and ranges ``start:end:step``, both ends in, between commas.

    Raises:
        ValueError: if one is no number, outside [0, 1), or a range has nothing in it.
    """
    found: list[float] = []
    for part in text.split(","):
        try:
            start, *range_ = map(float, part.split(":"))
        except ValueError:
            range_ = [math.nan]
        if len(range_) not in (0, 2):
            raise ValueError(
                f"`{name}` takes shares and ranges start:end:step between commas, such "
                f"as 0,0.1:0.9:0.2, got {part!r}."
            )
        check_ratio(name, start)
        steps = 0
        if range_:
            end, step = check_ratio(name, range_[0]), range_[1]
            if not 0 < step < math.inf:
                raise ValueError(f"the step of `{name}` must be positive, got {part}.")
            if end < start:
                raise ValueError(f"the range {part} of `{name}` is empty.")
            steps = math.floor((end - start) / step + 1e-6)
            check_count(f"shares of {name}", len(found) + steps + 1, _MOST)
            found += [round(start + k * step, 12) for k in range(1, steps + 1)]
        found.append(start)
    return sorted({*found})


def _criteria(text: str) -> list[str]:
    return [*dict.fromkeys(CRITERIA.check(name.strip()) for name in text.split(","))]


_SHARES = "shares, and ranges start:stop:step, between commas"


@flags
def sweep(
    dataset: DatasetName,
    *,
    own: Tables,
    graph_ratio: Annotated[
        str,
        typer.Option(help=f"Of links to remove: {_SHARES}.", metavar="SHARES"),
    ] = "0.1:0.9:0.2",
    weight_ratio: Annotated[
        str, typer.Option(help=f"Of weights to remove: {_SHARES}.", metavar="SHARES")
    ] = "0.9",
    criterion: Annotated[
        str,
        typer.Option(
            help="What ranks links, between commas; one that asks a trained model is "
            "told by the dense one.",
            metavar="NAMES",
        ),
    ] = "learned,random",
    model: Model = "gcn",
    changes: Changes,
    seeds: Seeds = 5,
    jobs: Annotated[
        int | None,
        typer.Option(
            help="Processes side by side, one thread each; by default the cores.",
            metavar="N",
            min=1,
            max=1024,
            show_default=False,
        ),
    ] = None,
    root: Root = None,
    out: Annotated[Path | None, folder_by_default("runs/sweep-<dataset>")] = None,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Draw a ticket at every combination of ratios and criteria; show the frontier.

    What `gebt run` gives with these flags, seed by seed, in parallel processes, beside
    the dense model. The same command goes on where it was stopped, and one with other
    ratios, criteria or more seeds adds them; --force begins again.
    """
    dataset = own.named(dataset)
    links = sweep_shares("graph_ratio", graph_ratio)
    weights = sweep_shares("weight_ratio", weight_ratio)
    names = _criteria(criterion)
    if not any(links) and not any(weights):
        raise ValueError(
            "`graph_ratio` and `weight_ratio` are both 0: nothing to prune."
        )
    from gebt.experiments.report import check_figures, page_of, write_report
    from gebt.experiments.runner import TABLES, reproduce
    from gebt.experiments.sweep import sweep_of

    check_figures()
    table = parse_table(dataset)
    called = Path(table[0]).name if table else dataset.replace(":", "-")
    folder = out or Path("runs") / f"sweep-{called}"
    begun = (folder / "experiment.json").is_file() and not force
    files = ["experiment.json", *(f"{table}.csv" for table in TABLES), "report.html"]
    hint = "; the same command goes on"
    with results(folder, files, force=force, resume=begun, hint=hint):
        with counting("sweep", quiet) as show:
            reproduce(
                sweep_of(model, links, weights, names),
                folder,
                graphs=[dataset],
                seeds=seeds,
                changes=changes,
                root=root,
                workers=jobs,
                on_done=show,
            )
        if not quiet:
            print_tables(page_of(folder))
        write_report([folder], folder, root)
    tell_folder(folder, quiet)
