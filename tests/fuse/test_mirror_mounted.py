"""A mount whose servers are dead, or have not got the blob, reads it from an HTTP mirror."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cafsfs.packing import Compression
from tests.bad_server import BadServerProcess
from tests.fuse.conftest import Mounting
from tests.fuse.mounted import Mounted
from tests.fuse.processes import attempt, run
from tests.fuse.serving import Blob, BlobMaker
from tests.store.samples import packed
from tests.web_server import WebServerThread, web_server

pytestmark = pytest.mark.fuse

MIB = 1 << 20
DOWN = "WARNING .* is down, the others are asked"
NEXT = "WARNING .*going on with the next server"


@pytest.fixture
def web(scratch: Path) -> Iterator[WebServerThread]:
    with web_server(scratch / "web") as server:
        yield server


@pytest.fixture
def nobody() -> str:
    """A URI of a server that is not there."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return f"cafs://127.0.0.1:{sock.getsockname()[1]}/data"


def template(web: WebServerThread) -> str:
    return f"{web.url}/{{ab}}/{{cd}}/{{hash}}"


def is_right(mount: Mounted, blob: Blob) -> bool:
    same = "open(a[0], 'rb').read() == open(a[1], 'rb').read()"
    return attempt(same, mount.path(blob), blob.source) is True


def source_of(mount: Mounted, blob: Blob) -> object:
    return attempt("os.getxattr(a[0], 'user.cafs.source').decode()", mount.path(blob))


@pytest.mark.parametrize("size", [1000, 5 * MIB, 70 * MIB])
@pytest.mark.parametrize("is_packed", [False, True], ids=["as it is", "packed"])
def test_dead_servers(
    mounting: Mounting,
    blobs: BlobMaker,
    web: WebServerThread,
    nobody: str,
    size: int,
    is_packed: bool,
) -> None:
    blob, absent = blobs.random(size), blobs.random(10)
    content = blob.content
    web.put(blob.hash, packed(content, Compression.ZSTD) if is_packed else content)
    web.faults.breaks_at = [2 * MIB]
    mount = mounting("--log-level", "debug", uri=f"{nobody}?mirror={template(web)}")
    mount.announce(DOWN)
    mount.announce(NEXT)
    assert attempt("os.stat(a[0]).st_size", mount.path(blob)) == size
    assert is_right(mount, blob)
    assert source_of(mount, blob) == web.url
    states = json.loads(run("cat", mount.point / ".cafsfs/servers").ok().out)
    assert [(each["name"], each["state"]) for each in states][1:] == [(web.url, "up")]
    # What the mirror has not may be on a server: nobody knows.
    mount.announce("WARNING .*(lookup|getattr|open|read): ")
    began = time.monotonic()
    assert attempt("open(a[0])", mount.path(absent)) in {"EIO", "ETIMEDOUT"}
    assert time.monotonic() - began < 7


def test_a_server_that_has_not_got_it(
    mounting: Mounting, blobs: BlobMaker, web: WebServerThread, server: BadServerProcess
) -> None:
    blob, served, absent = blobs.random(MIB), blobs.random(MIB), blobs.random(10)
    web.put(blob.hash, blob.content)
    server.put(served.source)
    mount = mounting("--mirror", template(web))
    assert is_right(mount, blob)
    assert is_right(mount, served)
    assert source_of(mount, blob) == web.url
    assert source_of(mount, served) == server.address
    assert not any(served.hash in path for _, path, _ in web.log)
    assert attempt("open(a[0])", mount.path(absent)) == "ENOENT"


def test_a_captive_portal(
    mounting: Mounting, blobs: BlobMaker, web: WebServerThread, nobody: str
) -> None:
    """It has a page for any name: none of them is a file of that size."""
    mount = mounting(uri=f"{nobody}?mirror={template(web)}")
    mount.announce(DOWN)
    mount.announce(NEXT)
    mount.announce("WARNING .*(lookup|getattr|open|read): ")
    mount.announce("WARNING .*failing at once until a server can be reached: .* nobody has")
    for page in (b"<html>Welcome</html>", blobs.random(MIB).content):
        web.faults.answers_all = page
        absent: Blob = blobs.random(10)
        assert attempt("open(a[0])", mount.path(absent)) in {"EIO", "ETIMEDOUT"}


def test_no_password_is_shown(
    mounting: Mounting, blobs: BlobMaker, web: WebServerThread, nobody: str
) -> None:
    blob = blobs.random(1000)
    web.put(blob.hash, blob.content)
    mirror = template(web).replace("://", "://me:geheim@").replace("/{hash}", "/{hash}?key=geheim")
    mount = mounting("--log-level", "debug", uri=f"{nobody}?mirror={mirror}")
    mount.announce(DOWN)
    mount.announce(NEXT)
    assert is_right(mount, blob)
    assert web.log[-1][2]["authorization"] == "Basic bWU6Z2VoZWlt"
    shown = [mount.log.read_text(), Path("/proc/self/mountinfo").read_text(), str(mount.stats())]
    assert not any("geheim" in each for each in shown)
