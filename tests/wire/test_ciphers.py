"""A key stream stands where the connection stands, however its bytes were cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from cafsfs.wire import Keystream

KEY = bytes(range(16))
IV = b"nonceXYZ" + bytes(8)
LENGTH = 300


def in_one_go(data: bytes, iv: bytes = IV) -> bytes:
    return Cipher(algorithms.AES(KEY), modes.CTR(iv)).encryptor().update(data)


CONTENT = bytes(i * 7 % 256 for i in range(LENGTH))
SEALED = in_one_go(CONTENT)
cuts = st.lists(st.integers(0, LENGTH), max_size=12).map(lambda at: [0, *sorted(at), LENGTH])


@given(cuts)
def test_cuts_change_nothing(cut: list[int]) -> None:
    stream = Keystream(KEY, IV)
    data = bytearray(CONTENT)
    for start, end in pairwise(cut):
        piece = memoryview(data)[start:end]
        stream.apply(piece, piece)
        assert stream.position == end
    assert bytes(data) == SEALED


@given(cuts, st.data())
def test_going_back_gives_the_same_bytes_again(cut: list[int], data: st.DataObject) -> None:
    """As for a socket that takes less than was encrypted for it."""
    stream = Keystream(KEY, IV)
    sent = b""
    for start, end in pairwise(cut):
        while len(sent) < end:
            sealed = stream.convert(CONTENT[len(sent) : end])
            taken = data.draw(st.integers(1, len(sealed)))
            sent += sealed[:taken]
            stream.go_back(len(sealed) - taken)
        assert stream.position == len(sent) == max(start, end)
    assert sent == SEALED


def test_into_another_buffer_leaves_the_first_alone() -> None:
    out = memoryview(bytearray(LENGTH + 20))
    Keystream(KEY, IV).apply(CONTENT, out)
    assert bytes(out) == SEALED + bytes(20)


def test_a_buffer_that_is_too_small_moves_nothing() -> None:
    stream = Keystream(KEY, IV)
    with pytest.raises(ValueError, match="buffer"):
        stream.apply(CONTENT, memoryview(bytearray(LENGTH - 1)))
    assert stream.position == 0
    assert stream.convert(CONTENT) == SEALED


def test_the_counter_carries_over_all_its_bytes() -> None:
    iv = b"\0" * 8 + b"\xff" * 8
    stream = Keystream(KEY, iv)
    stream.convert(CONTENT[:100])
    stream.go_back(60)
    assert stream.convert(CONTENT[40:]) == in_one_go(CONTENT, iv)[40:]
    stream.go_back(LENGTH)
    assert stream.convert(CONTENT) == in_one_go(CONTENT, iv)


@pytest.mark.parametrize("count", [-1, 11])
def test_there_is_no_way_back_to_before_the_beginning(count: int) -> None:
    stream = Keystream(KEY, IV)
    stream.convert(CONTENT[:10])
    with pytest.raises(ValueError, match="bytes back from 10"):
        stream.go_back(count)


def test_the_key_is_not_shown() -> None:
    assert repr(Keystream(KEY, IV)) == "<Keystream at 0>"
