"""The last warnings and errors, kept in memory for who asks how a mount is."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from cafsfs.metrics import Metrics

_KEPT = 50  # different ones


@dataclass(slots=True)
class Complaint:
    """A line of the log; ``first`` and ``last`` are seconds since 1970."""

    level: str
    logger: str
    message: str
    first: float
    last: float
    times: int = 1


class RecentComplaints(logging.Handler):
    """Keeps the last warnings and errors, each once, and counts all in ``metrics``."""

    def __init__(self, metrics: Metrics) -> None:
        super().__init__(logging.WARNING)
        self.metrics = metrics
        self._kept: OrderedDict[tuple[str, str], Complaint] = OrderedDict()

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.ERROR:
            self.metrics.log_errors += 1
        else:
            self.metrics.log_warnings += 1
        message = record.getMessage()
        key = (record.name, message)
        seen = self._kept.get(key)
        if seen is None:
            moment = record.created
            seen = Complaint(record.levelname, record.name, message, moment, moment)
            self._kept[key] = seen
        else:
            seen.times += 1
            seen.last = record.created
        self._kept.move_to_end(key)
        if len(self._kept) > _KEPT:
            self._kept.popitem(last=False)

    def latest(self) -> list[Complaint]:
        """Those kept, the latest last."""
        self.acquire()  # threads log, too
        try:
            return list(self._kept.values())
        finally:
            self.release()


@asynccontextmanager
async def remembered_complaints(metrics: Metrics) -> AsyncIterator[RecentComplaints]:
    """Those of the whole process, from now to the end of the block."""
    complaints = RecentComplaints(metrics)
    logging.getLogger().addHandler(complaints)
    try:
        yield complaints
    finally:
        logging.getLogger().removeHandler(complaints)
