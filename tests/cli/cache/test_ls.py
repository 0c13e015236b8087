"""``cafsfs cache ls``: what it lists."""

from __future__ import annotations

import subprocess
import time
from datetime import datetime

import pytest

from cafsfs.digest import Digest
from tests.cli.caches import Cache, lines
from tests.cli.running import CAFSFS

pytestmark = pytest.mark.process


def test_ls(cache: Cache, blobs: list[Digest]) -> None:
    assert cache.run("ls").ok().text == lines(*sorted(blobs))


def test_ls_of_an_empty_cache(cache: Cache) -> None:
    cache.fill()
    assert cache.run("ls").ok().text == ""
    assert cache.json("ls") == []


def test_ls_marks_what_was_never_verified(cache: Cache, blobs: list[Digest]) -> None:
    placed = cache.place(b"copied here by hand")
    cache.run("gc")
    assert f"{placed}  unverified\n" in cache.run("ls").ok().text
    assert f"{blobs[0]}\n" in cache.run("ls").text
    [found] = [each for each in cache.json("ls") if each["hash"] == placed.hex]
    assert found["verified"] is None
    assert "unverified" in cache.run("ls", "--long").text
    cache.run("verify")
    assert f"{placed}\n" in cache.run("ls").ok().text


def test_ls_tells_all_there_is(cache: Cache, blobs: list[Digest]) -> None:
    cache.run("pin", blobs[1])
    found = {each["hash"]: each for each in cache.json("ls")}
    assert {each: found[each.hex]["size"] for each in blobs} == dict(
        zip(blobs, (100_000, 200_000, 300_000), strict=True)
    )
    assert [found[each.hex]["pinned"] for each in blobs] == [False, True, False]
    for name in ("used", "pulled", "verified"):
        told = datetime.fromisoformat(found[blobs[0].hex][name])
        assert abs(told.timestamp() - time.time()) < 60
    [line] = [each for each in cache.run("ls", "--long").text.splitlines() if blobs[1].hex in each]
    assert line.split()[1] == "195.3K"
    assert "pinned" in line.split()


def test_ls_adopts_what_the_index_lacks(cache: Cache, blobs: list[Digest]) -> None:
    for each in cache.directory.glob("index.*"):
        each.unlink()
    assert cache.run("ls").ok().text == "".join(f"{each}  unverified\n" for each in sorted(blobs))


def test_ls_of_thousands(cache: Cache) -> None:
    digests = sorted(cache.place(b"%d" % number) for number in range(3456))
    cache.run("pin", digests[0])
    assert [line[:64] for line in cache.run("ls").ok().text.splitlines()] == list(map(str, digests))
    found = cache.json("ls")
    assert [each["hash"] for each in found] == list(map(str, digests))
    assert [each["pinned"] for each in found[:2]] == [True, False]


def test_a_reader_of_ls_may_leave(cache: Cache) -> None:
    for number in range(3000):
        cache.place(b"%d" % number)
    directory = ["--cache-dir", str(cache.directory)]
    done = subprocess.run(
        ["sh", "-c", '"$@" | head -n 2', "sh", *CAFSFS, "cache", "ls", *directory],
        capture_output=True,
        check=False,
        text=True,
    )
    assert (len(done.stdout.splitlines()), done.stderr) == (2, "")
    assert cache.json("status")["users"] == []
