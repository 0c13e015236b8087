"""A line between a client and a server that fails as it is told.

Nothing of cafsfs is used here, nor is anything answered: what breaks here breaks as networks do.
It forwards TCP connections, and understands just so much of what a server says (version 001, not
encrypted) that it knows what is a greeting, an answer or a body. In a test::

    async with fault_proxy(server.address) as proxy:
        proxy.fault(Phase.BODY, Fault(after=100_000, then="stall"))
        …                               # clients of proxy.address suffer
        assert proxy.struck["body"] == 1

As a process, for what blocks (a mount): ``FaultProxyProcess``.
"""

from __future__ import annotations

import enum
import select
import socket
import struct
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import trio

from tests.obeying import Obeying, obey

_PIECE = 1 << 16  # bytes read at once
_HELLO = 24  # bytes: the greeting (20), and whether the version is accepted (4)
_BEHIND_TAG = {b"SIZE": 8, b"TAKE": 50}  # bytes behind these four; nothing behind others
_SIZE_OF_BODY = slice(42, 50)  # of TAKE, a u64

Ending = Literal["stall", "black-hole", "close", "reset", "refuse", "vanish"]


class Phase(enum.Enum):
    """What is about to happen on a connection when a fault strikes."""

    CONNECT = "connect"
    REQUEST = "request"  # all that a client says: one phase a connection
    GREETING = "greeting"
    ANSWER = "answer"  # one phase each: SIZE with its length, TAKE up to its body, …
    BODY = "body"  # one phase each


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What goes wrong; the fields combine.

    The phase begins ``delay`` seconds late. Byte ``spoil`` of it is flipped, and each ``every``-th
    after that. ``drip`` lets so many bytes through, then waits so many seconds, and so on. After
    ``after`` bytes comes ``then``, what has passed being on its way:

    - ``stall``: nothing moves until the proxy is mended; then it goes on, as TCP does.
    - ``black-hole``: whatever either side says is lost, for good.
    - ``close`` and ``reset``: the connection ends, properly or not.
    - ``refuse``: it is reset, and connections are refused, as if the server had been killed.
    - ``vanish``: all connections become black holes, and new ones are never answered, as if a cable
      had been pulled.

    The last two last until the proxy is mended. For CONNECT they hold at once.
    """

    delay: float = 0.0
    spoil: int | None = None
    every: int | None = None
    drip: tuple[int, float] | None = None
    after: int = 0
    then: Ending | None = None


_NONE = Fault()
# What happens to a port, not to one connection.
_AT_THE_PORT: dict[str | None, Literal["refusing", "silent"]] = {
    "refuse": "refusing",
    "vanish": "silent",
}


@dataclass(slots=True)
class _Scripted:
    fault: Fault
    times: int | None


class FaultProxy:
    """Forwards to ``to``; a script of faults, and counts of connections."""

    def __init__(self, to: str, *, host: str = "127.0.0.1") -> None:
        address, _, port = to.rpartition(":")
        self.to = (address, int(port))
        self.host = host
        self.port = 0
        self.connections = 0  # since the beginning
        self.struck: Counter[str] = Counter()  # faults that have happened, by phase
        self.mended = trio.Event()
        self._script: dict[Phase, list[_Scripted]] = {phase: [] for phase in Phase}
        self._open: set[_Conversation] = set()
        self._door = ExitStack()

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def open(self) -> int:
        """Connections that are open now, seen from the client."""
        return len(self._open)

    @property
    def stuck(self) -> int:
        """Those of them that a fault holds up; not those that ``vanish`` has hit as well."""
        return sum(each.is_stuck for each in self._open)

    def fault(self, phase: Phase, fault: Fault, *, times: int | None = None) -> None:
        """Let ``fault`` strike so many times (None: always)."""
        if phase is Phase.CONNECT and fault.then in _AT_THE_PORT:
            self.listen(_AT_THE_PORT[fault.then])
        else:
            self._script[phase].append(_Scripted(fault, times))

    def strike(self, phase: Phase) -> Fault:
        """The fault that is due; one without any effect if none is."""
        for scripted in self._script[phase]:
            if scripted.times == 0:
                continue
            if scripted.times is not None:
                scripted.times -= 1
            return scripted.fault
        return _NONE

    def note(self, phase: Phase) -> None:
        """A fault has happened."""
        self.struck[phase.value] += 1

    def mend(self) -> None:
        """Forget all faults, listen, and let go on what was stalled."""
        for scripted in self._script.values():
            scripted.clear()
        self.mended.set()
        self.mended = trio.Event()
        self.listen("accepting")

    def shut(self, how: str) -> None:
        """What ``refuse`` and ``vanish`` do beside ending one connection."""
        self.listen(_AT_THE_PORT[how])
        if how == "vanish":
            for each in self._open:
                each.is_lost = True

    def hang_up(self, *, reset: bool = False) -> None:
        """End all connections."""
        for each in self._open:
            each.end(reset=reset)

    def listen(self, how: Literal["accepting", "refusing", "silent"]) -> None:
        """Take connections, refuse them, or never answer a SYN."""
        self._door.close()
        if how == "refusing":
            return
        door = trio.socket.from_stdlib_socket(_bound(self.host, self.port))
        self._door.callback(door.close)
        door.listen(0 if how == "silent" else 100)
        if how == "accepting":
            self._nursery.start_soon(self._accept, door)
            return
        for _ in range(3):  # the queue is full, so the kernel answers no further SYN
            caller = self._door.enter_context(socket.socket())
            caller.setblocking(False)
            caller.connect_ex((self.host, self.port))

    async def serve(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Forward until cancelled."""
        # The port stays ours while nobody listens on it.
        with _bound(self.host, 0) as place, self._door:
            self.port = place.getsockname()[1]
            async with trio.open_nursery() as self._nursery:
                self.listen("accepting")
                task_status.started()
                await trio.sleep_forever()

    async def _accept(self, door: trio.socket.SocketType) -> None:
        with suppress(trio.ClosedResourceError):
            while door.fileno() >= 0:  # it may be closed before this has begun
                client, _ = await door.accept()
                self.connections += 1
                self._nursery.start_soon(self._converse, _Conversation(self, client))

    async def _converse(self, conversation: _Conversation) -> None:
        self._open.add(conversation)
        try:
            await conversation.run()
        finally:
            self._open.discard(conversation)


def _bound(host: str, port: int) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setblocking(False)
    sock.bind((host, port))
    return sock


class _Conversation:
    """One connection of a client, and the one to the server that belongs to it."""

    def __init__(self, proxy: FaultProxy, client: trio.socket.SocketType) -> None:
        self.is_lost = False
        self.is_stuck = False  # because of a fault of its own
        self._proxy = proxy
        self._client = client
        self._server = trio.socket.socket()
        self._scope = trio.CancelScope()

    def end(self, *, reset: bool) -> None:
        """Let ``run`` close both connections."""
        if reset:
            linger = struct.pack("ii", 1, 0)  # lets the close be a reset
            self._client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self._scope.cancel()

    async def run(self) -> None:
        """Forward until one side leaves."""
        for sock in (self._client, self._server):  # no delay but those that were told
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._client, self._server, self._scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._notice_leaving)
                fault = self._proxy.strike(Phase.CONNECT)
                if fault is not _NONE:
                    self._proxy.note(Phase.CONNECT)
                await trio.sleep(fault.delay)
                if fault.then is not None:
                    await self._break(fault.then)
                if not self.is_lost:
                    await self._connect()
                    nursery.start_soon(self._forward, self._client, self._server, _requests())
                    nursery.start_soon(self._forward, self._server, self._client, _Answers().split)

    async def _notice_leaving(self) -> None:
        """A client that leaves while nothing is read from it is noticed too."""
        with select.epoll() as epoll:
            epoll.register(self._client.fileno(), select.EPOLLRDHUP)
            await trio.lowlevel.wait_readable(epoll.fileno())
        self._scope.cancel()

    async def _connect(self) -> None:
        try:
            await self._server.connect(self._proxy.to)
        except OSError:  # nobody is there: as near to a refusal as is possible now
            self.end(reset=True)
            await trio.lowlevel.checkpoint()

    async def _forward(
        self, source: trio.socket.SocketType, sink: trio.socket.SocketType, split: _Split
    ) -> None:
        passing = _Passing(_NONE)
        try:
            while data := await source.recv(_PIECE):
                for phase, part in split(data):
                    if phase is not None:
                        fault = self._proxy.strike(phase)
                        passing = _Passing(fault, partial(self._proxy.note, phase))
                        await trio.sleep(fault.delay)
                    await self._pass(passing, part, sink)
            self.end(reset=False)
        except OSError:  # what happens to one of the two connections happens to the other
            self.end(reset=True)

    async def _pass(self, passing: _Passing, part: bytes, sink: trio.socket.SocketType) -> None:
        before, behind = passing.cut(part)
        await self._send(before, sink, passing.fault.drip)
        if behind is not None:
            assert passing.fault.then is not None
            await self._break(passing.fault.then)
            await self._send(behind, sink, passing.fault.drip)

    async def _send(
        self, data: bytes, sink: trio.socket.SocketType, drip: tuple[int, float] | None
    ) -> None:
        step, pause = drip or (_PIECE, 0.0)
        left = memoryview(data)
        while left and not self.is_lost:
            left = left[await sink.send(left[:step]) :]
            if drip:
                await trio.sleep(pause)

    async def _break(self, how: Ending) -> None:
        """Returns when the connection goes on, or what goes on is of no use."""
        self.is_stuck = True
        match how:
            case "stall":
                await self._proxy.mended.wait()
                self.is_stuck = False
            case "black-hole":
                self.is_lost = True
            case "vanish":
                self._proxy.shut(how)
            case "refuse" | "reset" | "close":
                if how == "refuse":
                    self._proxy.shut(how)
                self.end(reset=how != "close")
                await trio.lowlevel.checkpoint()


class _Passing:
    """What a fault does to the bytes of its phase, as they pass; ``note`` is called if it does."""

    def __init__(self, fault: Fault, note: Callable[[], object] = lambda: None) -> None:
        self.fault = fault
        self._note = note
        self._at = 0
        self._is_whole = True  # ``then`` has not happened
        if fault.delay or fault.drip:
            note()

    def cut(self, part: bytes) -> tuple[bytes, bytes | None]:
        """What passes before ``then`` happens and what is behind it; None if it does not."""
        begin, self._at = self._at, self._at + len(part)
        part = self._spoilt(part, begin)
        if self.fault.then is None or not self._is_whole or self._at < self.fault.after:
            return part, None
        self._is_whole = False
        self._note()
        cut = self.fault.after - begin
        return part[:cut], part[cut:]

    def _spoilt(self, part: bytes, begin: int) -> bytes:
        if self.fault.spoil is None:
            return part
        spoilt = bytearray(part)
        step = self.fault.every or sys.maxsize
        first = self.fault.spoil
        if first < begin:
            first += -(-(begin - first) // step) * step
        for at in range(first, self._at, step):
            spoilt[at - begin] ^= 0xFF
            self._note()
        return bytes(spoilt)


# Cuts what comes into parts; each with the phase that it begins, or None if it goes on with one.
_Split = Callable[[bytes], Iterable[tuple[Phase | None, bytes]]]


def _requests() -> _Split:
    """A client's bytes are one phase."""
    begins = iter([Phase.REQUEST])
    return lambda data: [(next(begins, None), data)]


class _Answers:
    """Knows where answers and bodies begin in what a server says."""

    def __init__(self) -> None:
        self._phase = Phase.GREETING
        self._begins = True
        self._left = _HELLO
        self._answer = b""  # as far as it has come

    def split(self, data: bytes) -> Iterator[tuple[Phase | None, bytes]]:
        while data:
            part, data = data[: self._left], data[self._left :]
            yield self._phase if self._begins else None, part
            self._begins = False
            self._left -= len(part)
            if self._phase is Phase.ANSWER:
                self._answer += part
                if len(self._answer) == 4:
                    self._left = _BEHIND_TAG.get(self._answer, 0)
            if not self._left:
                self._next()

    def _next(self) -> None:
        [size] = struct.unpack("<Q", self._answer[_SIZE_OF_BODY] or bytes(8))
        self._phase, self._left = (Phase.BODY, size) if size else (Phase.ANSWER, 4)
        self._begins, self._answer = True, b""


@asynccontextmanager
async def fault_proxy(to: str, **options: Any) -> AsyncIterator[FaultProxy]:
    """A FaultProxy that forwards; on the way out all its connections are closed."""
    proxy = FaultProxy(to, **options)
    async with trio.open_nursery() as nursery:
        await nursery.start(proxy.serve)
        yield proxy
        nursery.cancel_scope.cancel()


class FaultProxyProcess(Obeying):
    """A FaultProxy in a process of its own."""

    def __init__(self, to: str, *, host: str = "127.0.0.1") -> None:
        super().__init__("tests.fault_proxy", to, host)
        self.address = f"{host}:{self.first['port']}"

    def fault(self, phase: Phase, fault: Fault, *, times: int | None = None) -> None:
        self.ask(do="fault", phase=phase.value, fault=asdict(fault), times=times)

    def mend(self) -> None:
        self.ask(do="mend")

    def hang_up(self, *, reset: bool = False) -> None:
        self.ask(do="hang_up", reset=reset)

    def counts(self) -> dict[str, Any]:
        """``connections`` since the beginning, ``open`` and ``stuck`` now, ``struck`` by phase."""
        return self.ask(do="counts")


async def _obey(proxy: FaultProxy, request: dict[str, Any]) -> dict[str, Any]:
    match request.pop("do"):
        case "fault":
            phase, fault = Phase(request.pop("phase")), Fault(**request.pop("fault"))
            proxy.fault(phase, fault, **request)
        case "mend":
            proxy.mend()
        case "hang_up":
            proxy.hang_up(**request)
        case "counts":
            return {
                "connections": proxy.connections,
                "open": proxy.open,
                "stuck": proxy.stuck,
                "struck": dict(proxy.struck),
            }
        case unknown:
            return {"error": f"do what? {unknown}"}
    return {}


async def _main(to: str, host: str) -> None:
    async with fault_proxy(to, host=host) as proxy:
        await obey({"port": proxy.port}, partial(_obey, proxy))


if __name__ == "__main__":
    trio.run(_main, sys.argv[1], sys.argv[2])
