"""The bad server itself: without a fault it answers as the recordings have it."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest
import trio

from tests.bad_server import MIB, BadServer, BadServerProcess, Fault, Phase, bad_server, pack
from tests.packing.samples import SAMPLES
from tests.server.stand import HELLO, RawClient, check, digest_of, pull, push, size, take

_VECTORS = Path(__file__).parent.parent / "vectors"
_RANGED = json.loads((_VECTORS / "ranged-pull.json").read_text())["requests"]
_RECORDED = json.loads((_VECTORS / "plain-transcripts.json").read_text())
_REPLAYED = set(_RECORDED["scenarios"]) - {
    "pull_after_repack",
    "pipelined",
    "unknown_root",
    "version_002_on_plain_server",
}

CONTENT = b"some content"
DIGEST = digest_of(CONTENT)


async def _connect(server: BadServer) -> RawClient:
    return RawClient(await trio.open_tcp_stream("127.0.0.1", server.port))


@pytest.mark.parametrize("request_", _RANGED)
async def test_its_ranges_are_broken_as_recorded(request_: str) -> None:
    length, chunk = map(int, request_.split(","))
    recorded = _RANGED[request_]
    packed = pack(Random(1).randbytes(2097184 - 16))
    async with bad_server() as server, await _connect(server) as client:
        server.have(DIGEST.hex, packed)
        await client.ask(HELLO, 24)
        await client.say(pull(DIGEST, length, chunk))
        await client.finish_saying()
        answer = await client.hear_all()
    if recorded["answer"] == "ERIO":
        assert answer == b"ERIO"
        return
    announced = take(DIGEST, recorded["announced_size"], recorded["announced_chunk"])
    assert answer[:54] == announced
    assert len(answer) == 54 + recorded["bytes_sent"]
    right = packed[chunk * MIB :][: recorded["bytes_sent"]]
    assert (answer[54:] == right) is recorded["right_bytes"]
    assert packed.startswith(answer[54:]) is recorded["starts_at_zero"]


@pytest.mark.parametrize("scenario", sorted(_REPLAYED))
async def test_it_answers_as_recorded(scenario: str, autojump_clock: None) -> None:
    frames = [f for f in _RECORDED["scenarios"][scenario]["transcript"] if "hex" in f]
    async with bad_server() as server, await _connect(server) as client:
        for frame in frames:
            data = bytes.fromhex(frame["hex"])
            if frame["from"] == "client":
                await client.say(data)
            else:
                assert await client.hear(len(data)) == data


def test_it_packs_as_recorded() -> None:
    for sample in SAMPLES:
        content = _RECORDED["content_hex"]
        if sample.name == "none":
            assert pack(bytes.fromhex(content)) == sample.packed


async def test_it_verifies_nothing_as_deployed_servers_do() -> None:
    async with bad_server() as server, await _connect(server) as client:
        await client.ask(HELLO, 24)
        assert await client.ask(push(DIGEST, b"garbage") + size(DIGEST), 16)
        assert server.blobs[DIGEST.raw] == b"garbage"


async def test_faults_strike_when_they_are_told_to() -> None:
    async with bad_server() as server, await _connect(server) as client:
        await client.ask(HELLO, 24)
        server.fault(Phase.CHECK, Fault(instead=b"ERIO"), skip=1, times=2)
        heard = [await client.ask(check(DIGEST)) for _ in range(4)]
        assert heard == [b"NONE", b"ERIO", b"ERIO", b"NONE"]
        server.fault(Phase.CHECK, Fault(after=2, then="reset"))
        await client.say(check(DIGEST))
        assert len(await client.hear_all()) <= 2  # a reset may overtake what was said before it


@pytest.mark.process
def test_it_runs_as_a_process(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(CONTENT)

    async def ask(server: BadServerProcess) -> bytes:
        async with RawClient(await trio.open_tcp_stream("127.0.0.1", server.port)) as client:
            await client.ask(HELLO, 24)
            return await client.ask(check(DIGEST))

    with BadServerProcess() as server:
        assert server.put(tmp_path / "file", "zstd", level=5) == DIGEST.hex
        server.fault(Phase.CHECK, Fault(instead=b"ERIO"), times=1)
        assert trio.run(ask, server) == b"ERIO"
        assert trio.run(ask, server) == b"HAVE"
        server.mend()
        server.hang_up()
        server.freeze()
        server.thaw()
        counts = server.counts()
        assert counts == {"connections": 2, "open": 0, "commands": {"CHCK": 2}, "pulls": 0}
