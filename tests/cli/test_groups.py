"""Several real servers: replicas, who takes over, and what is said when too few are left."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from cafsfs.digest import Digest
from cafsfs.packing import hash_bytes
from tests.cli.running import ABSENT, Done, Serving, run

pytestmark = pytest.mark.process


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[list[Serving]]:
    """Three, on addresses of their own."""
    made = [Serving(tmp_path / str(number), host=f"127.0.0.{number}") for number in (2, 3, 4)]
    yield made
    for each in made:
        each.kill()


def group(servers: Sequence[Serving]) -> str:
    return f"cafs://{','.join(each.address for each in servers)}/data"


def files(directory: Path, count: int, size: int = 1000) -> list[Path]:
    """New files, each with content of its own."""
    directory.mkdir()
    made = [directory / f"{number:02}" for number in range(count)]
    for each in made:
        each.write_bytes(os.urandom(size))
    return made


def told(done: Done) -> dict[str, list[str]]:
    """Servers by path, of ``put --json``."""
    lines = [json.loads(line) for line in done.out.splitlines()]
    for each in lines:
        assert each.keys() == {"hash", "path", "servers"}
        assert hash_bytes(Path(each["path"]).read_bytes()).hex == each["hash"]
    return {each["path"]: each["servers"] for each in lines}


def holders(servers: Sequence[Serving], path: Path) -> list[str]:
    digest = hash_bytes(path.read_bytes())
    return [each.address for each in servers if each.has(digest)]


def test_each_file_is_on_as_many_servers_as_asked_and_put_says_on_which(
    servers: list[Serving], tmp_path: Path
) -> None:
    made = files(tmp_path / "files", 12)
    done = run("put", "--replicas", "2", "--json", group(servers), *made)
    assert done.code == 0
    said = told(done)
    assert list(said) == [str(each) for each in made]
    for path in made:
        assert sorted(said[str(path)]) == holders(servers, path)
        assert len(said[str(path)]) == 2
    counts = {each.address: sum(each.address in them for them in said.values()) for each in servers}
    assert all(counts.values())  # six times in a million one gets none by chance
    rest = ", ".join(f"{name} has {count}" for name, count in sorted(counts.items()))
    assert done.err == f"stored 12 files on 2 servers each, {rest}\n"


def test_one_server_of_a_group_is_the_default_and_says_nothing(
    servers: list[Serving], tmp_path: Path
) -> None:
    (path,) = files(tmp_path / "files", 1)
    done = run("put", group(servers), path).ok()
    assert done.text == f"{hash_bytes(path.read_bytes())}  {path}\n"
    assert len(holders(servers, path)) == 1


def test_where_one_is_dead_the_third_takes_over(servers: list[Serving], tmp_path: Path) -> None:
    before = files(tmp_path / "before", 8)
    assert run("put", "--replicas", "2", group(servers), *before).code == 0
    servers[0].kill()
    for path in before:  # each is on one of the others
        digest = hash_bytes(path.read_bytes())
        assert run("cat", group(servers), digest.hex).ok().out == path.read_bytes()
    after = files(tmp_path / "after", 8)
    done = run("put", "--replicas", "2", "--json", group(servers), *after)
    assert done.code == 0
    living = sorted(each.address for each in servers[1:])
    assert {tuple(sorted(each)) for each in told(done).values()} == {tuple(living)}
    assert all(holders(servers, each) == living for each in after)


def test_where_too_few_are_left_it_fails_and_says_who_has_it(
    servers: list[Serving], tmp_path: Path
) -> None:
    made = files(tmp_path / "files", 2)
    for each in servers[:2]:
        each.kill()
    done = run("put", "--replicas", "2", group(servers), *made)
    assert (done.code, done.out) == (1, b"")
    errors = sorted(line for line in done.err.splitlines() if line.startswith("error: "))
    for path, error in zip(made, errors, strict=True):
        assert error.startswith(
            f"error: cannot upload `{path}`: it is on {servers[2].address} only,"
            " not on 2 servers: cannot connect to 127.0.0."
        )
        for each in servers[:2]:
            assert f"cannot connect to {each.address}: Connection refused" in error
        assert holders(servers, path) == [servers[2].address]
    assert done.err.count("\nhint: is a server running there?") == 1
    assert "stored" not in done.err


def test_where_all_are_dead_one_line_names_them(servers: list[Serving], tmp_path: Path) -> None:
    made = files(tmp_path / "files", 5)
    for each in servers:
        each.kill()
    done = run("put", "--replicas", "2", group(servers), *made)
    assert (done.code, done.out) == (1, b"")
    assert all(f"cannot connect to {each.address}" in done.complaint() for each in servers)


def test_a_server_that_has_a_large_file_is_not_sent_it_again(
    servers: list[Serving], tmp_path: Path
) -> None:
    (path,) = files(tmp_path / "files", 1, size=300_000)
    for _ in range(2):
        done = run("put", "--replicas", "3", "--json", group(servers), path)
        assert done.code == 0
        assert sorted(told(done)[str(path)]) == sorted(each.address for each in servers)
    for each in servers:
        first, second = each.wait_for_connections(2)
        assert int(first["received"]) > 300_000
        assert int(second["received"]) < 300


@pytest.mark.parametrize("uri", ["cafs://a,b/data", "file://{}"])
def test_more_replicas_than_there_can_be_are_refused(uri: str, tmp_path: Path) -> None:
    (path,) = files(tmp_path / "files", 1)
    done = run("put", "--replicas", "3", uri.format(tmp_path), path)
    assert (done.code, done.out) == (2, b"")
    assert "3" in done.complaint()
    assert done.hint()


def test_a_directory_says_that_it_has_the_file(tmp_path: Path) -> None:
    (path,) = files(tmp_path / "files", 1)
    (tmp_path / "root").mkdir()
    for _ in range(2):
        done = run("put", "--json", f"file://{tmp_path}/root", path).ok()
        assert told(done) == {str(path): [f"{tmp_path}/root"]}


def put(server: Serving, path: Path) -> Digest:
    run("put", server.uri, path).ok()
    return hash_bytes(path.read_bytes())


def test_absent_is_what_all_say_and_unknown_what_one_could_not(
    servers: list[Serving], tmp_path: Path
) -> None:
    first, last = (put(servers[0], each) for each in files(tmp_path / "files", 2))
    hashes = [first.hex, ABSENT.hex, last.hex]
    done = run("check", group(servers), *hashes)
    assert (done.code, done.err) == (1, "")
    assert [line.split()[1] for line in done.text.splitlines()] == ["present", "absent", "present"]
    servers[1].kill()
    for command in ("check", "stat"):
        done = run(command, group(servers), *hashes)
        assert done.code == 3
        assert [line[:64] for line in done.text.splitlines()] == [first.hex, last.hex]
        assert done.complaint() == f"cannot connect to {servers[1].address}: Connection refused", (
            command
        )
        assert run(command, group(servers), first.hex).ok().text.startswith(first.hex)
    done = run("check", "--json", group(servers), *hashes)
    assert json.loads(done.text) == [
        {"hash": first.hex, "present": True},
        {"hash": last.hex, "present": True},
    ]


def test_stat_tells_who_told(servers: list[Serving], tmp_path: Path) -> None:
    for server, path in zip(servers, files(tmp_path / "files", 3), strict=True):
        digest = put(server, path)
        line = run("stat", group(servers), digest.hex).ok().text
        assert line.endswith(f"  source={server.address}\n")


def test_the_own_zone_is_written_to_and_read_from(servers: list[Serving], tmp_path: Path) -> None:
    here, *others = servers
    places = [f"{here.address};zone=here", *(f"{each.address};zone=there" for each in others)]
    uri = f"cafs://{','.join(reversed(places))}/data?zone=here"
    made = files(tmp_path / "files", 6)
    done = run("put", "--json", uri, *made).ok()
    assert set(map(tuple, told(done).values())) == {(here.address,)}
    both = run("put", "--replicas", "2", "--json", uri, *made)
    assert all(here.address in each for each in told(both).values())
    for path in made:
        stat = run("stat", uri, hash_bytes(path.read_bytes()).hex).ok()
        assert stat.text.endswith(f"  source={here.address}\n")
    away = run("put", "--json", "--zone", "there", uri, *made).ok()  # a flag is stronger
    assert all(here.address not in each for each in told(away).values())


def test_a_group_of_a_file(servers: list[Serving], tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    tables = [f'[[server]]\naddress = "{each.address}"\n' for each in servers]
    config.write_text("replicas = 3\n" + "".join(tables))
    (path,) = files(tmp_path / "files", 1)
    done = run("put", "--config", config, "--json", "cafs:///data", path)
    assert done.code == 0
    assert sorted(told(done)[str(path)]) == sorted(each.address for each in servers)
    servers[0].kill()
    digest = hash_bytes(path.read_bytes())
    got = run("cat", "--config", config, "cafs:///data", digest.hex).ok()
    assert got.out == path.read_bytes()
    # Who names one host talks to no other.
    alone = run("cat", "--config", config, servers[0].uri, digest.hex)
    assert alone.code == 1
    assert alone.complaint() == f"cannot connect to {servers[0].address}: Connection refused"
