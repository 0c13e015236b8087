"""The addresses of one host, asked for anew by each connect, and remembered for bad times.

A resolver that hangs holds a thread, and nobody can end that thread. So lookups have threads of
their own, two for a name; all who want the same name at the same time share one lookup; and where
the answer is late or an error, what was the answer before is used: a server whose name cannot be
resolved for a while is mostly where it was.
"""

from __future__ import annotations

import copy
import logging
import math
import socket
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import trio

from cafsfs.errors import Unreachable

log = logging.getLogger(__name__)

Address = tuple[
    socket.AddressFamily,
    socket.SocketKind,
    int,
    str,
    tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes],
]
"""What getaddrinfo says of one address."""

_LATE = 1.0  # seconds after which a former answer is good enough: a connect has five in all
_THREADS = 2  # so that one lookup which hangs for good does not end all lookups


class Resolver:
    """The addresses of ``host``. ``query`` asks for them; by default it is the system that does.

    It raises OSError or ValueError, and is cancelled when its answer is late.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        query: Callable[[str, int], Awaitable[Sequence[Address]]] | None = None,
    ) -> None:
        self._host = host
        self._port = port
        self._query = query or self._ask_system
        self._threads = trio.CapacityLimiter(_THREADS)
        self._numeric = _numeric(host, port)
        self._turn = trio.Lock()
        self._lookups = 0  # that have come to an end
        self._outcome: Sequence[Address] | Unreachable = ()  # of the last of them
        self._known: Sequence[Address] = ()  # the last that were good
        self._relying = False  # on what is known, and it was said

    async def addresses(self) -> Sequence[Address]:
        """All addresses, the preferred one first; the caller sets the deadline.

        Raises Unreachable where they cannot be told, and never could.
        """
        if self._numeric:
            return self._numeric
        reason = f"no answer within {_LATE:g} s"
        with trio.move_on_after(_LATE if self._known else math.inf):
            try:
                return await self._look_up()
            except Unreachable as error:
                if not self._known:
                    raise
                reason = str(error)
        if not self._relying:
            self._relying = True
            log.warning("resolving `%s`: %s; using the address it had before", self._host, reason)
        return self._known

    async def _look_up(self) -> Sequence[Address]:
        seen = self._lookups
        async with self._turn:
            if self._lookups == seen:  # nobody has done it for us meanwhile
                self._outcome = await self._answer()
                self._lookups += 1
        if isinstance(self._outcome, Unreachable):
            raise copy.copy(self._outcome)
        self._known = self._outcome
        self._relying = False
        return self._known

    async def _answer(self) -> Sequence[Address] | Unreachable:
        try:
            return await self._query(self._host, self._port)
        except (OSError, ValueError) as error:  # ValueError: a name that IDNA cannot encode
            reason = getattr(error, "strerror", None) or error
            return Unreachable(
                f"cannot resolve `{self._host}`: {reason}",
                hint="is the name right? does the resolver of this machine work?",
            )

    async def _ask_system(self, host: str, port: int) -> Sequence[Address]:
        ask = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        return await trio.to_thread.run_sync(ask, abandon_on_cancel=True, limiter=self._threads)


def _numeric(host: str, port: int) -> Sequence[Address]:
    """The address that ``host`` is, if it is one and no name."""
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except (OSError, ValueError):
        return ()
