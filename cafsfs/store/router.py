"""Whom of several places to ask: what is known of each, kept up to date and acted upon.

The decisions are in ``health.py``; here is the state they are made on, and the tasks that greet
who is down. ``routing.py`` does the asking.
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import trio

from cafsfs.digest import Digest
from cafsfs.errors import (
    AuthenticationFailed,
    BlobNotFound,
    CafsError,
    ConnectionBroken,
    CorruptBlob,
    Crowded,
    RemoteProtocolError,
    Unavailable,
    Unreachable,
)
from cafsfs.store.health import (
    LAST_WAIT,
    Failure,
    Health,
    Hedging,
    Site,
    Standing,
    reading_order,
    writing_order,
)

log = logging.getLogger(__name__)

# Errors that are no answers: nobody is there, lets us in, or says what makes sense.
NO_ANSWER = (Unavailable, AuthenticationFailed, RemoteProtocolError)

# Seconds; more than connecting (5) and the greeting have by default: their errors tell more.
_GREETING = 11.0
_REMEMBERED = 10_000  # blobs of which a place had wrong bytes
_FRESH = 1.0  # seconds for which who has greeted is taken to live
_LOOK_AROUND = 1.0  # seconds between two looks for times that are to be measured


class Source(Protocol):
    """What one place is asked that costs it little."""

    @property
    def protocol(self) -> str | None:
        """What it speaks: a version of CAFS as ``001``, or ``https``; None where nobody knows."""

    @property
    def ranges(self) -> str:
        """``sound``, ``unsound`` or ``untested``: whether it answers ranges of a blob rightly."""

    def hung_up(self) -> bool:
        """Has it ended connections that were kept for later? Told once."""

    async def measure(self, digest: Digest) -> int | None:
        """The packed length in bytes, None if only a pull tells.

        Raises BlobNotFound, Unavailable.
        """

    async def greet(self) -> float:
        """Prove that it lives; returns about what a round trip takes, in seconds.

        Raises Unavailable, AuthenticationFailed, RemoteProtocolError, ServerRefused.
        """


@dataclass(slots=True, eq=False)
class Place:
    """A place of blobs, what is known of it, and what it was asked."""

    site: Site
    source: Source
    health: Health = field(default_factory=Health)
    requests: int = 0
    errors: int = 0
    wrong_hashes: int = 0
    left: int = 0
    answers: int = 0
    pulls: int = 0  # under way, of those that may leave it
    brought: int = 0  # bytes of content to these
    greeting: bool = False  # a task is at it
    greeted_at: float = -math.inf  # see Router.lives
    heard_at: float = -math.inf  # when an answer or a greeting of it ended
    turn: trio.Lock = field(default_factory=trio.Lock)

    @property
    def down(self) -> bool:
        """Is it not to be asked?"""
        return self.health.standing is Standing.DOWN


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceState:
    """What is known of a place, for people and scripts.

    ``state`` is up, suspect (asked after the others) or down (not asked, but greeted by and by),
    and ``reason`` says why, ``down_for`` for how many seconds. ``quiet_for`` so many seconds it has
    answered nothing, asked or not; None where it never has. ``seconds`` is a round trip,
    ``rate`` bytes a second of large blobs: averages, None where nothing was measured. ``protocol``
    is what it was spoken to in last: 001, 002 (authenticated, then in the clear), 002-encrypted, or
    https. ``ranges``: sound, unsound or untested. ``wrong_hashes`` counts blobs of which it had
    wrong bytes, ``left`` pulls that went on elsewhere because it was slow. Counts are since the
    beginning.
    """

    name: str
    state: str
    reason: str | None
    down_for: float | None
    quiet_for: float | None
    zone: str | None
    priority: int
    weight: float
    seconds: float | None
    rate: float | None
    protocol: str | None
    ranges: str
    requests: int
    errors: int
    wrong_hashes: int
    left: int


@dataclass(frozen=True, slots=True)
class Outage:
    """Nobody can be reached, for ``reason``.

    ``since`` is in seconds since 1970, ``began`` in seconds of Trio's clock, which never jumps.
    """

    reason: str
    since: float
    began: float


class Router:
    """A group of places, seen from ``zone``.

    With ``nursery`` those that are down are greeted in the background until they greet back, and
    the times of all are measured now and then. With ``fail_fast`` too those that are down are not
    asked; else they are asked last.
    """

    def __init__(
        self,
        places: Sequence[Place],
        *,
        zone: str | None = None,
        nursery: trio.Nursery | None = None,
        fail_fast: bool = False,
    ) -> None:
        if not places:
            raise ValueError("a router needs at least one place")
        if fail_fast and nursery is None:
            raise ValueError("who is down and not asked must be greeted, in a nursery")
        self.places = tuple(places)
        self.hedging = Hedging()
        self.outage: Outage | None = None
        self._zone = zone
        self._nursery = nursery
        self._fail_fast = fail_fast
        self._look_around_at = 0.0
        self._wrong: OrderedDict[tuple[int, Digest], None] = OrderedDict()

    def work_in(self, nursery: trio.Nursery | None) -> None:
        """Greet and measure in the background from now on; None: no more."""
        self._nursery = nursery

    # --- whom to ask

    def readers(self, digest: Digest | None = None) -> tuple[list[Place], Unavailable | None]:
        """Whom to ask for a blob, in this order; and why somebody is not asked, if that is so.

        Who is not asked now may be up when the others have answered, and has still not been asked.
        """
        if len(self.places) == 1:
            return self._admitted([0]), self.refusal()
        self._look_around()
        wrong = []
        if digest is not None and self._wrong:
            wrong = [each for each in range(len(self.places)) if (each, digest) in self._wrong]
        order = reading_order(
            *self._known(),
            zone=self._zone,
            now=trio.current_time(),
            digest=digest,
            wrong=wrong,
        )
        return self._admitted(order), self.refusal()

    def writers(self, digest: Digest) -> list[Place]:
        """Where to put a blob, in this order."""
        order = writing_order(
            *self._known(), zone=self._zone, now=trio.current_time(), digest=digest
        )
        return self._admitted(order)

    @property
    def writable(self) -> int:
        """How many places can be written to, if they are up."""
        return sum(not place.site.last for place in self.places)

    def refusal(self) -> Unavailable | None:
        """Why somebody is not asked at the moment, if that is so."""
        if self.outage is not None:
            return Unavailable(
                f"no server could be reached for {_since(self.outage.began):.0f} s:"
                f" {self.outage.reason}",
                hint="it recovers by itself: the server is greeted again every"
                f" {LAST_WAIT:g} s or sooner",
            )
        if not self._fail_fast:
            return None
        for place in self.places:
            if place.down:
                return Unavailable(
                    f"{place.site.name} has been down for {_since(place.health.since):.0f} s:"
                    f" {place.health.reason}",
                    hint="another server may have the blob, but nobody knows; try again",
                )
        return None

    def _known(self) -> tuple[list[Site], list[Health]]:
        return [each.site for each in self.places], [each.health for each in self.places]

    def _admitted(self, order: Sequence[int]) -> list[Place]:
        places = [self.places[index] for index in order]
        if not self._fail_fast:
            return places
        return [each for each in places if not each.down]

    # --- what became of it

    def answered(self, place: Place) -> None:
        """It has answered, with whatever."""
        place.answers += 1
        place.heard_at = trio.current_time()
        self._set(place, place.health.answered())

    def failed(self, place: Place, error: CafsError, digest: Digest | None) -> None:
        """An operation failed there; what that says of the place depends on the error."""
        if isinstance(error, BlobNotFound):
            self.answered(place)
            return
        place.errors += 1
        if isinstance(error, CorruptBlob) and digest is not None:
            self._note_lie(place, digest)
        elif isinstance(error, Crowded):
            pass
        elif isinstance(error, Unreachable | AuthenticationFailed):
            # Who does not let us in is as good as not there, until a greeting succeeds.
            self._fail(place, Failure.UNREACHABLE, error)
        elif isinstance(error, ConnectionBroken | RemoteProtocolError):
            self._fail(place, Failure.BROKEN_OFF, error)
        elif isinstance(error, NO_ANSWER):
            self._fail(place, Failure.UNANSWERED, error)
        else:
            self.answered(place)

    def leave(self, place: Place, reason: str) -> None:
        """A pull has left it for another."""
        place.left += 1
        self._set(place, place.health.left(reason, trio.current_time()))

    def measured(self, place: Place, seconds: float) -> None:
        """A question was answered in so many seconds."""
        place.health = place.health.measured(seconds, trio.current_time())

    def moved(self, place: Place, rate: float) -> None:
        """A large blob came with so many bytes a second."""
        place.health = place.health.moved(rate)

    def _fail(self, place: Place, failure: Failure, error: CafsError) -> None:
        now, roll = trio.current_time(), random.random()  # noqa: S311  # no secret
        self._set(place, place.health.failed(failure, str(error), now, roll))
        self._greet_soon(place)

    def _note_lie(self, place: Place, digest: Digest) -> None:
        place.wrong_hashes += 1
        place.heard_at = trio.current_time()
        self._set(place, place.health.answered().lied(trio.current_time()))
        self._wrong[self.places.index(place), digest] = None
        if len(self._wrong) > _REMEMBERED:
            self._wrong.popitem(last=False)

    def _set(self, place: Place, health: Health) -> None:
        before, place.health = place.health.standing, health
        if before is health.standing:
            return
        if len(self.places) > 1 and health.standing is Standing.DOWN:
            log.warning("%s is down, the others are asked: %s", place.site.name, health.reason)
        elif len(self.places) > 1 and before is Standing.DOWN:
            log.info("%s is back", place.site.name)
        self._look_for_outage()

    def _look_for_outage(self) -> None:
        down = [each for each in self.places if each.down]
        if len(down) < len(self.places):
            if self.outage is not None:
                log.info("a server answers again, after %.1f s", _since(self.outage.began))
                self.outage = None
        elif self.outage is None and self._fail_fast:
            reason = "; ".join(dict.fromkeys(str(each.health.reason) for each in down))
            log.warning("failing at once until a server can be reached: %s", reason)
            self.outage = Outage(reason, since=time.time(), began=trio.current_time())

    # --- greeting, in the background

    def _look_around(self) -> None:
        """Greet who has hung up; and measure, where there is a choice, what is to be measured."""
        now = trio.current_time()
        if self._nursery is None or now < self._look_around_at:
            return
        self._look_around_at = now + _LOOK_AROUND
        for place in self.places:
            if place.down:
                continue
            choice = len(self.places) > 1 and not place.site.last
            if place.source.hung_up() or (choice and place.health.stale(now)):
                self._greet_soon(place)

    def _greet_soon(self, place: Place) -> None:
        if self._nursery is not None and not place.greeting:
            place.greeting = True
            self._nursery.start_soon(self._greet_until_up, place)

    async def _greet_until_up(self, place: Place) -> None:
        try:
            while True:
                down = place.down
                if down:
                    await trio.sleep(max(0.0, place.health.until - trio.current_time()))
                answered = down and not place.down  # an operation that was under way
                if answered or await self.greet(place):
                    return
        finally:
            place.greeting = False

    async def lives(self, place: Place) -> bool:
        """Does it greet? Of all who ask that, within a second, one greets it."""
        async with place.turn:
            if trio.current_time() - place.greeted_at >= _FRESH:
                await self.greet(place)
                place.greeted_at = trio.current_time()
        return not place.down

    async def greet(self, place: Place) -> bool:
        """Does it live? What it does sets its state."""
        began, answers = trio.current_time(), place.answers
        seconds, reason = 0.0, f"{place.site.name} gave no greeting within {_GREETING:g} s"
        lives = False
        with trio.move_on_after(_GREETING):
            try:
                seconds, lives = await place.source.greet(), True
            except NO_ANSWER as error:
                reason = str(error)
            except CafsError:  # an answer all the same
                lives = True
            except Exception:  # operations are to show it: it must not end the whole mount
                log.exception("greeting %s failed", place.site.name)
                lives = True
        now = trio.current_time()
        if lives:
            place.heard_at = now
            self._set(place, place.health.greeted(seconds or now - began, now))
        elif place.answers == answers:  # else it has answered somebody else meanwhile
            roll = random.random()  # noqa: S311  # no secret
            self._set(place, place.health.opened(reason, now, roll))
        return not place.down

    # --- for people

    def states(self) -> list[PlaceState]:
        """All places, in the order in which they were given.

        Who has hung up and was not asked since is greeted: the next time it is known why.
        """
        self._look_around()
        return [self._state(place) for place in self.places]

    @staticmethod
    def _state(place: Place) -> PlaceState:
        site, health = place.site, place.health
        standing = Standing.UP
        if health.distrusted(trio.current_time()):
            standing = Standing.DOWN if place.down else Standing.SUSPECT
        return PlaceState(
            name=site.name,
            state=standing.value,
            reason=health.reason if standing is not Standing.UP else None,
            down_for=round(_since(health.since), 3) if place.down else None,
            quiet_for=round(_since(place.heard_at), 3) if math.isfinite(place.heard_at) else None,
            zone=site.zone,
            priority=site.priority,
            weight=site.weight,
            seconds=health.seconds,
            rate=health.rate,
            protocol=place.source.protocol,
            ranges=place.source.ranges,
            requests=place.requests,
            errors=place.errors,
            wrong_hashes=place.wrong_hashes,
            left=place.left,
        )


def _since(began: float) -> float:
    return trio.current_time() - began
