"""The command line from its start to its exit code."""

import logging
import os
import re
import sys
import warnings
from contextlib import suppress
from typing import Any, NoReturn

import typer

from gebt.cli import ranks
from gebt.cli.app import app
from gebt.cli.common import Interrupted
from gebt.cli.flags import ARGUMENTS
from gebt.cli.ranks import RANK


def main() -> None:
    """Run the command line: every error is one line and exit code 2."""
    # Large tensors on huge pages, where Linux allows it: a fresh 87 MB tensor takes
    # 60 ms of page faults without. torch reads this at its first allocation.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    ranks.mute()
    warnings.showwarning = _show_warning
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("gebt: %(message)s"))
    logging.getLogger("gebt").handlers = [handler]  # not one more at every call
    logging.getLogger("gebt").setLevel(logging.ERROR if RANK else logging.INFO)
    try:
        _run()
    except ranks.Terminated:  # perhaps while another error was told
        if words := ranks.blame():
            _fail(words, alone=False)
        _fail("terminated.", 143)


def _run() -> NoReturn:
    """Run the command, and exit."""
    # typer vendors click in its newer releases, so its classes are found this way.
    usage_error: Any = typer.BadParameter.__mro__[2]
    try:
        code = app(standalone_mode=False, prog_name="gebt")
        ranks.finish()
        if sys.stdout:  # here a full device is told of; at exit it would be ignored
            sys.stdout.flush()
    except Interrupted as error:
        _fail(str(error), 130)
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted.", 130)
    except BrokenPipeError:  # whoever read the output has seen enough
        _leave(1)
    except (ValueError, OSError) as error:
        text = re.sub(r"^\[Errno \d+\] ", "", str(error))
        _fail(in_flags(text))
    except (MemoryError, RuntimeError) as error:
        if words := ranks.blame():
            _fail(words, alone=False)
        ranks.leave(str(error), alone=True)
        if not (isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(str(error))):
            raise
        wanted = re.search(r"allocate ([\d.]+ \w+)", str(error))
        size = f": {wanted[1]} at once were asked for" if wanted else ""
        _fail(f"not enough memory{size}. Take a smaller graph or a narrower model.")
    except usage_error as error:
        message = getattr(error, "format_message", error.__str__)()
        if not message:  # the help was asked for and printed
            _leave(getattr(error, "exit_code", 2))
        _fail(f"{message.rstrip('.')}. See `gebt --help`.")
    if code == 130:  # typer's own answer to Ctrl-C
        _fail("interrupted.", 130)
    _leave(code if isinstance(code, int) else 0)


_OUT_OF_MEMORY = re.compile("allocate memory|out of memory|size calculation overflowed")
_ARGUMENT = re.compile(f'`({"|".join(ARGUMENTS)})(?:="?([^`"]+)"?)?`')


def in_flags(text: str) -> str:
    """An error's text with Python's arguments, and their values, as flags."""

    def flag(found: re.Match[str]) -> str:
        value = f" {found[2]}" if found[2] else ""
        return f"`--{found[1].replace('_', '-')}{value}`"

    return _ARGUMENT.sub(flag, text)


def _fail(message: str, code: int = 2, *, alone: bool = True) -> NoReturn:
    """Exit, with one line; of several ranks one says it."""
    message = " ".join(message.split())
    if ranks.leave(message, alone=alone):
        with suppress(OSError):
            print(f"gebt: {message}", file=sys.stderr)
    _leave(code)


def _leave(code: int) -> NoReturn:
    """Exit, without a word about output that nobody takes."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except OSError:  # Python would try again, and complain
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    if ranks.watch is not None:
        os._exit(code)  # torch's threads may wait for a rank that is lost
    sys.exit(code)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    if RANK:
        return
    print(f"gebt: warning: {' '.join(str(message).split())}", file=sys.stderr)
