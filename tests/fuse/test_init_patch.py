"""INIT's answer is patched in two places and nowhere else, or not at all."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cafsfs.errors import MountError
from cafsfs.fuse.init_patch import (
    MAX_BACKGROUND,
    is_init,
    offers_parallel_lookups,
    patch_answer,
)

INIT, GETATTR = 26, 3
PARALLEL = 1 << 18
UNIQUE = 2  # of the first request of a connection
# What Linux 6.18 offers and what libfuse 3.14 answers for pyfuse3, as strace shows them.
OFFERED = 0x73FFFFFB
ASKED = 0x0001B039


def request(*, flags: int = OFFERED, opcode: int = INIT, minor: int = 45) -> bytes:
    """``fuse_in_header`` and ``fuse_init_in`` of protocol 7.36 and later: 40 + 64 bytes."""
    body = struct.pack("=IIIII", 7, minor, 131072, flags, 0x1FF) + bytes(44)
    return struct.pack("=IIQQIIIHH", 40 + len(body), opcode, UNIQUE, 1, 0, 0, 1, 0, 0) + body


@dataclass(frozen=True)
class Answer:
    """``fuse_out_header`` and ``fuse_init_out``: 16 + 64 bytes, 16 + 24 before protocol 7.23."""

    flags: int = ASKED
    background: int = 12
    congestion: int = 9
    error: int = 0
    tail: bytes = bytes(40)

    def pack(self) -> bytes:
        body = struct.pack("=IIII", 7, 38, 131072, self.flags)
        body += struct.pack("=HHI", self.background, self.congestion, 1 << 20) + self.tail
        return struct.pack("=IiQ", 16 + len(body), self.error, UNIQUE) + body


def test_the_kernel_is_asked_for_parallel_lookups_and_more_background_requests() -> None:
    wanted = Answer(flags=ASKED | PARALLEL, background=MAX_BACKGROUND, congestion=192)
    assert patch_answer(request(), Answer().pack()) == wanted.pack()


@given(flags=st.integers(0, (1 << 32) - 1), tail=st.binary(max_size=64))
def test_nothing_else_is_touched(flags: int, tail: bytes) -> None:
    answer = Answer(flags=flags, tail=tail).pack()
    patched = patch_answer(request(), answer)
    assert len(patched) == len(answer)
    assert patched[:28] == answer[:28]
    assert patched[36:] == answer[36:]
    assert struct.unpack_from("=I", patched, 28) == (flags | PARALLEL,)


def test_patching_twice_is_patching_once() -> None:
    once = patch_answer(request(), Answer().pack())
    assert patch_answer(request(), once) == once


def test_old_and_short_answers_of_protocol_7_5_are_long_enough() -> None:
    answer = Answer(tail=b"").pack()
    assert len(patch_answer(request(), answer)) == 40


@pytest.mark.parametrize(
    ("asked", "answer", "message"),
    [
        (request(flags=OFFERED & ~PARALLEL), Answer().pack(), "kernel does not offer parallel"),
        (request(opcode=GETATTR), Answer().pack(), "kernel does not offer parallel"),
        (request()[:55], Answer().pack(), "kernel does not offer parallel"),
        (b"", Answer().pack(), "kernel does not offer parallel"),
        (request(), b"", "with 0 bytes only"),
        (request(), Answer(tail=b"").pack()[:39], "with 39 bytes only"),
        (request(), Answer(error=-71).pack(), "with error 71"),
        (request(), Answer().pack() + b"x", "with error 0"),
        (request(), Answer().pack()[:-1], "with error 0"),
    ],
    ids=[
        "old kernel",
        "another request",
        "short request",
        "no request",
        "no answer",
        "short answer",
        "error",
        "bytes behind",
        "bytes missing",
    ],
)
def test_what_is_not_as_expected_is_refused(asked: bytes, answer: bytes, message: str) -> None:
    with pytest.raises(MountError, match=message):
        patch_answer(asked, answer)


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_any_bytes_are_patched_or_refused(asked: bytes, answer: bytes) -> None:
    for each in (asked, request()):
        try:
            assert len(patch_answer(each, answer)) == len(answer)
        except MountError:
            continue


def test_an_init_request_is_told_from_others() -> None:
    assert is_init(request())
    assert is_init(request()[:56])  # protocols before 7.36 end here
    assert not is_init(request()[:55])
    assert not is_init(request(opcode=GETATTR))
    assert offers_parallel_lookups(request())
    assert not offers_parallel_lookups(request(flags=0))
