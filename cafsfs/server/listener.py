"""The embedded server: listens, serves many clients at once, stops cleanly."""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import trio

from cafsfs.errors import CafsError, StoreError, Unavailable
from cafsfs.packing import UnpackLimits
from cafsfs.server.gate import Gate
from cafsfs.server.limits import Limits, Workers
from cafsfs.server.roots import resolve_root
from cafsfs.server.session import Session, Tally
from cafsfs.store.contracts import PackedStore
from cafsfs.store.local_root import LocalRoot
from cafsfs.transport import Transport

log = logging.getLogger(__name__)

_BACKLOG = 512
_INTERNET = {socket.AF_INET, socket.AF_INET6}
# accept() fails with these when descriptors or memory run out: wait until some are free again.
_OUT_OF = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_OUT_OF_PAUSE = 0.1  # seconds


class CafsServer:
    """Serves every root below ``directory`` on TCP.

    ::

        server = CafsServer(Path("/srv/cafs"))
        async with trio.open_nursery() as nursery:
            addresses = await nursery.start(server.serve, "127.0.0.1", 2403)
            …
            server.stop()

    ``sync``: the data of an upload is on the disk before it is answered. ``gate``: who comes in.
    """

    def __init__(
        self,
        directory: Path,
        *,
        limits: Limits | None = None,
        gate: Gate | None = None,
        sync: bool = False,
    ) -> None:
        if not directory.is_dir():
            raise StoreError(
                f"`{directory}` is not a directory",
                hint="name a directory of roots; make one with: mkdir -p DIR/ROOT",
            )
        self._directory = directory
        self._limits = limits or Limits()
        self.gate = gate or Gate()
        self._sync = sync
        self._workers = Workers()
        self._sessions: dict[Session, trio.CancelScope] = {}
        self._stopping = trio.Event()

    async def serve(
        self,
        host: str,
        port: int,
        *,
        inherited: Sequence[socket.socket] = (),
        task_status: trio.TaskStatus[list[tuple[str, int]]] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Listen and serve until ``stop``; tells the addresses (host, port) by task_status.

        On the sockets that are ``inherited``, and which it closes, if there are any. Raises
        StoreError if the address cannot be listened on, and for a socket that is no TCP.
        """
        for each in inherited:
            _check_address(each)
        listeners = [trio.SocketListener(trio.socket.from_stdlib_socket(e)) for e in inherited]
        try:
            listeners = listeners or await trio.open_tcp_listeners(
                port, host=host, backlog=_BACKLOG
            )
        except OSError as error:
            raise StoreError(
                f"cannot listen on {host}:{port}: {error.strerror or error}",
                hint="is another server running there? name another port with --listen",
            ) from error
        task_status.started([each.socket.getsockname()[:2] for each in listeners])
        async with trio.open_nursery() as sessions:
            async with trio.open_nursery() as acceptors:
                for listener in listeners:
                    acceptors.start_soon(self._accept, listener, sessions)
                await self._stopping.wait()
                acceptors.cancel_scope.cancel()
            for session, scope in self._sessions.items():
                session.leaving = True
                if not session.busy:
                    scope.cancel()
            sessions.cancel_scope.deadline = trio.current_time() + self._limits.grace

    def stop(self) -> None:
        """Accept nobody any more; transfers under way have ``limits.grace`` seconds to finish."""
        self._stopping.set()

    async def _accept(self, listener: trio.SocketListener, sessions: trio.Nursery) -> None:
        async with listener:
            while True:
                try:
                    stream = await listener.accept()
                except OSError as error:
                    if error.errno not in _OUT_OF:
                        raise
                    log.warning("cannot accept a connection: %s", error.strerror)
                    await trio.sleep(_OUT_OF_PAUSE)
                    continue
                if len(self._sessions) >= self._limits.connections:
                    log.warning("refused a connection: %d are open", len(self._sessions))
                    stream.socket.close()
                    continue
                # Counted here, not in the task: a burst of clients cannot slip in before it runs.
                host, peer = _peer(stream.socket)
                transport = Transport(stream.socket, f"client {peer}")
                session = Session(
                    transport,
                    self._open_root,
                    self._limits,
                    self._workers,
                    gate=self.gate,
                    host=host,
                )
                self._sessions[session] = trio.CancelScope()
                sessions.start_soon(self._run, session, transport, peer)

    async def _run(self, session: Session, transport: Transport, peer: str) -> None:
        began = trio.current_time()
        ending = "stopped"
        try:
            with self._sessions[session]:
                ending = await _outcome(session)
        finally:
            del self._sessions[session]
            transport.close()
            tally = session.tally
            log.info(
                "%s root=%s version=%s commands=%d received=%d sent=%d"
                " seconds=%.3f refused=%s end=%s",
                *(peer, tally.root or "-", tally.version, tally.commands),
                *(transport.received, transport.sent),
                *(trio.current_time() - began, _refusals(tally), ending),
            )

    async def _open_root(self, name: bytes) -> PackedStore | None:
        resolve = partial(resolve_root, self._directory, name)
        path = await trio.to_thread.run_sync(resolve, limiter=self._workers.questions)
        if path is None:
            return None
        limits = UnpackLimits(ceiling=self._limits.content)
        return LocalRoot(path, limiter=self._workers.storing, limits=limits, sync=self._sync)


async def _outcome(session: Session) -> str:
    """Serve a client; what became of it, in a word for the log."""
    try:
        await session.run()
    except Unavailable as error:
        return str(error)
    except CafsError as error:
        return f"{type(error).__name__}: {error}"
    except Exception:
        log.exception("a session failed; the server goes on")
        return "internal error"
    return "closed"


def _refusals(tally: Tally) -> str:
    more = tally.refusals - len(tally.refused)
    return "; ".join([*tally.refused, *([f"and {more} more"] if more else [])]) or "-"


def _check_address(sock: socket.socket) -> None:
    """Who comes by another kind has no address by which he could be let in, or be named."""
    if sock.family not in _INTERNET or sock.type is not socket.SOCK_STREAM:
        raise StoreError(
            f"cannot serve on a socket that is no TCP, but {sock.family.name}",
            hint="in a socket unit, name an address and a port: ListenStream=127.0.0.1:2403",
        )


def _peer(sock: trio.socket.SocketType) -> tuple[str, str]:
    """The client's address, and its name for the log."""
    try:
        host, port = sock.getpeername()[:2]
    except OSError:  # it is gone already
        return "", "unknown"
    return host, f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
