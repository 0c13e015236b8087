"""Secrets: which files hold one, whom they are kept from, and that they are never shown."""

from __future__ import annotations

import copy
import hashlib
import hmac
import os
import pickle
import subprocess
import traceback
from pathlib import Path
from typing import Any

import pytest

from cafsfs.errors import UsageError
from cafsfs.secret import CREDENTIAL, Secret, find_secret, read_secret
from tests.cli.guides import documented

VALUE = b"0123456789abcdefSECRET"


def held(path: Path, value: bytes = VALUE, mode: int = 0o600) -> Path:
    path.write_bytes(value)
    path.chmod(mode)
    return path


def signed(value: bytes) -> bytes:
    return hmac.new(value, b"message", hashlib.sha384).digest()


def same(secret: Secret | None, value: bytes) -> bool:
    assert secret is not None
    return secret.sign(b"message") == signed(value)


@pytest.mark.parametrize(
    ("written", "secret"),
    [
        (VALUE, VALUE),
        (VALUE + b"\n", VALUE),
        (VALUE + b"\n\n", VALUE + b"\n"),
        (VALUE + b"\r\n", VALUE + b"\r"),
        (b"\n" + VALUE, b"\n" + VALUE),
        (b" " + VALUE + b" ", b" " + VALUE + b" "),
        (bytes(range(200, 240)), bytes(range(200, 240))),
        (b"x" * 16, b"x" * 16),
        (b"x" * 16 + b"\n", b"x" * 16),
        (b"x" * 4096 + b"\n", b"x" * 4096),
    ],
)
def test_one_line_feed_at_the_end_is_no_part_of_it(
    tmp_path: Path, written: bytes, secret: bytes
) -> None:
    assert same(read_secret(held(tmp_path / "secret", written)), secret)


@pytest.mark.parametrize(
    ("written", "count"),
    [
        (b"", "0"),
        (b"x" * 15, "15"),
        (b"x" * 15 + b"\n", "15"),
        (b"x" * 4097, "over 4096"),
        (b"x" * 9000, "over 4096"),
    ],
)
def test_what_is_too_short_or_too_long_is_no_secret(
    tmp_path: Path, written: bytes, count: str
) -> None:
    path = held(tmp_path / "se cret", written)
    with pytest.raises(UsageError) as caught:
        read_secret(path)
    assert str(caught.value) == f"`{path}` holds {count} bytes, and no secret"
    assert caught.value.hint is not None
    assert f"(umask 077; openssl rand -hex 32 >'{path}')" in caught.value.hint


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o644, 0o666, 0o601])
def test_what_others_have_rights_to_is_refused(tmp_path: Path, mode: int) -> None:
    path = held(tmp_path / "se cret", mode=mode)
    with pytest.raises(UsageError, match=f"rights to the secret `.*` .mode {mode:04o}") as caught:
        read_secret(path)
    assert documented("have rights to the secret").search(str(caught.value))
    hint = caught.value.hint
    assert hint == f"take them away: chmod 600 '{path}'"
    subprocess.run(hint.partition(": ")[2], shell=True, check=True)
    read_secret(path)


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_what_only_its_owner_may_read_is_taken(tmp_path: Path, mode: int) -> None:
    assert same(read_secret(held(tmp_path / "secret", mode=mode)), VALUE)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_the_file_of_another_user_is_refused(tmp_path: Path) -> None:
    path = held(tmp_path / "secret")
    os.chown(path, 12345, -1)
    with pytest.raises(UsageError, match="belongs to another user") as caught:
        read_secret(path)
    assert caught.value.hint == f"make it yours: chown 0 {path}"


def test_the_file_of_root_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = held(tmp_path / "secret")
    if path.stat().st_uid != 0:
        pytest.skip("no file of root's here")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert same(read_secret(path), VALUE)


def test_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read the secret in .*: No such file"):
        read_secret(tmp_path / "missing")


@pytest.mark.parametrize("kind", ["directory", "fifo"])
def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "secret"
    path.mkdir(0o700) if kind == "directory" else os.mkfifo(path, 0o600)
    with pytest.raises(UsageError, match="not a regular file"):
        read_secret(path)


# --- where it is found


def test_the_file_that_was_named_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    held(tmp_path / CREDENTIAL, b"the credential of the unit")
    assert same(find_secret(held(tmp_path / "named")), VALUE)


def test_else_the_credential_of_the_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where systemd gives the unit's user an ACL, the mode shows its mask."""
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    held(tmp_path / CREDENTIAL, mode=0o440)
    assert same(find_secret(None), VALUE)
    with pytest.raises(UsageError, match="mode 0440"):
        read_secret(held(tmp_path.parent / "elsewhere", mode=0o440))


def test_a_credential_that_is_no_secret_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    held(tmp_path / CREDENTIAL, b"short")
    with pytest.raises(UsageError, match="5 bytes"):
        find_secret(None)


@pytest.mark.parametrize("directory", ["", "nowhere", None])
def test_without_either_there_is_none(
    directory: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if directory is None:
        monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    else:
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", directory)
    assert find_secret(None) is None


# --- never shown


def test_nothing_shows_it() -> None:
    secret = Secret(VALUE)
    shown = [repr(secret), str(secret), f"{secret}", f"{secret!a}", repr([secret])]
    shown.append(repr(dir(secret)))
    assert not [each for each in shown if "0123456789" in each]
    assert not hasattr(secret, "__dict__")


@pytest.mark.parametrize("take", [pickle.dumps, copy.copy, copy.deepcopy])
def test_it_is_not_copied(take: object) -> None:
    assert callable(take)
    with pytest.raises(TypeError, match="not copied"):
        take(Secret(VALUE))


def test_a_traceback_with_all_its_variables_does_not_show_it() -> None:
    def fails(secret: Secret) -> None:
        password = secret
        raise RuntimeError(f"with {password} and {secret!r}")

    try:
        fails(Secret(VALUE))
    except RuntimeError as error:
        summary = traceback.TracebackException.from_exception(error, capture_locals=True)
    assert "0123456789" not in "".join(summary.format())


def test_nor_does_one_of_what_is_too_short(tmp_path: Path) -> None:
    path = held(tmp_path / "secret", b"0123456789")
    for read in (False, True):
        try:
            read_secret(path) if read else Secret(path.read_bytes())
        except UsageError as error:
            summary = traceback.TracebackException.from_exception(error, capture_locals=True)
        assert "bytes" in str(summary)
        assert "0123456789" not in "".join(summary.format())


def test_a_secret_is_bytes() -> None:
    text: Any = "0123456789abcdef"
    with pytest.raises(UsageError, match="a secret is bytes, not str"):
        Secret(text)


def test_a_secret_that_is_too_short_is_not_made() -> None:
    with pytest.raises(UsageError, match="at least 16 bytes, not 15") as caught:
        Secret(b"0123456789abcde")
    assert "0123" not in str(caught.value)
