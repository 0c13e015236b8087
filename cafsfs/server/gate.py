"""Whom a server lets in, and how: the secret, and what is asked of clients from where."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable
from dataclasses import dataclass

from cafsfs.secret import Secret
from cafsfs.wire import Handshake, Role

# Spelt out: what Python's ``is_private`` takes for private has changed within 3.11, and includes
# networks for documentation and for tests.
_PRIVATE = tuple(
    ipaddress.ip_network(each)
    for each in (
        "127.0.0.0/8",
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "169.254.0.0/16",  # link-local
        "::1/128",
        "fc00::/7",  # unique local
        "fe80::/10",  # link-local
    )
)


def begin(secret: Secret, page: int) -> Handshake:
    """The server's side of a key agreement."""
    return Handshake(Role.SERVER, secret, page)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """Without a ``secret`` everybody comes in, in version 001.

    With one, authentication is demanded of all who come from outside, and what they say and hear is
    encrypted. Private addresses may do without either, unless that is ``required`` of them too.
    ``now`` (seconds since 1970) and ``begin`` are for replaying recordings.
    """

    secret: Secret | None = None
    required: bool = True
    now: Callable[[], float] = time.time
    begin: Callable[[Secret, int], Handshake] = begin

    @property
    def rule(self) -> str:
        """What it asks, in words for people."""
        if self.secret is None:
            return "nobody has to authenticate"
        if self.required:
            return "everybody has to authenticate, and everything is encrypted"
        return "who is not from a private address has to authenticate, and is encrypted"

    def demands_authentication(self, host: str) -> bool:
        """Whether a client from that address must authenticate."""
        return self.secret is not None and self.keeps_encryption(host)

    def keeps_encryption(self, host: str) -> bool:
        """Whether everything is encrypted to a client from there that has authenticated."""
        return self.required or not is_private(host)


def is_private(host: str) -> bool:
    """Is it a loopback, link-local or private address? Of IPv4 in IPv6, that of IPv4 counts."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:  # the peer was gone before its address could be read
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return any(address in network for network in _PRIVATE)
