"""What is known of a server, and what follows from it: functions of state and time, no I/O.

A circuit, in the words of the field: closed is ``UP``, open is ``DOWN``, half-open is ``SUSPECT``.
A server that cannot be reached goes down at once; one that is late is a suspect first (asked after
the others) and goes down with the third such failure in a row. One that breaks off stays a suspect
as long as it greets: that costs nobody any time, and may be a matter of a single blob, which must
not take all the others away. Who is down is greeted
after a random time (full jitter, see Health.opened) and comes up when it greets; but one that went
down although it greets, because it does not answer, goes down again with its next failure, for
longer, until it has answered something.
"""

from __future__ import annotations

import enum
import math
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from cafsfs.digest import Digest
from cafsfs.packing import hash_bytes

SHUNNED_FOR = 10.0  # seconds that a suspect is asked last
LEFT_FOR = 30.0  # seconds that one is asked last which was too slow for a pull
FAILURES = 3  # in a row, after which one that can be reached goes down all the same
FIRST_WAIT = 1.0  # seconds at most before the first greeting; doubled with each further one
LAST_WAIT = 10.0  # seconds at most between two of them
LIES = 3  # wrong hashes within LIES_SPAN, after which a server is asked last
LIES_SPAN = 600.0  # seconds
STALE = 60.0  # seconds after which a measured time is measured again
_UNFAIR = 4  # times less than others: what TCP makes of equals on one line is mostly within that
_SMOOTHING = 0.3  # of the newest value, in averages
_NEAR = 2.0  # times the least time: who is no farther counts as equally near
_NEARER = 0.001  # seconds: what is nearer than that is not told apart


class Standing(enum.Enum):
    """Whether one is asked: as ever, after the others, or not at all."""

    UP = "up"
    SUSPECT = "suspect"
    DOWN = "down"


class Failure(enum.Enum):
    """What a failure says of the server."""

    UNREACHABLE = enum.auto()  # nobody is there
    BROKEN_OFF = enum.auto()  # somebody is, but hangs up, or says what makes no sense
    UNANSWERED = enum.auto()  # somebody is, but does not answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """The state of one server; times are seconds of one steady clock.

    ``until``: a suspect is one until then, one that is down is greeted then. ``failures`` and
    ``openings`` (of the circuit) are counted since the last answer. ``since``: when it went down.
    ``reason``: why it was distrusted last.
    ``seconds`` is a round trip, ``rate`` bytes a second of large bodies; both are averages, None
    where nothing was measured. ``lies``: when it had wrong bytes. ``slow_until``: see ``left``.
    """

    standing: Standing = Standing.UP
    until: float = -math.inf
    failures: int = 0
    openings: int = 0
    since: float = -math.inf
    reason: str | None = None
    seconds: float | None = None
    measured_at: float = -math.inf
    rate: float | None = None
    lies: tuple[float, ...] = ()
    slow_until: float = -math.inf

    def answered(self) -> Health:
        """It has answered: whatever was wrong is over, but its lies are remembered."""
        if self.standing is Standing.UP and not self.failures and not self.openings:
            return self
        return replace(self, standing=Standing.UP, until=-math.inf, failures=0, openings=0)

    def failed(self, failure: Failure, reason: str, now: float, roll: float) -> Health:
        """``roll`` is a random number from 0 to 1. What fails while it is down says nothing new."""
        if self.standing is Standing.DOWN:
            return self
        if failure is Failure.UNREACHABLE:
            return self.opened(reason, now, roll)
        more = failure is Failure.UNANSWERED
        failing = replace(self, failures=self.failures + more, reason=reason)
        if more and failing.failures >= FAILURES:
            return failing.opened(reason, now, roll)
        return replace(failing, standing=Standing.SUSPECT, until=now + SHUNNED_FOR)

    def opened(self, reason: str, now: float, roll: float) -> Health:
        """Down, until it is greeted: at any time from now to a bound that doubles each time.

        Full jitter: a thousand mounts that lost a server together do not come back together.
        """
        wait = roll * min(LAST_WAIT, FIRST_WAIT * 2.0 ** min(self.openings, 10))
        return replace(
            self,
            standing=Standing.DOWN,
            until=now + wait,
            openings=self.openings + 1,
            since=now if self.standing is not Standing.DOWN else self.since,
            reason=reason,
        )

    def greeted(self, seconds: float, now: float) -> Health:
        """It has greeted us, ``seconds`` being a round trip."""
        measured = self.measured(seconds, now)
        if self.standing is not Standing.DOWN:
            return measured
        if not self.failures:
            return replace(measured, standing=Standing.UP, until=-math.inf)
        # It greeted all the time: one failure more, and it is down again.
        return replace(
            measured, standing=Standing.SUSPECT, until=now + SHUNNED_FOR, failures=FAILURES - 1
        )

    def left(self, reason: str, now: float) -> Health:
        """A pull has left it for a faster one; what it answers meanwhile does not make it fast."""
        return replace(self, slow_until=now + LEFT_FOR, reason=reason)

    def lied(self, now: float) -> Health:
        """It had wrong bytes of a blob."""
        lies = (*self._lies_at(now), now)[-LIES:]
        return replace(self, lies=lies, reason="it has wrong bytes")

    def measured(self, seconds: float, now: float) -> Health:
        """A round trip took so long."""
        return replace(self, seconds=_average(self.seconds, seconds), measured_at=now)

    def moved(self, rate: float) -> Health:
        """A large body came with so many bytes a second."""
        return replace(self, rate=_average(self.rate, rate))

    def distrusted(self, now: float) -> bool:
        """Is it to be asked after the others?"""
        suspect = self.standing is Standing.SUSPECT and now < self.until
        slow = now < self.slow_until
        lying = len(self._lies_at(now)) >= LIES
        return self.standing is Standing.DOWN or suspect or slow or lying

    def stale(self, now: float) -> bool:
        """Is its time to be measured?"""
        return now - self.measured_at >= STALE

    def _lies_at(self, now: float) -> tuple[float, ...]:
        return tuple(each for each in self.lies if now - each < LIES_SPAN)


def too_slow(rate: float, *, total: float, pulls: int, least: float) -> bool:
    """Is a pull of ``rate`` to leave a server that brings ``total`` bytes a second in ``pulls``?

    ``least`` is what a server has to bring, in all of them: a line that they share is not slow
    because there are many. But who gets much less than his part of it has a line that is.
    """
    return rate < least and (total < least or rate * pulls < total / _UNFAIR)


def _average(old: float | None, new: float) -> float:
    return new if old is None else old + _SMOOTHING * (new - old)


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Where a place of blobs stands in its group; see Member of ``client/servers.py``.

    ``last``: asked after all others, and never written to.
    """

    name: str
    zone: str | None = None
    priority: int = 0
    weight: float = 1.0
    last: bool = False


def reading_order(
    sites: Sequence[Site],
    healths: Sequence[Health],
    *,
    zone: str | None,
    now: float,
    digest: Digest | None = None,
    wrong: Collection[int] = (),
) -> list[int]:
    """Indices of ``sites``, whom to ask first for ``digest``; all of them.

    Last those that were ``wrong`` about it; then last sources, the distrusted, other zones, lower
    priorities, the farther. Those that are as near as the nearest have the blobs divided among
    them by weighted rendezvous hashing: a blob is always asked of the same one. Where nothing was
    measured the order is that of ``sites``.
    """

    def tier(index: int) -> tuple[bool, bool, bool, bool, int]:
        site = sites[index]
        foreign = zone is not None and site.zone != zone
        distrusted = healths[index].distrusted(now)
        return index in wrong, site.last, distrusted, foreign, site.priority

    nearest: dict[tuple[bool, bool, bool, bool, int], float] = {}
    tiers = [tier(index) for index in range(len(sites))]
    for mine, health in zip(tiers, healths, strict=True):
        if health.seconds is not None:
            nearest[mine] = min(nearest.get(mine, math.inf), health.seconds)

    def distance(index: int) -> tuple[int, float]:
        seconds = healths[index].seconds
        if seconds is None:
            return 1, index
        if seconds > _NEAR * nearest[tiers[index]] + _NEARER:
            return 2, seconds
        return 0, index if digest is None else -_score(sites[index], digest)

    return sorted(range(len(sites)), key=lambda index: (tiers[index], distance(index)))


def writing_order(
    sites: Sequence[Site],
    healths: Sequence[Health],
    *,
    zone: str | None,
    now: float,
    digest: Digest,
) -> list[int]:
    """Indices of those ``sites`` that may be written to, by weighted rendezvous hashing.

    Those that are down last of all; before them the preferred zone first, and in each zone the
    distrusted last.
    """

    def key(index: int) -> tuple[bool, bool, bool, int, float]:
        site, health = sites[index], healths[index]
        down = health.standing is Standing.DOWN
        foreign = zone is not None and site.zone != zone
        return down, foreign, health.distrusted(now), site.priority, -_score(site, digest)

    return sorted((each for each, site in enumerate(sites) if not site.last), key=key)


def _score(site: Site, digest: Digest) -> float:
    """Weighted rendezvous hashing: the site with the highest score has the blob.

    If one is added or goes, only its own blobs change hands (Schindelhauer, Schomaker 2005).
    """
    point = hash_bytes(site.name.encode() + b"\0" + digest.raw).raw[:8]
    share = (int.from_bytes(point, "little") + 1) / ((1 << 64) + 1)  # above 0, below 1
    return -site.weight / math.log(share)


_SAMPLES = 200  # times of requests, of which the percentile is taken
_ENOUGH = 20  # of them, before it says anything
_PERCENTILE = 0.95
_LEAST_DELAY = 0.005  # seconds: what is late by less is late by the scheduler
_SHARE = 0.05  # of all requests may be asked twice
_SAVED = 10.0  # second requests at most, one after another


class Hedging:
    """When a second request goes out beside one that is late, and how many of them may."""

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=_SAMPLES)
        self._late: float | None = None
        self._since = 0
        self._saved = 0.0
        self.requests = 0
        self.hedges = 0

    def note(self, seconds: float) -> None:
        """A request was answered after so long."""
        self._times.append(seconds)
        self._since += 1
        if self._since >= _ENOUGH:
            self._since = 0
            ordered = sorted(self._times)
            late = ordered[int(len(ordered) * _PERCENTILE)]
            self._late = max(_LEAST_DELAY, late)

    def begin(self) -> float:
        """A request goes out: seconds after which it is late; for ever where nothing is known."""
        self.requests += 1
        self._saved = min(_SAVED, self._saved + _SHARE)
        return math.inf if self._late is None else self._late

    def spend(self) -> bool:
        """May a second one go out?"""
        if self._saved < 1:
            return False
        self._saved -= 1
        self.hedges += 1
        return True
