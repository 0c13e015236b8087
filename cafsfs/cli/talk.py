"""How the command line speaks: errors with hints, logs, and running async commands."""

from __future__ import annotations

import faulthandler
import logging
import logging.handlers
import os
import queue
import resource
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import click
import trio

from cafsfs.config import LogOptions
from cafsfs.errors import CafsError, StoreError, UsageError
from cafsfs.store.pump import first_error

T = TypeVar("T")

_LINES = 10_000  # of log that may wait to be written
_DRAIN = 1.0  # seconds for them at the end
_DESCRIPTORS = 1 << 20  # each open blob has one, and each client
_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


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
    with _queued_log():
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


def start_logging(options: LogOptions) -> None:
    """Log to the file of the options, else to standard error."""
    handler: logging.Handler = logging.StreamHandler(sys.stderr)
    if options.log_file is not None:
        handler = _file_handler(options.log_file)
    handler.setFormatter(logging.Formatter(_FORMAT))
    logging.basicConfig(level=options.log_level.upper(), handlers=[handler])
    for name in (
        "httpx",
        "httpcore",
    ):  # which log whole URLs and heads: there may be secrets in them
        logging.getLogger(name).setLevel(logging.WARNING)


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
    _queue_handlers()


@contextmanager
def _queued_log() -> Iterator[None]:
    """Put a bounded queue and a thread between the loggers and their handlers.

    What comes while the queue is full is lost. At the end there is a second for what it holds.
    """
    root = logging.getLogger()
    before = root.handlers[:]
    listener = _queue_handlers()
    try:
        yield
    finally:
        flush_log()
        root.handlers[:] = before
        listener.enqueue_sentinel()


def _queue_handlers() -> logging.handlers.QueueListener:
    root = logging.getLogger()
    waiting: queue.Queue[logging.LogRecord] = queue.Queue(_LINES)
    listener = logging.handlers.QueueListener(waiting, *root.handlers)
    listener.start()  # a daemon thread: one that is stuck does not keep the process
    root.handlers[:] = [_LossyQueueHandler(waiting)]
    return listener


class _LossyQueueHandler(logging.handlers.QueueHandler):
    queue: queue.Queue[logging.LogRecord]

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # logging's name
        """The queue is full: nobody reads the log, so nobody misses the line."""


def flush_log() -> None:
    """Wait up to a second until the lines in the queue are written."""
    end = time.monotonic() + _DRAIN
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _LossyQueueHandler):
            while not handler.queue.empty() and time.monotonic() < end:
                time.sleep(0.002)
    time.sleep(0.002)  # for the line that has left the queue and is being written


def _file_handler(path: Path) -> logging.Handler:
    try:
        return logging.FileHandler(path)
    except OSError as error:
        raise UsageError(
            f"cannot log to `{path}`: {error.strerror}", hint="name another file with --log-file"
        ) from None
