"""What can be checked before torch is loaded, which takes seconds: ranges and names."""

from collections.abc import Collection
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

_MANY = 12
"""Names that a line still lists where the one that was meant is told."""


def check_ratio(name: str, ratio: float) -> float:
    """Return the ratio, or raise a ValueError unless it lies in [0, 1)."""
    if not 0 <= ratio < 1:
        raise ValueError(
            f"`{name}` is the share to remove and must lie in [0, 1), got {ratio}."
        )
    return ratio


def check_dropout(name: str, value: float) -> None:
    """Raise a ValueError unless the value lies in [0, 1)."""
    if not 0 <= value < 1:
        raise ValueError(f"`{name}` must lie in [0, 1), got {value}.")


def check_count(name: str, value: int, most: int = 2**31 - 1) -> None:
    """Raise a ValueError unless it is a whole number from 1 to ``most``."""
    if not hasattr(value, "__index__"):
        raise ValueError(f"`{name}` must be a whole number, got {value!r}.")
    if value < 1:
        raise ValueError(f"`{name}` must be at least 1, got {value}.")
    if value > most:
        raise ValueError(f"`{name}` must be at most {most}, got {value}.")


def check_positive(name: str, value: float) -> None:
    """Raise a ValueError unless the value is positive."""
    if not value > 0:
        raise ValueError(f"`{name}` must be positive, got {value}.")


def check_not_negative(name: str, value: float) -> None:
    """Raise a ValueError unless the value is at least 0."""
    if not value >= 0:
        raise ValueError(f"`{name}` must not be negative, got {value}.")


def check_choice(name: str, value: str, choices: Any) -> None:
    """Raise a ValueError unless the value is one of a Literal's."""
    if value not in get_args(choices):
        known = ", ".join(map(repr, get_args(choices)))
        raise ValueError(f"`{name}` must be one of {known}, got {value!r}.")


def check_export(path: Path) -> None:
    """Raise a ValueError unless gebt can write, or read, an exported file there."""
    if path.suffix not in (".pt2", ".onnx"):
        raise ValueError(
            "an exported model is a .pt2 file, for torch, or an .onnx file, for ONNX "
            f"Runtime and others; got {str(path)!r}."
        )
    if path.suffix == ".onnx":
        absent = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
        if absent:
            raise ValueError(
                f"an .onnx file needs {' and '.join(absent)}: pip install "
                "'gebt[export]'."
            )


def check_name(kind: str, name: str, known: Collection[str]) -> str:
    """Return the name as it is known, or raise a ValueError that lists those there are.

    Args:
        kind: of thing, such as ``"model"``.
        name: in any case.
        known: all that there are, in lower case.
    """
    lower = name.lower()
    if lower in known:
        return lower
    # Letters in another order first: difflib finds "gin" nearer to "gnc" than "gcn".
    near = [other for other in known if sorted(other) == sorted(lower)]
    near += get_close_matches(lower, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    if near and len(known) > _MANY:
        raise ValueError(f"there is no {kind} {name!r} among {len(known)}.{hint}")
    raise ValueError(
        f"there is no {kind} {name!r}; gebt knows {', '.join(known)}.{hint}"
    )
