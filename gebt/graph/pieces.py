"""Files of what several ranks hold: a piece of each beside the first one's.

``ticket.safetensors`` is rank 0's, with all that every rank has; those of the others,
``ticket-1of4.safetensors`` and so on, hold their links alone. A random word in all of
them says that they belong together.
"""

import secrets
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gebt.files import Fields, Tensors, read_tensors, write_tensors
from gebt.world import World

_MOST = 2**16  # ranks


def piece_path(path: Path, rank: int, ranks: int) -> Path:
    """Where a rank's piece of a file is; rank 0's is the file itself."""
    return path.with_stem(f"{path.stem}-{rank}of{ranks}") if rank else path


def write_pieces(
    path: Path,
    world: World,
    own: Mapping[str, Tensor],
    common: Mapping[str, Tensor],
    header: Mapping[str, Any],
) -> None:
    """Write a file of what ranks hold; of a single process one file.

    All ranks write together. Rank 0's comes last, and is not there before the others
    are whole.

    Args:
        path: of rank 0's.
        world: who writes.
        own: tensors of which each rank has its own.
        common: tensors that are the same on every rank.
        header: see `write_tensors`, with the ``kind``.
    """
    if world.size == 1:
        write_tensors(path, {**own, **common}, header)
        return
    marks = {"pieces": world.size, "token": world.told(secrets.token_hex(16))}
    steps: list[Callable[[], None]]
    if world.rank == 0:
        whole = {**own, **common}, {**header, **marks}
        forget = partial(path.unlink, missing_ok=True)
        steps = [forget, _nothing, partial(write_tensors, path, *whole)]
    else:
        mine = piece_path(path, world.rank, world.size)
        kind = {"kind": f"piece of a {header['kind']}"} | marks
        steps = [_nothing, partial(write_tensors, mine, own, kind), _nothing]
    for step in steps:
        world.attempt(step)


def _nothing() -> None:
    pass


def read_pieces(path: Path, kind: str) -> tuple[list[Tensors], Fields]:
    """Read what `write_pieces` wrote: each rank's tensors, and the header.

    Raises:
        FileNotFoundError: if the file, or a piece of it, is not there.
        ValueError: if one is truncated, corrupt, or of something else.
    """
    tensors, header = read_tensors(path, kind)
    found = [tensors]
    if "pieces" not in header:
        return found, header
    ranks, token = header.whole("pieces", 1, _MOST), header.text("token")
    for rank in range(1, ranks):
        piece, marks = read_tensors(piece_path(path, rank, ranks), f"piece of a {kind}")
        if (marks.whole("pieces", 1, _MOST), marks.text("token")) != (ranks, token):
            raise ValueError(
                f"{piece_path(path, rank, ranks)} is a piece of another {kind} than "
                f"{path}: keep the files of one run together."
            )
        found.append(piece)
    return found, header


def scattered(pieces: list[Tensors], names: list[str]) -> Tensors:
    """One set of tensors: those named are put where each piece's ``links`` say.

    Raises:
        ValueError: if the pieces do not have every link once.
    """
    first = pieces[0]
    links = [piece.index("links", (None,), 2**62).long() for piece in pieces]
    every = torch.cat(links)
    if not torch.equal(every.sort().values, torch.arange(every.numel())):
        first.fail("links", "name, with those of the other pieces, every link once")
    for name in names:
        each = [piece.content.get(name) for piece in pieces]
        for piece, tensor, own in zip(pieces, each, links, strict=True):
            if tensor is None or tensor.shape != own.shape:
                piece.fail(name, "have one entry for each of the piece's links")
        joined = torch.cat([tensor for tensor in each if tensor is not None])
        first.content[name] = torch.empty_like(joined).index_copy_(0, every, joined)
    del first.content["links"]
    return first


def joined(pieces: list[Tensors]) -> Tensors:
    """One set of tensors: the rows of all pieces, one piece after the other.

    Of what only the first has, its own; row starts of a matrix go on where those of
    the piece before end.

    Raises:
        ValueError: if a piece lacks something.
    """
    first, *others = pieces
    for name in others[0].content if others else ():
        each = [first, *others]
        for piece in each:
            if name not in piece:
                piece.fail(name, "be there")
        tensors = [piece.content[name] for piece in each]
        if name.endswith("/crow"):
            ends, end = [tensors[0]], tensors[0][-1:]
            for tensor in tensors[1:]:
                ends.append(tensor[1:] + end)
                end = end + tensor[-1:]
            tensors = ends
        first.content[name] = torch.cat(tensors)
    return first
