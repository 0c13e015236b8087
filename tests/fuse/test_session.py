"""What a session does in which order, without a mount."""

from __future__ import annotations

from threading import Event
from typing import cast

import pyfuse3
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from cafsfs.fuse import session
from cafsfs.fuse.session import Session
from cafsfs.metrics import Metrics
from cafsfs.vfs.filesystem import FileSystem


class _FileSystem:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[object] = []

    def fail_waiters(self, _: Exception) -> None:
        self.told.append("fail")

    def pages_dropped(self, inode: int) -> None:
        self.told.append(inode)

    def on_spoilt(self, inode: int) -> None:
        """Set by the session."""


async def test_the_loop_serves_until_the_kernel_has_dropped_its_pages(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits for READs that are not taken yet; if nobody answers them, both hang for ever."""
    dropping, dropped = trio.Event(), Event()
    token = trio.lowlevel.current_trio_token()
    filesystem = _FileSystem()

    def forget(_inode: int, _attributes_only: bool) -> None:
        token.run_sync_soon(dropping.set)
        dropped.wait(20)

    monkeypatch.setattr(session, "_forget", forget)
    ended = trio.Event()

    def terminate() -> None:
        filesystem.told.append("terminate")
        ended.set()

    monkeypatch.setattr(pyfuse3, "terminate", terminate)
    tested = Session(cast(FileSystem, filesystem), "/nowhere", (), Metrics())
    tested._forward_invalidations(nursery)
    tested._running = True
    filesystem.on_spoilt(7)
    await dropping.wait()
    tested.stop()
    await wait_all_tasks_blocked()
    assert filesystem.told == ["fail"]
    dropped.set()
    await ended.wait()
    assert filesystem.told == ["fail", 7, "terminate"]
    tested.stop()
    assert filesystem.told[3:] == ["fail", "terminate"]
