"""Where a CAFS server is, and how long to wait for it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from cafsfs.errors import UsageError
from cafsfs.transport import Pace

DEFAULT_PORT = 2403
_LONGEST_READ = 3600.0  # seconds; a server that lies about a length must not hold us for ever

_BRACKETED = re.compile(r"\[(?P<host>[^\]]*)\](?::(?P<port>[^:]*))?")
_NUMBER = re.compile(r"[0-9]{1,5}")
_PLAIN = re.compile(r"(?P<host>[^:\[\]]*)(?::(?P<port>[^:]*))?")


@dataclass(frozen=True, slots=True, order=True)
class Server:
    """A host name or address, and a TCP port."""

    host: str
    port: int = DEFAULT_PORT

    @classmethod
    def parse(cls, text: str) -> Server:
        """Read ``host``, ``host:port``, ``[::1]`` or ``[::1]:port``; raises UsageError."""
        found = _BRACKETED.fullmatch(text) or _PLAIN.fullmatch(text)
        if found is None or not found["host"] or found["host"] != found["host"].strip():
            raise UsageError(
                f"`{text}` is not a server",
                hint="a server is `host`, `host:port` or `[IPv6 address]:port`",
            )
        host, percent, scope = found["host"].partition("%")
        host = f"{host.lower()}{percent}{scope}"  # which blobs it gets goes by its name
        port = found["port"]
        if port is None:
            return cls(host)
        if not (_NUMBER.fullmatch(port) and 0 < int(port) < 1 << 16):
            raise UsageError(f"`{port}` is not a port", hint="a port is a number from 1 to 65535")
        return cls(host, int(port))

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Member:
    """A server of a group: where it stands in it.

    ``zone`` is any name of a place; who is in the same one asks it before others. Among those of
    one zone the least ``priority`` goes first. ``weight`` is its share among its equals: one of 2
    has twice as much to do as one of 1.
    """

    server: Server
    zone: str | None = None
    priority: int = 0
    weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """How long to wait for a server, in seconds. Nothing waits without one of these.

    ``connect`` covers name resolution, connecting and the greeting. ``answer`` is the time to the
    last byte of an answer (without the body that may follow it); an answer to PULL gets one second
    more for each ``disk_rate`` bytes of packed length, for deployed servers read the whole blob
    before they answer (protocol page, section 3.4). ``question`` is the same for SIZE, CHCK and the
    header of a blob on a server with sound ranges, which cost a server nothing. ``progress`` is
    what a body may take for each ``progress`` × ``rate`` bytes, in either direction, so that one
    byte now and then does not keep anybody waiting for ever; only waiting for the server counts.
    """

    connect: float = 5.0
    question: float = 5.0
    answer: float = 30.0
    progress: float = 30.0
    disk_rate: float = 20e6
    rate: float = 1024.0

    def pace(self) -> Pace:
        """What one body must keep to."""
        return Pace(self.progress, self.rate)

    def for_pull(self, packed_length: int) -> float:
        """Seconds that the answer to PULL may take, for a blob of ``packed_length`` bytes."""
        return self.answer + min(packed_length / self.disk_rate, _LONGEST_READ)
