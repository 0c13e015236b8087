"""``cafsfs doctor``: what it prints, and its exit code."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.cli.running import CAFSFS, Serving, environment, run

pytestmark = pytest.mark.process


def findings(*arguments: str | Path) -> tuple[int, dict[str, Any]]:
    done = run("doctor", "--json", *arguments)
    assert done.err == ""
    told = json.loads(done.text)
    assert told["ok"] is (done.code == 0)
    return done.code, {each["check"]: each for each in told["findings"]}


def test_a_store_that_can_be_mounted(server: Serving, tmp_path: Path) -> None:
    code, found = findings(server.uri, "--cache-dir", tmp_path / "cache")
    assert found["servers"]["finding"].startswith(f"ranges of {server.address} are untested")
    assert found["cache rights"]["verdict"] == "fine"
    assert code == 0
    assert not (tmp_path / "cache").exists()


def test_what_will_not_work_is_said_with_its_fix(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    cache.chmod(0o777)
    done = run("doctor", "cafs://127.0.0.1:1/data", "--cache-dir", cache)
    assert (done.code, done.err) == (1, "")
    lines = done.text.splitlines()
    at = lines.index(f"FAIL  others can write to the cache `{cache}`")
    assert lines[at + 1] == f"      fix: chmod go-w {cache}"
    assert "FAIL  cannot connect to 127.0.0.1:1: Connection refused" in lines
    assert all(line[:6] in {"ok    ", "note  ", "FAIL  ", "      "} for line in lines)


def test_the_store_and_the_cache_of_a_file_are_looked_at(server: Serving, tmp_path: Path) -> None:
    file = tmp_path / "data.toml"
    file.write_text(f'uri = "{server.uri}?allow-other=true"\ncache-dir = "{tmp_path}/here"\n')
    code, found = findings("--config", file)
    assert code == 0
    assert found["cache rights"]["finding"] == f"the cache {tmp_path}/here can be made"
    assert server.address in found["servers"]["finding"]


def test_few_descriptors_are_noticed() -> None:
    command = ["prlimit", "--nofile=1024:1024", *CAFSFS, "doctor", "--json"]
    done = subprocess.run(
        command, capture_output=True, env=environment(), check=False, timeout=60, text=True
    )
    found = {each["check"]: each for each in json.loads(done.stdout)["findings"]}
    assert found["descriptors"]["verdict"] == "advice"
    assert "1024 files" in found["descriptors"]["finding"]


def test_what_is_neither_a_uri_nor_a_mount(tmp_path: Path) -> None:
    done = run("doctor", tmp_path)
    assert done.code == 2
    assert done.complaint() == f"`{tmp_path}` is neither a URI nor a mount of cafsfs"
    done = run("doctor", "/proc")
    assert done.code == 1
    assert done.complaint() == "`/proc` is a mount of type proc, not one of cafsfs"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root takes rights away and gives them back")
def test_who_may_not_is_told(open_directory: Path) -> None:
    """For an ordinary user, past whom the machine's own /dev/fuse may be closed."""
    done = run("doctor", "--cache-dir", open_directory / "cache", nobody=True)
    assert f"the cache `{open_directory}/cache` cannot be made in `{open_directory}`" in done.text
    assert done.code == 1
