"""Progress bars: on a terminal, for what takes its time; nowhere else."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import termios
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cafsfs.digest import Digest
from tests.cli.running import CAFSFS, PATIENCE, Serving, environment, run
from tests.cli.slow_line import SlowLine

pytestmark = pytest.mark.process

SIZE = 24 << 20  # bytes; the kernel takes some MiB in no time
RATE = 16 << 20  # bytes a second: long enough for a bar, short enough to wait for


@dataclass
class Shown:
    code: int
    out: bytes
    terminal: str


def run_on_terminal(*arguments: str | Path, cwd: Path) -> Shown:
    """Run with standard error, and only that, on a terminal."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    with subprocess.Popen(
        [*CAFSFS, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=theirs,
        cwd=cwd,
        env=environment(TERM="xterm"),
    ) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                piece = os.read(ours, 1 << 16)
            except OSError:  # EIO: nobody has the other end any more
                break
            if not piece:
                break
            shown += piece
        out, _ = process.communicate(timeout=PATIENCE)
    os.close(ours)
    return Shown(process.returncode, out, shown.decode())


@pytest.fixture(scope="module")
def slow(server: Serving) -> Iterator[str]:
    """The server's URI, at the end of a slow line."""
    with SlowLine(server.address, RATE) as line:
        yield f"cafs://{line.address}/data"


@pytest.fixture(scope="module")
def blob(server: Serving, tmp_path_factory: pytest.TempPathFactory) -> Digest:
    return server.put(tmp_path_factory.mktemp("blob"), os.urandom(SIZE))


def test_put_shows_how_far_it_is_within_a_file(slow: str, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(os.urandom(SIZE))
    shown = run_on_terminal("put", slow, "large", "missing", cwd=tmp_path)
    assert shown.code == 1
    assert len(shown.out.splitlines()) == 1
    percents = [int(each) for each in re.findall(r"(\d+)%\|", shown.terminal)]
    assert percents == sorted(percents)
    assert any(0 < each < 100 for each in percents), shown.terminal
    assert percents[-1] == 100
    assert "24.0M/24.0M" in shown.terminal
    assert "error: cannot read `missing`" in shown.terminal


def test_get_shows_how_much_has_come(slow: str, blob: Digest, tmp_path: Path) -> None:
    shown = run_on_terminal("get", slow, blob.hex, cwd=tmp_path)
    assert (shown.code, shown.out) == (0, b"")
    assert re.search(r"\d[\d.]+MB \[00:0\d, +[\d.]+[kM]?B/s\]", shown.terminal), shown.terminal


def test_without_a_terminal_there_is_no_bar(slow: str, blob: Digest, tmp_path: Path) -> None:
    run("get", slow, blob.hex, cwd=tmp_path).ok()
    (tmp_path / "large").write_bytes(os.urandom(SIZE))
    assert len(run("put", slow, "large", cwd=tmp_path).ok().text.splitlines()) == 1


def test_what_is_quick_needs_no_bar(server: Serving, tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(b"small")
    shown = run_on_terminal("put", server.uri, "small", cwd=tmp_path)
    assert (shown.code, shown.terminal) == (0, "")
