"""The journal of systemd: whether our lines go there, and how, with level and fields."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from logging_journald import JournaldTransport

SOCKET = Path("/run/systemd/journal/socket")
_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
_DEBUG = 7


def is_behind(descriptor: int) -> bool:
    """Does what is written there end up in the journal? systemd says which file does."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        status = os.fstat(descriptor)
    except OSError:
        return False
    return (device, inode) == (str(status.st_dev), str(status.st_ino))


def is_there() -> bool:
    """Is there a journal to send to?"""
    return SOCKET.is_socket()


class JournalHandler(logging.Handler):
    """Sends each record as fields: the standard ones, and ``CAFSFS_*``.

    What cannot be sent is lost: journald is down, and there is nobody to tell. ``about`` are fields
    that each record has. Records are sent to the socket's name, one by one: journald may be
    restarted.
    """

    def __init__(self, about: Mapping[str, object]) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter())  # the message alone; basicConfig has another
        self._about = dict(about)
        self._transport = JournaldTransport(SOCKET, connected=False)

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):
            self._transport.send(self._fields(record))

    def close(self) -> None:
        self._transport.socket.close()
        super().close()

    def _fields(self, record: logging.LogRecord) -> Iterator[tuple[str, object]]:
        yield "MESSAGE", self.format(record)
        yield "PRIORITY", next((p for level, p in _PRIORITIES if record.levelno >= level), _DEBUG)
        yield "SYSLOG_IDENTIFIER", "cafsfs"
        yield "LOGGER", record.name
        yield "CODE_FILE", record.pathname
        yield "CODE_LINE", record.lineno
        yield "CODE_FUNC", record.funcName
        told: Mapping[str, object] = getattr(record, "fields", {})
        for name, value in {**self._about, **told}.items():
            if value is not None:
                yield f"CAFSFS_{name.upper()}", str(value)
