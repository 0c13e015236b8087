"""A mount of several servers: who is asked, what is absent, and what it tells of them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bad_server import BadServerProcess, Fault, Phase
from tests.cli.guides import documented
from tests.fuse.conftest import Mounting
from tests.fuse.mounted import Mounted
from tests.fuse.processes import attempt, eventually, run
from tests.fuse.serving import ROOT, Blob, BlobMaker

pytestmark = pytest.mark.fuse

MIB = 1 << 20
NEXT = "WARNING .*going on with the next server"
DOWN = "WARNING .*is down, the others are asked"
FAILED = "WARNING .*(lookup|read|open): "

THREE_READERS = """
for each in 1 2 3; do cmp "$1" "$2" & all="$all $!"; done
for each in $all; do wait $each || exit; done
"""


@pytest.fixture
def second(server: BadServerProcess) -> Iterator[BadServerProcess]:
    with BadServerProcess() as other:
        yield other


def group(*servers: BadServerProcess) -> str:
    """The first has the better priority, so that it is known who is asked first."""
    hosts = [f"{each.address};priority={number}" for number, each in enumerate(servers)]
    return f"cafs://{','.join(hosts)}{ROOT}"


@pytest.fixture
def mount(mounting: Mounting, server: BadServerProcess, second: BadServerProcess) -> Mounted:
    options = ("--lookup-timeout", "3", "--read-timeout", "20", "--verify-first", "1M")
    return mounting(*options, uri=group(server, second))


def states(mount: Mounted) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(run("cat", mount.point / ".cafsfs/servers").ok().out)
    return found


def error_of(mount: Mounted, blob: Blob) -> str:
    return str(attempt("os.getxattr(a[0], 'user.cafs.error').decode()", mount.path(blob)))


def test_what_one_has_not_the_other_has(
    mount: Mounted, server: BadServerProcess, second: BadServerProcess, blobs: BlobMaker
) -> None:
    here, there = blobs.random(5000), blobs.random(3 * MIB)
    server.put(here.source)
    second.put(there.source)
    for blob in (here, there):
        run("cmp", mount.path(blob), blob.source).ok()
    source = attempt("os.getxattr(a[0], 'user.cafs.source').decode()", mount.path(there))
    assert source == second.address
    assert error_of(mount, there) == "ENODATA"


def test_servers_tells_of_each(
    mount: Mounted, server: BadServerProcess, second: BadServerProcess, blobs: BlobMaker
) -> None:
    blob = blobs.random(3 * MIB)
    server.put(blob.source)
    run("cmp", mount.path(blob), blob.source).ok()
    eventually(
        lambda: all(each["seconds"] is not None for each in states(mount)),
        what="the times of all are measured",
    )
    first, other = states(mount)
    assert (first["name"], other["name"]) == (server.address, second.address)
    assert (first["priority"], other["priority"], first["zone"]) == (0, 1, None)
    assert (first["state"], first["reason"], first["down_for"]) == ("up", None, None)
    assert 0 < first["seconds"] < 1
    assert first["rate"] > MIB
    assert first["ranges"] == "unsound"  # as deployed servers' are
    assert first["requests"] >= 2
    assert (first["errors"], other["errors"], first["wrong_hashes"]) == (0, 0, 0)
    # It is no file that a listing or a copy finds.
    assert ".cafsfs" not in run("ls", "-a", mount.point).ok().text


def test_absent_is_what_all_have_said(
    mount: Mounted, server: BadServerProcess, second: BadServerProcess, blobs: BlobMaker
) -> None:
    absent, elsewhere = blobs.random(100), blobs.random(101)
    assert attempt("os.stat(a[0])", mount.path(absent)) == "ENOENT"
    mount.announce(DOWN)
    mount.announce(NEXT)
    mount.announce(FAILED)
    second.freeze()  # it accepts, and never answers
    began = time.monotonic()
    assert attempt("os.stat(a[0])", mount.path(elsewhere)) in {"EIO", "ETIMEDOUT"}
    eventually(lambda: states(mount)[1]["state"] == "down", what="the frozen one is down")
    assert attempt("os.stat(a[0])", mount.path(elsewhere)) == "EIO"
    assert time.monotonic() - began < 15
    assert "no greeting" in states(mount)[1]["reason"] or "no answer" in states(mount)[1]["reason"]
    mount.logged(f"{second.address} has been down")
    second.thaw()
    eventually(lambda: states(mount)[1]["state"] != "down", what="the other is back")
    eventually(
        lambda: attempt("os.stat(a[0])", mount.path(elsewhere)) == "ENOENT",
        what="both have said that it is absent",
    )


def test_the_error_of_a_file_says_who_failed_and_how(
    mount: Mounted, server: BadServerProcess, second: BadServerProcess, blobs: BlobMaker
) -> None:
    blob = blobs.random(3 * MIB)
    server.put(blob.source)
    server.fault(Phase.BODY, Fault(spoil=2 * MIB))
    mount.announce(NEXT)
    mount.announce(FAILED)
    assert documented("Input/output error").search(run("cat", mount.path(blob)).err)
    told = error_of(mount, blob)
    assert told.startswith("CorruptBlob: ")
    mount.logged(documented("going on with the next server").pattern)
    assert server.address in told
    assert states(mount)[0]["wrong_hashes"] >= 1
    server.mend()
    eventually(
        lambda: run("cmp", mount.path(blob), blob.source).code == 0, what="it is right again"
    )
    assert error_of(mount, blob) == "ENODATA"


@pytest.mark.parametrize(
    "fault",
    [Fault(after=2 * MIB, then="stall"), Fault(drip=(4000, 0.2))],
    ids=["stall", "drip"],
)
def test_a_pull_goes_on_elsewhere_and_readers_see_no_seam(
    mount: Mounted,
    server: BadServerProcess,
    second: BadServerProcess,
    blobs: BlobMaker,
    fault: Fault,
) -> None:
    """It is read as it comes, by several readers, when its server stalls or becomes slow."""
    blob = blobs.random(9 * MIB)
    for each in (server, second):
        each.put(blob.source)
    server.fault(Phase.BODY, fault)
    mount.announce(NEXT)
    began = time.monotonic()
    run("sh", "-c", THREE_READERS, "sh", mount.path(blob), blob.source).ok()
    assert time.monotonic() - began < 30
    first = states(mount)[0]
    assert (first["state"], first["left"]) == ("suspect", 1)
    assert mount.stats()["pulls_in_flight"] == 0


def test_fallen_back_on_the_other_and_back_again(
    mount: Mounted, server: BadServerProcess, second: BadServerProcess, blobs: BlobMaker
) -> None:
    mine = [blobs.random(1000 + number) for number in range(12)]
    for blob in mine:
        for each in (server, second):
            each.put(blob.source)
    run("cmp", mount.path(mine[0]), mine[0].source).ok()
    mount.announce(DOWN)
    mount.announce(NEXT)
    server.freeze()
    for blob in mine[1:6]:
        run("cmp", mount.path(blob), blob.source).ok()
    eventually(lambda: states(mount)[0]["state"] == "down", what="the frozen one is down")
    server.thaw()
    eventually(lambda: states(mount)[0]["state"] == "up", what="the better one is back")
    before = server.counts()["pulls"]
    for blob in mine[6:]:
        run("cmp", mount.path(blob), blob.source).ok()
    assert server.counts()["pulls"] - before == 6


def test_in_a_zone_the_servers_of_the_zone_are_asked(
    mounting: Mounting, server: BadServerProcess, second: BadServerProcess, blobs: BlobMaker
) -> None:
    blob = blobs.random(2 * MIB)
    for each in (server, second):
        each.put(blob.source)
    uri = f"cafs://{server.address};zone=us,{second.address};zone=eu{ROOT}?zone=eu"
    mount = mounting(uri=uri)
    before = server.counts()["commands"]
    run("cmp", mount.path(blob), blob.source).ok()
    assert server.counts()["commands"] == before
    assert second.counts()["pulls"] >= 1


def test_a_directory_has_no_servers(mounting: Mounting, tmp_path: Path) -> None:
    (tmp_path / "data/blobs").mkdir(parents=True)
    assert states(mounting(uri=f"file://{tmp_path}/data")) == []
