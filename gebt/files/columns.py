"""Tables of users: CSV by NumPy's own reader, Parquet by pyarrow where it is installed.

Both give columns of int64, float32, or text (objects, each a str); a cell that is
empty is the text "" or, among Parquet's numbers, NaN.
"""

import csv
import gzip
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

Column = NDArray[Any]
_SAMPLE = 1000
"""Rows of a CSV that tell what its columns hold; it is read anew where one that comes
later does not."""


def read_columns(path: Path) -> dict[str, Column]:
    """The columns of a file that ends in .parquet, .csv or .tsv, the latter also .gz.

    Returns:
        By name, (R,) each; vectors, which Parquet may hold, (R, D).

    Raises:
        ValueError: naming the file and what is wrong with it, as a row of other length,
            or that Parquet needs a package.
        OSError: if it cannot be opened.
    """
    try:
        columns = _parquet(path) if path.suffix == ".parquet" else _csv(path)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is cut short or garbled ({error}).") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}).") from error
    if not columns or not len(next(iter(columns.values()))):
        raise ValueError(f"{path} has no rows.")
    return columns


def _csv(path: Path) -> dict[str, Column]:
    with _opened(path) as file:
        rows = csv.reader(file, delimiter=_delimiter(path))
        header = next(rows, [])
        sample = list(islice(filter(None, rows), _SAMPLE))
    _check_header(path, header)
    for number, row in enumerate(sample, 1):
        _check_row(path, number, row, header)
    if not sample:
        return {}
    return _columns(path, header, [_kind(cells) for cells in zip(*sample, strict=True)])


def _columns(path: Path, header: list[str], kinds: list[type]) -> dict[str, Column]:
    """Those of a CSV, of these kinds; of another where a cell further down is."""
    held = {int: np.int64, float: np.float32, str: object}
    fields = [(f"c{place}", held[kind]) for place, kind in enumerate(kinds)]
    with _opened(path) as file:
        next(csv.reader(file, delimiter=_delimiter(path)))  # it may have several lines
        try:
            table = np.loadtxt(
                file,
                dtype=np.dtype(fields),
                comments=None,
                delimiter=_delimiter(path),
                quotechar='"',
                ndmin=1,
            )
        except ValueError as error:
            if (misfit := _misfit(path, kinds, header)) is None:
                raise ValueError(f"{path}: {error}.") from error
            place, kind = misfit
            return _columns(path, header, [*kinds[:place], kind, *kinds[place + 1 :]])
    return {name: table[f"c{place}"] for place, name in enumerate(header)}


def _kind(cells: Iterable[str]) -> type:
    """Int or float if all are such numbers, else str."""
    return next(kind for kind in (int, float, str) if all(_is(kind, c) for c in cells))


def _is(kind: type, cell: str) -> bool:
    try:
        value = kind(cell)
    except ValueError:
        return False
    return kind is not int or -(2**63) <= value < 2**63


def _misfit(
    path: Path, kinds: list[type], header: list[str]
) -> tuple[int, type] | None:
    """The column of the first cell that is not of its kind, and what that is."""
    with _opened(path) as file:
        rows = csv.reader(file, delimiter=_delimiter(path))
        next(rows)
        for number, row in enumerate(filter(None, rows), 1):
            _check_row(path, number, row, header)
            for place, (kind, cell) in enumerate(zip(kinds, row, strict=True)):
                if not _is(kind, cell):
                    return place, float if kind is int and _is(float, cell) else str
    return None


def _check_row(path: Path, number: int, row: list[str], header: list[str]) -> None:
    if len(row) != len(header):
        raise ValueError(
            f"{path}: row {number} has {len(row)} cells, but the header {len(header)}."
        )


def _check_header(path: Path, header: list[str]) -> None:
    if len(set(header)) < len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise ValueError(f"{path} has two columns called {twice!r}.")
    if header and all(_is(float, cell) for cell in header):
        raise ValueError(
            f"{path} has no header: it begins with {','.join(header[:5])!r}. Put the "
            "columns' names, such as source,target, into a first line."
        )


def _delimiter(path: Path) -> str:
    return "\t" if ".tsv" in path.suffixes[-2:] else ","


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    opening: Any = gzip.open if path.suffix == ".gz" else open
    with opening(path, "rt", encoding="utf-8-sig", newline="") as file:
        yield file


def _parquet(path: Path) -> dict[str, Column]:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise ValueError(
            f"{path} is a Parquet file, which pyarrow reads: pip install "
            "'gebt[tables]'. CSV needs nothing."
        ) from error
    with path.open("rb") as file:
        try:
            table = parquet.read_table(file)
        except (pa.ArrowException, ValueError) as error:
            raise ValueError(f"{path} is no Parquet file ({error}).") from error
    _check_header(path, list(table.column_names))
    return {
        name: _arrow(f"{path}: the column {name!r}", table.column(name))
        for name in table.column_names
    }


def _arrow(what: str, column: Any) -> Column:
    import pyarrow as pa

    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or kind == pa.null():
        texts = ["" if each is None else each for each in column.to_pylist()]
        return np.array(texts, dtype=object)
    array = column.to_numpy()
    if array.dtype == object:  # vectors, or nothing that is known
        try:
            array = np.stack(list(array))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{what} holds {kind}, or vectors of several lengths; numbers, text "
                "and vectors of one length can be read."
            ) from error
    if array.dtype.kind not in "iufb":
        raise ValueError(f"{what} holds {kind}, neither numbers nor text.")
    return array.astype(np.int64 if array.dtype.kind in "iu" else np.float32)
