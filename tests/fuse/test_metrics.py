"""Metrics of a real mount: by its hidden file, HTTP, a textfile; and no read depends on them."""

from __future__ import annotations

import re
import sys
import urllib.request
from collections.abc import Mapping
from pathlib import Path

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.parser import text_string_to_metric_families as parse_plain

from cafsfs.report.families import FAMILIES, INFO, REQUEST_SECONDS
from tests.bad_server import BadServerProcess
from tests.fuse.conftest import Mounting
from tests.fuse.mounted import Mounted
from tests.fuse.processes import attempt, eventually, run
from tests.fuse.serving import BlobMaker, Roots

pytestmark = pytest.mark.fuse

SIZE = 300_000

# Runs cafsfs with counting of requests broken.
_BROKEN = """
import sys
from cafsfs.cli.app import invoke
from cafsfs.metrics import Requests

def broken(self, *arguments):
    raise KeyError("a bug")

Requests.begin = Requests.end = broken
sys.exit(invoke(sys.argv[1:]))
"""


def families(text: str) -> dict[str, Metric]:
    return {each.name: each for each in text_string_to_metric_families(text)}


def total(found: Mapping[str, Metric], name: str, suffix: str = "", **labels: str) -> float:
    return sum(
        sample.value
        for sample in found[name].samples
        if sample.name == name + suffix and labels.items() <= sample.labels.items()
    )


def hidden(mount: Mounted) -> dict[str, Metric]:
    return families(run("cat", mount.point / ".cafsfs/metrics").ok().text)


def test_reads_are_counted_and_timed(
    mounting: Mounting, server: BadServerProcess, blobs: BlobMaker
) -> None:
    blob = blobs.random(SIZE)
    server.put(blob.source)
    mount = mounting()
    run("cmp", mount.path(blob), blob.source).ok()
    assert attempt("os.stat(a[0])", mount.point / ("0" * 64)) == "ENOENT"
    found = hidden(mount)
    assert {*(each.name for each in FAMILIES), REQUEST_SECONDS, INFO} == found.keys()
    assert total(found, "cafsfs_pulls", "_total") == 1
    assert total(found, "cafsfs_pulled_bytes", "_total") == SIZE
    assert total(found, "cafsfs_read_bytes", "_total", source="pull") == SIZE
    durations = "cafsfs_request_duration_seconds"
    assert total(found, durations, "_count", operation="read", result="ok") >= 1
    assert total(found, durations, "_count", operation="lookup", result="ENOENT") == 1
    assert 0 < total(found, durations, "_sum", operation="read", result="ok") < 60
    assert total(found, "cafsfs_server_requests", "_total", server=server.address) >= 1
    assert total(found, "cafsfs_handler_errors", "_total") == 0


def test_prometheus_scrapes_it_and_node_exporter_finds_it(
    mounting: Mounting, roots: Roots, scratch: Path
) -> None:
    textfile = scratch / "cafsfs.prom"
    mount = mounting(
        *("--metrics-listen", "127.0.0.1:0", "--metrics-textfile", textfile), uri=roots.uri
    )
    found = re.search(r"metrics are at (http://\S+)", mount.logged("metrics are at http"))
    assert found
    request = urllib.request.Request(found[1], headers={"Accept": "application/openmetrics-text"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        told = families(answer.read().decode())
    assert told.keys() == hidden(mount).keys()
    eventually(textfile.exists, what="the textfile is there")
    plain = {each.name for each in parse_plain(textfile.read_text())}
    assert plain == {f"{name}_info" if name == INFO else name for name in told}
    mount.stop()
    assert not textfile.exists()


def test_an_address_that_is_taken_keeps_no_mount_from_serving(
    mounting: Mounting, server: BadServerProcess
) -> None:
    mount = mounting("--metrics-listen", server.address)
    mount.announce(f"WARNING .*nobody can get metrics at {server.address}: ")
    mount.logged("nobody can get metrics")
    assert hidden(mount)


def test_a_textfile_that_node_exporter_would_not_read_is_refused(scratch: Path) -> None:
    command = (sys.executable, "-m", "cafsfs", "mount", "-o", "metrics_textfile=/tmp/x.txt")
    done = run(*command, f"file://{scratch}", scratch)
    assert done.code == 2
    assert "ends in .prom" in done.err


def test_counting_that_fails_fails_no_read(
    mounting: Mounting, server: BadServerProcess, blobs: BlobMaker
) -> None:
    blob = blobs.random(SIZE)
    server.put(blob.source)
    mount = mounting(program=(sys.executable, "-c", _BROKEN))
    run("cmp", mount.path(blob), blob.source).ok()
    assert mount.counters()["handler_errors"] > 0
    assert attempt("os.stat(a[0])", mount.point / ("0" * 64)) == "ENOENT"
