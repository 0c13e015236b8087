"""Say a warning once, and then how often it came again: a log that tells nothing new is not read.

Decisions only; ``logs.py`` has the time and the handlers.
"""

from __future__ import annotations

import copy
import logging
from collections import OrderedDict
from dataclasses import dataclass

_SPAN = 10.0  # seconds in which a warning is not repeated, the first time
_LONGEST = 320.0  # seconds: who complains for hours is heard every five minutes
_KEPT = 1000  # different warnings that are remembered


@dataclass(slots=True)
class _Said:
    record: logging.LogRecord
    began: float
    span: float
    times: int = 0  # since ``began``


class Repeats:
    """Which of the records that come are to be written, by identical level, logger and message.

    ``span``: seconds in which none is repeated, the first time; then twice as long, and so on.
    """

    def __init__(self, span: float = _SPAN) -> None:
        self._span = span
        self._said: OrderedDict[tuple[str, int, str], _Said] = OrderedDict()

    @property
    def pending(self) -> bool:
        """Was anything held back that is to be told?"""
        return any(each.times for each in self._said.values())

    def admit(self, record: logging.LogRecord, now: float) -> list[logging.LogRecord]:
        """What is to be written when ``record`` comes, at ``now`` (seconds of any clock)."""
        if record.levelno < logging.WARNING:
            return [record]
        key = (record.name, record.levelno, record.getMessage())
        said = self._said.get(key)
        if said is not None and now < said.began + said.span:
            said.times += 1
            said.record = record
            return []
        told = self.due(now)
        if key in self._said:  # its repeats have been told just now, and it is one more
            self._said[key].times += 1
            return told
        self._said[key] = _Said(record, now, self._span)
        if len(self._said) > _KEPT:
            _, oldest = self._said.popitem(last=False)
            told += _summary(oldest, now)
        return [*told, record]

    def due(self, now: float, *, end: bool = False) -> list[logging.LogRecord]:
        """What was held back and is to be told now; at the ``end`` all of it."""
        told = []
        for key, said in list(self._said.items()):
            if end or now >= said.began + said.span:
                told += _summary(said, now)
                if said.times and not end:
                    said.times, said.began = 0, now
                    said.span = min(2 * said.span, _LONGEST)
                else:
                    del self._said[key]
        return told


def _summary(said: _Said, now: float) -> list[logging.LogRecord]:
    if not said.times:
        return []
    record = copy.copy(said.record)
    seconds = max(1, round(now - said.began))
    times = "once" if said.times == 1 else f"{said.times} times"
    record.msg = f"{record.getMessage()} (repeated {times} in {seconds} s)"
    record.args = None
    return [record]
