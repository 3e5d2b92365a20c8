"""The command line. The only room that prints."""

from gebt.cli.entry import main

__all__ = ["main"]
