"""Version 002 from the client's side: what it gives, what it demands, and what it says if it fails.

Against our own server, and against peers that are written by hand where that server is too honest.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from cafsfs.client import CafsClient, Member
from cafsfs.client.connection import ServerConnection
from cafsfs.client.credentials import Credentials
from cafsfs.client.remote import RemoteStore
from cafsfs.client.servers import Deadlines, Server
from cafsfs.errors import (
    AuthenticationFailed,
    CafsError,
    ConnectionBroken,
    ConnectTimedOut,
    RemoteProtocolError,
    UsageError,
)
from cafsfs.secret import Secret
from cafsfs.server import Gate
from cafsfs.store.contracts import PackedBody
from cafsfs.store.memory import MemoryBody
from cafsfs.wire import Ciphers, Handshake, Hello, Role
from cafsfs.wire.handshake import page_at
from tests.bad_server import pack
from tests.cli.guides import documented
from tests.server.stand import digest_of, serving

VALUE = b"0123456789abcdefSECRET"
SECRET = Secret(VALUE)
OTHER = Secret(b"another-secret-entirely")
WITH = Credentials(secret=SECRET)
REQUIRED = Credentials(secret=SECRET, required=True)
WITHOUT = Credentials()
DEADLINES = Deadlines(connect=30, answer=30, progress=30)
ONES = b"\xff" * 8

CONTENT = bytes(i * 31 % 251 for i in range(5 << 20))
DIGEST = digest_of(CONTENT)
PACKED = pack(CONTENT)
SMALL = digest_of(b"small")


async def connect(
    port: int, credentials: Credentials = WITH, deadlines: Deadlines = DEADLINES
) -> ServerConnection:
    server = Server("127.0.0.1", port)
    return await ServerConnection.open(server, b"/root", deadlines, credentials=credentials)


async def refused(port: int, credentials: Credentials = WITH) -> AuthenticationFailed:
    with pytest.raises(AuthenticationFailed) as caught:
        await connect(port, credentials)
    assert caught.value.hint
    return caught.value


async def read(body: PackedBody, step: int = 1 << 20) -> bytes:
    packed = bytearray()
    buffer = memoryview(bytearray(step))
    while count := await body.readinto(buffer):
        packed += buffer[:count]
    return bytes(packed)


# --- with our server

MODES = {
    "no secret": (Gate(), WITHOUT),
    "a secret that is not asked for": (Gate(), WITH),
    "optional, without": (Gate(secret=SECRET, required=False), WITHOUT),
    "optional": (Gate(secret=SECRET, required=False), WITH),
    "optional, demanded": (Gate(secret=SECRET, required=False), REQUIRED),
    "required": (Gate(secret=SECRET), WITH),
    "required, demanded": (Gate(secret=SECRET), REQUIRED),
}


@pytest.mark.parametrize(("gate", "credentials"), MODES.values(), ids=MODES)
async def test_each_thing_that_a_client_does(
    tmp_path: Path, gate: Gate, credentials: Credentials
) -> None:
    async with serving(tmp_path, gate=gate) as stand:
        stand.keep_content(b"small")
        connection = await connect(stand.port, credentials)
        try:
            assert await connection.check([DIGEST, SMALL]) == {DIGEST}
            await connection.upload(DIGEST, MemoryBody(PACKED))
            assert stand.path(DIGEST).read_bytes() == PACKED
            assert await connection.measure(DIGEST) == len(PACKED)
            assert await read(await connection.pull(DIGEST)) == PACKED
            assert await read(await connection.pull(DIGEST), step=777_777) == PACKED
            ranged = await connection.pull_range(DIGEST, 1_500_000, 2_000_000)
            assert await read(ranged) == PACKED[1_500_000:3_500_000]
            stat, body = await connection.peek(DIGEST, len(PACKED))
            assert stat.length == len(PACKED)
            await body.skip(100_000)
            assert await read(body) == PACKED[100_000:]
            glimpse = await connection.glimpse(DIGEST)
            assert glimpse is not None
            assert glimpse.length == len(PACKED)
            assert await connection.has_sound_ranges(DIGEST, len(PACKED))
            assert connection.reusable
        finally:
            connection.close()


SPOKEN = {
    "no secret": "001",
    "a secret that is not asked for": "001",
    "optional, without": "001",
    "optional": "002",
    "optional, demanded": "002",
    "required": "002-encrypted",
    "required, demanded": "002-encrypted",
}


@pytest.mark.parametrize("mode", SPOKEN)
async def test_what_is_spoken_is_told_and_a_secret_that_does_not_help_is_said(
    tmp_path: Path, mode: str, expect_log: Callable[[str], None]
) -> None:
    gate, credentials = MODES[mode]
    if mode == "a secret that is not asked for":
        expect_log("offers no authentication, though we have a secret: it goes on in the clear")
    async with serving(tmp_path, gate=gate) as stand:
        store = RemoteStore(Server("127.0.0.1", stand.port), "/root", credentials=credentials)
        for _ in range(2):
            assert await store.find_absent([DIGEST]) == {DIGEST}
        assert store.protocol == SPOKEN[mode]
        store.close()


class _Unsized(MemoryBody):
    """A body whose length nobody tells: it goes in chunks."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.length = None  # as of a pipe


async def test_a_streamed_upload(tmp_path: Path) -> None:
    async with serving(tmp_path, gate=Gate(secret=SECRET)) as stand:
        connection = await connect(stand.port)
        try:
            await connection.upload(DIGEST, _Unsized(PACKED))
            assert stand.path(DIGEST).read_bytes() == PACKED
            assert await connection.measure(DIGEST) == len(PACKED)
        finally:
            connection.close()


async def test_a_store_shows_its_credentials_with_each_connection(tmp_path: Path) -> None:
    """Of questions, of bodies, of probes, of greetings."""
    async with serving(tmp_path, gate=Gate(secret=SECRET)) as stand, trio.open_nursery() as nursery:
        stand.keep(PACKED, DIGEST)
        store = RemoteStore(
            Server("127.0.0.1", stand.port), "/root", parking=nursery, credentials=WITH
        )
        assert await store.find_absent([DIGEST, SMALL]) == {SMALL}
        assert (await store.inspect(DIGEST)).length == len(PACKED)
        assert store.ranges == "sound"
        async with store.fetch(DIGEST) as body:
            assert await read(body) == PACKED
        async with store.fetch(DIGEST, offset=3_000_001) as body:
            assert await read(body) == PACKED[3_000_001:]
        assert 0 < await store.greet() < 1
        store.close()
        nursery.cancel_scope.cancel()


async def test_a_connection_that_was_cancelled_in_a_body_is_of_no_more_use(tmp_path: Path) -> None:
    async with serving(tmp_path, gate=Gate(secret=SECRET)) as stand:
        stand.keep(PACKED, DIGEST)
        connection = await connect(stand.port)
        body = await connection.pull(DIGEST)
        await body.readinto(memoryview(bytearray(1000)))
        assert not connection.reusable
        connection.close()


# --- what is wrong


async def test_another_secret(tmp_path: Path) -> None:
    async with serving(tmp_path, gate=Gate(secret=OTHER)) as stand:
        error = await refused(stand.port)
    assert str(error) == f"127.0.0.1:{stand.port} has another secret than we have"
    assert documented("has another secret").search(str(error))
    assert "--secret-file" in str(error.hint)


@pytest.mark.parametrize("hours", [-9, 9, 0.25])
async def test_a_page_that_the_server_does_not_take(
    tmp_path: Path, hours: float, jumping_clock: MockClock
) -> None:
    """Our clock is hours behind, or a quarter of an hour ahead: it closes after two seconds."""
    off = abs(hours) * 3600 if abs(hours) > 1 else -900
    gate = Gate(secret=SECRET, now=lambda: time.time() + off)
    async with serving(tmp_path, gate=gate) as stand:
        began = trio.current_time()
        error = await refused(stand.port)
        assert trio.current_time() - began == pytest.approx(2, abs=0.5)
    assert documented("closed without a word").search(str(error))
    assert "clock" in str(error.hint)


async def test_a_clock_that_is_off(tmp_path: Path) -> None:
    gate = Gate(secret=SECRET, now=lambda: time.time() + 700)
    async with serving(tmp_path, gate=gate) as stand:
        error = await refused(stand.port)
    assert documented("our clock and that of").search(str(error))


async def test_no_secret_for_a_server_that_demands_it(tmp_path: Path) -> None:
    async with serving(tmp_path, gate=Gate(secret=SECRET)) as stand:
        error = await refused(stand.port, WITHOUT)
    assert documented("demands authentication").search(str(error))
    assert "--secret-file FILE" in str(error.hint)


async def test_authentication_is_required_and_not_offered(tmp_path: Path) -> None:
    async with serving(tmp_path) as stand:
        error = await refused(stand.port, REQUIRED)
        # Not one word was said to it, nor the name of the root.
        await trio.testing.wait_all_tasks_blocked(0.02)
    assert documented("offers no authentication").search(str(error))


def test_authentication_cannot_be_required_without_a_secret() -> None:
    with pytest.raises(UsageError, match="there is no secret") as caught:
        Credentials(required=True)
    assert "--secret-file" in str(caught.value.hint)


def test_credentials_show_no_secret() -> None:
    assert repr(REQUIRED) == "Credentials(secret=<Secret>, required=True)"


def test_credentials_take_nothing_that_would_be_shown() -> None:
    value: Any = VALUE
    with pytest.raises(UsageError, match="no bytes") as caught:
        CafsClient("/root", ["server"], secret=value)
    assert "Secret(" in str(caught.value.hint)


# --- peers by hand


class Peer:
    """A server's end of one connection; ``ciphers`` once it has shaken hands."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.ciphers: Ciphers | None = None

    async def say(self, data: bytes) -> None:
        await self.stream.send_all(self.ciphers.sending.convert(data) if self.ciphers else data)

    async def hear(self, count: int) -> bytes:
        heard = b""
        while len(heard) < count and (data := await self.stream.receive_some(count - len(heard))):
            heard += bytes(data)
        return self.ciphers.receiving.convert(heard) if self.ciphers else heard

    async def agree(self, more: bytes = b"") -> None:
        await self.say(b"BLOBPUSH_SERVER_V002")
        asked = await self.hear(15)
        handshake = Handshake(Role.SERVER, SECRET, int.from_bytes(asked[7:], "little"))
        hello = Hello(await self.hear(41))
        await self.say(handshake.hello().encode() + more)
        self.ciphers = handshake.agree(hello)

    async def admit(self) -> None:
        await self.agree()
        assert (await self.hear(16))[8:] == ONES
        await self.say(ONES)
        assert await self.hear(6) == b"\x05/root"


Script = Callable[[Peer], Awaitable[object]]


@asynccontextmanager
async def scripted(script: Script) -> AsyncIterator[tuple[int, list[str]]]:
    """A port where each connection is served by ``script``, then closed; what was heard later."""
    served: list[str] = []

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            served.append("connection")
            await script(Peer(stream))

    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        yield listener.socket.getsockname()[1], served
        nursery.cancel_scope.cancel()


async def outcome(script: Script, credentials: Credentials = WITH) -> CafsError:
    """What a client says of it; it tries once, whatever comes of it."""
    async with scripted(script) as (port, served):
        with pytest.raises(CafsError) as caught:
            (await connect(port, credentials)).close()
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert served == ["connection"]
    return caught.value


def ends(seconds: float, *, reset: bool = False) -> Callable[[Peer], Awaitable[None]]:
    """Close after so many seconds, as servers do; with what is unread it is a reset."""

    async def end(peer: Peer) -> None:
        await trio.sleep(seconds)
        if reset:
            peer.stream.setsockopt(1, 13, b"\1\0\0\0\0\0\0\0")  # SO_LINGER, 0 s

    return end


async def _before_its_hello(peer: Peer) -> None:
    await peer.say(b"BLOBPUSH_SERVER_V002")
    await peer.hear(56)


async def _before_its_proof(peer: Peer) -> None:
    await peer.agree()
    await peer.hear(16)


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize("place", [_before_its_hello, _before_its_proof])
async def test_who_lets_us_wait_and_closes_refuses_us(
    place: Script, reset: bool, jumping_clock: MockClock
) -> None:
    """In place of its proof: one wrong secret in 256 decrypts to a point all the same."""

    async def script(peer: Peer) -> None:
        await place(peer)
        await ends(2, reset=reset)(peer)

    error = await outcome(script)
    assert isinstance(error, AuthenticationFailed)
    secret = place is _before_its_proof
    assert ("another secret" if secret else "heard the time") in str(error)


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize("place", [_before_its_hello, _before_its_proof])
async def test_who_closes_at_once_has_broken_down(place: Script, reset: bool) -> None:
    """That is worth another try, by whoever tries again."""

    async def script(peer: Peer) -> None:
        await place(peer)
        await ends(0, reset=reset)(peer)

    assert isinstance(await outcome(script), ConnectionBroken)


async def test_a_proof_that_is_none() -> None:
    async def script(peer: Peer) -> None:
        await _before_its_proof(peer)
        await peer.say(b"\xff" * 7 + b"\xfe")
        await peer.hear(100)

    error = await outcome(script)
    assert isinstance(error, AuthenticationFailed)
    assert "another secret" in str(error)


async def test_a_clock_that_is_complained_of_with_the_proof() -> None:
    """As the recorded server does it: both in one segment, and the connection is gone."""

    async def script(peer: Peer) -> None:
        await _before_its_proof(peer)
        await peer.say(ONES + b"ERIO")

    error = await outcome(script)
    assert isinstance(error, AuthenticationFailed)
    assert "10 minutes apart" in str(error)


async def test_an_offer_that_is_refused() -> None:
    async def script(peer: Peer) -> None:
        await _before_its_hello(peer)
        await peer.say(b"ERBD")

    error = await outcome(script)
    assert isinstance(error, AuthenticationFailed)
    assert "offers authentication, and refuses it" in str(error)
    assert error.hint


@pytest.mark.parametrize("credentials", [WITH, REQUIRED], ids=["auto", "required"])
async def test_a_failure_is_never_followed_by_version_001(credentials: Credentials) -> None:
    """Not on the same connection, and on no other."""
    heard = b""

    async def script(peer: Peer) -> None:
        nonlocal heard
        await peer.say(b"BLOBPUSH_SERVER_V002")
        heard = await peer.hear(56)
        await peer.say(bytes(41))
        heard += await peer.hear(100)

    error = await outcome(script, credentials)
    assert isinstance(error, AuthenticationFailed)
    assert heard.startswith(b"VERS002")
    assert len(heard) == 56


async def test_nothing_is_said_to_who_offers_less_than_is_required() -> None:
    heard = []

    async def script(peer: Peer) -> None:
        await peer.say(b"BLOBPUSH_SERVER_V001")
        heard.append(await peer.hear(1))

    assert isinstance(await outcome(script, REQUIRED), AuthenticationFailed)
    assert heard == [b""]


async def test_a_later_version_is_met_with_002() -> None:
    heard = []

    async def script(peer: Peer) -> None:
        await peer.say(b"BLOBPUSH_SERVER_V003")
        heard.append(await peer.hear(7))

    await outcome(script)
    assert heard == [b"VERS002"]


@pytest.mark.parametrize("place", ["hello", "verdict"])
async def test_what_comes_before_its_cipher_is_known_is_not_believed(place: str) -> None:
    async def script(peer: Peer) -> None:
        if place == "hello":
            await peer.agree(more=b"!")
        else:
            await peer.admit()
            await peer.say(b"NONE!")
        await peer.hear(100)

    error = await outcome(script)
    assert isinstance(error, RemoteProtocolError)
    assert "more behind" in str(error)


@pytest.mark.parametrize("verdict", [b"ERBD", b"TAKE", bytes(4)])
async def test_a_verdict_that_is_none(verdict: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.admit()
        await peer.say(verdict)
        await peer.hear(100)

    error = await outcome(script)
    assert isinstance(error, RemoteProtocolError)
    assert "the authentication is answered with" in str(error)


async def _silent_before_its_hello(peer: Peer) -> None:
    await _before_its_hello(peer)
    await trio.sleep_forever()


async def _silent_in_its_hello(peer: Peer) -> None:
    await _before_its_hello(peer)
    for _ in range(40):
        await peer.say(b"x")
        await trio.sleep(1)


async def _silent_before_its_proof(peer: Peer) -> None:
    await _before_its_proof(peer)
    await trio.sleep_forever()


async def _silent_before_its_verdict(peer: Peer) -> None:
    await peer.admit()
    await trio.sleep_forever()


SILENCES: list[Any] = [
    _silent_before_its_hello,
    _silent_in_its_hello,
    _silent_before_its_proof,
    _silent_before_its_verdict,
]


@pytest.mark.parametrize("script", SILENCES)
async def test_all_of_it_is_under_one_deadline(script: Script, jumping_clock: MockClock) -> None:
    began = trio.current_time()
    error = await outcome(script)
    assert isinstance(error, ConnectTimedOut)
    assert trio.current_time() - began == pytest.approx(30, abs=0.5)
    assert "no end of the authentication by 127.0.0.1" in str(error)
    assert "compare the clocks" in str(error.hint)


async def test_over_ipv6(tmp_path: Path) -> None:
    async with serving(tmp_path, gate=Gate(secret=SECRET, required=False), host="::1") as stand:
        connection = await ServerConnection.open(
            Server("::1", stand.port), b"/root", DEADLINES, credentials=REQUIRED
        )
        assert await connection.check([SMALL]) == {SMALL}
        connection.close()


# --- the client library


@pytest.mark.parametrize("given", ["secret", "path", "text"])
async def test_a_client_takes_a_secret_or_the_file_that_holds_it(
    tmp_path: Path, given: str
) -> None:
    file = tmp_path / "secret"
    file.write_bytes(b"0123456789abcdefSECRET\n")
    file.chmod(0o600)
    ways: dict[str, Secret | Path | str] = {"secret": SECRET, "path": file, "text": str(file)}
    secret = ways[given]
    async with (
        serving(tmp_path / "store", gate=Gate(secret=SECRET)) as stand,
        CafsClient("/root", [stand.address], secret=secret, auth="required") as client,
    ):
        (tmp_path / "file").write_bytes(CONTENT)
        assert str(await client.stream(tmp_path / "file")) == DIGEST.hex
        await client.pull(DIGEST, tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == CONTENT
        await client.pull_batch([(DIGEST, tmp_path / "again")])
        assert (tmp_path / "again").read_bytes() == CONTENT


@pytest.mark.parametrize("retry", [True, False])
async def test_a_client_is_told_what_is_wrong(tmp_path: Path, retry: bool) -> None:
    """After one attempt: another secret is the wrong one the second time too."""
    async with (
        serving(tmp_path, gate=Gate(secret=OTHER)) as stand,
        CafsClient("/root", [stand.address], secret=SECRET) as client,
    ):
        with pytest.raises(AuthenticationFailed, match="another secret"):
            await client.check(DIGEST, retry=retry)


async def test_another_server_may_be_right(
    tmp_path: Path, expect_log: Callable[[str], None]
) -> None:
    expect_log("WARNING cafsfs.store.rout.*another secret than we have$")
    async with (
        serving(tmp_path / "wrong", gate=Gate(secret=OTHER)) as wrong,
        serving(tmp_path / "right", gate=Gate(secret=SECRET)) as right,
        CafsClient(
            "/root",
            [Member(Server.parse(wrong.address)), Member(Server.parse(right.address), priority=1)],
            secret=SECRET,
        ) as client,
    ):
        right.keep(PACKED, DIGEST)
        await client.pull(DIGEST, tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == CONTENT


def test_an_unknown_way_to_authenticate() -> None:
    with pytest.raises(UsageError, match="'maybe' is no way to authenticate"):
        CafsClient("/root", ["h"], auth="maybe")  # type: ignore[arg-type]  # as who has no checker
    with pytest.raises(UsageError, match="there is no secret"):
        CafsClient("/root", ["h"], auth="required")


# --- never shown


class Oops(Exception):
    """Nothing that anybody expects."""


def _fail(*_: object, **__: object) -> None:
    raise Oops


LAYERS = [
    "cafsfs.secret.Secret.sign",
    "cafsfs.wire.handshake.EphemeralKey.shared_with",
    "cafsfs.wire.handshake.Handshake.hello",
    "cafsfs.wire.handshake.Keystream.convert",
    "cafsfs.wire.handshake.derive",
    "cafsfs.wire.connection.Connection.send",
    "cafsfs.transport.Transport.use",
    "cafsfs.transport.Transport.send",
    "cafsfs.client.authentication.page_at",
    "cafsfs.client.authentication._be_admitted",
]


@pytest.mark.parametrize("layer", LAYERS)
async def test_no_traceback_shows_a_secret(
    tmp_path: Path, layer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even one with the variables of all frames, as some handlers of errors make them."""
    async with serving(tmp_path) as stand:  # it asks nothing: only the client is to fail
        async with scripted(_agreeable) as (port, _):
            store = RemoteStore(Server("127.0.0.1", port), "/root", credentials=REQUIRED)
            monkeypatch.setattr(layer, _fail)
            with pytest.raises(Oops) as caught:
                await store.find_absent([DIGEST])
            monkeypatch.undo()
            store.close()
        assert stand.stored() == []
    _assert_not_shown(caught.value)


async def _agreeable(peer: Peer) -> None:
    with suppress(Oops, trio.BrokenResourceError, ValueError):
        await peer.agree()
        await peer.hear(16)
        await peer.say(ONES)
        await peer.hear(100)


@pytest.mark.parametrize(
    "layer", ["cafsfs.secret.Secret.sign", "cafsfs.server.session.is_punctual"]
)
async def test_no_log_of_the_server_shows_a_secret(
    tmp_path: Path,
    layer: str,
    monkeypatch: pytest.MonkeyPatch,
    expect_log: Callable[[str], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    expect_log("ERROR cafsfs.server.listener: a session failed; the server goes on")
    handshake = Handshake(Role.CLIENT, SECRET, page_at(time.time()))
    async with serving(tmp_path, gate=Gate(secret=SECRET)) as stand:
        monkeypatch.setattr(layer, _fail)
        stream = await trio.open_tcp_stream("127.0.0.1", stand.port)
        async with stream:
            peer = Peer(stream)
            await peer.hear(20)
            page = page_at(time.time()).to_bytes(8, "little")
            await peer.say(b"VERS002" + page + handshake.hello().encode())
            hello = await peer.hear(41)
            if hello:
                monkeypatch.undo()
                ciphers = handshake.agree(Hello(hello))
                monkeypatch.setattr(layer, _fail)
                proof = int(time.time()).to_bytes(8, "little") + ONES
                await peer.say(ciphers.sending.convert(proof))
                await peer.hear(100)
    [record] = [each for each in caplog.records if each.exc_info]
    assert record.exc_info is not None
    assert record.exc_info[1] is not None
    assert VALUE.decode() not in caplog.text
    _assert_not_shown(record.exc_info[1])


def _assert_not_shown(error: BaseException) -> None:
    whole = traceback.TracebackException.from_exception(error, capture_locals=True)
    text = "".join(whole.format())
    assert "Oops" in text
    assert len(text) > 1000
    for shape in (VALUE.decode(), VALUE.hex(), VALUE.hex().upper(), VALUE[:8].decode()):
        assert shape not in text
