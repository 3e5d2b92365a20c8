"""Every file gebt writes or opens: written whole or not at all, read safely."""

import csv
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file that is, at every moment, the old one or the new one whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


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
    path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]
) -> None:
    """Write a safetensors file whose metadata carries ``header`` as JSON.

    Under one key: safetensors writes several in random order, and equal contents
    should give equal files.
    """
    # Clones: safetensors refuses tensors that share memory.
    layout = torch.contiguous_format
    owned = {
        name: t.detach().cpu().clone(memory_format=layout)
        for name, t in tensors.items()
    }
    signed = {**header, "sha256": _checksum(owned)}
    text = json.dumps(_finite(signed), allow_nan=False)
    write_bytes(path, save(owned, metadata={"gebt": text}))


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def read_tensors(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file of `write_tensors`; nothing is unpickled.

    Args:
        path: the file.
        kind: what its header must say it is, such as ``"ticket"``.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is truncated, corrupt, or of another kind.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no {kind} file at {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("gebt", "{}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        header = json.loads(text)
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} is not a readable {kind} file (truncated or corrupt: {error}). "
            "Write it again."
        ) from error
    checksum = header.pop("sha256", None)
    if header.get("kind") == kind and checksum != _checksum(tensors):
        raise ValueError(
            f"{path} is not a readable {kind} file (corrupt: its contents do not match "
            "its checksum). Write it again."
        )
    if header.get("kind") != kind:
        raise ValueError(
            f"{path} is a safetensors file, but not a gebt {kind}: its header says "
            f"kind = {header.get('kind')!r}."
        )
    return tensors, header


def new_folder(path: Path, *, force: bool = False) -> Path:
    """Create a folder for results, refusing one that holds something already.

    Args:
        path: the folder.
        force: allow one that exists; files of the same name are replaced.

    Raises:
        FileExistsError: if it exists and ``force`` was not given.
    """
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"{path} exists and is not a folder.")
    if path.exists() and any(path.iterdir()) and not force:
        raise FileExistsError(
            f"the folder {path} exists and is not empty. Choose another, or pass "
            "--force to replace the files of an earlier run in it."
        )
    path.mkdir(parents=True, exist_ok=True)
    return path
