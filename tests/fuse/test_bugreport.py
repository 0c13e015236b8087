"""``cafsfs bugreport`` of real mounts: what it packs, and that no secret is in it."""

from __future__ import annotations

import json
import signal
import stat
import tarfile
from pathlib import Path

import pytest

from tests.bad_server import BadServerProcess
from tests.fuse.conftest import Mounting
from tests.fuse.processes import Process, attempting, cafsfs, eventually
from tests.fuse.serving import BlobMaker

pytestmark = pytest.mark.fuse

SECRET = "correct-horse-battery"  # that is the point
PASSWORD = "hunter2"
TOKEN = "t0ken"
MIRROR = f"http://me:{PASSWORD}@127.0.0.1:9/{TOKEN}/{{hash}}"


def report(scratch: Path, *words: str | Path) -> dict[str, bytes]:
    """The files of a report, by their names."""
    path = scratch / "report.tar.gz"
    done = cafsfs("bugreport", "-o", path, *words).ok()
    assert done.text == f"{path}\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with tarfile.open(path) as tar:
        files = {}
        for each in tar:
            member = tar.extractfile(each)
            assert member is not None
            files[each.name.removeprefix("report/")] = member.read()
    path.unlink()
    return files


def test_all_there_is_to_know_and_no_secret(mounting: Mounting, scratch: Path) -> None:
    secret = scratch / "secret"
    secret.write_text(f"{SECRET}\n")
    secret.chmod(0o600)
    config = scratch / "mount.toml"
    config.write_text(f'secret-file = "{secret}"\nmirror = "{MIRROR}"\nzone = "{SECRET}"\n')
    mount = mounting("--config", config, "--mirror", MIRROR)
    mount.announce("WARNING .*offers no authentication, though we have a secret")
    files = report(scratch, mount.point, "--config", config)
    pid = mount.daemon.pid
    assert {f"{pid}/tasks.txt", f"{pid}/process.txt", f"{pid}/log.txt"} <= files.keys()
    assert json.loads(files["versions.json"])["cafsfs"]
    (status,) = json.loads(files["status.json"])
    assert status["mountpoint"] == str(mount.point)
    assert status["state"] == "live"
    assert json.loads(files["config.json"])["secret-file"]["value"] == str(secret)
    assert "findings" in json.loads(files["doctor.json"])
    assert str(mount.point) in files["mountinfo.txt"].decode()
    assert b" mounted cafs://" in files[f"{pid}/log.txt"]
    assert b"thread " in files[f"{pid}/process.txt"]
    assert b"--mirror http://127.0.0.1:9/[hidden]" in files[f"{pid}/process.txt"]
    whole = b"\0".join(files.values())
    for each in (SECRET, SECRET.encode().hex(), PASSWORD, TOKEN):
        assert each.encode() not in whole


def test_no_content_of_a_blob_is_in_it(
    mounting: Mounting, server: BadServerProcess, blobs: BlobMaker, scratch: Path
) -> None:
    blob = blobs.text(300_000)
    server.put(blob.source)
    mount = mounting()
    with Process("tail", "-f", mount.path(blob)):
        eventually(lambda: mount.stats()["filesystem"]["open_handles"], what="it is open")
        files = report(scratch, mount.point)
    mount.stop()
    assert not any(blob.content[:40] in each for each in files.values())


def test_a_hung_mount_is_reported_without_touching_it(mounting: Mounting, scratch: Path) -> None:
    mount = mounting()
    mount.daemon.signal(signal.SIGSTOP)
    with attempting("os.listdir(a[0])", mount.point / "blake3") as reader:
        files = report(scratch, mount.point)
        assert reader.runs
        mount.daemon.signal(signal.SIGCONT)
        assert reader.ended(10)
    (status,) = json.loads(files["status.json"])
    assert status["state"] == "silent"
    assert b"does not tell" in files[f"{mount.daemon.pid}/tasks.txt"]
    assert b"State:\tT (stopped)" in files[f"{mount.daemon.pid}/process.txt"]
    assert b" mounted " in files[f"{mount.daemon.pid}/log.txt"]


def test_what_is_there_already_is_not_overwritten(scratch: Path) -> None:
    path = scratch / "report.tar.gz"
    path.write_text("another")
    done = cafsfs("bugreport", "-o", path)
    assert done.code == 1
    assert f"cannot write the report `{path}`: File exists" in done.err
    assert path.read_text() == "another"


def test_a_configuration_that_is_wrong_is_reported(scratch: Path) -> None:
    config = scratch / "wrong.toml"
    config.write_text("cache-sise = 5\n")
    files = report(scratch, "--config", config)
    assert b"`cache-sise` is not an option" in files["config.json"]


def test_where_nothing_of_ours_is_mounted(scratch: Path) -> None:
    done = cafsfs("bugreport", scratch)
    assert (done.code, done.err.splitlines()[0]) == (
        1,
        f"error: no mount of cafsfs is on `{scratch}`",
    )
