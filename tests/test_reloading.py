"""What of a mount can change while it runs, and what stays, with the reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from cafsfs.config.options import CacheOptions, LogOptions, MountOptions, StoreOptions, option_names
from cafsfs.config.uri import parse_uri
from cafsfs.config.values import parse_amount
from cafsfs.errors import UsageError
from cafsfs.metrics import Metrics
from cafsfs.reloading import MountPlan, Reloading, compare
from cafsfs.store.budget import MemoryBudget
from cafsfs.store.read_caching import ReadCachingStore
from cafsfs.vfs.filesystem import FileSystem, VfsOptions
from tests.store.scripted import ScriptedStore
from tests.store.stacks import Caches

# What stays is looked at by others: the kernel, whoever reads the log, the cache's other users.
FIXED = {
    *("allow_other", "uid", "gid", "fsname", "nonempty", "cache_dir", "cache_seed", "auth"),
    *("metrics_listen", "metrics_textfile", "log_file", "log_format", "log_size"),
}


def plan(uri: str = "cafs://a,b/data", /, **options: object) -> MountPlan:
    def group(kind: type) -> object:
        return kind(**{k: v for k, v in options.items() if k in option_names(kind)})

    return MountPlan(
        uri=parse_uri(uri),
        point="/mnt/cafs",
        store=group(StoreOptions),  # type: ignore[arg-type]  # of that kind
        cache=group(CacheOptions),  # type: ignore[arg-type]
        mount=group(MountOptions),  # type: ignore[arg-type]
        log=group(LogOptions),  # type: ignore[arg-type]
    )


def test_nothing_has_changed() -> None:
    changes = compare(plan(), plan())
    assert changes.nothing
    assert changes.plan == plan()


def test_limits_and_levels_change() -> None:
    new = plan(log_level="debug", cache_size=parse_amount("1G"), memory=1 << 20, read_timeout=5.0)
    changes = compare(plan(memory=1 << 30), new)
    assert changes.fixed == {}
    assert changes.changed == {
        "memory": ("1G", "1M"),
        "cache_size": ("20G", "1G"),
        "read_timeout": ("30", "5"),
        "log_level": ("info", "debug"),
    }
    assert changes.plan == new


def test_servers_change_and_the_name_of_the_mount_stays() -> None:
    changes = compare(plan(), plan("cafs://a;zone=eu,c:1;weight=2/data"))
    assert changes.changed == {
        "servers": ("a:2403,b:2403", "a:2403;zone=eu,c:1;weight=2"),
    }
    assert changes.plan.uri.text == "cafs://a,b/data"
    assert [each.server.host for each in changes.plan.uri.members] == ["a", "c"]


@pytest.mark.parametrize("uri", ["cafs://a,b/other", "file:///data"])
def test_another_store_is_another_mount(uri: str) -> None:
    changes = compare(plan(), plan(uri))
    assert changes.fixed == {"uri": "another store is another mount"}
    assert changes.plan == plan()


def test_what_would_be_another_cache_keeps_the_servers_too() -> None:
    """With ``--auth required`` a cache belongs to its servers."""
    changes = compare(plan(cache_dir=Path("/1")), plan("cafs://c/data", cache_dir=Path("/2")))
    assert set(changes.fixed) == {"cache_dir", "servers"}
    assert changes.plan == plan(cache_dir=Path("/1"))


@pytest.mark.parametrize("name", sorted(FIXED))
def test_what_cannot_change_says_why(name: str) -> None:
    others: dict[str, object] = {
        **dict.fromkeys(("uid", "gid", "log_size"), 7),
        **dict.fromkeys(("allow_other", "nonempty"), True),
    }
    changes = compare(plan(), plan("cafs://a,b/data", **{name: others.get(name, Path("/other"))}))
    assert list(changes.fixed) == [name]
    assert changes.fixed[name]
    assert changes.changed == {}
    assert changes.plan == plan()


class Bench:
    """A reloading of a store over a scripted upstream."""

    def __init__(self, directory: Path, caches: Caches, nursery: trio.Nursery) -> None:
        self.plan = self.now = plan()
        self.renewed: list[MountPlan] = []
        self.error: UsageError | None = None
        self.asked: list[Mapping[str, str]] = []
        self.cache = caches.open(directory, 1 << 30)
        self.store = ReadCachingStore(self.cache, ScriptedStore(), nursery, metrics=Metrics())
        self.filesystem = FileSystem(self.store, VfsOptions(uid=0, gid=0, born_ns=0), {})
        self.budget = MemoryBudget(1 << 20)
        self.reloading = Reloading(
            self.plan,
            self._reread,
            cache=self.cache,
            store=self.store,
            filesystem=self.filesystem,
            budget=self.budget,
            renew=self._renew,
        )

    def _reread(self, options: Mapping[str, str]) -> MountPlan:
        self.asked.append(options)
        if "bad" in options:
            raise UsageError("`bad` is not an option")
        return self.now

    async def _renew(self, new: MountPlan) -> None:
        await trio.lowlevel.checkpoint()
        if self.error is not None:
            raise self.error
        self.renewed.append(new)


@pytest.fixture
def caches() -> Iterator[Caches]:
    caches = Caches()
    yield caches
    caches.close()


@pytest.fixture
def bench(tmp_path: Path, nursery: trio.Nursery, caches: Caches) -> Bench:
    return Bench(tmp_path, caches, nursery)


@pytest.fixture(autouse=True)
def level(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The levels that were set."""
    levels: list[str] = []
    monkeypatch.setattr("cafsfs.reloading.set_level", levels.append)
    return levels


async def test_changes_reach_whom_they_concern(bench: Bench, level: list[str]) -> None:
    bench.now = plan(
        log_level="debug",
        cache_size=parse_amount("7M"),
        memory=5 << 20,
        lookup_timeout=2.0,
        read_timeout=3.0,
        finish_pulls=True,
        verify_first=None,
    )
    changes = await bench.reloading.reload()
    assert set(changes.changed) == {
        *("log_level", "cache_size", "memory", "lookup_timeout", "read_timeout"),
        *("finish_pulls", "verify_first"),
    }
    assert level[-1] == "debug"
    assert bench.cache.usage.bound == 7 << 20
    assert bench.cache.premises.others() == []
    assert bench.budget.total == 5 << 20
    options = bench.filesystem.options
    assert (options.lookup_deadline, options.read_patience) == (2, 3)
    assert (bench.store._finish_pulls, bench.store._verify_first) == (True, None)
    # A server is left in time for a reader to see the answer of the next one.
    assert bench.renewed == [changes.plan]


async def test_lookups_that_were_hurried_stay_so(bench: Bench) -> None:
    bench.filesystem.hurry_lookups(1.0)
    bench.now = plan(lookup_timeout=4.0)
    await bench.reloading.reload()
    assert bench.filesystem._lookup_deadline == 1


@pytest.mark.parametrize(("new", "set_"), [("error", ["info", "error"]), ("debug", ["debug"] * 2)])
async def test_what_is_told_of_a_reload_is_heard(
    bench: Bench, level: list[str], new: str, set_: list[str]
) -> None:
    """Though the log is to be quieter from now on."""
    bench.now = plan(log_level=new)
    await bench.reloading.reload()
    assert level == set_


async def test_the_log_is_opened_anew(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[bool] = []
    monkeypatch.setattr("cafsfs.reloading.reopen_files", lambda: opened.append(True))
    await bench.reloading.reload()
    assert opened == [True]


async def test_a_secret_is_read_again_though_its_file_has_the_same_name(bench: Bench) -> None:
    bench.now = plan(secret_file=Path("/etc/cafsfs/secret"))
    for _ in range(2):
        await bench.reloading.reload()
    assert len(bench.renewed) == 2


async def test_what_was_refused_is_not_asked_for_again(
    bench: Bench, expect_log: Callable[[str], None]
) -> None:
    expect_log("WARNING cafsfs.reloading: reloaded: uid stays as it was until it is mounted anew")
    bench.now = plan(uid=7)
    await bench.reloading.command({"options": {"uid": "7", "log_level": "info"}})
    bench.now = plan()
    await bench.reloading.reload()
    assert bench.asked[-1] == {"log_level": "info"}


async def test_servers_that_stay_keep_their_connections(bench: Bench) -> None:
    bench.now = plan(cache_size=parse_amount("7M"), memory=1 << 20, finish_pulls=True)
    await bench.reloading.reload()
    assert bench.renewed == []
    bench.now = replace(bench.now, uri=parse_uri("cafs://a,c/data"))
    await bench.reloading.reload()
    assert [each.uri.members for each in bench.renewed] == [bench.now.uri.members]


async def test_other_processes_are_told_the_bound(bench: Bench, tmp_path: Path) -> None:
    caches = Caches()
    other = caches.open(tmp_path, 5)
    bench.now = plan(cache_size=parse_amount("7M"))
    await bench.reloading.reload()
    assert [each.bound for each in other.premises.others()] == [7 << 20]
    caches.close()


async def test_where_the_new_servers_cannot_be_used_nothing_changes(
    bench: Bench, level: list[str], expect_log: Callable[[str], None]
) -> None:
    bench.error = UsageError("the secret cannot be read")
    bench.now = plan("cafs://c/data", log_level="debug")
    with pytest.raises(UsageError, match="the secret cannot be read"):
        await bench.reloading.reload()
    assert level == []
    assert bench.reloading.plan == bench.plan
    expect_log("ERROR cafsfs.reloading: nothing is changed: the secret cannot be read")
    await bench.reloading.on_signal()


async def test_options_of_a_command_win_until_the_end(
    bench: Bench, expect_log: Callable[[str], None]
) -> None:
    request: dict[str, object] = {"mountpoint": "/mnt/cafs", "options": {"log_level": "debug"}}
    bench.now = plan(log_level="debug")
    answer = await bench.reloading.command(request)
    assert answer == {"concerned": True, "changed": {"log_level": ["info", "debug"]}, "fixed": {}}
    expect_log("WARNING cafsfs.reloading: reloaded: uid stays as it was until it is mounted anew")
    bench.now = plan(log_level="debug", uid=7)
    await bench.reloading.on_signal()
    with pytest.raises(UsageError):
        await bench.reloading.command({"options": {"bad": "1"}})
    await bench.reloading.on_signal()
    assert bench.asked == [{"log_level": "debug"}] * 2 + [
        {"log_level": "debug", "bad": "1"},
        {"log_level": "debug"},
    ]


async def test_commands_for_others_and_nonsense(bench: Bench) -> None:
    assert await bench.reloading.command({"mountpoint": "/mnt/other"}) == {"concerned": False}
    for options in ("a=b", {"a": 1}):
        with pytest.raises(UsageError, match="is no object of texts"):
            await bench.reloading.command({"options": options})
    assert bench.asked == []
