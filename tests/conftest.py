"""What holds for every test: cafsfs logs no warning that the test has not announced."""

from __future__ import annotations

import logging
import math
import os
import re
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
import trio
from hypothesis import settings
from trio.testing import MockClock

# The tests start cafsfs a thousand times, and to compile it takes half of each start: it is kept,
# also where somebody wants no bytecode in the environment. `make clean` removes it.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# What tests serve on loopback is not to be asked for by way of somebody's proxy.
for _name in ("http_proxy", "https_proxy", "all_proxy"):
    os.environ.pop(_name, None)
    os.environ.pop(_name.upper(), None)

# What `make check` takes: a fifth of the examples, where a test does not say how many it needs.
settings.register_profile("gate", max_examples=20)

# Real seconds of silence before the clock jumps: what a loopback packet may take on a busy machine.
_SILENCE = 0.03


class LogWatch(logging.Handler):
    """Sets what cafsfs logs at WARNING and above against what the test has announced."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._lines: list[str] = []
        self._announced: dict[str, int] = {}

    def emit(self, record: logging.LogRecord) -> None:
        line = f"{record.levelname} {record.name}: {record.getMessage()}"
        for pattern in self._announced:
            if re.search(pattern, line):
                self._announced[pattern] += 1
                return
        self._lines.append(line)

    def announce(self, pattern: str) -> None:
        """Expect a line `LEVEL logger: message` that matches, once or more often, from now on."""
        self._announced[pattern] = 0

    def verdict(self) -> str | None:
        """What is wrong, or None."""
        if self._lines:
            return "unannounced in the log:\n" + "\n".join(self._lines)
        silent = [pattern for pattern, count in self._announced.items() if not count]
        return f"announced, but not in the log: {silent}" if silent else None


@pytest.fixture(autouse=True)
def log_watch() -> Iterator[LogWatch]:
    """Fails the test for each WARNING or ERROR of cafsfs that ``expect_log`` did not announce."""
    watch = LogWatch()
    logger = logging.getLogger("cafsfs")
    logger.addHandler(watch)
    yield watch
    logger.removeHandler(watch)
    if complaint := watch.verdict():
        pytest.fail(complaint)


@pytest.fixture
def expect_log(log_watch: LogWatch) -> Callable[[str], None]:
    """``expect_log("WARNING cafsfs.store.routing: going on")``: must come, and may come again."""
    return log_watch.announce


@pytest.fixture
def no_descriptor_left() -> Iterator[None]:
    """Fails the test if it leaves a file or socket open."""
    before = _descriptors()
    yield
    deadline = time.monotonic() + 5  # large files are closed in threads of their own
    while left := {each: to for each, to in _descriptors().items() if before.get(each) != to}:
        if time.monotonic() > deadline:
            pytest.fail(f"left open: {left}")
        time.sleep(0.01)


def _descriptors() -> dict[str, str]:
    found = {}
    for number in os.listdir("/proc/self/fd"):
        try:
            found[number] = os.readlink(f"/proc/self/fd/{number}")
        except FileNotFoundError:  # the descriptor of the listing itself
            continue
    return found


@pytest.fixture
def jumping_clock(monkeypatch: pytest.MonkeyPatch) -> MockClock:
    """A clock that skips what nobody uses: a deadline of an hour costs nothing, or ``_SILENCE``.

    For real sockets: what was sent may be on its way, so before the first jump after a socket was
    used there is silence. And for real threads: the clock stands while one is at work, however
    long that takes, unless it waits for the event loop.
    """
    clock = MockClock(autojump_threshold=0)
    working, spoke_at = 0, -math.inf
    in_thread, from_thread = trio.to_thread.run_sync, trio.from_thread.run
    sleep_time = clock.deadline_to_sleep_time

    async def watched(*args: Any, **options: Any) -> Any:
        nonlocal working
        working += 1
        try:
            return await in_thread(*args, **options)
        finally:
            working -= 1

    async def awaited(function: Callable[..., Awaitable[Any]], args: tuple[Any, ...]) -> Any:
        nonlocal working
        working -= 1
        try:
            return await function(*args)
        finally:
            working += 1

    def asked(function: Callable[..., Awaitable[Any]], *args: Any, **options: Any) -> Any:
        return from_thread(awaited, function, args, **options)

    def used(sock: trio.socket.SocketType, name: str) -> Any:
        nonlocal spoke_at
        spoke_at = clock.current_time()
        return object.__getattribute__(sock, name)

    def timeout(deadline: float) -> float:
        """What the event loop asks for each time before it waits."""
        if working:
            clock.autojump_threshold = math.inf
        else:
            clock.autojump_threshold = _SILENCE if spoke_at == clock.current_time() else 0
        return sleep_time(deadline)

    monkeypatch.setattr(trio.socket.SocketType, "__getattribute__", used)
    monkeypatch.setattr(trio.to_thread, "run_sync", watched)
    monkeypatch.setattr(trio.from_thread, "run", asked)
    monkeypatch.setattr(clock, "deadline_to_sleep_time", timeout)
    return clock
