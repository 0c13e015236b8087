"""Each fault of a line in each phase, for the library: right or an error, in time, and no leak."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from cafsfs.client import CafsClient
from cafsfs.client.servers import Member, Server
from cafsfs.errors import BlobNotFound, CafsError
from tests.fault_proxy import Fault, FaultProxy, Phase, fault_proxy
from tests.server.stand import Stand, digest_of, serving

SIZE = 700_000  # so large that its size is asked for, not pulled
CONTENT = Random(1).randbytes(SIZE)
DIGEST = digest_of(CONTENT)
CONNECTIONS = 2
# Seconds for an operation: each connection is tried, and for each the deadlines are 5 to connect,
# 5 for SIZE, 30 and a moment for the answer, 30 for a window of the body.
BOUND = CONNECTIONS * (5 + 5 + 31 + 30)
CUT = {Phase.CONNECT: 0, Phase.GREETING: 5, Phase.ANSWER: 2, Phase.BODY: SIZE // 2}


def cases() -> dict[str, tuple[Phase, Fault]]:
    found: dict[str, tuple[Phase, Fault]] = {}
    for phase, cut in {**CUT, Phase.REQUEST: SIZE // 2}.items():
        faults = {
            "is late": Fault(delay=1),
            "stalls": Fault(after=cut, then="stall"),
            "is a black hole": Fault(after=cut, then="black-hole"),
            "closes": Fault(after=cut, then="close"),
            "resets": Fault(after=cut, then="reset"),
            "refuses": Fault(after=cut, then="refuse"),
            "vanishes": Fault(after=cut, then="vanish"),
        }
        if phase not in {Phase.CONNECT, Phase.REQUEST}:
            faults |= {"drips": Fault(drip=(1, 11)), "is corrupt": Fault(spoil=cut)}
        found |= {f"{phase.value} {name}": (phase, fault) for name, fault in faults.items()}
    return found


CASES = cases()


@pytest.fixture
def no_warnings_judged() -> Iterator[None]:
    """Warnings are what such a day brings; errors are not."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


pytestmark = pytest.mark.usefixtures("no_warnings_judged")


class Errand:
    """What a client is asked to do, and how it is seen that it was done right."""

    def __init__(self, client: CafsClient, directory: Path) -> None:
        self._client = client
        self._file = directory / "file"

    async def check(self) -> None:
        assert await self._client.check(DIGEST)

    async def stat(self) -> None:
        assert (await self._client.stat(DIGEST)).size == SIZE

    async def pull(self) -> None:
        await self._client.pull(DIGEST, self._file)
        assert self._file.read_bytes() == CONTENT

    async def stream(self) -> None:
        content = Random(2).randbytes(SIZE)
        self._file.write_bytes(content)
        name = await self._client.stream(self._file)
        assert name == digest_of(content).hex
        assert await self._client.check(name)


DEEDS: dict[str, Callable[[Errand], Awaitable[None]]] = {
    "check": Errand.check,
    "stat": Errand.stat,
    "pull": Errand.pull,
    "stream": Errand.stream,
}


@asynccontextmanager
async def two_servers(directory: Path) -> AsyncIterator[tuple[Stand, Stand]]:
    (directory / "first").mkdir()
    (directory / "second").mkdir()
    async with serving(directory / "first") as first, serving(directory / "second") as second:
        first.keep_content(CONTENT)
        second.keep_content(CONTENT)
        yield first, second


async def comes_true(condition: Callable[[], bool]) -> bool:
    """In real time, while the clock stands: a farewell is on its way, from one to the next."""
    for _ in range(500):  # of 10 ms and more
        await wait_all_tasks_blocked(0.01)
        if condition():
            return True
    return False


async def suffer(
    line: FaultProxy, servers: list[str | Member], directory: Path, name: str, deed: str
) -> bool:
    """Run a deed while the line fails; raises what it raises. Did the fault strike?"""
    phase, fault = CASES[name]
    tasks = trio.lowlevel.current_statistics().tasks_living
    async with CafsClient("/root", servers, connections_per_server=CONNECTIONS) as client:
        line.fault(phase, fault)
        began = trio.current_time()
        try:
            await DEEDS[deed](Errand(client, directory))
        finally:
            assert trio.current_time() - began < BOUND
            # Of an upload, what the client left behind is before its farewell.
            assert await comes_true(lambda: line.stuck == 0 or phase is Phase.REQUEST)
            struck = sum(line.struck.values())
    line.hang_up()
    assert await comes_true(lambda: line.open == 0)
    assert await comes_true(lambda: trio.lowlevel.current_statistics().tasks_living <= tasks)
    return bool(struck)


@pytest.mark.parametrize("deed", DEEDS)
@pytest.mark.parametrize("name", CASES)
async def test_a_healthy_second_server(
    tmp_path: Path, jumping_clock: MockClock, name: str, deed: str
) -> None:
    async with two_servers(tmp_path) as (first, second), fault_proxy(first.address) as line:
        healthy = Member(Server.parse(second.address), priority=1)
        struck = await suffer(line, [line.address, healthy], tmp_path, name, deed)
        assert struck or not is_met(name, deed)


def is_met(name: str, deed: str) -> bool:
    """Does a fault lie in the way of a deed, so that it can be counted?"""
    phase, fault = CASES[name]
    if phase is Phase.CONNECT:
        return fault.then not in {"refuse", "vanish"}
    if phase is Phase.REQUEST:
        return deed == "stream" or fault.then is None
    return phase is not Phase.BODY or deed == "pull"


@pytest.mark.parametrize("deed", DEEDS)
@pytest.mark.parametrize("name", CASES)
async def test_one_server(tmp_path: Path, jumping_clock: MockClock, name: str, deed: str) -> None:
    async with two_servers(tmp_path) as (first, _), fault_proxy(first.address) as line:
        error: CafsError | None = None
        struck = False
        try:
            struck = await suffer(line, [line.address], tmp_path, name, deed)
        except CafsError as raised:
            error = raised
        assert not isinstance(error, BlobNotFound)
        if name.endswith("is late"):
            assert error is None
        elif error is None:
            assert not struck
        line.mend()
        line.hang_up()
        async with CafsClient("/root", [line.address]) as client:
            await DEEDS[deed](Errand(client, tmp_path))
