"""``cafsfs cache gc`` and ``evict``: what goes, and what stays."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from cafsfs.digest import Digest
from tests.cli.caches import Cache, lines
from tests.cli.running import ABSENT

pytestmark = pytest.mark.process


def test_gc_within_the_bounds_evicts_nothing(cache: Cache, blobs: list[Digest]) -> None:
    done = cache.run("gc")
    assert (done.code, done.out) == (0, b"")
    assert done.err == "evicted 0 blobs, 3 blobs (585.9K) in the cache\n"


def test_gc_evicts_what_was_used_least_recently(cache: Cache, blobs: list[Digest]) -> None:
    done = cache.json("gc", "--cache-size", "550000", "--cache-free", "0")
    assert done == {
        "evicted": 1,
        "bytes": 100_000,
        "debris_bytes": 0,
        "cached_blobs": 2,
        "cached_bytes": 500_000,
    }
    assert [cache.has(each) for each in blobs] == [False, True, True]


def test_gc_by_number_and_by_age(cache: Cache, blobs: list[Digest]) -> None:
    cache.run("pin", blobs[1])
    assert cache.json("gc", "--cache-files", "2")["evicted"] >= 1
    time.sleep(0.01)
    assert cache.json("gc", "--cache-tti", "0.001")["cached_blobs"] == 1
    assert [cache.has(each) for each in blobs] == [False, True, False]


def test_gc_clears_debris(cache: Cache, blobs: list[Digest]) -> None:
    (cache.directory / "partial" / ABSENT.hex).write_bytes(bytes(5000))
    done = cache.run("gc")
    assert "cleared 4.9K left by dead processes" in done.err
    assert cache.partial == []


def test_gc_makes_the_index_agree_with_the_files(cache: Cache, blobs: list[Digest]) -> None:
    cache.path(blobs[0]).unlink()
    placed = cache.place(b"copied here by hand")
    assert cache.json("gc")["cached_bytes"] == 500_000 + 19
    assert {each["hash"] for each in cache.json("ls")} == {
        *(each.hex for each in blobs[1:]),
        placed.hex,
    }


def test_gc_keeps_to_the_wider_bound_of_a_mount(cache: Cache, blobs: list[Digest]) -> None:
    small = {"CAFSFS_CACHE_SIZE": "100K", "CAFSFS_CACHE_FREE": "100%"}
    with cache.opened(size=1 << 20):
        assert cache.json("gc", env=small)["evicted"] == 0
        assert cache.json("gc", "--cache-size", "550000", env=small)["evicted"] == 1
    assert cache.json("gc", env=small)["evicted"] == 2


def test_evict(cache: Cache, blobs: list[Digest]) -> None:
    done = cache.run("evict", blobs[0], blobs[2], blobs[0], ABSENT)
    assert (done.code, done.out) == (0, b"")
    assert done.err == "evicted 2 blobs (390.6K), 1 not cached\n"
    assert cache.run("ls").ok().text == lines(blobs[1])
    assert cache.json("status")["bytes"] == 200_000
    assert cache.run("evict", blobs[0]).code == 0


def test_evict_refuses_what_is_pinned_and_does_the_rest(cache: Cache, blobs: list[Digest]) -> None:
    cache.run("pin", blobs[0])
    done = cache.run("evict", *blobs)
    assert done.code == 1
    assert f"error: {blobs[0]}: it is pinned\n\nhint: unpin it first: " in done.err
    assert [cache.has(each) for each in blobs] == [True, False, False]
    done = cache.run("evict", "--json", blobs[0])
    assert done.code == 1
    assert json.loads(done.out) == {
        "evicted": 0,
        "bytes": 0,
        "pinned": [blobs[0].hex],
        "absent": [],
        "failed": [],
    }


def test_evict_all_leaves_what_is_pinned(cache: Cache, blobs: list[Digest]) -> None:
    cache.run("pin", blobs[0])
    done = cache.run("evict", "--all")
    assert (done.code, done.err) == (0, "evicted 2 blobs (488.3K), 1 pinned\n")
    assert [cache.has(each) for each in blobs] == [True, False, False]


def test_evict_what_the_index_does_not_know(cache: Cache, blobs: list[Digest]) -> None:
    cache.run("pin", blobs[0])
    for each in cache.directory.glob("index.*"):
        each.unlink()
    assert cache.run("evict", *blobs).code == 1
    assert [cache.has(each) for each in blobs] == [True, False, False]


def test_evict_from_a_list(cache: Cache, blobs: list[Digest], tmp_path: Path) -> None:
    (tmp_path / "list").write_text(f"{blobs[0]}  a\n\\{blobs[1]}  b\\\\c\n")
    with (tmp_path / "list").open() as stdin:
        assert cache.run("evict", "--from", "-", stdin=stdin).code == 0
    assert cache.run("ls").ok().text == lines(blobs[2])
