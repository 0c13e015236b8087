"""A CAFS server that misbehaves as it is told, with a wire of its own.

Nothing of cafsfs is used here: a bug there must not be mirrored here. Without a fault it behaves
as a deployed server does: it verifies nothing, and its ranges are broken exactly as
``vectors/ranged-pull.json`` shows. In a test::

    async with bad_server() as server:
        blob = server.put(b"content", "zstd")
        server.fault(Phase.BODY, Fault(after=100, then="reset"), times=1)
        …
        assert server.commands["PULL"] == 2

As a process, for what blocks (a mount): ``BadServerProcess``, or by hand
``python -m tests.bad_server``, which tells its port in a line of JSON and then obeys lines of JSON.
"""

from __future__ import annotations

import enum
import socket
import struct
import zlib
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import trio
import zstandard
from blake3 import blake3

from tests.obeying import Obeying, obey

MIB = 1 << 20
_PIECE = 1 << 16  # bytes written at once
_TCP_INFO_BYTES_ACKED = 120  # offset of tcpi_bytes_acked, a u64, in Linux's struct tcp_info


class Phase(enum.Enum):
    """What is about to be said (or, for UPLOAD, to be read) when a fault strikes."""

    GREETING = "greeting"
    VERDICT = "verdict"
    CHECK = "check"
    SIZE = "size"
    PULL = "pull"  # TAKE, or what is said in its place
    BODY = "body"  # what follows TAKE
    UPLOAD = "upload"  # the body of a PUSH or STRM, before a byte of it is read
    STORED = "stored"  # the answer to PUSH and STRM


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What goes wrong; the fields combine.

    ``instead`` is said in the place of what is right (no body follows a TAKE that is replaced).
    ``spoil`` is the index of a byte that is flipped. ``lie`` is added to the length that SIZE or
    TAKE announces. ``drip`` says so many bytes, then sleeps so many seconds, and so on. ``then``
    happens after ``after`` bytes; the rest is never said.
    """

    instead: bytes | None = None
    spoil: int | None = None
    lie: int = 0
    drip: tuple[int, float] | None = None
    after: int = 0
    then: Literal["stall", "close", "reset"] | None = None


@dataclass(slots=True)
class _Scripted:
    fault: Fault
    skip: int
    times: int | None


def pack(
    content: bytes,
    how: str = "none",
    *,
    announced: int | None = None,
    flags: int = 0,
    level: int = 3,
) -> bytes:
    """A packed blob; ``how`` is none, zstd, zlib, or one of these with ``-asyncio`` behind it.

    The asyncio client's have a header of zeros and no content size in the zstd frame.
    ``announced`` is the content length in the header, by default the right one.
    """
    kind, _, style = how.partition("-")
    body = content
    if kind == "zlib":
        body = zlib.compress(content)
    elif kind == "zstd":
        body = zstandard.ZstdCompressor(level=level, write_content_size=not style).compress(content)
    header = struct.pack(
        "<4sHHQ", kind.upper().encode(), 16, flags, len(content) if announced is None else announced
    )
    return (header[:4] + bytes(12) if style else header) + body


class BadServer:
    """Blobs, a script of faults, and counts of what came and went."""

    def __init__(self, *, ranges: Literal["broken", "sound"] = "broken") -> None:
        self.blobs: dict[bytes, bytes] = {}
        self.after_size: dict[bytes, bytes] = {}  # blobs that SIZE answers for the last time
        self.ranges = ranges
        self.port = 0
        self.connections = 0  # since the beginning
        self.commands: Counter[str] = Counter()
        self.ranged = 0  # PULLs of less than the whole blob
        self.travelled: list[int] = []  # bytes that each ended connection got acknowledged
        self._script: dict[Phase, list[_Scripted]] = {phase: [] for phase in Phase}
        self._open: dict[_Conversation, trio.CancelScope] = {}

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def open(self) -> int:
        """Connections that are open now."""
        return len(self._open)

    @property
    def pulls(self) -> int:
        """PULLs of the whole blob."""
        return self.commands["PULL"] - self.ranged

    def put(self, content: bytes, how: str = "none", **packing: int) -> str:
        """Have a blob; see ``pack`` for the rest. Returns its hash."""
        return self.have(blake3(content).hexdigest(), pack(content, how, **packing))

    def have(self, name: str, packed: bytes) -> str:
        """Have any bytes under any hash."""
        self.blobs[bytes.fromhex(name)] = packed
        return name

    def recompress_after_size(self, name: str, packed: bytes) -> None:
        """Put ``packed`` in the blob's place as soon as SIZE has told the length of the old one."""
        self.after_size[bytes.fromhex(name)] = packed

    def fault(self, phase: Phase, fault: Fault, *, skip: int = 0, times: int | None = None) -> None:
        """Let ``fault`` strike ``times`` times (None: always), after ``skip`` times without it."""
        self._script[phase].append(_Scripted(fault, skip, times))

    def mend(self) -> None:
        """Forget all faults that have not struck yet."""
        for scripted in self._script.values():
            scripted.clear()

    async def hang_up(self, *, reset: bool = False) -> None:
        """End all connections, as a restarted server does; returns when they are closed."""
        for conversation, scope in list(self._open.items()):
            if reset:
                conversation.linger()
            scope.cancel()
            await conversation.closed.wait()

    async def serve(
        self, port: int = 0, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve on 127.0.0.1 until cancelled."""
        [listener] = await trio.open_tcp_listeners(port, host="127.0.0.1", backlog=100)
        self.port = listener.socket.getsockname()[1]
        async with listener, trio.open_nursery() as nursery:
            task_status.started()
            while True:
                stream = await listener.accept()
                self.connections += 1
                conversation = _Conversation(self, stream.socket)
                self._open[conversation] = trio.CancelScope()
                nursery.start_soon(self._converse, conversation)

    async def _converse(self, conversation: _Conversation) -> None:
        try:
            with self._open[conversation], suppress(_Gone, OSError):
                await conversation.run()
        finally:
            del self._open[conversation]
            self.travelled.append(conversation.close())

    def strike(self, phase: Phase) -> Fault:
        """The fault that is due; one without any effect if none is."""
        for scripted in self._script[phase]:
            if scripted.times == 0:
                continue
            if scripted.skip:
                scripted.skip -= 1
                continue
            if scripted.times is not None:
                scripted.times -= 1
            return scripted.fault
        return Fault()


class _Gone(Exception):
    """The conversation is over."""


class _Conversation:
    """One connection, from the greeting on."""

    def __init__(self, server: BadServer, sock: trio.socket.SocketType) -> None:
        self._server = server
        self._sock = sock
        self._heard = bytearray()
        self.closed = trio.Event()

    async def run(self) -> None:
        await self._say(Phase.GREETING, b"BLOBPUSH_SERVER_V001")
        version = await self._hear(7)
        await self._say(Phase.VERDICT, b"NONE" if version == b"VERS001" else b"ERBD")
        if version != b"VERS001":
            raise _Gone
        [length] = await self._hear(1)
        await self._hear(length)
        commands = {
            b"CHCK": self._check,
            b"SIZE": self._size,
            b"PULL": self._pull,
            b"PUSH": self._push,
            b"STRM": self._stream,
        }
        while True:
            tag = await self._hear(4)
            self._server.commands[tag.decode(errors="replace")] += 1
            if tag not in commands:
                await trio.sleep(2)
                raise _Gone
            await commands[tag](await self._hear(38))

    def linger(self) -> None:
        """Let the close be a reset."""
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def close(self) -> int:
        """Close; returns the bytes that have arrived at the other side."""
        info = self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        self._sock.close()
        self.closed.set()
        acked: int = struct.unpack_from("<Q", info, _TCP_INFO_BYTES_ACKED)[0]
        return acked

    # --- commands; a key is the hash type (6 bytes), then the hash

    async def _check(self, key: bytes) -> None:
        await self._say(Phase.CHECK, b"HAVE" if key[6:] in self._server.blobs else b"NONE")

    async def _size(self, key: bytes) -> None:
        packed = self._server.blobs.get(key[6:])
        if packed is None:
            await self._say(Phase.SIZE, b"NONE")
            return
        if replacement := self._server.after_size.pop(key[6:], None):
            self._server.blobs[key[6:]] = replacement
        fault = self._server.strike(Phase.SIZE)
        await self._utter(fault, b"SIZE" + struct.pack("<Q", len(packed) + fault.lie))

    async def _pull(self, key: bytes) -> None:
        size, chunk = struct.unpack("<QI", await self._hear(12))
        self._server.ranged += bool(size or chunk)
        packed = self._server.blobs.get(key[6:])
        start = chunk * MIB
        if packed is None:
            await self._say(Phase.PULL, b"NONE")
            return
        if start > len(packed) or start + size > len(packed):
            await self._say(Phase.PULL, b"ERIO")
            return
        announced = size or len(packed) - start
        body = memoryview(packed)[: len(packed) - start]  # from 0 on, whatever was asked for
        if self._server.ranges == "sound":
            body = memoryview(packed)[start : start + announced]
        fault = self._server.strike(Phase.PULL)
        await self._utter(fault, b"TAKE" + key + struct.pack("<QI", announced + fault.lie, chunk))
        if fault.instead is None:
            await self._say(Phase.BODY, body)

    async def _push(self, key: bytes) -> None:
        [size] = struct.unpack("<Q", await self._hear(8))
        await self._begin_upload()
        self._server.blobs[key[6:]] = await self._hear(size)
        await self._say(Phase.STORED, b"HAVE")

    async def _stream(self, key: bytes) -> None:
        await self._begin_upload()
        packed = bytearray()
        while length := struct.unpack("<H", await self._hear(2))[0]:
            if length == 65535:
                await self._say(Phase.STORED, b"ERIO")
                return
            packed += await self._hear(length)
        self._server.blobs[key[6:]] = bytes(packed)
        await self._say(Phase.STORED, b"HAVE")

    async def _begin_upload(self) -> None:
        fault = self._server.strike(Phase.UPLOAD)
        if fault.instead is not None:
            await self._sock.send(fault.instead)
        if fault.then is not None:
            await self._hear(fault.after)
            await self._end(fault, listen=False)

    # --- bytes in and out

    async def _hear(self, count: int) -> bytes:
        while len(self._heard) < count:
            data = await self._sock.recv(max(_PIECE, min(MIB, count)))
            if not data:
                raise _Gone
            self._heard += data
        heard = bytes(self._heard[:count])
        del self._heard[:count]
        return heard

    async def _say(self, phase: Phase, data: bytes | memoryview) -> None:
        await self._utter(self._server.strike(phase), data)

    async def _utter(self, fault: Fault, data: bytes | memoryview) -> None:
        if fault.instead is not None:
            data = fault.instead
        if fault.spoil is not None:
            spoilt = bytearray(data)
            spoilt[fault.spoil] ^= 0xFF
            data = bytes(spoilt)
        if fault.then is not None:
            data = data[: fault.after]
        await self._send(data, fault.drip)
        if fault.then is not None:
            await self._end(fault, listen=True)

    async def _send(self, data: bytes | memoryview, drip: tuple[int, float] | None) -> None:
        step, pause = drip or (_PIECE, 0.0)
        left = memoryview(data)
        while left:
            left = left[await self._sock.send(left[:step]) :]
            if drip:
                await trio.sleep(pause)

    async def _end(self, fault: Fault, *, listen: bool) -> None:
        if fault.then == "reset":
            self.linger()
        if fault.then == "stall":
            # Who listens notices when the client leaves, and lets its buffers run full if not.
            while listen and await self._sock.recv(_PIECE):
                pass
            if not listen:
                await trio.sleep_forever()
        raise _Gone


@asynccontextmanager
async def bad_server(**options: Any) -> AsyncIterator[BadServer]:
    """A BadServer that serves; on the way out all its connections are closed."""
    server = BadServer(**options)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve)
        yield server
        nursery.cancel_scope.cancel()


class BadServerProcess(Obeying):
    """A BadServer in a process of its own, for tests that block."""

    def __init__(self) -> None:
        super().__init__("tests.bad_server")
        self.port: int = self.first["port"]

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def put(self, content: Path, how: str = "none", **packing: int) -> str:
        """Have the content of a file; returns its hash."""
        return str(self.ask(do="put", path=str(content), how=how, **packing)["hash"])

    def fault(self, phase: Phase, fault: Fault, *, skip: int = 0, times: int | None = None) -> None:
        said = asdict(fault)
        if fault.instead is not None:
            said["instead"] = fault.instead.hex()
        self.ask(do="fault", phase=phase.value, fault=said, skip=skip, times=times)

    def mend(self) -> None:
        self.ask(do="mend")

    def hang_up(self, *, reset: bool = False) -> None:
        self.ask(do="hang_up", reset=reset)

    def counts(self) -> dict[str, Any]:
        """``connections`` since the beginning, ``open`` now, ``commands`` by name, ``pulls``."""
        return self.ask(do="counts")


async def _obey(server: BadServer, request: dict[str, Any]) -> dict[str, Any]:
    match request.pop("do"):
        case "put":
            return {"hash": server.put(Path(request.pop("path")).read_bytes(), **request)}
        case "fault":
            said = request.pop("fault")
            if said["instead"] is not None:
                said["instead"] = bytes.fromhex(said["instead"])
            server.fault(Phase(request.pop("phase")), Fault(**said), **request)
        case "mend":
            server.mend()
        case "hang_up":
            await server.hang_up(**request)
        case "counts":
            return {
                "connections": server.connections,
                "open": server.open,
                "commands": dict(server.commands),
                "pulls": server.pulls,
            }
        case unknown:
            return {"error": f"do what? {unknown}"}
    return {}


async def _main() -> None:
    async with bad_server() as server:
        await obey({"port": server.port}, partial(_obey, server))


if __name__ == "__main__":
    trio.run(_main)
