"""Every READ is answered with min(size, st_size − offset) bytes, or with an error.

A short answer inside a file is its end to the kernel: it shrinks the file for every reader, and cp
exits 0 with half of it.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

import pytest

from tests.bad_server import BadServerProcess
from tests.fuse.mounted import Mounted
from tests.fuse.processes import run
from tests.fuse.serving import BlobMaker

pytestmark = pytest.mark.fuse

K = 1024
EDGES = [0, 1, 4095, 4096, 4097, 128 * K - 1, 128 * K, 128 * K + 1]
SIZES = [*EDGES, K * K - 1, K * K, K * K + 1, 5 * K * K, 5 * K * K + 777]
READS = 300

# Reads a file by position as the lines of a plan say, `offset length`, and compares each answer
# with the content. O_DIRECT brings READs of just these lengths to the daemon, without read-ahead.
_READER = """
import mmap, os, sys
_, path, source, plan, flags = sys.argv
content = open(source, 'rb').read()
file = os.open(path, os.O_RDONLY | int(flags))
buffer = mmap.mmap(-1, 4 << 20)
for line in open(plan):
    offset, length = map(int, line.split())
    count = os.preadv(file, [memoryview(buffer)[:length]], offset)
    wanted = content[offset:offset + length]
    assert count == len(wanted), (offset, length, count, len(wanted))
    assert buffer[:count] == wanted, (offset, length, 'differs')
assert os.fstat(file).st_size == len(content)
"""


def plan(path: Path, size: int) -> Path:
    """Positions and lengths around every edge that counts, and any others."""
    chosen = random.Random(size)
    edges = {0, size, size - 1, size + 1, size // 2, *EDGES, *(size - edge for edge in EDGES)}
    places = sorted(edge for edge in edges if edge >= 0)
    lengths = [*EDGES, 1 << 20, size + 1]
    lines = []
    for _ in range(READS):
        offset = chosen.choice([*places, chosen.randrange(size + 2)])
        length = min(chosen.choice([*lengths, chosen.randrange(size + 2)]), 4 << 20)
        lines.append(f"{offset} {length}\n")
    path.write_text("".join(lines))
    return path


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("flags", [0, os.O_DIRECT], ids=["buffered", "direct"])
def test_any_read_anywhere_returns_what_is_there(
    mount: Mounted,
    server: BadServerProcess,
    blobs: BlobMaker,
    scratch: Path,
    size: int,
    flags: int,
) -> None:
    blob = blobs.random(size)
    server.put(blob.source)
    arguments = [str(blob.source), str(plan(scratch / "plan", size)), str(flags)]
    run(sys.executable, "-ISc", _READER, mount.path(blob), *arguments).ok()
    run("cmp", mount.path(blob), blob.source).ok()


@pytest.mark.parametrize("count", [8])
def test_many_readers_at_once_each_get_what_is_there(
    mount: Mounted, server: BadServerProcess, blobs: BlobMaker, scratch: Path, count: int
) -> None:
    blob = blobs.random(3_333_333)
    server.put(blob.source)
    reads = plan(scratch / "plan", blob.size)
    script = (
        'p=; for i in $(seq $5); do "$0" -ISc "$1" $2 $3 $4 0 & p="$p $!"; done;'
        "for i in $p; do wait $i; done"
    )
    words = [sys.executable, _READER, str(mount.path(blob)), str(blob.source), str(reads)]
    run("sh", "-e", "-c", script, *words, str(count)).ok()
