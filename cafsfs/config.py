"""From flags, -o, URI, environment and TOML to frozen options, and where each value came from.

Each option stands in one place: a field of a dataclass below, whose metadata is its parser and its
help. Flags, ``-o`` keys, URI keys, ``CAFSFS_*`` variables and TOML keys all derive from it. The
first layer that has a value wins, in this order.
"""

from __future__ import annotations

import dataclasses
import os
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, Generic, TypeVar
from urllib.parse import unquote

from cafsfs.client.groups import (
    NamedServer,
    closest,
    complete,
    parse_hosts,
    parse_tables,
    parse_zone,
)
from cafsfs.client.mirror_template import MirrorTemplate
from cafsfs.client.servers import Deadlines, Member, Server
from cafsfs.errors import UsageError
from cafsfs.store.budget import default_budget
from cafsfs.store.cache.bounds import Amount, Bounds

T = TypeVar("T")

_SHIFTS = {"K": 10, "M": 20, "G": 30, "T": 40}
_SIZE = re.compile(
    r"(\d{1,18}(?:\.\d{1,18})?)\s*(?:([KMGT])(?:iB|B)?|B?)", re.IGNORECASE | re.ASCII
)
_BOOLEANS = {
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
    "": True,
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}
_AGES = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_PERCENTAGE = re.compile(r"\d{1,3}(?:\.\d{1,9})?", re.ASCII)
_COUNT = re.compile(r"[0-9]{1,18}")
_NO_ID = (1 << 32) - 1  # (uid_t) -1 is nobody's: it means "do not change"
SYSTEM_FILE = Path("/etc/cafsfs/config.toml")
LOG_FORMATS = ("auto", "human", "json")
LOG_LEVELS = ("debug", "info", "warning", "error")
AUTHS = ("auto", "required")
ENCRYPTIONS = ("optional", "required")


# --- parsers: text in, value out; ValueError completes "it takes …"


def parse_size(text: str) -> int:
    """Bytes; K, M, G and T are powers of 1024."""
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise ValueError("a number of bytes, or one with K, M, G or T behind it, as in 20G")
    return int(Decimal(found[1]) * (1 << _SHIFTS.get((found[2] or "").upper(), 0)))


def parse_amount(text: str) -> Amount:
    """Bytes as ``parse_size``, or a percentage of a disk."""
    number, percent, rest = text.strip().partition("%")
    if not percent:
        try:
            return Amount(parse_size(text))
        except ValueError as error:
            raise ValueError(f"{error}, or a percentage, as in 10%") from None
    found = _PERCENTAGE.fullmatch(number.strip())
    share = Decimal(found[0]) / 100 if found else Decimal(-1)
    if rest or not 0 <= share <= 1:
        raise ValueError("a percentage from 0% to 100%")
    return Amount(share=float(share))


def parse_age(text: str) -> float:
    """Seconds, more than none; m, h, d and w behind the number are longer ones."""
    number = text.strip()
    factor = _AGES.get(number[-1:].lower())
    try:
        value = float(number[:-1]) * factor if factor else float(number)
    except ValueError:
        value = 0
    if not 0 < value < 1e11:
        raise ValueError("a number of seconds, or one with m, h, d or w behind it, as in 30d")
    return value


def parse_seconds(text: str) -> float:
    """Seconds, more than none."""
    try:
        value = float(text.removesuffix("s"))
    except ValueError:
        value = 0
    if not 0 < value < 1e9:
        raise ValueError("a number of seconds, as in 5 or 0.5")
    return value


def parse_verify_first(text: str) -> int | None:
    """A size, or None for ``always``."""
    if text.strip().lower() == "always":
        return None
    try:
        return parse_size(text)
    except ValueError as error:
        raise ValueError(f"{error}, or `always`") from None


def parse_count(text: str) -> int:
    """A whole number from 1 on."""
    if not _COUNT.fullmatch(text) or int(text) == 0:
        raise ValueError("a whole number from 1 on")
    return int(text)


def parse_id(text: str) -> int:
    """A numeric user or group id."""
    if not _COUNT.fullmatch(text) or int(text) >= _NO_ID:
        raise ValueError("the number of a user or group, as `id` tells it")
    return int(text)


def parse_bool(text: str) -> bool:
    """True or false; an option named without a value is true."""
    try:
        return _BOOLEANS[text.lower()]
    except KeyError:
        raise ValueError("true or false") from None


def parse_level(text: str) -> str:
    """A level of logging."""
    if text.lower() not in LOG_LEVELS:
        raise ValueError("one of " + ", ".join(LOG_LEVELS))
    return text.lower()


def parse_format(text: str) -> str:
    """How lines of the log look."""
    if text.lower() not in LOG_FORMATS:
        raise ValueError("one of " + ", ".join(LOG_FORMATS))
    return text.lower()


def parse_auth(text: str) -> str:
    """What a server must do before it is talked to."""
    if text.lower() not in AUTHS:
        raise ValueError("one of " + ", ".join(AUTHS))
    return text.lower()


def parse_encryption(text: str) -> str:
    """Of whom a server with a secret demands authentication, and encryption."""
    if text.lower() not in ENCRYPTIONS:
        raise ValueError("one of " + ", ".join(ENCRYPTIONS))
    return text.lower()


def parse_mirrors(text: str) -> tuple[MirrorTemplate, ...]:
    """URLs of HTTP mirrors, separated by blanks; raises UsageError, which shows no password."""
    if not text.strip():
        raise ValueError("a URL, or several with blanks between, as in https://host/{hash}")
    return tuple(dict.fromkeys(map(MirrorTemplate.parse, text.split())))


def parse_text(text: str) -> str:
    """Any text but none."""
    if not text or "\0" in text:
        raise ValueError("some text")
    return text


def parse_path(text: str) -> Path:
    """A path; ``~`` is the home directory."""
    if not text or "\0" in text:
        raise ValueError("a path")
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError:  # ~ without a home, or the ~name of nobody
        raise ValueError("a path, and there is no such home directory") from None


def parse_textfile(text: str) -> Path:
    """A path that node_exporter's textfile collector reads."""
    path = parse_path(text)
    if path.suffix != ".prom":
        raise ValueError("a path that ends in .prom, for node_exporter reads no other")
    return path


def parse_listen(text: str) -> Server:
    """HOST:PORT to listen on; port 0 means any that is free."""
    host, colon, port = text.rpartition(":")
    try:
        if colon and port == "0":
            return dataclasses.replace(Server.parse(host), port=0)
        server = Server.parse(text)
    except UsageError:
        server = None
    if server is None or server.host.isdigit():  # a port alone; no address is one number
        raise ValueError("HOST:PORT, as in 127.0.0.1:2403, or 0.0.0.0:2403 for every address")
    return server


def default_cache_dir() -> Path:
    """``$XDG_CACHE_HOME/cafsfs``; for root or without HOME ``/var/cache/cafsfs``."""
    if os.geteuid() == 0 or "HOME" not in os.environ:
        return Path("/var/cache/cafsfs")
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():  # to be ignored, says the XDG specification
        base = Path(os.environ["HOME"]) / ".cache"
    return base / "cafsfs"


# --- the options


def option(parse: Callable[[str], T], help: str, *, default: Callable[[], T]) -> T:  # noqa: A002
    """One option of a dataclass below."""
    made: T = field(default_factory=default, metadata={"parse": parse, "help": help})
    return made


@dataclass(frozen=True, kw_only=True)
class StoreOptions:
    """How to talk to a store."""

    connections: int = option(parse_count, "connections per server for bodies", default=lambda: 4)
    connect_timeout: float = option(
        parse_seconds, "seconds to connect to a server and be greeted", default=lambda: 5.0
    )
    answer_timeout: float = option(
        parse_seconds,
        "seconds for a server to begin its answer; a pull gets one more per 20 MB",
        default=lambda: 30.0,
    )
    progress_timeout: float = option(
        parse_seconds,
        "seconds in which a body brings as many KiB, or fails",
        default=lambda: 30.0,
    )
    memory: int = option(
        parse_size, "bytes for the buffers and decoders of all pulls", default=default_budget
    )
    zone: str | None = option(
        parse_zone,
        "where this machine is: servers of this zone are asked first",
        default=lambda: None,
    )
    replicas: int = option(
        parse_count, "servers that each upload is to be on when it is done", default=lambda: 1
    )
    slow_rate: int = option(
        parse_size,
        "bytes a second, over 10 s, below which a pull is left for another server; 0: never",
        default=lambda: 128 << 10,
    )
    mirror: tuple[MirrorTemplate, ...] = option(
        parse_mirrors,
        "URLs of HTTP mirrors, asked last, as in https://host/{ab}/{cd}/{hash}",
        default=tuple,
    )
    secret_file: Path | None = option(
        parse_path, "file with the secret that servers share with us", default=lambda: None
    )
    auth: str = option(
        parse_auth,
        "auto, or required: talk to no server that does not authenticate itself",
        default=lambda: "auto",
    )

    @property
    def deadlines(self) -> Deadlines:
        """How long a server may take."""
        return Deadlines(
            connect=self.connect_timeout,
            question=self.connect_timeout,
            answer=self.answer_timeout,
            progress=self.progress_timeout,
        )


@dataclass(frozen=True, kw_only=True)
class CacheOptions:
    """Where the cache is, how large, and what stands behind it."""

    cache_dir: Path = option(parse_path, "directory of the cache", default=default_cache_dir)
    cache_size: Amount = option(
        parse_amount,
        "what the cache may hold, in bytes or percent of its disk",
        default=lambda: Amount(20 << 30),
    )
    cache_free: Amount = option(
        parse_amount,
        "what it leaves free of its disk, in bytes or percent",
        default=lambda: Amount(share=0.05),
    )
    cache_files: int | None = option(
        parse_count, "number of blobs that it may hold", default=lambda: None
    )
    cache_ttl: float | None = option(
        parse_age, "evict what was pulled longer ago, as in 30d", default=lambda: None
    )
    cache_tti: float | None = option(
        parse_age, "evict what was not used for so long, as in 7d", default=lambda: None
    )
    cache_seed: Path | None = option(
        parse_path,
        "a cache of another mount, or a store's directory, read before a server is asked",
        default=lambda: None,
    )

    @property
    def bounds(self) -> Bounds:
        """What the cache may hold."""
        return Bounds(
            size=self.cache_size,
            free=self.cache_free,
            files=self.cache_files,
            ttl=self.cache_ttl,
            tti=self.cache_tti,
        )


@dataclass(frozen=True, kw_only=True)
class MountOptions:
    """How a mount looks and behaves."""

    allow_other: bool = option(parse_bool, "let other users read the mount", default=lambda: False)
    uid: int = option(parse_id, "owner shown for all files", default=os.geteuid)
    gid: int = option(parse_id, "group shown for all files", default=os.getegid)
    fsname: str | None = option(
        parse_text, "name shown by df and mount; the URI as given if not set", default=lambda: None
    )
    nonempty: bool = option(
        parse_bool, "mount over a directory that is not empty", default=lambda: False
    )
    lookup_timeout: float = option(
        parse_seconds, "seconds that a lookup may wait for a server", default=lambda: 5.0
    )
    read_timeout: float = option(
        parse_seconds, "seconds that a read may wait without progress", default=lambda: 30.0
    )
    verify_first: int | None = option(
        parse_verify_first,
        "size up to which a blob is verified before its first byte is read; or always",
        default=lambda: 64 << 20,
    )
    finish_pulls: bool = option(
        parse_bool, "finish a pull when its last reader has left", default=lambda: False
    )
    metrics_listen: Server | None = option(
        parse_listen, "HOST:PORT where Prometheus may get metrics", default=lambda: None
    )
    metrics_textfile: Path | None = option(
        parse_textfile, "file of metrics for node_exporter, ending in .prom", default=lambda: None
    )


@dataclass(frozen=True, kw_only=True)
class LogOptions:
    """What is logged, and where to."""

    log_level: str = option(parse_level, "debug, info, warning or error", default=lambda: "info")
    log_file: Path | None = option(
        parse_path,
        "file to log to; else standard error, or for a mount in the background journal or syslog",
        default=lambda: None,
    )
    log_format: str = option(
        parse_format,
        "auto, human or json; auto: to the journal with fields if standard error goes there",
        default=lambda: "auto",
    )
    log_size: int = option(
        parse_size,
        "size at which the file is turned over, four old ones are kept; 0: never",
        default=lambda: 16 << 20,
    )


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """How the embedded server behaves."""

    listen: Server = option(
        parse_listen, "HOST:PORT to listen on", default=lambda: Server("127.0.0.1")
    )
    secret_file: Path | None = option(
        parse_path, "file with the secret that clients share with us", default=lambda: None
    )
    encryption: str | None = option(
        parse_encryption,
        "optional for private addresses, or required (so it is with a secret, if not said)",
        default=lambda: None,
    )
    max_connections: int = option(
        parse_count, "connections at once; one more is closed", default=lambda: 4000
    )
    max_blob: int = option(
        parse_size, "bytes that an upload may have, packed or unpacked", default=lambda: 64 << 30
    )
    idle_timeout: float = option(
        parse_seconds, "seconds that a connection may be idle", default=lambda: 30 * 60.0
    )
    stall_timeout: float = option(
        parse_seconds, "seconds that a transfer may stand still", default=lambda: 60.0
    )
    grace: float = option(
        parse_seconds, "seconds that transfers get to finish at the end", default=lambda: 10.0
    )
    sync: bool = option(
        parse_bool, "have uploads on the disk before they are answered", default=lambda: False
    )


# What says nothing to commands that upload nothing, and to those that download nothing.
FOR_UPLOADS = frozenset({"replicas"})
FOR_DOWNLOADS = frozenset({"mirror", "slow_rate"})
ALL_OPTIONS: tuple[type, ...] = (StoreOptions, CacheOptions, MountOptions, LogOptions, ServeOptions)
# Where a group's options can be given beside flags, variables and TOML, which take them all.
IN_URI: tuple[type, ...] = (StoreOptions, CacheOptions, MountOptions)
IN_MOUNT_OPTIONS: tuple[type, ...] = (*IN_URI, LogOptions)
# What a TOML file may hold beside options: the arguments of the commands that it configures.
ARGUMENTS = ("uri", "mountpoint", "directory")


def option_names(*groups: type) -> dict[str, dataclasses.Field[Any]]:
    """Option names, with ``_``, of some groups, in their order."""
    return {each.name: each for group in groups for each in dataclasses.fields(group)}


# --- layers


@dataclass(frozen=True, slots=True)
class Layer:
    """Values that come from one place; keys with ``_``, values as text.

    ``servers`` are those that have a table in a TOML file.
    """

    origin: str
    values: Mapping[str, str]
    servers: tuple[NamedServer, ...] = ()


@dataclass(frozen=True, slots=True)
class Setting(Generic[T]):
    """A value and where it came from."""

    value: T
    origin: str


def resolve(group: type[T], layers: Sequence[Layer]) -> T:
    """One group of options from ``layers``, the first that has a value winning."""
    settings = explain(group, layers)
    return group(**{name: setting.value for name, setting in settings.items()})


def explain(group: type, layers: Sequence[Layer]) -> dict[str, Setting[Any]]:
    """The value and the origin of every option of a group; raises UsageError for a bad value."""
    defaults = group()
    settings: dict[str, Setting[Any]] = {}
    for name, each in option_names(group).items():
        settings[name] = Setting(getattr(defaults, name), "default")
        for layer in layers:
            if name not in layer.values:
                continue
            value = _parse(each.metadata["parse"], name, layer.values[name], layer.origin)
            settings[name] = Setting(value, layer.origin)
            break
    return settings


def _parse(parse: Callable[[str], object], name: str, text: str, origin: str) -> object:
    try:
        return parse(text)
    except ValueError as error:
        raise UsageError(
            f"`{text}` is no value for {flag(name)} ({origin})", hint=f"it takes {error}"
        ) from None


def flag(name: str) -> str:
    """An option as a flag."""
    return "--" + name.replace("_", "-")


def plain(value: object, parse: Callable[[str], object]) -> str:
    """A value as it could be written in an option with this parser; ``-`` if it is not set."""
    if value is None:
        return "always" if parse is parse_verify_first else "-"
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "-"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Amount):
        return f"{value.share * 100:g}%" if value.share else plain(value.bytes, parse_size)
    if parse in {parse_size, parse_verify_first} and isinstance(value, int) and value:
        for unit, shift in reversed(_SHIFTS.items()):
            if value % (1 << shift) == 0:
                return f"{value >> shift}{unit}"
    return str(value).removesuffix(".0") if isinstance(value, float) else str(value)


def environment_layer(environ: Mapping[str, str]) -> Layer:
    """``CAFSFS_CACHE_SIZE`` and its like; other ``CAFSFS_*`` variables are left alone."""
    names = option_names(*ALL_OPTIONS)
    values = {}
    for name in names:
        value = environ.get("CAFSFS_" + name.upper())
        if value:  # an empty variable is as good as none
            values[name] = value
    return Layer("environment", values)


def toml_layers(given: Path | None) -> list[Layer]:
    """The file given by ``--config``, else those that there are of the user's and the system's."""
    if given is not None:
        return [_read_toml(given)]
    home = Path(os.environ["HOME"]) / ".config/cafsfs/config.toml" if "HOME" in os.environ else None
    files = [home, SYSTEM_FILE]
    # Not Path.is_file: it raises where a directory on the way may not be searched.
    return [_read_toml(each) for each in files if each is not None and os.path.isfile(each)]


def _read_toml(path: Path) -> Layer:
    try:
        read = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            f"cannot read `{path}`: {error.strerror}", hint="name another file with --config"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(
            f"`{path}` is not TOML: {error}",
            hint='text and sizes stand in quotes, as in cache-size = "20G"',
        ) from None
    known = {*option_names(*ALL_OPTIONS), *ARGUMENTS}
    servers = parse_tables(read.pop("server", []), str(path), known)
    values = {}
    for key, value in read.items():
        name = key.replace("-", "_")
        if name not in known:
            raise unknown_option(key, sorted([*known, "[[server]]"]), str(path))
        values[name] = str(value).lower() if isinstance(value, bool) else str(value)
    return Layer(str(path), values, servers)


def server_tables(layers: Sequence[Layer]) -> Layer:
    """The strongest layer that has tables of servers; one without any, if none has."""
    return next((each for each in layers if each.servers), Layer("default", {}))


def unknown_option(key: str, known: Sequence[str], origin: str) -> UsageError:
    """The error for a key that is no option; names the one that was probably meant."""
    meant = closest(key.replace("-", "_"), known)
    return UsageError(
        f"`{key}` is not an option ({origin})",
        hint=f"did you mean `{meant.replace('_', '-')}`?"
        if meant
        else "`cafsfs config show` lists the options",
    )


# --- URIs


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
    values = {}
    for part in filter(None, query.split("&")):
        key, _, value = part.partition("=")
        name = unquote(key).replace("-", "_")
        if name not in known:
            raise unknown_option(unquote(key), list(known), "URI")
        values[name] = unquote(value)
    return Layer("URI", values)


# --- mount -o

# What mount(8) and fstab pass along that says nothing to us; the mount is read-only, nosuid and
# nodev whatever is asked.
_IGNORED = frozenset(
    """
    rw ro defaults auto noauto user users nouser owner group nofail exec suid dev nosuid nodev async
    sync silent loud relatime norelatime atime diratime strictatime nostrictatime lazytime
    nolazytime iversion noiversion mand nomand default_permissions comment subtype
    """.split()  # noqa: SIM905  # a list of forty strings would fill the page
)
# Flags of `cafsfs mount` that no other layer has, and what they take.
_FLAGS_ONLY: Mapping[str, Callable[[str], object]] = {
    "config": parse_path,
    "foreground": parse_bool,
}
_PASSED = frozenset({"noexec", "noatime", "nodiratime", "dirsync"})
# What mount(8) finds in mountinfo, and repeats when it remounts.
_OF_THE_KERNEL = frozenset({"user_id", "group_id", "max_read", "blksize"})


@dataclass(frozen=True, slots=True)
class MountArguments:
    """``-o`` taken apart: our options, and what the kernel is told as it is.

    ``remount``: what is mounted there is to be changed, and nothing mounted.
    """

    layer: Layer
    kernel: tuple[str, ...]
    remount: bool = False


def parse_mount_options(texts: Sequence[str], *, sloppy: bool = False) -> MountArguments:
    r"""Read ``-o a,b=c`` (a comma in a value is written ``\,``).

    Raises UsageError for an option that nobody knows, unless ``sloppy`` (mount -s). The values
    are checked when they are resolved, but those of ``config`` and ``foreground`` here: they
    belong to no group.
    """
    ours: dict[str, str] = {}
    kernel: list[str] = []
    known = {*option_names(*IN_MOUNT_OPTIONS), *_FLAGS_ONLY}
    known -= FOR_UPLOADS
    parts = [
        part.replace("\\,", ",")
        for text in texts
        for part in re.findall(r"(?:[^,\\]|\\.|\\\Z)+", text, re.DOTALL)
    ]
    remount = "remount" in parts
    ignored = _IGNORED | {"remount"} | (_OF_THE_KERNEL if remount else frozenset())
    for part in parts:
        key, equals, value = part.partition("=")
        name = key.replace("-", "_")
        if name in known:
            ours[name] = value if equals else "true"
            if name in _FLAGS_ONLY:
                _parse(_FLAGS_ONLY[name], name, ours[name], "-o")
        elif key in _PASSED:
            kernel.append(key)
        elif key in ignored or key.startswith(("x-", "X-", "_")):
            continue
        elif not sloppy:
            raise unknown_option(key, sorted(known), "-o")
    return MountArguments(Layer("-o", ours), tuple(dict.fromkeys(kernel)), remount)
