"""Archives from the network: resumed, checked, and unpacked whole or not at all."""

import http.client
import logging
import shutil
import stat
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_log = logging.getLogger("gebt")
_BLOCK = 2**20
_WAIT = 60.0
"""Seconds without a byte after which a server counts as silent."""
_EVERY = 5.0
"""Seconds between two lines that say how far a download is."""
_RATIO = 20
"""An archive that unpacks to more times its size is refused: OGB's hold what is packed
already, or floats."""


def fetch_archive(url: str, root: Path, top: str, folder: Path) -> None:
    """Make a folder of a zip's top one, downloading it unless it is in the root.

    Args:
        url: of the zip.
        root: where the zip is put, or was put by hand; one that was downloaded is
            deleted in the end. Its first part, ``NAME.zip.part``, stays where a
            download breaks off, and the next goes on from there.
        top: the folder in the zip that is unpacked, or "" for all of it.
        folder: what it becomes; must not be there.

    Raises:
        OSError: if it cannot be downloaded, or there is no room.
        ValueError: if the archive is damaged, or would write elsewhere.
    """
    archive = root / url.rpartition("/")[2]
    by_hand = archive.is_file()
    if not by_hand:
        root.mkdir(parents=True, exist_ok=True)
        part = archive.with_name(f"{archive.name}.part")
        _download(url, part)
        part.replace(archive)
    try:
        _unpack(archive, top, folder)
    except _DAMAGED as error:
        if not by_hand:
            archive.unlink()
        deleted = "Put another there." if by_hand else "It was deleted: try again."
        raise ValueError(
            f"{archive} is damaged, or not what was published ({error}). {deleted}"
        ) from error
    if not by_hand:
        archive.unlink()


_DAMAGED = (ValueError, EOFError, NotImplementedError, zlib.error, zipfile.BadZipFile)


def _download(url: str, part: Path) -> None:
    """Append to a file what of the address it lacks."""
    while True:
        before = have = part.stat().st_size if part.exists() else 0
        ask = urllib.request.Request(url, headers={"Range": f"bytes={have}-"})
        try:
            with urllib.request.urlopen(ask, timeout=_WAIT) as answer:
                if answer.status != 206:  # it sends all, from the beginning
                    have = 0
                elif f"bytes {have}-" not in answer.headers.get("Content-Range", ""):
                    raise ConnectionError("the server sends another part")
                whole = _receive(answer, part, have)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code != 416 or not have:
                raise
            if error.headers.get("Content-Range") == f"bytes */{have}":
                return  # nothing is lacking
            part.unlink()  # longer than what is there: of something else
            continue
        if whole:
            return
        if part.stat().st_size <= before:
            raise ConnectionError(f"the server stops after {before} bytes")


def _receive(answer: http.client.HTTPResponse, part: Path, have: int) -> bool:
    """Write what comes; False where the connection broke off."""
    length = answer.headers["Content-Length"]
    total = have + int(length) if length else None
    free = shutil.disk_usage(part.parent).free
    if total and total - have > free:
        raise OSError(f"{total - have} bytes are to come, {free} are free")
    said, started, began = 0.0, time.monotonic(), have
    with part.open("r+b" if have else "wb") as file:
        file.seek(have)
        while True:
            try:
                block = answer.read(_BLOCK)
            except (OSError, http.client.HTTPException):
                return False  # what came is kept
            if not block:
                break
            file.write(block)
            have += len(block)
            now = time.monotonic()
            if not said or now - said > _EVERY or have == total:
                said = now
                _say(part, have, total, (have - began) / max(1e-9, now - started))
    return total is None or have == total


def _say(part: Path, have: int, total: int | None, speed: float) -> None:
    name, of = part.name.removesuffix(".part"), ""
    if total:
        of = f" of {total / 2**20:.0f}"
    rate = f"{speed / 2**20:.1f} MiB/s"
    left = f", {(total - have) / speed:.0f} s left" if total and have < total else ""
    _log.info("downloading %s: %.0f%s MiB, %s%s", name, have / 2**20, of, rate, left)


def _unpack(archive: Path, top: str, folder: Path) -> None:
    """All of a zip's top folder, by way of a folder beside that is then renamed."""
    with (
        zipfile.ZipFile(archive) as packed,
        tempfile.TemporaryDirectory(dir=folder.parent, prefix=".unpacking-") as beside,
    ):
        size, free = 0, shutil.disk_usage(beside).free
        members = [*_members(packed, top)]
        size = sum(member.file_size for member, _ in members)
        if size > _RATIO * archive.stat().st_size:
            raise ValueError(f"unpacks to {size} bytes, which is too much to be true")
        if size > free:
            raise OSError(f"{archive.name} unpacks to {size} bytes, {free} are free")
        whole = Path(beside) / "whole"
        for member, place in members:
            (whole / place).parent.mkdir(parents=True, exist_ok=True)
            # Reading to a member's end compares its CRC-32.
            with packed.open(member) as source, (whole / place).open("xb") as target:
                shutil.copyfileobj(source, target, _BLOCK)
        if not members:
            raise ValueError(f"has no folder {top}")
        whole.rename(folder)


def _members(
    packed: zipfile.ZipFile, top: str
) -> Iterator[tuple[zipfile.ZipInfo, PurePosixPath]]:
    """The files below the top folder and their places in it, every name checked."""
    seen = set()
    for member in packed.infolist():
        path = PurePosixPath(member.filename)
        outside = path.is_absolute() or ".." in path.parts
        if outside or "\\" in member.filename or ":" in member.filename:
            raise ValueError(f"would write to {member.filename[:80]!r}")
        kind = stat.S_IFMT(member.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise ValueError(f"{member.filename[:80]!r} is no plain file")
        if member.flag_bits & 1 or path in seen:
            raise ValueError(f"{member.filename[:80]!r} is encrypted, or there twice")
        seen.add(path)
        if not member.is_dir() and path.is_relative_to(top) and path.parts != (top,):
            yield member, path.relative_to(top)
