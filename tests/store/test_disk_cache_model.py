"""The disk cache against a model: a dictionary of bytes with a bound."""

from __future__ import annotations

import os
import tempfile
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from cafsfs.errors import BlobNotFound
from cafsfs.packing import hash_bytes
from cafsfs.store.disk_cache import CachedFile, CacheUsage, DiskCache
from cafsfs.store.local_root import blob_path
from tests.store.samples import content_of, pull, put

CONTENTS = [content_of(size, variant) for variant, size in enumerate((0, 1, 10, 50, 100, 9000), 1)]
DIGESTS = [hash_bytes(content) for content in CONTENTS]


@dataclass(frozen=True)
class Put:
    blob: int


@dataclass(frozen=True)
class Read:
    blob: int
    offset: int
    length: int


@dataclass(frozen=True)
class Pull:
    blob: int


@dataclass(frozen=True)
class Hold:
    """Open, and read only at the end of all."""

    blob: int


@dataclass(frozen=True)
class Remove:
    """Somebody else removes the file."""

    blob: int


@dataclass(frozen=True)
class Reopen:
    bound: int


Step = Put | Read | Pull | Hold | Remove | Reopen

BLOBS = st.integers(0, len(CONTENTS) - 1)
BOUNDS = st.sampled_from([0, 1, 60, 111, 150, 9100, 20_000])
STEPS = st.one_of(
    st.builds(Put, BLOBS),
    st.builds(Read, BLOBS, st.integers(0, 10_000), st.integers(0, 10_000)),
    st.builds(Pull, BLOBS),
    st.builds(Hold, BLOBS),
    st.builds(Remove, BLOBS),
    st.builds(Reopen, BOUNDS),
)


@dataclass
class Model:
    """``books``: what the cache must believe to hold, least recently used first."""

    directory: Path
    bound: int
    books: OrderedDict[int, int] = field(default_factory=OrderedDict)
    standing: set[int] = field(default_factory=set)
    held: list[tuple[int, CachedFile]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.cache = DiskCache(self.directory, max_bytes=self.bound)

    def path(self, blob: int) -> Path:
        return blob_path(self.directory / "blobs", DIGESTS[blob])

    async def play(self, step: Step) -> None:
        match step:
            case Put(blob):
                await put(self.cache, CONTENTS[blob])
                self.standing.add(blob)
                self._used(blob)
                if len(CONTENTS[blob]) > self.bound:  # would drive out all others before
                    self.books.move_to_end(blob, last=False)
                self._shrink()
            case Remove(blob):
                self.path(blob).unlink(missing_ok=True)
                self.standing.discard(blob)
            case Reopen(bound):
                await self._reopen(bound)
            case Read(blob) | Pull(blob) | Hold(blob):
                if blob in self.standing:
                    await self._get(step)
                    self._used(blob)
                else:
                    with pytest.raises(BlobNotFound):
                        await self.cache.open(DIGESTS[blob])
                    self.books.pop(blob, None)
        self.check()

    async def _get(self, step: Read | Pull | Hold) -> None:
        content = CONTENTS[step.blob]
        if isinstance(step, Pull):
            assert await pull(self.cache, DIGESTS[step.blob]) == content
            return
        file = await self.cache.open(DIGESTS[step.blob])
        self.held.append((step.blob, file))
        if isinstance(step, Read):
            expected = content[step.offset : step.offset + step.length]
            assert await file.read(step.offset, step.length) == expected

    async def _reopen(self, bound: int) -> None:
        """The order of use is in the files' times, as finely as their clock goes."""
        order = [blob for blob in self.books if blob in self.standing]
        times = [self.path(blob).stat().st_mtime_ns for blob in order]
        assert times == sorted(times)
        for rank, blob in enumerate(order):
            os.utime(self.path(blob), (rank, rank))
        self.bound = bound
        self.cache = DiskCache(self.directory, max_bytes=bound)
        await self.cache.scan()
        self.books = OrderedDict((blob, len(CONTENTS[blob])) for blob in order)
        self._shrink()

    def _used(self, blob: int) -> None:
        self.books[blob] = len(CONTENTS[blob])
        self.books.move_to_end(blob)

    def _shrink(self) -> None:
        while sum(self.books.values()) > self.bound:
            blob, _ = self.books.popitem(last=False)
            self.standing.discard(blob)

    def check(self) -> None:
        assert self.cache.listing() == sorted(DIGESTS[blob] for blob in self.books)
        used = sum(self.books.values())
        assert self.cache.usage == CacheUsage(used=used, bound=self.bound, blobs=len(self.books))
        found = {each.name for each in (self.directory / "blobs").rglob("*") if each.is_file()}
        assert found == {DIGESTS[blob].hex for blob in self.standing}
        assert list((self.directory / "partial").iterdir()) == []

    async def end(self) -> None:
        for blob, file in self.held:
            assert await file.read(0, 1 << 20) == CONTENTS[blob]
            file.close()


@settings(deadline=None, max_examples=300)
@given(bound=BOUNDS, steps=st.lists(STEPS, max_size=25))
def test_as_the_model(bound: int, steps: list[Step]) -> None:
    async def play(directory: Path) -> None:
        model = Model(directory, bound)
        try:
            for step in steps:
                await model.play(step)
        finally:
            await model.end()

    with tempfile.TemporaryDirectory() as directory:
        trio.run(play, Path(directory))
