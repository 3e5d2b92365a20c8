"""Every file gebt writes or opens: written whole or not at all, read safely."""

import csv
import hashlib
import io
import json
import os
import reprlib
import secrets
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file that is, at every moment, the old one or the new one whole.

    On disk too, where the system allows: after a power cut it is one of the two.
    """
    with _replacing(path) as temporary, temporary.open("wb") as file:
        file.write(content)


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A new empty file to write, which then takes the place of another at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unique = secrets.token_hex(8)
    temporary = path.with_name(f".{path.name}.{unique}")
    try:
        with temporary.open("xb") as file:
            mode = os.fstat(file.fileno()).st_mode
        yield temporary
        temporary.chmod(mode)  # safetensors makes a file that nobody else may read
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        # Ctrl-C may come when it has just been renamed.
        temporary.unlink(missing_ok=True)
        raise
    with suppress(OSError):  # Windows opens no folders
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, content: Any) -> None:
    """Write JSON, indented; numbers that are not finite become null."""
    text = json.dumps(_finite(content), indent=2, allow_nan=False)
    write_bytes(path, f"{text}\n".encode())


def _finite(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    if isinstance(content, float) and not abs(content) < float("inf"):
        return None
    return content


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows that all have the first row's columns."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(path, text.getvalue().encode())


def write_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    header: Mapping[str, Any],
    *,
    checksum: bool = True,
) -> None:
    """Write a safetensors file whose metadata carries ``header`` as JSON.

    Under one key: safetensors writes several in random order, and equal contents
    should give equal files. Without ``checksum`` `read_tensors` must be told so, too.
    """
    owned, seen = {}, set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        place = tensor.untyped_storage().data_ptr()
        # safetensors refuses tensors that share memory.
        owned[name] = tensor.clone() if place in seen else tensor
        seen.add(place)
    signed = {**header, "sha256": hash_of(owned)} if checksum else header
    text = json.dumps(_finite(signed), allow_nan=False)
    with _replacing(path) as temporary:
        try:
            save_file(owned, temporary, metadata={"gebt": text})
        except SafetensorError as error:  # a full disk, say
            raise OSError(f"{path} cannot be written: {error}") from error


def hash_of(tensors: Mapping[str, Tensor]) -> str:
    """A hash of tensors and their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        if tensor.numel():  # one of none may have strides that `view` refuses
            digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_tensors(
    path: Path, kind: str, *, checksum: bool = True
) -> tuple["Tensors", "Fields"]:
    """Read a file of `write_tensors`; nothing is unpickled.

    The tensors lie over the file's memory map, copied where they are changed.

    Args:
        path: the file.
        kind: what its header must say it is, such as ``"ticket"``.
        checksum: False reads no contents, which takes no time for any size.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is truncated, corrupt, or of another kind.
    """
    whole = f"{path} is not a whole {kind}"
    tensors = {}
    with _opened(path, kind) as file:
        header = _header(file, whole)
        for name in file.keys():  # noqa: SIM118
            if (dtype := file.get_slice(name).get_dtype()) not in _DTYPES:
                raise ValueError(
                    f"{whole}: the tensor {shown(name)} is of {dtype}, which gebt "
                    "does not write. Write it again."
                )
            tensors[name] = file.get_tensor(name)
    if header.content.get("kind") != kind:
        raise ValueError(
            f"{path} is a safetensors file, but not a gebt {kind}: its header says "
            f"kind = {shown(header.content.get('kind'))}."
        )
    if checksum and header.content.pop("sha256", None) != hash_of(tensors):
        raise ValueError(
            f"{path} is not a readable {kind} file (corrupt: its contents do not match "
            "its checksum). Write it again."
        )
    return Tensors(tensors, whole), header


def kind_of(path: Path) -> str:
    """What a file of `write_tensors` says that it is, by its header alone.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is truncated, corrupt, or not gebt's.
    """
    with _opened(path, "safetensors") as file:
        header = _header(file, f"{path} is not a whole file of gebt")
    return header.text("kind")


@contextmanager
def _opened(path: Path, kind: str) -> Iterator[Any]:
    """A safetensors file."""
    if not path.is_file():
        inside = ", ".join(sorted(file.name for file in path.glob("*.safetensors")))
        raise FileNotFoundError(
            f"there is no {kind} file at {path}"
            + (f", which is a folder. Name a file in it: {inside}." if inside else ".")
        )
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{path} is not a readable {kind} file (truncated or corrupt: {reason}). "
            "Write it again."
        ) from error


def _header(file: Any, whole: str) -> "Fields":
    return Fields(parsed((file.metadata() or {}).get("gebt", "{}"), whole), whole)


_DTYPES = (
    *("BOOL", "U8", "U16", "U32", "U64", "I8", "I16", "I32", "I64"),
    *("F8_E4M3", "F8_E5M2", "F16", "BF16", "F32", "F64", "C64"),
)
"""Those of safetensors that torch has."""
_FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Tensors:
    """The tensors of a file, each asked for as what it must be.

    Anything else is a ValueError that names the file, the tensor, and what it is.

    Args:
        content: the tensors by name.
        file: the sentence's subject, such as ``"a.safetensors is not a whole ticket"``.

    Attributes:
        content: the tensors by name.
    """

    def __init__(self, content: dict[str, Tensor], file: str):
        self.content = content
        self._file = file

    def __contains__(self, name: str) -> bool:
        return name in self.content

    def group(self, prefix: str) -> dict[str, Tensor]:
        """The tensors named ``prefix/...``, by what follows."""
        start = f"{prefix}/"
        found = self.content.items()
        return {n.removeprefix(start): t for n, t in found if n.startswith(start)}

    def mask(self, name: str, shape: Sequence[int | None]) -> Tensor:
        """Booleans of a shape, in which None is any size."""
        tensor = self._get(name)
        self._check(name, tensor.dtype == torch.bool, "boolean", shape)
        return tensor

    def numbers(self, name: str, shape: Sequence[int | None]) -> Tensor:
        """Finite floating numbers of a shape, in which None is any size."""
        tensor = self._get(name)
        self._check(name, tensor.dtype in _FLOATING, "floating", shape)
        if not is_finite(tensor):
            self.fail(name, "be finite, but holds NaN or infinite numbers")
        return tensor

    def index(
        self, name: str, shape: Sequence[int | None], size: int, *, least: int = 0
    ) -> Tensor:
        """Whole numbers in [least, size) of a shape, in which None is any size."""
        tensor = self._get(name)
        whole = tensor.dtype in (torch.int32, torch.int64)
        self._check(name, whole, "int32 or int64", shape)
        if tensor.numel():
            low, high = (int(end) for end in tensor.aminmax())
            if low < least or high >= size:
                self.fail(name, f"lie in [{least}, {size}), but has {low} to {high}")
        return tensor

    def fail(self, name: str, rule: str) -> NoReturn:
        """Raise the ValueError that a tensor ``must {rule}``."""
        raise ValueError(
            f"{self._file}: the tensor {shown(name)} must {rule}. Write it again."
        )

    def _get(self, name: str) -> Tensor:
        if name not in self.content:
            raise ValueError(f"{self._file}: it lacks {shown(name)}. Write it again.")
        return self.content[name]

    def _check(
        self, name: str, is_of: bool, what: str, shape: Sequence[int | None]
    ) -> None:
        tensor = self.content[name]
        fits = tensor.dim() == len(shape) and all(
            size is None or size == found
            for size, found in zip(shape, tensor.shape, strict=True)
        )
        if not (is_of and fits):
            sizes = ", ".join("any" if size is None else str(size) for size in shape)
            got = f"{tensor.dtype} {tuple(tensor.shape)}"
            self.fail(name, f"be {what} of shape ({sizes}), is {got}")


def is_finite(tensor: Tensor) -> bool:
    """Whether none of the numbers is NaN or infinite; takes no memory."""
    # The extremes of numbers among which one is NaN are NaN.
    return not tensor.numel() or all(end.isfinite() for end in tensor.aminmax())


class Fields:
    """A JSON object out of a file, read field by field with checks.

    A field is asked for as what it must be, and comes back as that. Anything else, and
    one that is missing, is a ValueError that names the file, the field's place in it
    and the value seen:

        metrics = read_json(folder / "metrics.json", "record of a run")
        for run in metrics.each("runs"):
            seed = run.whole("seed", 0)
            test = run.fields("dense").number("test", 0, 100, null=True)

    gives ``out/metrics.json is not a whole record of a run: `runs[2].dense.test` must
    be a finite number at least 0 and at most 100 or null, got 'high'. Write it again.``

    Args:
        content: what was read; refused unless it is an object.
        file: the sentence's subject, such as ``"a.json is not a whole ticket"``.
        place: where in the file this object is; empty for all of it.

    Attributes:
        content: the object itself, for what is kept as it is.
    """

    def __init__(self, content: Any, file: str, place: str = ""):
        self._file = file
        self._place = place
        if not isinstance(content, dict):
            what = f"`{place}`" if place else "its content"
            self._refuse(f"{what} must be an object, got {shown(content)}")
        self.content: dict[str, Any] = content

    def __contains__(self, name: str) -> bool:
        """Whether the field is there and not null."""
        return self.content.get(name) is not None

    def __iter__(self) -> Iterator[str]:
        """The names of the fields."""
        return iter(self.content)

    def text(self, name: str, choices: Collection[str] | None = None) -> str:
        """A string, one of the choices if there are any."""
        value = self._get(name)
        if not isinstance(value, str):
            self.fail(name, "text")
        if choices is not None and value not in choices:
            self.fail(name, f"one of {', '.join(choices)}")
        return value

    def flag(self, name: str) -> bool:
        """True or false."""
        value = self._get(name)
        if not isinstance(value, bool):
            self.fail(name, "true or false")
        return value

    def whole(self, name: str, low: int, high: int = 2**63 - 1) -> int:
        """A whole number from ``low`` to ``high``."""
        value = self._get(name)
        if isinstance(value, bool) or not isinstance(value, int):
            self.fail(name, "a whole number")
        if not low <= value <= high:
            self.fail(name, f"a whole number from {low} to {high}")
        return value

    def number(
        self,
        name: str,
        low: float = -sys.float_info.max,
        high: float = sys.float_info.max,
        *,
        null: bool = False,
    ) -> float:
        """A finite number from ``low`` to ``high``.

        Args:
            name: of the field.
            low: the least.
            high: the largest.
            null: read null as NaN, which `write_json` writes as null.
        """
        value = self._get(name)
        if value is None and null:
            return float("nan")
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not low <= value <= high:
            ends = [f"at least {low:g}"] * (low > -sys.float_info.max)
            ends += [f"at most {high:g}"] * (high < sys.float_info.max)
            rule = " ".join(["a finite number", " and ".join(ends)]).strip()
            self.fail(name, f"{rule} or null" if null else rule)
        return float(value)

    def fields(self, name: str) -> "Fields":
        """An object."""
        return Fields(self._get(name), self._file, self._at(name))

    def each(self, name: str) -> list["Fields"]:
        """A list of objects."""
        return [
            Fields(value, self._file, f"{self._at(name)}[{i}]")
            for i, value in enumerate(self._list(name, "a list of objects"))
        ]

    def wholes(self, name: str, low: int, high: int = 2**63 - 1) -> list[int]:
        """A list of whole numbers from ``low`` to ``high``."""
        values = self._list(name, "a list of whole numbers")
        items = Fields(
            {f"{name}[{i}]": value for i, value in enumerate(values)},
            self._file,
            self._place,
        )
        return [items.whole(item, low, high) for item in items]

    def fail(self, name: str, rule: str) -> NoReturn:
        """Raise the ValueError that a field ``must be {rule}``."""
        value = shown(self.content.get(name))
        self._refuse(f"`{self._at(name)}` must be {rule}, got {value}")

    def _list(self, name: str, rule: str) -> list[Any]:
        value = self._get(name)
        if not isinstance(value, list):
            self.fail(name, rule)
        return value

    def _get(self, name: str) -> Any:
        if name not in self.content:
            inside = f" in `{self._place}`" if self._place else ""
            self._refuse(f"it lacks {name!r}{inside}")
        return self.content[name]

    def _at(self, name: str) -> str:
        return shown(f"{self._place}.{name}".lstrip("."))[1:-1]

    def _refuse(self, reason: str) -> NoReturn:
        raise ValueError(f"{self._file}: {reason}. Write it again.")


def shown(value: Any) -> str:
    """A value out of a file for an error's text: cut short, in one line."""
    return _SHORT.repr(value)


_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 2, 80, 80


def read_json(path: Path, kind: str) -> Fields:
    """Read a JSON file that holds one object, as `write_json` writes them.

    Args:
        path: the file.
        kind: what it is, for errors, such as ``"record of a run"``.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not strict JSON in UTF-8, or not one object.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no {kind} at {path}.")
    file = f"{path} is not a whole {kind}"
    return Fields(parsed(path.read_bytes(), file), file)


def parsed(text: str | bytes, file: str) -> Any:
    """Strict JSON: no NaN, and no name twice in an object.

    Args:
        text: UTF-8.
        file: the sentence's subject, as of `Fields`.
    """
    try:
        return json.loads(
            text if isinstance(text, str) else text.decode(),
            parse_constant=_no_constant,
            object_pairs_hook=_no_name_twice,
        )
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{file}: it is no JSON that gebt writes ({shown(reason)[1:-1]}). "
            "Write it again."
        ) from error


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


def _no_name_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it names {shown(twice)} twice")
    return content
