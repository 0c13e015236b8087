"""Content to test with, sinks and sources that misbehave, and what a test may leave behind."""

from __future__ import annotations

import errno
import logging
import os
import random
import re
from collections.abc import Callable
from pathlib import Path

import trio

from cafsfs.digest import Digest
from cafsfs.packing import Compression, Packer, hash_bytes
from cafsfs.store.contracts import BlobStat, ContentStore, Wanted
from cafsfs.store.memory import MemorySink, MemorySource
from cafsfs.store.pump import PIECE

KIB, MIB = 1 << 10, 1 << 20

# Around every boundary there is: the head of a FileBody, a piece of the pump, several of them.
SIZES = (0, 1, 64 * KIB - 1, 64 * KIB, 64 * KIB + 1, MIB - 1, MIB, MIB + 1, 5 * MIB)

# Longer than a piece and prime to it, so that pieces in a wrong order show.
_BLOCK = random.Random(7).randbytes(PIECE + 13)

ABSENT = hash_bytes(b"what nobody has stored")


def content_of(size: int, variant: int = 0) -> bytes:
    """``size`` bytes, others for each variant."""
    start = variant.to_bytes(8, "little") if variant else b""
    return (start + _BLOCK * (size // len(_BLOCK) + 1))[:size]


def packed(content: bytes, compression: Compression = Compression.NONE) -> bytes:
    packer = Packer(compression, len(content))
    return packer.begin() + packer.feed(content) + packer.finish()


async def put(store: ContentStore, content: bytes) -> Digest:
    digest = hash_bytes(content)
    await store.put(digest, MemorySource(content))
    return digest


async def pull(store: ContentStore, digest: Digest) -> bytes:
    sink = MemorySink()
    await store.pull(digest, sink)
    return bytes(sink.content)


class MemoryDestination(MemorySink):
    """A destination in memory, that knows how it ended."""

    def __init__(self) -> None:
        super().__init__()
        self.ended: list[str] = []

    def commit(self, stat: BlobStat, /) -> None:
        assert stat.size == len(self.content)
        self.ended.append("committed")

    def abandon(self) -> None:
        assert "committed" not in self.ended
        self.ended.append("abandoned")


async def pull_many(store: ContentStore, digest: Digest) -> bytes:
    """Pull a batch of one; raises what failed."""
    destination = MemoryDestination()
    for error in (await store.pull_many([Wanted(digest, destination)])).values():
        raise error
    assert destination.ended[-1] == "committed"
    return bytes(destination.content)


async def stat_many(store: ContentStore, digest: Digest) -> BlobStat:
    """Stat a batch of one; raises what failed."""
    told: dict[Digest, BlobStat] = {}
    for error in (await store.stat_many([digest], told.__setitem__)).values():
        raise error
    return told[digest]


class ShortReads:
    """A source that never fills a buffer."""

    settled = False

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.size = len(content)

    def read_at(self, buffer: memoryview, offset: int) -> int:
        piece = self._content[offset : offset + min(len(buffer), 50_001)]
        buffer[: len(piece)] = piece
        return len(piece)


class EndsEarly(MemorySource):
    """A source that has less than it says."""

    @property
    def size(self) -> int:
        return super().size + 1


class FullDisk:
    """A sink that has no room for the first piece."""

    def __init__(self) -> None:
        self.error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def restart(self) -> None:
        pass

    def write(self, data: bytes | memoryview, /) -> None:
        raise self.error


class CallingSink(MemorySink):
    """Calls something with each piece, on whatever thread that is."""

    def __init__(self, call: Callable[[], object]) -> None:
        super().__init__()
        self._call = call

    def write(self, data: bytes | memoryview, /) -> None:
        super().write(data)
        self._call()


class CallingSource(MemorySource):
    """Calls something with each piece, on whatever thread that is."""

    def __init__(self, content: bytes, call: Callable[[], object]) -> None:
        super().__init__(content)
        self._call = call

    def read_at(self, buffer: memoryview, offset: int) -> int:
        self._call()
        return super().read_at(buffer, offset)


def may_log(expect_log: Callable[[str], None], text: str) -> None:
    """Announce a warning that comes or does not, as threads happen to run."""
    expect_log(text)
    logging.getLogger("cafsfs.tests").warning("%s", text)


def descriptors() -> int:
    """How many descriptors this process has open."""
    return len(os.listdir("/proc/self/fd"))


# What stands in a cache beside the blobs, as long as it is open or for good.
_BOOKS = re.compile(r"index\.(sqlite(-wal|-shm)?|lock)|foreground|sessions/[0-9]+\.[0-9a-f]{8}")


def strays(directory: Path) -> list[Path]:
    """Files below ``directory`` that are no blobs: nothing may leave one."""
    files = (each for each in directory.rglob("*") if each.is_file())
    return [
        each
        for each in files
        if re.fullmatch("[0-9a-f]{64}", each.name) is None or each.parent.name == "partial"
        if not _BOOKS.fullmatch(str(each.relative_to(directory)))
    ]


async def eventually(condition: Callable[[], bool]) -> bool:
    """True as soon as it is; False if that takes over two seconds.

    Only for what the other end of a socket does in its own time.
    """
    with trio.move_on_after(2):
        while not condition():  # noqa: ASYNC110  # there is no event: it is another's descriptor
            await trio.sleep(0.005)
    return condition()
