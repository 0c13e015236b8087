"""``cafsfs demo``: it shows the whole way, and nothing is left of it however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cafsfs.fuse import mounts
from tests.cli.running import CAFSFS, environment

pytestmark = pytest.mark.fuse

LONG = 90.0  # seconds for a demo on a busy machine


@pytest.fixture
def place() -> Iterator[Path]:
    """Where the demo has its temporary directory; at the end nothing of it is left anywhere."""
    with tempfile.TemporaryDirectory(prefix="cafsfs-demo-test-") as name:
        try:
            yield Path(name)
        finally:  # also where the demo has failed to clear up
            for mount in mounts.list_mounts():
                if mount.point.startswith(f"{name}/"):
                    subprocess.run([*CAFSFS, "unmount", "--force", mount.point], check=True)
        assert os.listdir(name) == []
        assert name not in Path("/proc/self/mountinfo").read_text()
        assert processes(name) == []


def processes(word: str) -> list[str]:
    """Command lines of living processes that speak of ``word``."""
    lines = []
    for each in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(each.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:  # it has ended meanwhile
            continue
    return [line for line in lines if word in line]


class Demo:
    """A demo in a session of its own, so that a terminal's Ctrl-C can be played."""

    def __init__(self, place: Path, *options: str) -> None:
        self._process = subprocess.Popen(
            [*CAFSFS, "demo", *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment(TMPDIR=str(place), PYTHONUNBUFFERED="1"),
            start_new_session=True,
        )
        self.said = ""

    def read_until(self, word: str) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.said += line
            if word in line:
                return
        raise AssertionError(self.said)

    def press_control_c(self) -> None:
        os.killpg(self._process.pid, signal.SIGINT)

    def terminate(self) -> None:
        self._process.terminate()

    def end(self) -> int:
        rest, _ = self._process.communicate(timeout=LONG)
        self.said += rest
        return self._process.returncode


def test_once_checks_everything_and_leaves(place: Path) -> None:
    demo = Demo(place, "--once")
    assert demo.end() == 0, demo.said
    for shown in ("cafsfs serve", "cafsfs put", "cafsfs mount", "cmp", "b3sum", "ls", "df"):
        assert f"\n$ {shown} " in demo.said
    assert "all of it was right" in demo.said
    assert "Traceback" not in demo.said


def test_it_stays_until_it_is_ended(place: Path) -> None:
    demo = Demo(place)
    demo.read_until("less ")
    path = Path(demo.said.split("less ")[1].strip())
    subprocess.run(["head", "-c", "1", path], check=True, capture_output=True, timeout=LONG)
    demo.press_control_c()
    demo.read_until("unmounting")
    for _ in range(3):  # by somebody who cannot wait
        demo.press_control_c()
        time.sleep(0.1)
    assert demo.end() == 0, demo.said
    assert "Traceback" not in demo.said


@pytest.mark.parametrize(
    ("stage", "way"),
    [
        ("$ cafsfs serve", Demo.press_control_c),
        ("$ cafsfs put", Demo.press_control_c),
        ("$ cafsfs mount", Demo.press_control_c),
        ("$ cafsfs mount", Demo.terminate),
        ("$ cmp", Demo.press_control_c),
    ],
)
def test_ended_at_any_stage_it_leaves_nothing(
    place: Path, stage: str, way: Callable[[Demo], None]
) -> None:
    demo = Demo(place)
    demo.read_until(stage)
    way(demo)
    assert demo.end() == 128 + signal.SIGINT, demo.said
    assert "Traceback" not in demo.said


def test_what_does_not_work_is_said(place: Path) -> None:
    """Without fusermount3 in the path there is no mount; all that came before is taken down."""
    bare = place / "bin"
    bare.mkdir()
    (bare / "python3").symlink_to(sys.executable)
    done = subprocess.run(
        [*CAFSFS, "demo", "--once"],
        capture_output=True,
        text=True,
        env=environment(TMPDIR=str(place), PATH=str(bare)),
        timeout=LONG,
        check=False,
    )
    (bare / "python3").unlink()
    bare.rmdir()
    assert done.returncode == 1
    assert "error: fusermount3 is not installed" in done.stderr
    assert "hint: install it: apt-get install fuse3" in done.stderr
    assert "error: cafsfs mount failed with exit code 1" in done.stderr
    assert "Traceback" not in done.stderr
