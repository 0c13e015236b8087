"""One line a connection, whatever the client did, and no line that a client wrote."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from cafsfs.server import Limits
from cafsfs.server.session import Session
from tests.bad_server import pack
from tests.server.stand import check, digest_of, pull, push, serving

CONTENT = b"some content"
DIGEST = digest_of(CONTENT)


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What ``cafsfs.server`` has logged at INFO."""
    caplog.set_level(logging.INFO, logger="cafsfs.server")

    def read() -> list[str]:
        return [each.getMessage() for each in caplog.records if each.levelno == logging.INFO]

    return read


async def test_one_line_tells_what_a_connection_did(
    tmp_path: Path, lines: Callable[[], list[str]]
) -> None:
    async with serving(tmp_path) as stand:
        async with await stand.greeted() as client:
            await client.ask(push(DIGEST, pack(CONTENT)))
            await client.ask(pull(DIGEST), 82)
            await client.ask(check(DIGEST))
        await trio.testing.wait_all_tasks_blocked(0.02)
        [line] = lines()
    assert re.fullmatch(
        r"127\.0\.0\.1:\d+ root=/root version=001 commands=3 received=187 sent=114"
        r" seconds=\d\.\d{3} refused=- end=closed",
        line,
    )


async def test_reasons_of_refusals_are_told(tmp_path: Path, lines: Callable[[], list[str]]) -> None:
    async with serving(tmp_path) as stand:
        async with await stand.greeted() as client:
            await client.ask(push(DIGEST, pack(b"other content")) + pull(DIGEST), 8)
            stand.keep(pack(CONTENT), DIGEST)
            await client.ask(pull(DIGEST, 0, 7) * 4, 16)
        await trio.testing.wait_all_tasks_blocked(0.02)
        [line] = lines()
    assert "refused=Push: content hashes to" in line
    assert "; Pull: " in line
    assert "lie outside the 28 of" in line
    assert line.endswith("; and 2 more end=closed")


async def test_a_client_cannot_write_a_line_of_its_own(
    tmp_path: Path, lines: Callable[[], list[str]]
) -> None:
    root = b"x\n10.0.0.1:1 root=/root \x1b[2J\xff"
    async with serving(tmp_path) as stand:
        async with await stand.greeted(b"VERS001" + bytes([len(root)]) + root) as client:
            await client.ask(check(DIGEST))
        await trio.testing.wait_all_tasks_blocked(0.02)
        [line] = lines()
    assert line.isprintable()
    assert r"root=x\n10.0.0.1:1 root=/root \x1b[2J" in line


@pytest.mark.parametrize(
    ("said", "end"),
    [
        (b"", "closed"),
        (b"VERS000", "RemoteProtocolError: client asks for version 000"),
        (
            b"VERS002" + bytes(8),
            "RemoteProtocolError: client asks for authentication, there is no secret",
        ),
        (b"GET / HTTP", r"RemoteProtocolError: not a version: b'GET / H'"),
        (b"VERS001\x05/ro", "RemoteProtocolError: client closed in the middle of a message"),
    ],
)
async def test_the_end_of_a_handshake_is_told(
    tmp_path: Path, said: bytes, end: str, lines: Callable[[], list[str]]
) -> None:
    async with serving(tmp_path) as stand:
        async with await stand.connect() as client:
            await client.say(said)
            await client.finish_saying()
            await client.hear_all()
        await trio.testing.wait_all_tasks_blocked(0.02)
        [line] = lines()
    assert line.endswith(f"end={end}")


async def test_a_stall_and_a_departure_are_told(
    tmp_path: Path, lines: Callable[[], list[str]]
) -> None:
    async with serving(tmp_path, limits=Limits(idle=0.05)) as stand:
        async with await stand.greeted() as client:
            await client.hear_all()
        async with await stand.greeted() as client:
            await client.say(push(DIGEST, pack(CONTENT))[:-1])
        await trio.testing.wait_all_tasks_blocked(0.02)
        silent, left = lines()
    assert re.search(r"end=client 127\.0\.0\.1:\d+ sent nothing for 0.05 s$", silent)
    assert left.endswith("end=client went away in the middle of an upload")


async def test_a_bug_of_ours_ends_one_connection_and_is_an_error_in_the_log(
    tmp_path: Path,
    lines: Callable[[], list[str]],
    expect_log: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def fail(*_: object) -> None:
        raise ZeroDivisionError

    expect_log("ERROR cafsfs.server.listener: a session failed; the server goes on")
    async with serving(tmp_path) as stand:
        with monkeypatch.context() as patch:
            patch.setattr(Session, "_serve_lot", fail)
            async with await stand.greeted() as client:
                await client.say(pull(DIGEST))
                assert await client.hear_all() == b""
        async with await stand.greeted() as client:
            assert await client.ask(check(DIGEST)) == b"NONE"
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert [line.rpartition(" ")[2] for line in lines()] == ["error", "end=closed"]
