"""Fail at once while no server can be reached."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TypeVar

import trio

from cafsfs.digest import DIGEST_LENGTH, Digest
from cafsfs.errors import CafsError, TimedOut, Unavailable, Unreachable
from cafsfs.store.contracts import (
    BlobStat,
    ContentSink,
    ContentSource,
    ContentStore,
    Failures,
    Wanted,
)

log = logging.getLogger(__name__)

K = TypeVar("K")
T = TypeVar("T")

_MADE_UP = Digest(bytes(DIGEST_LENGTH))  # nobody knows content with this hash
_FIRST_PROBE = 1.0  # seconds; doubled for each further one
_LAST_PROBE = 10.0  # seconds between two probes at most
# Seconds; more than connecting (5) and the answer (5) have by default: their errors tell more.
_PROBE_DEADLINE = 11.0


@dataclass(frozen=True, slots=True)
class Outage:
    """Nobody can be reached, for ``reason``.

    ``since`` is in seconds since 1970, ``began`` in seconds of Trio's clock, which never jumps.
    """

    reason: str
    since: float
    began: float


class FailFastStore(ContentStore):
    """Spares every operation its own wait for ``upstream`` while nobody is there.

    Unreachable begins an outage: from then on operations raise Unavailable at once, and a task of
    ``nursery`` asks upstream until anybody answers, be it with an error. Operations that are under
    way are left alone; one that is answered ends the outage too.

    TimedOut says too little: a body may have been slow, or a disk. Then the probe decides, at once.
    So it does where ``servers`` names several, the stores among which upstream chooses: a
    FallbackStore raises Unreachable for a blob that is absent on one and cannot be asked of
    another. Each of ``servers`` is probed by itself; without them, upstream is.
    """

    def __init__(
        self,
        upstream: ContentStore,
        nursery: trio.Nursery,
        *,
        servers: Sequence[ContentStore] = (),
    ) -> None:
        self._upstream = upstream
        self._nursery = nursery
        self._servers = tuple(servers) or (upstream,)
        self._outage: Outage | None = None
        self._probing: trio.CancelScope | None = None

    @property
    def outage(self) -> Outage | None:
        """The outage that lasts now."""
        return self._outage

    async def find_missing(self, digests: Collection[Digest]) -> set[Digest]:
        if not digests:  # upstream would ask nobody: that is no answer
            await trio.lowlevel.checkpoint()
            return set()
        return await self._ask(lambda: self._upstream.find_missing(digests))

    async def stat(self, digest: Digest) -> BlobStat:
        return await self._ask(lambda: self._upstream.stat(digest))

    async def pull(self, digest: Digest, sink: ContentSink) -> BlobStat:
        return await self._ask(lambda: self._upstream.pull(digest, sink))

    async def stat_many(
        self, digests: Sequence[Digest], told: Callable[[Digest, BlobStat], object]
    ) -> Failures[Digest]:
        return await self._ask_many(lambda left: self._upstream.stat_many(left, told), digests)

    async def pull_many(
        self, wanted: Sequence[Wanted], *, at_once: int | None = None
    ) -> Failures[Wanted]:
        return await self._ask_many(
            lambda left: self._upstream.pull_many(left, at_once=at_once), wanted
        )

    async def put(self, digest: Digest, source: ContentSource) -> tuple[str, ...]:
        return await self._ask(lambda: self._upstream.put(digest, source))

    async def _ask(self, operation: Callable[[], Awaitable[T]]) -> T:
        if self._outage is not None:
            refusal = _refusal(self._outage)
            await trio.lowlevel.checkpoint()  # who asks for a million blobs lets others run
            raise refusal
        try:
            answer = await operation()
        except (Unreachable, TimedOut) as error:
            self._suspect(error)
            raise
        except Unavailable:  # a connection broke: there was one, and may be again
            raise
        except CafsError:
            self._answered()
            raise
        self._answered()
        return answer

    async def _ask_many(
        self, operation: Callable[[Sequence[K]], Awaitable[Failures[K]]], wanted: Sequence[K]
    ) -> Failures[K]:
        if not wanted:
            await trio.lowlevel.checkpoint()
            return {}
        if self._outage is not None:
            refusal = _refusal(self._outage)
            await trio.lowlevel.checkpoint()
            return dict.fromkeys(wanted, refusal)
        failures = await operation(wanted)
        # An answer to one blob ends an outage. If the server has gone since, it begins another, and
        # the probe tells soon which of the two came last.
        if any(not isinstance(failures.get(each), Unavailable) for each in wanted):
            self._answered()
        for error in failures.values():
            if isinstance(error, Unreachable | TimedOut):
                self._suspect(error)
                break
        return failures

    # --- decisions, none of them waits

    def _suspect(self, error: Unavailable) -> None:
        if isinstance(error, Unreachable) and len(self._servers) == 1:
            self._begin(str(error))
        if self._probing is None:
            self._probing = trio.CancelScope()
            self._nursery.start_soon(self._probe_until_answered, self._probing)

    def _begin(self, reason: str) -> None:
        if self._outage is None:
            log.warning("failing at once until a server can be reached: %s", reason)
            self._outage = Outage(reason, since=time.time(), began=trio.current_time())

    def _answered(self) -> None:
        if self._probing is not None:
            self._probing.cancel()
            self._probing = None
        if self._outage is not None:
            log.info("a server answers again, after %.1f s", _seconds(self._outage))
            self._outage = None

    # --- the probe

    async def _probe_until_answered(self, scope: trio.CancelScope) -> None:
        wait = 0.0 if self._outage is None else _FIRST_PROBE
        with scope:
            while True:
                await trio.sleep(wait)
                reason = await self._probe()
                if scope.cancel_called:  # an operation was answered in the same turn
                    return
                if reason is None:
                    self._answered()
                    return
                self._begin(reason)
                wait = min(wait * 2 or _FIRST_PROBE, _LAST_PROBE)

    async def _probe(self) -> str | None:
        """Ask each server, until one answers: then None, else why nobody does."""
        reasons: list[str] = []
        answered = False

        async def ask(server: ContentStore) -> None:
            nonlocal answered
            try:
                await server.find_missing([_MADE_UP])
            except Unavailable as error:
                reasons.append(str(error))
                return
            except CafsError:  # an answer all the same
                pass
            except Exception:  # operations are to show it: it must not end the whole mount
                log.exception("the probe failed")
            answered = True
            nursery.cancel_scope.cancel()

        with trio.move_on_after(_PROBE_DEADLINE):
            async with trio.open_nursery() as nursery:
                for server in self._servers:
                    nursery.start_soon(ask, server)
        if answered:
            return None
        return "; ".join(reasons) or f"no answer within {_PROBE_DEADLINE:g} s"


def _refusal(outage: Outage) -> Unavailable:
    return Unavailable(
        f"no server could be reached for {_seconds(outage):.0f} s: {outage.reason}",
        hint=f"it recovers by itself: the server is tried again every {_LAST_PROBE:g} s or sooner",
    )


def _seconds(outage: Outage) -> float:
    return trio.current_time() - outage.began
