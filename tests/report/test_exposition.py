"""Metrics as Prometheus reads them: documented all, parsed by others, and never in a read's way."""

from __future__ import annotations

import os
import re
import socket
import threading
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_plain
from trio.testing import MockClock

from cafsfs.packing import hash_bytes
from cafsfs.report import exposition, families
from cafsfs.report.exposition import MetricsPage, serve_metrics, unit_of, write_textfile
from cafsfs.report.families import (
    FAMILIES,
    INFO,
    REQUEST_SECONDS,
    Family,
    Kind,
    Sample,
    Seen,
    look,
)
from cafsfs.report.publishing import metrics_page
from cafsfs.store.read_caching import InFlight
from tests.report.conftest import ABOUT, Bench

POINT = {"mountpoint": "/mnt/cafs"}


@pytest.fixture
async def page(bench: Bench) -> MetricsPage:
    return MetricsPage(bench.status, trio.lowlevel.current_trio_token())


async def told(page: MetricsPage) -> dict[str, Metric]:
    text = (await trio.to_thread.run_sync(page.openmetrics)).decode()
    return {each.name: each for each in parse_openmetrics(text)}


def value(metric: Metric, **labels: str) -> float:
    [found] = [each.value for each in metric.samples if each.labels == POINT | labels]
    return found


async def test_every_metric_has_name_help_unit_and_mountpoint(
    page: MetricsPage, bench: Bench
) -> None:
    bench.metrics.requests.end(bench.metrics.requests.begin("read"), "ok")
    found = await told(page)
    assert set(found) == {each.name for each in FAMILIES} | {REQUEST_SECONDS, INFO}
    for each in found.values():
        assert re.fullmatch(r"cafsfs_[a-z_]+", each.name)
        assert each.documentation
        assert each.documentation[0].isupper() or each.documentation[0].isdigit()
        assert each.unit == unit_of(each.name)
        assert each.samples, each.name
        assert all(sample.labels["mountpoint"] == "/mnt/cafs" for sample in each.samples)


async def test_numbers_are_those_of_the_mount(page: MetricsPage, bench: Bench) -> None:
    content = b"0123456789" * 50
    bench.upstream.blobs[hash_bytes(content)] = content
    for _ in range(3):
        await bench.store.fetch(hash_bytes(content))
    bench.metrics.read_bytes, bench.metrics.cached_bytes = 100, 60
    found = await told(page)
    assert value(found["cafsfs_pulls"]) == 1
    assert value(found["cafsfs_pulled_bytes"]) == 500
    assert value(found["cafsfs_cache_hits"]) == 2
    assert value(found["cafsfs_cache_bytes"]) == 500
    assert value(found["cafsfs_read_bytes"], source="cache") == 60
    assert value(found["cafsfs_read_bytes"], source="pull") == 40
    assert value(found["cafsfs_server_state"], server="h:2403", state="up") == 1
    assert value(found["cafsfs_server_state"], server="h:2403", state="down") == 0
    assert value(found["cafsfs_memory_bytes"], kind="held") == 5
    assert value(found["cafsfs_open_descriptors"]) >= 3
    assert value(found["cafsfs_resident_memory_bytes"]) > 1e6
    assert found[INFO].samples[0].labels["version"] == "1.2.3"


async def test_the_process_is_told_of(page: MetricsPage, monkeypatch: pytest.MonkeyPatch) -> None:
    used = SimpleNamespace(ru_utime=1.5, ru_stime=2.0)
    monkeypatch.setattr("cafsfs.report.families.resource.getrusage", lambda _: used)
    found = await told(page)
    assert value(found["cafsfs_processor_seconds"]) == 3.5
    status = Path("/proc/self/status").read_text()
    resident = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert resident
    assert value(found["cafsfs_resident_memory_bytes"]) == pytest.approx(
        int(resident[1]) << 10, rel=0.1
    )


async def test_the_worst_of_the_pulls_is_told(bench: Bench) -> None:
    pulls = [
        InFlight(
            digest=hash_bytes(b"a"), size=None, length=7, age=9.0, still=1.0, users=1, waiting=0
        ),
        InFlight(
            digest=hash_bytes(b"b"), size=30, length=20, age=5.0, still=4.0, users=1, waiting=0
        ),
    ]
    seen = replace(families.look(bench.status), pulls=pulls)
    samples = {each.name: list(each.samples(seen)) for each in FAMILIES if "pull" in each.name}
    assert samples["cafsfs_pull_oldest_seconds"] == [((), 9.0)]
    assert samples["cafsfs_pull_still_seconds"] == [((), 4.0)]
    assert samples["cafsfs_pulls_in_flight"] == [((), 2)]


async def test_durations_are_a_histogram_by_operation_and_result(
    page: MetricsPage, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 0.0002, 1.0, 1.0002, 2.0, 102.0])
    monkeypatch.setattr("cafsfs.metrics.perf_counter", lambda: next(clock))
    requests = bench.metrics.requests
    for result in ("ok", "ok", "EIO"):
        requests.end(requests.begin("read"), result)
    monkeypatch.undo()
    samples = (await told(page))[REQUEST_SECONDS].samples
    read = {
        (each.name.rpartition("_")[2], each.labels.get("le"), each.labels["result"]): each.value
        for each in samples
    }
    assert read["bucket", "0.0001", "ok"] == 0
    assert read["bucket", "0.00025", "ok"] == read["bucket", "+Inf", "ok"] == 2
    assert read["count", None, "ok"] == 2
    assert read["sum", None, "ok"] == pytest.approx(0.0004)
    assert read["bucket", "30.0", "EIO"] == 0
    assert read["bucket", "+Inf", "EIO"] == 1


async def test_a_metric_that_cannot_be_told_is_left_out(
    page: MetricsPage, bench: Bench, expect_log: object
) -> None:
    assert callable(expect_log)
    expect_log("ERROR cafsfs.report.exposition: the metric cafsfs_open_handles cannot be told")
    bench.parts.filesystem = lambda: {"known_inodes": 1}
    for _ in range(2):
        found = await told(page)
        assert "cafsfs_open_handles" not in found
        assert value(found["cafsfs_known_inodes"]) == 1


async def test_a_mount_point_of_any_bytes_has_metrics(
    page: MetricsPage, bench: Bench, tmp_path: Path
) -> None:
    bench.status.about = replace(ABOUT, mountpoint=os.fsdecode(b'/mnt/\xff"\n'))
    found = await told(page)
    assert found["cafsfs_pulls"].samples[0].labels["mountpoint"] == '/mnt/\ufffd"\n'
    await trio.to_thread.run_sync(exposition._write, tmp_path / "cafsfs.prom", page)


@pytest.fixture
def at_work(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The threads in which the only metric that there is, ``cafsfs_watched``, was told."""
    threads: list[int] = []

    def samples(_: Seen) -> list[Sample]:
        threads.append(threading.get_ident())
        return [((), 1.0)]

    watched = Family("cafsfs_watched", Kind.GAUGE, "Watched", samples)
    monkeypatch.setattr(exposition, "FAMILIES", (watched,))
    return threads


async def test_the_hidden_file_is_made_off_the_event_loop(bench: Bench, at_work: list[int]) -> None:
    assert b"cafsfs_watched" in await metrics_page(bench.status)()
    assert at_work
    assert threading.get_ident() not in at_work


async def test_who_asks_at_once_gets_the_same_page(bench: Bench, at_work: list[int]) -> None:
    render = metrics_page(bench.status)
    pages: list[bytes] = []

    async def ask() -> None:
        pages.append(await render())

    async with trio.open_nursery() as asking:
        for _ in range(3):
            asking.start_soon(ask)
    assert len(pages) == 3
    assert len(at_work) == 1


async def test_what_is_seen_does_not_change(bench: Bench) -> None:
    requests = bench.metrics.requests
    requests.end(requests.begin("read"), "ok")
    seen = look(bench.status)
    bench.metrics.reads += 1
    requests.end(requests.begin("read"), "ok")
    requests.begin("open")
    assert seen.counted.reads == 0
    assert seen.counted.requests.waiting == {}
    [histogram] = seen.counted.requests.taken.values()
    assert sum(histogram.counts) == 1


# --- over HTTP


async def get(url: str, accept: str) -> tuple[str, str]:
    request = urllib.request.Request(url, headers={"Accept": accept})

    def fetch() -> tuple[str, str]:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.headers["Content-Type"], answer.read().decode()

    return await trio.to_thread.run_sync(fetch)


@pytest.mark.process
async def test_a_scrape_gets_the_format_it_asks_for(
    page: MetricsPage, nursery: trio.Nursery
) -> None:
    host, port = await nursery.start(serve_metrics, page, "127.0.0.1", 0)
    url = f"http://{host}:{port}/metrics"
    kind, text = await get(url, "application/openmetrics-text; version=1.0.0")
    assert kind.startswith("application/openmetrics-text")
    assert "cafsfs_pulls" in {each.name for each in parse_openmetrics(text)}
    kind, text = await get(url, "text/plain")
    assert kind.startswith("text/plain")
    assert "cafsfs_pulls" in {each.name for each in parse_plain(text)}


@pytest.mark.process
async def test_a_scrape_is_answered_off_the_event_loop(
    page: MetricsPage, nursery: trio.Nursery, at_work: list[int]
) -> None:
    host, port = await nursery.start(serve_metrics, page, "127.0.0.1", 0)
    assert "cafsfs_watched" in (await get(f"http://{host}:{port}", "text/plain"))[1]
    assert at_work
    assert threading.get_ident() not in at_work


@pytest.mark.process
async def test_clients_that_are_slow_or_gone_hold_nobody(
    page: MetricsPage, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exposition._Handler, "timeout", 0.05)
    host, port = await nursery.start(serve_metrics, page, "127.0.0.1", 0)
    with (
        socket.create_connection((host, port)) as slow,
        socket.create_connection((host, port)) as s,
    ):
        s.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        s.close()
        assert "# EOF" in (await get(f"http://{host}:{port}", "application/openmetrics-text"))[1]
        assert await trio.to_thread.run_sync(partial(slow.recv, 1)) == b""  # cut off


@pytest.mark.process
async def test_clients_are_bounded_and_none_waits_for_another(
    page: MetricsPage, nursery: trio.Nursery
) -> None:
    address = await nursery.start(serve_metrics, page, "127.0.0.1", 0)
    with ExitStack() as stack:
        idle = [
            stack.enter_context(await trio.to_thread.run_sync(socket.create_connection, address))
            for _ in range(exposition._CLIENTS + 1)
        ]
        assert await trio.to_thread.run_sync(partial(idle[-1].recv, 1)) == b""  # one too many
        for each in idle:
            each.close()
    url = f"http://{address[0]}:{address[1]}"
    refused = True
    while refused:  # their threads see it in no order
        with suppress(OSError):
            refused = "# EOF" not in (await get(url, "application/openmetrics-text"))[1]


@pytest.mark.process
async def test_an_address_that_is_taken_is_an_error(
    page: MetricsPage, nursery: trio.Nursery
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="in use"):
        await nursery.start(serve_metrics, page, "127.0.0.1", taken.getsockname()[1])


# --- as a textfile


async def test_the_textfile_is_written_again_and_removed_at_the_end(
    page: MetricsPage, bench: Bench, tmp_path: Path, jumping_clock: MockClock
) -> None:
    path = tmp_path / "cafsfs.prom"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(write_textfile, page, path)
        await trio.sleep(1)
        assert path.stat().st_mode & 0o777 == 0o644
        assert "cafsfs_pulls" in {each.name for each in parse_plain(path.read_text())}
        bench.metrics.pulls = 77
        await trio.sleep(16)
        assert 'cafsfs_pulls_total{mountpoint="/mnt/cafs"} 77.0' in path.read_text()
        assert os.listdir(tmp_path).count("cafsfs.prom") == 1
        nursery.cancel_scope.cancel()
    assert not path.exists()


async def test_the_textfile_is_made_off_the_event_loop(
    page: MetricsPage, tmp_path: Path, jumping_clock: MockClock, at_work: list[int]
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(write_textfile, page, tmp_path / "cafsfs.prom")
        await trio.sleep(1)
        assert "cafsfs_watched" in (tmp_path / "cafsfs.prom").read_text()
        nursery.cancel_scope.cancel()
    assert at_work
    assert threading.get_ident() not in at_work


async def test_a_textfile_that_cannot_be_written_is_said_once(
    page: MetricsPage, tmp_path: Path, jumping_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "none" / "cafsfs.prom"
    logger = exposition.log
    logger.propagate = False  # what is announced comes once; the watch counts for itself
    logger.addHandler(caplog.handler)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write_textfile, page, path)
            await trio.sleep(50)
            path.parent.mkdir()
            await trio.sleep(20)
            assert path.exists()
            nursery.cancel_scope.cancel()
    finally:
        logger.removeHandler(caplog.handler)
        logger.propagate = True
    assert [each.getMessage() for each in caplog.records] == [
        f"cannot write metrics to `{path}`: No such file or directory"
    ]


async def test_a_page_that_cannot_be_made_ends_no_mount(
    page: MetricsPage,
    tmp_path: Path,
    jumping_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
    expect_log: Callable[[str], None],
) -> None:
    expect_log(r"WARNING .*: cannot write metrics to `.*`: KeyError\('a bug'\)$")
    made = iter([KeyError("a bug")])

    def collect() -> list[Metric]:
        for error in made:
            raise error
        return []

    monkeypatch.setattr(page, "collect", collect)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(write_textfile, page, tmp_path / "cafsfs.prom")
        await trio.sleep(20)
        assert (tmp_path / "cafsfs.prom").exists()
        nursery.cancel_scope.cancel()
