"""A Python module as a process of its own that obeys lines of JSON, one answer a line.

It first says something by itself, then answers each request. It ends when its standard input
closes: with the ``with`` of its owner, and also when that one is killed.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Self

import trio

_END = 10.0  # seconds


class Obeying:
    """A module that runs ``obey``; ``first`` is what it has said by itself."""

    def __init__(self, module: str, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parent.parent,
        )
        self.first = self._answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.thaw()
        self._process.communicate(timeout=_END)

    @property
    def pid(self) -> int:
        return self._process.pid

    def freeze(self) -> None:
        """Stop the process: connections are accepted by the kernel, and nothing answers."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def ask(self, **request: Any) -> dict[str, Any]:
        """The answer to a request."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer


async def obey(
    first: dict[str, Any], do: Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
) -> None:
    """Say ``first``, then what ``do`` answers to each request, until nobody asks any more."""

    def tell(answer: dict[str, Any]) -> None:
        print(json.dumps(answer), flush=True)

    tell(first)
    while line := await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
        tell(await do(json.loads(line)))
