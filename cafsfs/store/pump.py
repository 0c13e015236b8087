"""Empty one buffer while the other is being filled: the hot path of every pull and upload.

A reader fills a piece of memory, a writer takes what stands in it, and both may be at work on the
same piece: the one behind the other. So the first bytes are passed on at once, a fast line fills
whole pieces while the one before is being written, and on a slow one nothing waits for long.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable

import trio

# Bytes a hop. A hop into a thread and back costs about 100 µs, hashing and writing 1 MiB about 200.
# With 2 MiB a pull is a fifth faster than with 1 MiB, with 4 MiB hardly more; it keeps two of them.
PIECE = 2 << 20

# Pieces double from here on: whoever streams has the first bytes when they are there, and the six
# hops more cost a large blob half a millisecond.
_FIRST = 64 << 10  # bytes

# Up to this length (bytes) a blob is one piece: nobody streams it, and one hop is cheaper than two.
_SMALL = 256 << 10

# A line that brings less than a piece in this time passes on what it has. Readers judge a pull by
# its progress, and wait for their bytes; a line of packets costs fifty hops a second.
_HOLD = 0.02  # seconds


async def pump(
    read: Callable[[memoryview], Awaitable[int]],
    write: Callable[[memoryview], Awaitable[None]],
    *,
    length: int | None = None,
    hold: float = _HOLD,
) -> None:
    """Pass everything that ``read`` gives to ``write``, in order, in pieces of up to PIECE bytes.

    ``read(buffer)`` returns the bytes it read, 0 at the end only. ``length`` is the number of
    bytes to come where that is known: no more are read, and it saves memory for small blobs. The
    first error of either side is raised as it is. Cancelled between two pieces, nothing more is
    read or written. ``hold`` is how long (seconds) bytes wait for more to fill their piece: long
    where nobody reads what is written, so that a thousand slow lines cost few hops.
    """
    if length is not None and length <= _SMALL:
        await _pump_small(read, write, length, hold)
        return
    line = _Line(length, hold)
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
    """A buffer of which the first ``filled`` bytes were read, and of them ``emptied`` written."""

    def __init__(self, buffer: memoryview) -> None:
        self.buffer = buffer
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

    def __init__(self, length: int | None, hold: float) -> None:
        self._left = length  # bytes to come; None if nobody knows
        self._hold = hold
        self._pieces: deque[_Piece] = deque()
        self._size = _FIRST
        self._spare = memoryview(b"")
        self._ended = False
        self._begun = False
        self._wanted: Callable[[], bool] | None = None  # what ``empty`` waits for
        self._wake = trio.Event()
        self._room = trio.Event()

    async def fill(self, read: Callable[[memoryview], Awaitable[int]]) -> None:
        """Read until the end."""
        while self._left != 0:
            piece = await self._piece_with_room()
            count = await read(piece.buffer[piece.filled :])
            if count == 0:
                break
            piece.filled += count
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
                self._spare = piece.buffer
                self._room.set()

    async def _piece_with_room(self) -> _Piece:
        if self._pieces:
            last = self._pieces[-1]
            if not last.full:
                return last
            # Nothing was awaited since it became full, so it is still here.
            if last.steps <= 1:  # full before it was late
                self._size = min(2 * self._size, PIECE)
        while len(self._pieces) == 2:
            self._room = trio.Event()
            await self._room.wait()
        size = self._size if self._left is None else min(self._size, self._left)
        buffer, self._spare = self._spare, memoryview(b"")
        if len(buffer) < size:
            buffer = memoryview(bytearray(size))
        piece = _Piece(buffer[:size])
        self._pieces.append(piece)
        return piece

    async def _has_bytes(self) -> bool:
        """True when it is time to write what there is, False at the end."""
        await self._until(lambda: self._waiting > 0 or self._ended)
        if self._begun and not self._ready:
            with trio.move_on_after(self._hold):
                await self._until(lambda: self._ready)
        return self._waiting > 0

    @property
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
