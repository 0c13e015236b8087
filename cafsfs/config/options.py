"""Every option stands here, once: a field of a frozen dataclass.

Its metadata is its parser and its help. Flags, ``-o`` keys, URI keys, ``CAFSFS_*`` variables and
TOML keys all derive from it.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from cafsfs.client.groups import parse_zone
from cafsfs.client.mirror_template import MirrorTemplate
from cafsfs.client.servers import Deadlines, Server
from cafsfs.config.values import (
    parse_age,
    parse_amount,
    parse_auth,
    parse_bool,
    parse_count,
    parse_encryption,
    parse_format,
    parse_id,
    parse_level,
    parse_listen,
    parse_mirrors,
    parse_path,
    parse_seconds,
    parse_size,
    parse_text,
    parse_textfile,
    parse_verify_first,
)
from cafsfs.store.budget import default_budget
from cafsfs.store.cache.bounds import Amount, Bounds

T = TypeVar("T")


def default_cache_dir() -> Path:
    """``$XDG_CACHE_HOME/cafsfs``; for root or without HOME ``/var/cache/cafsfs``."""
    if os.geteuid() == 0 or "HOME" not in os.environ:
        return Path("/var/cache/cafsfs")
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():  # to be ignored, says the XDG specification
        base = Path(os.environ["HOME"]) / ".cache"
    return base / "cafsfs"


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


def option_names(*groups: type) -> dict[str, dataclasses.Field[Any]]:
    """Option names, with ``_``, of some groups, in their order."""
    return {each.name: each for group in groups for each in dataclasses.fields(group)}


def flag(name: str) -> str:
    """An option as a flag."""
    return "--" + name.replace("_", "-")
