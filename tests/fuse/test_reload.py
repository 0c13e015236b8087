"""A live mount changes what it can: by a command, by SIGHUP; SIGUSR1 has it tell what it does."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import pytest

from cafsfs.control import ask, live_sockets
from tests.bad_server import BadServerProcess
from tests.fuse.conftest import Mounting
from tests.fuse.mounted import learn_size
from tests.fuse.processes import attempting, cafsfs, eventually, pids_of, run
from tests.fuse.serving import BlobMaker, Roots, Served

pytestmark = pytest.mark.fuse

SIZE = 600_000


def test_options_of_a_command_change_a_live_mount(mounting: Mounting, roots: Roots) -> None:
    mount = mounting(uri=roots.uri)
    done = cafsfs("reload", mount.point, "-o", "cache_size=5M,log_level=debug,uid=7").ok()
    lines = done.text.splitlines()
    assert "--cache-size: 20G -> 5M" in lines
    assert "--log-level: info -> debug" in lines
    assert "--uid: not while it is mounted, the kernel was told when it was mounted" in lines
    assert mount.stats()["cache"]["bound_bytes"] == 5 << 20
    mount.announce("WARNING .*reloaded: uid stays as it was until it is mounted anew")
    assert "reloaded: cache-size is 5M now, and was 20G" in mount.logged(r"request \d+: read\(")
    told = json.loads(cafsfs("reload", mount.point, "-o", "cache_size=6M", "--json").ok().out)
    assert told["changed"] == {"cache_size": ["5M", "6M"]}
    refused = cafsfs("reload", mount.point, "-o", "cache_size=much")
    assert (refused.code, "`much` is no value for --cache-size" in refused.err) == (1, True)
    assert mount.stats()["cache"]["bound_bytes"] == 6 << 20
    absent = cafsfs("reload", mount.cache)
    assert (absent.code, "no mount of ours answers" in absent.err) == (1, True)


def test_sighup_reads_the_file_again_and_asks_its_servers(
    mounting: Mounting, scratch: Path, blobs: BlobMaker
) -> None:
    """A pull that is under way ends where it began."""
    first, second = Roots(scratch / "first"), Roots(scratch / "second")
    blob, other = first.put(blobs.random(SIZE)), second.put(blobs.random(SIZE))
    toml = scratch / "cafsfs.toml"
    with (
        Served(first, scratch / "first.log") as one,
        Served(second, scratch / "second.log") as two,
    ):
        table = '[[server]]\naddress = "{}"\n'
        toml.write_text(table.format(one.address))
        mount = mounting("--config", os.path.relpath(toml, Path.cwd()), uri="cafs:///data")
        run("cmp", mount.path(blob), blob.source).ok()
        toml.write_text('cache-files = 7\nlog-level = "warning"\n' + table.format(two.address))
        mount.daemon.signal(signal.SIGHUP)
        mount.logged("reloaded: servers is")
        run("cmp", mount.path(other), other.source).ok()
        assert [each["name"] for each in mount.stats()["servers"]["members"]] == [two.address]
        mount.announce("ERROR .*nothing is changed: `.*` is not TOML")
        toml.write_text("this is no TOML")
        mount.daemon.signal(signal.SIGHUP)
        mount.logged("nothing is changed")
        run("cmp", mount.path(other), other.source).ok()


def test_a_log_that_was_moved_is_opened_anew(scratch: Path, roots: Roots) -> None:
    """In the background, where nobody reads standard error, and relative paths mean the same."""
    point, log = scratch / "mnt", scratch / "mount.log"
    point.mkdir()
    options = (
        "--log-file",
        os.path.relpath(log),
        "--cache-dir",
        os.path.relpath(scratch / "cache"),
    )
    try:
        cafsfs("mount", *options, roots.uri, point).ok()
        log.rename(scratch / "moved")
        cafsfs("reload", point).ok()
        eventually(log.exists, what="another file is there")
        assert "reloaded: nothing has changed" in log.read_text()
        assert "mounted " in (scratch / "moved").read_text()
    finally:
        cafsfs("unmount", point)
        eventually(lambda: not pids_of(str(point)), what="the daemon has ended")


def test_sigusr1_tells_what_the_process_does(
    mounting: Mounting, server: BadServerProcess, blobs: BlobMaker
) -> None:
    blob = blobs.random(SIZE)
    server.put(blob.source)
    mount = mounting("--read-timeout=60", "--connect-timeout=60")
    mount.announce(".*")
    learn_size(mount, server, blob)
    server.freeze()
    with attempting("len(os.read(os.open(a[0], 0), 9))", mount.path(blob)):
        # Not by the number of requests: one that closes the last look at these may be among them.
        eventually(
            lambda: [each["waiting"] for each in mount.stats()["inflight"]] == [1],
            what="a reader waits",
        )
        cafsfs("reload", mount.point, "-o", "log_level=error").ok()
        mount.daemon.signal(signal.SIGUSR1)
        log = mount.logged("obey_signals")
        # A server that resets does not take back what it has sent: a part may be there.
        assert re.search(rf"{blob.hash} \d+ of {SIZE} bytes", log), log
        for part in (
            " read for ",
            f"<RemoteStore {server.address}",
            "cache: CacheUsage",
            "ReadCachingStore._load: ",
        ):
            assert part in log, part
        [path] = [each for each in live_sockets() if each.stem == str(mount.daemon.pid)]
        assert blob.hash in ask(path, {"command": "dump"})["dump"]
        server.thaw()
