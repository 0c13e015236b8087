"""The key agreement of version 002, without I/O: pages, hellos, and the ciphers that follow.

Source: protocol page, section 4. The secret and a page (the number of the time slice) make a
one-time password, that encrypts the hellos; these agree on a key that nobody can make out
afterwards, whatever becomes of the secret; that key and the one-time password make the ciphers.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cafsfs.errors import AuthenticationFailed
from cafsfs.secret import Secret
from cafsfs.wire.ciphers import Keystream
from cafsfs.wire.messages import ONES, ClientProof, Hello, ServerProof
from cafsfs.wire.states import Role

PAGE = 131  # seconds
PAGE_BEHIND = 8 * 3600  # seconds that a client's page may be old
PAGE_AHEAD = 10 * 60  # seconds
CLOCK_OFF = 10 * 60  # seconds, either way

_POINT = 33  # bytes: compressed
_NONCE = 8  # bytes
_KEY = 16  # bytes
_CURVE = ec.SECP256R1()


def page_at(now: float) -> int:
    """The page of a time, in seconds since 1970."""
    return int(now) // PAGE


def is_current(page: int, now: float) -> bool:
    """Whether a server takes that page of a client."""
    return page_at(now - PAGE_BEHIND) <= page <= page_at(now + PAGE_AHEAD)


def is_punctual(proof: ClientProof, now: float) -> bool:
    """Whether the client's clock is right enough."""
    return abs(proof.seconds - int(now)) <= CLOCK_OFF


class KeyPair(Protocol):
    """One side's key for one connection; ``public`` is a compressed point of P-256."""

    @property
    def public(self) -> bytes: ...

    def shared_with(self, point: bytes) -> bytes:
        """What both sides can compute, 32 bytes; raises ValueError for what is no point."""
        ...


class EphemeralKey:
    """A fresh key; ``scalar`` is for replaying recordings only."""

    def __init__(self, scalar: int | None = None) -> None:
        made = None if scalar is None else ec.derive_private_key(scalar, _CURVE)
        self._private = made or ec.generate_private_key(_CURVE)
        self.public = self._private.public_key().public_bytes(
            Encoding.X962, PublicFormat.CompressedPoint
        )

    def shared_with(self, point: bytes) -> bytes:
        other = ec.EllipticCurvePublicKey.from_encoded_point(_CURVE, point)
        return self._private.exchange(ec.ECDH(), other)


@dataclass(frozen=True, slots=True)
class Ciphers:
    """What a connection is encrypted with from its hellos on."""

    receiving: Keystream
    sending: Keystream


class Handshake:
    """One side of one key agreement."""

    def __init__(
        self,
        role: Role,
        secret: Secret,
        page: int,
        *,
        key: KeyPair | None = None,
        nonce: bytes | None = None,
    ) -> None:
        self._role = role
        self._password = secret.sign(page.to_bytes(8, "little"))
        self._key = key or EphemeralKey()
        self._nonce = nonce or secrets.token_bytes(_NONCE)  # enters nothing; it is on the wire

    def hello(self) -> Hello:
        """What this side says."""
        return Hello(self._cipher().convert(self._key.public + self._nonce))

    def agree(self, hello: Hello) -> Ciphers:
        """What follows from the other side's hello; raises AuthenticationFailed.

        With another secret, or another page, it does not decrypt to a point of the curve; but for
        one in 256, whose proof is wrong then.
        """
        point = self._cipher().convert(hello.sealed)[:_POINT]
        try:
            shared = self._key.shared_with(point)
        except ValueError:
            raise AuthenticationFailed("a hello does not decrypt to a point of the curve") from None
        return derive(self._role, self._password, shared)

    def _cipher(self) -> Keystream:
        """Both hellos are encrypted with the same key stream: so it is in the protocol."""
        return Keystream(self._password[:16], self._password[16:31] + b"\0")


def derive(role: Role, password: bytes, shared: bytes) -> Ciphers:
    """The ciphers, as ``role`` uses them."""
    keys = hmac.digest(shared, password, hashlib.sha384)
    from_server, from_client = (
        Keystream(keys[at : at + _KEY], keys[at + _KEY : at + 24] + bytes(8)) for at in (0, 24)
    )
    if role is Role.CLIENT:
        return Ciphers(receiving=from_server, sending=from_client)
    return Ciphers(receiving=from_client, sending=from_server)


def is_proof(proof: ClientProof | ServerProof) -> bool:
    """Whether the other side has derived the same ciphers, so knows the secret."""
    return hmac.compare_digest(proof.padding, ONES)
