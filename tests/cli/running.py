"""The command line as a user runs it: a process, what it writes, and its exit code."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from cafsfs.digest import Digest
from cafsfs.packing import hash_bytes

CAFSFS = (sys.executable, "-m", "cafsfs")
PATIENCE = 30.0  # seconds for what should take less than one; busy machines are slow at times
REPOSITORY = Path(__file__).parent.parent.parent
ABSENT = hash_bytes(b"nobody has this")

# Without rights, after the imports: the interpreter may stand where only its owner may look.
_AS_NOBODY = """
import os, sys, encodings.idna, cafsfs.cli
os.setgroups([]); os.setgid(65534); os.setuid(65534)
cafsfs.cli.main()
"""

_WITH_A_CLOCK = """
import sys, time
real, ahead = time.time, float(sys.argv.pop(1))
time.time = lambda: real() + ahead
import cafsfs.cli
cafsfs.cli.main()
"""


@dataclass(frozen=True)
class Done:
    """What became of a command."""

    code: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        return self.out.decode()

    def ok(self) -> Self:
        """Itself, if the command succeeded and had nothing to complain about."""
        assert (self.code, self.err) == (0, ""), self
        return self

    def complaint(self) -> str:
        """The line that says what is wrong; there is one, and a hint, and nothing else."""
        found = re.fullmatch(r"error: (.+)\n(?:\nhint: (.+)\n)?", self.err)
        assert found is not None, self.err
        return found[1]

    def hint(self) -> str:
        self.complaint()
        _, found, hint = self.err.partition("\nhint: ")
        assert found, self.err
        return hint.rstrip("\n")


def environment(**changes: str) -> dict[str, str]:
    """Ours, without what would configure cafsfs; its runtime directory is the tests' own."""
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("CAFSFS_") or name == "CAFSFS_RUNTIME_DIR"
    }
    # Not the user's configuration, nor coverage or warnings of a parent.
    return {**clean, "HOME": "/nonexistent", "PYTHONPATH": str(REPOSITORY), **changes}


def run(
    *arguments: str | bytes | Path,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    nobody: bool = False,
    **options: Any,
) -> Done:
    """Run ``cafsfs`` with ``arguments``; options are those of subprocess.run."""
    program = (sys.executable, "-c", _AS_NOBODY) if nobody else CAFSFS
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, **options}
    done = subprocess.run(
        [*program, *arguments],
        stderr=subprocess.PIPE,
        cwd=cwd,
        env=environment(**(env or {})),
        timeout=PATIENCE,
        check=False,
        **options,
    )
    err = done.stderr.decode(errors="replace")
    assert "Traceback" not in err, err
    return Done(done.returncode, done.stdout or b"", err)


class Serving:
    """``cafsfs serve`` over ``directory``, which has a root ``data``.

    ``clock``: its clock is so many seconds ahead of ours.
    """

    def __init__(
        self,
        directory: Path,
        *options: str | Path,
        host: str = "127.0.0.1",
        clock: float = 0,
    ) -> None:
        self.data = directory / "store" / "data"
        self.data.mkdir(parents=True, exist_ok=True)
        self._log = directory / "serve.log"
        self._process = start(
            *("serve", self.data.parent, "--listen", f"{host}:0", "--log-file", self._log),
            *options,
            program=(sys.executable, "-c", _WITH_A_CLOCK, str(clock)) if clock else CAFSFS,
        )
        self.address = self._wait_for(r"serving \S+ on (\S+)")
        self.uri = f"cafs://{self.address}/data"

    def stop(self) -> None:
        self._process.terminate()
        assert self._process.wait(PATIENCE) == 0

    def kill(self) -> None:
        """As a power cut would; once or more often."""
        self._process.kill()
        self._process.wait(PATIENCE)

    def has(self, digest: Digest) -> bool:
        return self.path_of(digest).exists()

    @property
    def connections(self) -> list[dict[str, str]]:
        """What the server logged of each connection that has ended."""
        lines = [line for line in self._log.read_text().splitlines() if " root=" in line]
        return [dict(re.findall(r"(\w+)=(\S+)", line)) for line in lines]

    def wait_for_connections(self, count: int) -> list[dict[str, str]]:
        deadline = time.monotonic() + PATIENCE
        while len(self.connections) < count and time.monotonic() < deadline:
            time.sleep(0.01)
        return self.connections

    def path_of(self, digest: Digest) -> Path:
        """Where the server keeps a blob."""
        return self.data / "blobs" / digest.hex[:2] / digest.hex[2:4] / digest.hex

    def put(self, directory: Path, content: bytes, *options: str) -> Digest:
        """Upload ``content``; returns its hash."""
        file = directory / "content"
        file.write_bytes(content)
        run("put", *options, self.uri, file).ok()
        return hash_bytes(content)

    def _wait_for(self, pattern: str) -> str:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and self._process.poll() is None:
            if self._log.exists() and (found := re.search(pattern, self._log.read_text())):
                return found[1]
            time.sleep(0.01)
        raise AssertionError("the server did not start")


def start(
    *arguments: str | Path, program: tuple[str, ...] = CAFSFS, **options: Any
) -> subprocess.Popen[bytes]:
    """Start ``cafsfs`` without waiting for it."""
    options = {"env": environment(), **options}
    return subprocess.Popen([*program, *arguments], stdin=subprocess.DEVNULL, **options)


def end(process: subprocess.Popen[bytes], number: signal.Signals = signal.SIGTERM) -> int:
    """Send a signal; the exit code, within PATIENCE."""
    process.send_signal(number)
    return process.wait(PATIENCE)
