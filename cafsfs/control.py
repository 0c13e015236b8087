"""The control socket of a live mount, by which commands talk to it.

A Unix stream socket ``<pid>.sock`` in ``runtime_directory()``. A request is a line of JSON,
``{"command": NAME, …}``; so is its answer, ``{"ok": true, …}`` or ``{"ok": false, "error": TEXT}``,
with a ``"hint"`` where there is one. A connection may carry several requests, one after the other.

The directory is the lock: only we, or root, can reach what is in it. The socket's mode and the uid
of the peer are the second and the third.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import stat
import struct
import tempfile
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import trio

from cafsfs.errors import (
    CafsError,
    ConnectionBroken,
    RemoteProtocolError,
    StoreError,
    TimedOut,
    Unavailable,
    UsageError,
)

log = logging.getLogger(__name__)

Handler = Callable[[dict[str, Any]], Awaitable[dict[str, object]]]
"""What one command does: the request as it came, to the answer without its ``ok``."""

_PATIENCE = 10.0  # seconds from an answer to the end of the next request, and to take an answer
_REQUEST = 1 << 20  # bytes of a line, without its end
_ANSWER = 16 << 20  # bytes; a megabyte names all there is to say of a mount, so this is no answer
_PIECE = 1 << 16  # bytes of one recv
_CONNECTIONS = 16  # at once; a command needs one, and for less than a second
_BACKLOG = 128
_ACCEPT_PAUSE = 1.0  # seconds before accept() is tried again, when descriptors ran out
_CONNECT_PAUSE = 0.02  # seconds before a full backlog is tried again
_LONGEST_PATH = 107  # bytes: sun_path has 108, and one is the NUL


def runtime_directory() -> Path:
    """Where the sockets of our mounts are; it need not exist.

    Raises StoreError if $CAFSFS_RUNTIME_DIR is a relative path: a daemon stands elsewhere.
    """
    if chosen := os.environ.get("CAFSFS_RUNTIME_DIR"):
        if not os.path.isabs(chosen):
            raise StoreError(
                f"$CAFSFS_RUNTIME_DIR is not an absolute path: `{chosen}`",
                hint="write it from the root on, or unset it",
            )
        return Path(chosen)
    if os.geteuid() == 0:
        return Path("/run/cafsfs")
    of_session = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(of_session) and os.path.isdir(of_session):
        return Path(of_session, "cafsfs")
    return Path(tempfile.gettempdir(), f"cafsfs-{os.geteuid()}")


async def serve_control(
    handlers: Mapping[str, Handler], *, task_status: trio.TaskStatus[Path]
) -> None:
    """Answer commands until cancelled; tells the path of the socket by task_status.

    A handler takes the time it needs. Its CafsError is the peer's answer; any other exception goes
    to the log, and ends neither the connection nor the service. The socket file is gone afterwards.

    Raises StoreError if it cannot serve, and only before it has begun: a mount is worth more than
    its control socket.
    """
    path = runtime_directory() / f"{os.getpid()}.sock"
    # Nothing waits between looking at the directory and listening in it.
    with _held(path.parent), _listen(path) as listening:
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(listening))
        try:
            task_status.started(path)
            async with trio.open_nursery() as peers:
                await _accept(listener, handlers, peers)
        finally:
            with suppress(OSError):  # first the name, then the socket: nobody sees it refuse
                path.unlink()


def live_sockets(directory: Path | None = None) -> list[Path]:
    """The sockets in ``directory`` (runtime_directory()), sorted; who made them may be dead.

    Raises StoreError if somebody else could have put them there.
    """
    directory = directory or runtime_directory()
    try:
        _distrust(directory, serving=False)
        return sorted(path for path in directory.glob("*.sock") if path.is_socket())
    except OSError:  # there are none, or none for us
        return []


def ask(path: Path, request: Mapping[str, object], *, deadline: float = 5.0) -> dict[str, Any]:
    """The answer of the mount at ``path``, within ``deadline`` seconds in all.

    A socket that refuses has been left by a process that was killed: it is removed.

    Raises TimedOut; Unavailable if nobody answers, or we may not ask; StoreError with what the
    mount says if it will not; RemoteProtocolError if it talks nonsense.
    """
    end = time.monotonic() + deadline
    try:
        line = _exchange(path, json.dumps(dict(request)).encode() + b"\n", end)
    except TimeoutError:
        raise TimedOut(f"`{path}` did not answer within {deadline:g} s") from None
    except OSError as error:
        if isinstance(error, ConnectionRefusedError):
            _remove_stale(path)
        # No strerror: Python itself refuses a path that is too long.
        raise Unavailable(f"nobody answers at `{path}`: {error.strerror or error}") from error
    answer = _parse(line)
    match answer:
        case {"ok": True}:
            return answer
        case {"ok": False, "error": str(said)}:
            hint = answer.get("hint")
            raise StoreError(said, hint=hint if isinstance(hint, str) else None)
    raise RemoteProtocolError(f"`{path}` answered neither yes nor no")


def ask_all(
    request: Mapping[str, object], *, deadline: float = 5.0, paths: Collection[Path] | None = None
) -> dict[Path, dict[str, Any]]:
    """The answers of all our mounts, at once and within ``deadline`` seconds in all.

    Or of those at ``paths`` alone.
    Only those that say yes. One that is dead, or not for us to ask, is passed over; one that
    hangs, refuses or talks nonsense is named in the log.
    Raises StoreError as ``live_sockets`` does.
    """
    if paths is None:
        paths = live_sockets()
    answers = {}
    # A thread each, or those that hang would use up the time of the others.
    with ThreadPoolExecutor(max(len(paths), 1)) as pool:
        asked = {path: pool.submit(ask, path, request, deadline=deadline) for path in paths}
        for path, answer in asked.items():
            try:
                answers[path] = answer.result()
            except (TimedOut, RemoteProtocolError) as error:
                log.warning("passed over a mount: %s", error)
            except StoreError as error:
                log.warning("the mount at `%s` refused: %s", path, error)
            except Unavailable as error:
                log.debug("%s", error)
    return answers


def _distrust(directory: Path, *, serving: bool) -> None:
    """Raise StoreError if others can put sockets there; OSError if it cannot be looked at.

    In /tmp anybody may have made it before us. Root's may be asked, and root may ask; to serve, it
    must be ours.
    """
    status = directory.lstat()
    us = os.geteuid()
    if stat.S_ISLNK(status.st_mode):
        fault = "it is a symbolic link"
    elif not stat.S_ISDIR(status.st_mode):
        fault = "it is not a directory"
    elif status.st_uid != us and (serving or 0 not in {status.st_uid, us}):
        fault = f"it belongs to uid {status.st_uid}"
    elif status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        fault = "others can write to it"
    else:
        return
    raise StoreError(
        f"cannot trust the runtime directory `{directory}`: {fault}",
        hint="look who made it and remove it, or name another one in $CAFSFS_RUNTIME_DIR",
    )


@contextmanager
def _held(directory: Path) -> Iterator[None]:
    """Make the directory if need be, and lock it: systemd-tmpfiles spares what is locked.

    It takes from /tmp what is ten days old, but for sockets that are still where they were bound;
    ours are renamed (tried, systemd 252). Raises StoreError.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _distrust(directory, serving=True)
        held = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise StoreError(
            f"cannot make the runtime directory `{directory}`: {error.strerror}",
            hint="name another one in $CAFSFS_RUNTIME_DIR",
        ) from error
    try:
        with suppress(OSError):  # not every filesystem has locks
            fcntl.flock(held, fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield
    finally:
        os.close(held)


def _listen(path: Path) -> socket.socket:
    """A socket that listens at ``path``, in the place of a dead one. Raises StoreError.

    It gets its name when it listens, not before: a client takes one that refuses for dead.
    """
    hint = "name another directory in $CAFSFS_RUNTIME_DIR"
    if len(os.fsencode(path)) > _LONGEST_PATH:
        raise StoreError(f"`{path}` is too long for a socket: {_LONGEST_PATH} bytes", hint=hint)
    if _is_taken(path):  # by our pid in another PID namespace
        raise StoreError(f"another process answers at `{path}`", hint=hint)
    unnamed = path.with_suffix(".new")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        unnamed.unlink(missing_ok=True)
        sock.bind(os.fsencode(unnamed))
        unnamed.chmod(0o600)
        sock.listen(_BACKLOG)
        sock.setblocking(False)
        unnamed.rename(path)
    except OSError as error:
        sock.close()
        with suppress(OSError):
            unnamed.unlink()
        raise StoreError(f"cannot listen at `{path}`: {error.strerror}", hint=hint) from error
    return sock


def _is_taken(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fsencode(path))
        except BlockingIOError:  # it has more visitors than it can take
            return True
        except OSError:
            return False
        return True


async def _accept(
    listener: trio.SocketListener, handlers: Mapping[str, Handler], peers: trio.Nursery
) -> None:
    while True:
        try:
            stream = await listener.accept()
        except OSError as error:
            log.warning("cannot accept a control connection: %s", error.strerror)
            await trio.sleep(_ACCEPT_PAUSE)
            continue
        full = len(peers.child_tasks) >= _CONNECTIONS
        if full or not _may_ask(stream.socket):
            if full:
                with suppress(OSError):  # the buffer of a fresh socket takes it without waiting
                    await stream.socket.send(_refusal(StoreError("too many control connections")))
            stream.socket.close()
            continue
        peers.start_soon(_serve_peer, stream, handlers)


def _may_ask(sock: trio.socket.SocketType) -> bool:
    """Whether the peer is of our uid, or root."""
    credentials = struct.Struct("iII")  # struct ucred: pid, uid, gid
    said = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, credentials.size)
    pid, uid, _ = credentials.unpack(said)
    if uid in {0, os.geteuid()}:
        return True
    log.warning("refused a control connection: uid %d, pid %d", uid, pid)
    return False


async def _serve_peer(stream: trio.SocketStream, handlers: Mapping[str, Handler]) -> None:
    try:
        async with stream:
            await _converse(stream, handlers)
    except (trio.BrokenResourceError, trio.TooSlowError) as error:
        log.debug("cut a control connection: %s", error)
    except Exception:
        log.exception("a control connection failed; the mount goes on")


async def _converse(stream: trio.SocketStream, handlers: Mapping[str, Handler]) -> None:
    """Answer one request after the other, until the peer ends or sends garbage."""
    received = bytearray()
    while True:
        with trio.fail_after(_PATIENCE):
            try:
                line = await _read_line(stream, received)
                if not line:
                    return
                request = _parse(line)
            except RemoteProtocolError as error:
                await stream.send_all(_refusal(error))
                return
        answer = await _answer(handlers, request)
        with trio.fail_after(_PATIENCE):
            await stream.send_all(answer)


async def _read_line(stream: trio.SocketStream, received: bytearray) -> bytes:
    """The next line with its end, as ``readline``: empty at the end of all.

    ``received`` keeps what has come of the lines after it. Raises RemoteProtocolError.
    """
    known = 0
    while (end := received.find(b"\n", known)) < 0 and len(received) <= _REQUEST:
        known = len(received)
        piece = await stream.receive_some(_PIECE)
        if not piece:
            if received:
                raise RemoteProtocolError("the request has no end")
            return b""
        received += piece
    if not 0 <= end <= _REQUEST:
        raise RemoteProtocolError(f"the request is longer than {_REQUEST} bytes")
    line = bytes(received[: end + 1])
    del received[: end + 1]
    return line


async def _answer(handlers: Mapping[str, Handler], request: dict[str, Any]) -> bytes:
    command = request.get("command")
    handler = handlers.get(command) if isinstance(command, str) else None
    if handler is None:
        return _refusal(UsageError(f"unknown command `{command!s:.50}`"))
    try:
        return _encode({**await handler(request), "ok": True})
    except CafsError as error:
        return _refusal(error)
    except Exception:
        log.exception("the control command `%s` failed", command)
        return _refusal(StoreError("internal error"))


def _refusal(error: CafsError) -> bytes:
    hint = {"hint": error.hint} if error.hint else {}
    return _encode({"ok": False, "error": str(error), **hint})


def _encode(answer: Mapping[str, object]) -> bytes:
    return json.dumps(answer).encode() + b"\n"  # escapes line ends and all that is not ASCII


def _parse(line: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(line)
    except (ValueError, RecursionError):  # RecursionError: a thousand brackets
        parsed = None
    if not isinstance(parsed, dict):
        raise RemoteProtocolError("a line is not an object of JSON")
    return parsed


def _exchange(path: Path, request: bytes, end: float) -> bytes:
    """Send a line and read one; ``end`` is of time.monotonic(). Raises TimeoutError, OSError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        while True:
            sock.settimeout(_left(end))
            try:
                sock.connect(os.fsencode(path))
                break
            except BlockingIOError:  # its backlog is full; the kernel does not wait for room
                time.sleep(min(_CONNECT_PAUSE, _left(end)))
        sock.settimeout(_left(end))
        with suppress(BrokenPipeError, ConnectionResetError):  # it may have said why
            sock.sendall(request)
        received = bytearray()
        while not received.endswith(b"\n"):
            sock.settimeout(_left(end))
            piece = sock.recv(_PIECE)
            if not piece:
                raise ConnectionBroken(f"`{path}` closed the connection without an answer")
            received += piece
            if len(received) > _ANSWER:
                raise RemoteProtocolError(f"`{path}` answered more than {_ANSWER} bytes")
    return bytes(received)


def _left(end: float) -> float:
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _remove_stale(path: Path) -> None:
    """Remove a socket that refused; but only a socket: connect() says the same of any file."""
    with suppress(OSError):
        if stat.S_ISSOCK(path.lstat().st_mode):
            path.unlink()
