"""Which directory a client means, and which it must never get at."""

from __future__ import annotations

from pathlib import Path

import pytest

from cafsfs.server.roots import resolve_root
from tests.bad_server import pack
from tests.server.stand import check, digest_of, pull, push, serving, size, stream

CONTENT = b"a secret of another directory"
DIGEST = digest_of(CONTENT)

CLIMBING = [
    b"..",
    b"../outside",
    b"/../outside",
    b"/root/../../outside",
    b"root/./../../outside",
    b".",
    b"/root/.",
    b"//../outside",
    b"/root\0",
    b"\xff\xfe",
    b"x" * 255,
    b"/" + b"x/" * 127,
]


def _hello(root: bytes) -> bytes:
    return b"VERS001" + bytes([len(root)]) + root


@pytest.mark.parametrize("name", [b"root", b"/root", b"/root/", b"//root//", b"/a/b"])
def test_names_of_a_root(tmp_path: Path, name: bytes) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "a" / "b").mkdir(parents=True)
    found = resolve_root(tmp_path, name)
    assert found == tmp_path / name.decode().strip("/")


@pytest.mark.parametrize("name", [b"", b"/"])
def test_the_directory_itself_is_a_root(tmp_path: Path, name: bytes) -> None:
    assert resolve_root(tmp_path, name) == tmp_path


@pytest.mark.parametrize("name", [b"/no/such/root", b"file", b"file/below", *CLIMBING])
def test_what_is_no_root(tmp_path: Path, name: bytes) -> None:
    (tmp_path / "outside").mkdir()
    served = tmp_path / "served"
    (served / "root").mkdir(parents=True)
    (served / "file").touch()
    assert resolve_root(served, name) is None


def test_root_that_may_not_be_looked_at_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_dir", refuse)
    assert resolve_root(tmp_path, b"root") is None


@pytest.mark.parametrize("root", [b"/no/such/root", *CLIMBING])
async def test_below_an_unknown_root_all_is_absent_and_nothing_is_stored(
    tmp_path: Path, root: bytes
) -> None:
    served = tmp_path / "served"
    served.mkdir()
    async with serving(served) as stand:
        for beside in ("served/root", "served", "outside", "."):
            path = tmp_path / beside / "blobs" / DIGEST.hex[:2] / DIGEST.hex[2:4] / DIGEST.hex
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(pack(CONTENT))
        before = sorted(tmp_path.rglob("*"))
        async with await stand.greeted(_hello(root)) as client:
            for question in (check(DIGEST), size(DIGEST), pull(DIGEST)):
                assert await client.ask(question) == b"NONE"
            # Refused, but read to their ends: the connection is in step.
            for upload in (push(DIGEST, pack(CONTENT)), stream(DIGEST, pack(CONTENT))):
                assert await client.ask(upload + check(DIGEST), 8) == b"ERIONONE"
        assert sorted(tmp_path.rglob("*")) == before


async def test_temporary_files_and_neighbours_are_never_shown(tmp_path: Path) -> None:
    async with serving(tmp_path) as stand, await stand.greeted() as client:
        path = stand.path(DIGEST)
        path.parent.mkdir(parents=True)
        path.with_name(f"{DIGEST.hex}_blobXyZ123").write_bytes(pack(CONTENT))
        path.mkdir()  # a directory is no blob either
        assert await client.ask(check(DIGEST)) == b"NONE"


async def test_roots_do_not_share_their_blobs(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    async with serving(tmp_path) as stand:
        async with await stand.greeted() as client:
            assert await client.ask(push(DIGEST, pack(CONTENT))) == b"HAVE"
        async with await stand.greeted(_hello(b"/other")) as client:
            assert await client.ask(check(DIGEST)) == b"NONE"
            # What is missing below a root is made.
            assert await client.ask(push(DIGEST, pack(CONTENT))) == b"HAVE"
        assert stand.path(DIGEST, "other").read_bytes() == pack(CONTENT)
