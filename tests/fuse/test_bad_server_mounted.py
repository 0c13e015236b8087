"""A server that misbehaves gives errors in bounded time, and never a wrong copy.

The C library's errno through cp is what users see; what each error is called inside is tested
beside the client.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bad_server import BadServerProcess, Fault, Phase, pack
from tests.fuse.conftest import Mounting
from tests.fuse.mounted import Mounted
from tests.fuse.processes import eventually, run
from tests.fuse.serving import ROOT, Blob, BlobMaker, Roots, Served

pytestmark = pytest.mark.fuse

SIZE = 700_000  # so large that its size is asked for, not pulled
DEADLINES = (
    *("--lookup-timeout", "5", "--read-timeout", "2"),
    *("--connect-timeout", "1", "--answer-timeout", "1.2", "--progress-timeout", "0.7"),
)
BOUND = 12.0  # seconds for any of it; most take none
SAYS_LESS, SAYS_MORE = SIZE - 100_000, SIZE + 100_000

IO = "Input/output error"
LATE = "Connection timed out"
ABSENT = "No such file or directory"
NOTHING = ""  # is wrong: the length in TAKE counts, not the one of SIZE

# What goes wrong, and what cp says of it where no other server helps.
FAULTS = {
    "greeting stalls": (Phase.GREETING, Fault(then="stall"), LATE),
    "greeting is garbage": (Phase.GREETING, Fault(instead=b"HTTP/1.1 400 Bad Request\r\n"), IO),
    "verdict refuses": (Phase.VERDICT, Fault(instead=b"ERBD"), IO),
    "verdict resets": (Phase.VERDICT, Fault(then="reset"), IO),
    "size stalls": (Phase.SIZE, Fault(then="stall"), LATE),
    "size resets": (Phase.SIZE, Fault(then="reset"), IO),
    "size is garbage": (Phase.SIZE, Fault(instead=b"\xff" * 12), IO),
    "size is too small": (Phase.SIZE, Fault(lie=-300_000), NOTHING),
    "size is too large": (Phase.SIZE, Fault(lie=300_000), NOTHING),
    "size breaks off": (Phase.SIZE, Fault(after=6, then="close"), IO),
    "pull stalls": (Phase.PULL, Fault(then="stall"), LATE),
    "pull is refused": (Phase.PULL, Fault(instead=b"ERIO"), IO),
    "pull is garbage": (Phase.PULL, Fault(instead=b"garbage, garbage, garbage"), IO),
    "pull announces less": (Phase.PULL, Fault(lie=-100_000), IO),
    "pull announces more": (Phase.PULL, Fault(lie=100_000), IO),
    "pull says it is absent": (Phase.PULL, Fault(instead=b"NONE"), ABSENT),
    "body stalls": (Phase.BODY, Fault(after=SIZE // 2, then="stall"), LATE),
    "body resets": (Phase.BODY, Fault(after=SIZE // 2, then="reset"), IO),
    "body breaks off": (Phase.BODY, Fault(after=SIZE // 2, then="close"), IO),
    "body breaks off in its header": (Phase.BODY, Fault(after=7, then="close"), IO),
    "body has a wrong byte": (Phase.BODY, Fault(spoil=100_000), IO),
    "body has a wrong last byte": (Phase.BODY, Fault(spoil=-1), IO),
    "body has a wrong header": (Phase.BODY, Fault(spoil=0), IO),
    "body is garbage": (Phase.BODY, Fault(instead=bytes(SIZE + 16)), IO),
}


@pytest.fixture(scope="module")
def alone_shared(shared_server: BadServerProcess, home: Path) -> Iterator[Mounted]:
    directory = home / "alone"
    directory.mkdir()
    mounted = Mounted(f"cafs://{shared_server.address}{ROOT}", directory, DEADLINES)
    yield mounted
    wrong = mounted.clear()
    assert not wrong, "\n".join(wrong)


@pytest.fixture
def alone(server: BadServerProcess, alone_shared: Mounted) -> Iterator[Mounted]:
    """The mount of the bad server alone. Any warning may come, no error."""
    yield from _judged(alone_shared)


@pytest.fixture(scope="module")
def good_roots(home: Path) -> Roots:
    return Roots(home / "roots")


@pytest.fixture(scope="module")
def beside_shared(
    shared_server: BadServerProcess, good_roots: Roots, home: Path
) -> Iterator[Mounted]:
    directory = home / "beside"
    directory.mkdir()
    with Served(good_roots, home / "serve.log") as good:
        uri = f"cafs://{shared_server.address},{good.address}{ROOT}"
        mounted = Mounted(uri, directory, DEADLINES)
        yield mounted
        wrong = mounted.clear()
        assert not wrong, "\n".join(wrong)


@pytest.fixture
def beside(server: BadServerProcess, beside_shared: Mounted) -> Iterator[Mounted]:
    """The mount of two servers: the bad one, and one that is good."""
    yield from _judged(beside_shared)


def _judged(mounted: Mounted) -> Iterator[Mounted]:
    mounted.announce("^[^\n]* WARNING [^\n]*$")
    yield mounted
    # A read-ahead may be answered after its reader has gone, and would speak in the next test.
    eventually(lambda: mounted.stats()["filesystem"]["open_handles"] == 0, what="all is closed")
    wrong = mounted.judge_log()
    assert not wrong, "in the log:\n" + "\n".join(wrong)


def copy(mount: Mounted, blob: Blob, target: Path) -> tuple[str, bytes | None]:
    """Copy with cp: what it complained about, and the copy if it thought that it had succeeded."""
    target.unlink(missing_ok=True)
    done = run("cp", mount.path(blob), target, within=BOUND)
    if done.code == 0:
        return NOTHING, target.read_bytes()
    return done.err.strip().rpartition(": ")[2], None


@pytest.mark.parametrize("name", FAULTS)
def test_a_bad_server_gives_the_right_error_in_time_and_never_a_wrong_copy(
    alone: Mounted, server: BadServerProcess, blobs: BlobMaker, scratch: Path, name: str
) -> None:
    blob = blobs.random(SIZE)
    server.put(blob.source)
    server.hang_up()  # a pooled connection would skip the greeting
    phase, fault, complaint = FAULTS[name]
    server.fault(phase, fault)
    expected = blob.content if complaint == NOTHING else None
    assert copy(alone, blob, scratch / "copy") == (complaint, expected)
    server.mend()
    server.hang_up()
    # Nothing of it lasts: the blob is whole as soon as the server is.
    whole = lambda: copy(alone, blob, scratch / "again") == (NOTHING, blob.content)  # noqa: E731
    eventually(whole, within=BOUND, what="a copy after the server was mended")


@pytest.mark.parametrize("name", FAULTS)
def test_with_a_good_server_beside_a_bad_one_the_copy_is_right(
    beside: Mounted,
    server: BadServerProcess,
    good_roots: Roots,
    blobs: BlobMaker,
    scratch: Path,
    name: str,
) -> None:
    blob = good_roots.put(blobs.random(SIZE))
    server.put(blob.source)
    server.hang_up()
    phase, fault, _ = FAULTS[name]
    server.fault(phase, fault)
    assert copy(beside, blob, scratch / "copy") == (NOTHING, blob.content)


@pytest.mark.parametrize("announced", [SAYS_LESS, SAYS_MORE], ids=["less", "more"])
@pytest.mark.parametrize("how", ["zstd", "zlib"])
def test_a_header_that_lies_about_the_content_length_never_makes_a_wrong_copy(
    alone: Mounted,
    server: BadServerProcess,
    blobs: BlobMaker,
    scratch: Path,
    announced: int,
    how: str,
) -> None:
    blob = blobs.random(SIZE)
    server.put(blob.source, how, announced=announced)
    for _ in range(2):
        assert copy(alone, blob, scratch / "copy") == (IO, None)


@pytest.mark.parametrize("announced", [SAYS_LESS, SAYS_MORE], ids=["less", "more"])
def test_a_header_that_lies_is_found_out_by_a_good_server_beside_it(
    mounting: Mounting,
    server: BadServerProcess,
    good_roots: Roots,
    blobs: BlobMaker,
    scratch: Path,
    announced: int,
) -> None:
    blob = good_roots.put(blobs.random(SIZE), "zstd")
    server.put(blob.source, "zstd", announced=announced)
    with Served(good_roots, scratch / "serve.log") as good:
        # A mount of its own: one that has just waited for the liar in vain would ask it last.
        mount = mounting(uri=f"cafs://{server.address},{good.address}{ROOT}")
        mount.announce("^[^\n]* WARNING [^\n]*$")
        # A size that was given out cannot be taken back in the middle of a copy; the next has it.
        assert copy(mount, blob, scratch / "copy") == (IO, None)
        assert copy(mount, blob, scratch / "copy") == (NOTHING, blob.content)


@pytest.mark.parametrize("how", ["none", "zstd"])
def test_the_wrong_content_under_a_hash_is_never_seen(
    mounting: Mounting, roots: Roots, blobs: BlobMaker, scratch: Path, how: str
) -> None:
    blob, other = blobs.random(SIZE), blobs.random(SIZE)
    roots.put(blob)
    roots.file(blob).write_bytes(pack(other.content, how))
    mount = mounting(uri=roots.uri)
    mount.announce("WARNING .*read: ")
    assert copy(mount, blob, scratch / "copy") == (IO, None)
