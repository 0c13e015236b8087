"""What a server does not let its clients do."""

from __future__ import annotations

from dataclasses import dataclass

import trio

from cafsfs.transport import Pace

_WORKERS = 8  # threads for one purpose


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of one server; sizes in bytes, times in seconds, rates in bytes a second.

    ``connections`` at once; one more is closed at once. ``idle`` is how long a connection may be
    silent between commands (deployed servers: 30 minutes). ``stall`` is how long it may be silent
    in the middle of something, and how long a message without its body may take from its first
    byte on. ``rate`` is what a body must bring or take, averaged over ``stall`` seconds: one byte
    now and then does not hold a connection for ever.
    ``blob`` bounds the packed length of an upload, ``content`` what it may unpack to.
    ``grace`` is what transfers get to finish when the server stops.
    """

    connections: int = 4000
    idle: float = 30 * 60
    stall: float = 60
    rate: float = 1024
    blob: int = 64 << 30
    content: int = 64 << 30
    grace: float = 10

    def pace(self) -> Pace:
        """What one body must keep to."""
        return Pace(self.stall, self.rate)


class Workers:
    """Threads of one server, over all clients: those of one purpose never wait for another.

    A disk that is slow to read from or to write to holds up no question about what is in memory.
    """

    def __init__(self) -> None:
        self.questions = trio.CapacityLimiter(_WORKERS)
        self.sending = trio.CapacityLimiter(_WORKERS)
        self.storing = trio.CapacityLimiter(_WORKERS)
