"""What is measured: each row is a piece of work, done by us and by a peer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.bench.stage import OURS, PEER, PLAIN, Sample, Stage

Run = Callable[[Stage], Sample]

ASYNCIO = "asyncio client"
PLAIN_READ = "plain file read"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A piece of work on the big blob.

    ``aim`` is the least ratio of our rate to the peer's. A row without a peer is there for
    context: it says what the machine can do.
    """

    name: str
    work: str
    ours: Run
    peer: Run | None = None
    peer_name: str = ""
    aim: float | None = None


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
