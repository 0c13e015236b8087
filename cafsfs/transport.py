"""A TCP connection on which every wait has a deadline and every failure is one of ours.

Client and server stand on it; it knows nothing of what travels. Decryption of received bytes and
encryption of sent ones belong here when the handshake has agreed on them.
"""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import trio

from cafsfs.errors import ConnectionBroken, TimedOut, Unreachable


class Transport:
    """A connected socket; ``received`` and ``sent`` count the bytes of its life."""

    def __init__(self, sock: trio.socket.SocketType, peer: str) -> None:
        self._sock = sock
        self._peer = peer
        self.received = 0
        self.sent = 0
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    @classmethod
    async def connect(cls, host: str, port: int, *, receive_buffer: int | None = None) -> Transport:
        """Connect to the first address that answers; the caller sets the deadline.

        ``receive_buffer`` (bytes) is set before connecting, so that a server which sends
        unasked fills no more than that. Raises Unreachable, with the reason of the last address.
        """
        hint = "is a server running there? is the port right? does a firewall refuse it?"
        try:
            addresses = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:  # UnicodeError: a name that IDNA cannot encode
            reason = getattr(error, "strerror", None) or error
            raise Unreachable(f"cannot resolve `{host}`: {reason}", hint=hint) from error
        failure: OSError | None = None
        for family, kind, protocol, _, address in addresses:
            sock = trio.socket.socket(family, kind, protocol)
            try:
                if receive_buffer is not None:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
                await sock.connect(address)
                return cls(sock, _name(host, port))
            except OSError as error:
                sock.close()
                failure = error
            except BaseException:
                sock.close()
                raise
        reason = "it has no address" if failure is None else failure.strerror
        raise Unreachable(f"cannot connect to {_name(host, port)}: {reason}", hint=hint)

    async def recv_into(self, buffer: memoryview, *, deadline: float) -> int:
        """Read what is there, waiting up to ``deadline`` seconds for it; 0 at the end only.

        Raises TimedOut, ConnectionBroken.
        """
        with self._watch(deadline, "sent nothing"):
            count = await self._sock.recv_into(buffer)
        self.received += count
        return count

    async def send(
        self,
        parts: Sequence[bytes | memoryview],
        *,
        deadline: float,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """Write all of ``parts``; each piece that the kernel takes has ``deadline`` seconds.

        ``progress`` is told the bytes of each such piece. Raises TimedOut, ConnectionBroken.
        """
        left = [memoryview(part) for part in parts if part]
        while left:
            with self._watch(deadline, "took nothing"):
                count = await self._sock.sendmsg(left)
            self.sent += count
            if progress is not None:
                progress(count)
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
        deadline: float,
        limiter: trio.CapacityLimiter,
    ) -> int:
        """Let the kernel send up to ``count`` bytes of a file; returns how many, 0 past its end.

        In a thread, because it may wait for the disk; for the peer it is the event loop that
        waits, up to ``deadline`` seconds. Raises TimedOut, ConnectionBroken.
        """
        while True:
            with self._watch(deadline, "took nothing"):
                try:
                    sent = await trio.to_thread.run_sync(
                        os.sendfile, self._sock.fileno(), descriptor, offset, count, limiter=limiter
                    )
                except BlockingIOError:
                    await trio.lowlevel.wait_writable(self._sock)
                    continue
            self.sent += sent
            return sent

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
    def _watch(self, deadline: float, complaint: str) -> Iterator[None]:
        try:
            with trio.fail_after(deadline):
                yield
        except trio.TooSlowError:
            raise TimedOut(f"{self._peer} {complaint} for {deadline:g} s") from None
        except (OSError, trio.ClosedResourceError) as error:
            reason = getattr(error, "strerror", None) or "closed here"
            raise ConnectionBroken(f"connection to {self._peer} broke: {reason}") from error


def _name(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
