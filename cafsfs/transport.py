"""A TCP connection on which every wait has a deadline and every failure is one of ours.

Client and server stand on it; it knows nothing of what travels. Once a handshake has agreed on
ciphers, received bytes are decrypted here, and sent ones encrypted. Both key streams stand where
the connection stands: what fails or is cancelled has used up as many bytes as have travelled.
"""

from __future__ import annotations

import math
import os
import select
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial

import trio

from cafsfs.errors import ConnectionBroken, TimedOut, Unreachable
from cafsfs.resolver import Address, Resolver
from cafsfs.wire import Ciphers, Keystream

# Seconds before the next address of a name is tried beside the one that does not answer: a host
# whose IPv6 leads nowhere must not use up the whole deadline (RFC 8305, section 5).
_HEAD_START = 0.25

# A firewall that forgets an idle connection says so to nobody: the kernel asks, and closes it after
# a minute, before a request would wait for its whole deadline on it.
_KEEPALIVE = {
    socket.TCP_KEEPIDLE: 30,  # seconds
    socket.TCP_KEEPINTVL: 10,  # seconds
    socket.TCP_KEEPCNT: 3,
}

_SO_BUF_LOCK = 72  # Linux 5.13; Python's socket module has no name for it

_TICK = 0.01  # seconds by which a sum of waits may be off

# Bytes that sendfile may send in one hop, and in one call. A peer that takes them as fast as they
# come from memory has 8 MiB sent in one millisecond; where each call waits for the disk, the thread
# is given back after _TURN seconds.
_STRIDE = 8 << 20
_STEP = 1 << 20
_TURN = 0.005

# Bytes that are encrypted at once before they are sent: few enough to stay in the core's cache, and
# 25 µs on the event loop. A hop into a thread would cost four times as much.
_SEALED = 256 << 10


class Pace:
    """Tells a slow transfer from a stalled one that pretends, with one byte now and then.

    Each ``rate`` × ``window`` bytes have ``window`` seconds. Only the time that is spent waiting
    for the peer counts: what our own disk takes between two pieces is not its fault. A transfer
    that ends sooner than that has not been too slow, however few its last bytes are. ``stall`` is
    how long not one byte may come, where somebody wants to know that sooner.
    """

    def __init__(self, window: float, rate: float) -> None:
        self._window = window
        self._floor = rate * window
        self._moved = 0
        self._waited = 0.0
        self._still = 0.0  # since the last byte
        self.stall = math.inf

    def __str__(self) -> str:
        if self.stalled:
            return f"nothing for {self.stall:g} s"
        moved = f"only {self._moved} bytes in" if self._moved else "nothing for"
        return f"{moved} {self._window:g} s"

    @property
    def stalled(self) -> bool:
        """True if nothing has come for as long as ``stall``, though there may be time left."""
        return self._still > self.stall - _TICK

    @property
    def patience(self) -> float:
        """Seconds that the next piece may take."""
        return max(0.0, min(self._window - self._waited, self.stall - self._still))

    def waited(self, seconds: float) -> None:
        """Note a wait, whatever came of it: one that was cancelled counts too."""
        self._waited += seconds
        self._still += seconds

    def moved(self, count: int) -> None:
        """Note ``count`` bytes; enough of them begin a new window."""
        self._moved += count
        self._still = 0.0
        if self._moved >= self._floor:
            self._moved = 0
            self._waited = 0.0


class Transport:
    """A connected socket; ``received`` and ``sent`` count the bytes of its life."""

    def __init__(self, sock: trio.socket.SocketType, peer: str) -> None:
        self._sock = sock
        self._peer = peer
        self._ciphers: Ciphers | None = None
        self.received = 0
        self.sent = 0
        with suppress(OSError):  # some systems refuse options of a connection that is gone already
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in _KEEPALIVE.items():
                sock.setsockopt(socket.IPPROTO_TCP, option, value)

    @classmethod
    async def connect(
        cls,
        host: str,
        port: int,
        *,
        resolver: Resolver | None = None,
        receive_buffer: int | None = None,
        must_grow: bool = False,
    ) -> Transport:
        """Connect to the first address that answers; the caller sets the deadline.

        ``resolver`` is the one of ``host``, where it is to be remembered between connects.
        ``receive_buffer`` (bytes) is set before connecting, so that a server which sends
        unasked fills no more than that. Since Linux 5.13 it grows as soon as somebody reads fast;
        before, it stays small for ever, so with ``must_grow`` it is not set there. Raises
        Unreachable, with the reason of the first failure.
        """
        hint = "is a server running there? is the port right? does a firewall refuse it?"
        addresses = await (resolver or Resolver(host, port)).addresses()
        race = _Race(receive_buffer, must_grow=must_grow)
        sock = await race.run(addresses)
        if sock is None:
            # Not strerror: Trio writes the address into it, which the message has already.
            failed = race.failures[:1]
            reason = os.strerror(failed[0].errno or 0) if failed else "it has no address"
            raise Unreachable(f"cannot connect to {_name(host, port)}: {reason}", hint=hint)
        return cls(sock, _name(host, port))

    def use(self, ciphers: Ciphers | None) -> None:
        """Encrypt and decrypt everything from now on; None: go on plain."""
        self._ciphers = ciphers

    async def recv_into(self, buffer: memoryview, *, deadline: float | Pace) -> int:
        """Read what is there, waiting up to ``deadline`` seconds for it; 0 at the end only.

        Or no longer than a Pace allows. Raises TimedOut, ConnectionBroken.
        """
        with self._watch(deadline, "sent") as pace:
            count = await self._sock.recv_into(buffer)
        pace.moved(count)
        self.received += count
        if self._ciphers is not None:
            self._ciphers.receiving.apply(buffer[:count], buffer)
        return count

    async def send(self, parts: Sequence[bytes | memoryview], *, deadline: float | Pace) -> None:
        """Write all of ``parts``; each piece that the kernel takes has ``deadline`` seconds.

        Or what a Pace allows. Raises TimedOut, ConnectionBroken.
        """
        left = [memoryview(part) for part in parts if part]
        if self._ciphers is not None:
            await self._send_encrypted(left, deadline, self._ciphers.sending)
            return
        while left:
            await self._send_some(left, deadline)

    async def _send_encrypted(
        self, left: list[memoryview], deadline: float | Pace, stream: Keystream
    ) -> None:
        buffer = memoryview(bytearray(min(_SEALED, sum(map(len, left)))))
        while left:
            sealed = [_seal(left, buffer, stream)]
            try:
                while sealed:
                    await self._send_some(sealed, deadline)
            except BaseException:
                stream.go_back(sum(map(len, sealed)))
                raise

    async def _send_some(self, left: list[memoryview], deadline: float | Pace) -> None:
        """Write what the kernel takes of ``left``, and remove it there."""
        with self._watch(deadline, "took") as pace:
            count = await self._sock.sendmsg(left)
        pace.moved(count)
        self.sent += count
        while left and count >= len(left[0]):
            count -= len(left.pop(0))
        if count:
            left[0] = left[0][count:]

    async def send_file(
        self,
        descriptor: int,
        offset: int,
        count: int,
        *,
        deadline: float | Pace,
        limiter: trio.CapacityLimiter,
    ) -> int:
        """Let the kernel send up to ``count`` bytes of a file; returns how many, 0 past its end.

        Where they are encrypted, what it takes is read and encrypted for it. In a thread, because
        it may wait for the disk: as long as the peer takes bytes, but only for some milliseconds.
        For the peer it is the event loop that waits, up to ``deadline`` seconds, or what a Pace
        allows. Raises TimedOut, ConnectionBroken.
        """
        place = (self._sock.fileno(), descriptor, offset, min(count, _STRIDE))
        if self._ciphers is None:
            send = partial(_send_file, *place)
        else:
            send = partial(_send_file_encrypted, *place, self._ciphers.sending)
        while True:
            with self._watch(deadline, "took") as pace:
                await trio.lowlevel.wait_writable(self._sock)
                sent = await trio.to_thread.run_sync(send, limiter=limiter)
            if sent is not None:
                pace.moved(sent)
                self.sent += sent
                return sent

    @property
    def is_encrypted(self) -> bool:
        """True if what travels is encrypted."""
        return self._ciphers is not None

    def seems_alive(self) -> bool:
        """False if the peer has closed, or has sent something that nobody asked for.

        Between two commands a sound connection has nothing to read.
        """
        poll = select.poll()
        poll.register(self._sock.fileno(), select.POLLIN)
        return not poll.poll(0)

    def close(self) -> None:
        """Close at once; what was not read is thrown away."""
        self._sock.close()

    @contextmanager
    def _watch(self, deadline: float | Pace, deed: str) -> Iterator[Pace]:
        pace = deadline if isinstance(deadline, Pace) else Pace(deadline, 0)
        began = trio.current_time()
        try:
            # Not fail_after, which is a generator too: this stands around each piece of a body.
            with trio.move_on_after(pace.patience) as scope:
                yield pace
        except (OSError, trio.ClosedResourceError) as error:
            reason = getattr(error, "strerror", None) or "closed here"
            raise ConnectionBroken(f"connection to {self._peer} broke: {reason}") from error
        finally:
            pace.waited(trio.current_time() - began)
        if scope.cancelled_caught:
            raise TimedOut(f"{self._peer} {deed} {pace}")


def _send_file(sock: int, descriptor: int, offset: int, count: int) -> int | None:
    """Send until the socket is full, the file ends or the turn does.

    None if the socket was full from the beginning.
    """
    sent = 0
    end = time.monotonic() + _TURN
    while sent < count and (not sent or time.monotonic() < end):
        try:
            step = os.sendfile(sock, descriptor, offset + sent, min(_STEP, count - sent))
        except BlockingIOError:
            return sent or None
        if step == 0:
            break
        sent += step
    return sent


def _send_file_encrypted(
    sock: int, descriptor: int, offset: int, count: int, stream: Keystream
) -> int | None:
    """As ``_send_file``; what is encrypted for a socket that is full then is forgotten again.

    To keep it would take memory for each slow client; so up to _SEALED bytes a turn are read twice.
    """
    sent = 0
    end = time.monotonic() + _TURN
    buffer = memoryview(bytearray(min(_SEALED, count)))
    while sent < count and (not sent or time.monotonic() < end):
        piece = buffer[: os.preadv(descriptor, [buffer[: count - sent]], offset + sent)]
        if not piece:
            break
        stream.apply(piece, piece)
        try:
            step = os.write(sock, piece)
        except BlockingIOError:
            step = 0
        stream.go_back(len(piece) - step)
        sent += step
        if step < len(piece):
            return sent or None
    return sent


def _seal(left: list[memoryview], buffer: memoryview, stream: Keystream) -> memoryview:
    """Encrypt what fits of ``left`` into ``buffer``, and remove it there."""
    filled = 0
    while left and filled < len(buffer):
        piece = left[0][: len(buffer) - filled]
        stream.apply(piece, buffer[filled:])
        filled += len(piece)
        left[0] = left[0][len(piece) :]
        if not left[0]:
            left.pop(0)
    return buffer[:filled]


class _Race:
    """Attempts to connect to the addresses of one host; the first that succeeds ends the others."""

    def __init__(self, receive_buffer: int | None, *, must_grow: bool) -> None:
        self._receive_buffer = receive_buffer
        self._must_grow = must_grow
        self._winner: trio.socket.SocketType | None = None
        self.failures: list[OSError] = []

    async def run(self, addresses: Sequence[Address]) -> trio.socket.SocketType | None:
        """A connected socket, or None if all have failed. Cancelled, it leaves no socket."""
        try:
            async with trio.open_nursery() as nursery:
                for address in addresses:
                    failed = trio.Event()
                    nursery.start_soon(self._attempt, address, failed, nursery.cancel_scope)
                    with trio.move_on_after(_HEAD_START):
                        await failed.wait()
        except BaseException:
            if self._winner is not None:
                self._winner.close()
            raise
        return self._winner

    async def _attempt(
        self, address: Address, failed: trio.Event, others: trio.CancelScope
    ) -> None:
        family, kind, protocol, _, place = address
        try:
            sock = trio.socket.socket(family, kind, protocol)
            try:
                if self._receive_buffer is not None:
                    _begin_small(sock, self._receive_buffer, must_grow=self._must_grow)
                await sock.connect(place)
            except BaseException:
                sock.close()
                raise
        except OSError as error:
            self.failures.append(error)
            failed.set()
            return
        # No checkpoint between the test and the claim: two may arrive in the same turn.
        if self._winner is None:
            self._winner = sock
            others.cancel()
        else:
            sock.close()


def _begin_small(sock: trio.socket.SocketType, size: int, *, must_grow: bool) -> None:
    """Offer no more than ``size`` bytes at first, and let the kernel raise it when they are read.

    A buffer that was set is locked: the kernel does not tune it, and connecting scales the window
    for it, which then stays below 64 KiB for the life of the connection. Without the lock the
    first window is as small (of a body that nobody reads 6 KB travel, instead of 128 KB to some
    megabytes), the scale is the usual one, and the pull that goes on has full speed. A clamp of the
    window does neither: set before connecting it scales as a locked buffer does, and afterwards
    the 64 KiB of the first window are given away.
    """
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_BUF_LOCK, 0)  # only to see whether it is known
    except OSError:
        if must_grow:
            return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, _SO_BUF_LOCK, 0)


def _name(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
