"""``cafsfs-serve@.service`` and its socket."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests.fuse.processes import eventually
from tests.systemd.machine import Machine
from tests.systemd.service import SERVER, URI, Blob, put_blob

pytestmark = [pytest.mark.fuse, pytest.mark.process, pytest.mark.timeout(900)]

SOCKET = "cafsfs-serve@store.socket"


def test_it_serves_as_a_user_who_owns_the_files(server: Machine, blob: Blob) -> None:
    pid = server.main_pid(SERVER)
    assert server.run("stat", "-c", "%U", f"/proc/{pid}").ok().text == "cafsfs\n"
    path = f"/var/lib/cafsfs/store/data/blobs/{blob.hash[:2]}/{blob.hash[2:4]}/{blob.hash}"
    assert server.run("stat", "-c", "%U %a", path).ok().text.startswith("cafsfs ")
    assert server.run("cafsfs", "cat", URI, blob.hash).ok().out == blob.content


def test_it_sees_little_of_the_machine(server: Machine) -> None:
    """What the hardening takes away, seen from its own namespace."""
    inside = ("nsenter", f"--target={server.main_pid(SERVER)}", "--mount", "--")
    assert server.run(*inside, "touch", "/etc/x").code == 1
    assert server.run(*inside, "ls", "/root").text in {"", ".pyenv\n"}
    assert server.run(*inside, "ls", "/dev/fuse").code == 2
    status = server.cat(f"/proc/{server.main_pid(SERVER)}/status").decode()
    assert "CapEff:\t0000000000000000" in status
    assert "NoNewPrivs:\t1" in status
    assert "Seccomp:\t2" in status


def test_killed_it_is_back(server: Machine, blob: Blob) -> None:
    before = server.main_pid(SERVER)
    server.kill(before, signal.SIGKILL)
    eventually(lambda: server.main_pid(SERVER) not in {0, before}, what="another one")
    serves = lambda: server.run("cafsfs", "check", URI, blob.hash).code == 0  # noqa: E731
    eventually(serves, what="it serves")


@pytest.fixture
def listening(server: Machine) -> Iterator[Machine]:
    server.systemctl("stop", SERVER).ok()
    server.systemctl("start", SOCKET).ok()
    yield server
    server.systemctl("stop", SOCKET, SERVER).ok()
    server.systemctl("start", SERVER).ok()


def test_the_socket_starts_the_server_when_a_client_comes(blob: Blob, listening: Machine) -> None:
    assert listening.show(SERVER, "ActiveState") == "inactive"
    assert listening.run("cafsfs", "cat", URI, blob.hash).ok().out == blob.content
    assert listening.show(SERVER, "ActiveState") == "active"


def test_clients_who_come_while_it_restarts_wait(listening: Machine) -> None:
    blob = put_blob(listening)
    listening.systemctl("stop", SERVER).ok()  # the socket goes on listening
    with listening.start("cafsfs", "cat", URI, blob.hash) as client:
        assert client.finish().ok().out == blob.content
    before = listening.main_pid(SERVER)
    with listening.start("systemctl", "restart", SERVER) as restart:
        for _ in range(5):
            assert listening.run("cafsfs", "cat", URI, blob.hash).ok().out == blob.content
        restart.finish().ok()
    assert listening.main_pid(SERVER) != before
