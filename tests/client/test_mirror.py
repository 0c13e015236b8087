"""Blobs of an HTTP mirror: packed or not, from any web server there is, and verified."""

from __future__ import annotations

import ssl
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from cafsfs.client import CafsClient
from cafsfs.client.mirror import MirrorStore
from cafsfs.client.mirror_template import MirrorTemplate
from cafsfs.client.remote import SMALL
from cafsfs.client.servers import Deadlines
from cafsfs.digest import Digest
from cafsfs.errors import (
    BlobNotFound,
    CafsError,
    ConnectionBroken,
    CorruptBlob,
    RangeError,
    RemoteProtocolError,
    ServerRefused,
    StoreError,
    TimedOut,
    Unavailable,
    Unreachable,
    UsageError,
)
from cafsfs.packing import Compression, Header, hash_bytes
from cafsfs.store.contracts import BlobStat, PackedBody, PackedStat, Wanted
from cafsfs.store.memory import MemoryBody
from cafsfs.store.retrying import RetryingStore
from cafsfs.store.unpacking import UnpackingStore
from tests.bad_server import bad_server
from tests.certificates import certificate_for
from tests.store.samples import ABSENT, MIB, MemoryDestination, content_of, packed, pull
from tests.web_server import Faults, WebServerThread, web_server

pytestmark = pytest.mark.process

LARGE = Random(3).randbytes(5 * MIB)
WAYS = {
    "as it is": lambda content: content,
    "none": packed,
    "zstd": lambda content: packed(content, Compression.ZSTD),
    "zlib": lambda content: packed(content, Compression.ZLIB),
}
each_way = pytest.mark.parametrize("way", WAYS.values(), ids=list(WAYS))
PAGE = b"<html>Welcome to Hotel Wireless. Please accept our terms.</html>"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[WebServerThread]:
    with web_server(tmp_path) as server:
        yield server


@asynccontextmanager
async def mirror_of(url: str, **options: Any) -> AsyncIterator[MirrorStore]:
    mirror = MirrorStore(MirrorTemplate.parse(f"{url}/{{ab}}/{{cd}}/{{hash}}"), **options)
    try:
        yield mirror
    finally:
        await mirror.aclose()


def unpacked(mirror: MirrorStore) -> UnpackingStore:
    return UnpackingStore(mirror, limiter=trio.CapacityLimiter(4))


def stored(server: WebServerThread, content: bytes, mirrored: bytes | None = None) -> Digest:
    digest = hash_bytes(content)
    server.put(digest.hex, content if mirrored is None else mirrored)
    return digest


async def read(body: PackedBody) -> bytes:
    come = bytearray()
    buffer = memoryview(bytearray(100_000))
    while count := await body.readinto(buffer):
        come += buffer[:count]
    return bytes(come)


# --- packed, or not


@each_way
@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 1000, SMALL, 3 * MIB])
async def test_content_comes_however_it_is_mirrored(
    server: WebServerThread, way: Callable[[bytes], bytes], size: int
) -> None:
    content = content_of(size)
    digest = stored(server, content, way(content))
    async with mirror_of(server.url) as mirror:
        store = unpacked(mirror)
        stat = await store.stat(digest)
        length = len(way(content)) + (16 if way is WAYS["as it is"] else 0)
        assert stat.packed_size == length == await mirror.measure(digest)
        # Of a small one the pull tells, and proves it.
        assert stat.size == (None if length <= SMALL else size)
        assert await pull(store, digest) == content
        assert await store.find_missing([digest, ABSENT]) == {ABSENT}
        assert mirror.ranges == ("sound" if way(content) else "untested")


@pytest.mark.parametrize("size", [0, 1, MIB])
async def test_content_is_handed_on_as_a_packed_blob(server: WebServerThread, size: int) -> None:
    content = content_of(size)
    digest = stored(server, content)
    async with mirror_of(server.url) as mirror, mirror.fetch(digest) as body:
        assert body.length == 16 + size
        assert await read(body) == packed(content)
        assert await body.readinto(memoryview(bytearray(1))) == 0


async def test_the_header_of_a_packed_blob_is_told(server: WebServerThread) -> None:
    blob = packed(LARGE, Compression.ZSTD)
    digest = stored(server, LARGE, blob)
    async with mirror_of(server.url) as mirror:
        assert await mirror.inspect(digest) == PackedStat(len(blob), Header.parse(blob[:16]))
        assert (await unpacked(mirror).stat(digest)).compression is Compression.ZSTD
    assert server.bytes_sent == 32
    assert server.requests == {"GET": 2}  # no further proof is needed


@pytest.mark.parametrize("size", [100, 3 * MIB])
async def test_a_packed_blob_may_be_content_itself(server: WebServerThread, size: int) -> None:
    """Somebody has put a packed blob into a store, and a mirror has it unpacked."""
    content = packed(content_of(size), Compression.ZSTD)
    digest = stored(server, content)
    other = packed(content_of(size, 1))
    async with mirror_of(server.url) as mirror:
        store = unpacked(mirror)
        assert await pull(store, digest) == content
        assert server.requests == {"GET": 2}
        # From now on it is known, and the next one is thought to be likewise.
        assert await pull(store, digest) == content
        assert await pull(store, stored(server, other)) == other
        assert server.requests == {"GET": 4}
        stat = await mirror.inspect(digest)
        assert stat is not None
        assert stat.length == 16 + len(content)


async def test_both_readings_of_a_batch_are_tried(server: WebServerThread) -> None:
    contents = [content_of(5000), packed(content_of(6000)), packed(content_of(2 * MIB)), b""]
    mirrored = [packed(contents[0]), *contents[1:]]
    digests = [stored(server, *each) for each in zip(contents, mirrored, strict=True)]
    async with mirror_of(server.url) as mirror:
        wanted = [Wanted(each, MemoryDestination()) for each in [*digests, ABSENT]]
        failures = await unpacked(mirror).pull_many(wanted)
        assert list(failures) == [wanted[-1]]
        assert isinstance(failures[wanted[-1]], BlobNotFound)
        for each, content in zip(wanted[:-1], contents, strict=True):
            assert isinstance(each.destination, MemoryDestination)
            assert bytes(each.destination.content) == content


@pytest.mark.parametrize(
    ("mirrored", "requests"),
    [
        (content_of(5000, 1), 1),
        (packed(content_of(5000, 1)), 2),
        (packed(content_of(5000))[:-1], 1),  # its header says that it is not whole: no blob
        (packed(content_of(5000), Compression.ZSTD)[:-1], 2),
        (PAGE, 1),
        (b"", 1),
    ],
    ids=["other content", "other blob", "truncated", "truncated zstd", "a page", "nothing"],
)
async def test_wrong_bytes_are_wrong_in_every_reading(
    server: WebServerThread, mirrored: bytes, requests: int
) -> None:
    digest = stored(server, content_of(5000), mirrored)
    async with mirror_of(server.url) as mirror:
        for times in (1, 2):
            with pytest.raises(CorruptBlob, match=f"{server.url} has wrong bytes of {digest}"):
                await pull(unpacked(mirror), digest)
            # And once it is asked for what nobody has, whether it has pages for any name.
            assert server.requests["GET"] == times * requests
            assert server.requests["HEAD"] == (times if requests == 1 else 0)


# --- what its word is worth


async def test_a_server_that_has_everything_has_nothing(server: WebServerThread) -> None:
    """A captive portal, or a site that shows its front page for any name."""
    server.faults.answers_all = PAGE
    async with mirror_of(server.url) as mirror:
        store = unpacked(mirror)
        with pytest.raises(Unavailable, match="says to have a blob that nobody has"):
            await store.find_missing([ABSENT])
        with pytest.raises(Unavailable, match="says to have a blob that nobody has"):
            await mirror.greet()
        with pytest.raises(Unavailable, match="says to have a blob that nobody has"):
            await mirror.measure(ABSENT)
        # No size is told; the pull that a lookup begins then fails.
        assert (await store.stat(ABSENT)).size is None
        with pytest.raises(Unavailable, match="says to have a blob that nobody has") as caught:
            await pull(store, ABSENT)
        assert "captive portal" in str(caught.value.hint)
        server.faults.answers_all = LARGE
        with pytest.raises(Unavailable, match="says to have a blob that nobody has"):
            await store.stat(ABSENT)


async def test_the_length_of_large_content_is_told_by_who_denies_having_all(
    server: WebServerThread, mock_clock: MockClock
) -> None:
    digest = stored(server, LARGE)
    async with mirror_of(server.url) as mirror:
        expected = BlobStat(
            size=len(LARGE),
            packed_size=16 + len(LARGE),
            compression=Compression.NONE,
            source=mirror.name,
        )
        for _ in range(3):
            assert await unpacked(mirror).stat(digest) == expected
        assert server.requests == {"GET": 3, "HEAD": 1}
        mock_clock.jump(61)
        server.faults.answers_all = LARGE  # the machine has moved into a hotel
        with pytest.raises(Unavailable, match="says to have a blob that nobody has"):
            await unpacked(mirror).stat(digest)


async def test_denying_by_403_is_denying(server: WebServerThread) -> None:
    """As S3 does to who may not list; of a blob that is wanted, nobody knows what it means."""
    server.faults.status = 403
    async with mirror_of(server.url) as mirror:
        assert await mirror.greet() >= 0
        with pytest.raises(ServerRefused, match="answers 403") as caught:
            await mirror.find_absent([ABSENT])
        assert caught.value.hint is not None
        assert "S3" in caught.value.hint


# --- what servers answer


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (404, BlobNotFound),
        (410, BlobNotFound),
        (400, ServerRefused),
        (401, ServerRefused),
        (403, ServerRefused),
        (405, ServerRefused),
        (451, ServerRefused),
        (501, ServerRefused),
        (408, Unavailable),
        (429, Unavailable),
        (500, Unavailable),
        (503, Unavailable),
        (504, Unavailable),
        (204, RemoteProtocolError),
        (206, RemoteProtocolError),
        (302, RemoteProtocolError),  # leads nowhere
        (304, RemoteProtocolError),
        (416, RemoteProtocolError),
    ],
)
async def test_what_a_status_means(
    server: WebServerThread, status: int, error: type[CafsError], expect_log: Callable[..., None]
) -> None:
    server.faults.status = status
    if status == 206:
        expect_log("it was asked for the first bytes, and announces others")
    async with mirror_of(server.url) as mirror:
        for ask in (mirror.inspect(ABSENT), pull(unpacked(mirror), ABSENT)):
            with pytest.raises(error) as caught:
                await ask
            assert issubclass(type(caught.value), error)
            assert ABSENT.hex in str(caught.value) or server.url in str(caught.value)
        if error is BlobNotFound:
            assert await mirror.find_absent([ABSENT]) == {ABSENT}
        elif status not in {206, 416}:
            with pytest.raises(error):
                await mirror.find_absent([ABSENT])


@pytest.mark.parametrize("status", [404, 403, 500])
async def test_an_error_takes_no_connection(server: WebServerThread, status: int) -> None:
    digest = stored(server, b"content")
    hurried = Deadlines(connect=1.0, question=1.0, answer=1.0)
    async with mirror_of(server.url, connections=1, deadlines=hurried) as mirror:
        server.faults.status = status
        for _ in range(10):  # more than there may be connections
            with pytest.raises((BlobNotFound, ServerRefused, Unavailable)):
                await mirror.inspect(digest)
        server.faults.status = None
        assert await pull(unpacked(mirror), digest) == b"content"


async def test_one_error_ends_a_long_question(server: WebServerThread) -> None:
    server.faults.status = 500
    many = [Digest(Random(each).randbytes(32)) for each in range(1000)]
    async with mirror_of(server.url) as mirror:
        with pytest.raises(Unavailable, match="answers 500"):
            await mirror.find_absent(many)
    assert server.requests.total() < 10


async def test_many_questions_share_a_few_connections(server: WebServerThread) -> None:
    present = {stored(server, content_of(10, each)) for each in range(1, 20)}
    absent = {Digest(Random(each).randbytes(32)) for each in range(200)}
    async with mirror_of(server.url) as mirror:
        assert await mirror.find_absent(present | absent) == absent
        assert await mirror.find_absent([]) == set()
    assert server.connections <= 4
    assert server.requests == {"HEAD": 220}


async def test_a_server_without_head_is_asked_otherwise(server: WebServerThread) -> None:
    server.faults.head = False
    digests = {stored(server, b""), stored(server, b"content")}
    async with mirror_of(server.url) as mirror:
        assert await mirror.find_absent({*digests, ABSENT}) == {ABSENT}
        server.requests.clear()
        assert await mirror.find_absent({*digests, ABSENT}) == {ABSENT}
        assert server.requests == {"GET": 3}


@pytest.mark.parametrize("given", ["30", "3000000", "Fri, 01 Jan 2100 00:00:00 GMT"])
async def test_a_server_that_wants_a_rest_has_it_for_a_minute_at_most(
    server: WebServerThread, mock_clock: MockClock, given: str
) -> None:
    digest = stored(server, b"content")
    server.faults.statuses = [429]
    server.faults.headers = {"Retry-After": given}
    async with mirror_of(server.url) as mirror:
        with pytest.raises(Unavailable, match=f"answers 429, to be asked again after {given}"):
            await pull(unpacked(mirror), digest)
        mock_clock.jump(28)
        for _ in range(3):
            with pytest.raises(Unavailable, match="asks to be left alone for another"):
                await pull(unpacked(mirror), digest)
        assert server.requests.total() == 1
        mock_clock.jump(33)
        assert await pull(unpacked(mirror), digest) == b"content"


async def test_a_short_rest_is_waited_for(server: WebServerThread) -> None:
    digest = stored(server, b"content")
    server.faults.statuses = [503]
    server.faults.headers = {"Retry-After": "1"}
    async with mirror_of(server.url) as mirror:
        began = trio.current_time()
        assert await pull(unpacked(mirror), digest) == b"content"
        assert 0.9 < trio.current_time() - began < 5


# --- servers that do it otherwise


@each_way
@pytest.mark.parametrize("ranges", ["ignored", "shifted", "unlabelled", "cut"])
async def test_ranges_are_not_needed(
    server: WebServerThread,
    way: Callable[[bytes], bytes],
    ranges: str,
    expect_log: Callable[..., None],
) -> None:
    if ranges != "ignored":
        expect_log("WARNING cafsfs.client.mirror: .* is asked for no ranges any more")
    digest = stored(server, LARGE, way(LARGE))
    server.faults.ranges = ranges
    async with mirror_of(server.url) as mirror:
        for _ in range(2):
            assert (await unpacked(mirror).stat(digest)).size == len(LARGE)
        assert mirror.ranges == "unsound"
        assert await pull(unpacked(mirror), digest) == LARGE
    # Of each look no more than what fits into the buffers of the way.
    assert server.requests["GET"] == (3 if ranges == "ignored" else 4)


@each_way
@pytest.mark.parametrize("how", ["chunked", "unframed"])
@pytest.mark.parametrize("size", [0, 5, 100_000])
async def test_bodies_without_a_length(
    server: WebServerThread, way: Callable[[bytes], bytes], how: str, size: int
) -> None:
    content = content_of(size)
    digest = stored(server, content, way(content))
    server.faults = Faults(ranges="ignored", chunked=how == "chunked", unframed=how == "unframed")
    async with mirror_of(server.url) as mirror:
        store = unpacked(mirror)
        assert await store.stat(digest) == BlobStat(size=None, source=mirror.name)
        assert await mirror.measure(digest) is None
        assert await pull(store, digest) == content
        assert await mirror.find_absent([digest, ABSENT]) == {ABSENT}


async def test_a_range_of_an_unknown_total_has_no_length(server: WebServerThread) -> None:
    server.faults.raw = (
        b"HTTP/1.1 206 Partial\r\nContent-Range: bytes 0-15/*\r\nContent-Length: 16\r\n\r\n"
        + content_of(16)
    )
    async with mirror_of(server.url) as mirror:
        assert await mirror.inspect(ABSENT) is None


@each_way
async def test_a_body_that_is_not_as_long_as_announced(
    server: WebServerThread, way: Callable[[bytes], bytes]
) -> None:
    content = content_of(100_000)
    mirrored = way(content)
    digest = stored(server, content, mirrored)
    async with mirror_of(server.url) as mirror:
        server.faults.length = len(mirrored) + 1
        with pytest.raises((ConnectionBroken, CorruptBlob)):
            await pull(unpacked(mirror), digest)
        server.faults.length = len(mirrored) - 1
        with pytest.raises(CorruptBlob):
            await pull(unpacked(mirror), digest)
    # By a connection of its own: the other one ends with a byte too many, which may come late.
    async with mirror_of(server.url) as mirror:
        server.faults.length = None
        assert await pull(unpacked(mirror), digest) == content


async def test_what_is_compressed_on_its_way_is_refused(server: WebServerThread) -> None:
    digest = stored(server, b"content")
    async with mirror_of(server.url) as mirror:
        server.faults.headers = {"Content-Encoding": "gzip"}
        for ask in (mirror.inspect(digest), pull(unpacked(mirror), digest)):
            with pytest.raises(ServerRefused, match="Content-Encoding `gzip`, unasked") as caught:
                await ask
            assert caught.value.hint is not None
        server.faults.headers = {"Content-Encoding": "identity"}
        assert await pull(unpacked(mirror), digest) == b"content"
    assert all(headers["accept-encoding"] == "identity" for _, _, headers in server.log)


@pytest.mark.parametrize("raw", [b"", b"BLOBPUSH_SERVER_V001", b"HTTP/1.1 200", b"HTTP/1.1 x\r\n"])
async def test_what_is_no_http(server: WebServerThread, raw: bytes) -> None:
    server.faults.raw = raw
    async with mirror_of(server.url) as mirror:
        with pytest.raises(ConnectionBroken, match=f"connection to {server.url} broke: "):
            await mirror.inspect(ABSENT)


# --- redirects


@pytest.mark.parametrize("way", ["relative", "absolute"])
async def test_redirects_are_followed(server: WebServerThread, way: str) -> None:
    digest = stored(server, LARGE)
    server.faults.redirect = ("" if way == "relative" else server.url) + "/there{path}"
    server.faults.breaks_at = [2 * MIB]
    async with mirror_of(server.url) as mirror:
        assert (await unpacked(mirror).stat(digest)).size == len(LARGE)
        assert await pull(unpacked(mirror), digest) == LARGE
    # Ranges go along; and a redirect costs no connection.
    assert [path[:6] for _, path, asked in server.log if "range" in asked].count("/there") == 2
    assert server.connections <= 3


async def test_redirects_end(server: WebServerThread) -> None:
    server.faults.redirect = "/again{path}"
    async with mirror_of(server.url) as mirror:
        with pytest.raises(RemoteProtocolError, match="redirects more than 5 times"):
            await mirror.inspect(ABSENT)
    assert server.requests.total() == 6


async def test_a_redirect_to_nowhere(server: WebServerThread) -> None:
    async with mirror_of(server.url) as mirror:
        nowhere = ("ftp://host/x", "http://[::1", "gopher:x", "http://..:1/", "http://xn--/")
        for where in (*nowhere, f"http://{'a' * 64}/"):
            server.faults.redirect = where
            with pytest.raises((RemoteProtocolError, ConnectionBroken)):
                await mirror.inspect(ABSENT)


async def test_cookies_are_not_kept(server: WebServerThread) -> None:
    """They are of no use here; and one like this cannot even be sent back."""
    digest = stored(server, b"content")
    server.faults.headers = {"Set-Cookie": "a=\xff"}
    async with mirror_of(server.url) as mirror:
        for _ in range(2):
            assert await pull(unpacked(mirror), digest) == b"content"
    assert not any("cookie" in headers for _, _, headers in server.log)


async def test_a_proxy_of_the_environment_is_used(
    server: WebServerThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", server.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    async with mirror_of("http://mirror.example") as mirror:
        assert await mirror.find_absent([ABSENT]) == {ABSENT}
    assert server.log[-1][1].startswith("http://mirror.example/")
    async with mirror_of(server.url) as mirror:
        assert await mirror.find_absent([ABSENT]) == {ABSENT}
    assert server.log[-1][1].startswith("/")


# --- names and passwords


@pytest.mark.parametrize(
    "proxy", ["socks5://me:geheim@host:1", "ftp://me:geheim@host", "http://[::1"]
)
async def test_a_proxy_that_is_none_is_a_mistake(
    proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)
    with pytest.raises(UsageError, match="names a proxy that cannot be used") as caught:
        MirrorStore(MirrorTemplate.parse("https://mirror.example/{hash}"))
    assert "ALL_PROXY" in str(caught.value.hint)
    assert "geheim" not in str(caught.value)


async def test_credentials_go_to_their_own_host_and_into_no_message(
    server: WebServerThread, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "cafsfs")
    digest = stored(server, b"content")
    with web_server(tmp_path) as other:
        url = server.url.replace("127.0.0.1", "me:geheim@127.0.0.1")
        async with mirror_of(url) as mirror:
            assert mirror.name == server.url
            assert await pull(unpacked(mirror), digest) == b"content"
            assert server.log[-1][2]["authorization"] == "Basic bWU6Z2VoZWlt"
            server.faults.redirect = other.url + "/there{path}"
            assert await pull(unpacked(mirror), digest) == b"content"
            assert "authorization" not in other.log[-1][2]
            server.faults = Faults(status=401)
            with pytest.raises(ServerRefused) as caught:
                await mirror.inspect(digest)
    assert "geheim" not in caplog.text + repr(caught.value)


async def test_nothing_is_uploaded(server: WebServerThread) -> None:
    async with mirror_of(server.url) as mirror:
        with pytest.raises(StoreError, match=r"cannot store .* on mirror") as caught:
            await mirror.deposit(ABSENT, lambda: MemoryBody(packed(b"")))
        assert caught.value.hint is not None
    assert server.connections == 0


async def test_parts_are_not_to_be_had(server: WebServerThread) -> None:
    async with mirror_of(server.url) as mirror:
        with pytest.raises(RangeError):
            async with mirror.fetch(ABSENT, offset=16):
                pass


# --- TLS


@pytest.fixture
def secured(tmp_path: Path) -> Iterator[tuple[WebServerThread, Path]]:
    """A server with a certificate, and the file that vouches for it."""
    files = certificate_for("127.0.0.1", tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files)
    (tmp_path / "files").mkdir()
    with web_server(tmp_path / "files", context) as server:
        yield server, files


async def test_who_is_not_trusted_is_not_talked_to(secured: tuple[WebServerThread, Path]) -> None:
    server, _ = secured
    async with mirror_of(server.url) as mirror:
        with pytest.raises(Unreachable, match="its certificate is not trusted: ") as caught:
            await mirror.inspect(ABSENT)
        assert caught.value.hint is not None
        assert "SSL_CERT_FILE" in caught.value.hint
    assert not server.requests


async def test_who_is_trusted_by_ssl_cert_file_is(
    secured: tuple[WebServerThread, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, files = secured
    monkeypatch.setenv("SSL_CERT_FILE", str(files))
    digest = stored(server, LARGE)
    server.faults.breaks_at = [3 * MIB]
    async with mirror_of(server.url) as mirror:
        assert await pull(unpacked(mirror), digest) == LARGE
        server.faults.redirect = server.url.replace("https", "http") + "/there{path}"
        with pytest.raises(ServerRefused, match="redirects from https to http"):
            await pull(unpacked(mirror), digest)


# --- breaks


@pytest.mark.parametrize(
    ("at", "reset"),
    [
        (MIB, False),
        (MIB + 1, False),
        (4 * MIB - 7, False),
        (5 * MIB - 1, False),
        (5 * MIB - 1, True),  # it overtakes what was sent, but not four mebibytes of it
    ],
)
@each_way
async def test_a_body_that_breaks_off_goes_on(
    server: WebServerThread, way: Callable[[bytes], bytes], at: int, reset: bool
) -> None:
    mirrored = way(LARGE)
    digest = stored(server, LARGE, mirrored)
    server.faults.breaks_at, server.faults.reset = [at], reset
    async with mirror_of(server.url) as mirror:
        assert await pull(unpacked(mirror), digest) == LARGE
    assert server.requests == {"GET": 2}
    if not reset:
        assert server.bytes_sent == len(mirrored) + 16
        asked = server.log[-1][2]
        assert (asked["range"], asked["if-range"]) == (f"bytes={at - 16}-", '"one"')


async def test_it_goes_on_more_than_once(server: WebServerThread) -> None:
    digest = stored(server, LARGE)
    server.faults.breaks_at = [MIB, MIB + 5, 3 * MIB, 3 * MIB + 1, 4 * MIB + 10]
    async with mirror_of(server.url) as mirror:
        assert await pull(unpacked(mirror), digest) == LARGE
    assert server.requests == {"GET": 6}


@pytest.mark.parametrize(
    ("etag", "modified", "sent"),
    [
        ('"one"', None, '"one"'),
        (None, "Sat, 01 Jan 2000 00:00:00 GMT", "Sat, 01 Jan 2000 00:00:00 GMT"),
        ('W/"one"', "Sat, 01 Jan 2000 00:00:00 GMT", "Sat, 01 Jan 2000 00:00:00 GMT"),
        ('W/"one"', None, None),
        ('"\xff"', None, None),
        (None, None, None),
        (None, "Fri, 01 Jan 2100 00:00:00 GMT", None),
        (None, "yesterday", None),
    ],
)
async def test_it_goes_on_only_with_what_proves_to_be_the_same(
    server: WebServerThread, etag: str | None, modified: str | None, sent: str | None
) -> None:
    digest = stored(server, LARGE)
    server.faults = Faults(etag=etag, modified=modified, breaks_at=[2 * MIB])
    async with mirror_of(server.url) as mirror:
        if sent is None:
            with pytest.raises(ConnectionBroken, match="broke: "):
                await pull(unpacked(mirror), digest)
        else:
            assert await pull(unpacked(mirror), digest) == LARGE
            assert server.log[-1][2]["if-range"] == sent
        assert server.requests == {"GET": 2 if sent else 1}


@pytest.mark.parametrize("change", ["etag", "etag, if-range ignored", "length", "gone", "ranges"])
async def test_what_has_changed_is_begun_anew(
    server: WebServerThread, change: str, expect_log: Callable[..., None]
) -> None:
    """A packed blob may be recompressed at any time: the splice of two would be no blob."""
    digest = stored(server, LARGE, packed(LARGE))
    server.faults.breaks_at = [2 * MIB]
    async with mirror_of(server.url) as mirror:
        async with mirror.fetch(digest) as body:
            await body.readinto(memoryview(bytearray(1)))
            match change:
                case "gone":
                    server.put(digest.hex, b"")
                    server.faults.status = 404
                case "length":
                    expect_log("it was asked for the rest of a body, and announces something else")
                    server.put(digest.hex, packed(LARGE) + b"x")
                case "ranges":
                    server.faults.ranges = "ignored"
                case _:
                    server.faults.etag, server.faults.modified = '"two"', None
                    server.faults.if_range = "ignored" not in change
                    server.put(digest.hex, packed(content_of(len(LARGE))))
            with pytest.raises(ConnectionBroken):
                await read(body)
        server.faults = Faults(etag='"two"')
        server.put(digest.hex, packed(LARGE, Compression.ZSTD))
        assert await pull(RetryingStore(unpacked(mirror), attempts=2), digest) == LARGE


async def test_the_rest_has_to_join_what_came(
    server: WebServerThread, expect_log: Callable[..., None]
) -> None:
    expect_log("the rest of a body has other bytes where it begins")
    digest = stored(server, LARGE)
    server.faults.breaks_at, server.faults.ranges = [2 * MIB], "foreign"
    async with mirror_of(server.url) as mirror:
        with pytest.raises(ConnectionBroken):
            await pull(unpacked(mirror), digest)
        assert mirror.ranges == "unsound"
        assert await pull(unpacked(mirror), digest) == LARGE


async def test_below_a_mebibyte_it_is_begun_anew(server: WebServerThread) -> None:
    digest = stored(server, LARGE)
    server.faults.breaks_at = [MIB - 1]
    async with mirror_of(server.url) as mirror:
        assert await pull(RetryingStore(unpacked(mirror), attempts=2), digest) == LARGE
    assert ["range" in asked for _, _, asked in server.log] == [False, False]


async def test_a_server_that_is_gone_for_good_ends_it(
    server: WebServerThread, jumping_clock: MockClock
) -> None:
    digest = stored(server, LARGE)
    server.faults.breaks_at = [2 * MIB]
    async with mirror_of(server.url) as mirror:
        async with mirror.fetch(digest) as body:
            await body.readinto(memoryview(bytearray(1)))
            server.close()
            began = trio.current_time()
            with pytest.raises((ConnectionBroken, Unreachable)):
                await read(body)
            assert trio.current_time() - began < 10
        with pytest.raises(Unreachable, match=f"cannot connect to {server.url}: ") as caught:
            await mirror.greet()
        assert caught.value.hint is not None


async def test_an_idle_connection_that_was_closed_is_not_used(server: WebServerThread) -> None:
    digest = stored(server, b"content")
    async with mirror_of(server.url) as mirror:
        for _ in range(3):
            assert await pull(unpacked(mirror), digest) == b"content"
            server.hang_up()
            await trio.sleep(0.02)
    assert server.connections == 3


# --- deadlines

HURRIED = Deadlines(connect=2.0, question=3.0, answer=4.0, progress=5.0)


async def test_a_server_that_never_answers_costs_a_bounded_time(
    server: WebServerThread, jumping_clock: MockClock
) -> None:
    server.faults.stalls_before_head = True
    async with mirror_of(server.url, deadlines=HURRIED) as mirror:
        for ask, seconds in (
            (mirror.inspect(ABSENT), 3),
            (mirror.find_absent([ABSENT]), 3),
            (mirror.greet(), 3),
            (pull(unpacked(mirror), ABSENT), 4),
        ):
            began = trio.current_time()
            with pytest.raises(TimedOut, match=f"no answer from .* within {seconds} s"):
                await ask
            assert trio.current_time() - began == pytest.approx(2 + seconds, abs=1)


@pytest.mark.parametrize("drip", [1000.0, 0.2])
async def test_a_drip_holds_nobody_for_longer_than_silence(
    server: WebServerThread, jumping_clock: MockClock, drip: float
) -> None:
    digest = stored(server, LARGE)
    server.faults.drip = drip
    async with mirror_of(server.url, deadlines=HURRIED) as mirror:
        began = trio.current_time()
        with pytest.raises(TimedOut, match=r"sent only \d+ bytes in 5 s"):
            await pull(unpacked(mirror), digest)
        assert trio.current_time() - began == pytest.approx(5, abs=1)
        began = trio.current_time()
        with pytest.raises(TimedOut, match=r"sent only \d+ bytes in 3 s"):
            await mirror.inspect(digest)
        assert trio.current_time() - began == pytest.approx(3, abs=1)


Handler = Callable[[httpx.Request], Coroutine[None, None, httpx.Response]]


def mirror_by(handler: Handler) -> MirrorStore:
    template = MirrorTemplate.parse("https://host/{hash}")
    transport = httpx.MockTransport(handler)
    return MirrorStore(template, connections=2, deadlines=HURRIED, transport=transport)


class Slowly(httpx.AsyncByteStream):
    """So many pieces, 2 s before each."""

    def __init__(self, pieces: int) -> None:
        self._left = pieces

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if not self._left:
            raise StopAsyncIteration
        self._left -= 1
        await trio.sleep(2)
        return bytes(10_000)

    async def aclose(self) -> None:
        pass


async def never(_: httpx.Request) -> httpx.Response:
    await trio.sleep_forever()
    raise AssertionError


async def failing(ask: Awaitable[object], failed: list[tuple[float, str]]) -> None:
    """Ask, and note when that fails."""
    with pytest.raises(TimedOut) as caught:
        await ask
    failed.append((trio.current_time(), str(caught.value)))


async def test_a_crowd_of_questions_costs_twice_the_time_of_one(
    autojump_clock: MockClock,
) -> None:
    mirror = mirror_by(never)
    failed: list[tuple[float, str]] = []
    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(failing, mirror.inspect(ABSENT), failed)
        await wait_all_tasks_blocked()
        nursery.start_soon(failing, mirror.greet(), failed)  # waits for no turn
    assert [at for at, _ in failed[:90]] == [5] * 90
    assert failed[-1][0] <= 10
    said = Counter(reason for _, reason in failed)
    assert said["https://host had no connection free for 5 s, and sent nothing"] >= 90
    assert said["no answer from https://host within 3 s"] >= 5


async def test_questions_that_are_answered_one_after_the_other_wait_for_their_turn(
    autojump_clock: MockClock,
) -> None:
    """In order of arrival, for longer than who is in vain."""
    asked: list[str] = []

    async def slowly(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path[1:])
        await trio.sleep(2)
        return httpx.Response(404, stream=Slowly(0))

    mirror = mirror_by(slowly)
    digests = [Digest(Random(each).randbytes(32)) for each in range(40)]

    async def ask(digest: Digest) -> None:
        with pytest.raises(BlobNotFound):
            await mirror.inspect(digest)

    async with trio.open_nursery() as nursery:
        for each in digests:
            nursery.start_soon(ask, each)
            await wait_all_tasks_blocked()
    for start in range(0, 40, 4):  # four at once, which Trio wakes in any order
        wave = slice(start, start + 4)
        assert set(asked[wave]) == {each.hex for each in digests[wave]}
    assert trio.current_time() == 20


@pytest.mark.parametrize("seconds", [0.9, 1.1])
async def test_a_batch_of_questions_has_a_deadline(
    autojump_clock: MockClock, seconds: float
) -> None:
    """As much as twenty of them have on a server's connection."""

    async def slowly(_: httpx.Request) -> httpx.Response:
        await trio.sleep(seconds)
        return httpx.Response(404, stream=Slowly(0))

    mirror = mirror_by(slowly)
    digests = {Digest(Random(each).randbytes(32)) for each in range(100)}
    if seconds < 1:
        assert await mirror.find_absent(digests) == digests
        assert trio.current_time() == pytest.approx(25 * seconds)
    else:
        with pytest.raises(TimedOut, match="no answer from https://host within 3 s"):
            await mirror.find_absent(digests)
        assert trio.current_time() == 5


async def test_one_denial_is_enough_for_all(autojump_clock: MockClock) -> None:
    asked = 0

    async def all_but_one(request: httpx.Request) -> httpx.Response:
        nonlocal asked
        asked += 1
        await trio.sleep(0.1)
        status = 200 if request.url.path == f"/{ABSENT.hex}" else 404
        return httpx.Response(status, stream=Slowly(0))

    mirror = mirror_by(all_but_one)
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(mirror.find_absent, [ABSENT])
    assert asked <= 20 + 4


async def test_who_waits_for_a_body_waits_as_long_as_others_move(
    autojump_clock: MockClock,
) -> None:
    """Here 5 s; then somebody stops reading, and the line goes dead."""

    async def serve(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, stream=Slowly(10))

    mirror = mirror_by(serve)
    failed: list[tuple[float, str]] = []

    async def fetch() -> None:
        async with mirror.fetch(ABSENT) as body:
            await read(body)

    async with trio.open_nursery() as nursery:
        for _ in range(6):
            nursery.start_soon(fetch)
    assert trio.current_time() == pytest.approx(60)  # two at once
    async with mirror.fetch(ABSENT), mirror.fetch(ABSENT):
        began = trio.current_time()
        with trio.fail_after(100):
            await failing(fetch(), failed)
    assert failed[0][0] - began <= 6 + 2
    assert failed[0][1] == "https://host had no connection free for 6 s, and sent nothing"


async def test_who_waits_may_be_cancelled_and_wait_again(server: WebServerThread) -> None:
    """As the pump does after a second, to give its memory back: no byte is lost."""
    content = content_of(20)
    digest = stored(server, content, packed(content))
    server.faults.drip = 0.03
    come, given_up = b"", 0
    async with mirror_of(server.url) as mirror, mirror.fetch(digest) as body:
        while len(come) < len(content) + 16:
            buffer = memoryview(bytearray(100))
            with trio.move_on_after(0.01) as scope:
                come += buffer[: await body.readinto(buffer)]
            given_up += scope.cancelled_caught
    assert come == packed(content)
    assert given_up > 5


async def test_who_has_no_time_leaves_nothing_open(server: WebServerThread) -> None:
    digest = stored(server, LARGE)
    async with mirror_of(server.url, connections=1) as mirror:
        for _ in range(3):
            with trio.CancelScope() as scope:
                async with mirror.fetch(digest) as body:
                    await body.readinto(memoryview(bytearray(1000)))
                    scope.cancel()
                    await read(body)
            assert scope.cancelled_caught
            async with mirror.fetch(digest) as body:
                await body.readinto(memoryview(bytearray(1000)))
        assert await pull(unpacked(mirror), digest) == LARGE
    assert server.connections == 7


async def test_so_many_bodies_at_once(server: WebServerThread) -> None:
    digests = [stored(server, content_of(MIB, each)) for each in range(1, 13)]
    coming = most = 0
    async with mirror_of(server.url, connections=3) as mirror:

        async def fetch(digest: Digest) -> None:
            nonlocal coming, most
            async with mirror.fetch(digest) as body:
                coming += 1
                most = max(most, coming)
                assert hash_bytes((await read(body))[16:]) == digest
                coming -= 1

        async with trio.open_nursery() as nursery:
            for each in digests:
                nursery.start_soon(fetch, each)
            await mirror.find_absent(digests)  # never waits for bodies
    assert most == 3
    assert server.connections <= 3 + 4


# --- behind servers


async def test_a_client_reads_from_the_mirror_what_no_server_gives(
    server: WebServerThread, expect_log: Callable[..., None], tmp_path: Path
) -> None:
    expect_log("WARNING .*going on with the next server: cannot connect to")
    expect_log("WARNING .*127.0.0.1:1 is down, the others are asked")
    digest = stored(server, LARGE)
    nobody = tmp_path / "nobody"
    mirrors = [f"{server.url}/{{ab}}/{{cd}}/{{hash}}"]
    async with CafsClient("/data", ["127.0.0.1:1"], mirrors=mirrors) as client:
        assert await client.size(digest) == len(LARGE)
        await client.pull(digest, nobody)
        assert nobody.read_bytes() == LARGE
        assert await client.check(digest)
        states = [(each.name, each.ranges) for each in client.servers()]
        assert states == [("127.0.0.1:1", "untested"), (server.url, "sound")]
        # What the mirror has not may be on the server; and nothing is written to a mirror.
        for ask in (client.check(ABSENT), client.stream(nobody)):
            with pytest.raises(Unreachable):
                await ask
    assert set(server.requests) == {"GET", "HEAD"}


@pytest.mark.parametrize("size", [1000, MIB])
async def test_a_mirror_that_tells_no_lengths_is_behind_servers_too(
    server: WebServerThread, size: int
) -> None:
    server.faults = Faults(ranges="ignored", chunked=True)
    digest = stored(server, content_of(size))
    mirrors = [f"{server.url}/{{ab}}/{{cd}}/{{hash}}"]
    async with (
        bad_server() as first,
        CafsClient("/root", [f"127.0.0.1:{first.port}"], mirrors=mirrors) as client,
    ):
        assert await client.size(digest) == size


async def test_a_server_is_asked_before_a_mirror(server: WebServerThread) -> None:
    there, elsewhere = content_of(5000), content_of(5000, 1)
    digest = stored(server, elsewhere)
    mirrors = [f"{server.url}/{{ab}}/{{cd}}/{{hash}}"]
    async with bad_server() as first:
        first.put(there)
        async with CafsClient("/root", [f"127.0.0.1:{first.port}"], mirrors=mirrors) as client:
            assert (await client.stat(hash_bytes(there))).source == f"127.0.0.1:{first.port}"
            assert not server.requests
            assert (await client.stat(digest)).source == server.url
            assert not await client.check(ABSENT)


async def test_mirrors_on_one_host_are_told_apart() -> None:
    """And not by what may be a secret."""
    urls = [f"https://me:geheim@host/{path}/{{hash}}?key=geheim" for path in ("x", "y", "z")]
    client = CafsClient("/data", ["host"], mirrors=[*urls, urls[1], "http://host/{hash}"])
    names = [each.name for each in client.servers()]
    assert names == ["host:2403", "https://host", "https://host#2", "https://host#3", "http://host"]


def test_mirrors_of_a_client_are_a_list_of_urls() -> None:
    with pytest.raises(UsageError, match="mirrors are a list"):
        CafsClient("/data", ["host"], mirrors="https://me:geheim@host/{hash}")
    with pytest.raises(UsageError, match=r"has no \{hash\}"):
        CafsClient("/data", ["host"], mirrors=["https://host/"])
