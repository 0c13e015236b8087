"""The name of a blob: the BLAKE3 hash of its content."""

from __future__ import annotations

import re
from dataclasses import dataclass

from cafsfs.errors import InvalidDigest

DIGEST_LENGTH = 32  # bytes; BLAKE3's default output

_HEX = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """A BLAKE3 digest of 32 bytes; whoever holds one need not check it again.

    Raises InvalidDigest when made from anything but 32 bytes.
    """

    raw: bytes

    def __post_init__(self) -> None:
        if len(self.raw) != DIGEST_LENGTH:
            raise InvalidDigest(f"a digest has {DIGEST_LENGTH} bytes, not {len(self.raw)}")

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Read 64 lower-case hexadecimal digits; raises InvalidDigest for anything else.

        Upper case is refused: a file named by a hash has one name.
        """
        if _HEX.fullmatch(text) is None:
            raise InvalidDigest(
                f"`{text}` is not a hash",
                hint="a hash is 64 lower-case hexadecimal digits, as b3sum prints them",
            )
        return cls(bytes.fromhex(text))

    @property
    def hex(self) -> str:
        """The 64 lower-case hexadecimal digits."""
        return self.raw.hex()

    def __str__(self) -> str:
        return self.raw.hex()

    def __repr__(self) -> str:
        return f"Digest({self.raw.hex()[:12]}…)"
