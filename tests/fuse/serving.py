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
        return self.directory / ROOT[1:] / "blobs" / blob.hash[:2] / blob.hash[2:4] / blob.hash


class Served:
    """``cafsfs serve`` as a process."""

    def __init__(self, roots: Roots, log: Path) -> None:
        self._log = log
        self._log.touch()
        self._process = Process(
            *LEASHED, *CAFSFS, "serve", roots.directory, "--listen", "127.0.0.1:0", log=log
        )
        eventually(lambda: " serving " in log.read_text(), what="the server listens")
        found = re.search(r" on (127\.0\.0\.1:\d+)", log.read_text())
        assert found
        self.address = found[1]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.thaw()
        self._process.end()

    @property
    def uri(self) -> str:
        return f"cafs://{self.address}{ROOT}"

    def freeze(self) -> None:
        self._process.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.signal(signal.SIGCONT)
