"""What a daemon is doing at this moment: its tasks, where each waits, its pools and its cache.

For when nobody knows why it hangs: SIGUSR1 has it in the log, the command ``dump`` of the control
socket in its answer. Handlers of requests wait behind pyfuse3's compiled code, where no frame can
be seen: they are listed as requests.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import perf_counter

import trio

from cafsfs.report.status import Status

log = logging.getLogger(__name__)
log.setLevel(logging.INFO)  # somebody has asked for it: it comes whatever --log-level says

_FRAMES = 4  # of a task, the innermost


def describe(status: Status, pools: Callable[[], Sequence[object]]) -> list[str]:
    """All of it, line by line; ``pools`` are told by their repr."""
    return [
        "requests:",
        *_requests(status),
        "pulls:",
        *(
            f"  {each.digest} {each.length} of {each.size} bytes, {each.age:.1f} s old,"
            f" still for {each.still:.1f} s, {each.users} users, {each.waiting} wait"
            for each in status.store.inflight()
        ),
        "servers:",
        *(f"  {each!r}" for each in pools()),
        f"memory: {dict(status.parts.memory())}",
        f"cache: {status.store.usage}",
        *describe_tasks(),
    ]


def describe_tasks() -> list[str]:
    """All tasks of the process, and where each waits."""
    return ["tasks:", *_tasks()]


def log_dump(lines: Sequence[str]) -> None:
    """Have it in the log, a record a line: the journal cuts long ones."""
    for line in lines:
        log.info("%s", line)


def _requests(status: Status) -> Iterator[str]:
    now = perf_counter()
    for number, (operation, began) in status.metrics.requests.waiting.items():
        yield f"  {number} {operation} for {now - began:.3f} s"


def _tasks() -> Iterator[str]:
    root = trio.lowlevel.current_root_task()
    if root is not None:
        yield from _tree(root, "  ")


def _tree(task: trio.lowlevel.Task, indent: str) -> Iterator[str]:
    yield f"{indent}{task.name}{_where(task)}"
    for nursery in task.child_nurseries:
        for child in sorted(nursery.child_tasks, key=lambda each: each.name):
            yield from _tree(child, indent + "  ")


def _where(task: trio.lowlevel.Task) -> str:
    """The innermost calls of a task, those of Trio left out where there are others."""
    frames = [
        (Path(frame.f_code.co_filename), line, frame.f_code.co_name)
        for frame, line in task.iter_await_frames()
    ]
    ours = [each for each in frames if "trio" not in each[0].parts] or frames
    told = [f"{path.name}:{line} {name}" for path, line, name in ours[-_FRAMES:]]
    return f": {' > '.join(told)}" if told else ""
