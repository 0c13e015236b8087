"""``cafsfs cache status``: what it shows of a cache that nobody has mounted."""

from __future__ import annotations

import os

import pytest

from cafsfs.digest import Digest
from tests.cli.caches import ONE, Cache
from tests.cli.running import ABSENT

pytestmark = pytest.mark.process


def test_status_for_people(cache: Cache, blobs: list[Digest]) -> None:
    cache.run("pin", blobs[0])
    rows = [line.split("  ", 1) for line in cache.run("status").ok().text.splitlines()]
    found = {name.strip(): value.strip() for name, value in rows}
    assert found["directory"] == str(cache.directory)
    assert found["cached"] == "3 blobs (585.9K)"
    assert found["bound"] == "20.0G as configured here"
    assert found["pinned"] == "1 blob (97.7K)"
    assert found["in flight"] == "0"
    assert " free of " in found["disk"]
    assert "read-only" not in found
    starts = {len(line) - len(line.split("  ", 1)[1].lstrip()) for line in _status(cache)}
    assert len(starts) == 1, "the values are aligned"


def _status(cache: Cache) -> list[str]:
    return cache.run("status").ok().text.splitlines()


def test_status_for_scripts(cache: Cache, blobs: list[Digest]) -> None:
    found = cache.json("status", env={"CAFSFS_CACHE_SIZE": "1M"})
    assert found["bytes"] == 600_000
    assert found["blobs"] == 3
    assert found["bound_bytes"] == 1 << 20
    assert found["live_bound_bytes"] is None
    assert found["read_only"] is None
    assert found["users"] == []
    assert 0 < found["disk_free_bytes"] < found["disk_bytes"]


def test_status_tells_who_uses_it(cache: Cache, blobs: list[Digest]) -> None:
    with cache.opened(size=5 << 20):
        found = cache.json("status")
        text = cache.run("status").ok().text
    assert found["users"] == [{"pid": os.getpid(), "what": "a test", "bound_bytes": 5 << 20}]
    assert found["live_bound_bytes"] == 5 << 20
    assert f"used by    {os.getpid()}: a test\n" in text
    assert "5.0M by who keeps it now, 20.0G as configured here" in text


def test_status_tells_what_is_in_flight_and_removes_nothing(
    cache: Cache, blobs: list[Digest]
) -> None:
    (cache.directory / "partial" / ("ab" * 32)).write_bytes(b"left by the dead")
    with cache.opened(keep=False) as opened:
        partial = opened.call(opened.cache.claim, ABSENT)
        partial.write(bytes(5000))
        found = cache.json("status")
        opened.call(opened.cache.discard, partial)
    assert (found["partial_bytes"], found["debris_bytes"]) == (5000, 16)
    assert len(cache.partial) == 1


def test_status_of_an_index_that_is_not_complete(cache: Cache) -> None:
    cache.place(ONE)
    assert cache.json("status")["complete"] is False
    assert "not complete: " in cache.run("status").ok().text
    cache.run("gc")
    assert cache.json("status")["complete"] is True
