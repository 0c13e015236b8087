"""The bench runs, shows every row and leaves nothing behind; how fast it is, no test judges."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from tests.bench import ours, peer, plain, rclone
from tests.bench import stage as stage_module
from tests.bench.children import TREE, Child, run
from tests.bench.measure import measure
from tests.bench.rows import PLAIN_READ, RCLONE, ROWS
from tests.bench.stage import MIB, OURS, PEER, PLAIN, Place, Run, Sample, Stage
from tests.bench.table import render, render_details

pytestmark = pytest.mark.process


class ThriftyStage(Stage):
    """It shares mounts and its server, whose starts take most of the time of so little work."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, 2 * MIB, blobs=300, settle=0.1, share=0.01)
        self._cold: dict[str, Place] = {}

    @contextmanager
    def mount(self, cache: Path, *, address: str = "") -> Iterator[Place]:
        if cache != self.cold:
            with super().mount(cache, address=address) as place:
                yield place
            return
        if address not in self._cold:
            shared = self.directory / f"cold-{len(self._cold)}"
            mounting = super().mount(shared, address=address)
            self._cold[address] = self._started.enter_context(mounting)
        yield self._cold[address]

    @contextmanager
    def serve(self) -> Iterator[tuple[Child, str]]:
        if self._server is None:
            with super().serve() as serving:
                yield serving
        else:
            yield self._server, self.address

    def clear(self) -> None:
        super().clear()
        self.cold.mkdir()


def distinct_works() -> list[Run]:
    """What rows are made of, each once.

    Of the reads, which differ in one verb, the first is done in all places, and the others to plain
    files only.
    """
    works: dict[Run, None] = {}
    for row in ROWS:
        only_plain = row.peer_name in {PLAIN_READ, RCLONE} and not row.name.startswith("read-first")
        if not only_plain:
            works[row.ours] = None
        absent = row.peer_name == RCLONE and (only_plain or not rclone.is_installed())
        if row.peer is not None and not absent:
            works[row.peer] = None
    return list(works)


def run_here(module: str, arguments: Sequence[str], log: Path) -> tuple[str, int]:
    """Instead of in a process, for the same reason; unless it forks, or leaves threads behind."""
    verb, *rest = arguments
    if module == OURS:
        return str(trio.run(ours.VERBS[verb], *rest)), 0
    if module == PEER:
        return str(asyncio.run(peer.VERBS[verb](*rest))), 0
    if module == PLAIN and verb != "loopback":
        return str(plain.VERBS[verb](*rest)), 0
    return run(module, arguments, log)


@pytest.mark.fuse
def test_does_the_work_of_every_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_module, "run", run_here)
    stage = ThriftyStage(tmp_path)
    with stage.serving():
        for work in distinct_works():
            assert work(stage).seconds > 0
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


def test_shows_every_row(tmp_path: Path) -> None:
    def work(_: Stage) -> Sample:
        return Sample(seconds=0.5, peak=MIB, details={"left behind, readers": 7})

    rows = [replace(row, ours=work, peer=row.peer and work) for row in ROWS]
    results = [measure(row, ThriftyStage(tmp_path), 1, print) for row in rows]
    table = render(results)
    assert json.dumps([each.as_dict() for each in results])
    for row in ROWS:
        assert row.work in table
        assert row.peer_name in table
        assert f"{row.work}: left behind 7 readers" in render_details(results)


def test_leaves_nothing(tmp_path: Path) -> None:
    options = ("--size", "4M", "--runs", "1", "--only", "blake3", "--dir", str(tmp_path))
    command = [sys.executable, "-m", "tests.bench", *options]
    done = subprocess.run(command, cwd=TREE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "BLAKE3 on one core" in done.stdout
    assert str(tmp_path) in done.stdout
    assert not list(tmp_path.iterdir())
