"""The packed store that stands behind an HTTP mirror: blobs by hash, packed or not, read-only.

A mirror is any web server, and knows nothing of blobs. So what it has may be a packed blob, or the
content itself, which is handed on as a packed blob of its own: a header is made up in front of it.
Mostly the first 16 bytes tell which it is. Content that looks like a packed blob is ambiguous: it
is read in one way, and in the other if the hash was wrong.

Nor can its word be relied on: a captive portal, or a site that shows its front page for every
name, has a length for each blob there is. So the length of content is believed only of a server
that has just denied having a blob which nobody can have. A small blob is not worth such questions:
a pull tells its length, and proves it.
"""

from __future__ import annotations

import enum
import logging
import math
import secrets
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TypeVar

import httpx
import trio

from cafsfs.client.download import Download
from cafsfs.client.mirror_template import MirrorTemplate
from cafsfs.client.remote import SMALL
from cafsfs.client.servers import Deadlines
from cafsfs.client.web import Answer, RequestRefused, Span, WebServer, length_refused
from cafsfs.digest import DIGEST_LENGTH, Digest
from cafsfs.errors import (
    BlobNotFound,
    CafsError,
    CorruptBlob,
    RangeError,
    RemoteProtocolError,
    StoreError,
    TimedOut,
    Unavailable,
)
from cafsfs.packing import HEADER_LENGTH, Compression, Header
from cafsfs.store.contracts import PackedBody, PackedSource, PackedStat, PackedStore
from cafsfs.store.pump import first_error
from cafsfs.transport import Pace

log = logging.getLogger(__name__)

T = TypeVar("T")

_QUICK = 4  # connections for questions, so that they never queue behind bodies
# Questions on one connection that share the deadline of one; see ANSWERS_TOGETHER of connection.py,
# which is that of all four.
_TOGETHER = 5
_GLANCE = 1.0  # seconds by which a deadline may be off
_REMEMBERED = 10_000  # blobs that were ambiguous, and how they were read
_BELIEVED_FOR = 60.0  # seconds from the last denial of a blob that cannot be
_PARTING = 0.1  # seconds for the end of a body, of which all has come, to be seen

_READ_ONLY = "upload to a CAFS server, or copy the file to where the mirror has its files"


class Reading(enum.Enum):
    """What the bytes of a mirror are taken for."""

    PACKED = enum.auto()
    CONTENT = enum.auto()

    @property
    def other(self) -> Reading:
        """The one that is left."""
        return Reading.CONTENT if self is Reading.PACKED else Reading.PACKED


class MirrorStore(PackedStore):
    """The blobs of one HTTP mirror; to be closed by ``aclose``.

    Up to ``connections`` bodies come at once, others wait for their turn as long as anything moves.
    A body that breaks off goes on where it was, if the server has proved that it is the same still.
    ``transport`` replaces the network.
    """

    def __init__(
        self,
        template: MirrorTemplate,
        *,
        connections: int = 4,
        deadlines: Deadlines | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.name = template.name
        self._template = template
        self._deadlines = known = deadlines or Deadlines()
        self._web = WebServer(
            self.name,
            connections=connections + _QUICK + 1,  # for greetings
            deadlines=self._deadlines,
            credentials=template.credentials,
            transport=transport,
        )
        # As long as those who have a place may go without a byte, so that they fail first.
        self._asked_within = known.connect + known.question
        patience = max(known.connect + known.answer, known.progress)
        self._bodies = _Turns(self.name, connections, patience)
        self._questions = _Turns(self.name, _QUICK, self._asked_within)
        self._ranges = "untested"
        self._lies = False
        self._knows_head = True
        self._denied_at: float | None = None  # when it last denied having what cannot be
        self._habit = Reading.PACKED  # how the last blob was read rightly
        self._ambiguous: OrderedDict[Digest, Reading] = OrderedDict()

    async def aclose(self) -> None:
        """Close the idle connections."""
        await self._web.aclose()

    @property
    def protocol(self) -> str:
        """``http`` or ``https``."""
        return self.name.partition(":")[0]

    @property
    def ranges(self) -> str:
        """``sound``, ``unsound`` or ``untested``: whether it answers ranges of a blob rightly."""
        return self._ranges

    def hung_up(self) -> bool:
        """Nothing is told of connections that are kept: web servers close them soon."""
        return False

    # --- questions

    async def find_absent(self, digests: Collection[Digest]) -> set[Digest]:
        absent: set[Digest] = set()
        waiting = iter(digests)

        async def work() -> None:
            while lot := list(islice(waiting, _TOGETHER)):
                async with self._questions.turn():
                    absent.update(await self._absent_of(lot))

        try:
            async with trio.open_nursery() as nursery:
                for _ in range(min(_QUICK, len(digests))):
                    nursery.start_soon(work)
        except BaseExceptionGroup as group:
            raise first_error(group) from None
        if len(absent) < len(digests):
            await self._check_that_it_denies()
        return absent

    async def inspect(self, digest: Digest) -> PackedStat | None:
        seen = await self._look(digest)
        reading = self._how_to_read(digest, seen)
        length = _packed_length(seen.length, reading)
        if length is None:
            return None
        if length <= SMALL:
            return PackedStat(length, None)
        if reading is Reading.PACKED:
            return PackedStat(length, Header.parse(seen.start))
        await self._check_that_it_denies()
        return PackedStat(length, Header(Compression.NONE, seen.length))

    async def measure(self, digest: Digest) -> int | None:
        """The packed length in bytes, with a header where we make one up; None if nobody tells.

        Raises as ``inspect``. Whoever has a page for any name has no blob, however small.
        """
        seen = await self._look(digest)
        reading = self._how_to_read(digest, seen)
        if reading is Reading.CONTENT:
            await self._check_that_it_denies()
        return _packed_length(seen.length, reading)

    async def greet(self) -> float:
        """Ask for a blob that cannot be; returns the seconds that the answer took.

        Raises Unavailable, also of a server that says to have it, and ServerRefused.
        """
        began = trio.current_time()
        self._denied_at = None
        await self._have_it_deny()  # not after all the questions that wait for their turn
        return trio.current_time() - began

    async def _check_that_it_denies(self) -> None:
        """Raise Unavailable of a server that has an answer to everything."""
        if not self._believed:
            async with self._questions.turn():
                if not self._believed:  # nobody has asked meanwhile
                    await self._have_it_deny()

    @property
    def _believed(self) -> bool:
        denied_at = self._denied_at
        return denied_at is not None and trio.current_time() < denied_at + _BELIEVED_FOR

    async def _have_it_deny(self) -> None:
        try:
            present = await self._has(Digest(secrets.token_bytes(DIGEST_LENGTH)))
        except RequestRefused as error:
            if error.status != 403:  # as S3 denies it to who may not list the bucket
                raise
            present = False
        if present:
            raise Unavailable(
                f"{self.name} says to have a blob that nobody has",
                hint="is it behind a captive portal, or does it show a page for any name?",
            )
        self._denied_at = trio.current_time()

    async def _absent_of(self, lot: Collection[Digest]) -> set[Digest]:
        absent = set()
        with trio.move_on_after(self._asked_within):
            for digest in lot:
                if not await self._has(digest):
                    absent.add(digest)
            return absent
        raise TimedOut(f"no answer from {self.name} within {self._deadlines.question:g} s")

    async def _has(self, digest: Digest) -> bool:
        if self._knows_head:
            try:
                return await self._is_there("HEAD", digest, {})
            except RequestRefused:  # as who knows no HEAD, or may not use it
                self._knows_head = False
        return await self._is_there("GET", digest, {"Range": "bytes=0-0"})

    async def _is_there(self, method: str, digest: Digest, headers: Mapping[str, str]) -> bool:
        try:
            answer = await self._ask(method, digest, headers, self._deadlines.question)
            await answer.close()
        except BlobNotFound:
            return False
        return True

    async def _look(self, digest: Digest) -> _Seen:
        """The first 16 bytes, and the length, mostly for the price of a round trip."""
        headers = {} if self._lies else {"Range": f"bytes=0-{HEADER_LENGTH - 1}"}
        async with self._questions.turn():
            answer = await self._ask("GET", digest, headers, self._deadlines.question)
            try:
                seen = await self._glance(answer, ranged=bool(headers))
            finally:
                await answer.close()
        return seen or await self._look(digest)  # without a range, then

    async def _glance(self, answer: Answer, *, ranged: bool) -> _Seen | None:
        """None where another range came than was asked for: it is to be asked anew, without one."""
        length = answer.length
        if answer.status == 416 and ranged and length_refused(answer.headers) == 0:
            return _Seen(b"", 0)
        if answer.status == 206 and ranged:
            span = Span.of(answer.headers)
            if span is None or span.start != 0:
                self._condemn("it was asked for the first bytes, and announces others")
                return None
            length = span.total
            self._ranges = "sound"
        elif answer.status != 200:
            raise RemoteProtocolError(f"{self.name} answers {answer.status} to who wants a blob")
        elif ranged and (length is None or length > HEADER_LENGTH):
            self._ranges = "unsound"  # it does not know them
        # All of it in one window: a drip is no answer to a question.
        pace = Pace(self._deadlines.question, HEADER_LENGTH / self._deadlines.question)
        start = b""
        while len(start) < HEADER_LENGTH and (piece := await answer.read(pace)):
            start += piece
        if length is not None and len(start) < min(length, HEADER_LENGTH):
            # What a packed blob is could not be seen by it: its length would be told as content's.
            self._condemn("it was asked for the first bytes, and brings fewer")
            return None
        return _Seen(start[:HEADER_LENGTH], length)

    def _condemn(self, lie: str) -> None:
        log.warning("%s: %s; it is asked for no ranges any more", self.name, lie)
        self._lies = True
        self._ranges = "unsound"

    async def _ask(
        self, method: str, digest: Digest, headers: Mapping[str, str], within: float
    ) -> Answer:
        """An answer that is no 404; to be closed."""
        answer = await self._web.ask(
            method, self._template.url(digest), headers=headers, within=within
        )
        if answer.status in {404, 410}:
            await answer.close()
            raise BlobNotFound(digest)
        return answer

    # --- how to read what comes

    def _how_to_read(self, digest: Digest, seen: _Seen) -> Reading:
        return self._ambiguous.get(digest, self._habit) if seen.is_ambiguous else Reading.CONTENT

    def _was_wrong(self, digest: Digest, reading: Reading) -> None:
        self._ambiguous[digest] = reading.other
        self._ambiguous.move_to_end(digest)
        if len(self._ambiguous) > _REMEMBERED:
            self._ambiguous.popitem(last=False)

    # --- bodies

    async def deliver(self, digest: Digest, take: Callable[[PackedBody], Awaitable[T]]) -> T:
        before = self._ambiguous.get(digest)
        try:
            return await super().deliver(digest, take)
        except CorruptBlob as error:
            reading = self._ambiguous.get(digest)
            if reading is before:
                # A page for any name is no fault of this blob: the server has none at all.
                self._denied_at = None
                with suppress(RequestRefused):
                    await self._check_that_it_denies()
                raise
            log.info("%s; trying whether that is because of how it was read", error)
            try:
                return await super().deliver(digest, take)
            except CorruptBlob:
                raise error from None

    @asynccontextmanager
    async def fetch(
        self, digest: Digest, *, offset: int = 0, length: int | None = None
    ) -> AsyncIterator[PackedBody]:
        if offset or length is not None:
            raise RangeError(f"{self.name} is a mirror, and gives no parts of a packed blob")
        async with self._bodies.turn():
            download = await self._begin(digest)
            try:
                start = await download.read_start(HEADER_LENGTH)
                seen = _Seen(start[:HEADER_LENGTH], download.length)
                reading = self._how_to_read(digest, seen)
                if reading is Reading.CONTENT:
                    start = Header(Compression.NONE, download.length).pack() + start
                packed_length = _packed_length(download.length, reading)
                moved = self._bodies.moved
                async with _coming(download, start, packed_length, moved) as body:
                    yield body
                if body.ended:
                    self._habit = reading
            except CorruptBlob:
                if seen.is_ambiguous:
                    self._was_wrong(digest, reading)
                raise
            finally:
                await download.close()

    async def _begin(self, digest: Digest) -> Download:
        answer = await self._ask("GET", digest, {}, self._deadlines.answer)
        if answer.status != 200:
            await answer.close()
            raise RemoteProtocolError(f"{self.name} answers {answer.status} to who wants a blob")
        again = partial(self._ask, "GET", digest, within=self._deadlines.answer)
        return Download(answer, again, self._deadlines, on_lie=self._condemn)

    async def deposit(self, digest: Digest, source: PackedSource) -> None:  # noqa: ARG002  # never
        await trio.lowlevel.checkpoint()
        raise StoreError(f"cannot store {digest} on mirror {self.name}", hint=_READ_ONLY)


class _Turns:
    """So many at once, the others in order of arrival, as long as anything moves.

    Where nothing has moved for ``patience`` seconds nobody knows that his turn will ever come.
    """

    def __init__(self, name: str, count: int, patience: float) -> None:
        self._name = name
        self._places = trio.Semaphore(count)
        self._patience = patience
        self._moved_at = -math.inf
        self._waiting: set[trio.CancelScope] = set()

    def moved(self) -> None:
        """Who waits is not in vain."""
        now = trio.current_time()
        if now - self._moved_at >= _GLANCE:
            self._moved_at = now
            for each in self._waiting:
                each.deadline = now + self._patience

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for it; raises TimedOut."""
        with trio.move_on_after(self._patience) as scope:
            self._waiting.add(scope)
            try:
                await self._places.acquire()
            finally:
                self._waiting.discard(scope)
        if scope.cancelled_caught:
            raise TimedOut(
                f"{self._name} had no connection free for {self._patience:g} s, and sent nothing",
                hint="is it frozen, or does nobody read what it sends?",
            )
        try:
            yield
        except Unavailable:
            raise
        except CafsError:  # an answer all the same
            self.moved()
            raise
        else:
            self.moved()
        finally:
            self._places.release()


@dataclass(frozen=True, slots=True)
class _Seen:
    """The first bytes of what a mirror has, 16 where there are so many, and its length."""

    start: bytes
    length: int | None

    @property
    def is_ambiguous(self) -> bool:
        """It may be a packed blob, or content that looks like one; all else can only be content."""
        try:
            header = Header.parse(self.start)
            if self.length is not None:
                header.content_length_in(self.length)
        except CorruptBlob:
            return False
        return True


def _packed_length(length: int | None, reading: Reading) -> int | None:
    if length is None or reading is Reading.PACKED:
        return length
    return HEADER_LENGTH + length


class MirrorBody:
    """A packed body that a task of its own brings, so that who waits for it may be cancelled."""

    def __init__(
        self, start: bytes, length: int | None, pieces: trio.MemoryReceiveChannel[bytes]
    ) -> None:
        self.length = length
        self.ended = False
        self.failure: CafsError | None = None
        self._left = memoryview(start)
        self._pieces = pieces
        self._taken = 0

    async def readinto(self, buffer: memoryview) -> int:
        if not self._left:
            try:
                self._left = memoryview(await self._pieces.receive())
            except trio.EndOfChannel:
                if self.failure is not None:
                    raise self.failure.with_traceback(None) from None
                self.ended = True
                return 0
        count = min(len(buffer), len(self._left))
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        self._taken += count
        self.ended = self._taken == self.length
        return count


@asynccontextmanager
async def _coming(
    download: Download, start: bytes, length: int | None, moved: Callable[[], None]
) -> AsyncIterator[MirrorBody]:
    """A body of ``start`` and all that is still to come; ``moved`` is told when something does."""
    into, pieces = trio.open_memory_channel[bytes](0)
    body = MirrorBody(start, length, pieces)
    seen_to_end = trio.Event()

    async def bring() -> None:
        async with into:
            try:
                while piece := await download.read():
                    moved()
                    await into.send(piece)
            except CafsError as error:
                body.failure = error
        seen_to_end.set()

    try:
        async with pieces, trio.open_nursery() as nursery:
            nursery.start_soon(bring)
            yield body
            if body.ended:  # then the connection is fit for another request in a moment
                with trio.move_on_after(_PARTING):
                    await seen_to_end.wait()
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise first_error(group) from None
