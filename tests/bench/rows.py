"""What is measured: each row is a piece of work, done by us and by a peer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from tests.bench import caches
from tests.bench.stage import OURS, PEER, PLAIN, Sample, Stage

Run = Callable[[Stage], Sample]

ASYNCIO = "asyncio client"
PLAIN_READ = "plain file read"
EMPTY = "over an empty cache"

# What issue 3 asks of a cache of a million blobs.
_SOON = 1.0  # seconds
_LITTLE = 150_000_000  # bytes


class Unit(Enum):
    """What figures are shown in; a ratio is one of speed in any case."""

    RATE = "MiB/s"  # of the big blob
    BLOBS = "blobs/s"  # of the cache of many
    SECONDS = "s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A piece of work.

    ``aim`` is the least ratio of our rate to the peer's, ``limit`` the most seconds, and
    ``memory`` the most bytes resident. A row without a peer is there for context: it says what
    the machine can do, or how long what has no peer takes. ``many``: it needs the cache of many
    blobs. ``once``: it takes too long for more runs.
    """

    name: str
    work: str
    ours: Run
    peer: Run | None = None
    peer_name: str = ""
    aim: float | None = None
    limit: float | None = None
    memory: int | None = None
    unit: Unit = Unit.RATE
    many: bool = False
    once: bool = False


def _pull_by_peer(stage: Stage) -> Sample:
    return stage.pull(PEER)


def _read_plain(stage: Stage) -> Sample:
    return stage.read_plain()


ROWS = (
    Row(
        name="pull",
        work="pull, NONE: CafsClient.pull, verified",
        ours=lambda stage: stage.pull(OURS),
        peer=_pull_by_peer,
        peer_name=f"{ASYNCIO}, pull",
        aim=2,
    ),
    Row(
        name="put",
        work="put, NONE: CafsClient.stream",
        ours=lambda stage: stage.put(OURS),
        peer=lambda stage: stage.put(PEER),
        peer_name=f"{ASYNCIO}, put",
        aim=1,
    ),
    Row(
        name="cp-cold",
        work="cp of a cold blob from the mount",
        ours=Stage.copy_cold,
        peer=_pull_by_peer,
        peer_name=f"{ASYNCIO}, pull",
        aim=1,
    ),
    Row(
        name="dd-cold",
        work="dd bs=1M of a cold blob from the mount",
        ours=Stage.dd_cold,
        peer=_pull_by_peer,
        peer_name=f"{ASYNCIO}, pull",
    ),
    Row(
        name="read-first",
        work="first read of a cached blob, mount",
        ours=lambda stage: stage.read_cached(times=1),
        peer=_read_plain,
        peer_name=PLAIN_READ,
    ),
    Row(
        name="read-second",
        work="second read of it, same mount",
        ours=lambda stage: stage.read_cached(times=2),
        peer=_read_plain,
        peer_name=PLAIN_READ,
    ),
    Row(
        name="verify",
        work="cache verify of a few large blobs, all cores",
        ours=caches.verify_large,
        peer=caches.blake_on_all_cores,
        peer_name="BLAKE3 from memory, as many threads",
        aim=0.7,
    ),
    # What the filesystem leaves of that: tmpfs has small pages, and hands them out at half the
    # speed of ext4's large folios.
    Row(
        name="verify-read",
        work="the same, beside a bare loop",
        ours=caches.verify_large,
        peer=caches.blake_large,
        peer_name="read and BLAKE3, as many threads",
    ),
    Row(
        name="verify-many",
        work="cache verify of many tiny blobs",
        ours=caches.verify_many,
        unit=Unit.BLOBS,
        many=True,
        once=True,
    ),
    Row(
        name="mount-many",
        work="mount over many blobs, to the first read",
        ours=caches.mount_many,
        peer=caches.mount_empty,
        peer_name=EMPTY,
        limit=_SOON,
        memory=_LITTLE,
        unit=Unit.SECONDS,
        many=True,
    ),
    Row(
        name="list-many",
        work="ls -f blake3/ of many blobs",
        ours=caches.list_many,
        peer=caches.find_many,
        peer_name="find in the directory of the cache",
        unit=Unit.SECONDS,
        many=True,
        once=True,
    ),
    # The last of those with many: it leaves an index by which nothing was ever verified.
    Row(
        name="mount-rebuild",
        work="mount over them without their index",
        ours=caches.mount_without_index,
        peer=caches.mount_empty,
        peer_name=EMPTY,
        limit=_SOON,
        memory=_LITTLE,
        unit=Unit.SECONDS,
        many=True,
        once=True,
    ),
    Row(
        name="socket",
        work="loopback socket, recv_into alone",
        ours=lambda stage: stage.time(PLAIN, "loopback", str(stage.size)),
    ),
    Row(
        name="blake3",
        work="BLAKE3 on one core",
        ours=lambda stage: stage.time(PLAIN, "blake", str(stage.size)),
    ),
    Row(
        name="write",
        work="writing a file there, not synced",
        ours=Stage.write_target,
    ),
)
