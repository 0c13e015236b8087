"""Several places of the same content as one store: ask the best, go on with the next.

Whom to ask is the ``Router``'s to say. Here it is done: an operation goes on to the next place on
any error, for a wrong hash is that place's fault, and another may have the right bytes. A blob is
absent only if all places have said so; where one could not be asked or failed, its error is raised
instead, for it might have had the blob.

What is late is not waited for where somebody else may be faster:

- SIZE, and the pull of a small blob, are asked once more of the next place if they take longer than
  19 of 20 did, for one request of 20 at most (hedging: Dean, Barroso, The Tail at Scale, 2013);
  of the others if that is five seconds.
- A pull leaves a place that has sent nothing for some seconds, or too little, if another says that
  it has the blob. The answer to PULL may take long, for a server reads the blob first (protocol
  page, 3.4): until its first byte a place is left only if it does not greet us any more. The sink
  begins anew then, and compares what comes with what readers have seen.
"""

from __future__ import annotations

import logging
import math
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from functools import partial
from typing import Generic, TypeVar

import trio

from cafsfs.digest import Digest
from cafsfs.errors import (
    BlobNotFound,
    CafsError,
    CorruptBlob,
    TimedOut,
    TooFewReplicas,
    Unavailable,
    UsageError,
)
from cafsfs.store.contracts import (
    BlobStat,
    ContentSink,
    ContentSource,
    ContentStore,
    Failures,
    Wanted,
)
from cafsfs.store.health import too_slow
from cafsfs.store.pump import first_error
from cafsfs.store.router import NO_ANSWER, Place, Router

log = logging.getLogger(__name__)

K = TypeVar("K")
T = TypeVar("T")

# Up to this packed length (bytes) a blob is asked for twice where that helps: its SIZE tells all
# that a stat can tell cheaply, and a second copy costs little (protocol page, 3.4).
SMALL = 256 << 10
# Who has a larger blob is not sent it again. To ask costs a round trip, in which a line of 20 ms
# and 3 MB/s brings as many bytes.
_WORTH_ASKING = 64 << 10
_IN_MEMORY = 1 << 20  # bytes of content that a blob of that packed length may have to be
_KNOWN = 1000  # blobs that were just measured as small
_STALLED = 5.0  # seconds without a byte of a body, after which a place is left
_UNBEGUN = 5.0  # seconds without a first byte, after which a place is greeted, and again
_IN_VAIN = 15.0  # seconds without a first byte, after which it tells if nobody waits any more
_SPAN = 10.0  # seconds over which the rate of a pull is averaged
_GLANCE = 1.0  # seconds between two looks at a pull
_WORTH_TIMING = 1 << 20  # bytes: what is smaller tells about round trips, not about rates


class RoutingStore(ContentStore):
    """The places of ``router`` as one store; ``stores`` are their contents, in the same order.

    A pull leaves a place that brings less than ``slow_rate`` bytes a second, over ten seconds and
    to all pulls together, for another that has the blob; 0: it never does. ``put`` stores a blob in
    ``replicas`` places. ``crowded`` tells whether pulls wait for threads or memory of ours: that is
    no server's fault.
    """

    def __init__(
        self,
        router: Router,
        stores: Sequence[ContentStore],
        *,
        replicas: int = 1,
        slow_rate: float = 0,
        crowded: Callable[[], bool] = lambda: False,
    ) -> None:
        if replicas > router.writable:
            raise UsageError(
                f"{replicas} replicas need {replicas} servers, there"
                f" {'is one' if router.writable == 1 else f'are {router.writable}'}",
                hint="name more servers, or ask for fewer replicas",
            )
        self._router = router
        self._stores = dict(zip(router.places, stores, strict=True))
        self._replicas = replicas
        self._slow_rate = slow_rate
        self._crowded = crowded
        self._small: OrderedDict[Digest, None] = OrderedDict()
        self._writing = trio.CapacityLimiter(1)

    @property
    def router(self) -> Router:
        """Who decides whom to ask."""
        return self._router

    async def find_missing(self, digests: Collection[Digest]) -> set[Digest]:
        missing, failure = await self.find_unseen(digests)
        if failure is not None:
            raise failure
        return missing

    async def find_unseen(
        self, digests: Collection[Digest]
    ) -> tuple[set[Digest], CafsError | None]:
        missing = set(digests)
        await trio.lowlevel.checkpoint()
        failure: CafsError | None = None
        places, refusal = self._router.readers()
        for place in places:
            if not missing:  # nobody is asked of nothing: that would be no answer
                return missing, None
            place.requests += 1
            try:
                missing &= await self._stores[place].find_missing(missing)
                self._router.answered(place)
            except CafsError as error:
                self._router.failed(place, error, None)
                failure = _graver(failure, error)
        return missing, (failure or refusal) if missing else None

    async def stat(self, digest: Digest) -> BlobStat:
        places, refusal = self._router.readers(digest)
        if len(places) < 2:
            return await self._first(
                digest, places, lambda place, _: self._stat(place, digest), refusal
            )
        place, length = await self._hedged(
            digest, places, lambda each: self._measure(each, digest), refusal
        )
        if length is not None and length <= SMALL:
            self._small[digest] = None
            if len(self._small) > _KNOWN:
                self._small.popitem(last=False)
            return BlobStat(size=None, packed_size=length, source=place.site.name)
        # Not hedged: to look at the header of a large blob makes a server read all of it.
        places.remove(place)
        return await self._first(
            digest, [place, *places], lambda place, _: self._stores[place].stat(digest), refusal
        )

    async def pull(self, digest: Digest, sink: ContentSink) -> BlobStat:
        places, refusal = self._router.readers(digest)
        if len(places) > 1 and digest in self._small:
            del self._small[digest]
            with suppress(_TooLarge):
                return await self._pull_small(digest, places, sink, refusal)
        metered = _MeteredSink(sink)
        left: list[Place] = []

        async def pull(place: Place, rest: Sequence[Place]) -> BlobStat:
            if not rest:
                return await self._timed_pull(place, digest, sink)
            try:
                return await self._pull_unless_slow(place, rest, digest, metered)
            except _Left:
                left.append(place)
                raise

        try:
            return await self._first(digest, places, pull, refusal)
        except CafsError as error:
            if not left:
                raise
            # If they say now that they have it not, that is still why it is not known absent.
            failure = None if isinstance(error, BlobNotFound) else error
        # They were slow, and said nothing wrong: now that nobody else has it they may be.
        return await self._first(
            digest, left, lambda place, _: self._timed_pull(place, digest, sink), failure
        )

    async def _timed_pull(self, place: Place, digest: Digest, sink: ContentSink) -> BlobStat:
        began = trio.current_time()
        stat = await self._stores[place].pull(digest, sink)
        elapsed = trio.current_time() - began
        if elapsed and stat.packed_size is not None and stat.packed_size >= _WORTH_TIMING:
            self._router.moved(place, stat.packed_size / elapsed)
        return stat

    async def stat_many(
        self, digests: Sequence[Digest], told: Callable[[Digest, BlobStat], object]
    ) -> Failures[Digest]:
        return await self._first_for_each(
            digests, lambda digest: digest, lambda store, left: store.stat_many(left, told)
        )

    async def pull_many(
        self, wanted: Sequence[Wanted], *, at_once: int | None = None
    ) -> Failures[Wanted]:
        return await self._first_for_each(
            wanted,
            lambda each: each.digest,
            lambda store, left: store.pull_many(left, at_once=at_once),
        )

    async def put(self, digest: Digest, source: ContentSource) -> tuple[str, ...]:
        places = self._router.writers(digest)
        waiting = iter(places)
        names: list[str] = []
        failures: list[CafsError] = []

        async def put() -> None:
            for place in waiting:
                place.requests += 1
                try:
                    names.extend(await self._put(place, digest, source))
                except CorruptBlob:  # of the source: it is wrong everywhere
                    raise
                except CafsError as error:
                    self._router.failed(place, error, None)
                    failures.append(error)
                    if place is not places[-1]:
                        log.warning("going on with the next server: %s", error)
                else:
                    self._router.answered(place)
                    return

        try:
            async with trio.open_nursery() as nursery:
                for _ in range(self._replicas):
                    nursery.start_soon(put)
        except BaseExceptionGroup as group:
            raise first_error(group) from None
        if len(names) < self._replicas:
            raise await self._verdict(self._too_few(names, failures))
        return tuple(names)

    async def _put(self, place: Place, digest: Digest, source: ContentSource) -> tuple[str, ...]:
        store = self._stores[place]
        if source.size > _WORTH_ASKING and not await store.find_missing([digest]):
            return (place.site.name,)
        return await store.put(digest, source)

    def _too_few(self, names: list[str], failures: list[CafsError]) -> CafsError:
        """Who has it, and why the others have not."""
        failure: CafsError | None = None
        for error in failures:
            failure = _graver(failure, error)
        failure = failure or self._router.refusal() or Unavailable("no server takes it")
        reasons = "; ".join(dict.fromkeys(map(str, failures))) or str(failure)
        if names:
            return TooFewReplicas(
                f"it is on {', '.join(names)} only, not on {self._replicas} servers: {reasons}",
                servers=tuple(names),
                hint=failure.hint,
            )
        return failure if str(failure) == reasons else type(failure)(reasons, hint=failure.hint)

    # --- one after the other

    async def _first(
        self,
        digest: Digest,
        places: Sequence[Place],
        operation: Callable[[Place, Sequence[Place]], Awaitable[T]],
        refusal: CafsError | None,
    ) -> T:
        """What the first place has that has it. ``operation`` is told who comes after it.

        With ``refusal`` it is not absent if all of ``places`` say so: somebody is not asked.
        """
        absent: BlobNotFound | None = None
        failure: CafsError | None = None
        for number, place in enumerate(places, 1):
            place.requests += 1
            try:
                found = await operation(place, places[number:])
            except BlobNotFound as error:
                self._router.answered(place)
                absent = error
            except _Left as error:
                log.warning("going on with the next server: %s", error)
            except CafsError as error:
                self._router.failed(place, error, digest)
                if number < len(places):
                    log.warning("going on with the next server: %s", error)
                failure = _graver(failure, error)
            else:
                self._router.answered(place)
                return found
        raise await self._verdict(failure or refusal or absent)

    async def _first_for_each(
        self,
        wanted: Sequence[K],
        digest_of: Callable[[K], Digest],
        operation: Callable[[ContentStore, Sequence[K]], Awaitable[Failures[K]]],
    ) -> Failures[K]:
        """Each place is asked, all side by side, for what those before it could not give."""
        failures: Failures[K] = {}
        if not wanted:
            await trio.lowlevel.checkpoint()
            return failures
        refusal = self._router.refusal()
        waiting = {each: deque(self._router.readers(digest_of(each))[0]) for each in wanted}
        while waiting:
            shares: dict[Place, list[K]] = {}
            for each, places in list(waiting.items()):
                if places:
                    shares.setdefault(places.popleft(), []).append(each)
                    continue
                del waiting[each]
                error = failures.get(each)
                if refusal is not None and (error is None or isinstance(error, BlobNotFound)):
                    failures[each] = refusal
            async with trio.open_nursery() as nursery:
                for place, share in shares.items():
                    ask = partial(operation, self._stores[place], share)
                    nursery.start_soon(
                        self._ask_for_share, place, share, ask, digest_of, waiting, failures
                    )
        return failures

    async def _ask_for_share(
        self,
        place: Place,
        share: Sequence[K],
        ask: Callable[[], Awaitable[Failures[K]]],
        digest_of: Callable[[K], Digest],
        waiting: dict[K, deque[Place]],
        failures: Failures[K],
    ) -> None:
        place.requests += len(share)
        found = await ask()
        reasons: dict[str, None] = {}
        for each in share:
            error = found.get(each)
            if error is None:
                failures.pop(each, None)
            else:
                failures[each] = _gravest(failures.get(each), error)
            # A destination that fails is nobody's fault here: no other place is asked.
            if not isinstance(error, CafsError):
                del waiting[each]
            elif not isinstance(error, BlobNotFound):
                if waiting[each]:
                    reasons[str(error)] = None
                if isinstance(error, CorruptBlob):
                    self._router.failed(place, error, digest_of(each))
        if any(not isinstance(found.get(each), NO_ANSWER) for each in share):
            self._router.answered(place)
        # One failure of a batch says as much of the place as all of them.
        failed = [each for each in found.values() if isinstance(each, NO_ANSWER)]
        if failed:
            self._router.failed(place, failed[0], None)
        for reason in reasons:
            log.warning("going on with the next server: %s", reason)

    @staticmethod
    async def _verdict(error: CafsError | None) -> CafsError:
        await trio.lowlevel.checkpoint()  # who asks for a million blobs lets others run
        assert error is not None, "a router has at least one place"
        return error

    # --- side by side

    async def _stat(self, place: Place, digest: Digest) -> BlobStat:
        """A stat, timed where it was one round trip."""
        began = trio.current_time()
        stat = await self._stores[place].stat(digest)
        if stat.packed_size is not None and stat.packed_size <= SMALL:
            self._router.measured(place, trio.current_time() - began)
        return stat

    async def _measure(self, place: Place, digest: Digest) -> int | None:
        began = trio.current_time()
        length = await place.source.measure(digest)
        elapsed = trio.current_time() - began
        self._router.measured(place, elapsed)
        self._router.hedging.note(elapsed)
        return length

    async def _pull_small(
        self,
        digest: Digest,
        places: Sequence[Place],
        sink: ContentSink,
        refusal: CafsError | None,
    ) -> BlobStat:
        """By way of memory: two places must not write to one sink."""

        async def pull(place: Place) -> tuple[BlobStat, _Small]:
            began = trio.current_time()
            content = _Small()
            stat = await self._stores[place].pull(digest, content)
            self._router.hedging.note(trio.current_time() - began)
            return stat, content

        _, (stat, content) = await self._hedged(digest, places, pull, refusal)
        await trio.to_thread.run_sync(content.write_to, sink, limiter=self._writing)
        return stat

    async def _hedged(
        self,
        digest: Digest,
        places: Sequence[Place],
        ask: Callable[[Place], Awaitable[T]],
        refusal: CafsError | None,
    ) -> tuple[Place, T]:
        """The answer of whoever answers first, of two if the first is late.

        ``refusal``: see ``_first``.
        """
        try:
            async with trio.open_nursery() as nursery:
                race = _Race(self._router, digest, places, ask, nursery)
                answer = await race.run()
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise first_error(group) from None
        if answer is None:
            raise await self._verdict(race.failure or refusal or race.absent)
        return answer

    # --- leaving who is slow

    async def _pull_unless_slow(
        self,
        place: Place,
        rest: Sequence[Place],
        digest: Digest,
        sink: _MeteredSink,
    ) -> BlobStat:
        """Raises _Left if the pull had better go on elsewhere."""
        reason = ""
        found: list[BlobStat] = []

        async def watch(scope: trio.CancelScope) -> None:
            nonlocal reason
            reason = await self._until_slow(place, rest, digest, sink)
            scope.cancel()

        sink.begin()
        place.pulls += 1
        began = trio.current_time()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(watch, nursery.cancel_scope)
                found.append(await self._timed_pull(place, digest, sink))
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            error = first_error(group)
            waited = trio.current_time() - began
            if isinstance(error, trio.Cancelled) and not sink.count and waited >= _IN_VAIN:
                # Else it would be the first to be asked again, by a reader who tries again.
                name = place.site.name
                reason = f"{name} had sent nothing of {digest} within {waited:.0f} s"
                self._router.leave(place, reason)
            raise error from None
        finally:
            place.pulls -= 1
            place.brought += sink.fresh()
        if found:
            return found[0]
        self._router.leave(place, reason)
        raise _Left(reason)

    async def _until_slow(
        self, place: Place, rest: Sequence[Place], digest: Digest, sink: _MeteredSink
    ) -> str:
        """Returns, with the reason, when the pull had better go on with one of ``rest``."""
        name = place.site.name
        progress = _Progress(trio.current_time(), place.brought)
        while True:
            await trio.sleep(_GLANCE)
            reason: str | None = None
            held_up = sink.busy or self._crowded()
            place.brought += sink.fresh()
            progress.look(trio.current_time(), sink.count, place.brought, held_up=held_up)
            if place.down and progress.still >= _GLANCE:
                reason = f"{name} sends nothing of {digest}, and is down"
            elif not progress.count:
                if progress.still >= _UNBEGUN:
                    if not await self._router.lives(place):
                        reason = f"{name} has sent nothing of {digest}, and does not greet"
                    progress = _Progress(trio.current_time(), place.brought)
            elif progress.still >= _STALLED:
                reason = f"{name} has sent nothing more of {digest} for {progress.still:.0f} s"
            elif too_slow(
                progress.rate, total=progress.total, pulls=place.pulls, least=self._slow_rate
            ):
                reason = f"{name} sends {progress.rate:.0f} bytes a second of {digest}"
            if reason is not None and await self._is_elsewhere(digest, rest):
                return reason

    async def _is_elsewhere(self, digest: Digest, rest: Sequence[Place]) -> bool:
        """Does any of ``rest`` say that it has the blob?"""
        for place in rest:
            try:
                await self._measure(place, digest)
            except CafsError as error:
                self._router.failed(place, error, digest)
            else:
                return True
        return False


class _Race(Generic[T]):
    """One question, asked of one place after the other, or of two side by side."""

    def __init__(
        self,
        router: Router,
        digest: Digest,
        places: Sequence[Place],
        ask: Callable[[Place], Awaitable[T]],
        nursery: trio.Nursery,
    ) -> None:
        self._router = router
        self._digest = digest
        self._waiting = deque(places)
        self._ask = ask
        self._nursery = nursery
        self._running = 0
        self._send, self._receive = trio.open_memory_channel[tuple[Place, T | Exception]](math.inf)
        self.absent: BlobNotFound | None = None
        self.failure: CafsError | None = None

    async def run(self) -> tuple[Place, T] | None:
        """The first answer; None if there is none: see ``failure`` and ``absent``."""
        late = self._router.hedging.begin()
        stalled = math.isinf(late)  # what ends then is what a large blob has before it is left
        late = _STALLED if stalled else late
        while self._waiting or self._running:
            if not self._running:
                self._start()
            alone = self._waiting and self._running == 1
            with trio.move_on_after(late if alone else math.inf):
                place, outcome = await self._receive.receive()
                self._running -= 1
                if not isinstance(outcome, Exception):
                    self._router.answered(place)
                    return place, outcome
                self._note(place, outcome)
                continue
            if stalled or self._router.hedging.spend():
                self._start()
                late = math.inf
            else:
                late, stalled = max(0.0, _STALLED - late), True
        return None

    def _start(self) -> None:
        place = self._waiting.popleft()
        place.requests += 1
        self._running += 1
        self._nursery.start_soon(self._run, place)

    async def _run(self, place: Place) -> None:
        try:
            self._send.send_nowait((place, await self._ask(place)))
        except Exception as error:  # it is raised where it is received
            self._send.send_nowait((place, error))

    def _note(self, place: Place, error: Exception) -> None:
        if not isinstance(error, CafsError):
            raise error
        self._router.failed(place, error, self._digest)
        if isinstance(error, BlobNotFound):
            self.absent = error
            return
        if self._waiting or self._running:
            log.warning("going on with the next server: %s", error)
        self.failure = _graver(self.failure, error)


class _Left(TimedOut):
    """A pull has left a place that is slow."""


class _MeteredSink:
    """A sink that tells how much it was given; written to in threads."""

    def __init__(self, sink: ContentSink) -> None:
        self._sink = sink
        self._told = 0
        self.count = 0
        self.busy = False

    def begin(self) -> None:
        """An attempt begins: nothing has come."""
        self.count = self._told = 0

    def fresh(self) -> int:
        """Bytes that have come since this was asked last."""
        fresh = self.count - self._told
        self._told += fresh
        return fresh

    def restart(self) -> None:
        self._sink.restart()

    def write(self, data: bytes | memoryview, /) -> None:
        self.busy = True
        try:
            self._sink.write(data)
        finally:
            self.busy = False
        self.count += len(data)


class _Progress:
    """How a pull gets on, as far as it depends on the server: glances, seconds apart."""

    def __init__(self, now: float, brought: int) -> None:
        self._looked_at = now
        self._waited = 0.0  # seconds for the server
        # These, the count and that of all pulls of the place, at the glances of the last while.
        self._marks = deque([(0.0, 0, brought)])
        self._moved_at = 0.0
        self.count = 0
        self.still = 0.0
        self.rate = math.inf
        self.total = math.inf

    def look(self, now: float, count: int, brought: int, *, held_up: bool) -> None:
        """Have ``count`` (bytes so far), ``still`` (seconds) and ``rate`` (bytes a second).

        ``total`` is the rate of all pulls of the place, which has ``brought`` so many bytes.
        The time up to now is not the server's where it was ``held_up`` by us: by a slow disk, or
        because other pulls have all threads or memory.
        """
        self._waited += 0.0 if held_up else now - self._looked_at
        self._looked_at = now
        if count != self.count:
            self._moved_at = self._waited
        self.count = count
        self.still = self._waited - self._moved_at
        self._marks.append((self._waited, count, brought))
        while len(self._marks) > 1 and self._marks[1][0] <= self._waited - _SPAN:
            self._marks.popleft()
        since, before, brought_before = self._marks[0]
        span = self._waited - since
        if span >= _SPAN:
            self.rate = (count - before) / span
            self.total = (brought - brought_before) / span
        else:
            self.rate = self.total = math.inf


class _TooLarge(Exception):
    """A blob that is small only as it is packed."""


class _Small:
    """A small blob in memory; raises _TooLarge if it unpacks to too much."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._left = _IN_MEMORY

    def restart(self) -> None:
        self._pieces.clear()
        self._left = _IN_MEMORY

    def write(self, data: bytes | memoryview, /) -> None:
        self._left -= len(data)
        if self._left < 0:
            raise _TooLarge
        self._pieces.append(bytes(data))

    def write_to(self, sink: ContentSink) -> None:
        sink.restart()
        for piece in self._pieces:
            sink.write(piece)


def _graver(first: CafsError | None, second: CafsError) -> CafsError:
    """What to report of two failures: wrong bytes tell more than a server that is not there."""
    if first is None or (isinstance(first, Unavailable) and not isinstance(second, Unavailable)):
        return second
    return first


def _gravest(first: CafsError | OSError | None, second: CafsError | OSError) -> CafsError | OSError:
    """What to report of one blob: absent only if all have said so; a full disk before all else."""
    if first is None or isinstance(first, BlobNotFound) or isinstance(second, OSError):
        return second
    if isinstance(second, BlobNotFound) or isinstance(first, OSError):
        return first
    return _graver(first, second)
