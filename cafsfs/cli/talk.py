"""How the command line speaks: errors with hints, logs, and running async commands."""

from __future__ import annotations

import logging
import logging.handlers
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import click
import trio

from cafsfs.config import LogOptions
from cafsfs.errors import CafsError, UsageError
from cafsfs.store.pump import first_error

T = TypeVar("T")

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def run(main: Callable[[], Awaitable[T]]) -> T:
    """Run an async command; its error comes out bare, whatever nurseries it passed."""
    try:
        return trio.run(main)
    except BaseExceptionGroup as group:
        raise first_error(group) from None


def complain(error: CafsError) -> None:
    """One line that says what is wrong; after a blank line, one that says what to do."""
    click.echo(f"error: {error}", err=True)
    if error.hint is not None:
        click.echo(f"\nhint: {error.hint}", err=True)


def exit_code(error: CafsError) -> int:
    """2 for what the caller wrote, 1 for what happened."""
    return 2 if isinstance(error, UsageError) else 1


def start_logging(options: LogOptions) -> None:
    """Log to the file of the options, else to standard error."""
    handler: logging.Handler = logging.StreamHandler(sys.stderr)
    if options.log_file is not None:
        handler = _file_handler(options.log_file)
    handler.setFormatter(logging.Formatter(_FORMAT))
    logging.basicConfig(level=options.log_level.upper(), handlers=[handler])


def log_to_syslog() -> None:
    """From now on, to syslog where there is one: for a process that has left its terminal."""
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    handler: logging.Handler = logging.NullHandler()
    with suppress(OSError):  # no syslog here, or nobody who listens
        handler = logging.handlers.SysLogHandler("/dev/log")
    handler.setFormatter(logging.Formatter("cafsfs[%(process)d]: %(message)s"))
    root.addHandler(handler)


def _file_handler(path: Path) -> logging.Handler:
    try:
        return logging.FileHandler(path)
    except OSError as error:
        raise UsageError(
            f"cannot log to `{path}`: {error.strerror}", hint="name another file with --log-file"
        ) from None
