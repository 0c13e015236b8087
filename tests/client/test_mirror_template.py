"""URLs with the hash left open."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cafsfs.client.mirror_template import MirrorTemplate
from cafsfs.digest import Digest
from cafsfs.errors import UsageError

DIGEST = Digest(bytes(range(32)))
HASH = DIGEST.hex


@pytest.mark.parametrize(
    ("text", "name", "url"),
    [
        ("https://host/{hash}", "https://host", f"https://host/{HASH}"),
        (
            "https://host/a/{ab}/{cd}/{hash}",
            "https://host",
            f"https://host/a/00/01/{HASH}",
        ),
        ("HTTP://Host:8080/{hash}.bin", "http://host:8080", f"http://host:8080/{HASH}.bin"),
        ("http://[::1]:80/{hash}", "http://[::1]:80", f"http://[::1]:80/{HASH}"),
        ("http://h/get?b={hash}&t=a", "http://h", f"http://h/get?b={HASH}&t=a"),
        ("https://h/{ab}{ab}/{hash}/{hash}", "https://h", f"https://h/0000/{HASH}/{HASH}"),
    ],
)
def test_where_a_blob_is(text: str, name: str, url: str) -> None:
    template = MirrorTemplate.parse(text)
    assert (template.name, template.url(DIGEST)) == (name, url)
    assert template.credentials is None


def test_user_and_password_are_no_part_of_what_is_shown() -> None:
    template = MirrorTemplate.parse("https://me:p%40ss@host:1/x/{hash}?token=geheim")
    assert template.credentials == ("me", "p@ss")
    assert template.name == "https://host:1"
    assert str(template) == "https://host:1/x/{hash}?…"
    assert template.url(DIGEST) == f"https://host:1/x/{HASH}?token=geheim"
    for secret in ("p@ss", "p%40ss", "geheim", "me:"):
        assert secret not in f"{template} {template!r} {template.name}"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "is no http or https URL"),
        ("host/{hash}", "is no http or https URL"),
        ("ftp://host/{hash}", "is no http or https URL"),
        ("file:///{hash}", "is no http or https URL"),
        ("https:///{hash}", "is no http or https URL"),
        ("https://host/", "has no {hash}"),
        ("https://host/{HASH}", "has no {hash}"),
        ("https://host/{ab}/{cd}", "has no {hash}"),
        ("https://host/{hash}/{ef}", "has `{ef}`"),
        ("https://host/{hash}/{", "has `{`"),
        ("https://host/{hash}}", "has `}`"),
        ("https://host/{{hash}}", "has `{}`"),
        ("https://{ab}.host/{hash}", "has braces in its host"),
        ("https://host/{hash}#top", "has a `#`"),
        ("https://host/a b/{hash}", "has blanks"),
        ("https://host/{hash}\r\nX: y", "has blanks"),
        ("https://host:port/{hash}", "no sound host and port"),
        ("https://host:99999/{hash}", "no sound host and port"),
        ("https://[::1/{hash}", "no sound host and port"),
    ],
)
def test_what_is_no_template(text: str, complaint: str) -> None:
    with pytest.raises(UsageError) as caught:
        MirrorTemplate.parse(text)
    assert complaint in str(caught.value)
    assert caught.value.hint == "a mirror is a URL as in https://host/{ab}/{cd}/{hash}"


@pytest.mark.parametrize("rest", ["{ab}", "{hash}/{x}", "{hash}#", "a b{hash}"])
def test_a_refusal_shows_no_password(rest: str) -> None:
    with pytest.raises(UsageError) as caught:
        MirrorTemplate.parse(f"https://me:geheim@host/{rest}")
    assert "geheim" not in str(caught.value)


@given(st.text(st.sampled_from("htps:/@{}abcd?#[]. 1%\\")) | st.text())
def test_any_text_is_a_template_or_a_usage_error(text: str) -> None:
    try:
        template = MirrorTemplate.parse(text)
    except UsageError:
        return
    url = template.url(DIGEST)
    assert HASH in url
    assert url.startswith(("http://", "https://"))
    assert not {"{", "}"} & set(url)
