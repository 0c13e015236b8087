"""A CafsServer on loopback, and a client that speaks raw bytes to it.

The bytes are written here by hand, as the protocol page has them, so that a bug of ``cafsfs.wire``
is not mirrored.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import trio
from blake3 import blake3

from cafsfs.digest import Digest
from cafsfs.server import CafsServer, Gate, Limits
from tests.bad_server import pack

HELLO = b"VERS001\x05/root"
GREETING = b"BLOBPUSH_SERVER_V001"


def digest_of(content: bytes) -> Digest:
    return Digest(blake3(content).digest())


def check(digest: Digest) -> bytes:
    return b"CHCKblake3" + digest.raw


def size(digest: Digest) -> bytes:
    return b"SIZEblake3" + digest.raw


def size_answer(length: int) -> bytes:
    return b"SIZE" + struct.pack("<Q", length)


def pull(digest: Digest, length: int = 0, chunk: int = 0) -> bytes:
    return b"PULLblake3" + digest.raw + struct.pack("<QI", length, chunk)


def take(digest: Digest, length: int, chunk: int = 0) -> bytes:
    return b"TAKEblake3" + digest.raw + struct.pack("<QI", length, chunk)


def push(digest: Digest, packed: bytes) -> bytes:
    return b"PUSHblake3" + digest.raw + struct.pack("<Q", len(packed)) + packed


def stream(digest: Digest, packed: bytes, *, chunk: int = 65534, end: bytes = b"\0\0") -> bytes:
    chunks = [packed[at : at + chunk] for at in range(0, len(packed), chunk)]
    body = b"".join(struct.pack("<H", len(each)) + each for each in chunks)
    return b"STRMblake3" + digest.raw + body + end


class RawClient:
    """A connection that says and hears bytes."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream

    async def say(self, data: bytes) -> None:
        await self._stream.send_all(data)

    async def hear(self, count: int) -> bytes:
        """Exactly ``count`` bytes; fewer only if the connection ends."""
        heard = bytearray()
        while len(heard) < count and (data := await self._stream.receive_some(count - len(heard))):
            heard += data
        return bytes(heard)

    async def hear_all(self) -> bytes:
        """Everything until the server closes, or resets."""
        heard = bytearray()
        with suppress(trio.BrokenResourceError):
            async for data in self._stream:
                heard += data
        return bytes(heard)

    async def ask(self, data: bytes, count: int = 4) -> bytes:
        await self.say(data)
        return await self.hear(count)

    async def finish_saying(self) -> None:
        """Close this side; the other may go on."""
        await self._stream.send_eof()

    def reset(self) -> None:
        self._stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._stream.socket.close()

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        with trio.CancelScope(shield=True):
            await self.aclose()


@dataclass(frozen=True, kw_only=True)
class Stand:
    """A server that serves the root ``/root`` of ``directory``."""

    server: CafsServer
    directory: Path
    host: str
    port: int

    @property
    def address(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def path(self, digest: Digest, root: str = "root") -> Path:
        return self.directory / root / "blobs" / digest.hex[:2] / digest.hex[2:4] / digest.hex

    def keep(self, packed: bytes, digest: Digest) -> None:
        """Put any bytes into the store, by a rename as servers do it."""
        path = self.path(digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(".new")
        beside.write_bytes(packed)
        beside.rename(path)

    def keep_content(self, content: bytes, how: str = "none") -> Digest:
        digest = digest_of(content)
        self.keep(pack(content, how), digest)
        return digest

    def stored(self) -> list[str]:
        """The names of all files in the store, temporary ones too."""
        return sorted(path.name for path in self.directory.rglob("*") if path.is_file())

    async def connect(self) -> RawClient:
        return RawClient(await trio.open_tcp_stream(self.host, self.port))

    async def greeted(self, hello: bytes = HELLO) -> RawClient:
        """A client that has named its root and heard that it may go on."""
        client = await self.connect()
        assert await client.ask(hello, 24) == GREETING + b"NONE"
        return client


@asynccontextmanager
async def serving(
    directory: Path,
    *,
    limits: Limits | None = None,
    gate: Gate | None = None,
    host: str = "127.0.0.1",
) -> AsyncIterator[Stand]:
    """A CafsServer; on the way out it is cancelled, not stopped."""
    (directory / "root" / "blobs").mkdir(parents=True)
    server = CafsServer(directory, limits=limits, gate=gate)
    async with trio.open_nursery() as nursery:
        [(host, port)] = await nursery.start(server.serve, host, 0)
        yield Stand(server=server, directory=directory, host=host, port=port)
        nursery.cancel_scope.cancel()
