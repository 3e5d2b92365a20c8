"""Means, spreads, and paired differences that say whether there is one.

Of numbers, and of rows of a table, whose cells are text: one row for each seed.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Difference:
    """A mean paired difference with its 95% confidence interval, Student's t.

    Attributes:
        mean: of the differences.
        half_width: of the interval; NaN for fewer than two pairs.
        n: pairs.
    """

    mean: float
    half_width: float
    n: int

    @property
    def is_one(self) -> bool:
        """Whether the interval leaves out zero."""
        return abs(self.mean) > self.half_width

    def __str__(self) -> str:
        return self.text()

    def text(self, digits: int = 1) -> str:
        """In words, with so many digits behind the point."""
        mean = f"{self.mean:+z.{digits}f}"
        if self.n < 2:
            return f"{mean} (n = {self.n})"
        text = f"{mean} ± {self.half_width:.{digits}f}"
        return text if self.is_one else f"no difference ({text})"


def paired(ours: Mapping[str, float], theirs: Mapping[str, float]) -> Difference | None:
    """Compare scores of the same seeds; None if they share none.

    Args:
        ours: scores by seed.
        theirs: what is subtracted, by seed.
    """
    from scipy.stats import t  # comes with scikit-learn; a second to import

    gaps = [score - theirs[seed] for seed, score in ours.items() if seed in theirs]
    if not gaps:
        return None
    n = len(gaps)
    if n < 2:
        return Difference(gaps[0], math.nan, n)
    error = statistics.stdev(gaps) / math.sqrt(n)
    return Difference(statistics.fmean(gaps), float(t.ppf(0.975, n - 1)) * error, n)


def deviation(values: Sequence[float]) -> float:
    """Standard deviation of a sample; 0 for a single value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Mean and standard deviation, as text; a dash for none."""
    if not values:
        return "-"
    mean = f"{statistics.fmean(values):.{digits}f}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {statistics.stdev(values):.{digits}f}"


def seeds_of(n: int, asked: int) -> str:
    """How many seeds there are, of how many that were asked for."""
    return f"{n}{f' of {asked}' if n < asked else ''} seed{'s' * (max(n, asked) > 1)}"


Row = Mapping[str, Any]


def pick(rows: Sequence[Row], **wanted: object) -> list[Row]:
    """The rows whose columns have these values; None stands for an empty cell."""
    texts = {c: "" if v is None else str(v) for c, v in wanted.items()}
    return [row for row in rows if all(row[c] == v for c, v in texts.items())]


def scores(rows: Sequence[Row], column: str = "test") -> dict[str, float]:
    """A column by seed."""
    return {row["seed"]: float(row[column]) for row in rows}


def mean_of(rows: Sequence[Row], column: str = "test", digits: int = 1) -> str:
    """A column's mean and standard deviation, as text."""
    return spread(list(scores(rows, column).values()), digits)


def less(
    ours: Sequence[Row], theirs: Sequence[Row], column: str, digits: int = 2
) -> str:
    """The paired difference of one column, ours less theirs, as text; or a dash."""
    gap = paired(scores(ours, column), scores(theirs, column))
    return gap.text(digits) if gap else "-"


def against(ours: Sequence[Row], theirs: Sequence[Row], column: str = "test") -> str:
    """The paired difference of our test scores to a column of theirs, as text.

    A dash for none.
    """
    return str(paired(scores(ours), scores(theirs, column)) or "-")


def best_by_validation(rows: Sequence[Row]) -> list[Row]:
    """Of each seed the row of the best validation score; of equal ones the first."""
    seeds = dict.fromkeys(row["seed"] for row in rows)
    of = {seed: pick(rows, seed=seed) for seed in seeds}
    return [
        max(mine, key=lambda row: float(row["val"] or "nan")) for mine in of.values()
    ]


def percent(ratio: object) -> str:
    """A share, or a cell that holds one, as text."""
    return f"{float(str(ratio)):.0%}"
