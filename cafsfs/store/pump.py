"""Empty one buffer while the other is being filled: the hot path of every pull and upload.

A reader fills a piece of memory, a writer takes what stands in it, and both may be at work on the
same piece: the one behind the other. So the first bytes are passed on at once, a fast line fills
whole pieces while the one before is being written, and on a slow one nothing waits for long.

Where a share of a memory budget is given, the pieces come from it. The first is waited for; the
second makes the two halves overlap, and a pull does without it when memory is short.
"""

from __future__ import annotations

import math
import mmap
from collections import deque
from collections.abc import Awaitable, Callable

import trio

from cafsfs.store.budget import LARGEST_PIECE, LEAST_PIECE, MemoryBudget, Share

# Bytes a hop. A hop into a thread and back costs about 100 µs, hashing and writing 1 MiB about 200.
# With 2 MiB a pull is a fifth faster than with 1 MiB, with 4 MiB hardly more; it keeps two of them.
PIECE = LARGEST_PIECE

# Pieces double from here on: whoever streams has the first bytes when they are there, and the six
# hops more cost a large blob half a millisecond.
_FIRST = LEAST_PIECE

# Up to this length (bytes) a blob is one piece: nobody streams it, and one hop is cheaper than two.
_SMALL = 256 << 10

# A line that brings less than a piece in this time passes on what it has. Readers judge a pull by
# its progress, and wait for their bytes; a line of packets costs fifty hops a second.
_HOLD = 0.02  # seconds

# A line that has brought nothing for so long gives its share of a budget back, buffers and all, and
# waits for the next byte with a few that nobody counts.
_IDLE = 1.0  # seconds
_SIP = 4 << 10  # bytes


async def pump(
    read: Callable[[memoryview], Awaitable[int]],
    write: Callable[[memoryview], Awaitable[None]],
    *,
    length: int | None = None,
    hold: float = _HOLD,
    share: Share | None = None,
) -> None:
    """Pass everything that ``read`` gives to ``write``, in order, in pieces of up to PIECE bytes.

    ``read(buffer)`` returns the bytes it read, 0 at the end only. ``length`` is the number of
    bytes to come where that is known: no more are read, and it saves memory for small blobs.
    ``hold`` is how long (seconds) bytes wait for more to fill their piece: long where nobody reads
    what is written, so that a thousand slow lines cost few hops. ``share`` is what the buffers are
    taken from; then ``read``, when it is cancelled, must have read nothing. The first error of
    either side is raised as it is. Cancelled between two pieces, nothing more is read or written.
    """
    if length is not None and length <= _SMALL:
        if share is not None:
            await share.acquire(length)
        await _pump_small(read, write, length, hold)
        return
    line = _Line(length, hold, share)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(line.empty, write)
            await line.fill(read)
    except BaseExceptionGroup as group:
        raise first_error(group) from None


async def _pump_small(
    read: Callable[[memoryview], Awaitable[int]],
    write: Callable[[memoryview], Awaitable[None]],
    length: int,
    hold: float,
) -> None:
    """One after the other, in one buffer; in one hop if all comes soon."""
    left = memoryview(bytearray(length))
    while left:
        late = trio.current_time() + hold
        filled = 0
        while filled < len(left):
            got = await read(left[filled:])
            filled += got
            if got == 0 or trio.current_time() >= late:
                break
        if filled:
            await write(left[:filled])
        if got == 0:
            break
        left = left[filled:]


class _Piece:
    """A buffer of which the first ``filled`` bytes were read, and of them ``emptied`` written.

    ``whole`` is the buffer of the share that it is a part of, if it is of one.
    """

    def __init__(self, buffer: memoryview, whole: memoryview | None) -> None:
        self.buffer = buffer
        self.whole = whole
        self.filled = 0
        self.emptied = 0
        self.steps = 0  # writes so far

    @property
    def full(self) -> bool:
        return self.filled == len(self.buffer)

    @property
    def done(self) -> bool:
        return self.emptied == len(self.buffer)


class _Line:
    """Two pieces at most: the last is being filled, the first is being emptied.

    ``fill`` and ``empty`` run side by side and wait for each other at one place each: ``fill`` for
    a piece that has room, ``empty`` for bytes.
    """

    def __init__(self, length: int | None, hold: float, share: Share | None) -> None:
        self._left = length  # bytes to come; None if nobody knows
        self._hold = hold
        self._share = share or MemoryBudget().share()
        self._patience = math.inf if share is None else _IDLE
        self._pieces: deque[_Piece] = deque()
        self._spare: memoryview | None = None
        self._size = _FIRST
        self._ended = False
        self._begun = False
        self._wanted: Callable[[], bool] | None = None  # what ``empty`` waits for
        self._wake = trio.Event()
        self._room = trio.Event()
        self._reading = trio.CancelScope()

    async def fill(self, read: Callable[[memoryview], Awaitable[int]]) -> None:
        """Read until the end."""
        while self._left != 0:
            await self._make_room()
            count = 0
            with trio.CancelScope() as self._reading:
                count = await self._read(read, self._pieces[-1])
            if self._reading.cancelled_caught:
                self._free()
                count = await self._sip(read)
            if count == 0:
                break
            if self._left is not None:
                self._left -= count
            self._tell_writer()
        self._ended = True
        self._tell_writer()

    async def empty(self, write: Callable[[memoryview], Awaitable[None]]) -> None:
        """Write until the end."""
        while await self._has_bytes():
            piece = self._pieces[0]
            end = piece.filled
            await write(piece.buffer[piece.emptied : end])
            piece.emptied = end
            piece.steps += 1
            self._begun = True
            if piece.done:
                self._pieces.popleft()
                self._spare = piece.whole or self._spare
                self._room.set()
            del piece  # its memory may be given back while we wait

    # --- the reader's side

    @staticmethod
    async def _read(read: Callable[[memoryview], Awaitable[int]], piece: _Piece) -> int:
        count = await read(piece.buffer[piece.filled :])
        piece.filled += count
        return count

    async def _sip(self, read: Callable[[memoryview], Awaitable[int]]) -> int:
        """Read the first bytes after a pause, into memory that is worth no accounting."""
        size = _SIP if self._left is None else min(_SIP, self._left)
        buffer = memoryview(bytearray(size))
        count = await read(buffer)
        piece = _Piece(buffer[:count], None)
        piece.filled = count
        self._pieces.append(piece)
        return count

    async def _make_room(self) -> None:
        """Have the last piece be one with room."""
        if self._pieces:
            last = self._pieces[-1]
            if not last.full:
                return
            # Nothing was awaited since it became full, so it is still here.
            if last.steps <= 1:  # full before it was late
                self._size = min(2 * self._size, PIECE)
            del last
        while (whole := self._buffer()) is None:
            if self._pieces:
                self._room = trio.Event()
                await self._room.wait()
            else:
                await self._share.acquire(_FIRST)
                self._spare = _allocate(_FIRST)
        size = len(whole) if self._left is None else min(len(whole), self._left)
        self._pieces.append(_Piece(whole[:size], whole))

    def _buffer(self) -> memoryview | None:
        """A buffer of the size that is right now, or one that there is; None if there is none."""
        if len(self._pieces) == 2:
            return None
        spare, self._spare = self._spare, None
        size = min(self._size, self._share.piece)
        if spare is None:
            for each in (size, _FIRST):
                if self._share.take(each):
                    return _allocate(each)
            return None
        if len(spare) < size and self._share.take(size - len(spare)):
            return _allocate(size)
        if len(spare) > size:
            excess = len(spare) - size
            spare = None  # freed before others are told that it is
            self._share.give_back(excess)
            return _allocate(size)
        return spare

    def _free(self) -> None:
        """Give back all buffers, of which nothing is left to be written."""
        buffers = [each.whole for each in self._pieces] + [self._spare]
        count = sum(len(each) for each in buffers if each is not None)
        self._pieces.clear()
        self._spare = None
        self._size = _FIRST
        del buffers
        self._share.give_back(count)

    # --- the writer's side

    async def _has_bytes(self) -> bool:
        """True when it is time to write what there is, False at the end."""
        while not self._come():
            with trio.move_on_after(self._patience):
                await self._until(self._come)
            if not self._come():
                self._reading.cancel()
        if self._begun and not self._ready():
            with trio.move_on_after(self._hold):
                await self._until(self._ready)
        return self._waiting > 0

    def _come(self) -> bool:
        return self._waiting > 0 or self._ended

    def _ready(self) -> bool:
        """True when the first piece gets no fuller."""
        return self._ended or self._pieces[0].full

    @property
    def _waiting(self) -> int:
        """Bytes that are to be written first."""
        return self._pieces[0].filled - self._pieces[0].emptied if self._pieces else 0

    async def _until(self, enough: Callable[[], bool]) -> None:
        if not enough():
            self._wanted = enough
            self._wake = trio.Event()
            try:
                await self._wake.wait()
            finally:
                self._wanted = None

    def _tell_writer(self) -> None:
        if self._wanted is not None and self._wanted():
            self._wake.set()


def _allocate(size: int) -> memoryview:
    """Memory that the system has back when it is freed; malloc would keep it for itself."""
    if size <= _FIRST:  # where that matters little, and costs a small blob 10 µs
        return memoryview(bytearray(size))
    return memoryview(mmap.mmap(-1, size))


def first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that a nursery wrapped: the first that is no mere cancellation.

    A nursery puts what its tasks raise into a group; where the tasks are two halves of one deed,
    the caller wants the error itself.
    """
    _, errors = group.split(trio.Cancelled)
    leaf: BaseException = errors if errors is not None else group
    while isinstance(leaf, BaseExceptionGroup):
        leaf = leaf.exceptions[0]
    return leaf
