"""Tables of numbers as gzipped csv, without a header: OGB's."""

import gzip
import io
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

_BLOCK = 2**24
"""Bytes of text that are parsed at once."""
_PACKED = 1032
"""As many bytes one of a gzip file can stand for at most."""


def read_table(
    path: Path, dtype: DTypeLike, most: int, columns: int | None = None
) -> np.ndarray:
    """All rows of a table.

    In blocks, each unpacked while the one before it is parsed: beside the array they
    take a few times 16 MiB.

    Args:
        path: a csv.gz of numbers.
        dtype: of the array; whole numbers must be written as such, and fit.
        most: rows that it may have.
        columns: that it must have; by default as many as its first row.

    Returns:
        (rows, columns).

    Raises:
        ValueError: naming the file: if it is cut short or garbled, or has more rows or
            other columns; or something else than numbers, and in which row.
    """
    array = np.empty((0, columns or 0), dtype=dtype)
    rows = 0
    with ThreadPoolExecutor(1) as pool:
        try:
            blocks = _blocks(path)
            coming = pool.submit(next, blocks, None)
            while text := coming.result():
                coming = pool.submit(next, blocks, None)
                if text.isspace():
                    continue
                part = _parse(text, dtype, rows)
                if not rows:
                    columns = columns or part.shape[1]
                    # A number takes two bytes: no more are made room for than fit.
                    fit = _PACKED * path.stat().st_size // (2 * columns) + 1
                    array = np.empty((min(most, fit), columns), dtype=dtype)
                if part.shape[1] != columns:
                    raise ValueError(f"has {part.shape[1]} columns, not {columns}")
                if rows + len(part) > len(array):
                    raise ValueError(f"has more rows than {most}")
                array[rows : rows + len(part)] = part
                rows += len(part)
        except (OSError, EOFError, zlib.error, ValueError) as error:
            raise ValueError(f"{path.name} {_said(error)}") from error
    return array[:rows]


def _blocks(path: Path) -> Iterator[bytes]:
    """The text, cut at the ends of lines."""
    left = b""
    with gzip.open(path) as file:
        while block := file.read(_BLOCK):
            whole, end, rest = block.rpartition(b"\n")
            if not end and len(left) > _BLOCK:
                raise ValueError("has a line of more than 16 MiB")
            if whole := left + whole if end else b"":
                yield whole
            left = rest if end else left + rest
    if left:
        yield left


def _parse(text: bytes, dtype: DTypeLike, before: int) -> np.ndarray:
    try:
        lines = io.BytesIO(text)
        return np.loadtxt(lines, dtype, delimiter=",", comments=None, ndmin=2)
    except (ValueError, OverflowError) as error:
        line = text[:40].partition(b"\n")[0].decode(errors="replace")
        raise ValueError(
            f"holds something else than a table of numbers, after row {before} "
            f"({line!r}...): {error}"
        ) from error


def _said(error: Exception) -> str:
    if isinstance(error, ValueError):
        return str(error)
    return f"is cut short or garbled ({error})"
