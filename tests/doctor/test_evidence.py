"""What a report tells, and above all what it does not."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cafsfs.doctor import evidence


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://host/a/b?c=d", "https://host/[hidden]"),
        ("http://me:hunter2@host:80/x", "http://host:80/[hidden]"),
        ("https://me:p,w'@host/x,allow_other", "https://host/[hidden]"),
        ('{"mirror": "https://me:x@host/t0ken/{hash}", "a": 1}', None),
        ("see https://host/a (b)", "see https://host/[hidden] (b)"),
        ("cafs://host/data?zone=eu", "cafs://host/data?zone=eu"),
        ("key 00ff10 and s3cret", "key 00ff10 and [hidden]"),
        ("hex 733363726574.", "hex [hidden]."),
    ],
)
def test_secrets_are_hidden(text: str, shown: str | None) -> None:
    hidden = evidence.hide_secrets(text, (b"s3cret",))
    if shown is None:
        assert json.loads(hidden) == {"mirror": "https://host/[hidden]", "a": 1}
    else:
        assert hidden == shown


@given(st.text("abc:,'/?#%{}é", max_size=20), st.text("abc,/?={}", max_size=20))
def test_no_user_and_no_path_is_shown(user: str, path: str) -> None:
    text = f'x "https://{user}SECRET@host/{path}SECRET" y'
    hidden = evidence.hide_secrets(text)
    assert "SECRET" not in hidden
    assert hidden.startswith("x ")
    assert hidden.endswith('" y')


def test_a_piece_that_fails_leaves_a_gap_and_no_secret() -> None:
    def fail() -> str:
        raise OSError("at s3cret")

    told = evidence.gathered(fail, (b"s3cret",))
    assert told == b"this could not be told: OSError('at [hidden]')\n"


def test_versions_are_told() -> None:
    told = json.loads(evidence.tell_versions())
    assert {"trio", "pyfuse3", "click"} <= told["packages"].keys()
    assert all(told.values())


def test_variables_of_ours_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAFSFS_ZONE", "eu")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    text = evidence.tell_environment()
    assert "CAFSFS_ZONE=eu\n" in text
    assert "AWS" not in text
