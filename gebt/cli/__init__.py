"""The command line. The only room that prints."""

from gebt.cli.app import main

__all__ = ["main"]
