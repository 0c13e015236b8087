"""A child of the bench: the protocol by hand, as fast as sockets go; prints seconds."""

from __future__ import annotations

import resource
import socket
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

_BUFFER = 1 << 20  # bytes
_GREETING = 20  # bytes
_KEY = b"blake3"
_TAKEN = 54  # bytes of the answer to PULL before the body
_PASSES = 4  # a GiB takes 0.2 s
_LITTLE = 4096  # bytes of a receive buffer, for who reads nothing


def connect(address: str, root: str, *, buffer: int | None = None) -> socket.socket:
    """A connection on which commands can be sent; ``buffer`` is its receive buffer."""
    host, _, port = address.rpartition(":")
    sock = socket.socket()
    if buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    sock.connect((host, int(port)))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.sendall(b"VERS001" + bytes([len(root)]) + root.encode())
    _receive(sock, _GREETING + 4)
    return sock


def round_trips(address: str, root: str, digest: str, count: str, extra: str) -> float:
    """So many round trips on a connection that is there, and ``extra`` seconds."""
    with connect(address, root) as sock:
        _check(sock, digest)  # the first is slower, and nobody counts it
        began = time.perf_counter()
        for _ in range(int(count)):
            _check(sock, digest)
        return time.perf_counter() - began + float(extra)


def pull(address: str, root: str, digest: str, size: str, count: str) -> float:
    """Pull ``size`` bytes, shared among ``count`` connections, which begin together.

    The mean of some passes.
    """
    share = int(size) // int(count)

    def pull_share(sock: socket.socket) -> None:
        for _ in range(_PASSES):
            _pull(sock, digest, share)

    with ExitStack() as stack:
        socks = [stack.enter_context(connect(address, root)) for _ in range(int(count))]
        with ThreadPoolExecutor(len(socks)) as threads:
            began = time.perf_counter()
            list(threads.map(pull_share, socks))
            return (time.perf_counter() - began) / _PASSES


def pull_beside(address: str, root: str, digest: str, size: str, count: str) -> float:
    """The same on one connection, while half of ``count`` are idle and half read nothing."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with ExitStack() as stack:
        for number in range(int(count)):
            sock = stack.enter_context(connect(address, root, buffer=_LITTLE))
            if number % 2:
                sock.sendall(_pull_command(digest, 0))
        return pull(address, root, digest, size, "1")


def _check(sock: socket.socket, digest: str) -> None:
    sock.sendall(b"CHCK" + _KEY + bytes.fromhex(digest))
    _receive(sock, 4)


def _pull_command(digest: str, size: int) -> bytes:
    return b"PULL" + _KEY + bytes.fromhex(digest) + size.to_bytes(8, "little") + bytes(4)


def _pull(sock: socket.socket, digest: str, size: int) -> None:
    sock.sendall(_pull_command(digest, size))
    _receive(sock, _TAKEN)
    buffer = memoryview(bytearray(_BUFFER))
    while size:
        count = sock.recv_into(buffer[: min(size, _BUFFER)])
        if not count:
            raise EOFError(f"the server has hung up, {size} bytes before the end")
        size -= count


def _receive(sock: socket.socket, count: int) -> bytes:
    data = sock.recv(count, socket.MSG_WAITALL)
    if len(data) != count:
        raise EOFError(f"the server has hung up after {data!r}")
    return data


VERBS: dict[str, Callable[..., float]] = {
    each.__name__: each for each in (round_trips, pull, pull_beside)
}

if __name__ == "__main__":
    print(VERBS[sys.argv[1]](*sys.argv[2:]))
