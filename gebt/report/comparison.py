"""Means, spreads, and paired differences that say whether there is one."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


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
        if self.n < 2:
            return f"{self.mean:+z.1f} (n = {self.n})"
        text = f"{self.mean:+z.1f} ± {self.half_width:.1f}"
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
