"""The recordings of the deployed server, replayed against ours over a socket.

Each frame of the client is said when all that the server said before has been heard. Not replayed:
``pull_after_repack`` and ``pipelined`` as they are, for our server does not recompress; the
recompressed blob of the one is put in place by hand for both.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from cafsfs.digest import Digest
from tests.server.stand import RawClient, Stand, serving

_RECORDED = json.loads(
    (Path(__file__).parent.parent / "vectors" / "plain-transcripts.json").read_text()
)
_SCENARIOS = _RECORDED["scenarios"]
_DIGEST = Digest.parse(_RECORDED["digest_hex"])
_CONTENT = bytes.fromhex(_RECORDED["content_hex"])
_PLAIN = b"NONE\x10\0\0\0" + len(_CONTENT).to_bytes(8, "little") + _CONTENT
_RECOMPRESSED = bytes.fromhex(_SCENARIOS["pull_after_repack"]["transcript"][-1]["hex"])[54:]
_SOMEBODYS = Digest(bytes(32))  # garbage that was once pushed to the recorded server

# What the recorded server had before the scenario began.
_BEFORE = {
    "push_again": {_DIGEST: _PLAIN},
    "pull_after_repack": {_DIGEST: _RECOMPRESSED},
    "pipelined": {_DIGEST: _RECOMPRESSED, _SOMEBODYS: b"garbage"},
}


async def replay(client: RawClient, frames: list[dict[str, Any]]) -> None:
    for frame in frames:
        if frame["from"] == "client":
            await client.say(bytes.fromhex(frame["hex"]))
        elif "hex" in frame:
            expected = bytes.fromhex(frame["hex"])
            assert await client.hear(len(expected)) == expected
        elif frame["event"] == "closed":
            began = trio.current_time()
            assert await client.hear_all() == b""
            took = trio.current_time() - began
            assert took == pytest.approx(frame.get("after_seconds", 0), abs=0.5)
        else:
            assert frame["event"] == "idle"
            await _assert_silent(client)


async def _assert_silent(client: RawClient) -> None:
    with trio.move_on_after(1) as scope:
        await client.hear(1)
    assert scope.cancelled_caught


def _prepare(stand: Stand, scenario: str) -> None:
    for digest, packed in _BEFORE.get(scenario, {}).items():
        stand.keep(packed, digest)


@pytest.mark.parametrize("scenario", _SCENARIOS)
async def test_scenario(tmp_path: Path, scenario: str, jumping_clock: MockClock) -> None:
    async with serving(tmp_path) as stand, await stand.connect() as client:
        _prepare(stand, scenario)
        frames = _SCENARIOS[scenario]["transcript"]
        await replay(client, frames)
        if frames[-1].get("event") != "closed":
            await _assert_silent(client)


def test_the_recompressed_blob_is_one() -> None:
    assert _RECOMPRESSED[:4] == b"ZSTD"
    assert _RECOMPRESSED[6] == 1
