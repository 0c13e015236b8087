"""Blobs, mounts and readers of a machine."""

from __future__ import annotations

import hashlib
import itertools
import random
import re
from dataclasses import dataclass

from blake3 import blake3

from tests.fuse.processes import Finished, Process, eventually
from tests.systemd.machine import Machine

SERVER = "cafsfs-serve@store.service"
URI = "cafs://127.0.0.1/data"
DEAD = "Transport endpoint is not connected"
_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class Blob:
    """Content that the machine's server has."""

    hash: str
    content: bytes


def put_blob(machine: Machine, size: int = 20_000) -> Blob:
    """A blob that nobody has had before."""
    content = random.Random(next(_numbers)).randbytes(size)
    machine.write("/run/blob", content)
    said = machine.run("cafsfs", "put", URI, "/run/blob").ok().text
    blob = Blob(blake3(content).hexdigest(), content)
    assert said.split()[0] == blob.hash
    return blob


class Service:
    """One mount by cafsfs@INSTANCE.service."""

    def __init__(self, machine: Machine, instance: str, *lines: str, uri: str = URI) -> None:
        self.machine = machine
        self.unit = f"cafsfs@{instance}.service"
        self.point = f"/mnt/{instance}"
        self._instance, self._uri = instance, uri
        machine.run("mkdir", "-p", self.point).ok()
        self.configure(*lines)

    def configure(self, *lines: str) -> None:
        """Write its TOML file."""
        config = [f'uri = "{self._uri}"', f'mountpoint = "{self.point}"', *lines]
        self.machine.write(f"/etc/cafsfs/{self._instance}.toml", "\n".join(config) + "\n")

    def drop_in(self, *lines: str) -> None:
        """What `systemctl edit` does."""
        text = "\n".join(["[Service]", *lines, ""])
        self.machine.write(f"/etc/systemd/system/{self.unit}.d/test.conf", text)
        self.machine.systemctl("daemon-reload").ok()

    def start(self) -> None:
        done = self.machine.systemctl("start", self.unit)
        assert done.code == 0, self.machine.journal(self.unit)

    def stop(self) -> float:
        """Returns the seconds that it took; nothing is left, living or dead."""
        done = self.machine.systemctl("stop", self.unit).ok()
        assert self.types() == []
        return done.seconds

    def clear(self) -> None:
        """Whatever state it is in."""
        self.machine.systemctl("stop", self.unit)
        self.machine.run("rm", "-rf", f"/etc/systemd/system/{self.unit}.d").ok()
        self.machine.systemctl("daemon-reload").ok()
        while self.types():
            self.machine.run("umount", "-l", self.point).ok()
        self.machine.systemctl("reset-failed", self.unit)

    @property
    def pid(self) -> int:
        return self.machine.main_pid(self.unit)

    def types(self) -> list[str]:
        return self.machine.mounts(self.point)

    def path(self, blob: Blob) -> str:
        return f"{self.point}/{blob.hash}"

    def read(self, blob: Blob) -> None:
        """From the machine's own namespace, as anybody would."""
        found = self.machine.cat(self.path(blob))
        assert hashlib.sha256(found).digest() == hashlib.sha256(blob.content).digest()

    def reading(self, blob: Blob) -> Process:
        return self.machine.start("cat", self.path(blob))

    def look(self) -> Finished:
        return self.machine.run("ls", self.point)

    def show(self, name: str) -> str:
        return self.machine.show(self.unit, name)

    def comes_back(self, before: int) -> float:
        """Seconds until another daemon answers in the place of ``before``."""
        back = lambda: self.show("ActiveState") == "active" and self.pid not in {0, before}  # noqa: E731
        return eventually(back, what="the service is back")

    def delay(self, first: str, then: str) -> float:
        """Seconds between the last two such lines of its journal, however busy the machine is."""
        text = self.machine.journal(self.unit, "-o", "short-monotonic")

        def last(words: str) -> float:
            return float(re.findall(rf"^\[ *([0-9.]+)\] .*{words}", text, re.MULTILINE)[-1])

        return last(then) - last(first)
