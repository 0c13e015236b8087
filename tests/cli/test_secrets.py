"""Secrets on the command line: where they come from, what is said without, and who never sees one.

The server is a process that demands authentication of everybody.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cafsfs.packing import hash_bytes
from tests.cli.running import ABSENT, Serving, environment, run, start

pytestmark = pytest.mark.process

SECRET = b"0123456789abcdefSECRET"
CONTENT = b"".join(b"%06d" % number for number in range(500_000))
DIGEST = hash_bytes(CONTENT)


def held(path: Path, value: bytes = SECRET + b"\n", mode: int = 0o600) -> Path:
    path.write_bytes(value)
    path.chmod(mode)
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("secrets")


@pytest.fixture(scope="module")
def secret(place: Path) -> Path:
    return held(place / "secret")


@pytest.fixture(scope="module")
def server(place: Path, secret: Path) -> Iterator[Serving]:
    (place / "required").mkdir()
    serving = Serving(place / "required", "--secret-file", secret)
    try:
        file = place / "content"
        file.write_bytes(CONTENT)
        run("put", "--secret-file", secret, serving.uri, file).ok()
        yield serving
    finally:
        serving.kill()


def test_every_command_that_talks_to_a_server(
    server: Serving, secret: Path, tmp_path: Path
) -> None:
    given = ("--secret-file", secret, "--auth", "required", server.uri)
    (tmp_path / "file").write_bytes(b"content")
    uploaded = run("put", *given, tmp_path / "file").ok().text[:64]
    assert run("cat", *given, uploaded).ok().out == b"content"
    run("get", *given, DIGEST.hex, "-o", tmp_path / "copy").ok()
    assert (tmp_path / "copy").read_bytes() == CONTENT
    assert run("check", *given, DIGEST.hex).ok().text == f"{DIGEST}  present\n"
    assert f"size={len(CONTENT)}" in run("stat", *given, DIGEST.hex).ok().text
    cache = ("--cache-dir", tmp_path / "cache")
    assert run("prefetch", *cache, *given, DIGEST.hex).code == 0
    run("prefetch", "--check", *cache, *given, DIGEST.hex).ok()
    assert {each["version"] for each in server.wait_for_connections(6)} == {"002-encrypted"}


def test_what_is_prefetched_with_authentication_has_a_cache_of_its_own(
    server: Serving, secret: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    given = ("--cache-dir", cache, "--secret-file", secret)
    done = run(
        *("prefetch", *given, "--auth", "required", "--log-level", "info", server.uri, DIGEST.hex)
    )
    assert done.code == 0
    [own] = (cache / "authenticated").iterdir()
    assert f"cached in {own}\n" in done.err
    assert own.stat().st_mode & 0o777 == 0o700
    assert [each.name for each in own.rglob(DIGEST.hex)] == [DIGEST.hex]
    assert not (cache / "blobs").exists()
    # Whoever asks for less has another, and pulls for himself.
    assert run("prefetch", *given, server.uri, DIGEST.hex).code == 0
    assert len(list(cache.rglob(DIGEST.hex))) == 2
    # It is a cache like any other.
    assert DIGEST.hex in run("cache", "ls", "--cache-dir", own).ok().text
    assert run("cache", "verify", "--cache-dir", own).code == 0


@pytest.mark.parametrize("way", ["variable", "toml", "uri", "credential"])
def test_where_a_secret_comes_from(server: Serving, secret: Path, tmp_path: Path, way: str) -> None:
    arguments: tuple[str | Path, ...] = (server.uri, DIGEST.hex)
    variables = {}
    if way == "variable":
        variables = {"CAFSFS_SECRET_FILE": str(secret)}
    elif way == "toml":
        (tmp_path / "config.toml").write_text(f'secret-file = "{secret}"\nauth = "required"\n')
        arguments = ("--config", tmp_path / "config.toml", *arguments)
    elif way == "uri":
        arguments = (f"{server.uri}?secret-file={secret}&auth=required", DIGEST.hex)
    else:
        held(tmp_path / "cafsfs-secret", mode=0o440)  # as systemd has it, with an ACL
        variables = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    run("check", *arguments, env=variables).ok()


def test_a_server_takes_the_credential_of_its_unit(secret: Path, tmp_path: Path) -> None:
    held(tmp_path / "cafsfs-secret")
    store = tmp_path / "store"
    store.mkdir()
    process = start(
        *("serve", store, "--listen", "127.0.0.1:0", "--log-file", tmp_path / "log"),
        env=environment(CREDENTIALS_DIRECTORY=str(tmp_path)),
    )
    try:
        assert _logged(tmp_path / "log", "everybody has to authenticate")
    finally:
        process.kill()
        process.wait()


def _logged(log: Path, what: str) -> bool:

    end = time.monotonic() + 30
    while time.monotonic() < end:
        if log.exists() and what in log.read_text():
            return True
        time.sleep(0.02)
    return False


# --- what is wrong


def test_without_a_secret(server: Serving) -> None:
    done = run("cat", server.uri, DIGEST.hex)
    assert done.code == 1
    assert done.complaint().endswith("demands authentication, and we have no secret")
    assert done.hint() == "name the file that holds it: --secret-file FILE"


def test_another_secret(server: Serving, tmp_path: Path) -> None:
    other = held(tmp_path / "other", b"another-secret-entirely")
    done = run("cat", "--secret-file", other, server.uri, DIGEST.hex)
    assert done.code == 1
    assert done.complaint() == f"{server.address} has another secret than we have"
    assert "--secret-file" in done.hint()


@pytest.mark.parametrize(
    ("ahead", "complaint"),
    [
        (9 * 3600, "closed without a word when it heard the time that we authenticate with"),
        (-3600, "closed without a word when it heard the time that we authenticate with"),
        (3600, "are more than 10 minutes apart"),
    ],
)
def test_another_clock(ahead: int, complaint: str, secret: Path, tmp_path: Path) -> None:
    serving = Serving(tmp_path, "--secret-file", secret, clock=ahead)
    try:
        done = run("cat", "--secret-file", secret, serving.uri, DIGEST.hex)
    finally:
        serving.kill()
    assert done.code == 1
    assert complaint in done.complaint()
    assert "date -u" in done.hint()


def test_authentication_that_is_not_offered(secret: Path, tmp_path: Path) -> None:
    serving = Serving(tmp_path)
    try:
        given = ("--secret-file", secret, serving.uri, ABSENT.hex)
        assert run("check", *given).code == 1  # absent: it was asked, in version 001
        done = run("check", "--auth", "required", *given)
    finally:
        serving.kill()
    assert done.code == 3
    assert done.complaint() == f"{serving.address} offers no authentication"
    assert done.hint()


@pytest.mark.parametrize("command", ["cat", "check", "stat", "prefetch"])
def test_authentication_without_a_secret_is_a_mistake(command: str, tmp_path: Path) -> None:
    cache = ("--cache-dir", tmp_path) if command == "prefetch" else ()
    done = run(command, *cache, "--auth", "required", "cafs://127.0.0.1:1/data", DIGEST.hex)
    assert done.code == 2
    assert done.complaint() == "authentication is required, and there is no secret"
    assert "--secret-file FILE" in done.hint()


def test_a_secret_that_others_can_read(server: Serving, tmp_path: Path) -> None:
    path = held(tmp_path / "secret", mode=0o644)
    for done in (
        run("check", "--secret-file", path, server.uri, DIGEST.hex),
        run("serve", tmp_path, "--listen", "127.0.0.1:0", "--secret-file", path),
    ):
        assert done.code == 2
        assert done.complaint().endswith(f"have rights to the secret `{path}` (mode 0644)")
        assert done.hint() == f"take them away: chmod 600 {path}"


def test_encryption_without_a_secret(tmp_path: Path) -> None:
    done = run("serve", tmp_path, "--listen", "127.0.0.1:0", "--encryption", "required")
    assert done.code == 2
    assert done.complaint() == "encryption is required, and there is no secret"


# --- never shown

SHAPES = (SECRET, SECRET.hex().encode(), base64.b64encode(SECRET)[:-4])


def assert_not_shown(*texts: bytes) -> None:
    assert not [shape for text in texts for shape in SHAPES if shape in text]


def test_the_configuration_shows_the_path_only(secret: Path) -> None:
    shown = run("config", "show", "--secret-file", secret).ok()
    assert str(secret) in shown.text
    as_json = run("config", "show", "--json", env={"CAFSFS_SECRET_FILE": str(secret)}).ok()
    assert json.loads(as_json.text)["secret-file"] == {
        "value": str(secret),
        "origin": "environment",
    }
    assert_not_shown(shown.out, as_json.out)


def test_no_log_shows_it(secret: Path, tmp_path: Path) -> None:
    """Whatever went wrong, however much is logged."""
    other = held(tmp_path / "other", b"another-secret-entirely")
    serving = Serving(tmp_path, "--secret-file", secret, "--log-level", "debug")
    texts = []
    try:
        for given in (secret, other):
            done = run(
                *("stat", "--log-level", "debug", "--secret-file", given),
                *(serving.uri, DIGEST.hex),
            )
            assert done.code in {1, 3}
            texts += [done.out, done.err.encode()]
        pid = Path("/proc", str(serving._process.pid))
        texts += [(pid / each).read_bytes() for each in ("cmdline", "environ")]
    finally:
        serving.kill()
    texts.append((tmp_path / "serve.log").read_bytes())
    assert b"another secret" in b"".join(texts)
    assert_not_shown(*texts)
    assert not [text for text in texts if b"another-secret-entirely" in text]
