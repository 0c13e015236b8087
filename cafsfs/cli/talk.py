"""How the command line speaks: errors with hints; and running async commands."""

from __future__ import annotations

import faulthandler
import os
import resource
import signal
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TypeVar

import click
import trio

from cafsfs.errors import CafsError, StoreError, UsageError
from cafsfs.report.logs import queued_log
from cafsfs.store.pump import first_error

T = TypeVar("T")

_DESCRIPTORS = 1 << 20  # each open blob has one, and each client


def run(main: Callable[[], Awaitable[T]]) -> T:
    """Run an async command; its error comes out bare, whatever nurseries it passed.

    SIGTERM ends it as Ctrl-C does, so that it clears up; unless it listens to them itself. Who
    ignores SIGINT keeps SIGTERM's own way.
    """
    interruptible = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    try:
        return trio.run(_until_interrupted, main) if interruptible else trio.run(main)
    except BaseExceptionGroup as group:
        raise first_error(group) from None


async def _until_interrupted(main: Callable[[], Awaitable[T]]) -> T:
    """By cancellation: a KeyboardInterrupt would strike between any two lines."""
    interrupted = False

    async def listen(*, task_status: trio.TaskStatus[None]) -> None:
        nonlocal interrupted
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            task_status.started()
            async for _ in signals:
                interrupted = True
                nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        await nursery.start(listen)
        result = await main()
        nursery.cancel_scope.cancel()
    if interrupted:
        raise KeyboardInterrupt
    return result


def run_daemon(main: Callable[[], Awaitable[None]]) -> None:
    """Run what serves many at once: with as many descriptors as it may have.

    Its log is written in a thread: whoever reads it may freeze, and the event loop must not. What
    ends it by SIGABRT, as a watchdog does, or by a crash in C, leaves in the log where it was.
    """
    if sys.stderr is not None:
        faulthandler.enable()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, _DESCRIPTORS), hard))
    with queued_log():
        run(main)


def emit(data: str | bytes) -> None:
    """Write to standard output, names in the bytes that they have.

    Raises BrokenPipeError if nobody reads it, StoreError if it cannot be written. Past Python's
    buffer, which would fail once more when the process ends.
    """
    if sys.stdout is None:  # its number may be another file's
        raise StoreError("cannot write to standard output: it is closed")
    left = memoryview(os.fsencode(data) if isinstance(data, str) else data)
    try:
        while left:
            left = left[os.write(sys.stdout.fileno(), left) :]
    except BrokenPipeError:
        raise
    except OSError as error:
        raise StoreError(f"cannot write to standard output: {error.strerror}") from error


def complain(error: CafsError) -> None:
    """One line that says what is wrong; after a blank line, one that says what to do."""
    click.echo(f"error: {error}", err=True)
    if error.hint is not None:
        click.echo(f"\nhint: {error.hint}", err=True)


def readable(size: int) -> str:
    """A size as a human reads it, in powers of 1024: 512, 1.2G."""
    value = float(size)
    for unit in ("", "K", "M", "G"):
        if value < 1023.95:  # 1024.0 would be as long
            return f"{value:.1f}{unit}" if unit else str(size)
        value /= 1024
    return f"{value:.1f}T"


def moment(seconds: float) -> str:
    """A time since 1970 as ISO 8601 in UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def blobs(count: int, size: int | None = None) -> str:
    """So many blobs, of so many bytes."""
    noun = "blob" if count == 1 else "blobs"
    return f"{count} {noun}" + (f" ({readable(size)})" if size else "")


def in_our_words(error: click.ClickException) -> CafsError:
    """What click complains about, as one line and a hint."""
    said = error.format_message().replace("'", "`")
    message, _, more = said.partition(". ")
    message = message[:1].lower() + message[1:].rstrip(".")
    if more:  # click's guesses at what was meant
        more = more.strip("()")
        return UsageError(message, hint=more[:1].lower() + more[1:])
    context = error.ctx if isinstance(error, click.UsageError) else None
    if context is None:
        return UsageError(message, hint="`cafsfs COMMAND --help` tells what it takes")
    usage = " ".join(context.get_usage().split()).replace("Usage:", "usage:")
    return UsageError(message, hint=f"{usage}; `{context.command_path} --help` tells more")


def exit_code(error: CafsError) -> int:
    """2 for what the caller wrote, 1 for what happened."""
    return 2 if isinstance(error, UsageError) else 1
