"""``rclone mount`` with its full cache, over its own HTTP server."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench.stage import PLAIN, Place, Stage, is_mounted

_RCLONE = ("rclone", "--config", "")


def is_installed() -> bool:
    """Whether this machine has it."""
    return shutil.which(_RCLONE[0]) is not None


@contextmanager
def mounted(stage: Stage, cache: Path) -> Iterator[Place]:
    """A fresh mount of the stage's files, whose directories it knows.

    A cache is one for a URL: all mounts share one server.
    """
    url = stage.once("rclone-url", lambda path: path.write_text(_serve(stage))).read_text()
    with stage.mount_point() as point:
        options = ("--http-url", url, "--read-only", "--vfs-cache-mode", "full")
        command = (*_RCLONE, "mount", *options, "--cache-dir", str(cache), ":http:", str(point))
        with stage.child(command, "rclone-mount") as daemon:
            daemon.await_start(lambda: is_mounted(point) or None)
            place = Place(directory=point, small=point / "small", daemon=daemon)
            for directory in (place.directory, place.small):
                stage.time(PLAIN, "tool", "ls", "-f", directory)
            yield place


def _serve(stage: Stage) -> str:
    with socket.create_server(("127.0.0.1", 0)) as free:
        host, port = free.getsockname()
    command = (*_RCLONE, "serve", "http", "--addr", f"{host}:{port}", str(stage.files))
    stage.start(command, "rclone-serve").await_start(lambda: _answers(host, port) or None)
    return f"http://{host}:{port}"


def _answers(host: str, port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex((host, port)) == 0
