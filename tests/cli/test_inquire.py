"""``cafsfs check`` and ``stat``: for eyes, for scripts, and by exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cafsfs.packing import hash_bytes
from tests.cli.running import ABSENT, Serving, run

pytestmark = pytest.mark.process

NOBODY = "cafs://127.0.0.1:1/data"


@pytest.fixture(scope="module")
def blobs(server: Serving, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A plain blob, a compressed one, an empty one."""
    directory = tmp_path_factory.mktemp("blobs")
    return {
        "plain": server.put(directory, b"plain").hex,
        "packed": server.put(directory, b"packed " * 1000, "--compression", "zstd").hex,
        "empty": server.put(directory, b"").hex,
    }


def test_check_tells_by_line_and_exit_code(server: Serving, blobs: dict[str, str]) -> None:
    there = run("check", server.uri, *blobs.values()).ok()
    assert there.text == "".join(f"{each}  present\n" for each in blobs.values())
    mixed = run("check", server.uri, blobs["plain"], ABSENT.hex, blobs["empty"])
    assert (mixed.code, mixed.err) == (1, "")
    assert [line.split()[1] for line in mixed.text.splitlines()] == ["present", "absent", "present"]


def test_check_says_in_json_what_it_says(server: Serving, blobs: dict[str, str]) -> None:
    done = run("check", "--json", server.uri, blobs["plain"], ABSENT.hex)
    assert (done.code, done.err) == (1, "")
    assert json.loads(done.text) == [
        {"hash": blobs["plain"], "present": True},
        {"hash": ABSENT.hex, "present": False},
    ]


def test_many_hashes_are_checked_in_one_go(server: Serving, blobs: dict[str, str]) -> None:
    hashes = [hash_bytes(str(number).encode()).hex for number in range(1500)]
    done = run("check", server.uri, *hashes, blobs["plain"])
    assert done.code == 1
    assert done.text.count("absent") == 1500
    assert done.text.endswith(f"{blobs['plain']}  present\n")


@pytest.mark.parametrize("command", ["check", "stat"])
def test_nobody_could_tell_is_an_exit_code_of_its_own(command: str) -> None:
    done = run(command, NOBODY, ABSENT.hex)
    assert (done.code, done.out) == (3, b"")
    assert done.complaint() == "cannot connect to 127.0.0.1:1: Connection refused"
    assert done.hint()


@pytest.mark.parametrize("command", ["check", "stat"])
def test_a_directory_that_is_not_there_cannot_tell(command: str, tmp_path: Path) -> None:
    done = run(command, f"file://{tmp_path}/none", ABSENT.hex)
    assert (done.code, done.out) == (3, b"")
    assert done.complaint() == f"there is no root `{tmp_path}/none`"
    assert done.hint() == f"make it: mkdir -p {tmp_path}/none"


def test_stat_tells_sizes_and_compression(server: Serving, blobs: dict[str, str]) -> None:
    done = run("stat", server.uri, *blobs.values()).ok()
    plain, packed, empty = done.text.splitlines()
    source = f"  source={server.address}"
    assert plain == f"{blobs['plain']}  size=5  packed=21  compression=none{source}"
    assert packed.startswith(f"{blobs['packed']}  size=7000  packed=")
    assert packed.endswith(f"  compression=zstd{source}")
    assert empty == f"{blobs['empty']}  size=0  packed=16  compression=none{source}"


def test_stat_of_an_absent_blob(server: Serving, blobs: dict[str, str]) -> None:
    done = run("stat", server.uri, ABSENT.hex, blobs["plain"])
    assert (done.code, done.err) == (1, "")
    assert done.text.splitlines()[0] == f"{ABSENT}  absent"
    assert " size=5 " in done.text.splitlines()[1]


def test_stat_says_in_json_all_that_it_knows(server: Serving, blobs: dict[str, str]) -> None:
    done = run("stat", "--json", server.uri, blobs["packed"], ABSENT.hex)
    assert (done.code, done.err) == (1, "")
    packed, absent = json.loads(done.text)
    assert packed == {
        "hash": blobs["packed"],
        "present": True,
        "size": 7000,
        "packed_size": server.path_of(hash_bytes(b"packed " * 1000)).stat().st_size,
        "compression": "zstd",
        "source": server.address,
    }
    assert absent == {"hash": ABSENT.hex, "present": False}


def test_a_hash_that_is_named_twice_is_told_twice(server: Serving, blobs: dict[str, str]) -> None:
    for command in ("check", "stat"):
        done = run(command, server.uri, blobs["plain"], blobs["plain"]).ok()
        first, second = done.text.splitlines()
        assert first == second
