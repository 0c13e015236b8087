"""Listings: what is cached and only that, in pages, each entry a reference if it is taken."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cafsfs.digest import Digest
from cafsfs.errors import NotSupported
from cafsfs.store.cache.index import Changes
from cafsfs.vfs.filesystem import FOREVER
from tests.store.samples import put
from tests.store.stacks import Caches, upkeep_of
from tests.vfs.scripted import BLAKE3, CONTROL, ROOT, Scene, entries


async def some_blobs(scene: Scene, count: int) -> list[Digest]:
    return sorted([await scene.cached(f"blob {number}".encode()) for number in range(count)])


def page(scene: Scene, handle: int, start: int, room: int) -> tuple[list[bytes], int]:
    """Read on from ``start`` as the kernel does, with room for so many entries."""
    names: list[bytes] = []
    for name, attributes, following in scene.fs.readdir(handle, start):
        if len(names) == room:
            scene.fs.passed_over(attributes.inode)
            break
        scene.fs.listed(attributes.inode)
        names.append(name)
        start = following
    return names, start


async def test_the_root_lists_one_directory(scene: Scene) -> None:
    await some_blobs(scene, 3)
    assert [(name, found.inode) for name, found in await entries(scene.fs, ROOT)] == [
        ("blake3", BLAKE3)
    ]


async def test_control_files_are_found_but_not_listed(scene: Scene) -> None:
    assert await entries(scene.fs, CONTROL) == []
    assert (await scene.fs.lookup(CONTROL, b"version")).size == 6


async def test_what_is_cached_is_listed_and_nothing_else(scene: Scene) -> None:
    blobs = await some_blobs(scene, 5)
    await scene.lookup(scene.upstream.add(b"known to the kernel, not cached"))
    listed = dict(await entries(scene.fs, BLAKE3))
    assert list(listed) == [each.hex for each in blobs]
    for digest in blobs:
        assert listed[digest.hex] == await scene.lookup(digest)
        assert listed[digest.hex].remember == FOREVER
        assert listed[digest.hex].size == len(scene.upstream.content[digest])
    assert len(scene.upstream.asked) == 1  # by the lookup of the one that is not cached


@pytest.mark.parametrize("room", [1, 2, 3, 5, 7, 100])
async def test_pages_of_any_size_make_the_same_listing(scene: Scene, room: int) -> None:
    await some_blobs(scene, 5)
    handle = await scene.fs.opendir(BLAKE3)
    whole, _ = page(scene, handle, 0, 100)
    names: list[bytes] = []
    start = 0
    while True:
        more, start = page(scene, handle, start, room)
        if not more:
            break
        names += more
    assert names == whole


async def test_only_what_the_kernel_took_is_a_reference(scene: Scene) -> None:
    blobs = await some_blobs(scene, 5)
    handle = await scene.fs.opendir(BLAKE3)
    taken, start = page(scene, handle, 0, 4)  # two of them are . and ..
    known = [each for each in blobs if scene.fs.find_inode(each) is not None]
    assert [each.hex.encode() for each in known] == [name for name in taken if len(name) == 64]
    page(scene, handle, start, 100)
    assert scene.fs.state()["known_inodes"] == 5
    scene.fs.release(handle)
    assert scene.fs.state()["known_inodes"] == 5  # a reference outlives its listing
    for digest in blobs:
        inode = scene.fs.find_inode(digest)
        assert inode is not None
        scene.fs.forget(inode, 1)
    assert scene.fs.state() == {"known_inodes": 0, "open_handles": 0}


async def test_a_listing_counts_beside_lookups(scene: Scene) -> None:
    (digest,) = await some_blobs(scene, 1)
    blob = await scene.lookup(digest)
    dict(await entries(scene.fs, BLAKE3))
    scene.fs.forget(blob.inode, 1)
    assert scene.fs.find_inode(digest) == blob.inode
    scene.fs.forget(blob.inode, 1)
    assert scene.fs.find_inode(digest) is None


async def test_an_entry_that_is_passed_over_does_not_forget_what_is_known(scene: Scene) -> None:
    (digest,) = await some_blobs(scene, 1)
    blob = await scene.lookup(digest)
    handle = await scene.fs.opendir(BLAKE3)
    page(scene, handle, 0, 0)
    page(scene, handle, 2, 0)
    assert scene.fs.find_inode(digest) == blob.inode


async def test_a_listing_is_of_when_it_was_opened(scene: Scene) -> None:
    """What was evicted since is in it; but the kernel is not told to remember it."""
    blobs = await some_blobs(scene, 3)
    handle = await scene.fs.opendir(BLAKE3)
    late = await scene.cached(bytes(9_995))  # of 10,000
    await scene.evict()
    names, _ = page(scene, handle, 0, 100)
    assert names == [b".", b"..", *(each.hex.encode() for each in blobs)]
    assert late.hex.encode() not in names
    listed = {name: found for name, found, _ in scene.fs.readdir(handle, 2)}
    assert [found.remember for found in listed.values()] == [1] * 3
    scene.fs.release(handle)
    assert await entries(scene.fs, BLAKE3) == []


async def test_what_nobody_has_verified_is_listed_and_not_remembered(scene: Scene) -> None:
    """A file whose index was lost: its size is to be asked for before it is used."""
    (digest,) = await some_blobs(scene, 1)
    entry = await scene.cache.describe(digest)
    assert entry is not None
    await scene.evict()
    scene.cache.ledger.index.apply(Changes({digest: replace(entry, verified=0.0)}))
    scene.cache.ledger.forget(digest)
    ((name, found),) = await entries(scene.fs, BLAKE3)
    assert (name, found.size, found.remember) == (digest.hex, 6, 0)
    assert (await scene.lookup(digest)).remember == FOREVER  # which has hashed it
    ((_, found),) = await entries(scene.fs, BLAKE3)
    assert found.remember == FOREVER


async def test_what_another_process_has_cached_is_listed(scene: Scene, caches: Caches) -> None:
    other = caches.open(scene.cache.premises.directory)
    digest = await put(other, b"of another process")
    await upkeep_of(other).flush()
    ((name, found),) = await entries(scene.fs, BLAKE3)
    assert (name, found.size) == (digest.hex, 18)
    assert found.remember == 1  # it may be evicted, and nobody would tell us
    assert found.blocks == 1


async def test_a_file_is_not_listed(scene: Scene) -> None:
    blob = await scene.lookup(await scene.cached(b"content"))
    control = await scene.fs.lookup(CONTROL, b"version")
    for inode in (blob.inode, control.inode):
        with pytest.raises(NotSupported):
            await scene.fs.opendir(inode)


async def test_df_shows_the_cache_from_memory(scene: Scene) -> None:
    await scene.cached(bytes(1000))
    space = scene.fs.statfs()
    assert (space.total, space.used, space.files) == (10_000, 1000, 1)


async def test_releasing_twice_or_what_never_was_is_fine(scene: Scene) -> None:
    handle = await scene.fs.opendir(ROOT)
    for each in (handle, handle, 12345):
        scene.fs.release(each)
