"""No server can be reached: what is cached is served, the rest fails at once, and all recovers."""

from __future__ import annotations

import re
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.cli.guides import documented
from tests.fuse.conftest import Mounting, drop_pages
from tests.fuse.mounted import Mounted
from tests.fuse.processes import CAFSFS, LEASHED, Process, attempt, eventually, run
from tests.fuse.serving import Blob, BlobMaker, Roots

pytestmark = pytest.mark.fuse

FAST = 4.0  # seconds on a busy machine; who waits for a server waits for 5 at the least
OFFLINE = "WARNING .*failing at once until a server can be reached: "
REFUSED = "WARNING .*(lookup|read|open|getattr): .*no server could be reached"
FAILED = "WARNING .*(lookup|read): "
NOT_ENOENT = {"EIO", "ETIMEDOUT"}


class Address:
    """A port of this machine where a server may be, or nothing, or what never answers."""

    def __init__(self, roots: Roots, log: Path) -> None:
        self._roots = roots
        self._log = log
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self.port: int = sock.getsockname()[1]
        self.uri = f"cafs://127.0.0.1:{self.port}/data"

    @contextmanager
    def server(self) -> Iterator[Process]:
        listen = f"127.0.0.1:{self.port}"
        self._log.write_text("")
        serve = (*LEASHED, *CAFSFS, "serve", self._roots.directory, "--listen", listen)
        with Process(*serve, log=self._log) as process:
            eventually(lambda: " serving " in self._log.read_text(), what="the server listens")
            yield process

    @contextmanager
    def silence(self) -> Iterator[None]:
        """Connections are accepted by the kernel, and nobody ever says a word."""
        with self._listening(backlog=100):
            yield

    @contextmanager
    def black_hole(self) -> Iterator[None]:
        """Packets vanish: the queue is full, so the kernel answers no SYN."""
        with self._listening(backlog=0), ExitStack() as stack:
            for _ in range(3):
                sock = stack.enter_context(socket.socket())
                sock.setblocking(False)
                sock.connect_ex(("127.0.0.1", self.port))
            yield

    @contextmanager
    def _listening(self, backlog: int) -> Iterator[None]:
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("127.0.0.1", self.port))
            sock.listen(backlog)
            yield


@pytest.fixture
def address(roots: Roots, scratch: Path) -> Address:
    return Address(roots, scratch / "server.log")


@pytest.fixture
def some(blobs: BlobMaker, roots: Roots) -> list[Blob]:
    return [roots.put(blobs.random(100_000 + number)) for number in range(6)]


def fill(mounting: Mounting, address: Address, blobs: list[Blob]) -> None:
    """A mount before has read them."""
    with address.server():
        mount = mounting(uri=address.uri)
        read_all(mount, blobs)
        mount.stop()
        assert mount.judge_log() == []
        mount.announce(FAILED)
        mount.announce(OFFLINE)


def read_all(mount: Mounted, blobs: list[Blob]) -> None:
    for each in blobs:
        run("cmp", mount.path(each), each.source).ok()


def servers(mount: Mounted) -> dict[str, Any]:
    found: dict[str, Any] = mount.stats()["servers"]
    return found


def fails_fast(mount: Mounted, blobs: list[Blob]) -> None:
    for each in blobs:
        assert attempt("open(a[0], 'rb').read(1)", mount.path(each), within=FAST) in NOT_ENOENT


def recovers(mount: Mounted, address: Address, blobs: list[Blob]) -> None:
    """What failed a moment ago is read as soon as a server is there."""
    with address.server():
        eventually(lambda: servers(mount)["state"] == "online", what="online")
        read_all(mount, blobs)
    mount.logged(r"INFO .*a server answers again, after [0-9.]+ s")


@pytest.mark.parametrize("place", ["nothing", "silence", "black_hole"])
def test_a_mount_comes_up_and_serves_what_is_cached(
    place: str, mounting: Mounting, address: Address, some: list[Blob]
) -> None:
    fill(mounting, address, some[:3])
    with ExitStack() as stack:
        if place != "nothing":
            stack.enter_context(getattr(address, place)())
        began = time.monotonic()
        mount = mounting(uri=address.uri)
        assert time.monotonic() - began < FAST
        mount.announce(OFFLINE)
        mount.announce(FAILED)
        read_all(mount, some[:3])
        listed = attempt("sorted(os.listdir(a[0]))", mount.point / "blake3")
        assert listed == sorted(each.hash for each in some[:3])
        assert attempt("open(a[0], 'rb').read(1)", mount.path(some[3])) in NOT_ENOENT
        eventually(lambda: servers(mount)["state"] == "offline", what="offline")
        if place == "nothing":
            mount.logged(documented("failing at once until").pattern)
        fails_fast(mount, some[3:])
        check_state(mount, address)
        read_all(mount, some[:3])
    recovers(mount, address, some)


def check_state(mount: Mounted, address: Address) -> None:
    state = servers(mount)
    assert set(state) == {"state", "since", "reason", "members"}
    assert f"127.0.0.1:{address.port}" in state["reason"]
    age = datetime.now().astimezone() - datetime.fromisoformat(state["since"])
    assert timedelta(0) <= age + timedelta(seconds=1) < timedelta(minutes=1)
    mount.logged(REFUSED)
    log = mount.logged(OFFLINE + f".*127.0.0.1:{address.port}")
    assert len(re.findall(OFFLINE, log)) == 1


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP])
def test_a_server_that_goes_away_and_comes_back(
    end: signal.Signals, mounting: Mounting, address: Address, some: list[Blob]
) -> None:
    with address.server() as server:
        mount = mounting(uri=address.uri)
        mount.announce(OFFLINE)
        mount.announce(FAILED)
        read_all(mount, some[:3])
        assert servers(mount)["state"] == "online"
        server.signal(end)
        if end is not signal.SIGSTOP:
            assert server.ended(10)
        for each in some[:3]:
            drop_pages(mount, each)
        read_all(mount, some[:3])
        assert attempt("open(a[0], 'rb').read(1)", mount.path(some[3])) in NOT_ENOENT
        eventually(lambda: servers(mount)["state"] == "offline", what="offline")
        fails_fast(mount, some[3:])
        read_all(mount, some[:3])
        if end is signal.SIGSTOP:
            server.signal(signal.SIGCONT)
            eventually(lambda: servers(mount)["state"] == "online", what="online")
            read_all(mount, some)
            return
    recovers(mount, address, some)


def test_no_answer_of_an_outage_is_remembered(
    mounting: Mounting, address: Address, some: list[Blob], roots: Roots, blobs: BlobMaker
) -> None:
    late = blobs.random(5000)
    mount = mounting(uri=address.uri)
    mount.announce(OFFLINE)
    mount.announce(FAILED)
    for each in [late, *some]:
        assert attempt("os.stat(a[0])", mount.path(each)) in NOT_ENOENT
    with address.server():
        eventually(lambda: servers(mount)["state"] == "online", what="online")
        assert attempt("os.stat(a[0])", mount.path(late)) == "ENOENT"  # now somebody has said so
        read_all(mount, some)
        roots.put(late)
        eventually(lambda: run("cmp", mount.path(late), late.source).code == 0, what="it is there")


def test_one_of_two_servers_is_enough(
    mounting: Mounting, address: Address, some: list[Blob], roots: Roots, scratch: Path
) -> None:
    other = Address(roots, scratch / "other.log")
    mount = mounting(uri=f"cafs://127.0.0.1:{address.port},127.0.0.1:{other.port}/data")
    mount.announce("WARNING .*")
    assert attempt("os.stat(a[0])", mount.path(some[0])) in NOT_ENOENT
    mount.logged(documented("is down, the others are asked").pattern)
    with other.server():
        eventually(lambda: servers(mount)["state"] == "online", what="online")
        read_all(mount, some)
    with address.server():
        assert attempt("os.stat(a[0]).st_size", mount.path(some[0])) == some[0].size
