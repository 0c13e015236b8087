"""What a supervisor hears, by a socket that stands for systemd's."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from cafsfs.cli import supervisor


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(30)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield sock


def test_reloading_names_the_moment(systemd: socket.socket) -> None:
    """Of the clock that systemd compares it with; Type=notify-reload takes no other."""
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    supervisor.notify_reloading()
    after = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    state, moment = systemd.recv(100).decode().split("\n")
    assert state == "RELOADING=1"
    assert moment.startswith("MONOTONIC_USEC=")
    assert before <= int(moment.partition("=")[2]) <= after


def test_a_supervisor_in_the_abstract_namespace_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"\0{tmp_path}")
        sock.settimeout(30)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{tmp_path}")
        supervisor.notify("READY=1")
        assert sock.recv(100) == b"READY=1"


def test_a_supervisor_that_does_not_read_holds_nobody_up(systemd: socket.socket) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                sock.sendto(b"WATCHDOG=1", systemd.getsockname())
    supervisor.notify("READY=1")
    assert systemd.recv(100) == b"WATCHDOG=1"


@pytest.mark.parametrize(
    ("usec", "pid", "period"),
    [
        ("30000000", "ours", 5.0),  # as in its own process, which has another number each time
        ("2000000", None, 0.5),
        ("2000000", "1", None),  # somebody else's
        ("0", None, None),
        ("", None, None),
        ("soon", None, None),
    ],
)
def test_how_often_the_watchdog_is_fed(
    monkeypatch: pytest.MonkeyPatch, usec: str, pid: str | None, period: float | None
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    if pid is not None:
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()) if pid == "ours" else pid)
    assert supervisor.watchdog_period() == period


@pytest.mark.process
def test_the_child_feeds_the_watchdog_until_the_daemon_has_gone(
    systemd: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "select.py").write_text("raise SystemExit('not from the environment')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    command = supervisor.watching(str(tmp_path), 0.01)
    with subprocess.Popen(command, stdin=subprocess.PIPE) as child:
        for _ in range(3):
            assert systemd.recv(100) == b"WATCHDOG=1"
        assert child.stdin is not None
        child.stdin.close()
        assert child.wait(30) == 0


@pytest.mark.process
def test_the_child_does_not_feed_it_for_a_mount_that_fails(
    systemd: socket.socket, tmp_path: Path
) -> None:
    command = supervisor.watching(str(tmp_path / "none"), 0.01)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stderr is not None
        assert b"answers with an error: No such file" in child.stderr.readline()
        child.kill()
    systemd.setblocking(False)
    with pytest.raises(BlockingIOError):
        systemd.recv(100)


def test_sockets_of_another_process_are_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_PID", "1")
    monkeypatch.setenv("LISTEN_FDS", "1")
    assert supervisor.inherited_sockets() == []


# Prints what it was given; whom it starts itself would have 3, if that could be inherited.
_GIVEN = """
import json, os, sys
from cafsfs.cli.supervisor import inherited_sockets
os.dup2(int(sys.argv[1]), 3)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "x"}
sockets = inherited_sockets()
names = [each.getsockname() for each in sockets]
left = [name for name in os.environ if name.startswith("LISTEN_")]
print(json.dumps([names, os.get_inheritable(3), left]))
"""


@pytest.mark.process
def test_sockets_that_are_ours_are_taken_and_not_handed_on() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        number = server.fileno()
        command = [sys.executable, "-c", _GIVEN, str(number)]
        said = subprocess.check_output(command, pass_fds=[number], timeout=30)
        assert json.loads(said) == [[list(server.getsockname())], False, []]
