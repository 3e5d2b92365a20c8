"""Flags from a file: `--config` reads what `Call.save` writes, TOML.

A key is a flag without its dashes, a value of the flag's type; flags on the command
line win. What a file says is checked as what the command line says.
"""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from inspect import Parameter
from pathlib import Path
from reprlib import Repr
from types import NoneType, UnionType
from typing import Annotated, Any, get_args, get_origin

import typer

from gebt._checks import check_name

CONFIG = "run.toml"
"""What a run writes of its own flags."""
_NOT_SAVED = ("out", "force", "quiet")
"""Where results go and what is printed, not what they are."""
_WORDS = {bool: "true or false", int: "a whole number", float: "a number"}
_SHOWN = Repr()
_SHOWN.maxstring = _SHOWN.maxother = 60


@dataclass(frozen=True)
class Call:
    """What a command was called with.

    A command that takes one has the flag ``--config``, see `flags`.

    Attributes:
        command: its name.
        flags: every flag's value, its default where it was not given, by name; the
            arguments, too.
    """

    command: str
    flags: Mapping[str, Any]

    def save(self, path: Path, **resolved: Any) -> None:
        """Write a file by which `--config` calls the same again.

        Args:
            path: of the file.
            resolved: what flags that were not given have come to; None, and what is
                no flag, is left out.
        """
        from gebt.files import write_bytes  # imports torch: seconds

        lines = [
            f"{_key(name)} = {_toml(value)}\n"
            for name in self.flags
            if name not in _NOT_SAVED
            and (value := resolved.get(name, self.flags[name])) not in (None, [])
        ]
        write_bytes(path, "".join(lines).encode(errors="replace"))


def _key(name: str) -> str:
    return name.rstrip("_").replace("_", "-")  # from_ is --from


def _toml(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    # JSON's strings are TOML's, but for one character.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", r"\u007f")


def read_run(path: Path) -> dict[str, Any]:
    """The flags in a file of `gebt run`; `read_config`, and raises as that does."""
    from gebt.cli.app import run

    return read_config(
        path, {_key(name): kind for name, kind in run.__annotations__.items()}
    )


def config_flag(others: list[Parameter]) -> Parameter:
    """The flag ``--config`` of a command with these flags and arguments."""
    kinds = {_key(each.name): each.annotation for each in others}
    names = {_key(each.name): each.name for each in others}

    def use(context: typer.Context, path: Path | None) -> Path | None:
        if path is not None:
            found = read_config(path, kinds)
            context.default_map = {names[k]: v for k, v in found.items()}
        return path

    option = typer.Option(
        help="TOML file of flags, such as [bold]graph-ratio = 0.5[/]; those on the "
        "command line win. A run writes its own, run.toml.",
        metavar="FILE",
        show_default=False,
        is_eager=True,  # before the flags that it gives, --plugin among them
        callback=use,
    )
    annotation = Annotated[Path | None, option]
    return Parameter(
        "config", Parameter.KEYWORD_ONLY, default=None, annotation=annotation
    )


def read_config(path: Path, kinds: Mapping[str, Any]) -> dict[str, Any]:
    """The flags that a file gives.

    Args:
        path: of the file.
        kinds: the annotation of every flag that may be given, by name without dashes.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is not TOML, a key is no flag's name, or a value is of another
            type.
    """
    try:
        with path.open("rb") as file:
            found = tomllib.load(file)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a TOML file: {error}.") from error
    flags: dict[str, Any] = {}
    for key, value in found.items():
        try:
            name = check_name("flag", _key(key), kinds)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        if name in flags:
            raise ValueError(f"{path} gives {name} twice.")
        if (wanted := _refusal(kinds[name], value)) is not None:
            got = _SHOWN.repr(value)
            raise ValueError(f"{path}: {name} must be {wanted}, got {got}.")
        flags[name] = value
    return flags


def _refusal(kind: Any, value: Any) -> str | None:
    """What a value should have been, in words; None if it is that."""
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if get_origin(kind) is list:
        [each] = get_args(kind)
        fits = isinstance(value, list)
        fits = fits and all(_refusal(each, one) is None for one in value)
        return None if fits else f"a list, each {_WORDS.get(each, 'a text')}"
    if isinstance(kind, UnionType):
        [kind] = set(get_args(kind)) - {NoneType}
    if kind not in _WORDS:
        return None if isinstance(value, str) else "a text, in quotes"
    if kind is float and type(value) is int and abs(value) < 2**1023:
        return None
    return None if type(value) is kind else _WORDS[kind]
