"""What the benchmarks share: where results go, and on what they were measured."""

import csv
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from gebt._provenance import in_words, provenance

RESULTS = Path(__file__).parent / "results"


@cache
def _where() -> str:
    """At the first call: later the results themselves are changes to the tree."""
    return in_words(provenance())


def write_results(
    path: Path,
    rows: Sequence[Mapping[str, object]],
    *notes: str,
    columns: Sequence[str] = (),
) -> None:
    """Rows below a line that says where they are from.

    With the first row's columns, or these, of which rows may lack some.
    """
    where = _where()  # before the file itself is a change
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        file.write("# " + "; ".join([where, *notes]) + "\n")
        writer = csv.DictWriter(file, columns or list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
