"""One machine for all tests of this directory; they skip, and say why, where there can be none."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.systemd.machine import Machine
from tests.systemd.service import SERVER, Blob, Service, put_blob
from tests.systemd.tree import CannotBuild, Tree, build_tree

_STORE = """
directory = "/var/lib/cafsfs/store"
listen = "127.0.0.1:2403"
"""
# The interpreter of these tests may stand in a home, where the server cannot look.
_HIDDEN_PYTHON = """
[Service]
ProtectHome=tmpfs
BindReadOnlyPaths={}
"""


@pytest.fixture(scope="session")
def tree() -> Tree:
    try:
        return build_tree()
    except CannotBuild as why:
        pytest.skip(f"no systemd to test with: {why}")


@pytest.fixture(scope="session")
def machine(tree: Tree) -> Iterator[Machine]:
    """A machine that is up."""
    with tempfile.TemporaryDirectory(prefix="cafsfs-machine-") as disk:
        try:
            made = Machine(tree, Path(disk))
        except CannotBuild as why:
            pytest.skip(f"no systemd to test with: {why}")
        with made:
            try:
                made.boot()
            except CannotBuild as why:
                pytest.skip(f"no systemd to test with: {why}")
            yield made


def serve_store(machine: Machine) -> None:
    """Have our unit serve a store at ``URI``."""
    machine.write("/etc/cafsfs/store.toml", _STORE)
    if machine.tree.python.startswith(("/root/", "/home/")):
        drop_in = f"/etc/systemd/system/{SERVER.replace('store', '')}.d/python.conf"
        machine.write(drop_in, _HIDDEN_PYTHON.format(machine.tree.python))
        machine.systemctl("daemon-reload").ok()
    done = machine.systemctl("start", SERVER)
    why = "" if done.code == 0 else machine.run("journalctl", "--no-pager", "-n", "60").text
    assert not why, why
    machine.run("install", "-d", "-o", "cafsfs", "/var/lib/cafsfs/store/data").ok()


@pytest.fixture(scope="session")
def serving(machine: Machine) -> Machine:
    """The machine, with a store at ``URI`` that our unit serves."""
    serve_store(machine)
    return machine


@pytest.fixture
def server(serving: Machine) -> Iterator[Machine]:
    """As ``serving``; whatever a test does to the server, it serves again afterwards."""
    yield serving
    pid = serving.main_pid(SERVER)
    if pid:
        serving.kill(pid, signal.SIGCONT)
    serving.systemctl("start", SERVER).ok()


@pytest.fixture
def blob(server: Machine) -> Blob:
    return put_blob(server)


@pytest.fixture
def service(server: Machine) -> Iterator[Callable[..., Service]]:
    """Makes mounts by cafsfs@.service; nothing of them is left."""
    made: list[Service] = []

    def make(instance: str, *lines: str, **rest: Any) -> Service:
        made.append(Service(server, instance, *lines, **rest))
        return made[-1]

    yield make
    for each in made:
        each.clear()
