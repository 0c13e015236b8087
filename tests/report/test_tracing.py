"""Spans by OpenTelemetry: what they tell, and that nothing of it is there for who does not ask."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pyfuse3
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from cafsfs.errors import BlobNotFound, Unavailable
from cafsfs.fuse import operations
from cafsfs.fuse.operations import Operations
from cafsfs.packing import hash_bytes
from cafsfs.report import tracing as ours
from cafsfs.report.tracing import is_asked_for, tracer_of, tracing
from cafsfs.vfs.filesystem import FileSystem, VfsOptions
from tests.report.conftest import Bench

CONTENT = b"content" * 10
DIGEST = hash_bytes(CONTENT)
ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


@pytest.fixture
def exporter(bench: Bench) -> Iterator[InMemorySpanExporter]:
    made = InMemorySpanExporter()
    provider = ours._provider("/mnt/cafs", SimpleSpanProcessor(made))
    bench.metrics.trace = tracer_of(provider)
    yield made
    provider.shutdown()


def told(span: ReadableSpan) -> tuple[str, dict[str, Any], str]:
    return span.name, dict(span.attributes or {}), span.status.status_code.name


async def test_a_pull_has_a_span_with_hash_server_and_bytes(
    bench: Bench, exporter: InMemorySpanExporter
) -> None:
    bench.upstream.blobs[DIGEST] = CONTENT
    await bench.store.fetch(DIGEST)
    [span] = exporter.get_finished_spans()
    assert told(span) == (
        "pull",
        {"cafsfs.hash": DIGEST.hex, "cafsfs.bytes": len(CONTENT), "cafsfs.server": "scripted"},
        "UNSET",
    )
    assert span.start_time is not None
    assert span.end_time is not None
    assert 0 <= span.end_time - span.start_time < 60e9
    assert span.resource.attributes["cafsfs.mountpoint"] == "/mnt/cafs"
    assert span.resource.attributes["service.name"] == "cafsfs"


async def test_a_pull_that_fails_says_why(bench: Bench, exporter: InMemorySpanExporter) -> None:
    with pytest.raises(BlobNotFound):
        await bench.store.fetch(DIGEST)
    [span] = exporter.get_finished_spans()
    assert told(span) == ("pull", {"cafsfs.hash": DIGEST.hex}, "ERROR")
    assert "not found" in str(span.status.description)


async def test_requests_have_spans_and_reads_only_if_they_are_slow(
    bench: Bench, exporter: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.upstream.blobs[DIGEST] = CONTENT
    filesystem = FileSystem(bench.store, VfsOptions(uid=0, gid=0, born_ns=0), {}, bench.metrics)
    handlers = Operations(filesystem, bench.metrics)
    context: Any = type("Context", (), {"pid": 7, "uid": 0})()
    entry = await handlers.lookup(pyfuse3.ROOT_INODE, DIGEST.hex.encode(), context)
    opened = await handlers.open(entry.st_ino, 0, context)
    await handlers.read(opened.fh, 0, 10)
    names = [each.name for each in exporter.get_finished_spans()]
    assert sorted(names) == ["lookup", "open", "pull"]
    hashes = {(each.attributes or {})["cafsfs.hash"] for each in exporter.get_finished_spans()}
    assert hashes == {DIGEST.hex}
    exporter.clear()
    monkeypatch.setattr(operations, "_SLOW", 0)
    await handlers.read(opened.fh, 0, 10)
    [span] = exporter.get_finished_spans()
    assert told(span) == ("read", {"cafsfs.hash": DIGEST.hex, "cafsfs.bytes": 10}, "UNSET")
    await handlers.release(opened.fh)


async def test_a_lookup_that_fails_is_an_error_and_one_that_finds_nothing_is_none(
    bench: Bench, exporter: InMemorySpanExporter, expect_log: Callable[[str], None]
) -> None:
    expect_log("WARNING cafsfs.fuse.operations: lookup: nobody")
    filesystem = FileSystem(bench.store, VfsOptions(uid=0, gid=0, born_ns=0), {}, bench.metrics)
    handlers = Operations(filesystem, bench.metrics)
    context: Any = None
    name: Any = DIGEST.hex.encode()
    await handlers.lookup(pyfuse3.ROOT_INODE, name, context)
    bench.upstream.errors = [Unavailable("nobody")]
    with pytest.raises(pyfuse3.FUSEError):
        await handlers.lookup(pyfuse3.ROOT_INODE, name, context)
    assert [each.status.status_code.name for each in exporter.get_finished_spans()] == [
        "UNSET",
        "ERROR",
    ]


async def test_a_tracer_that_fails_fails_no_pull(bench: Bench) -> None:
    def broken(*_: object) -> None:
        raise KeyError("a bug")

    bench.metrics.trace = broken
    bench.upstream.blobs[DIGEST] = CONTENT
    assert await bench.store.fetch(DIGEST) == len(CONTENT)


@pytest.mark.parametrize(
    ("environ", "asked"),
    [
        ({}, False),
        ({ENDPOINT: "http://h:4318"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({ENDPOINT: "http://h:4318", "OTEL_TRACES_EXPORTER": "none"}, False),
        ({ENDPOINT: "http://h:4318", "OTEL_SDK_DISABLED": "true"}, False),
    ],
)
def test_the_variables_of_the_specification_decide(environ: dict[str, str], asked: bool) -> None:
    assert is_asked_for(environ) is asked


async def test_who_asks_and_has_not_installed_it_is_told(
    monkeypatch: pytest.MonkeyPatch, expect_log: Callable[[str], None]
) -> None:
    expect_log("WARNING cafsfs.report.tracing: spans are asked for, and cannot be made")
    monkeypatch.setenv(ENDPOINT, "http://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter", None)
    async with tracing("/mnt/cafs") as trace:
        assert trace is None


async def test_the_last_spans_are_sent_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENDPOINT, "http://127.0.0.1:9")
    exporter = InMemorySpanExporter()
    shut: list[bool] = []
    monkeypatch.setattr(exporter, "shutdown", lambda: shut.append(True))
    monkeypatch.setattr(ours, "_batches", lambda: SimpleSpanProcessor(exporter))
    async with tracing("/mnt/cafs") as trace:
        assert trace is not None
        trace("pull", 1.0, {"bytes": 5}, None)
    assert [each.name for each in exporter.get_finished_spans()] == ["pull"]
    assert shut


@pytest.mark.process
def test_nothing_is_imported_for_who_does_not_ask() -> None:
    code = "import sys, cafsfs.compose, cafsfs.fuse.session, cafsfs.cli.app; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "cafsfs.report.tracing" in done.stdout.split()
    wanted_later = ("opentelemetry", "prometheus_client", "logging_journald")
    assert [each for each in done.stdout.split() if each.startswith(wanted_later)] == []
