"""What the benchmarks share: where results go, and on what they were measured."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from gebt._provenance import in_words, provenance

RESULTS = Path(__file__).parent / "results"


def write_results(
    path: Path,
    rows: Sequence[Mapping[str, object]],
    *notes: str,
    columns: Sequence[str] = (),
) -> None:
    """Rows below a line that says where they are from.

    With the first row's columns, or these, of which rows may lack some.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        file.write("# " + "; ".join([in_words(provenance()), *notes]) + "\n")
        writer = csv.DictWriter(file, columns or list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
