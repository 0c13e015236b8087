"""The log of a real mount: a line a pull, requests with their numbers, JSON, the journal."""

from __future__ import annotations

import json
import socket
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bad_server import BadServerProcess, Fault, Phase
from tests.fuse.conftest import Mounting
from tests.fuse.processes import cafsfs, run
from tests.fuse.serving import BlobMaker, Roots

pytestmark = pytest.mark.fuse

SIZE = 300_000

# Runs cafsfs with another socket of journald's, and its standard error taken for the journal's.
_JOURNALED = """
import os, sys
from pathlib import Path
from cafsfs.cli.app import invoke
from cafsfs.report import journal

class Told(journal.JournalHandler):
    def emit(self, record):
        super().emit(record)
        if record.getMessage().startswith("mounted "):
            os.write(2, b"2026-01-01 00:00:00,000 INFO told: mounted cafs:\\n")

journal.SOCKET, journal.JournalHandler = Path(sys.argv[1]), Told
behind = os.fstat(2)
os.environ["JOURNAL_STREAM"] = f"{behind.st_dev}:{behind.st_ino}"
sys.exit(invoke(sys.argv[2:]))
"""


def test_each_pull_has_one_line(
    mounting: Mounting, server: BadServerProcess, blobs: BlobMaker
) -> None:
    good, wrong = blobs.random(SIZE), blobs.random(SIZE)
    server.put(good.source)
    server.put(wrong.source)
    mount = mounting()
    mount.announce("WARNING .*")
    for _ in range(2):
        run("cmp", mount.path(good), good.source).ok()
    server.fault(Phase.BODY, Fault(spoil=SIZE // 2))
    assert run("cmp", mount.path(wrong), wrong.source).code
    mount.stop()
    lines = [each for each in mount.log.read_text().splitlines() if " pull" in each]
    assert sum(good.hash in each for each in lines) == 1
    assert f"pulled {good.hash}: {SIZE} bytes from {server.address} in " in lines[0]


def test_requests_have_numbers_at_debug(
    mounting: Mounting, server: BadServerProcess, blobs: BlobMaker
) -> None:
    blob = blobs.random(SIZE)
    server.put(blob.source)
    mount = mounting("--log-level=debug", "--log-format=json")
    mount.announce(r"^\{")
    run("cmp", mount.path(blob), blob.source).ok()
    mount.stop()
    told = [json.loads(line) for line in mount.log.read_text().splitlines()]
    requests = [each for each in told if "request" in each and each["level"] == "debug"]
    counted = Counter(each["request"] for each in requests)
    assert set(counted.values()) == {2}  # it came, it was answered
    assert {"lookup", "open", "read"} <= {each["operation"] for each in requests}
    assert {each.get("result") for each in requests if each["operation"] == "read"} == {None, "ok"}
    pulled = next(each for each in told if each.get("hash") == blob.hash)
    assert (pulled["bytes"], pulled["server"]) == (SIZE, server.address)
    assert {each["mountpoint"] for each in told} == {str(mount.point)}


@pytest.fixture
def journal() -> Iterator[socket.socket]:
    with (
        tempfile.TemporaryDirectory() as directory,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made,
    ):
        made.bind(f"{directory}/socket")
        made.settimeout(30)
        yield made


def fields(journal: socket.socket) -> dict[str, str]:
    """Those of one line; what has several is left out."""
    lines = journal.recv(1 << 16).decode(errors="replace").splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


def test_under_systemd_lines_go_to_the_journal_with_their_fields(
    mounting: Mounting, server: BadServerProcess, blobs: BlobMaker, journal: socket.socket
) -> None:
    blob = blobs.random(SIZE)
    server.put(blob.source)
    mount = mounting(program=(sys.executable, "-c", _JOURNALED, journal.getsockname()))
    told = fields(journal)
    while not told["MESSAGE"].startswith("mounted "):
        told = fields(journal)
    run("cmp", mount.path(blob), blob.source).ok()
    while not told["MESSAGE"].startswith("pulled "):
        told = fields(journal)
    assert told["PRIORITY"] == "6"
    assert told["CAFSFS_HASH"] == blob.hash
    assert told["CAFSFS_BYTES"] == str(SIZE)
    assert told["CAFSFS_SERVER"] == server.address
    assert told["CAFSFS_MOUNTPOINT"] == str(mount.point)
    assert told["LOGGER"] == "cafsfs.store.read_caching"
    assert "pulled" not in mount.log.read_text()


def test_options_of_the_log_that_are_none(roots: Roots, scratch: Path) -> None:
    done = cafsfs("mount", "--log-format", "xml", roots.uri, scratch)
    assert done.code == 2
    assert "one of auto, human, json" in done.err
