"""The name of a blob: 32 bytes, 64 lower-case digits, nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cafsfs.digest import Digest
from cafsfs.errors import CafsError, InvalidDigest, UsageError

HEX = "0123456789abcdef" * 4


@given(st.binary(min_size=32, max_size=32))
def test_digits_and_bytes_say_the_same(raw: bytes) -> None:
    digest = Digest(raw)
    assert Digest.parse(digest.hex) == digest
    assert digest.hex == str(digest) == raw.hex()
    assert hash(Digest.parse(digest.hex)) == hash(digest)


@given(st.lists(st.binary(min_size=32, max_size=32)))
def test_digests_are_ordered_as_their_digits(raws: list[bytes]) -> None:
    digests = [Digest(raw) for raw in raws]
    assert sorted(digests) == sorted(digests, key=str)


@pytest.mark.parametrize("length", [0, 31, 33, 64])
def test_other_lengths_are_no_digest(length: int) -> None:
    with pytest.raises(InvalidDigest, match=f"has 32 bytes, not {length}"):
        Digest(bytes(length))


@pytest.mark.parametrize(
    "text",
    [
        "",
        HEX[:-1],
        HEX + "0",
        HEX.upper(),
        HEX[:-1] + "g",
        HEX + "\n",
        " " + HEX[:-1],
        HEX[:-1] + "٣",
        "blake3:" + HEX,
    ],
)
def test_other_texts_are_no_hash(text: str) -> None:
    with pytest.raises(InvalidDigest) as caught:
        Digest.parse(text)
    assert str(caught.value) == f"`{text}` is not a hash"
    assert caught.value.hint is not None


def test_a_bad_hash_is_a_usage_error_and_a_value_error() -> None:
    assert issubclass(InvalidDigest, UsageError)
    assert issubclass(InvalidDigest, ValueError)
    assert issubclass(InvalidDigest, CafsError)


def test_a_digest_cannot_be_changed_and_shows_its_beginning() -> None:
    digest = Digest.parse(HEX)
    with pytest.raises(AttributeError):
        digest.raw = bytes(32)  # type: ignore[misc]
    assert repr(digest) == "Digest(0123456789ab…)"
