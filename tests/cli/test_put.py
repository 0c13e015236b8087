"""``cafsfs put``: lines that b3sum -c checks, and what becomes of files that fail."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from cafsfs.packing import hash_bytes
from tests.cli.running import CAFSFS, Serving, environment, run

pytestmark = pytest.mark.process

TEXT = b"The quick brown fox jumps over the lazy dog.\n"


def checked(out: bytes, directory: Path) -> list[bytes]:
    """Check lines as ``b3sum -c`` does, by its README; returns the names, unescaped."""
    names = []
    for each in out.removesuffix(b"\n").split(b"\n"):
        escaped = each.startswith(b"\\")
        line = each[escaped:]
        digest, gap, name = line[:64], line[64:66], line[66:]
        assert gap == b"  "
        if escaped:
            pieces = name.split(rb"\\")
            assert not any(b"\\" in piece.replace(rb"\n", b"") for piece in pieces)
            name = b"\\".join(piece.replace(rb"\n", b"\n") for piece in pieces)
        content = (directory / os.fsdecode(name)).read_bytes()
        assert hash_bytes(content).hex.encode() == digest
        names.append(name)
    return names


@pytest.mark.parametrize(
    "name",
    ["plain", "with space", " ", "tail ", "ä€", "new\nline", "back\\slash", "\\n", "a\\\nb", "*"],
)
def test_lines_are_those_of_b3sum(server: Serving, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(name.encode())
    done = run("put", server.uri, "--", name, cwd=tmp_path).ok()
    assert checked(done.out, tmp_path) == [name.encode()]
    odd = "\n" in name or "\\" in name
    assert done.out.startswith(b"\\") == odd


def test_names_keep_their_bytes(server: Serving, tmp_path: Path) -> None:
    name = b"latin \xe4\xff"
    (tmp_path / os.fsdecode(name)).write_bytes(name)
    done = run("put", server.uri, name, cwd=tmp_path, env={"LC_ALL": "C.UTF-8"}).ok()
    assert checked(done.out, tmp_path) == [name]


def test_lines_come_in_the_order_of_the_files(server: Serving, tmp_path: Path) -> None:
    count = 30
    names = [f"{number:02}" for number in range(count)]
    for number, name in enumerate(names):  # the first are the largest, and done last
        (tmp_path / name).write_bytes(os.urandom(((count - number) ** 3) * 100))
    names.insert(3, "absent")
    done = run("put", server.uri, *names, cwd=tmp_path)
    assert done.code == 1
    assert checked(done.out, tmp_path) == [each.encode() for each in names if each != "absent"]


def test_directories_are_walked(server: Serving, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "sub" / "deep").mkdir(parents=True)
    (tree / "empty").mkdir()
    for name in ("b", "a", "sub/c", "sub/deep/d"):
        (tree / name).write_text(name)
    (tree / "link").symlink_to("a")
    (tree / "tree").symlink_to(".")  # not followed, or there would be no end
    (tree / "dangling").symlink_to("nowhere")
    (tree / "circle").symlink_to("circle")
    os.mkfifo(tree / "fifo")
    (tmp_path / "beside").write_text("beside")
    done = run("put", server.uri, "tree", "beside", cwd=tmp_path).ok()
    assert [each.decode() for each in checked(done.out, tmp_path)] == [
        "tree/a",
        "tree/b",
        "tree/link",
        "tree/sub/c",
        "tree/sub/deep/d",
        "beside",
    ]


def test_an_empty_directory_is_no_failure(server: Serving, tmp_path: Path) -> None:
    assert run("put", server.uri, tmp_path).ok().out == b""


def test_others_are_uploaded_if_a_file_is_missing(server: Serving, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    done = run("put", server.uri, "a", "missing", "b", cwd=tmp_path)
    assert done.code == 1
    assert done.complaint() == "cannot read `missing`: No such file or directory"
    assert checked(done.out, tmp_path) == [b"a", b"b"]
    assert all(server.path_of(hash_bytes(content)).exists() for content in (b"a", b"b"))


def test_a_fifo_is_refused_at_once(server: Serving, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    done = run("put", server.uri, "fifo", cwd=tmp_path)
    assert done.code == 1
    assert done.complaint() == "cannot read `fifo`: it is no regular file"


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user to be refused something")
def test_what_may_not_be_read_is_said_and_not_passed_over(open_directory: Path) -> None:
    store, tree = open_directory / "store", open_directory / "tree"
    store.mkdir()
    store.chmod(0o777)
    (tree / "closed" / "deep").mkdir(parents=True)
    (tree / "closed").chmod(0o700)
    (tree / "open").write_text("open")
    (tree / "secret").write_text("secret")
    (tree / "secret").chmod(0o600)
    command = ("put", f"file://{store}", "tree", "tree/closed/deep/file")
    done = run(*command, cwd=open_directory, nobody=True)
    assert done.code == 1
    assert checked(done.out, open_directory) == [b"tree/open"]
    assert sorted(done.err.splitlines()) == [
        "error: cannot read `tree/closed/deep/file`: Permission denied",
        "error: cannot read `tree/closed`: Permission denied",
        "error: cannot read `tree/secret`: Permission denied",
    ]


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user to be refused something")
def test_a_store_that_may_not_be_looked_at(open_directory: Path) -> None:
    (open_directory / "closed" / "root").mkdir(parents=True)
    (open_directory / "closed").chmod(0o700)
    (open_directory / "file").touch()
    uri = f"file://{open_directory}/closed/root"
    done = run("put", uri, "file", cwd=open_directory, nobody=True)
    assert done.code == 1
    assert "closed/root`" in done.complaint()


@pytest.mark.parametrize("compression", ["none", "zstd", "zlib"])
def test_compression_is_chosen_and_only_where_it_is_worth_it(
    server: Serving, tmp_path: Path, compression: str
) -> None:
    (tmp_path / "large").write_bytes(compression.encode() + TEXT * 1000)
    (tmp_path / "small").write_bytes(compression.encode())
    command = ("put", "--compression", compression, server.uri, "large", "small")
    run(*command, cwd=tmp_path).ok()
    magics = [
        server.path_of(hash_bytes((tmp_path / name).read_bytes())).read_bytes()[:4]
        for name in ("large", "small")
    ]
    assert magics == [compression.upper().encode(), b"NONE"]


def test_what_is_there_is_not_sent_again(server: Serving, tmp_path: Path) -> None:
    content = os.urandom(100_000)
    seen = len(server.connections)
    server.put(tmp_path, content)
    server.put(tmp_path, content)
    first, second = server.wait_for_connections(seen + 2)[seen:]
    assert int(first["received"]) > 100_000
    assert int(second["received"]) < 200


def test_an_unknown_root_is_said_for_each_file_and_hinted_at_once(
    server: Serving, tmp_path: Path
) -> None:
    names = ["a", "b", "c"]
    for name in names:
        (tmp_path / name).write_text(name)
    done = run("put", f"cafs://{server.address}/none", *names, cwd=tmp_path)
    assert (done.code, done.out) == (1, b"")
    lines = sorted(line for line in done.err.splitlines() if line.startswith("error: "))
    assert lines == [
        f"error: cannot upload `{name}`: {server.address} answers ERIO" for name in names
    ]
    assert done.err.count("\nhint: has the server a root `/none`") == 1


def test_without_a_server_one_line_is_enough_for_all_files(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / str(number)).write_text("x")
    done = run("put", "cafs://127.0.0.1:1/data", tmp_path)
    assert done.code == 1
    assert done.complaint() == "cannot connect to 127.0.0.1:1: Connection refused"
    assert "is a server running there?" in done.hint()


def test_a_directory_of_roots_needs_no_server(tmp_path: Path) -> None:
    root, file = tmp_path / "root", tmp_path / "file"
    root.mkdir()
    file.write_text("content")
    done = run("put", f"file://{root}", file).ok()
    digest = done.text[:64]
    assert run("cat", f"file://{root}", digest).ok().out == b"content"


def test_a_reader_who_leaves_is_no_error_to_shout_about(server: Serving, tmp_path: Path) -> None:
    for number in range(200):
        (tmp_path / str(number)).write_text(str(number))
    with subprocess.Popen(
        [*CAFSFS, "put", server.uri, tmp_path],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    ) as put:
        assert put.stdout is not None
        put.stdout.readline()
        put.stdout.close()
        assert put.stderr is not None
        assert put.stderr.read() == b""
