"""What of a mount can change while it runs: its servers, its limits, its deadlines, its log level.

``compare`` decides; ``Reloading`` has it done. What cannot change is named with the reason, and
stays as it was.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import trio

from cafsfs.client.servers import Deadlines
from cafsfs.config.options import CacheOptions, LogOptions, MountOptions, StoreOptions
from cafsfs.config.uri import StoreUri
from cafsfs.config.values import LOG_LEVELS, plain
from cafsfs.errors import CafsError, UsageError
from cafsfs.report.logs import reopen_files, set_level
from cafsfs.store.budget import MemoryBudget
from cafsfs.store.cache.disk_cache import DiskCache
from cafsfs.store.read_caching import ReadCachingStore
from cafsfs.vfs.filesystem import FileSystem

log = logging.getLogger(__name__)

RELOAD = "reload"
"""Command of the control socket: have all that can change while mounted be as configured now.

``mountpoint`` names the mount that is meant (null: any), ``options`` are those of a remount, by
name and as text; they win over all others from now on. The answer says whether it was
``concerned``, which options have ``changed`` (the old and the new value, by option), and which are
``fixed``: they have another value than is asked for, and need a new mount (why, by option)."""

_SHARE = 0.4  # of a reader's patience that one of several servers may use up

_AT_MOUNT = "the kernel was told when it was mounted"
_AT_START = "it is only looked at when the mount begins"
_ANOTHER = "the cache would be another one"
_FIXED: Mapping[str, str] = {
    **dict.fromkeys(("allow_other", "uid", "gid", "fsname", "nonempty"), _AT_MOUNT),
    **dict.fromkeys(("metrics_listen", "metrics_textfile"), _AT_START),
    **dict.fromkeys(("log_file", "log_format", "log_size"), _AT_START),
    **dict.fromkeys(("cache_dir", "auth"), _ANOTHER),
    "cache_seed": _AT_START,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class MountPlan:
    """Everything that a mount needs to know. ``kernel_options`` go to the kernel as they are."""

    uri: StoreUri
    point: str
    store: StoreOptions
    cache: CacheOptions
    mount: MountOptions
    log: LogOptions = field(default_factory=LogOptions)
    kernel_options: tuple[str, ...] = ()

    @property
    def deadlines(self) -> Deadlines:
        """Where there is another server, one is left early enough for a reader to see its answer.

        By default the deadlines for a server and for a reader are the same, and a reader who gave
        up at the very moment when the next server is asked would never be answered by it.
        """
        given = self.store.deadlines
        if len(self.uri.servers) < 2:
            return given
        lookup, read = self.mount.lookup_timeout, self.mount.read_timeout
        return Deadlines(
            connect=min(given.connect, lookup * _SHARE),
            question=min(given.question, lookup * _SHARE),
            answer=min(given.answer, read * _SHARE),
            progress=min(given.progress, read * _SHARE),
        )


Reread = Callable[[Mapping[str, str]], MountPlan]
"""The plan as it would be made now, if these options won over all others; raises UsageError."""


@dataclass(frozen=True, slots=True)
class Changes:
    """From one plan to the next: ``plan`` is what it will be; values are as people write them."""

    plan: MountPlan
    changed: dict[str, tuple[str, str]]
    fixed: dict[str, str]

    @property
    def nothing(self) -> bool:
        """Does all stay as it is?"""
        return not (self.changed or self.fixed)


def compare(old: MountPlan, new: MountPlan) -> Changes:
    """What is to be changed, and what cannot be."""
    changed: dict[str, tuple[str, str]] = {}
    fixed: dict[str, str] = {}
    groups: dict[str, Any] = {}
    for group in ("store", "cache", "mount", "log"):
        before, after = getattr(old, group), getattr(new, group)
        staying: dict[str, object] = {}
        for each in fields(before):
            was, will = getattr(before, each.name), getattr(after, each.name)
            if was == will:
                continue
            if each.name in _FIXED:
                fixed[each.name] = _FIXED[each.name]
                staying[each.name] = was
            else:
                parse = each.metadata["parse"]
                changed[each.name] = plain(was, parse), plain(will, parse)
        groups[group] = replace(after, **staying)
    uri = new.uri
    if (uri.root, uri.directory) != (old.uri.root, old.uri.directory):
        fixed["uri"], uri = "another store is another mount", old.uri
    elif uri.members != old.uri.members and "cache_dir" in fixed:
        fixed["servers"], uri = _ANOTHER, old.uri
    elif uri.members != old.uri.members:
        changed["servers"] = _servers(old.uri), _servers(uri)
    # What is shown of a mount, its name in mountinfo above all, stays.
    plan = replace(old, uri=replace(uri, text=old.uri.text), **groups)
    return Changes(plan, changed, fixed)


def _servers(uri: StoreUri) -> str:
    return ",".join(
        f"{each.server}{f';zone={each.zone}' if each.zone else ''}"
        f"{f';priority={each.priority}' if each.priority else ''}"
        f"{f';weight={each.weight:g}' if each.weight != 1 else ''}"
        for each in uri.members
    )


class Reloading:
    """Changes a live mount; one change at a time.

    ``renew`` asks other servers from now on, or the same in another way; it raises CafsError.
    """

    def __init__(
        self,
        plan: MountPlan,
        reread: Reread,
        *,
        cache: DiskCache,
        store: ReadCachingStore,
        filesystem: FileSystem,
        budget: MemoryBudget,
        renew: Callable[[MountPlan], Awaitable[None]],
    ) -> None:
        self.plan = plan
        self._reread = reread
        self._cache = cache
        self._store = store
        self._filesystem = filesystem
        self._budget = budget
        self._renew = renew
        self._one = trio.Lock()
        self._asked: dict[str, str] = {}  # by commands, so far

    async def reload(self, options: Mapping[str, str] | None = None) -> Changes:
        """Read the configuration again, and do what it says; raises CafsError, and does nothing."""
        async with self._one:
            reopen_files()
            asked = {**self._asked, **(options or {})}
            plan = await trio.to_thread.run_sync(self._reread, asked)
            changes = compare(self.plan, plan)
            # First what may fail: a secret that cannot be read, a bad root.
            if _talks_otherwise(self.plan, changes.plan):
                await self._renew(changes.plan)
            before, self.plan = self.plan, changes.plan
            # What was refused is not asked for again each time.
            self._asked = {name: text for name, text in asked.items() if name not in changes.fixed}
            self._apply(changes.plan)
            # What is told of it is heard in any case.
            levels = before.log.log_level, changes.plan.log.log_level
            set_level(min(levels, key=LOG_LEVELS.index))
            self._tell(changes)
            set_level(changes.plan.log.log_level)
        return changes

    async def on_signal(self) -> None:
        """As ``reload``, for SIGHUP: nobody waits for an answer but the log."""
        try:
            await self.reload()
        except CafsError as error:
            log.error("nothing is changed: %s", error)  # noqa: TRY400  # no bug

    async def command(self, request: Mapping[str, object]) -> dict[str, object]:
        """As ``reload``, for the control socket."""
        if request.get("mountpoint") not in {None, self.plan.point}:
            return {"concerned": False}
        options = request.get("options", {})
        if not (isinstance(options, dict) and all(isinstance(e, str) for e in options.values())):
            raise UsageError("`options` is no object of texts")
        changes = await self.reload(options)
        changed = {name: list(values) for name, values in changes.changed.items()}
        return {"concerned": True, "changed": changed, "fixed": changes.fixed}

    def _apply(self, plan: MountPlan) -> None:
        self._budget.resize(plan.store.memory)
        self._cache.rebound(plan.cache.bounds)
        self._store.reconsider(
            finish_pulls=plan.mount.finish_pulls, verify_first=plan.mount.verify_first
        )
        self._filesystem.set_deadlines(
            lookup=plan.mount.lookup_timeout, read=plan.mount.read_timeout
        )

    @staticmethod
    def _tell(changes: Changes) -> None:
        for name, (old, new) in changes.changed.items():
            log.info("reloaded: %s is %s now, and was %s", name.replace("_", "-"), new, old)
        for name, reason in changes.fixed.items():
            log.warning(
                "reloaded: %s stays as it was until it is mounted anew: %s",
                *(name.replace("_", "-"), reason),
            )
        if changes.nothing:
            log.info("reloaded: nothing has changed")


def _talks_otherwise(old: MountPlan, new: MountPlan) -> bool:
    """Is there anything new in how servers are talked to, or in who they are?

    The file of a secret may have another content under the same name.
    """
    ours, theirs = (replace(each.store, memory=0, replicas=1) for each in (old, new))
    return (
        ours != theirs
        or old.uri.members != new.uri.members
        or old.deadlines != new.deadlines
        or new.store.secret_file is not None
    )
