"""Who may use a cache's directory, who does, and what becomes of one that cannot be written."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from cafsfs.errors import StoreError
from cafsfs.packing import hash_bytes
from cafsfs.store.cache.partials import Partial
from cafsfs.store.cache.premises import Premises, Session
from cafsfs.store.cache.upkeep import open_disk_cache
from tests.store.samples import ABSENT, pull, put
from tests.store.stacks import Caches, upkeep_of

SESSION = Session(os.getpid(), "a test")


@pytest.fixture(autouse=True)
def _nothing_stays_open(no_descriptor_left: None) -> None:
    pass


@pytest.fixture
def enter(tmp_path: Path) -> Iterator[Callable[..., Premises]]:
    """One more process in the same cache."""
    opened: list[Premises] = []

    def enter(session: Session = SESSION) -> Premises:
        premises = Premises(tmp_path / "cache")
        premises.enter(session)
        opened.append(premises)
        return premises

    yield enter
    for each in opened:
        each.close()


def sessions(directory: Path) -> int:
    return len(list((directory / "sessions").iterdir()))


# --- who may


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777, 0o1777])
@pytest.mark.parametrize("name", ["", "blobs", "partial", "sessions"])
def test_where_others_can_write_is_no_cache(tmp_path: Path, mode: int, name: str) -> None:
    Premises(tmp_path / "cache").close()
    (tmp_path / "cache" / name).chmod(mode)
    with pytest.raises(StoreError, match="others can write to the cache") as caught:
        Premises(tmp_path / "cache")
    path = str(tmp_path / "cache" / name).rstrip("/")
    assert path in str(caught.value)
    assert caught.value.hint == f"keep them out: chmod go-w {path}"


@pytest.mark.parametrize("mode", [0o700, 0o755, 0o750])
def test_who_can_only_read_does_no_harm(tmp_path: Path, mode: int) -> None:
    Premises(tmp_path).close()
    tmp_path.chmod(mode)
    Premises(tmp_path).close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize("name", ["", "blobs"])
def test_what_somebody_else_owns_is_no_cache(tmp_path: Path, name: str) -> None:
    Premises(tmp_path).close()
    os.chown(tmp_path / name, 1234, -1)
    with pytest.raises(StoreError, match="belongs to user 1234") as caught:
        Premises(tmp_path)
    assert caught.value.hint == "name a directory of your own with --cache-dir"


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StoreError, match=f"cannot use `{path}` as a cache: "):
            Premises(path)


def test_it_is_made_with_all_that_leads_to_it(tmp_path: Path) -> None:
    premises = Premises(tmp_path / "a" / "b")
    assert premises.read_only is None
    assert premises.directory.stat().st_mode & 0o777 == 0o700
    assert premises.identity == (tmp_path.stat().st_dev, (tmp_path / "a/b").stat().st_ino)
    total, free = premises.measure()
    assert 0 < free <= total
    premises.close()


def test_a_link_to_it_is_the_same_cache(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "cache")
    premises = Premises(tmp_path / "cache")
    linked = Premises(tmp_path / "link")
    assert premises.identity == linked.identity
    premises.close()
    linked.close()


# --- read-only


@pytest.fixture
def open_to_all() -> Iterator[Path]:
    """Those of pytest are closed to others."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


@contextmanager
def read_only(directory: Path) -> Iterator[None]:
    """A bind mount that even root cannot write to."""
    if os.geteuid() != 0:
        pytest.skip("only root mounts")
    subprocess.run(["mount", "--bind", directory, directory], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", directory], check=True)
        yield
    finally:
        subprocess.run(["umount", "--lazy", directory], check=True)


@pytest.mark.process
async def test_a_read_only_cache_is_read(tmp_path: Path, expect_log: Callable[[str], None]) -> None:
    async with open_disk_cache(tmp_path) as cache:
        digest = await put(cache, b"content")
    expect_log("WARNING cafsfs.store.cache.upkeep: the cache can only be read: ")
    with read_only(tmp_path):
        async with open_disk_cache(tmp_path) as cache:
            assert cache.usage.trouble is not None
            assert await pull(cache, digest) == b"content"
            partial = await cache.claim(ABSENT)
            assert isinstance(partial, Partial)
            assert partial.path is None
            partial.write(b"pulled")
            file = await cache.commit(partial)
            assert await file.read(0, 10) == b"pulled"
            file.close()
            await upkeep_of(cache).adopt()
            assert [each.digest for each in await cache.listing()] == [digest]
    async with open_disk_cache(tmp_path) as cache:
        assert [each.digest for each in await cache.listing()] == [digest]


@pytest.mark.process
async def test_where_nothing_can_be_made_nothing_is_cached(
    tmp_path: Path, expect_log: Callable[[str], None]
) -> None:
    expect_log("WARNING cafsfs.store.cache.upkeep: the cache can only be read: ")
    with read_only(tmp_path):
        async with open_disk_cache(tmp_path) as cache:
            assert await cache.find_missing([ABSENT]) == {ABSENT}
            assert await cache.listing() == []
            assert cache.usage.blobs == 0
    assert list(tmp_path.iterdir()) == []


_AS_ANOTHER_USER = """
import os, sys
sys.path[:0] = {path!r}
import trio
from cafsfs.digest import Digest
from cafsfs.store.cache.upkeep import open_disk_cache
from cafsfs.store.memory import MemorySink
from pathlib import Path

async def main():
    os.setgid(1234), os.setuid(1234)
    async with open_disk_cache(Path({directory!r})) as cache:
        sink = MemorySink()
        await cache.pull(Digest.parse({digest!r}), sink)
        sys.stdout.buffer.write(sink.content)

trio.run(main)
"""


@pytest.mark.process
@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes somebody else")
def test_a_cache_of_roots_is_read_by_others_if_they_may(open_to_all: Path) -> None:
    directory = open_to_all / "cache"

    async def fill() -> str:
        async with open_disk_cache(directory) as cache:
            return (await put(cache, b"content")).hex

    digest = trio.run(fill)
    for each in [directory, *directory.rglob("*")]:
        each.chmod(0o755 if each.is_dir() else 0o644)
    code = _AS_ANOTHER_USER.format(path=sys.path, directory=str(directory), digest=digest)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, b"content"), done.stderr.decode()


# --- sessions


def test_who_uses_it(enter: Callable[..., Premises]) -> None:
    mount, prefetch = Session(1, "a mount", 5 << 30), Session(2, "prefetch")
    one, other = enter(mount), enter(prefetch)
    assert one.others() == [prefetch]
    assert other.others() == [mount]
    assert (one.largest_bound(), other.largest_bound()) == (None, 5 << 30)
    third = enter(Session(3, "another mount", 6 << 30))
    assert other.largest_bound() == 6 << 30
    third.leave()
    one.leave()
    assert other.others() == []
    assert other.largest_bound() is None


def test_who_leaves_leaves_nothing(enter: Callable[..., Premises]) -> None:
    premises = enter()
    assert sessions(premises.directory) == 1
    premises.leave()
    premises.leave()
    assert sessions(premises.directory) == 0
    assert premises.dead_sessions() == []


def test_who_is_killed_is_found_dead_once(enter: Callable[..., Premises]) -> None:
    dead, living = enter(), enter()
    assert living.dead_sessions() == []
    dead.close()
    assert living.others() == []
    ((descriptor, path),) = living.dead_sessions()
    assert enter().dead_sessions() == []  # one looks after it, not two
    os.close(descriptor)
    ((descriptor, path),) = living.dead_sessions()
    living.forget(descriptor, path)
    assert not path.exists()
    assert living.dead_sessions() == []


def test_a_session_that_cannot_be_opened_hides_no_dead_one(enter: Callable[..., Premises]) -> None:
    """Another process has just removed it, say."""
    premises, dead = enter(), [enter(), enter()]
    for each in dead:
        each.close()
    directory = premises.directory / "sessions"
    for name in ("0", "zzz"):  # whatever the order of the directory
        (directory / name).symlink_to(directory / "nowhere")
    found = premises.dead_sessions()
    assert len(found) == 2
    for session in found:
        premises.forget(*session)


@pytest.mark.parametrize("garbage", [b"", b"{", b"[]", b'{"pid": 1}', b"\xff"])
def test_a_session_of_another_version_is_passed_over(
    enter: Callable[..., Premises], garbage: bytes
) -> None:
    one, other = enter(), enter(Session(7, "strange"))
    (path,) = one.directory.glob("sessions/7.*")
    path.write_bytes(garbage)
    assert one.others() == []
    assert one.largest_bound() is None
    other.leave()


# --- prefetching gives way


def test_who_pulls_in_the_foreground_is_seen_by_others_only(enter: Callable[..., Premises]) -> None:
    mount, prefetch = enter(), enter()
    assert not prefetch.in_foreground()
    for _ in range(2):
        mount.pull_in_foreground(pulls=True)
    assert prefetch.in_foreground()
    assert not mount.in_foreground()
    mount.pull_in_foreground(pulls=False)
    assert not prefetch.in_foreground()
    mount.pull_in_foreground(pulls=True)
    mount.close()  # killed
    assert not prefetch.in_foreground()


async def test_without_a_session_directory_it_is_a_cache(tmp_path: Path) -> None:
    caches = Caches()
    cache = caches.open(tmp_path)
    for each in (tmp_path / "sessions").iterdir():
        each.unlink()
    (tmp_path / "sessions").rmdir()
    assert await put(cache, b"content") == hash_bytes(b"content")
    assert cache.premises.dead_sessions() == []
    assert cache.premises.others() == []
    caches.close()
