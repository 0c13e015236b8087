"""Each fault of a line in each phase, with one server and with a healthy second one beside it.

A reader gets the right bytes or an error, in bounded time; whoever looks at what is cached or runs
`df` meanwhile notices nothing; and nothing is left of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.fault_proxy import Fault, FaultProxyProcess, Phase
from tests.fuse.conftest import Mounting
from tests.fuse.mounted import Mounted
from tests.fuse.processes import Finished, descriptors_of, eventually, run
from tests.fuse.serving import ROOT, Blob, BlobMaker, Roots, Served
from tests.fuse.witness import Witness

pytestmark = pytest.mark.fuse

SIZE = 700_000  # so large that its size is asked for, not pulled
DEADLINES = (
    *("--lookup-timeout", "4", "--read-timeout", "3"),
    *("--connect-timeout", "1", "--answer-timeout", "1.2", "--progress-timeout", "0.8"),
)
BOUND = 2 * (4 + 3) + 2.0  # seconds for a copy: a lookup and a read, on a busy machine
MEANWHILE = 0.7  # seconds for `stat` and `df`; who waits for a server waits for 0.8 at the least
SOCKETS = 8  # of a server that are kept: four for bodies, four for questions

CUT = {Phase.CONNECT: 0, Phase.GREETING: 5, Phase.ANSWER: 2, Phase.BODY: SIZE // 2}


class Case(NamedTuple):
    """A fault, and whether a reader gets over it without another server."""

    phase: Phase
    fault: Fault
    harmless: bool = False


def cases() -> dict[str, Case]:
    found: dict[str, Case] = {}
    for phase, cut in CUT.items():
        found |= {
            f"{phase.value} {name}": case
            for name, case in {
                "is late": Case(phase, Fault(delay=0.3), harmless=True),
                "stalls": Case(phase, Fault(after=cut, then="stall")),
                "is a black hole": Case(phase, Fault(after=cut, then="black-hole")),
                "closes": Case(phase, Fault(after=cut, then="close")),
                "resets": Case(phase, Fault(after=cut, then="reset")),
                "refuses": Case(phase, Fault(after=cut, then="refuse")),
                "vanishes": Case(phase, Fault(after=cut, then="vanish")),
            }.items()
        }
        if phase is not Phase.CONNECT:
            found[f"{phase.value} drips"] = Case(phase, Fault(drip=(1, 0.3)))
            found[f"{phase.value} is corrupt"] = Case(phase, Fault(spoil=cut))
    found["body is corrupt everywhere"] = Case(Phase.BODY, Fault(spoil=16, every=100_000))
    found["body has a wrong last byte"] = Case(Phase.BODY, Fault(spoil=SIZE + 15))
    return found


CASES = cases()


@pytest.fixture(scope="module")
def store(home: Path) -> Roots:
    return Roots(home / "roots")


@pytest.fixture(scope="module")
def first(home: Path, store: Roots) -> Iterator[Served]:
    with Served(store, home / "first.log") as served:
        yield served


@pytest.fixture(scope="module")
def second(home: Path, store: Roots) -> Iterator[Served]:
    with Served(store, home / "second.log", host="127.0.0.2") as served:
        yield served


@pytest.fixture(scope="module")
def shared_line(first: Served) -> Iterator[FaultProxyProcess]:
    with FaultProxyProcess(first.address) as line:
        yield line


@pytest.fixture
def line(shared_line: FaultProxyProcess) -> Iterator[FaultProxyProcess]:
    """The way to the first server; whole again after each test."""
    yield shared_line
    shared_line.mend()
    shared_line.hang_up()


class Sufferer:
    """A mount that has one blob, and wants another through a line that is about to fail."""

    def __init__(self, mount: Mounted, cached: Blob, line: FaultProxyProcess) -> None:
        self.mount = mount
        self._cached = cached
        self._line = line
        # Warnings are what such a day brings; errors are not.
        mount.announce("^[^\n]* WARNING [^\n]*$")
        run("cmp", mount.path(cached), cached.source).ok()
        eventually(self._is_idle, what="the mount is idle")
        self._sockets, self._files = self._descriptors()

    def copy(self, blob: Blob, target: Path, case: Case) -> Finished:
        """What cp says of a copy while the line fails; it must be right if cp thinks so."""
        self._line.hang_up()  # a pooled connection would skip the greeting
        struck = sum(self._line.counts()["struck"].values())
        with Witness(self.mount, self._cached) as witness:
            witness.worst()  # from now on it looks
            self._line.fault(case.phase, case.fault)
            done = run("cp", self.mount.path(blob), target, within=BOUND)
            assert witness.worst() < MEANWHILE
        at_the_port = case.phase is Phase.CONNECT and case.fault.then in {"refuse", "vanish"}
        assert at_the_port or sum(self._line.counts()["struck"].values()) > struck
        if done.code == 0:
            assert target.read_bytes() == blob.content
        return done

    def leaves_nothing(self) -> None:
        """No connection that is of no use, no descriptor, no pull."""
        eventually(self._is_idle, what="the mount is idle")
        eventually(lambda: not self._line.counts()["stuck"], what="useless connections are closed")

        def nothing_left() -> bool:
            sockets, files = self._descriptors()
            return files == self._files and sockets <= self._sockets + 2 * SOCKETS

        eventually(nothing_left, what=f"descriptors are {self._files}: {self._descriptors()}")
        assert self.mount.counters()["handler_errors"] == 0

    def _is_idle(self) -> bool:
        stats = self.mount.stats()
        held = [stats["memory"][each] for each in ("held_bytes", "pulls", "waiting")]
        return not any([stats["pulls_in_flight"], stats["filesystem"]["open_handles"], *held])

    def _descriptors(self) -> tuple[int, list[str]]:
        """How many sockets, and which files."""
        found = list(descriptors_of(self.mount.daemon.pid).values())
        sockets = [each for each in found if each.startswith("socket:")]
        return len(sockets), sorted(each for each in found if each not in sockets)


@pytest.fixture
def cached(store: Roots, blobs: BlobMaker) -> Blob:
    return store.put(blobs.random(50_000))


@pytest.fixture
def blob(store: Roots, blobs: BlobMaker) -> Blob:
    return store.put(blobs.random(SIZE))


@pytest.mark.parametrize("name", CASES)
def test_one_server(
    line: FaultProxyProcess,
    mounting: Mounting,
    cached: Blob,
    blob: Blob,
    scratch: Path,
    name: str,
) -> None:
    mount = mounting(*DEADLINES, uri=f"cafs://{line.address}{ROOT}")
    sufferer = Sufferer(mount, cached, line)
    done = sufferer.copy(blob, scratch / "copy", CASES[name])
    if CASES[name].harmless:
        done.ok()
    else:
        assert done.code == 1
        assert done.err.strip().rpartition(": ")[2] in {
            "Input/output error",
            "Connection timed out",
        }
    sufferer.leaves_nothing()
    line.mend()
    whole = lambda: run("cmp", mount.path(blob), blob.source).code == 0  # noqa: E731
    eventually(whole, what="the blob is read when the line is mended")


@pytest.mark.parametrize("name", CASES)
def test_a_healthy_second_server(
    line: FaultProxyProcess,
    second: Served,
    mounting: Mounting,
    cached: Blob,
    blob: Blob,
    scratch: Path,
    name: str,
) -> None:
    mount = mounting(*DEADLINES, uri=f"cafs://{line.address},{second.address};priority=1{ROOT}")
    sufferer = Sufferer(mount, cached, line)
    sufferer.copy(blob, scratch / "copy", CASES[name]).ok()
    sufferer.leaves_nothing()
