"""Several processes on one cache: each blob is pulled once, and no one needs another to live."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.bad_server import BadServerProcess, Fault, Phase
from tests.fuse.conftest import Mounting, cached_file
from tests.fuse.mounted import Mounted, clear_mount, learn_size
from tests.fuse.processes import CAFSFS, Process, eventually, process_state, run
from tests.fuse.serving import ROOT, Blob, BlobMaker

pytestmark = pytest.mark.fuse

SIZE = 600_000
SLOW = Fault(drip=(20_000, 0.05))  # a blob takes 1.5 s
SLOWEST = Fault(drip=(20_000, 0.5))  # 15 s: nobody waits for the end of that pull
STALLED = 15.0  # seconds after which a holder who does not move is left alone


@pytest.fixture
def some(blobs: BlobMaker, server: BadServerProcess) -> list[Blob]:
    made = [blobs.random(SIZE + number) for number in range(6)]
    for each in made:
        server.put(each.source)
    return made


@pytest.fixture
def pair(mounting: Mounting, scratch: Path) -> tuple[Mounted, Mounted]:
    """Two mounts, and one cache."""
    for name in ("a", "b"):
        (scratch / name).mkdir()
    cache = scratch / "cache"
    return mounting(home=scratch / "a", cache=cache), mounting(home=scratch / "b", cache=cache)


def learn_sizes(server: BadServerProcess, blobs: Sequence[Blob], *mounts: Mounted) -> None:
    """From here on nobody looks at a header: the server is asked for nothing but content."""
    for mount in mounts:
        for blob in blobs:
            learn_size(mount, server, blob)


def reader(mount: Mounted, blob: Blob) -> Process:
    return Process("cmp", mount.path(blob), blob.source)


def compare(mount: Mounted, blob: Blob) -> None:
    run("cmp", mount.path(blob), blob.source).ok()


def opener(mount: Mounted, blob: Blob) -> Process:
    """Has it open, and leaves at once when it is killed: no READ is on its way."""
    return Process("sh", "-c", 'exec 3<"$0"; exec sleep 100', mount.path(blob))


def prefetch(server: BadServerProcess, cache: Path, blobs: Sequence[Blob]) -> Process:
    uri = f"cafs://{server.address}{ROOT}"
    hashes = [each.hash for each in blobs]
    return Process(*CAFSFS, "prefetch", "--cache-dir", cache, uri, *hashes)


def partial(mount: Mounted, blob: Blob) -> Path:
    return mount.cache / "partial" / blob.hash


def begun(mount: Mounted, blob: Blob, length: int = 40_000) -> Callable[[], bool]:
    path = partial(mount, blob)
    return lambda: path.exists() and path.stat().st_size >= length


def kill(mount: Mounted) -> None:
    mount.daemon.signal(signal.SIGKILL)
    assert mount.daemon.ended(within=5)
    clear_mount(mount.point)


def check_cache(cache: Path, blobs: Sequence[Blob]) -> None:
    """All of them are there, and nothing else."""
    files = sorted(path for path in (cache / "blobs").rglob("*") if path.is_file())
    assert files == sorted(cached_file(cache, each) for each in blobs)
    for each in blobs:
        assert cached_file(cache, each).read_bytes() == each.content
    assert list((cache / "partial").iterdir()) == []


def test_two_mounts_and_a_prefetch_pull_each_blob_once(
    pair: tuple[Mounted, Mounted], server: BadServerProcess, some: list[Blob]
) -> None:
    learn_sizes(server, some, *pair)
    pulls = server.counts()["pulls"]
    server.fault(Phase.BODY, SLOW)
    with ExitStack() as stack:
        filling = stack.enter_context(prefetch(server, pair[0].cache, some))
        readers = [
            stack.enter_context(reader(mount, blob))
            for blob in some
            for mount in pair
            for _ in range(4)
        ]
        for each in readers:
            each.finish().ok()
        filling.finish().ok()
    assert server.counts()["pulls"] == pulls + len(some)
    check_cache(pair[0].cache, some)
    assert sum(mount.counters()["pulls"] for mount in pair) <= len(some)


@pytest.mark.parametrize("readers", [1, 5])
def test_a_follower_goes_on_where_a_killed_holder_was(
    readers: int, pair: tuple[Mounted, Mounted], server: BadServerProcess, some: list[Blob]
) -> None:
    holder, follower = pair
    blob = some[0]
    learn_sizes(server, [blob], *pair)
    pulls = server.counts()["pulls"]
    server.fault(Phase.BODY, SLOWEST, times=1)
    with ExitStack() as stack:
        stack.enter_context(reader(holder, blob))
        eventually(begun(follower, blob), what="the pull has begun")
        server.freeze()
        waiting = [stack.enter_context(reader(follower, blob)) for _ in range(readers)]
        eventually(lambda: follower.stats()["pulls_in_flight"] == 1, what="it follows")
        kill(holder)
        server.thaw()
        for each in waiting:
            each.finish().ok()
    assert server.counts()["pulls"] == pulls + 2
    check_cache(follower.cache, [blob])


def test_a_killed_prefetch_is_taken_over(
    pair: tuple[Mounted, Mounted], server: BadServerProcess, some: list[Blob]
) -> None:
    mount, other = pair
    blob = some[0]
    learn_sizes(server, [blob], *pair)
    pulls = server.counts()["pulls"]
    server.fault(Phase.BODY, SLOWEST, times=1)
    with prefetch(server, mount.cache, [blob]) as holder:
        eventually(begun(mount, blob), what="the pull has begun")
        server.freeze()
        with reader(mount, blob) as first, reader(other, blob) as second:
            eventually(lambda: mount.stats()["pulls_in_flight"] == 1, what="it follows")
            holder.signal(signal.SIGKILL)
            server.thaw()
            first.finish().ok()
            second.finish().ok()
    assert server.counts()["pulls"] == pulls + 2
    check_cache(mount.cache, [blob])


def test_what_is_left_of_a_killed_holder_is_not_trusted(
    pair: tuple[Mounted, Mounted], server: BadServerProcess, some: list[Blob]
) -> None:
    holder, other = pair
    blob = some[0]
    learn_sizes(server, [blob], *pair)
    server.fault(Phase.BODY, SLOWEST, times=1)
    with reader(holder, blob):
        eventually(begun(holder, blob), what="the pull has begun")
        server.freeze()
        holder.daemon.signal(signal.SIGSTOP)
        eventually(lambda: process_state(holder.daemon.pid) == "T", what="it is stopped")
        with partial(holder, blob).open("r+b") as file:
            file.write(b"wrong")
        kill(holder)
        server.thaw()
    compare(other, blob)
    check_cache(other.cache, [blob])


def test_a_stopped_holder_does_not_stop_the_others(
    pair: tuple[Mounted, Mounted], server: BadServerProcess, some: list[Blob]
) -> None:
    holder, follower = pair
    follower.announce("WARNING .*another process pulls .* and does not move")
    blob = some[0]
    learn_sizes(server, [blob], *pair)
    server.fault(Phase.BODY, SLOW)
    with reader(holder, blob) as first, ExitStack() as stack:
        eventually(begun(follower, blob), what="the pull has begun")
        holder.daemon.signal(signal.SIGSTOP)
        waiting = [stack.enter_context(reader(follower, blob)) for _ in range(3)]
        for each in waiting:
            assert each.finish().ok().seconds < STALLED + 10
        assert follower.counters()["uncached"] == 1
        # What the holder does not have now is no business of its.
        for other in some[1:3]:
            compare(follower, other)
        holder.daemon.signal(signal.SIGCONT)
        first.finish().ok()
    compare(follower, blob)
    check_cache(holder.cache, some[:3])


def test_a_pull_that_somebody_else_waits_for_goes_on(
    pair: tuple[Mounted, Mounted], server: BadServerProcess, some: list[Blob]
) -> None:
    holder, follower = pair
    blob = some[0]
    learn_sizes(server, [blob], *pair)
    pulls = server.counts()["pulls"]
    server.fault(Phase.BODY, SLOW)
    with opener(holder, blob) as leaver:
        eventually(begun(follower, blob), what="the pull has begun")
        server.freeze()
        with reader(follower, blob) as waiter:
            eventually(lambda: follower.stats()["pulls_in_flight"] == 1, what="it follows")
            leaver.signal(signal.SIGKILL)
            assert leaver.ended(within=5)
            server.thaw()
            waiter.finish().ok()
    assert server.counts()["pulls"] == pulls + 1
    check_cache(follower.cache, [blob])


def test_a_pull_that_nobody_waits_for_stops(
    pair: tuple[Mounted, Mounted], server: BadServerProcess, some: list[Blob]
) -> None:
    holder, other = pair
    blob = some[0]
    learn_sizes(server, [blob], *pair)
    server.fault(Phase.BODY, SLOWEST, times=1)
    with opener(holder, blob) as leaver:
        eventually(begun(other, blob), what="the pull has begun")
        leaver.signal(signal.SIGKILL)
        assert leaver.ended(within=5)
    eventually(lambda: not partial(other, blob).exists(), what="it has stopped")
    assert not cached_file(other.cache, blob).exists()
    compare(other, blob)
    check_cache(other.cache, [blob])


def test_a_pull_that_nobody_waits_for_can_be_finished(
    mounting: Mounting, server: BadServerProcess, some: list[Blob]
) -> None:
    mount = mounting("--finish-pulls")
    blob = some[0]
    learn_sizes(server, [blob], mount)
    server.fault(Phase.BODY, SLOW, times=1)
    with opener(mount, blob) as leaver:
        eventually(begun(mount, blob), what="the pull has begun")
        leaver.signal(signal.SIGKILL)
        assert leaver.ended(within=5)
    eventually(cached_file(mount.cache, blob).exists, what="it is finished")
    check_cache(mount.cache, [blob])


def test_an_error_reaches_every_waiter_and_nobody_keeps_it(
    pair: tuple[Mounted, Mounted], server: BadServerProcess, some: list[Blob]
) -> None:
    blob = some[0]
    for mount in pair:
        mount.announce("WARNING .*")
    learn_sizes(server, [blob], *pair)
    server.fault(Phase.BODY, Fault(drip=(20_000, 0.05), spoil=SIZE // 2))
    with ExitStack() as stack:
        readers = [stack.enter_context(reader(mount, blob)) for mount in pair for _ in range(3)]
        for each in readers:
            done = each.finish()
            assert (done.code, "Input/output error" in done.err) == (2, True)
    server.mend()
    for mount in pair:
        compare(mount, blob)
    check_cache(pair[0].cache, [blob])


def test_who_leaves_takes_nothing_from_who_stays(
    pair: tuple[Mounted, Mounted], server: BadServerProcess, some: list[Blob]
) -> None:
    first, second = pair
    for blob in some:
        compare(first, blob)
    first.stop()
    pulls = server.counts()["pulls"]
    for blob in some:
        compare(second, blob)
    assert server.counts()["pulls"] == pulls
    eventually(lambda: second.stats()["cache"]["blobs"] == len(some), what="it counts")
    run("ls", second.point / "blake3").ok()
