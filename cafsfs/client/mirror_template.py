"""Where an HTTP mirror keeps a blob: a URL with the hash left open."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import NoReturn
from urllib.parse import SplitResult, unquote, urlsplit

from cafsfs.digest import Digest
from cafsfs.errors import UsageError

_PLACEHOLDER = re.compile(r"\{(hash|ab|cd)\}")
_UNFIT = re.compile(r"[\x00-\x20\x7f\\]")  # what no URL holds, and what would end a header line

_EXAMPLE = "a mirror is a URL as in https://host/{ab}/{cd}/{hash}"


@dataclass(frozen=True, slots=True)
class MirrorTemplate:
    """A URL with ``{hash}``, and ``{ab}`` and ``{cd}`` for the first two pairs of its digits.

    ``name`` is its scheme and host, which is what messages show: paths and queries may be secrets.
    ``credentials`` are a user and a password, and no part of the URL any more.
    """

    name: str
    pattern: str = field(repr=False)
    credentials: tuple[str, str] | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, text: str) -> MirrorTemplate:
        """Read what a user has written; raises UsageError."""
        parts, port = _split(text)
        host = parts.hostname or ""
        shown = _shown(parts)
        if parts.scheme not in {"http", "https"} or not host:
            _refuse(shown, "is no http or https URL")
        if "#" in text:
            _refuse(shown, "has a `#`, and what follows it is never sent")
        if "{" in parts.netloc or "}" in parts.netloc:
            _refuse(shown, "has braces in its host")
        where = f"{parts.path} {parts.query}"
        if "{hash}" not in where:
            _refuse(shown, "has no {hash}")
        if left := re.search(r"\{[^{}]*\}?|\}", _PLACEHOLDER.sub("", where)):
            _refuse(shown, f"has `{left[0].strip()}`, which is not {{hash}}, {{ab}} or {{cd}}")
        address = f"[{host}]" if ":" in host else host
        if port is not None:
            address += f":{port}"
        credentials = None
        if parts.username is not None:
            credentials = unquote(parts.username), unquote(parts.password or "")
        return cls(
            f"{parts.scheme}://{address}",
            parts._replace(netloc=address).geturl(),
            credentials,
        )

    def __str__(self) -> str:
        """Without user, password and query."""
        return _shown(urlsplit(self.pattern))

    def url(self, digest: Digest) -> str:
        """Where the blob is."""
        name = digest.hex
        values = {"hash": name, "ab": name[:2], "cd": name[2:4]}
        return _PLACEHOLDER.sub(lambda found: values[found[1]], self.pattern)


def told_apart(mirrors: Iterable[MirrorTemplate]) -> list[MirrorTemplate]:
    """Each once; the second of a host is called ``https://host#2``, for paths may be secrets."""
    seen: Counter[str] = Counter()
    named = []
    for each in dict.fromkeys(mirrors):
        seen[each.name] += 1
        number = seen[each.name]
        named.append(each if number == 1 else replace(each, name=f"{each.name}#{number}"))
    return named


def _split(text: str) -> tuple[SplitResult, int | None]:
    if _UNFIT.search(text):
        # Not shown: nothing tells where a password in it would end.
        raise UsageError("a mirror's URL has blanks or characters that no URL has", hint=_EXAMPLE)
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:  # a port that is none, or half a bracket
        raise UsageError("a mirror's URL has no sound host and port", hint=_EXAMPLE) from None
    return parts, port


def _shown(parts: SplitResult) -> str:
    query = "?…" if parts.query else ""
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}{query}"


def _refuse(shown: str, complaint: str) -> NoReturn:
    raise UsageError(f"mirror `{shown}` {complaint}", hint=_EXAMPLE)
