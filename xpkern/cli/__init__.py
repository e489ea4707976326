"""The command line: thin; each command calls one function of the library."""

from xpkern.cli.command_line import main

__all__ = ["main"]
