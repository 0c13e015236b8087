"""What a mount tells of itself, and that asking never waits."""

from __future__ import annotations

import json
import logging
import os
import threading
from dataclasses import replace

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from cafsfs.metrics import Metrics
from cafsfs.packing import hash_bytes
from cafsfs.report.recent import RecentComplaints
from cafsfs.store.router import Outage
from tests.report.conftest import ABOUT, SERVER, Bench

CONTENT = b"0123456789" * 50
DIGEST = hash_bytes(CONTENT)


async def test_a_fresh_mount_tells_what_it_is(bench: Bench) -> None:
    stats = bench.status.stats()
    assert stats["version"] == "1.2.3"
    assert stats["uri"] == "cafs://h/r"
    assert stats["mountpoint"] == "/mnt/cafs"
    assert stats["pid"] == os.getpid()
    assert stats["hit_rate"] is None
    assert stats["pulls_in_flight"] == 0
    assert stats["inflight"] == stats["last_errors"] == []
    assert stats["requests"] == {
        "waiting": 0,
        "oldest_operation": None,
        "oldest_seconds": None,
    }
    assert stats["kernel"] == bench.parts.kernel()
    assert stats["memory"] == bench.parts.memory()
    cache = stats["cache"]
    assert isinstance(cache, dict)
    assert (cache["bytes"], cache["bound_bytes"], cache["fill"]) == (0, 1000, 0)
    assert cache["trouble"] is None


async def test_pulls_and_hits_are_counted(bench: Bench) -> None:
    bench.upstream.blobs[DIGEST] = CONTENT
    await bench.store.fetch(DIGEST)
    for _ in range(3):
        await bench.store.fetch(DIGEST)
    bench.metrics.read_bytes, bench.metrics.cached_bytes = 100, 60
    stats = bench.status.stats()
    assert stats["hit_rate"] == 0.75
    assert stats["bytes"] == {
        "read": 100,
        "from_cache": 60,
        "from_pulls": 40,
        "pulled": len(CONTENT),
        "received": len(CONTENT) + 16,
    }


async def test_a_pull_in_flight_is_told_with_who_waits_for_it(bench: Bench) -> None:
    upstream = bench.upstream
    upstream.blobs[DIGEST], upstream.flow = CONTENT, trio.Semaphore(1)
    upstream._step = 100
    bench.parts.openers = lambda: {DIGEST: [7, 5, 7]}
    await bench.store.stat(DIGEST)
    blob = bench.store.open(DIGEST)
    bench.store.open(DIGEST)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: blob.read(0, 10, patience=60))
        while await upstream.asked.receive() != "pull":
            pass
        await wait_all_tasks_blocked()
        [pull] = bench.status.inflight()
        assert pull["hash"] == DIGEST.hex
        assert (pull["bytes"], pull["size"]) == (100, len(CONTENT))
        assert (pull["users"], pull["waiting"], pull["pids"]) == (2, 1, [5, 7])
        age, still, rate = pull["age_seconds"], pull["still_seconds"], pull["rate"]
        assert isinstance(age, float)
        assert isinstance(still, float)
        assert isinstance(rate, int)
        assert 0 <= still <= age
        assert rate > 0
        for _ in range(10):
            upstream.flow.release()
    assert bench.status.inflight() == []
    bench.store.close(blob)
    bench.store.close(blob)


async def test_the_oldest_request_is_told(bench: Bench) -> None:
    requests = bench.metrics.requests
    first, second = requests.begin("read"), requests.begin("open")
    told = bench.status.stats()["requests"]
    assert isinstance(told, dict)
    assert (told["waiting"], told["oldest_operation"]) == (2, "read")
    assert told["oldest_seconds"] >= 0
    requests.end(first, "ok")
    requests.end(second, "EIO")
    assert requests.oldest() is None
    assert sum(requests.taken["open", "EIO"].counts) == 1


async def test_servers_and_outages_are_told(bench: Bench) -> None:
    servers = bench.status.stats()["servers"]
    assert isinstance(servers, dict)
    assert servers["state"] == "online"
    assert servers["members"][0]["name"] == "h:2403"
    bench.parts.outage = lambda: Outage("refused", since=0.0, began=0.0)
    bench.parts.servers = lambda: [replace(SERVER, state="down", reason="refused")]
    servers = bench.status.stats()["servers"]
    assert isinstance(servers, dict)
    assert servers["state"] == "offline"
    assert servers["since"] == "1970-01-01T00:00:00+00:00"
    assert servers["reason"] == "refused"


async def test_a_supervisor_is_told_in_a_line(bench: Bench) -> None:
    bench.parts.servers = list
    assert bench.status.summary() == (
        "nothing opened yet; 0 MiB cached, 0 MiB pulled; a directory of this machine"
    )
    states = ("up", "suspect", "down", "up")
    bench.parts.servers = lambda: [replace(SERVER, state=each) for each in states]
    bench.metrics.cache_hits, bench.metrics.cache_misses = 2, 1
    bench.metrics.pulled_bytes = 3 << 20
    assert bench.status.summary() == (
        "67% of opens from the cache; 0 MiB cached, 3 MiB pulled; 2 of 4 servers up"
    )


async def test_files_are_the_same_in_json(bench: Bench) -> None:
    read = {name: await render() for name, render in bench.status.files.items()}
    assert read["version"] == b"1.2.3\n"
    assert json.loads(read["servers"])[0]["rate"] == 3e6
    assert json.loads(read["inflight"]) == []
    told = json.loads(read["stats.json"])
    assert told.keys() == bench.status.stats().keys()
    assert ABOUT.uri in read["stats.json"].decode()


async def test_their_json_is_made_off_the_event_loop(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_work = set()

    def dumps(_: object, *, indent: int) -> str:
        at_work.add(threading.get_ident())
        return ""

    monkeypatch.setattr(json, "dumps", dumps)
    for name in ("stats.json", "inflight", "servers"):
        await bench.status.files[name]()
    assert at_work
    assert threading.get_ident() not in at_work


def test_the_last_errors_are_kept_once_each(complaints: RecentComplaints) -> None:
    logger = logging.getLogger("elsewhere")
    logger.info("nothing to complain of")
    for _ in range(3):
        logger.warning("read: %s is down", "h")
    logger.error("broken")
    warned, broken = complaints.latest()
    assert (warned.message, warned.level, warned.times) == ("read: h is down", "WARNING", 3)
    assert warned.first <= warned.last
    assert (broken.message, broken.times) == ("broken", 1)
    assert (complaints.metrics.log_warnings, complaints.metrics.log_errors) == (3, 1)
    for number in range(100):
        logger.warning("another: %d", number)
    assert len(complaints.latest()) == 50
    assert complaints.latest()[-1].message == "another: 99"
    logger.warning("another: 50")  # the oldest, once more
    logger.warning("another: 100")
    assert [each.message for each in complaints.latest()[-3:]] == [
        *("another: 99", "another: 50", "another: 100"),
    ]


def test_a_hit_rate_needs_an_open() -> None:
    assert Metrics().hit_rate is None
    assert Metrics(cache_hits=1, cache_misses=3).hit_rate == 0.25
    assert "requests" not in Metrics().as_dict()
