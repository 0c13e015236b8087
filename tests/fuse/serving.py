"""Blobs and the servers that have them."""

from __future__ import annotations

import random
import re
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from blake3 import blake3

from tests.bad_server import pack
from tests.fuse.processes import CAFSFS, LEASHED, Process, eventually

ROOT = "/data"


@dataclass(frozen=True, slots=True)
class Blob:
    """Content in a file outside of any mount."""

    source: Path
    content: bytes
    hash: str

    def __str__(self) -> str:
        return self.hash

    @property
    def size(self) -> int:
        return len(self.content)


class BlobMaker:
    """Makes blobs that nobody has had before, of any size, below ``directory``."""

    def __init__(self, directory: Path, seed: str) -> None:
        self._directory = directory
        self._random = random.Random(seed)
        self._count = 0

    def random(self, size: int) -> Blob:
        return self.of(self._random.randbytes(size))

    def text(self, size: int) -> Blob:
        """Content that compresses, to about a sixth."""
        words = [f"{self._random.getrandbits(16):x}" for _ in range(64)]
        text = " ".join(self._random.choices(words, k=size // 4 + 1))
        return self.of(text.encode()[:size])

    def of(self, content: bytes) -> Blob:
        self._count += 1
        source = self._directory / f"blob-{self._count}"
        source.write_bytes(content)
        return Blob(source, content, blake3(content).hexdigest())


class Roots:
    """A directory of roots, as ``cafsfs serve`` and ``file://`` take it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / ROOT[1:] / "blobs").mkdir(parents=True)

    @property
    def uri(self) -> str:
        return f"file://{self.directory}{ROOT}"

    def put(self, blob: Blob, how: str = "none") -> Blob:
        self.file(blob).parent.mkdir(parents=True, exist_ok=True)
        self.file(blob).write_bytes(pack(blob.content, how))
        return blob

    def file(self, blob: Blob) -> Path:
        return self.named(blob.hash)

    def named(self, name: str) -> Path:
        """The file of a blob whose hash is all that is known."""
        return self.directory / ROOT[1:] / "blobs" / name[:2] / name[2:4] / name


class Served:
    """``cafsfs serve`` as a process; ended at the end of ``with``.

    It listens on a free port of ``host``, and on the same one when it is started again.
    """

    def __init__(
        self, roots: Roots, log: Path, *options: str | Path, host: str = "127.0.0.1"
    ) -> None:
        self.roots = roots
        self._log = log
        self._options = options
        self.address = f"{host}:0"
        self.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.thaw()
        self._process.end()

    @property
    def uri(self) -> str:
        return f"cafs://{self.address}{ROOT}"

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def runs(self) -> bool:
        return self._process.runs

    def start(self) -> None:
        """Returns when it listens."""
        self._log.write_text("")
        serve = (*CAFSFS, "serve", self.roots.directory, "--listen", self.address, *self._options)
        self._process = Process(*LEASHED, *serve, log=self._log)
        listens = lambda: not self._process.runs or " serving " in self._log.read_text()  # noqa: E731
        eventually(listens, what="the server listens")
        found = re.search(r" on (127\.[0-9.]+:\d+)", self._log.read_text())
        assert found, self._log.read_text()
        self.address = found[1]

    def kill(self) -> None:
        """SIGKILL; returns when it is gone."""
        self._process.end()

    def freeze(self) -> None:
        self._process.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.signal(signal.SIGCONT)
