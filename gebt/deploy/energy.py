"""What training costs: joules, where the machine counts them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")


@contextmanager
def measure_energy(counters: Path = POWERCAP) -> Iterator[list[float]]:
    """The energy that the processors use inside the block, in a list filled at its end.

    By RAPL, of all packages together, whatever else runs on them. The list stays empty
    where Linux has no such counters, or lets only root read them: count operations
    then, as `gebt reproduce` does. A block must end before a counter is back where it
    began, after an hour or so at full load.

    Args:
        counters: the folder of Linux's power capping framework.
    """
    before = _microjoules(counters)
    joules: list[float] = []
    yield joules
    after = _microjoules(counters)
    if before and before.keys() == after.keys():
        spent = ((after[k][0] - n) % most for k, (n, most) in before.items())
        joules.append(sum(spent) / 1e6)


def _microjoules(counters: Path) -> dict[str, tuple[int, int]]:
    """Each package's counter, and where it begins anew."""
    found = {}
    try:
        for zone in counters.glob("*-rapl:[0-9]"):
            numbers = [zone / "energy_uj", zone / "max_energy_range_uj"]
            now, most = (int(path.read_text()) for path in numbers)
            found[zone.name] = now, most + 1
    except (OSError, ValueError):
        return {}
    return found
