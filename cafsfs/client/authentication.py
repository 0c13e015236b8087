"""Version 002 from the client's side: prove that we know the secret, and have the server prove it.

A server tells little of why it refuses us (protocol page, section 4): what it does not like to hear
it answers by closing without a word, two seconds later. By where that happens, and by whether its
hello decrypts, the three causes can be told apart: the secret, the page, the clock.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import trio

from cafsfs.client.servers import Server
from cafsfs.errors import AuthenticationFailed, ConnectionBroken, RemoteProtocolError
from cafsfs.secret import Secret
from cafsfs.transport import Transport
from cafsfs.wire import (
    Authenticate,
    BadRequest,
    ClientProof,
    Connection,
    Event,
    GoesOnPlain,
    Handshake,
    Hello,
    Message,
    Role,
    Root,
    ServerProof,
    StaysEncrypted,
    WrongClock,
)
from cafsfs.wire.handshake import is_proof, page_at

# Seconds. Servers let two pass before they close on who is refused. A connection that ends sooner
# has broken, and is worth another try.
_SILENCE = 1.5


class Say(Protocol):
    """Send messages in one segment."""

    def __call__(self, *messages: Message) -> Awaitable[None]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A connection that has been greeted, as the handshake needs it."""

    server: Server
    transport: Transport
    wire: Connection
    say: Say
    hear: Callable[[], Awaitable[Event]]


async def authenticate(line: Line, secret: Secret, root: bytes) -> None:
    """Agree on keys, prove that both know ``secret``, and name the root; the caller's deadline.

    Raises AuthenticationFailed, ConnectionBroken, RemoteProtocolError.
    """
    page = page_at(time.time())
    handshake = Handshake(Role.CLIENT, secret, page)
    await line.say(Authenticate(page), handshake.hello())
    hello = await _hear(line, _wrong_page)
    if isinstance(hello, BadRequest):
        raise AuthenticationFailed(
            f"{line.server} offers authentication, and refuses it",
            hint="does anything stand between us and the server, and change what it says?",
        )
    if not isinstance(hello, Hello):
        raise _out_of_turn(line, hello)
    try:
        ciphers = handshake.agree(hello)
    except AuthenticationFailed as error:
        raise _wrong_secret(line.server) from error
    _nothing_more(line, hello)
    line.transport.use(ciphers)
    await line.say(ClientProof(int(time.time())))
    proof = await _hear(line, _wrong_secret)
    if not isinstance(proof, ServerProof):
        raise _out_of_turn(line, proof)
    if not is_proof(proof):
        raise _wrong_secret(line.server)
    await _be_admitted(line, root)


async def _be_admitted(line: Line, root: bytes) -> None:
    # A server that dislikes our clock has said so already, and has closed.
    with suppress(ConnectionBroken):
        await line.say(Root(root))
    verdict = await line.hear()
    if isinstance(verdict, WrongClock):
        raise AuthenticationFailed(
            f"our clock and that of {line.server} are more than 10 minutes apart",
            hint="set the wrong one; `timedatectl` and `date -u` tell the time here",
        )
    if isinstance(verdict, GoesOnPlain):
        _nothing_more(line, verdict)
        line.transport.use(None)
    elif not isinstance(verdict, StaysEncrypted):
        raise _out_of_turn(line, verdict)


async def _hear(line: Line, refusal: Callable[[Server], AuthenticationFailed]) -> Event:
    """What the server says; ``refusal`` where it lets us wait and then says nothing."""
    began = trio.current_time()
    try:
        return await line.hear()
    except ConnectionBroken as broken:
        with suppress(RemoteProtocolError):
            line.wire.receive_data(b"")
            event = line.wire.next_event()
            if isinstance(event, BadRequest):
                return event
        if trio.current_time() - began >= _SILENCE:
            raise refusal(line.server) from broken
        raise


def _nothing_more(line: Line, heard: Event) -> None:
    """Whatever came behind it was not meant for the cipher that follows."""
    if line.wire.unread:
        raise RemoteProtocolError(
            f"{line.server} says more behind {type(heard).__name__} than it can know"
        )


def _wrong_secret(server: Server) -> AuthenticationFailed:
    return AuthenticationFailed(
        f"{server} has another secret than we have",
        hint="compare the file that --secret-file names with the server's, byte for byte; "
        "one line feed at its end is no part of it",
    )


def _wrong_page(server: Server) -> AuthenticationFailed:
    return AuthenticationFailed(
        f"{server} closed without a word when it heard the time that we authenticate with",
        hint="is our clock hours behind the server's, or more than 10 minutes ahead? "
        "`timedatectl` and `date -u` tell the time here",
    )


def _out_of_turn(line: Line, event: Event) -> RemoteProtocolError:
    return RemoteProtocolError(f"{line.server} says {event} out of turn")
