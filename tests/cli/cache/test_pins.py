"""``cafsfs cache pin`` and ``unpin``: what stays, and for whom."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cafsfs.digest import Digest
from tests.cli.caches import Cache, lines
from tests.cli.running import ABSENT, Serving

pytestmark = pytest.mark.process


def test_pins_are_listed_and_kept(cache: Cache, blobs: list[Digest]) -> None:
    done = cache.run("pin", *blobs[:2])
    assert (done.code, done.out, done.err) == (0, b"", "pinned 2 blobs\n")
    assert cache.run("ls", "--pinned").ok().text == lines(*sorted(blobs[:2]))
    for each in cache.directory.glob("index.*"):
        each.unlink()
    assert {each["hash"] for each in cache.json("ls", "--pinned")} == set(map(str, blobs[:2]))
    assert cache.json("gc", "--cache-files", "1")["cached_blobs"] == 2


def test_what_is_not_cached_cannot_be_pinned(cache: Cache, blobs: list[Digest]) -> None:
    done = cache.run("pin", ABSENT, blobs[0])
    assert done.code == 1
    assert done.err == (
        f"pinned 1 blob\nerror: {ABSENT}: it is not cached\n\n"
        "hint: pull it: cafsfs cache pin --pull URI HASH\n"
    )
    assert cache.run("ls", "--pinned").ok().text == lines(blobs[0])


def test_pins_may_not_exceed_the_bound(cache: Cache, blobs: list[Digest]) -> None:
    done = cache.run("pin", "--cache-size", "500000", *blobs)
    assert done.code == 1
    assert done.complaint() == "600000 bytes would be pinned, and the cache may hold 500000"
    assert done.hint() == "raise --cache-size, or unpin something"
    assert cache.run("ls", "--pinned").ok().text == ""
    assert cache.run("pin", "--cache-size", "500000", *blobs[:2]).code == 0
    assert cache.run("pin", "--cache-size", "500000", *blobs[:2]).code == 0
    assert cache.run("pin", "--cache-size", "500000", blobs[2]).code == 1


def test_pins_keep_to_the_bound_of_a_mount(cache: Cache, blobs: list[Digest]) -> None:
    with cache.opened(size=650_000):
        assert cache.run("pin", *blobs[1:]).code == 0
        assert cache.run("pin", "--cache-size", "1K", blobs[0]).code == 0
    with cache.opened(size=550_000):
        cache.run("unpin", blobs[0])
        assert cache.run("pin", blobs[0]).code == 1


def test_pin_pulls(cache: Cache, blobs: list[Digest], server: Serving, tmp_path: Path) -> None:
    coming = server.put(tmp_path, b"to be pulled and pinned")
    done = cache.run("pin", "--pull", server.uri, coming, blobs[0])
    assert (done.code, done.out) == (0, b"")
    assert done.err == "pulled 1 blob (23), 1 cached before, all pinned\n"
    assert cache.run("ls", "--pinned").ok().text == lines(*sorted([coming, blobs[0]]))
    done = cache.run("pin", "--pull", server.uri, ABSENT, blobs[1])
    assert (done.code, done.text) == (1, lines(ABSENT))
    assert cache.json("status")["pinned_blobs"] == 3


def test_unpin(cache: Cache, blobs: list[Digest]) -> None:
    cache.run("pin", *blobs)
    done = cache.run("unpin", blobs[0], ABSENT)
    assert (done.code, done.err) == (0, "unpinned 1 blob, 1 not pinned\n")
    assert cache.run("evict", blobs[0]).code == 0
    done = cache.run("unpin", "--all")
    assert (done.code, done.err) == (0, "unpinned 2 blobs\n")
    assert cache.run("ls", "--pinned").ok().text == ""
    assert cache.run("evict", "--all").err == "evicted 2 blobs (488.3K)\n"


def test_pins_for_scripts(cache: Cache, blobs: list[Digest]) -> None:
    done = cache.run("pin", "--json", ABSENT, blobs[0])
    assert done.code == 1
    assert json.loads(done.out) == {"pinned": [str(blobs[0])], "absent": [str(ABSENT)]}
    assert cache.json("unpin", blobs[0], ABSENT) == {"unpinned": 1, "not_pinned": 1}
