"""Hashing, against the official test vectors of BLAKE3."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cafsfs.packing import Hasher, hash_bytes, hash_file

# BLAKE3-team/BLAKE3, test_vectors/test_vectors.json: n bytes that count 0 to 250, over and over.
OFFICIAL = {
    0: "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262",
    1: "2d3adedff11b61f14c886e35afa036736dcd87a74d27b5c1510225d0f592e213",
    1023: "10108970eeda3eb932baac1428c7a2163b0e924c9a9e25b35bba72b28f70bd11",
    1024: "42214739f095a406f3fc83deb889744ac00df831c10daa55189b5d121c855af7",
    1025: "d00278ae47eb27b34faecf67b4fe263f82d5412916c1ffd97c8cb7fb814b8444",
    102400: "bc3e3d41a1146b069abffad3c0d44860cf664390afce4d9661f7902e7943e085",
}


def official_input(length: int) -> bytes:
    return (bytes(range(251)) * (length // 251 + 1))[:length]


@pytest.mark.parametrize(("length", "expected"), OFFICIAL.items())
def test_official_vectors(length: int, expected: str, tmp_path: Path) -> None:
    content = official_input(length)
    path = tmp_path / "file"
    path.write_bytes(content)
    assert hash_bytes(content).hex == expected
    assert hash_file(path).hex == expected
    assert hash_file(str(path)).hex == expected


def test_in_pieces_of_every_kind() -> None:
    content = official_input(102400)
    hasher = Hasher()
    hasher.update(content[:1])
    hasher.update(bytearray(content[1:70000]))
    hasher.update(b"")
    hasher.update(memoryview(content)[70000:])
    assert hasher.digest().hex == OFFICIAL[102400]


def test_a_digest_ends_nothing() -> None:
    hasher = Hasher()
    assert hasher.digest().hex == OFFICIAL[0]
    hasher.update(b"\0")
    assert hasher.digest().hex == OFFICIAL[1]


def test_a_descriptor_is_read_from_its_beginning_and_stays_where_it_was(tmp_path: Path) -> None:
    content = os.urandom((1 << 20) + 1)
    path = tmp_path / "file"
    path.write_bytes(content)
    with path.open("rb") as file:
        file.seek(100)
        assert hash_file(file.fileno()) == hash_bytes(content) == hash_file(path)
        assert file.tell() == 100


@pytest.mark.parametrize("size", [0, 1, 70_000, 20 << 20])
def test_it_tells_of_every_piece_of_a_descriptor(tmp_path: Path, size: int) -> None:
    content = official_input(size)
    path = tmp_path / "file"
    path.write_bytes(content)
    told: list[int] = []
    with path.open("rb") as file:
        assert hash_file(file.fileno(), on_read=told.append) == hash_bytes(content)
    assert sum(told) == size
    assert 0 not in told


def test_what_on_read_raises_ends_it(tmp_path: Path) -> None:
    """Who is cancelled does not wait for the end of a large file."""
    path = tmp_path / "file"
    path.write_bytes(bytes(64 << 20))
    told: list[int] = []

    def cancelled(count: int) -> None:
        told.append(count)
        raise InterruptedError

    with path.open("rb") as file, pytest.raises(InterruptedError):
        hash_file(file.fileno(), on_read=cancelled)
    assert len(told) == 1
    assert told[0] < 64 << 20


def test_an_absent_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        hash_file(tmp_path / "absent")
