"""Version 002 on our server: recordings replayed over a socket, modes, refusals, dawdlers."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from cafsfs.secret import Secret
from cafsfs.server import Gate, Limits
from cafsfs.server import gate as gate_module
from cafsfs.wire import Ciphers, ClientProof, Handshake, Hello, Role
from cafsfs.wire.handshake import page_at
from tests.bad_server import pack
from tests.server.stand import (
    RawClient,
    Stand,
    check,
    digest_of,
    pull,
    push,
    serving,
    size,
    size_answer,
    stream,
    take,
)
from tests.server.test_transcripts import replay
from tests.wire.handshakes import ACCEPTED, CLOCK, PAGE, RECORDED, REFUSED, SECRET, refusing

GREETING = b"BLOBPUSH_SERVER_V002"
ONES = b"\xff" * 8
CONTENT = bytes(i * 31 % 251 for i in range(3 << 20))


def gate(*, required: bool = True, **changes: Any) -> Gate:
    return replace(Gate(secret=SECRET, required=required, now=lambda: CLOCK), **changes)


# --- the recordings


@pytest.mark.parametrize("mode", ACCEPTED)
async def test_recorded_handshakes(tmp_path: Path, mode: str, jumping_clock: MockClock) -> None:
    """Every byte; what follows the handshake too, a PUSH and a PULL."""
    recording = ACCEPTED[mode]
    door = gate(
        required=mode == "mandatory_encryption",
        begin=lambda _secret, _page: recording.handshake(Role.SERVER),
    )
    (tmp_path / "enc").mkdir()
    async with serving(tmp_path, gate=door) as stand, await stand.connect() as client:
        await replay(client, recording.values["transcript"])
        assert [each.parts[-5] for each in stand.directory.rglob("6f0adf*")] == ["enc"]


@pytest.mark.parametrize("name", REFUSED)
async def test_recorded_refusals(tmp_path: Path, name: str, jumping_clock: MockClock) -> None:
    """As long as the recorded server takes to close, and as silently."""
    begin: Callable[[Secret, int], Handshake] = gate_module.begin
    frames = REFUSED[name]["transcript"]
    if name == "wrong_secret":  # what its hello is cannot be known: only that it has one
        frames = frames[:3]
    elif len(frames) > 4:
        begin = lambda _secret, _page: refusing(name)  # noqa: E731
    async with serving(tmp_path, gate=gate(begin=begin)) as stand, await stand.connect() as client:
        await replay(client, frames)
        if name == "wrong_secret":
            await _assert_silent_end(client, 41)


async def _assert_silent_end(client: RawClient, count: int) -> None:
    """``count`` bytes at once, and the end without a word two seconds later."""
    began = trio.current_time()
    heard = await client.hear(count)
    assert trio.current_time() - began < 1
    assert len(heard) == count
    assert await client.hear_all() == b""
    assert trio.current_time() - began == pytest.approx(2, abs=0.5)


async def test_version_001_is_taken_from_private_addresses_where_encryption_is_optional(
    tmp_path: Path, jumping_clock: MockClock
) -> None:
    transcript = RECORDED["optional_server_with_version_001"]["transcript"]
    async with serving(tmp_path, gate=gate(required=False)) as stand:
        async with await stand.connect() as client:
            await replay(client, transcript)
        async with await stand.connect() as client:
            await client.hear(20)
            digest = stand.keep_content(CONTENT)
            assert await client.ask(b"VERS001\x05/root" + check(digest), 8) == b"NONEHAVE"


async def test_version_001_is_refused_to_all_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate_module, "is_private", lambda _host: False)
    async with (
        serving(tmp_path, gate=gate(required=False)) as stand,
        await stand.connect() as client,
    ):
        await client.hear(20)
        await client.say(b"VERS001\x05/root")
        assert await client.hear_all() == b"ERBD"


# --- a client written by hand, with the cipher of ours


class Stranger:
    """A client that shakes hands and then speaks as it was told to, encrypted or not."""

    def __init__(self, client: RawClient, secret: Secret = SECRET, page: int = PAGE) -> None:
        self.client = client
        self.page = page
        self.handshake = Handshake(Role.CLIENT, secret, page)
        self.ciphers: Ciphers | None = None

    async def say(self, data: bytes) -> None:
        await self.client.say(self.ciphers.sending.convert(data) if self.ciphers else data)

    async def hear(self, count: int) -> bytes:
        data = await self.client.hear(count)
        return self.ciphers.receiving.convert(data) if self.ciphers else data

    async def ask(self, data: bytes, count: int = 4) -> bytes:
        await self.say(data)
        return await self.hear(count)

    async def agree(self) -> None:
        assert await self.client.hear(20) == GREETING
        hello = self.handshake.hello().encode()
        await self.client.say(b"VERS002" + self.page.to_bytes(8, "little") + hello)
        self.ciphers = self.handshake.agree(Hello(await self.client.hear(41)))

    async def prove(self, seconds: int = CLOCK) -> bytes:
        return await self.ask(ClientProof(seconds).encode(), 8)

    async def enter(self, root: bytes = b"/root") -> bytes:
        await self.agree()
        assert await self.prove() == ONES
        verdict = await self.ask(bytes([len(root)]) + root)
        if verdict == b"NONE":
            self.ciphers = None
        return verdict


async def _everything(stand: Stand, client: Stranger) -> None:
    """Each command, with large and small bodies both ways."""
    small, large = b"small", CONTENT
    for content in (small, large):
        digest, packed = digest_of(content), pack(content)
        assert await client.ask(check(digest)) == b"NONE"
        upload = push if content is small else stream
        assert await client.ask(upload(digest, packed)) == b"HAVE"
        assert stand.path(digest).read_bytes() == packed
        assert await client.ask(size(digest), 12) == size_answer(len(packed))
        answer = take(digest, len(packed)) + packed
        assert await client.ask(pull(digest), len(answer)) == answer
    # Pipelined: a lot in one write, whose last body is not whole.
    digest, packed = digest_of(large), pack(large)
    whole = take(digest_of(small), len(pack(small))) + pack(small)
    rest = take(digest, len(packed) - (1 << 20), 1) + packed[1 << 20 :]
    asked = pull(digest_of(small)) * 3 + pull(digest, 0, 1) + check(digest)
    answer = whole * 3 + rest + b"HAVE"
    assert await client.ask(asked, len(answer)) == answer


@pytest.mark.parametrize("required", [True, False], ids=["required", "optional"])
async def test_everything_goes_through(tmp_path: Path, required: bool) -> None:
    async with (
        serving(tmp_path, gate=gate(required=required)) as stand,
        await stand.connect() as client,
    ):
        stranger = Stranger(client)
        assert await stranger.enter() == (b"HAVE" if required else b"NONE")
        await _everything(stand, stranger)


async def test_encryption_is_not_lifted_for_who_comes_from_outside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate_module, "is_private", lambda _host: False)
    async with (
        serving(tmp_path, gate=gate(required=False)) as stand,
        await stand.connect() as client,
    ):
        assert await Stranger(client).enter() == b"HAVE"


async def test_a_slow_client_gets_every_byte_in_step(tmp_path: Path) -> None:
    """Its socket is full in the middle of pieces, over and over."""
    async with serving(tmp_path, gate=gate()) as stand, await stand.connect() as client:
        digest = stand.keep_content(CONTENT * 6)
        client._stream.setsockopt(6, 10, 4096)  # TCP_WINDOW_CLAMP
        stranger = Stranger(client)
        await stranger.enter()
        packed = pack(CONTENT * 6)
        await stranger.say(pull(digest) * 2 + check(digest))
        expected = (take(digest, len(packed)) + packed) * 2 + b"HAVE"
        heard = bytearray()
        while len(heard) < len(expected):
            heard += await stranger.hear(min(1_000_003, len(expected) - len(heard)))
            await trio.sleep(0.001)
        assert heard == expected


async def test_commands_may_come_with_the_root_where_encryption_stays(tmp_path: Path) -> None:
    async with serving(tmp_path, gate=gate()) as stand, await stand.connect() as client:
        digest = stand.keep_content(b"content")
        stranger = Stranger(client)
        await stranger.agree()
        await stranger.say(ClientProof(CLOCK).encode() + b"\x05/root" + check(digest))
        assert await stranger.hear(16) == ONES + b"HAVEHAVE"


@pytest.mark.parametrize("too_early", ["hello", "root"])
async def test_what_comes_before_its_cipher_is_known_ends_the_connection(
    tmp_path: Path, too_early: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "cafsfs.server")
    async with serving(tmp_path, gate=gate(required=False)) as stand:
        async with await stand.connect() as client:
            stranger = Stranger(client)
            if too_early == "hello":
                await client.hear(20)
                hello = stranger.handshake.hello().encode()
                await client.say(b"VERS002" + PAGE.to_bytes(8, "little") + hello + b"!")
                assert len(await client.hear_all()) == 41
            else:
                await stranger.agree()
                assert await stranger.prove() == ONES
                await stranger.say(b"\x05/root" + check(digest_of(b"")))
                assert await client.hear_all() == b""
        await trio.testing.wait_all_tasks_blocked(0.02)
    assert "too early" in caplog.messages[-1]


@pytest.mark.parametrize(
    ("seconds", "off"), [(CLOCK - 601, "-601 s off"), (CLOCK + 601, "+601 s off")]
)
async def test_a_clock_that_is_off_is_told_and_logged(
    tmp_path: Path, seconds: int, off: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "cafsfs.server")
    async with serving(tmp_path, gate=gate()) as stand:
        async with await stand.connect() as client:
            stranger = Stranger(client)
            await stranger.agree()
            assert await stranger.prove(seconds) == ONES
            assert await stranger.hear(5) == b"ERIO"
        await trio.testing.wait_all_tasks_blocked(0.02)
    assert off in caplog.messages[-1]


@pytest.mark.parametrize("page", [0, page_at(CLOCK - 8 * 3600) - 1, page_at(CLOCK + 600) + 1])
async def test_a_page_that_is_not_current_ends_in_silence(
    tmp_path: Path, page: int, jumping_clock: MockClock
) -> None:
    async with serving(tmp_path, gate=gate()) as stand, await stand.connect() as client:
        await client.hear(20)
        await client.say(b"VERS002" + page.to_bytes(8, "little"))
        await _assert_silent_end(client, 0)


STEPS = {
    "before the version": (0, 0),
    "within the page": (10, 0),
    "before its hello": (15, 0),
    "within its hello": (55, 0),
    "before its proof": (56, 0),
    "within its proof": (56, 15),
    "before its root": (56, 16),
    "within its root": (56, 18),
}


@pytest.mark.parametrize("dripping", [False, True], ids=["silent", "dripping"])
@pytest.mark.parametrize(("plain", "sealed"), STEPS.values(), ids=STEPS)
async def test_who_dawdles_in_the_handshake_is_cut(
    tmp_path: Path, plain: int, sealed: int, dripping: bool, jumping_clock: MockClock
) -> None:
    """Within ``stall`` for the version and once more for all the rest, whatever comes of it."""
    limits = Limits(stall=60, idle=1800)
    async with (
        serving(tmp_path, limits=limits, gate=gate()) as stand,
        await stand.connect() as client,
    ):
        await client.hear(20)
        stranger = Stranger(client)
        hello = b"VERS002" + PAGE.to_bytes(8, "little") + stranger.handshake.hello().encode()
        await client.say(hello[:plain])
        rest = hello[plain:]
        if plain == len(hello):
            stranger.ciphers = stranger.handshake.agree(Hello(await client.hear(41)))
            sending = stranger.ciphers.sending
            rest = sending.convert(ClientProof(CLOCK).encode() + b"\xffroot")
            await client.say(rest[:sealed])
            rest = rest[sealed:]
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            if dripping:
                nursery.start_soon(_drip, client, rest)
            await client.hear_all()
            nursery.cancel_scope.cancel()
        assert trio.current_time() - began < 125


async def _drip(client: RawClient, data: bytes) -> None:
    for i in range(len(data) - 1):
        await trio.sleep(20)
        try:
            await client.say(data[i : i + 1])
        except trio.BrokenResourceError:
            return


async def test_each_connection_has_its_own_keys(tmp_path: Path) -> None:
    async with serving(tmp_path, gate=gate()) as stand:
        heard = set()
        for _ in range(3):
            async with await stand.connect() as client:
                await client.hear(20)
                hello = Stranger(client).handshake.hello().encode()
                await client.say(b"VERS002" + PAGE.to_bytes(8, "little") + hello)
                heard.add(await client.hear(41))
        assert len(heard) == 3


def test_the_recordings_are_of_this_secret() -> None:
    assert {each["secret"] for each in RECORDED["accepted"]} == {"0123456789abcdefSECRET"}
