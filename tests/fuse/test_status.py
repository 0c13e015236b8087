"""`cafsfs status` and `cafsfs mounts`, of mounts that live, hang, are frozen or dead."""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.bad_server import BadServerProcess
from tests.fuse.conftest import Mounting
from tests.fuse.mounted import Mounted, learn_size
from tests.fuse.processes import (
    CAFSFS,
    Process,
    attempting,
    cafsfs,
    descriptors_of,
    eventually,
    run,
)
from tests.fuse.serving import BlobMaker, Roots

pytestmark = pytest.mark.fuse

SIZE = 600_000
READ = "len(os.read(os.open(a[0], 0), 9))"
AT_ONCE = 1.0  # second that an answer may take, beyond the start of the interpreter


def told(mount: Mounted) -> dict[str, Any]:
    """What `cafsfs status --json` tells of it."""
    status: dict[str, Any] = json.loads(cafsfs("status", mount.point, "--json").ok().out)
    return status


def listed() -> dict[str, dict[str, Any]]:
    found = json.loads(cafsfs("mounts", "--json").ok().out)
    return {each["mountpoint"]: each for each in found}


def test_it_tells_of_reads_from_cache_and_pulls(
    mount: Mounted, server: BadServerProcess, blobs: BlobMaker
) -> None:
    blob = blobs.random(SIZE)
    server.put(blob.source)
    for _ in range(2):
        run("cmp", mount.path(blob), blob.source).ok()
        run("dd", f"if={mount.path(blob)}", "of=/dev/null", "iflag=nocache", "count=0").ok()
    status = told(mount)
    assert (status["state"], status["pid"]) == ("live", mount.daemon.pid)
    assert status["hit_rate"] > 0
    assert status["bytes"]["received"] > SIZE
    assert status["bytes"]["read"] >= SIZE
    assert status["servers"]["members"][0]["name"] == server.address
    assert status["servers"]["members"][0]["requests"] > 0
    assert status["kernel"]["minor"] == mount.minor
    assert status["counters"]["handler_errors"] == 0
    assert status["mountpoint"] in listed()


def test_people_read_it_too(mount: Mounted, server: BadServerProcess, blobs: BlobMaker) -> None:
    blob = blobs.random(SIZE)
    server.put(blob.source)
    run("cmp", mount.path(blob), blob.source).ok()
    text = cafsfs("status", mount.point).ok().text
    assert text.startswith(f"{mount.point}  cafs://{server.address}/data\n  state     live, pid ")
    for part in (
        "hit rate",
        "in flight",
        "max_background 256",
        server.address,
        "errors    none",
        "M held",
    ):
        assert part in text, text
    assert str(mount.point) in cafsfs("mounts").ok().text


def test_a_mount_whose_readers_hang_answers_at_once(
    mounting: Mounting, server: BadServerProcess, blobs: BlobMaker
) -> None:
    """The server is frozen, and a reader waits."""
    blob = blobs.random(SIZE)
    server.put(blob.source)
    mount = mounting("--read-timeout=60", "--lookup-timeout=60", "--connect-timeout=60")
    mount.announce("WARNING .*")
    learn_size(mount, server, blob)
    server.freeze()
    with attempting(READ, mount.path(blob)) as reader:
        lookup = attempting("os.stat(a[0])", mount.point / ("0" * 64))
        with lookup:
            eventually(lambda: mount.waiting > 1, what="both wait")
            bare = run(sys.executable, "-c", "import cafsfs.cli.app").seconds
            done = cafsfs("status", mount.point, "--json").ok()
            assert done.seconds < bare + AT_ONCE
            status = json.loads(done.out)
            [pull] = [each for each in status["inflight"] if each["hash"] == blob.hash]
            assert (pull["size"], pull["waiting"]) == (SIZE, 1)
            assert pull["bytes"] < SIZE
            assert pull["pids"] == [reader.pid]
            assert status["requests"]["waiting"] >= 2
            assert status["waiting_in_kernel"] >= 2
            text = cafsfs("status", mount.point).ok().text
            assert f"[{reader.pid}]" in text
            assert blob.hash in text
            same = json.loads(run("cat", mount.point / ".cafsfs/inflight").ok().out)
            assert [each["hash"] for each in same] == [blob.hash]
            server.thaw()
            lookup.finish()


def test_what_was_complained_of_is_told(
    mounting: Mounting, server: BadServerProcess, blobs: BlobMaker
) -> None:
    blob = blobs.random(1000)
    mount = mounting("--read-timeout=1", "--lookup-timeout=1", "--connect-timeout=1")
    mount.announce("WARNING .*")
    server.freeze()
    run("stat", mount.path(blob))
    complaints = {each["message"]: each["level"] for each in told(mount)["last_errors"]}
    assert [level for said, level in complaints.items() if said.startswith("lookup: ")] == [
        "WARNING"
    ]
    assert "errors    none" not in cafsfs("status", mount.point).text


def test_a_frozen_daemon_is_silent_and_a_killed_one_dead(
    mounting: Mounting, scratch: Path, roots: Roots
) -> None:
    mount = mounting(uri=roots.uri)
    pid = mount.daemon.pid
    tells = any(
        "fuse_connection" in Path(f"/proc/{pid}/fdinfo/{number}").read_text()
        for number, to in descriptors_of(pid).items()
        if to == "/dev/fuse"
    )
    mount.daemon.signal(signal.SIGSTOP)
    began = time.monotonic()
    done = cafsfs("status", mount.point)
    assert time.monotonic() - began < 10
    assert done.code == 1
    if tells:  # since Linux 6.16
        assert f"silent: its process does not answer, pid {pid}" in done.text
        assert "T (stopped)" in done.text
        assert listed()[str(mount.point)]["state"] == "silent"
    else:
        assert listed()[str(mount.point)]["state"] == "unknown"
    mount.daemon.signal(signal.SIGKILL)
    assert mount.daemon.ended(10)
    done = cafsfs("status", mount.point)
    assert (done.code, "dead: " in done.text) == (1, True)
    state = json.loads(cafsfs("status", mount.point, "--json").out)
    assert (state["state"], state["pid"]) == ("dead", None)


def test_a_mount_that_was_detached_is_hidden_and_one_that_is_none_is_said(
    mounting: Mounting, roots: Roots, scratch: Path
) -> None:
    mount = mounting(uri=roots.uri)
    with attempting("time.sleep(60 * (os.open(a[0], 0) > 0))", mount.point / ".cafsfs/version"):
        eventually(lambda: told(mount)["filesystem"]["open_handles"] > 0, what="it is open")
        cafsfs("unmount", "--lazy", mount.point).ok()
        assert listed()[str(mount.point)]["state"] == "hidden"
        assert told(mount)["state"] == "hidden"
    refused = cafsfs("status", scratch)
    assert (refused.code, "nothing is mounted on" in refused.err) == (1, True)
    refused = cafsfs("status", "/proc")
    assert (refused.code, "not one of cafsfs" in refused.err) == (1, True)


def test_watching_goes_on(mount: Mounted) -> None:
    with Process(*CAFSFS, "status", mount.point, "--json", "--watch") as watching:
        eventually(lambda: _lines(watching) >= 2, what="two lines have come")
        assert watching.runs
        watching.signal(signal.SIGINT)
        done = watching.finish()
    assert all(json.loads(line)["state"] == "live" for line in done.text.splitlines())


def _lines(process: Process) -> int:
    return Path(f"/proc/{process.pid}/fd/1").read_bytes().count(b"\n")


def test_a_mount_with_its_socket_elsewhere_is_found_by_its_process(
    mounting: Mounting, roots: Roots, scratch: Path
) -> None:
    """One that cron or a user's session has started has another runtime directory than we have."""
    mount = mounting(uri=roots.uri, env={"CAFSFS_RUNTIME_DIR": str(scratch / "else where")})
    assert told(mount)["state"] == "live"
    assert listed()[str(mount.point)]["pid"] == mount.daemon.pid
    assert cafsfs("reload", mount.point).ok().text == "nothing has changed\n"
    mount.stop()


def test_the_mount_on_top_is_meant_and_not_a_hidden_one(
    mounting: Mounting, roots: Roots, scratch: Path
) -> None:
    former = mounting(uri=roots.uri)
    with attempting("time.sleep(60 * (os.open(a[0], 0) > 0))", former.point / ".cafsfs/version"):
        eventually(lambda: told(former)["filesystem"]["open_handles"] > 0, what="it is open")
        cafsfs("unmount", "--lazy", former.point).ok()
        mount = mounting(uri=roots.uri)
        assert told(mount)["pid"] == mount.daemon.pid != former.daemon.pid
        states = [each["state"] for each in json.loads(cafsfs("mounts", "--json").ok().out)]
        assert states.count("hidden") == 1
