"""Names: asked for anew each time, once for all who wait, and remembered for bad times."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from cafsfs.client.connection import ServerConnection
from cafsfs.client.remote import RemoteStore
from cafsfs.client.servers import Deadlines, Server
from cafsfs.errors import ConnectTimedOut, Unreachable
from cafsfs.resolver import Address, Resolver
from tests.bad_server import bad_server
from tests.cli.guides import documented
from tests.server.stand import digest_of

ABSENT = digest_of(b"absent")
RELYING = "WARNING cafsfs.resolver: resolving `host`: .*; using the address it had before"


def address(host: str, port: int = 80) -> Address:
    return (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (host, port))


class Names:
    """A directory of names that a test can change, break, and let hang."""

    def __init__(self, *known: Address) -> None:
        self.known: Sequence[Address] = known
        self.error: OSError | None = None
        self.hangs = False
        self.asked = 0

    async def query(self, host: str, port: int) -> Sequence[Address]:
        self.asked += 1
        await trio.lowlevel.checkpoint()
        if self.hangs:
            await trio.sleep_forever()
        if self.error is not None:
            raise self.error
        return self.known


def failing() -> OSError:
    return socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")


async def test_an_address_that_changes_is_followed() -> None:
    names = Names(address("10.0.0.1"))
    resolver = Resolver("host", 80, query=names.query)
    assert await resolver.addresses() == (address("10.0.0.1"),)
    names.known = [address("10.0.0.2"), address("10.0.0.3")]
    assert await resolver.addresses() == [address("10.0.0.2"), address("10.0.0.3")]
    assert names.asked == 2


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "fe80::1%lo"])
async def test_an_address_is_no_name(host: str) -> None:
    names = Names()
    [found] = await Resolver(host, 80, query=names.query).addresses()
    assert found[4][:2] in {(host, 80), ("fe80::1", 80)}
    assert names.asked == 0


async def test_all_who_ask_at_once_share_one_lookup() -> None:
    names = Names(address("10.0.0.1"))
    resolver = Resolver("host", 80, query=names.query)
    found = []

    async def ask() -> None:
        found.append(await resolver.addresses())

    async with trio.open_nursery() as nursery:
        for _ in range(500):
            nursery.start_soon(ask)
    assert len(found) == 500
    assert names.asked == 1


async def test_all_who_ask_at_once_share_its_failure() -> None:
    names = Names()
    names.error = failing()
    resolver = Resolver("host", 80, query=names.query)
    errors = []

    async def ask() -> None:
        try:
            await resolver.addresses()
        except Unreachable as error:
            errors.append(error)

    async with trio.open_nursery() as nursery:
        for _ in range(500):
            nursery.start_soon(ask)
    assert len({id(error) for error in errors}) == 500
    assert {str(error) for error in errors} == {
        "cannot resolve `host`: Temporary failure in name resolution"
    }
    assert names.asked == 1


async def test_who_gives_a_lookup_up_leaves_it_to_the_next() -> None:
    names = Names(address("10.0.0.1"))
    names.hangs = True
    resolver = Resolver("host", 80, query=names.query)
    async with trio.open_nursery() as nursery:
        first = trio.CancelScope()

        async def give_up() -> None:
            with first:
                await resolver.addresses()

        nursery.start_soon(give_up)
        await wait_all_tasks_blocked()
        nursery.start_soon(resolver.addresses)
        await wait_all_tasks_blocked()
        names.hangs = False
        first.cancel()
    assert names.asked == 2


@pytest.mark.parametrize("how", ["late", "fails"])
async def test_what_was_known_is_used_while_it_cannot_be_told(
    how: str, autojump_clock: MockClock, expect_log: Callable[[str], None]
) -> None:
    expect_log(documented("address it had before").pattern if how == "late" else RELYING)
    names = Names(address("10.0.0.1"))
    resolver = Resolver("host", 80, query=names.query)
    await resolver.addresses()
    names.known = [address("10.0.0.2")]
    names.hangs, names.error = how == "late", failing()
    for number in range(3):
        assert await resolver.addresses() == (address("10.0.0.1"),)
        assert trio.current_time() == (number + 1 if how == "late" else 0)
    names.hangs, names.error = False, None
    assert await resolver.addresses() == [address("10.0.0.2")]


async def test_that_is_said_once_each_time(
    caplog: pytest.LogCaptureFixture, expect_log: Callable[[str], None]
) -> None:
    expect_log(RELYING)
    names = Names(address("10.0.0.1"))
    resolver = Resolver("host", 80, query=names.query)
    for _ in range(2):
        names.error = None
        await resolver.addresses()
        names.error = failing()
        for _ in range(5):
            await resolver.addresses()
    assert len(caplog.messages) == 2


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """The system's resolver waits for this event, for every name."""
    original, released = socket.getaddrinfo, threading.Event()

    def ask(*arguments: Any, **options: Any) -> Any:
        if not options.get("flags", 0) & socket.AI_NUMERICHOST:
            released.wait(10)
        return original(*arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", ask)
    return released


async def test_a_resolver_that_hangs_is_bounded(stuck: threading.Event) -> None:
    """It costs a connect its deadline, a crowd two threads, and others who need threads nothing."""
    remote = RemoteStore(Server("localhost", 1), "/root", deadlines=Deadlines(connect=0.2))
    before = threading.active_count()
    errors = []

    async def ask() -> None:
        try:
            await remote.find_absent([ABSENT])
        except ConnectTimedOut as error:
            errors.append(error)

    began = trio.current_time()
    for _ in range(3):
        async with trio.open_nursery() as nursery:
            for _ in range(200):
                nursery.start_soon(ask)
    assert len(errors) == 600
    assert trio.current_time() - began < 3
    assert threading.active_count() - before <= 2
    assert trio.to_thread.current_default_thread_limiter().borrowed_tokens == 0
    stuck.set()
    with pytest.raises(Unreachable, match="Connection refused"):
        await remote.find_absent([ABSENT])


async def test_connects_go_on_while_the_resolver_hangs(
    jumping_clock: MockClock, expect_log: Callable[[str], None]
) -> None:
    expect_log(RELYING)
    async with bad_server() as server:
        names = Names(address("127.0.0.1", server.port))
        resolver = Resolver("host", server.port, query=names.query)
        for hangs in (False, True):
            names.hangs = hangs
            there = Server("host", server.port)
            connection = await ServerConnection.open(
                there, b"/root", Deadlines(), resolver=resolver
            )
            assert await connection.check([ABSENT]) == {ABSENT}
            connection.close()
