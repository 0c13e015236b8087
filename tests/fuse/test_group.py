"""Several real servers with the same content, and readers under whom one of them fails.

No wrong byte, no error while a good copy can be reached, and nobody waits for long. How long the
longest read took is printed (``pytest -rP``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.fuse.conftest import Mounting
from tests.fuse.mounted import Mounted
from tests.fuse.processes import cafsfs, eventually
from tests.fuse.serving import ROOT, Blob, BlobMaker, Roots, Served
from tests.soak.crowd import CrowdProcess, Report
from tests.store.tmpfs import small_tmpfs

pytestmark = pytest.mark.fuse

HOSTS = ("127.0.0.2", "127.0.0.3", "127.0.0.4")
PROCESSES, THREADS = 4, 4  # sixteen readers
UNDER_LOAD = 2.5  # seconds before and after something happens
DEADLINES = (
    *("--lookup-timeout", "10", "--read-timeout", "20"),
    *("--connect-timeout", "2", "--answer-timeout", "3", "--progress-timeout", "2"),
)
# Seconds for a read: connect, SIZE, answer and body each may meet the bad server, with two tries.
BOUND = 2 * (2 + 2 + 3 + 2) + 2.0
CACHE = "6M"  # less than what is read, so that servers are asked all the time


class Group:
    """Three servers, each with a copy of its own."""

    def __init__(self, directory: Path, blobs: list[Blob], stack: ExitStack) -> None:
        self.blobs = blobs
        self.servers = []
        for number, host in enumerate(HOSTS):
            roots = Roots(directory / f"roots-{number}")
            for each in blobs:
                roots.put(each, ("none", "zstd", "zlib")[number])
            log = directory / f"serve-{number}.log"
            self.servers.append(stack.enter_context(Served(roots, log, host=host)))
        self.catalogue = directory / "catalogue"
        self.catalogue.write_text("".join(f"{each} {each.source}\n" for each in blobs))

    @property
    def uri(self) -> str:
        return f"cafs://{','.join(each.address for each in self.servers)}{ROOT}"


@pytest.fixture(scope="module")
def shared_group(home: Path) -> Iterator[Group]:
    (home / "content").mkdir()
    maker = BlobMaker(home / "content", "group")
    blobs = [maker.random(size) for size in (1, 5_000, 100_000, 300_000, 700_000, 1_500_000) * 4]
    blobs += [maker.text(2_000_000) for _ in range(3)]
    with ExitStack() as stack:
        yield Group(home, blobs, stack)


@pytest.fixture
def group(shared_group: Group) -> Iterator[Group]:
    """Three servers; whole again after each test."""
    yield shared_group
    for number, each in enumerate(shared_group.servers):
        each.thaw()
        if not each.runs:
            each.start()
        for blob in shared_group.blobs:
            each.roots.put(blob, ("none", "zstd", "zlib")[number])


@pytest.fixture
def mount(group: Group, mounting: Mounting) -> Mounted:
    mount = mounting(*DEADLINES, "--cache-size", CACHE, uri=group.uri)
    mount.announce("^[^\n]* WARNING [^\n]*$")
    return mount


@contextmanager
def crowds_of(mount: Mounted, group: Group) -> Iterator[list[CrowdProcess]]:
    """They read from now on."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                CrowdProcess(mount.point, group.catalogue, threads=THREADS, seed=number)
            )
            for number in range(PROCESSES)
        ]


@pytest.fixture
def crowds(mount: Mounted, group: Group) -> Iterator[list[CrowdProcess]]:
    with crowds_of(mount, group) as crowds:
        yield crowds


def watch(crowds: list[CrowdProcess], seconds: float) -> Report:
    """What the readers see for so long."""
    time.sleep(seconds)
    total = Report()
    for each in crowds:
        report = each.report()
        total.reads += report.reads
        total.worst = max(total.worst, report.worst, report.lasting)
        total.incidents += report.incidents
    return total


def corrupt(server: Served, blobs: list[Blob]) -> None:
    for each in blobs:
        file = server.roots.file(each)
        packed = bytearray(file.read_bytes())
        packed[16 + (len(packed) - 16) // 2] ^= 0xFF
        file.write_bytes(packed)


def empty(server: Served, blobs: list[Blob]) -> None:
    for each in blobs:
        server.roots.file(each).unlink()


def kill_and_restart(server: Served) -> None:
    for _ in range(3):
        server.kill()
        time.sleep(0.3)
        server.start()


HAPPENINGS: dict[str, Callable[[Group, Served], None]] = {
    "killed": lambda _, server: server.kill(),
    "frozen": lambda _, server: server.freeze(),
    "killed and started": lambda _, server: kill_and_restart(server),
    "corrupt": lambda group, server: corrupt(server, group.blobs),
    "emptied": lambda group, server: empty(server, group.blobs),
}


@pytest.mark.parametrize(("whom", "what"), [(i % 3, what) for i, what in enumerate(HAPPENINGS)])
def test_one_of_three_fails_under_load(
    mount: Mounted,
    group: Group,
    crowds: list[CrowdProcess],
    whom: int,
    what: str,
) -> None:
    before = watch(crowds, UNDER_LOAD)
    assert before.reads > PROCESSES * THREADS
    HAPPENINGS[what](group, group.servers[whom])
    during = watch(crowds, UNDER_LOAD)
    print(f"worst read, all well: {before.worst:.2f} s; one {what}: {during.worst:.2f} s")
    assert [*before.incidents, *during.incidents] == []
    assert during.worst < BOUND
    counters = mount.counters()
    assert counters["pulls"] > len(group.blobs)
    assert counters["handler_errors"] == 0


def test_one_good_copy_is_enough(mount: Mounted, group: Group, crowds: list[CrowdProcess]) -> None:
    """One of three is frozen, one has only wrong bytes, and is then killed as well."""
    good, wrong, frozen = group.servers
    corrupt(wrong, group.blobs)
    frozen.freeze()
    during = watch(crowds, UNDER_LOAD)
    wrong.kill()
    after = watch(crowds, UNDER_LOAD)
    assert [*during.incidents, *after.incidents] == []
    assert max(during.worst, after.worst) < BOUND
    assert good.runs


def test_the_better_server_is_asked_again_when_it_comes_back(
    mounting: Mounting, group: Group
) -> None:
    better, *others = [each.address for each in group.servers]
    uri = f"cafs://{better},{','.join(f'{each};priority=1' for each in others)}{ROOT}"
    mount = mounting(*DEADLINES, "--cache-size", CACHE, uri=uri)
    mount.announce("^[^\n]* WARNING [^\n]*$")

    def state() -> tuple[str, int]:
        [found] = [each for each in mount.servers() if each["name"] == better]
        return found["state"], found["requests"]

    with crowds_of(mount, group) as crowds:
        watch(crowds, 1.0)
        group.servers[0].kill()
        eventually(lambda: state()[0] == "down", what="it is down")
        assert watch(crowds, 1.0).incidents == []
        before = state()[1]
        group.servers[0].start()
        eventually(lambda: state()[0] == "up" and state()[1] > before + 10, what="it is asked")
        assert watch(crowds, 0).incidents == []


@pytest.mark.parametrize("replicas", [1, 2])
def test_uploads_go_elsewhere_when_a_server_is_full(
    scratch: Path, blobs: BlobMaker, replicas: int
) -> None:
    files = [blobs.random(600_000).source for _ in range(8)]
    with ExitStack() as stack:
        full = stack.enter_context(small_tmpfs(scratch / "small", 2 << 20))
        stores = [Roots(full), Roots(scratch / "second"), Roots(scratch / "third")]
        servers = [
            stack.enter_context(Served(each, scratch / f"serve-{host}.log", host=host))
            for each, host in zip(stores, HOSTS, strict=True)
        ]
        uri = f"cafs://{','.join(each.address for each in servers)}{ROOT}"
        put = cafsfs("put", "--replicas", str(replicas), uri, *files).ok()
        names = [line.split()[0] for line in put.text.splitlines()]
        assert len(names) == len(files)
        for name, file in zip(names, files, strict=True):
            have = [each for each in stores if each.named(name).exists()]
            assert len(have) >= replicas
            assert cafsfs("cat", uri, name).ok().out == file.read_bytes()
        held = sum(stores[0].named(name).exists() for name in names)
        assert held < len(files) * replicas / 3 + 2, "it was not full: nothing was shown"
