"""The command line: one file a command, and every sentence that a user sees."""

from cafsfs.cli.app import main

__all__ = ["main"]
