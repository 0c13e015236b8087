"""The ranges that deployed servers get wrong, answered right."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest

from cafsfs.digest import Digest
from tests.bad_server import MIB, pack
from tests.server.stand import Stand, check, digest_of, pull, serving, take

_RECORDED = json.loads((Path(__file__).parent.parent / "vectors" / "ranged-pull.json").read_text())

# As long as the recorded one, and no two of its pieces alike.
PACKED = pack(Random(1).randbytes(2097184 - 16))
DIGEST = digest_of(PACKED[16:])


def _keep(stand: Stand) -> Digest:
    stand.keep(PACKED, DIGEST)
    return DIGEST


@pytest.mark.parametrize("request_", _RECORDED["requests"])
async def test_recorded_request_is_answered_with_the_right_bytes(
    tmp_path: Path, request_: str
) -> None:
    length, chunk = map(int, request_.split(","))
    async with serving(tmp_path) as stand, await stand.greeted() as client:
        digest = _keep(stand)
        if _RECORDED["requests"][request_]["answer"] == "ERIO":
            expected = b"ERIO"
        else:
            start = chunk * MIB
            body = PACKED[start : start + length] if length else PACKED[start:]
            expected = take(digest, len(body), chunk) + body
        # The next answer follows at once: the connection is in step.
        heard = await client.ask(pull(digest, length, chunk) + check(digest), len(expected) + 4)
        assert heard == expected + b"HAVE"


@pytest.mark.parametrize(
    ("length", "chunk"),
    [(2**64 - 1, 0), (2**63, 0), (2**64 - MIB, 1), (1, 2**32 - 1), (0, 2**32 - 1), (33, 2)],
)
async def test_range_outside_the_blob_is_erio(tmp_path: Path, length: int, chunk: int) -> None:
    async with serving(tmp_path) as stand, await stand.greeted() as client:
        digest = _keep(stand)
        assert await client.ask(pull(digest, length, chunk) + check(digest), 8) == b"ERIOHAVE"


@pytest.mark.parametrize("length", [0, MIB, 2 * MIB])
async def test_range_at_the_very_end_is_empty(tmp_path: Path, length: int) -> None:
    digest = digest_of(b"any")
    async with serving(tmp_path) as stand, await stand.greeted() as client:
        stand.keep(bytes(length), digest)  # an empty file too: deployed servers store them
        chunk = length // MIB
        expected = take(digest, 0, chunk) + b"HAVE"
        assert await client.ask(pull(digest, 0, chunk) + check(digest), 58) == expected


async def test_blob_replaced_while_it_is_served_comes_whole_from_the_old_file(
    tmp_path: Path,
) -> None:
    """A deployed server renames a recompressed file over the old one at any time."""
    content = Random(2).randbytes(24 * MIB)  # more than the buffers of both sides hold
    async with serving(tmp_path) as stand, await stand.greeted() as client:
        digest = stand.keep_content(content)
        packed = pack(content)
        await client.say(pull(digest))
        start = await client.hear(54 + MIB)
        stand.keep(pack(content, "zlib"), digest)
        rest = await client.hear(len(packed) - MIB)
        assert start + rest == take(digest, len(packed)) + packed
        assert await client.ask(check(digest)) == b"HAVE"


async def test_blob_cut_short_while_it_is_served_breaks_off(tmp_path: Path) -> None:
    content = bytes(24 * MIB)
    async with serving(tmp_path) as stand, await stand.greeted() as client:
        digest = stand.keep_content(content)
        await client.say(pull(digest))
        heard = await client.hear(54)
        with stand.path(digest).open("r+b") as file:
            file.truncate(100)
        heard += await client.hear_all()
        assert len(heard) < len(content)  # never a byte that is not the file's
        assert heard.startswith(take(digest, len(content) + 16))
