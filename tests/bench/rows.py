"""What is measured: each row is a piece of work, done by us and by a peer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum

from tests.bench import caches, crowds, reading, serving, transfers
from tests.bench.stage import MIB, OURS, PEER, Run, Stage
from tests.bench.supplies import GIANTS, SMALL_BLOBS

ASYNCIO = "asyncio client"
PLAIN_READ = "plain file read"
EMPTY = "over an empty cache"
RCLONE = "rclone mount"

# What issue 3 asks of a cache of a million blobs.
_SOON = 1.0  # seconds
_LITTLE = 150_000_000  # bytes

# What issue 4 asks of very many readers of cold blobs.
_A_WHILE = 30.0  # seconds; no read may wait for longer than that
_MUCH = 400_000_000  # bytes


class Unit(Enum):
    """What figures are shown in; a ratio is one of speed in any case."""

    RATE = "MiB/s"
    BLOBS = "blobs/s"
    READS = "reads/s"
    SECONDS = "s"


def _mebibytes(stage: Stage) -> float:
    return stage.size / MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A piece of work.

    ``aim`` is the least ratio of our rate to the peer's, ``limit`` the most seconds, and
    ``memory`` the most bytes resident. A row without a peer is there for context: it says what
    the machine can do, or how long what has no peer takes. ``amount``: what is done, in the unit
    that rates are shown in. ``many``: it needs the cache of many blobs. ``once``: it takes too long
    for more runs.
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
    amount: Callable[[Stage], float] = _mebibytes
    many: bool = False
    once: bool = False

    @property
    def needs_rclone(self) -> bool:
        """Whether the peer is one that a machine may lack."""
        return self.peer_name == RCLONE


def _transfers() -> Iterator[Row]:
    """Pulls and uploads of the big blob, however it is stored."""
    for codec, pull_aim, put_aim in (("NONE", 3, 1.5), ("ZSTD", None, None), ("ZLIB", None, None)):
        suffix = "" if codec == "NONE" else f"-{codec.lower()}"
        yield Row(
            name=f"pull{suffix}",
            work=f"pull, {codec}: CafsClient.pull, verified",
            ours=transfers.pull(OURS, codec),
            peer=transfers.pull(PEER, codec),
            peer_name=f"{ASYNCIO}, pull",
            aim=pull_aim,
        )
        yield Row(
            name=f"put{suffix}",
            work=f"put, {codec}: CafsClient.stream",
            ours=transfers.put(OURS, codec),
            peer=transfers.put(PEER, codec),
            peer_name=f"{ASYNCIO}, put",
            aim=put_aim,
            once=codec == "ZLIB",
        )


def _batches() -> Iterator[Row]:
    for far, aim in ((False, 3), (True, 20)):
        yield Row(
            name="pull-small-far" if far else "pull-small",
            work=f"pull_batch of 4 KiB blobs, {'20 ms round trip' if far else 'loopback'}",
            ours=transfers.pull_batch(OURS, far=far),
            peer=transfers.pull_batch(PEER, far=far),
            peer_name=f"{ASYNCIO}, pull_batch",
            aim=aim,
            unit=Unit.BLOBS,
            amount=lambda stage: stage.part(transfers.BATCH),
        )


def _first_bytes() -> Iterator[Row]:
    for far in (False, True):
        yield Row(
            name="first-byte-far" if far else "first-byte",
            work=f"first byte of a cold blob, {'20 ms round trip' if far else 'loopback'}",
            ours=crowds.first_byte(far=far),
            peer=crowds.round_trips(far=far),
            peer_name="4 round trips and 5 ms",
            aim=1,
            unit=Unit.SECONDS,
        )


def _read(
    name: str,
    work: str,
    what: reading.Reading,
    *,
    aim: float | None = None,
    unit: Unit = Unit.RATE,
    amount: Callable[[Stage], float] = _mebibytes,
) -> Iterator[Row]:
    """The same read of what is cached, beside plain files and beside rclone."""
    ours = what.at(reading.in_mount)
    peers = (("", PLAIN_READ, reading.in_files, None), ("-rclone", RCLONE, reading.in_rclone, aim))
    for suffix, peer_name, where, least in peers:
        yield Row(
            name=f"{name}{suffix}",
            work=work,
            ours=ours,
            peer=what.at(where),
            peer_name=peer_name,
            aim=least,
            unit=unit,
            amount=amount,
        )


def _reads() -> Iterator[Row]:
    whole, stat = reading.whole, reading.stat_small
    yield from _read("read-first", "first read of a cached blob, mount", whole(times=1), aim=2)
    yield from _read("read-second", "second read of it, same mount", whole(times=2))
    yield from _read(
        "read-random",
        "random reads of 4 KiB of it, mount",
        reading.at_random(),
        unit=Unit.READS,
        amount=lambda stage: stage.part(reading.RANDOM_READS),
    )
    yield from _read(
        "read-small",
        "open, read, close of cached 4 KiB blobs",
        reading.each_small(),
        unit=Unit.BLOBS,
        amount=lambda stage: stage.part(reading.SMALL_READS),
    )
    for times, look in ((1, "first"), (2, "second")):
        yield from _read(
            f"stat-{look}",
            f"stat of cached blobs, {look} look",
            stat(times=times),
            unit=Unit.BLOBS,
            amount=lambda stage: stage.part(SMALL_BLOBS),
        )


def _servers() -> Iterator[Row]:
    one = serving.pulled_by(1)
    yield Row(
        name="serve-1",
        work="cafsfs serve, one raw client",
        ours=one,
        peer=transfers.loopback,
        peer_name="loopback socket",
    )
    for clients in (8, 64):
        yield Row(
            name=f"serve-{clients}",
            work=f"cafsfs serve, {clients} raw clients together",
            ours=serving.pulled_by(clients),
            peer=one,
            peer_name="one raw client",
        )
    yield Row(
        name="serve-slow",
        work="cafsfs serve, one beside idle and stalled ones",
        ours=serving.pulled_beside_slow,
        peer=one,
        peer_name="one raw client",
    )


def _crowds() -> Iterator[Row]:
    yield Row(
        name="read-stalled",
        work="read of 10 MiB cached beside 90 stalled readers",
        ours=crowds.read_beside(crowds.STALLED),
        peer=crowds.read_beside(0),
        peer_name="the same undisturbed",
        aim=0.5,
        amount=lambda stage: crowds.CACHED / MIB,
    )
    for codec in ("NONE", "ZSTD"):
        yield Row(
            name=f"memory-{codec.lower()}",
            work=f"{GIANTS} cold blobs ({codec}) at once, till all get on",
            ours=crowds.read_all(codec),
            limit=_A_WHILE,
            memory=_MUCH,
            unit=Unit.SECONDS,
            once=True,
        )


ROWS = (
    *_transfers(),
    Row(
        name="pull-zstd-line",
        work="pull, ZSTD, beside a straight line",
        ours=transfers.pull(OURS, "ZSTD"),
        peer=transfers.straight,
        peer_name="unpack, hash and write, one thread",
        aim=0.8,
    ),
    Row(
        name="pull-encrypted",
        work="pull, NONE, authenticated and encrypted",
        ours=transfers.pull_encrypted,
        peer=transfers.pull(OURS, "NONE"),
        peer_name="the same, plain",
        aim=0.6,
    ),
    *_batches(),
    *_first_bytes(),
    Row(
        name="cp-cold",
        work="cp of a cold blob from the mount",
        ours=transfers.copy_cold,
        peer=transfers.pull(PEER),
        peer_name=f"{ASYNCIO}, pull",
        aim=1,
    ),
    Row(
        name="dd-cold",
        work="dd bs=1M of a cold blob from the mount",
        ours=transfers.dd_cold,
        peer=transfers.pull(PEER),
        peer_name=f"{ASYNCIO}, pull",
        aim=2.5,
    ),
    *_reads(),
    *_servers(),
    *_crowds(),
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
        amount=lambda stage: stage.blobs,
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
    Row(name="socket", work="loopback socket, recv_into alone", ours=transfers.loopback),
    Row(name="blake3", work="BLAKE3 on one core", ours=transfers.blake),
    Row(name="write", work="writing a file there, not synced", ours=transfers.write_target),
)
