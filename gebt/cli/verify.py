"""`gebt verify`."""

from pathlib import Path
from typing import Annotated

import typer

from gebt.cli.flags import flags
from gebt.cli.show import print_rows


@flags
def verify(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="A ticket, compact model, exported one, checkpoint, record or table.",
        ),
    ],
) -> None:
    """Say what a file of gebt holds, if all of it is whole."""
    from gebt.experiments.verify import contents_of

    facts = contents_of(path)
    print_rows(f"{path.name} is whole", ("", ""), facts.items())
