"""``cafsfs@.service`` of a user manager: for people without root."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests.fuse.processes import Finished, eventually
from tests.systemd.machine import USER, Machine
from tests.systemd.service import URI, Blob

pytestmark = [pytest.mark.fuse, pytest.mark.process, pytest.mark.timeout(900)]

UNIT = "cafsfs@home.service"
POINT = "/home/joe/cafs"


@pytest.fixture
def user(server: Machine) -> Iterator[Machine]:
    """The machine, with joe logged in, who has a configuration and a mount point."""
    server.systemctl("start", f"user@{USER}.service").ok()
    server.as_user("mkdir", "-p", POINT, "/home/joe/.config/cafsfs").ok()
    config = "/home/joe/.config/cafsfs/home.toml"
    server.write(config, f'uri = "{URI}"\nmountpoint = "~/cafs"\n')
    yield server
    manage(server, "stop", UNIT)
    while server.mounts(POINT):
        server.run("umount", "-l", POINT).ok()


def manage(machine: Machine, *words: str) -> Finished:
    return machine.as_user("systemctl", "--user", *words)


def pid(machine: Machine) -> int:
    return int(manage(machine, "show", "--value", "--property=MainPID", UNIT).ok().text)


def test_a_user_has_a_mount_of_his_own(user: Machine, blob: Blob) -> None:
    done = manage(user, "start", UNIT)
    assert done.code == 0, user.run("journalctl", "-o", "cat", "-n", "30").text
    assert user.as_user("cat", f"{POINT}/{blob.hash}").ok().out == blob.content
    assert user.run("cat", f"{POINT}/{blob.hash}").code == 1  # not even root's
    assert user.run("stat", "-c", "%U", f"/proc/{pid(user)}").ok().text == "joe\n"
    cached = f"/home/joe/.cache/cafsfs/blobs/{blob.hash[:2]}/{blob.hash[2:4]}/{blob.hash}"
    user.as_user("ls", cached).ok()
    manage(user, "stop", UNIT).ok()
    assert user.mounts(POINT) == []


def test_killed_it_is_back(user: Machine, blob: Blob) -> None:
    manage(user, "start", UNIT).ok()
    before = pid(user)
    user.kill(before, signal.SIGKILL)
    eventually(lambda: pid(user) not in {0, before}, what="another daemon")
    reads = lambda: user.as_user("cat", f"{POINT}/{blob.hash}").out == blob.content  # noqa: E731
    eventually(reads, what="it reads")
