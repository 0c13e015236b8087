"""Where the lines of the log go, and how they look there.

A daemon's log is written in a thread, behind a bounded queue: whoever reads it may freeze, and the
event loop must not. That thread also says identical warnings once only (``repeats.py``), and turns
files over. A record may have ``fields`` (by ``extra={"fields": {…}}``), which the journal and JSON
keep apart from its message.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime

from cafsfs.config.options import LogOptions
from cafsfs.errors import UsageError
from cafsfs.report.repeats import Repeats

_LINES = 10_000  # of log that may wait to be written
_DRAIN = 1.0  # seconds for them at the end
_LOOK = 1.0  # seconds between two looks for repeats that are to be told, while there are any
_KEPT = 4  # files beside the one that is written
_HUMAN = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class JsonFormatter(logging.Formatter):
    """A record as an object of JSON in one line; ``about`` are fields that each has."""

    def __init__(self, about: Mapping[str, object]) -> None:
        super().__init__()
        self._about = dict(about)

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC)
        told = {
            "time": moment.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": super().format(record),
            "pid": record.process,
            **self._about,
            **getattr(record, "fields", {}),
        }
        return json.dumps(told, default=str)


def start_logging(options: LogOptions, about: Mapping[str, object] | None = None) -> None:
    """Log to the file of the options, else to standard error, or the journal if that is behind it.

    ``about`` are fields of each line, where there are fields. Raises UsageError for a file that
    cannot be written.
    """
    logging.basicConfig(level=options.log_level.upper(), handlers=[_handler(options, about or {})])
    for name in ("httpx", "httpcore"):  # which log whole URLs and heads: secrets may be in them
        logging.getLogger(name).setLevel(logging.WARNING)


def _handler(options: LogOptions, about: Mapping[str, object]) -> logging.Handler:
    formatter = logging.Formatter(_HUMAN)
    if options.log_format == "json":
        formatter = JsonFormatter(about)
    handler: logging.Handler = logging.StreamHandler(sys.stderr)
    if options.log_file is not None:
        handler = _file_handler(options)
    elif options.log_format == "auto" and sys.stderr is not None:
        from cafsfs.report import journal  # noqa: PLC0415  # its library takes 5 ms

        if journal.is_behind(sys.stderr.fileno()) and journal.is_there():
            return journal.JournalHandler(about)
    handler.setFormatter(formatter)
    return handler


def _file_handler(options: LogOptions) -> logging.Handler:
    assert options.log_file is not None
    try:
        return logging.handlers.RotatingFileHandler(
            options.log_file, maxBytes=options.log_size, backupCount=_KEPT
        )
    except OSError as error:
        raise UsageError(
            f"cannot log to `{options.log_file}`: {error.strerror}",
            hint="name another file with --log-file",
        ) from None


def leave_terminal(about: Mapping[str, object] | None = None) -> None:
    """From now on to the journal, else to syslog, where there is one: standard error is gone."""
    from cafsfs.report import journal  # noqa: PLC0415  # its library takes 5 ms

    root = logging.getLogger()
    handler: logging.Handler = logging.NullHandler()
    if journal.is_there():
        handler = journal.JournalHandler(about or {})
    else:
        with suppress(OSError):  # no syslog here, or nobody who listens
            handler = logging.handlers.SysLogHandler("/dev/log")
        handler.setFormatter(logging.Formatter("cafsfs[%(process)d]: %(message)s"))
    for old in root.handlers[:]:
        if isinstance(old, _LossyQueueHandler):
            root.removeHandler(old)
    _queue(handler)


def set_level(level: str) -> None:
    """From now on log what has this level, or a higher one."""
    logging.getLogger().setLevel(level.upper())


# --- the queue, and the thread behind it


@contextmanager
def queued_log() -> Iterator[None]:
    """Put a bounded queue and a thread between the loggers and their handlers.

    What comes while the queue is full is lost. At the end there is a second for what it holds.
    """
    root = logging.getLogger()
    before = root.handlers[:]
    root.handlers[:] = []
    listener = _queue(*before)
    try:
        yield
    finally:
        flush_log()
        root.handlers[:] = before
        listener.enqueue_sentinel()


def flush_log() -> None:
    """Wait up to a second until the lines in the queue are written, and repeats told."""
    _have_done(lambda listener: listener.tell_repeats(end=True))


def reopen_files() -> None:
    """Write on to files of the same names: somebody may have moved those that are open."""
    _have_done(lambda listener: listener.reopen(), patience=0)


def _have_done(what: Callable[[_Listener], object], *, patience: float = _DRAIN) -> None:
    """Have the thread do something behind what is in the queue, and wait for it so long."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _LossyQueueHandler):
            errand = _Errand(what)
            with suppress(queue.Full):
                handler.queue.put(errand, timeout=patience or None, block=patience > 0)
                errand.done.wait(patience)


def _queue(*handlers: logging.Handler) -> _Listener:
    waiting: queue.Queue[logging.LogRecord | _Errand] = queue.Queue(_LINES)
    listener = _Listener(waiting, *handlers)
    listener.start()  # a daemon thread: one that is stuck does not keep the process
    logging.getLogger().addHandler(_LossyQueueHandler(waiting))
    return listener


class _Errand:
    """Something to be done by the thread, between two records."""

    def __init__(self, what: Callable[[_Listener], object]) -> None:
        self.what = what
        self.done = threading.Event()


class _LossyQueueHandler(logging.handlers.QueueHandler):
    queue: queue.Queue[logging.LogRecord | _Errand]

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # logging's name
        """The queue is full: nobody reads the log, so nobody misses the line."""


class _Listener(logging.handlers.QueueListener):
    def __init__(
        self, waiting: queue.Queue[logging.LogRecord | _Errand], *handlers: logging.Handler
    ) -> None:
        super().__init__(waiting, *handlers)
        self._waiting = waiting
        self._repeats = Repeats()

    def dequeue(self, block: bool) -> logging.LogRecord:
        """The next record. Repeats are told when their time has come, if nothing else comes."""
        while True:
            try:
                item = self._waiting.get(block, _LOOK if self._repeats.pending else None)
            except queue.Empty:
                self.tell_repeats()
                continue
            if not isinstance(item, _Errand):
                return item
            with suppress(Exception):
                item.what(self)
            item.done.set()

    def enqueue_sentinel(self) -> None:
        """End the thread; one that is stuck behind a full queue is left behind."""
        with suppress(queue.Full):
            super().enqueue_sentinel()

    def handle(self, record: logging.LogRecord) -> None:
        for each in self._repeats.admit(record, time.monotonic()):
            super().handle(each)

    def tell_repeats(self, *, end: bool = False) -> None:
        """Write what was held back, if its time has come; at the ``end`` all of it."""
        for each in self._repeats.due(time.monotonic(), end=end):
            super().handle(each)

    def reopen(self) -> None:
        """Close the files: each is opened again with its next line."""
        for handler in self.handlers:
            if isinstance(handler, logging.FileHandler) and handler.stream is not None:
                handler.stream.close()
                handler.stream = None
