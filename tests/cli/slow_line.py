"""A line that lets so many bytes a second through, to make short work long."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

_PIECE = 64 << 10


class SlowLine:
    """Forwards one connection after the other to ``address``, ``rate`` bytes a second each way."""

    def __init__(self, address: str, rate: int) -> None:
        host, _, port = address.rpartition(":")
        self._to = (host, int(port))
        self._pause = _PIECE / rate
        self._listener = socket.socket()
        # What the kernel holds for us is not slow.
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _PIECE)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen()
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads: list[threading.Thread] = []
        self._sockets: list[socket.socket] = []
        self._start(self._accept)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for each in self._sockets:  # whoever still waits at one
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # closed
                return
            self._start(self._join, client)

    def _start(self, work: Callable[..., None], *arguments: object) -> threading.Thread:
        thread = threading.Thread(target=work, args=arguments)
        thread.start()
        self._threads.append(thread)
        return thread

    def _join(self, client: socket.socket) -> None:
        with client, socket.create_connection(self._to) as server:
            self._sockets += [client, server]
            way_back = self._start(self._forward, server, client)
            self._forward(client, server)
            way_back.join()

    def _forward(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while piece := source.recv(_PIECE):
                sink.sendall(piece)
                time.sleep(self._pause * len(piece) / _PIECE)
            sink.shutdown(socket.SHUT_WR)
        except OSError:  # one side has gone
            return
