"""A web server of files whose every misdeed can be chosen, in a thread of its own.

It speaks HTTP by itself, on bare sockets: what a server library would put right is what is tested.
"""

from __future__ import annotations

import re
import socket
import ssl
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import Any

MODIFIED = "Sat, 01 Jan 2000 00:00:00 GMT"


@dataclass
class Faults:
    """What the server does otherwise; the defaults are those of a sound one.

    ``statuses`` are answered one after the other, then it is sound again; ``status`` always.
    ``breaks_at``: offsets in a file where the connection ends, each once, by ``reset`` or not.
    ``drip``: seconds after each byte of a body. ``answers_all``: this, for whatever is not there.
    """

    status: int | None = None
    statuses: list[int] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    head: bool = True
    ranges: str = "sound"  # ignored, shifted, foreign, unlabelled, cut
    if_range: bool = True
    length: int | None = None  # what Content-Length says, of whatever comes
    chunked: bool = False
    unframed: bool = (
        False  # neither length nor chunks: the end of the connection is that of the body
    )
    breaks_at: list[int] = field(default_factory=list)
    reset: bool = False
    drip: float = 0.0
    stalls_before_head: bool = False
    answers_all: bytes | None = None
    raw: bytes | None = None  # instead of an answer
    redirect: str | None = None  # with {path}
    etag: str | None = '"one"'
    modified: str | None = MODIFIED


class WebServerThread:
    """Serves ``directory``; counts its connections and requests, and remembers the last ones."""

    def __init__(self, directory: Path, context: ssl.SSLContext | None = None) -> None:
        self.directory = directory
        self.faults = Faults()
        self.connections = 0
        self.requests: Counter[str] = Counter()
        self.log: list[tuple[str, str, dict[str, str]]] = []
        self.bytes_sent = 0
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._open: set[socket.socket] = set()
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    @property
    def url(self) -> str:
        """Of its top; a template's beginning."""
        return f"http{'s' if self._context else ''}://127.0.0.1:{self.port}"

    def close(self) -> None:
        self._ended.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.hang_up()
        for each in self._threads:
            each.join(5)
            assert not each.is_alive()

    def hang_up(self) -> None:
        """End all connections."""
        for each in list(self._open):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def put(self, name: str, content: bytes) -> None:
        path = self.directory / name[:2] / name[2:4] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            thread = threading.Thread(target=self._serve, args=(sock,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, sock: socket.socket) -> None:
        self._open.add(sock)
        try:
            if self._context is not None:
                sock.settimeout(5)
                secured = self._context.wrap_socket(sock, server_side=True)
                self._open.discard(sock)
                sock = secured
                self._open.add(sock)
            sock.settimeout(None)
            buffered = sock.makefile("rb")
            with buffered:
                while self._answer(sock, buffered):
                    pass
        except OSError:
            pass
        finally:
            self._open.discard(sock)
            with suppress(OSError):
                sock.close()

    def _answer(self, sock: socket.socket, buffered: Any) -> bool:
        """One request; False if the connection ends with it."""
        line = buffered.readline().decode("latin-1").split()
        if len(line) != 3:
            return False
        method, path, _ = line
        headers = {}
        while (text := buffered.readline().decode("latin-1").strip()) != "":
            name, _, value = text.partition(":")
            headers[name.lower()] = value.strip()
        self.requests[method] += 1
        self.log.append((method, path, headers))
        faults = self.faults
        if faults.stalls_before_head:
            self._ended.wait()
            return False
        if faults.raw is not None:
            sock.sendall(faults.raw)
            return False
        if faults.redirect is not None and not path.startswith("/there"):
            location = faults.redirect.format(path=path)
            return self._send_head(sock, 302, {"Location": location, "Content-Length": "0"})
        status = faults.statuses.pop(0) if faults.statuses else faults.status
        if status is None and method == "HEAD" and not faults.head:
            status = 501
        if status is not None:
            body = b"" if method == "HEAD" or status in {204, 304} else b"<html>no</html>"
            self._send_head(sock, status, {"Content-Length": "15", **faults.headers})
            sock.sendall(body)
            return True
        return self._send_file(sock, method, path, headers)

    def _send_head(self, sock: socket.socket, status: int, headers: dict[str, str]) -> bool:
        lines = [f"HTTP/1.1 {status} Whatever"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        sock.sendall("\r\n".join([*lines, "", ""]).encode("latin-1"))
        return True

    def _send_file(
        self, sock: socket.socket, method: str, path: str, asked: dict[str, str]
    ) -> bool:
        faults = self.faults
        file = self.directory / path.removeprefix("/there").lstrip("/").partition("?")[0]
        content = file.read_bytes() if file.is_file() else faults.answers_all
        if content is None:
            self._send_head(sock, 404, {"Content-Length": "15"})
            sock.sendall(b"" if method == "HEAD" else b"<html>no</html>")
            return True
        span = self._span(asked, len(content))
        if span is not None and not content:
            return self._send_head(sock, 416, {"Content-Range": "bytes */0", "Content-Length": "0"})
        if span is not None and faults.ranges == "foreign":
            content = bytes(len(content))
        start, end = span or (0, len(content))
        headers = self._headers(start, end, len(content), ranged=span is not None)
        self._send_head(sock, 200 if span is None else 206, headers)
        return method == "HEAD" or self._send_body(sock, content, start, end)

    def _headers(self, start: int, end: int, total: int, *, ranged: bool) -> dict[str, str]:
        faults = self.faults
        headers = {"Date": formatdate(usegmt=True), **faults.headers}
        if faults.etag:
            headers["ETag"] = faults.etag
        if faults.modified:
            headers["Last-Modified"] = faults.modified
        if ranged and faults.ranges != "unlabelled":
            shift = 1 if faults.ranges == "shifted" else 0
            headers["Content-Range"] = f"bytes {start + shift}-{end - 1 + shift}/{total + shift}"
        if faults.chunked:
            headers["Transfer-Encoding"] = "chunked"
        elif faults.unframed:
            headers["Connection"] = "close"
        else:
            headers["Content-Length"] = str(end - start if faults.length is None else faults.length)
        return headers

    def _span(self, asked: dict[str, str], total: int) -> tuple[int, int] | None:
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", asked.get("range", ""))
        condition = asked.get("if-range")
        changed = condition not in {None, self.faults.etag, self.faults.modified}
        if found is None or self.faults.ranges == "ignored":
            return None
        if changed and self.faults.if_range:
            return None
        start = int(found[1])
        end = min(total, int(found[2] or total) + 1)
        if self.faults.ranges == "cut":
            end = min(end, start + 8)
        return start, end

    def _send_body(self, sock: socket.socket, content: bytes, start: int, end: int) -> bool:
        faults = self.faults
        cut = next((at for at in sorted(faults.breaks_at) if start < at <= end), None)
        if cut is not None:
            faults.breaks_at.remove(cut)
            end = cut
        step = 1 if faults.drip else 1 << 16
        for at in range(start, end, step):
            piece = content[at : min(at + step, end)]
            framed = b"%x\r\n%b\r\n" % (len(piece), piece) if faults.chunked else piece
            self.bytes_sent += len(piece)
            sock.sendall(framed)
            if faults.drip and self._ended.wait(faults.drip):
                return False
        if cut is not None:
            if faults.reset:
                time.sleep(0.05)  # what was sent is to arrive: a reset may overtake it
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return False
        if faults.chunked:
            sock.sendall(b"0\r\n\r\n")
        return not faults.unframed and faults.length is None


@contextmanager
def web_server(directory: Path, context: ssl.SSLContext | None = None) -> Iterator[WebServerThread]:
    """A web server, of which nothing is left at the end."""
    server = WebServerThread(directory, context)
    try:
        yield server
    finally:
        server.close()
