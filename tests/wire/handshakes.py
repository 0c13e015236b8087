"""The recorded handshakes of version 002: every value, and sides that say the same again."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cafsfs.secret import Secret
from cafsfs.wire import GoesOnPlain, Handshake, Message, Role, StaysEncrypted
from cafsfs.wire.handshake import EphemeralKey

RECORDED: dict[str, Any] = json.loads(
    (Path(__file__).parent.parent / "vectors" / "encrypted-handshake.json").read_text()
)
REFUSED: dict[str, Any] = RECORDED["refused_by_mandatory"]
SECRET = Secret(b"0123456789abcdefSECRET")
PAGE = 13703612
CLOCK = 1795173265  # seconds since 1970, when they were recorded


def frames(transcript: list[dict[str, str]], role: Role) -> list[bytes]:
    """What one side says."""
    return [
        bytes.fromhex(each["hex"])
        for each in transcript
        if each.get("from") == role.value and "hex" in each
    ]


@dataclass(frozen=True)
class Recording:
    """An accepted handshake, with every value on the way."""

    values: dict[str, Any]

    def bytes_of(self, name: str) -> bytes:
        return bytes.fromhex(self.values[name + "_hex"])

    def said_by(self, role: Role) -> list[bytes]:
        return frames(self.values["transcript"], role)

    @property
    def verdict(self) -> Message:
        return StaysEncrypted() if self.values["verdict"] == "HAVE" else GoesOnPlain()

    @property
    def client_key(self) -> EphemeralKey:
        return EphemeralKey(int.from_bytes(self.bytes_of("client_private_scalar"), "big"))

    def handshake(self, role: Role) -> Handshake:
        """The client's with its fixed key, the server's with the recorded shared secret."""
        nonce = self.bytes_of(f"{role.value}_random")
        if role is Role.CLIENT:
            return Handshake(role, SECRET, PAGE, key=self.client_key, nonce=nonce)
        key = RecordedKey(self.bytes_of("server_public"), self.bytes_of("ecdh_shared"))
        return Handshake(role, SECRET, PAGE, key=key, nonce=nonce)


@dataclass(frozen=True)
class RecordedKey:
    """The server's: nobody knows its private half, but what came of it."""

    public: bytes
    shared: bytes

    def shared_with(self, point: bytes) -> bytes:
        EphemeralKey().shared_with(point)  # ValueError for what is no point
        return self.shared


ACCEPTED = {each["server_mode"]: Recording(each) for each in RECORDED["accepted"]}


def refused(name: str) -> tuple[list[bytes], list[bytes], bool]:
    """What client and server said, and whether the server closed in the end."""
    transcript = REFUSED[name]["transcript"]
    closed = transcript[-1].get("event") == "closed"
    return frames(transcript, Role.CLIENT), frames(transcript, Role.SERVER), closed


def fixed(name: str, secret: Secret = SECRET) -> Handshake:
    """The client of a refusal."""
    scalar = int(REFUSED[name]["client_private_scalar_hex"], 16)
    return Handshake(Role.CLIENT, secret, PAGE, key=EphemeralKey(scalar), nonce=bytes(8))


def refusing(name: str) -> Handshake:
    """The server of a refusal: what it shares with the client, the client can compute."""
    hello = refused(name)[1][1]
    opened = fixed(name)._cipher().convert(hello)
    public, nonce = opened[:33], opened[33:]
    client = EphemeralKey(int(REFUSED[name]["client_private_scalar_hex"], 16))
    key = RecordedKey(public, client.shared_with(public))
    return Handshake(Role.SERVER, SECRET, PAGE, key=key, nonce=nonce)
