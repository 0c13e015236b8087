"""``cafsfs serve``: what it says, when it refuses, how it ends."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.cli.guides import documented
from tests.cli.running import ABSENT, Serving, end, environment, run, start

pytestmark = pytest.mark.process


@contextmanager
def serving(
    *arguments: str | Path, **options: Any
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """The server, when it listens, and where; it says so on standard error."""
    process = start("serve", *arguments, stderr=subprocess.PIPE, **options)
    try:
        assert process.stderr is not None
        said = process.stderr.readline().decode()
        found = re.search(r" INFO cafsfs\.cli\.serve: serving (\S+) on (\S+)$", said)
        assert found is not None, said
        yield process, found[2]
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def store(tmp_path: Path) -> Path:
    (tmp_path / "store" / "data").mkdir(parents=True)
    return tmp_path / "store"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(store: Path, number: signal.Signals) -> None:
    with serving(store, "--listen", "127.0.0.1:0") as (server, address):
        host, _, port = address.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=10) as client:
            assert client.recv(20) == b"BLOBPUSH_SERVER_V001"
            assert end(server, number) == 0
        assert server.stderr is not None
        said = server.stderr.read().decode()
    assert "stopping: transfers have 10 s to finish" in said
    assert "Traceback" not in said
    assert "ERROR" not in said


def test_a_port_in_use_is_said(store: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = run("serve", store, "--listen", address)
    assert done.code == 1
    assert done.complaint() == f"cannot listen on {address}: Address already in use"
    assert documented("cannot listen on").search(done.complaint())
    assert "--listen" in done.hint()


@pytest.mark.parametrize("kind", ["missing", "a file"])
def test_a_directory_is_needed(tmp_path: Path, kind: str) -> None:
    if kind == "a file":
        (tmp_path / "store").touch()
    done = run("serve", "store", "--listen", "127.0.0.1:0", cwd=tmp_path)
    assert done.code == 1
    assert done.complaint() == f"`{tmp_path}/store` is not a directory"
    assert documented("is not a directory").search(done.complaint())
    assert "mkdir -p" in done.hint()


def test_all_can_come_from_a_file(store: Path, tmp_path: Path) -> None:
    file, log = tmp_path / "serve.toml", tmp_path / "serve.log"
    file.write_text(f'directory = "{store}"\nlisten = "127.0.0.1:0"\nlog-level = "info"\n')
    with serving("--config", file) as (_, address):
        assert run("check", f"cafs://{address}/data", ABSENT.hex).code == 1
    file.write_text(f'directory = "{tmp_path}/none"\nlog-file = "{log}"\n')
    with serving("--config", file, store, "--log-file", "/dev/stderr", "--listen", "127.0.0.1:0"):
        pass  # the arguments win


def test_variables_configure_it(store: Path) -> None:
    variables = environment(CAFSFS_LISTEN="127.0.0.1:0", CAFSFS_MAX_BLOB="1K")
    with serving(store, env=variables) as (_, address):
        (store / "large").write_bytes(os.urandom(5000))
        done = run("put", f"cafs://{address}/data", store / "large")
    assert done.code == 1
    assert "cannot upload" in done.complaint()


def test_files_of_a_store_are_served_and_kept(store: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    with serving(store, "--listen", "127.0.0.1:0") as (_, address):
        uri = f"cafs://{address}/data"
        digest = run("put", uri, tmp_path / "file").ok().text[:64]
    assert run("cat", f"file://{store}/data", digest).ok().out == b"content"
    with serving(store, "--listen", "127.0.0.1:0") as (_, address):
        assert run("cat", f"cafs://{address}/data", digest).ok().out == b"content"


def test_ipv6_from_end_to_end(tmp_path: Path) -> None:
    serving = Serving(tmp_path, host="[::1]")
    try:
        assert re.fullmatch(r"cafs://\[::1\]:\d+/data", serving.uri)
        digest = serving.put(tmp_path, b"content")
        assert run("cat", serving.uri, digest.hex).ok().out == b"content"
        assert run("check", serving.uri, ABSENT.hex).code == 1
    finally:
        serving.kill()


def test_sighup_opens_the_log_anew_and_reads_its_level_and_sigusr1_tells_the_tasks(
    store: Path, tmp_path: Path
) -> None:
    toml, log, moved = tmp_path / "cafsfs.toml", tmp_path / "log", tmp_path / "moved"
    toml.write_text('log-level = "info"\n')
    options = ("--config", toml, "--log-file", log, "--listen", "127.0.0.1:0")
    server = start("serve", store, *options, stderr=subprocess.DEVNULL)
    try:
        _eventually(lambda: " serving " in _text(log))
        log.rename(moved)
        toml.write_text('log-level = "error"\n')
        server.send_signal(signal.SIGHUP)
        _eventually(lambda: "log-level is error now" in _text(log))
        server.send_signal(signal.SIGUSR1)
        _eventually(lambda: "cafsfs.duties.obey_signals: " in _text(log))
        toml.write_text("no TOML")
        server.send_signal(signal.SIGHUP)
        _eventually(lambda: "nothing is changed: " in _text(log))
        assert "reloaded" not in _text(moved)
        assert end(server, signal.SIGTERM) == 0
    finally:
        server.kill()
        server.wait()


def _text(log: Path) -> str:
    return log.read_text() if log.exists() else ""


def _eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
