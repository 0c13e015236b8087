"""Which names are blobs: 64 lower-case hexadecimal digits, and one extension if any."""

from __future__ import annotations

import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cafsfs.vfs.names import parse_blob_name

HASH = b"0123456789abcdef" * 4
DIGITS = b"0123456789abcdef"
IN_EXTENSION = (string.ascii_letters + string.digits + "._-").encode()


def of(alphabet: bytes, min_size: int, max_size: int) -> st.SearchStrategy[bytes]:
    return st.lists(st.sampled_from(alphabet), min_size=min_size, max_size=max_size).map(bytes)


HASHES = of(DIGITS, 64, 64)
EXTENSIONS = of(IN_EXTENSION, 1, 32)
NEARLY = st.builds(
    lambda *parts: b"".join(parts),
    of(DIGITS + b"ABCFg", 63, 65),
    st.sampled_from([b"", b".", b"..", b"_"]),
    of(IN_EXTENSION + b" /\n\0\xc3\xa4~+", 0, 34),
)


def is_blob_name(name: bytes) -> bool:
    """The sentence of the design, without a regular expression."""
    stem, rest = name[:64], name[64:]
    if len(stem) != 64 or not all(each in DIGITS for each in stem):
        return False
    if not rest:
        return True
    extension = rest[1:]
    return (
        rest[:1] == b"." and 1 <= len(extension) <= 32 and all(e in IN_EXTENSION for e in extension)
    )


@given(HASHES, EXTENSIONS)
def test_a_hash_is_a_blob_with_and_without_an_extension(name: bytes, extension: bytes) -> None:
    for each in (name, name + b"." + extension):
        digest = parse_blob_name(each)
        assert digest is not None
        assert digest.hex.encode() == name


@given(st.one_of(st.binary(max_size=100), NEARLY))
@example(HASH + b"\n")
@example(HASH + b".txt\n")
@example(HASH + b".")
@example(HASH.upper())
@example(HASH[:-1] + "٣".encode())  # a digit, but not one of ours
def test_nothing_else_is_a_blob(name: bytes) -> None:
    assert (parse_blob_name(name) is not None) == is_blob_name(name)


@pytest.mark.parametrize("extension", ["x" * 32, "tar.gz", ".", "..", "-", "_A9"])
def test_extensions_that_tools_go_by(extension: str) -> None:
    assert parse_blob_name(HASH + b"." + extension.encode()) is not None
