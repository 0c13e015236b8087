"""Each message on the wire, and the bounds of its fields."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cafsfs.errors import LocalProtocolError, RemoteProtocolError
from cafsfs.wire import (
    CHUNK_STEP,
    MAX_STREAM_CHUNK,
    Aborted,
    Absent,
    Accepted,
    Authenticate,
    BadRequest,
    Check,
    ClientProof,
    EndOfBody,
    FileError,
    GoesOnPlain,
    Greeting,
    Have,
    Hello,
    Measure,
    Message,
    PackedLength,
    Pull,
    Push,
    Root,
    ServerProof,
    StaysEncrypted,
    Stream,
    Take,
    Version,
    WrongClock,
    chunk_prefix,
)
from cafsfs.wire.messages import KEY_LENGTH, MAX_LENGTH, decode_key, encode_key
from tests.wire.driving import ONE

KEY = b"blake3" + bytes(range(32))


@pytest.mark.parametrize(
    ("message", "encoded"),
    [
        (Greeting(1), b"BLOBPUSH_SERVER_V001"),
        (Greeting(2), b"BLOBPUSH_SERVER_V002"),
        (Accepted(), b"NONE"),
        (BadRequest(), b"ERBD"),
        (FileError(), b"ERIO"),
        (Have(), b"HAVE"),
        (Absent(), b"NONE"),
        (PackedLength(0x0102030405060708), b"SIZE\x08\x07\x06\x05\x04\x03\x02\x01"),
        (Take(ONE, 258, 772), b"TAKE" + KEY + b"\x02\x01\0\0\0\0\0\0\x04\x03\0\0"),
        (Version(1), b"VERS001"),
        (Authenticate(0x0102), b"VERS002\x02\x01" + bytes(6)),
        (Hello(bytes(range(41))), bytes(range(41))),
        (ClientProof(0x0102), b"\x02\x01" + bytes(6) + b"\xff" * 8),
        (ServerProof(), b"\xff" * 8),
        (StaysEncrypted(), b"HAVE"),
        (GoesOnPlain(), b"NONE"),
        (WrongClock(), b"ERIO"),
        (Root(b"/data"), b"\x05/data"),
        (Root(b""), b"\x00"),
        (Root(b"x" * 255), b"\xff" + b"x" * 255),
        (Check(ONE), b"CHCK" + KEY),
        (Measure(ONE), b"SIZE" + KEY),
        (Pull(ONE), b"PULL" + KEY + bytes(12)),
        (Pull(ONE, 258, 772), b"PULL" + KEY + b"\x02\x01\0\0\0\0\0\0\x04\x03\0\0"),
        (Push(ONE, 258), b"PUSH" + KEY + b"\x02\x01\0\0\0\0\0\0"),
        (Stream(ONE), b"STRM" + KEY),
        (EndOfBody(), b"\0\0"),
        (Aborted(), b"\xff\xff"),
    ],
    ids=lambda x: type(x).__name__,
)
def test_encoding(message: Message | EndOfBody | Aborted, encoded: bytes) -> None:
    assert message.encode() == encoded


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: Greeting(1000), "version 1000 is not between 0 and 999"),
        (lambda: Greeting(-1), "version -1"),
        (lambda: Version(1000), "version 1000"),
        (lambda: Version(-1), "version -1"),
        (lambda: Version(2), "version 002 is asked for with a page"),
        (lambda: Authenticate(-1), "page -1"),
        (lambda: Authenticate(1 << 64), "page 18446744073709551616"),
        (lambda: ClientProof(-1), "seconds -1"),
        (lambda: Hello(bytes(40)), "a hello has 41 bytes, not 40"),
        (lambda: Root(b"x" * 256), "a root has at most 255 bytes, not 256"),
        (lambda: PackedLength(-1), "length -1"),
        (lambda: PackedLength(1 << 63), "length 9223372036854775808"),
        (lambda: Push(ONE, -1), "length -1"),
        (lambda: Push(ONE, 1 << 63), "length 9223372036854775808"),
        (lambda: Take(ONE, -1, 0), "length -1"),
        (lambda: Take(ONE, 1 << 63, 0), "length 9223372036854775808"),
        (lambda: Take(ONE, 0, -1), "chunk -1"),
        (lambda: Take(ONE, 0, 1 << 32), "chunk 4294967296"),
        (lambda: Pull(ONE, -1), "length -1"),
        (lambda: Pull(ONE, 1 << 64), "length 18446744073709551616"),
        (lambda: Pull(ONE, 0, -1), "chunk -1"),
        (lambda: Pull(ONE, 0, 1 << 32), "chunk 4294967296"),
        (lambda: chunk_prefix(0), "a chunk has 1 to 65534 bytes, not 0"),
        (lambda: chunk_prefix(MAX_STREAM_CHUNK + 1), "a chunk has 1 to 65534 bytes, not 65535"),
    ],
)
def test_what_does_not_fit_on_the_wire_is_not_made(
    make: Callable[[], object], complaint: str
) -> None:
    with pytest.raises(LocalProtocolError, match=complaint):
        make()


def test_the_largest_fields_are_made() -> None:
    assert len(PackedLength(MAX_LENGTH).encode()) == 12
    assert len(Push(ONE, MAX_LENGTH).encode()) == 50
    assert len(Take(ONE, MAX_LENGTH, (1 << 32) - 1).encode()) == 54
    assert len(Pull(ONE, (1 << 64) - 1, (1 << 32) - 1).encode()) == 54
    assert chunk_prefix(MAX_STREAM_CHUNK) == b"\xfe\xff"
    assert chunk_prefix(1) == b"\x01\0"


def test_pull_addresses_blobs_in_steps_of_one_mebibyte() -> None:
    assert CHUNK_STEP == 1024 * 1024


def test_key() -> None:
    assert encode_key(ONE) == KEY
    assert len(KEY) == KEY_LENGTH == 38
    assert decode_key(KEY) == ONE
    with pytest.raises(RemoteProtocolError, match="hash type b'sha256'"):
        decode_key(b"sha256" + ONE.raw)
