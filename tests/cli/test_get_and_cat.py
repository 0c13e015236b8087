"""``cafsfs get`` and ``cat``: all of a blob, verified, or nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from cafsfs.digest import Digest
from tests.cli.running import ABSENT, CAFSFS, Serving, end, environment, run, start
from tests.cli.slow_line import SlowLine

pytestmark = pytest.mark.process

CONTENT = bytes(range(256)) * 5000  # more than a pipe holds


@pytest.fixture(scope="module")
def blob(server: Serving, tmp_path_factory: pytest.TempPathFactory) -> Digest:
    return server.put(tmp_path_factory.mktemp("blob"), CONTENT)


@pytest.fixture(scope="module")
def spoiled(server: Serving, tmp_path_factory: pytest.TempPathFactory) -> Digest:
    """A blob whose last byte the server has wrong."""
    content = b"spoiled" + CONTENT
    digest = server.put(tmp_path_factory.mktemp("spoiled"), content)
    stored = server.path_of(digest)
    stored.write_bytes(stored.read_bytes()[:-1] + b"!")
    return digest


# --- get


def test_a_blob_is_named_by_its_hash(server: Serving, blob: Digest, tmp_path: Path) -> None:
    assert run("get", server.uri, blob.hex, cwd=tmp_path).ok().out == b""
    assert os.listdir(tmp_path) == [blob.hex]
    assert (tmp_path / blob.hex).read_bytes() == CONTENT


@pytest.mark.parametrize("compression", ["zstd", "zlib"])
def test_what_was_compressed_comes_back(server: Serving, tmp_path: Path, compression: str) -> None:
    content = compression.encode() + CONTENT
    digest = server.put(tmp_path, content, "--compression", compression)
    run("get", server.uri, digest.hex, "-o", "out", cwd=tmp_path).ok()
    assert (tmp_path / "out").read_bytes() == content


def test_an_empty_blob_is_an_empty_file(server: Serving, tmp_path: Path) -> None:
    digest = server.put(tmp_path, b"")
    run("get", server.uri, digest.hex, "-o", "out", cwd=tmp_path).ok()
    assert (tmp_path / "out").read_bytes() == b""


def test_a_file_is_replaced(server: Serving, blob: Digest, tmp_path: Path) -> None:
    (tmp_path / "old").write_text("old")
    run("get", server.uri, blob.hex, "-o", "old", cwd=tmp_path).ok()
    assert (tmp_path / "old").read_bytes() == CONTENT


@pytest.mark.parametrize("target", ["new/file", "file/out", "/dev/null/out"])
def test_no_directory_is_made_by_a_slip_of_the_pen(
    server: Serving, blob: Digest, tmp_path: Path, target: str
) -> None:
    (tmp_path / "file").touch()
    done = run("get", server.uri, blob.hex, "--output", target, cwd=tmp_path)
    assert done.code == 2
    assert done.complaint() == f"`{Path(target).parent}` is not a directory"
    assert done.hint().startswith("is the path right?")
    assert os.listdir(tmp_path) == ["file"]


def test_an_absent_blob_leaves_no_file(server: Serving, tmp_path: Path) -> None:
    done = run("get", server.uri, ABSENT.hex, "-o", "out", cwd=tmp_path)
    assert done.code == 1
    assert done.complaint() == f"blob {ABSENT} not found"
    assert done.hint().startswith("is `/data` the right root?")
    assert os.listdir(tmp_path) == []


def test_wrong_bytes_leave_the_old_file(server: Serving, spoiled: Digest, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("old")
    done = run("get", server.uri, spoiled.hex, "-o", "out", cwd=tmp_path)
    assert done.code == 1
    assert "hashes to" in done.complaint()
    assert os.listdir(tmp_path) == ["out"]
    assert (tmp_path / "out").read_text() == "old"


def test_a_directory_is_no_target(server: Serving, blob: Digest, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    done = run("get", server.uri, blob.hex, "-o", "there", cwd=tmp_path)
    assert done.code == 2
    assert done.complaint() == "`there` is a directory"
    assert done.hint() == f"name a file: -o there/{blob}"
    run("get", server.uri, blob.hex, "-o", f"there/{blob}", cwd=tmp_path).ok()


def test_a_target_that_cannot_be_written(server: Serving, blob: Digest, tmp_path: Path) -> None:
    done = run("get", server.uri, blob.hex, "-o", "/proc/out", cwd=tmp_path)
    assert done.code == 1
    assert done.complaint().startswith("cannot write `/proc/out`: ")
    assert done.hint() == "name another file with -o"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_who_is_interrupted_clears_up(
    server: Serving, blob: Digest, tmp_path: Path, number: signal.Signals
) -> None:
    with SlowLine(server.address, 64 << 10) as line:
        command = ("get", f"cafs://{line.address}/data", blob.hex, "-o", "out")
        with start(*command, cwd=tmp_path, stderr=subprocess.PIPE) as getting:
            while not os.listdir(tmp_path):
                time.sleep(0.01)
            assert end(getting, number) == 128 + signal.SIGINT
            assert getting.stderr is not None
            assert b"Traceback" not in getting.stderr.read()
    assert os.listdir(tmp_path) == []


# --- cat


def test_cat_writes_the_content_and_nothing_else(server: Serving, blob: Digest) -> None:
    assert run("cat", server.uri, blob.hex).ok().out == CONTENT


def test_an_absent_blob_has_no_output(server: Serving) -> None:
    done = run("cat", server.uri, ABSENT.hex)
    assert (done.code, done.out) == (1, b"")
    assert done.complaint() == f"blob {ABSENT} not found"


def test_wrong_bytes_reach_nobody(server: Serving, spoiled: Digest) -> None:
    done = run("cat", server.uri, spoiled.hex)
    assert (done.code, done.out) == (1, b"")
    assert "hashes to" in done.complaint()


def test_head_is_enough_for_some(server: Serving, blob: Digest) -> None:
    with subprocess.Popen(
        [*CAFSFS, "cat", server.uri, blob.hex],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    ) as cat:
        assert cat.stdout is not None
        assert cat.stdout.read(1) == CONTENT[:1]
        cat.stdout.close()
        assert cat.stderr is not None
        assert cat.stderr.read() == b""
    assert cat.returncode == 1


def test_output_that_cannot_be_written_is_said_once(server: Serving, blob: Digest) -> None:
    with Path("/dev/full").open("wb") as full:
        for command in (("cat", blob.hex), ("stat", blob.hex), ("check", blob.hex)):
            done = run(command[0], server.uri, command[1], stdout=full)
            assert done.code in {1, 3}
            assert done.complaint() == "cannot write to standard output: No space left on device"


def test_a_closed_output_is_not_mistaken_for_another_file(server: Serving, blob: Digest) -> None:
    command = [*CAFSFS, "cat", server.uri, blob.hex]
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *command],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == "error: cannot write to standard output: it is closed\n"


def test_a_place_for_the_spool_is_needed(server: Serving, blob: Digest, tmp_path: Path) -> None:
    limited = ["sh", "-c", 'ulimit -f 1; exec "$@"', "sh", *CAFSFS, "cat", server.uri, blob.hex]
    done = subprocess.run(
        limited, capture_output=True, text=True, env=environment(TMPDIR=str(tmp_path)), check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "error: cannot keep the blob: File too large\n\nhint: set TMPDIR to a disk with space\n"
    )


# --- several servers


def test_the_next_server_is_asked_without_a_word(
    server: Serving, blob: Digest, tmp_path: Path
) -> None:
    uri = f"cafs://127.0.0.1:1,{server.address}/data"
    run("get", uri, blob.hex, "-o", "out", cwd=tmp_path).ok()
    assert run("cat", uri, blob.hex).ok().out == CONTENT
    run("check", uri, blob.hex).ok()
    run("stat", uri, blob.hex).ok()
    loud = run("cat", uri, blob.hex, "--log-level", "warning")
    assert loud.code == 0
    assert "WARNING" in loud.err
    assert "going on with the next server" in loud.err
    told = run("cat", uri, blob.hex, env={"CAFSFS_LOG_LEVEL": "warning"})
    assert "going on with the next server" in told.err
