"""What the two sides say to each other, and how each message looks on the wire.

Source: protocol page, sections 1 to 4. Integers are little endian. Which of them are encrypted is
not known here.
"""

from __future__ import annotations

from dataclasses import dataclass

from cafsfs.digest import DIGEST_LENGTH, Digest
from cafsfs.errors import LocalProtocolError, RemoteProtocolError

GREETING_PREFIX = b"BLOBPUSH_SERVER_V"
GREETING_LENGTH = len(GREETING_PREFIX) + 3
HASH_TYPE = b"blake3"  # servers accept any six bytes; we send and accept this only
KEY_LENGTH = len(HASH_TYPE) + DIGEST_LENGTH
TAG_LENGTH = 4
MAX_ROOT = 255  # bytes; its length travels in one byte
CHUNK_STEP = 1 << 20  # bytes; PULL addresses blobs in steps of 1 MiB
MAX_CHUNK = (1 << 32) - 1  # it travels as a u32
MAX_LENGTH = (1 << 63) - 1  # bytes; what is longer fits no file (off_t), whatever a u64 can say
MAX_STREAM_CHUNK = 65534  # bytes; 65535 on the wire means: aborted
CHUNK_PREFIX_LENGTH = 2  # bytes
END_OF_CHUNKS = (0).to_bytes(CHUNK_PREFIX_LENGTH, "little")
ABORT_OF_CHUNKS = (65535).to_bytes(CHUNK_PREFIX_LENGTH, "little")

ONES = b"\xff" * 8  # what a proof of the secret decrypts to
HELLO_LENGTH = 41  # bytes: a compressed point, and eight random ones

_MAX_VERSION = 999  # three digits
_AUTHENTICATED = 2  # the version that is asked for together with a page
_MAX_U64 = (1 << 64) - 1


# --- said by the server; who makes a message that does not fit on the wire gets LocalProtocolError


@dataclass(frozen=True, slots=True)
class Greeting:
    """The server's first words; version 2 offers authentication."""

    version: int

    def __post_init__(self) -> None:
        _require("version", self.version, _MAX_VERSION)

    def encode(self) -> bytes:
        return GREETING_PREFIX + b"%03d" % self.version


@dataclass(frozen=True, slots=True)
class Accepted:
    """The version offered is accepted."""

    def encode(self) -> bytes:
        return b"NONE"


@dataclass(frozen=True, slots=True)
class BadRequest:
    """``ERBD``: a bad version or command; the server closes."""

    def encode(self) -> bytes:
        return b"ERBD"


@dataclass(frozen=True, slots=True)
class FileError:
    """``ERIO``: a file error, a range outside the blob, an upload refused or aborted."""

    def encode(self) -> bytes:
        return b"ERIO"


@dataclass(frozen=True, slots=True)
class ServerProof:
    """The server knows the secret if these are ONES."""

    padding: bytes = ONES

    def encode(self) -> bytes:
        return self.padding


@dataclass(frozen=True, slots=True)
class StaysEncrypted:
    """``HAVE``: authenticated, and encryption goes on."""

    def encode(self) -> bytes:
        return b"HAVE"


@dataclass(frozen=True, slots=True)
class GoesOnPlain:
    """``NONE``: authenticated, and everything after this is not encrypted."""

    def encode(self) -> bytes:
        return b"NONE"


@dataclass(frozen=True, slots=True)
class WrongClock:
    """``ERIO``: the client knows the secret, but its clock is too far off; the server closes."""

    def encode(self) -> bytes:
        return b"ERIO"


@dataclass(frozen=True, slots=True)
class Have:
    """The blob is there (after CHCK), or is stored (after PUSH and STRM)."""

    def encode(self) -> bytes:
        return b"HAVE"


@dataclass(frozen=True, slots=True)
class Absent:
    """The blob is not there: four bytes, also after SIZE."""

    def encode(self) -> bytes:
        return b"NONE"


@dataclass(frozen=True, slots=True)
class PackedLength:
    """The answer to SIZE: the length of the *packed* blob in bytes."""

    length: int

    def __post_init__(self) -> None:
        _require("length", self.length, MAX_LENGTH)

    def encode(self) -> bytes:
        return b"SIZE" + self.length.to_bytes(8, "little")


@dataclass(frozen=True, slots=True)
class Take:
    """The answer to PULL: ``length`` bytes of body follow.

    For a whole pull ``length`` is the packed length; for a range, deployed servers announce what
    was asked for and send something else (protocol page, section 3.1).
    """

    digest: Digest
    length: int
    chunk: int

    def __post_init__(self) -> None:
        _require("length", self.length, MAX_LENGTH)
        _require("chunk", self.chunk, MAX_CHUNK)

    def encode(self) -> bytes:
        return b"TAKE" + encode_key(self.digest) + _encode_range(self.length, self.chunk)


# --- said by the client


@dataclass(frozen=True, slots=True)
class Version:
    """The version that the client wants to speak; any but the one that Authenticate asks for."""

    version: int

    def __post_init__(self) -> None:
        _require("version", self.version, _MAX_VERSION)
        if self.version == _AUTHENTICATED:
            raise LocalProtocolError("version 002 is asked for with a page")

    def encode(self) -> bytes:
        return b"VERS%03d" % self.version


@dataclass(frozen=True, slots=True)
class Authenticate:
    """``VERS 002``: version 002 is wanted, with the one-time password of this page."""

    page: int

    def __post_init__(self) -> None:
        _require("page", self.page, _MAX_U64)

    def encode(self) -> bytes:
        return b"VERS%03d" % _AUTHENTICATED + self.page.to_bytes(8, "little")


@dataclass(frozen=True, slots=True)
class ClientProof:
    """The client's clock, in seconds since 1970; it knows the secret if ``padding`` is ONES."""

    seconds: int
    padding: bytes = ONES

    def __post_init__(self) -> None:
        _require("seconds", self.seconds, _MAX_U64)

    def encode(self) -> bytes:
        return self.seconds.to_bytes(8, "little") + self.padding


@dataclass(frozen=True, slots=True)
class Root:
    """The root that all following commands are about; at most 255 bytes."""

    name: bytes

    def __post_init__(self) -> None:
        if len(self.name) > MAX_ROOT:
            raise LocalProtocolError(f"a root has at most {MAX_ROOT} bytes, not {len(self.name)}")

    def encode(self) -> bytes:
        return bytes([len(self.name)]) + self.name


@dataclass(frozen=True, slots=True)
class Check:
    """Is the blob there?"""

    digest: Digest

    def encode(self) -> bytes:
        return b"CHCK" + encode_key(self.digest)


@dataclass(frozen=True, slots=True)
class Measure:
    """``SIZE``: how long is the packed blob?"""

    digest: Digest

    def encode(self) -> bytes:
        return b"SIZE" + encode_key(self.digest)


@dataclass(frozen=True, slots=True)
class Pull:
    """Send the packed blob from ``chunk`` × 1 MiB on; ``length`` 0 means to its end.

    Only the whole blob (0, 0) is safe to ask of a server that is not known to be sound. Any u64
    may be asked for: a length that no file has is a range outside the blob, answered by FileError.
    """

    digest: Digest
    length: int = 0
    chunk: int = 0

    def __post_init__(self) -> None:
        _require("length", self.length, _MAX_U64)
        _require("chunk", self.chunk, MAX_CHUNK)

    def encode(self) -> bytes:
        return b"PULL" + encode_key(self.digest) + _encode_range(self.length, self.chunk)


@dataclass(frozen=True, slots=True)
class Push:
    """Store the packed blob of ``length`` bytes that follows."""

    digest: Digest
    length: int

    def __post_init__(self) -> None:
        _require("length", self.length, MAX_LENGTH)

    def encode(self) -> bytes:
        return b"PUSH" + encode_key(self.digest) + self.length.to_bytes(8, "little")


@dataclass(frozen=True, slots=True)
class Stream:
    """``STRM``: store the packed blob that follows in chunks."""

    digest: Digest

    def encode(self) -> bytes:
        return b"STRM" + encode_key(self.digest)


# --- said by both


@dataclass(frozen=True, slots=True)
class Hello:
    """A public key and some random bytes, encrypted with the one-time password; see Handshake."""

    sealed: bytes

    def __post_init__(self) -> None:
        if len(self.sealed) != HELLO_LENGTH:
            raise LocalProtocolError(f"a hello has {HELLO_LENGTH} bytes, not {len(self.sealed)}")

    def encode(self) -> bytes:
        return self.sealed


# --- bodies, in both directions


@dataclass(frozen=True, slots=True)
class Data:
    """A piece of a body; a view into what was received, valid until more is received."""

    data: memoryview


@dataclass(frozen=True, slots=True)
class EndOfBody:
    """The body is complete. On the wire only after a STRM; else its announced length ends it."""

    def encode(self) -> bytes:
        return END_OF_CHUNKS


@dataclass(frozen=True, slots=True)
class Aborted:
    """The sender of a STRM gave it up."""

    def encode(self) -> bytes:
        return ABORT_OF_CHUNKS


@dataclass(frozen=True, slots=True)
class PeerClosed:
    """The peer ended the connection where it may: before or between commands, or after ERBD."""


Command = Check | Measure | Pull | Push | Stream
Answer = Have | Absent | PackedLength | Take | FileError | BadRequest
Admission = ServerProof | StaysEncrypted | GoesOnPlain | WrongClock
Message = (
    Greeting
    | Accepted
    | Version
    | Authenticate
    | Hello
    | ClientProof
    | Admission
    | Root
    | Command
    | Answer
)
Event = Message | Data | EndOfBody | Aborted | PeerClosed


def encode_key(digest: Digest) -> bytes:
    """The 38 bytes that name a blob."""
    return HASH_TYPE + digest.raw


def decode_key(data: bytes) -> Digest:
    """Read the 38 bytes that name a blob; raises RemoteProtocolError for another hash type."""
    if not data.startswith(HASH_TYPE):
        raise RemoteProtocolError(f"hash type {data[: len(HASH_TYPE)]!r} is not {HASH_TYPE!r}")
    return Digest(bytes(data[len(HASH_TYPE) :]))


def chunk_prefix(length: int) -> bytes:
    """What stands before a STRM chunk of ``length`` bytes, 1 to 65,534."""
    if not 0 < length <= MAX_STREAM_CHUNK:
        raise LocalProtocolError(f"a chunk has 1 to {MAX_STREAM_CHUNK} bytes, not {length}")
    return length.to_bytes(CHUNK_PREFIX_LENGTH, "little")


def _encode_range(length: int, chunk: int) -> bytes:
    return length.to_bytes(8, "little") + chunk.to_bytes(4, "little")


def _require(name: str, value: int, highest: int) -> None:
    if not 0 <= value <= highest:
        raise LocalProtocolError(f"{name} {value} is not between 0 and {highest}")
