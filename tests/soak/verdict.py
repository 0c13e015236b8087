"""What must hold all the time, and what is forgiven: pure functions of what was seen."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from tests.soak.crowd import IN_PART, Incident, Report

BOUND = 60.0  # seconds for any read; deadlines of the soak add up to less
MEANWHILE = 5.0  # seconds for `stat` of what is known, and for `df`, on a busy machine
_LINGERS = 10.0  # seconds that a pull which began in a window may show what it got there
_HONEST = {"EIO", "ETIMEDOUT", "cp ended with 1"}
_HONEST_OF_MAPS = "python"  # SIGBUS
# Of memory: what it may grow by after the first epoch, when all pools and caches have been used.
_GROWTH = 1.25
_GROWTH_BYTES = 24 << 20
_IDLE_SOCKETS = 8  # a server: four connections for bodies, four for questions


@dataclass(slots=True)
class Window:
    """A time in which errors are to be expected, on the clock of all processes."""

    began: float
    ended: float = math.inf

    def overlaps(self, incident: Incident) -> bool:
        return incident.began <= self.ended + _LINGERS and incident.ended >= self.began


@dataclass(frozen=True, slots=True, kw_only=True)
class Idle:
    """What a mount holds when nobody reads; ``files``: descriptors that are no sockets."""

    memory: int
    files: int
    sockets: int


@dataclass(slots=True)
class Judge:
    """Collects violations. ``streamed``: blobs that are read before they are verified."""

    streamed: Collection[str]
    violations: list[str] = field(default_factory=list)
    forgiven: int = 0
    blackouts: list[Window] = field(default_factory=list)
    spoilings: list[Window] = field(default_factory=list)
    idles: list[Idle] = field(default_factory=list)

    def hear(self, report: Report) -> None:
        """What readers say."""
        for each in report.incidents:
            if self._forgives(each):
                self.forgiven += 1
            else:
                took = each.ended - each.began
                self.accuse(f"{each.how} of {each.blob}: {each.what} after {took:.1f} s")
        slowest = max(report.worst, report.lasting)
        if slowest > BOUND:
            self.accuse(f"a read took {slowest:.1f} s")

    def _forgives(self, incident: Incident) -> bool:
        """Never that something were absent; wrong bytes only to who did not read to the end."""
        said = incident.what
        windows: list[Window] = []
        if incident.blob in self.streamed:  # who has seen a wrong byte gets an error at the end
            windows += self.spoilings
        if said == "wrong":
            if incident.how not in IN_PART:
                return False
        elif said in _HONEST or said.startswith(_HONEST_OF_MAPS):
            windows += self.blackouts
        else:
            return False
        return any(each.overlaps(incident) for each in windows)

    def meanwhile(self, seconds: float) -> None:
        """How long somebody waited for `stat` or `df`."""
        if seconds > MEANWHILE:
            self.accuse(f"stat or df took {seconds:.1f} s")

    def gauges(self, stats: dict[str, Any]) -> list[str]:
        """Gauges that are not at zero, of a mount of which nobody reads."""
        held = {
            "pulls_in_flight": stats["pulls_in_flight"],
            "open_handles": stats["filesystem"]["open_handles"],
            **{each: stats["memory"][each] for each in ("held_bytes", "pulls", "waiting")},
        }
        return [f"{name} is {value}" for name, value in held.items() if value]

    def rest(self, idle: Idle, *, servers: int) -> None:
        """Compare what is held with what was held after the first epoch."""
        self.idles.append(idle)
        first = self.idles[0]
        if idle.memory > first.memory * _GROWTH + _GROWTH_BYTES:
            grown = f"{first.memory >> 20} to {idle.memory >> 20} MiB"
            self.accuse(f"memory has grown from {grown}")
        if idle.files > first.files:
            self.accuse(f"descriptors have grown from {first.files} to {idle.files}")
        # A few more of the mount itself.
        if idle.sockets > _IDLE_SOCKETS * (servers + 1):
            self.accuse(f"{idle.sockets} sockets are open, nobody reads")

    def accuse(self, violation: str) -> None:
        self.violations.append(violation)
