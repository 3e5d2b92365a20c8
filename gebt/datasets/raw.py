"""Plain values out of files that others made: nothing in them is run or trusted.

Planetoid's files are pickles of Python 2, the heterophilous graphs' are npz, OGB's
splits of links are torch's. None is given to a loader that builds what the file says:
a pickle may call any function, and a length in a header may ask for any amount of
memory. Here numbers, strings, lists and dicts are made as they come, and an array only
after its shape was found to fit the bytes that are there.
"""

import io
import math
import pickletools
import re
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

MOST_CELLS = 2**26
"""Entries of the largest matrix of features that is made: 256 MiB of float32, seven
times PubMed's. Rows and columns of a sparse matrix take no bytes in its file."""

_MOST_BYTES = 2**28
"""Bytes that an npz may unpack to; the largest graph of its collection needs 62 MiB."""
_BLOCK = 2**24
"""Bytes that are read at once."""

# What the published files name, and what Python 3 writes for the same. None of it is
# imported: each stands for a few lines below.
_NAMES = {
    "numpy.core.multiarray._reconstruct": "array",
    "numpy._core.multiarray._reconstruct": "array",
    "numpy.ndarray": "ndarray",
    "numpy.dtype": "dtype",
    "scipy.sparse.csr.csr_matrix": "csr",
    "scipy.sparse._csr.csr_matrix": "csr",
    "collections.defaultdict": "defaultdict",
    "__builtin__.list": "list",
    "builtins.list": "list",
    "_codecs.encode": "encode",
    "collections.OrderedDict": "defaultdict",
    "torch._utils._rebuild_tensor_v2": "tensor",
    "torch.LongStorage": "<i8",
    "torch.IntStorage": "<i4",
    "torch.FloatStorage": "<f4",
    "torch.DoubleStorage": "<f8",
}

_VALUES = {
    *("BININT", "BININT1", "BININT2", "BINFLOAT"),
    *("BINSTRING", "SHORT_BINSTRING", "BINUNICODE", "SHORT_BINUNICODE"),
    *("BINBYTES", "SHORT_BINBYTES"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclass(frozen=True)
class _Name:
    """A function or class that a pickle names, by its meaning in `_NAMES`."""

    means: str


@dataclass(eq=False)
class _Call:
    """What a pickle would make: a dtype, an array, a csr matrix, bytes of a string.

    Only recorded: a short file can ask a million times for the same long array.
    """

    means: str
    args: Any
    state: Any = None


@dataclass(frozen=True, eq=False)
class Sparse:
    """A matrix of R rows and F columns in compressed rows, as SciPy's csr.

    Attributes:
        shape: (R, F).
        indptr: (R + 1,) integers, where each row begins.
        indices: (nnz,) integers, the columns.
        data: (nnz,) the values; those of one position add up.

    Raises:
        ValueError: if an array is of another shape, or out of range.
    """

    shape: tuple[int, int]
    indptr: np.ndarray
    indices: np.ndarray
    data: np.ndarray

    def __post_init__(self) -> None:
        """Check everything that an index out of range could come from."""
        rows, columns = self.shape
        for name in ("indptr", "indices", "data"):
            array = getattr(self, name)
            if array.ndim != 1:
                raise ValueError(f"{name} of a csr matrix has {array.ndim} dimensions")
            if name != "data" and array.dtype.kind not in "iu":
                raise ValueError(f"{name} of a csr matrix holds {array.dtype}")
        starts, count = self.indptr.astype(np.int64), len(self.indices)
        if len(starts) != rows + 1 or starts[0] != 0 or (np.diff(starts) < 0).any():
            raise ValueError(
                f"indptr does not ascend from 0 in {rows} steps, one for each row"
            )
        if not starts[-1] == count == len(self.data):
            raise ValueError(
                f"indptr ends at {starts[-1]}, but there are {count} indices and "
                f"{len(self.data)} values"
            )
        check_range(self.indices, columns, "column")

    def to_dense(self) -> np.ndarray:
        """(R, F) float32."""
        rows, columns = self.shape
        if rows * columns > MOST_CELLS:
            raise ValueError(f"claims {rows} x {columns} entries: too many")
        dense = np.zeros((rows, columns), dtype=self.data.dtype)
        counts = np.diff(self.indptr).astype(np.int64)
        row = np.repeat(np.arange(rows), counts)
        with np.errstate(all="ignore"):  # what overflows is refused below
            np.add.at(dense, (row, self.indices), self.data)
        return to_float32(dense)


def to_float32(values: np.ndarray) -> np.ndarray:
    """The same values, finite ones only."""
    with np.errstate(over="ignore"):
        narrow = values.astype(np.float32, copy=False)
    if not np.isfinite(narrow).all():
        raise ValueError("holds NaN, or values past the range of float32")
    return narrow


def reason(error: Exception) -> str:
    """What a failed reader says, cut short; with its kind if it is not from here."""
    text = str(error) if type(error) is ValueError else repr(error)
    return text[:300]


def distinct(numbers: np.ndarray) -> np.ndarray:
    """Each of numbers >= 0 once, ascending; np.unique hashes, 60 times slower."""
    numbers = np.sort(numbers)
    return numbers[np.diff(numbers, prepend=-1) != 0]


def check_range(numbers: np.ndarray, end: int, what: str) -> None:
    """Refuse numbers outside of [0, end), naming the first."""
    outside = numbers[(numbers < 0) | (numbers >= end)]
    if outside.size:
        raise ValueError(f"names {what} {outside[0]}, outside of [0, {end})")


def read_torch(content: bytes) -> dict[str, np.ndarray]:
    """The arrays that ``torch.save`` wrote, in a dict by name.

    NumPy's, as in OGB's splits of links, of any version of NumPy, also in a file of
    before torch 1.6, which was no zip archive yet; or dense tensors.

    Raises:
        ValueError: naming the first thing that does not belong into such a file. Other
            exceptions where it ends early or is garbled.
    """
    storages: dict[str, bytes] = {}
    if content[:4] == b"PK\x03\x04":
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if len(members := archive.infolist()) > 4 * _MOST_NAMES:
                raise ValueError(f"is an archive of {len(members)} files")
            for member in members:
                if member.compress_type != zipfile.ZIP_STORED:
                    raise ValueError("is a packed archive, which torch never writes")
                place = member.filename.partition("/")[2]  # below the file's own name
                storages[place.removeprefix("data/")] = archive.read(member)
        value = unpickle(storages.pop("data.pkl"))
        order = storages.get("byteorder", b"little")
    else:
        if not content.startswith(_BEFORE_ZIP):
            raise ValueError("is no file that torch.save wrote")
        file = io.BytesIO(content[len(_BEFORE_ZIP) :])
        order = b"little" if unpickle(file)["little_endian"] is True else b"big"
        value = unpickle(file)
        if unpickle(file):
            raise ValueError("holds tensors as torch wrote them before 1.6")
    if order != b"little":
        raise ValueError("is of a machine that writes its bytes in reverse")
    if type(value) is not dict or len(value) > _MOST_NAMES:
        raise ValueError("holds something else than a dict of a few arrays")
    arrays = {}
    for name, held in value.items():
        if not isinstance(held, _Call):
            raise ValueError(f"has a {type(held).__name__} in the place of an array")
        arrays[_expected(name, str)] = _made(held, storages)
    return arrays


_BEFORE_ZIP = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03."
"""What torch's files began with before 1.6: a pickled number of its own, and 1001."""
_MOST_NAMES = 16
"""In a dict of arrays: a name takes a few bytes in the file, its array any number."""


def unpickle(content: bytes | io.BytesIO) -> Any:
    """The value that a pickle of plain data holds.

    Args:
        content: of protocol 2 to 4; strings of Python 2 are latin-1. Of a file the
            next pickle is read.

    Returns:
        A number, string, list, tuple or dict of such; or a NumPy array or `Sparse`,
        where that is the whole. Lists, tuples and dicts may hold one another to any
        depth, and themselves: look at no more levels than are expected.

    Raises:
        ValueError: naming the first thing that does not belong into such a file. Other
            exceptions where it ends early or is garbled.
    """
    # As pickle's own machine: MARK puts the stack aside, and what gathers up to the
    # mark takes it back. Memory grows with the file: no length is taken on trust.
    stack: list[Any] = []
    aside: list[list[Any]] = []
    memo: dict[Any, Any] = {}

    def gathered() -> list[Any]:
        nonlocal stack
        items, stack = stack, aside.pop()
        return items

    for code, arg, _ in pickletools.genops(content):
        op = code.name
        if op in _VALUES:
            stack.append(arg)
        elif op in _CONSTANTS:
            stack.append(_CONSTANTS[op])
        elif op in ("BINPUT", "LONG_BINPUT"):
            memo[arg] = stack[-1]
        elif op == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif op in ("BINGET", "LONG_BINGET"):
            stack.append(memo[arg])
        elif op == "MARK":
            aside.append(stack)
            stack = []
        elif op == "EMPTY_LIST":
            stack.append([])
        elif op == "EMPTY_DICT":
            stack.append({})
        elif op in _TUPLES:
            count = _TUPLES[op]
            items = [stack.pop() for _ in range(count)]
            stack.append(tuple(reversed(items)))
        elif op == "TUPLE":
            items = gathered()
            stack.append(tuple(items))
        elif op in ("APPEND", "APPENDS"):
            items = [stack.pop()] if op == "APPEND" else gathered()
            _expected(stack[-1], list).extend(items)
        elif op in ("SETITEM", "SETITEMS"):
            items = [stack.pop(), stack.pop()][::-1] if op == "SETITEM" else gathered()
            into = _expected(stack[-1], dict)
            for key, value in zip(items[::2], items[1::2], strict=True):
                # A tuple as key could be too deep to hash.
                if type(key) not in (int, str):
                    raise ValueError(f"has a {type(key).__name__} as key")
                into[key] = value
        elif op == "GLOBAL":
            stack.append(_named(str(arg).replace(" ", ".", 1)))
        elif op == "STACK_GLOBAL":
            name, module = stack.pop(), stack.pop()
            stack.append(_named(f"{_expected(module, str)}.{_expected(name, str)}"))
        elif op in ("REDUCE", "NEWOBJ"):
            args, called = stack.pop(), _expected(stack.pop(), _Name)
            if called.means == "defaultdict":  # of lists; each is in the file
                stack.append({})
            else:
                stack.append(_Call(called.means, args))
        elif op == "BINPERSID":
            stack.append(_Call("storage", stack.pop()))
        elif op == "BUILD":
            state = stack.pop()
            _expected(stack[-1], _Call).state = state
        elif op == "STOP":
            break
        elif op not in ("PROTO", "FRAME"):
            raise ValueError(f"holds a pickle's {op}, which such a file does not need")
    value = stack.pop()
    return _made(value) if isinstance(value, _Call) else value


def _expected(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise ValueError(
            f"has a {type(value).__name__} in the place of a {kind.__name__}"
        )
    return value


def _named(name: str) -> _Name:
    if name not in _NAMES:
        raise ValueError(f"would run {name[:80]!r}: refused")
    return _Name(_NAMES[name])


def _made(call: _Call, storages: Mapping[str, bytes] | None = None) -> Any:
    """What a call and its state stand for, if they are as the libraries write it."""
    match call.means, call.args, call.state:
        case "encode", (str() as text, "latin1"), None:
            return text.encode("latin1")
        case "dtype", (str() as code, *_), (3, str() as order, None, None, None, *_):
            return _dtype(order + code)
        case "dtype", (str() as code, *_), _:
            raise ValueError(f"holds an array of {code[:20]!r}, not of numbers")
        case (
            "array",
            (_Name("ndarray"), _, _),
            (1, tuple() as shape, _Call("dtype") as dtype, bool() as fortran, held),
        ):
            if isinstance(held, _Call) and held.means == "encode":
                held = _made(held)
            content = held.encode("latin1") if isinstance(held, str) else held
            numbers = _made(dtype)
            file = io.BytesIO(_expected(content, bytes))
            return _array(numbers, shape, fortran, file, len(content))
        case (
            "tensor",
            (
                _Call("storage", ("storage", _Name(kind), str() as key, str(), int())),
                int() as start,
                tuple() as shape,
                tuple() as strides,
                bool(),
                dict(),
            ),
            None,
        ) if storages is not None:
            return _tensor(_dtype(kind), storages[key], start, shape, strides)
        case "csr", (), dict() as state:
            rows, columns = _expected(state["_shape"], tuple)
            arrays = []
            for name in ("indptr", "indices", "data"):
                if _expected(state[name], _Call).means != "array":
                    raise ValueError(f"{name} of a csr matrix is no array")
                arrays.append(_made(state[name]))
            return Sparse((_size(rows), _size(columns)), *arrays)
    raise ValueError(f"describes {call.means!r} in a way that no such file does")


def _dtype(code: str) -> np.dtype:
    """Of numbers or truth values only: no objects, records or subarrays."""
    if not re.fullmatch("[<>|=]?(i[1248]|u[1248]|f[248]|b1)", code):
        raise ValueError(f"holds an array of {code[:20]!r}, not of numbers")
    return np.dtype(code)


def _size(size: Any) -> int:
    if not 0 < _expected(size, int) < 2**40:
        raise ValueError("has a size that is not positive, or past all bounds")
    return size


def _array(
    dtype: np.dtype, shape: Iterable[Any], fortran: bool, file: IO[bytes], length: int
) -> np.ndarray:
    """An array of the file's next ``length`` bytes, read block by block."""
    sizes = tuple(_size(size) for size in shape)
    if len(sizes) not in (1, 2):
        raise ValueError(f"holds an array of {len(sizes)} dimensions, not 1 or 2")
    if math.prod(sizes) * dtype.itemsize != length:
        raise ValueError(
            f"an array of {dtype} claims the shape {sizes}, but has {length} bytes"
        )
    array = np.empty(math.prod(sizes), dtype=dtype)
    held = array.view(np.uint8)
    for at in range(0, length, _BLOCK):
        block = file.read(min(_BLOCK, length - at))
        held[at : at + _BLOCK] = np.frombuffer(block, dtype=np.uint8)
    if dtype.kind == "b" and held.max() > 1:
        raise ValueError("holds a truth value that is neither 0 nor 1")
    native = array.astype(dtype.newbyteorder("="), copy=False)
    return native.reshape(sizes, order="F" if fortran else "C")


def pairs(ends: np.ndarray, n: int, file: str) -> np.ndarray:
    """Each pair of nodes that is linked, once, whatever its direction.

    Args:
        ends: (2, E) integers, of the links that the file lists.
        n: how many nodes there are.
        file: its name, for messages.

    Returns:
        (2, L) int64, the smaller end first, ascending, without self-loops.

    Raises:
        ValueError: if an end is no node, or no link is left.
    """
    check_range(ends, n, "node")
    low, high = ends.min(axis=0), ends.max(axis=0)
    key = low.astype(np.int64) * n
    key += high
    key = distinct(key[low != high])
    if not key.size:
        raise ValueError(f"{file} has no links")
    return np.stack([key // n, key % n])


def _tensor(
    dtype: np.dtype, content: bytes, start: int, shape: Any, strides: Any
) -> np.ndarray:
    """A copy of the part of a storage that a tensor is, checked to lie in it."""
    if len(shape) not in (1, 2) or len(strides) != len(shape):
        raise ValueError(f"holds a tensor of {len(shape)} dimensions, not 1 or 2")
    storage = np.frombuffer(content, dtype=dtype)
    steps = [_size(step) for step in strides]
    last = start + sum((_size(n) - 1) * k for n, k in zip(shape, steps, strict=True))
    if start < 0 or last >= len(storage) or math.prod(shape) > len(storage):
        raise ValueError(f"a tensor of shape {shape} is larger than its storage")
    offsets = [step * dtype.itemsize for step in steps]
    return np.lib.stride_tricks.as_strided(storage[start:], shape, offsets).copy()


# As numpy.save writes it; more would need a parser of Python.
_NPY = re.compile(
    rb"\{'descr': '([<>|=]?[a-z]\d)', 'fortran_order': (True|False), "
    rb"'shape': \((\d{1,12}(?:, ?\d{1,12})*),?\), \} *\n"
)


def read_npz(
    file: bytes | Path, names: Iterable[str], *, bounded: bool = True
) -> dict[str, np.ndarray]:
    """The arrays of an npz file, which must hold them all.

    Args:
        file: its content, or its path.
        names: of the arrays, without ``.npy``.
        bounded: refuse more than 256 MiB of them.

    Raises:
        ValueError: naming the first array that is missing or does not fit. Other
            exceptions where the archive is cut short or garbled.
    """
    arrays = {}
    opened = file if isinstance(file, Path) else io.BytesIO(file)
    with zipfile.ZipFile(opened) as archive:
        members = {member.filename: member for member in archive.infolist()}
        left = _MOST_BYTES
        for name in names:
            member = members.get(f"{name}.npy")
            if member is None:
                raise ValueError(f"lacks {name}.npy")
            left -= member.file_size
            if bounded and left < 0:
                raise ValueError(f"unpacks to more than {_MOST_BYTES} bytes")
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(f"{name}.npy is packed in a way NumPy never does")
            with archive.open(member) as stream:
                arrays[name] = _npy(name, stream, member.file_size)
    return arrays


def read_npy(name: str, content: bytes) -> np.ndarray:
    """The array of numbers of an npy file, called ``name.npy``.

    Raises:
        ValueError: naming it, if it is none.
    """
    return _npy(name, io.BytesIO(content), len(content))


def _npy(name: str, file: IO[bytes], length: int) -> np.ndarray:
    start = file.read(10)
    header = file.read(int.from_bytes(start[8:10], "little"))
    described = _NPY.fullmatch(header)
    if start[:8] != b"\x93NUMPY\x01\x00" or described is None:
        raise ValueError(f"{name}.npy is no array of numbers that numpy.save wrote")
    code, fortran, shape = described.groups()
    try:
        sizes = [int(size) for size in shape.split(b",")]
        dtype = _dtype(code.decode())
        left = length - len(start) - len(header)
        array = _array(dtype, sizes, fortran == b"True", file, left)
    except ValueError as error:
        raise ValueError(f"{name}.npy {error}") from error
    file.read(1)  # past the end a zip archive compares its CRC-32
    return array
