"""WatchedStore: it tells how far a pull is, and changes nothing."""

from __future__ import annotations

import pytest

from cafsfs.digest import Digest
from cafsfs.errors import BlobNotFound
from cafsfs.store.contracts import BlobStat, ContentSink, Wanted
from cafsfs.store.memory import MemorySink, MemorySource, MemoryStore
from cafsfs.store.watched import WatchedStore
from tests.store.samples import ABSENT, MemoryDestination, content_of, pull, put


class _Stumbling(MemoryStore):
    """The first attempt fails after a byte."""

    async def pull(self, digest: Digest, sink: ContentSink) -> BlobStat:
        sink.restart()
        sink.write(b"?")
        return await super().pull(digest, sink)


async def test_it_tells_how_far_a_pull_is() -> None:
    seen: list[tuple[Digest, int]] = []
    store = WatchedStore(MemoryStore(), lambda digest, end: seen.append((digest, end)))
    content = content_of(100_000)
    digest = await put(store, content)
    assert seen == []
    assert await pull(store, digest) == content
    assert seen[-1] == (digest, 100_000)
    assert [end for _, end in seen] == sorted(end for _, end in seen)


async def test_a_further_attempt_begins_at_0() -> None:
    ends: list[int] = []
    store = WatchedStore(_Stumbling(), lambda _, end: ends.append(end))
    digest = await put(store, b"content")
    sink = MemorySink()
    await store.pull(digest, sink)
    assert (bytes(sink.content), ends[0], ends[-1]) == (b"content", 1, 7)


async def test_it_tells_how_far_each_of_a_batch_is() -> None:
    seen: list[tuple[Digest, int]] = []
    store = WatchedStore(MemoryStore(), lambda digest, end: seen.append((digest, end)))
    digests = [await put(store, b"a" * size) for size in (1, 2, 3)]
    wanted = [Wanted(each, MemoryDestination()) for each in [*digests, ABSENT]]
    assert list(await store.pull_many(wanted)) == wanted[3:]
    assert sorted(end for _, end in seen) == [1, 2, 3]
    assert {digest for digest, _ in seen} == set(digests)


async def test_all_else_passes_through() -> None:
    store = WatchedStore(MemoryStore(), lambda _digest, _end: None)
    digest = await put(store, b"content")
    await store.put(digest, MemorySource(b"content"))
    assert await store.find_missing([digest, ABSENT]) == {ABSENT}
    assert (await store.stat(digest)).size == 7
    with pytest.raises(BlobNotFound):
        await store.stat(ABSENT)
