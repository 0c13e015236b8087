"""URIs of stores, and the options in them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from cafsfs.client.groups import NamedServer, complete, parse_hosts
from cafsfs.client.servers import Member, Server
from cafsfs.config.layers import Layer, gathered, unknown_option
from cafsfs.config.options import IN_URI, option_names
from cafsfs.errors import UsageError

_URI_EXAMPLE = "as in cafs://host:2403/root, or file:///directory/of/roots/root"
# RFC 3986, appendix B. Not urllib's urlsplit: since gh-105704 (in Debian 12's 3.11.2, too) that
# refuses `h,[::1]` and `[::1];zone=x`; and it removes tabs and newlines without a word.
_URI = re.compile(
    r"(?:(?P<scheme>[^:/?#]+):)?(?://(?P<hosts>[^/?#]*))?(?P<path>[^?#]*)"
    r"(?:\?(?P<query>[^#]*))?(?P<fragment>#.*)?",
    re.DOTALL,
)
_CONTROL = re.compile(r"[\0-\x1f\x7f-\x9f]")
# A mirror may have a user and a password, or a signature in its query; no server has a user.
_PASSWORDS = (
    (re.compile(r"(?<=[?&])mirror=[^&]*(?:[@?]|%40|%3F)[^&]*", re.IGNORECASE), "mirror=…"),
    (re.compile(r"(?<=//)[^/?]*@"), "…@"),
)


@dataclass(frozen=True, slots=True)
class StoreUri:
    """Which store: servers and the root they serve, or a directory on this machine.

    ``text`` is the URI as it was given, ``named`` are the servers in it, ``members`` all that there
    is to know of them, or of others where it names none. ``root`` is what goes over the wire, with
    its slash.
    """

    text: str
    named: tuple[NamedServer, ...]
    members: tuple[Member, ...]
    root: str
    directory: Path | None
    layer: Layer

    @property
    def shown(self) -> str:
        """``text`` for messages and for ``df``: without what may be a password."""
        return _shown(self.text)

    @property
    def servers(self) -> tuple[Server, ...]:
        """Where they are, in the order given; none for a directory."""
        return tuple(each.server for each in self.members)


def _shown(text: str) -> str:
    for password, instead in _PASSWORDS:
        text = password.sub(instead, text)
    return text


def parse_uri(text: str, tables: Sequence[NamedServer] = ()) -> StoreUri:
    """Read ``cafs://host[:port][;zone=…][,…]/root[?key=value…]`` or ``file:///…/root``.

    ``tables`` are servers that a TOML file names: they tell of servers in the URI what that does
    not say, and where it names none they are the group. Raises UsageError.
    """
    parts, shown = _URI.fullmatch(text), _shown(text)
    if parts is None or _CONTROL.search(text):
        raise UsageError(f"{shown!a} is not a URI", hint=_URI_EXAMPLE)
    try:
        root = unquote(parts["path"], errors="strict")
    except ValueError as error:
        raise UsageError(f"`{shown}` is not a URI: {error}", hint=_URI_EXAMPLE) from None
    scheme = (parts["scheme"] or "").lower()
    if scheme not in {"cafs", "file"}:
        raise UsageError(f"`{shown}` is not the URI of a store", hint=_URI_EXAMPLE)
    if not root.strip("/"):
        raise UsageError(f"`{shown}` names no root", hint=f"{_URI_EXAMPLE}{_quoting(text)}")
    if parts["fragment"]:
        raise UsageError(f"`{shown}` has a `#`", hint="write %23 for a # in a root's name")
    layer = _uri_layer(parts["query"] or "")
    if scheme == "file":
        return StoreUri(text, (), (), root, _directory(shown, parts["hosts"] or "", root), layer)
    _check_root(shown, root)
    named = _servers(shown, parts["hosts"], listed=bool(tables))
    return StoreUri(text, named, complete(named or tables, tables), root, None, layer)


def _quoting(text: str) -> str:
    """What a shell may have made of a URI with attributes."""
    return "" if ";" in text else "; in a shell a URI with a `;` or `&` stands in quotes"


def _directory(shown: str, host: str, path: str) -> Path:
    if host not in {"", "localhost"}:
        raise UsageError(
            f"`{shown}` names a host", hint="a file URI has three slashes: file:///directory"
        )
    if not path.startswith("/"):
        raise UsageError(
            f"`{shown}` is a relative path", hint=f"write file://{Path(path).absolute()}"
        )
    return Path(path)


def _servers(shown: str, hosts: str | None, *, listed: bool) -> tuple[NamedServer, ...]:
    """Those in a URI; it need not name any if they are ``listed`` elsewhere."""
    if hosts == "" and listed:  # cafs:///root
        return ()
    if not hosts:
        raise UsageError(
            f"`{shown}` names no server", hint=f"{_URI_EXAMPLE}; or list them in [[server]] tables"
        )
    if "@" in hosts:
        raise UsageError(
            f"`{shown}` names a user", hint="CAFS knows no users: leave out what is before the @"
        )
    return parse_hosts(hosts)


def _check_root(shown: str, root: str) -> None:
    try:
        length = len(root.encode())
    except UnicodeEncodeError:  # bytes of the command line that are no UTF-8
        raise UsageError(f"the root of {shown!a} is not UTF-8", hint=_URI_EXAMPLE) from None
    if length > 255:
        raise UsageError(
            f"the root of `{shown}` has more than 255 bytes", hint="no server can be asked for it"
        )


def _uri_layer(query: str) -> Layer:
    """The keys of a URI. Not urllib's parse_qsl: in a URI that is no form, a + is a +."""
    known = option_names(*IN_URI)
    pairs = []
    for part in filter(None, query.split("&")):
        key, _, value = part.partition("=")
        name = unquote(key).replace("-", "_")
        if name not in known:
            raise unknown_option(unquote(key), list(known), "URI")
        pairs.append((name, unquote(value)))
    return Layer("URI", gathered(pairs))
