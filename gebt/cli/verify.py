"""`gebt verify`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from gebt.cli.config import read_run
from gebt.cli.flags import flags
from gebt.cli.show import print_rows


@flags
def verify(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="A ticket, compact model, exported one, checkpoint, record or table, "
            "or a run's flags.",
        ),
    ],
) -> None:
    """Say what a file of gebt holds, if all of it is whole."""
    facts: Mapping[str, Any]
    if path.suffix == ".toml":
        facts = read_run(path)
    else:
        from gebt.experiments.verify import contents_of

        facts = contents_of(path)
    print_rows(
        f"{path.name} is whole", ("", ""), ((k, str(v)) for k, v in facts.items())
    )
