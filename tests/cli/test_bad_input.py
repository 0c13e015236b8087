"""Whatever is wrong with the input: one line, a hint, exit code 1 or 2, never a traceback."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from cafsfs.cli.app import invoke
from tests.cli.guides import documented
from tests.cli.running import ABSENT, Done, Serving, run

URI = "cafs://127.0.0.1:1/data"
HASH = ABSENT.hex


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory in which a command runs that nothing else configures."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in os.environ:
        if name.startswith("CAFSFS_"):
            monkeypatch.delenv(name)
    return tmp_path


@pytest.mark.parametrize(
    ("command", "code", "complaint", "hint"),
    [
        ("get $URI zz", 2, "`zz` is not a hash", "64 lower-case hexadecimal digits"),
        ("cat $URI $UPPER", 2, "`$UPPER` is not a hash", "lower-case"),
        ("check $URI $HASH $HASHx", 2, "`$HASHx` is not a hash", "lower-case"),
        ("stat $URI $HASH.txt", 2, "`$HASH.txt` is not a hash", "64"),
        ("put cafs//x FILE", 2, "`cafs//x` is not the URI of a store", "cafs://host:2403/root"),
        ("get cafs://h $HASH", 2, "`cafs://h` names no root", "cafs://host:2403/root"),
        ("put cafs:///r FILE", 2, "`cafs:///r` names no server", "[[server]] tables"),
        ("stat cafs:///r $HASH", 2, "`cafs:///r` names no server", "[[server]] tables"),
        ("prefetch cafs:///r $HASH", 2, "`cafs:///r` names no server", "[[server]] tables"),
        ("mount cafs:///r /mnt", 2, "`cafs:///r` names no server", "[[server]] tables"),
        ("get cafs://h;zoen=a/r $HASH", 2, "`zoen` is not an attribute", "mean `zone`?"),
        ("check cafs://h;zone=a,h/r $HASH", 2, "`h:2403` is named twice", "name it once"),
        ("get $URI $HASH --zone a,b", 2, "`a,b` is no value for --zone (flag)", "a name of"),
        ("get $URI $HASH --auth maybe", 2, "`maybe` is no value for --auth", "auto, required"),
        ("get $URI $HASH --replicas 2", 2, "no such option `--replicas`", "cafsfs get"),
        ("cat cafs://h:x/r $HASH", 2, "`x` is not a port", "1 to 65535"),
        ("put $URI?conections=1 FILE", 2, "`conections` is not an option (URI)", "`connections`?"),
        (
            "get $URI $HASH --connections 0",
            2,
            "`0` is no value for --connections (flag)",
            "it takes",
        ),
        ("get $URI $HASH --config none", 2, "cannot read `none`: No such file", "--config"),
        ("get $URI $HASH --log-file FILE/x", 2, "cannot log to `/", "--log-file"),
        (
            "put $URI",
            2,
            "missing argument `PATH…`",
            "usage: cafsfs put [OPTIONS] URI PATH…; `cafsfs",
        ),
        ("get $URI", 2, "missing argument `HASH`", "usage: cafsfs get"),
        ("get $URI $HASH $HASH", 2, "got unexpected extra argument ($HASH)", "usage: cafsfs get"),
        ("get --frobnicate $URI $HASH", 2, "no such option `--frobnicate`", "usage: cafsfs get"),
        ("get --conection 1 $URI $HASH", 2, "no such option `--conection`", "did you mean"),
        ("get $URI $HASH -o", 2, "option `-o` requires an argument", "--help`"),
        ("put --compression x $URI FILE", 2, "invalid value for `--compression`", "usage: cafsfs"),
        ("frobnicate", 2, "no such command `frobnicate`", "usage: cafsfs [OPTIONS] COMMAND"),
        ("config frobnicate", 2, "no such command `frobnicate`", "usage: cafsfs config"),
        ("mount", 2, "missing argument `URI`", "usage: cafsfs mount"),
        ("mount $URI", 2, "missing argument `MOUNTPOINT`", "usage: cafsfs mount"),
        ("mount $URI /mnt -o frobnicate", 2, "`frobnicate` is not an option (-o)", "config show"),
        ("mount $URI /mnt -o foreground=x", 2, "`x` is no value for --foreground (-o)", "true or"),
        ("mount $URI /mnt -o config=", 2, "`` is no value for --config (-o)", "it takes a path"),
        ("serve", 2, "missing argument `DIRECTORY`", "usage: cafsfs serve"),
        ("serve . --listen 2403", 2, "`2403` is no value for --listen (flag)", "HOST:PORT"),
        ("serve . --max-blob big", 2, "`big` is no value for --max-blob (flag)", "as in 20G"),
        ("serve none", 1, "`$DIR/none` is not a directory", "mkdir -p"),
        ("get $URI $HASH", 1, "cannot connect to 127.0.0.1:1: Connection refused", "is a server"),
        ("put $URI none", 1, "cannot read `none`: No such file or directory", None),
        (
            "get cafs://no-such-host.invalid/r $HASH",
            1,
            "cannot resolve `no-such",
            "is the name right",
        ),
        ("put file:///none/data FILE", 1, "there is no root `/none/data`", "mkdir -p /none/data"),
    ],
)
def test_one_line_and_a_hint(
    here: Path,
    capfd: pytest.CaptureFixture[str],
    command: str,
    code: int,
    complaint: str,
    hint: str | None,
) -> None:
    (here / "FILE").touch()
    words = {"URI": URI, "HASH": HASH, "UPPER": HASH.upper(), "DIR": str(here)}

    def spell(text: str) -> str:
        return re.sub(r"\$(URI|HASH|UPPER|DIR)", lambda found: words[found[1]], text)

    ended = invoke([spell(each) for each in command.split()])
    out, err = capfd.readouterr()
    done = Done(ended, out.encode(), err)
    assert (done.code, done.out) == (code, b"")
    assert spell(complaint) in done.complaint()
    if hint is not None:
        assert hint in done.hint()


@pytest.mark.process
@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["get", URI, "zz"], 2),
        (["get", URI, HASH], 1),
        (["check", URI, HASH], 3),
        (["get", URI], 2),
        (["serve", "/none"], 1),
    ],
)
def test_the_exit_code_is_that_of_the_process(words: list[str], code: int) -> None:
    done = run(*words)
    assert (done.code, done.out) == (code, b"")
    assert done.hint()


@pytest.mark.process
def test_a_root_that_the_server_lacks(server: Serving, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    uri = f"cafs://{server.address}/none"
    done = run("put", uri, "file", cwd=tmp_path)
    assert done.code == 1
    assert done.complaint() == f"cannot upload `file`: {server.address} answers ERIO"
    assert "has the server a root `/none`" in done.hint()
    done = run("cat", uri, HASH)
    assert done.code == 1
    assert "is `/none` the right root?" in done.hint()


@pytest.mark.process
def test_no_command_at_all_is_shown_what_there_is() -> None:
    for words in ([], ["config"]):
        done = run(*words)
        assert done.code == 2
        assert "Commands:" in done.err
        assert done.out == b""


def test_who_does_not_listen_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    assert invoke(["get", "cafs://127.0.0.1:1/data", HASH]) == 1
    assert documented("cannot connect to 127.0.0.1").search(capfd.readouterr().err)
