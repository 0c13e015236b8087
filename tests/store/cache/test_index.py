"""The cache's index: what it remembers, and that nothing that happens to its file is noticed.

Two Index objects on one path play two processes; no mocks.
"""

from __future__ import annotations

import os
import resource
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cafsfs.digest import Digest
from cafsfs.errors import StoreError
from cafsfs.store.cache import index as index_module
from cafsfs.store.cache.index import Changes, Entry, Index, Totals, works_on

BOOT = "f3b0c442-98fc-4c14-9afb-f4c8996fb924"
REBUILDING = "WARNING cafsfs.store.cache.database: .* is unusable .*: rebuilding it from the files"
ExpectLog = Callable[[str], None]


def digest(number: int) -> Digest:
    return Digest(number.to_bytes(2, "big") * 16)


def entry(number: int, *, size: int = 10, used: float = 100.0) -> Entry:
    return Entry(digest=digest(number), size=size, pulled=50.0, used=used)


def enter(*entries: Entry) -> Changes:
    return Changes(entries={each.digest: each for each in entries})


def many(count: int) -> Changes:
    return enter(*(entry(number, used=float(number)) for number in range(count)))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "index.sqlite"


@pytest.fixture(params=["file", "memory"])
def index(request: pytest.FixtureRequest, path: Path) -> Iterator[Index]:
    with opened(path) if request.param == "file" else memory() as it:
        yield it


@contextmanager
def opened(path: Path, *, patience: float = 5.0) -> Iterator[Index]:
    it = Index.open(path, patience=patience)
    try:
        yield it
    finally:
        it.close()


@contextmanager
def memory() -> Iterator[Index]:
    it = Index.in_memory()
    yield it
    it.close()


@contextmanager
def raw(path: Path) -> Iterator[sqlite3.Connection]:
    db = sqlite3.connect(path, isolation_level=None)
    try:
        yield db
    finally:
        db.close()


# What it remembers.


def test_a_new_one_is_empty_and_not_complete(index: Index) -> None:
    assert index.totals() == Totals(0, 0, complete=False)
    assert index.rebuilds == 0
    assert index.get(digest(1)) is None
    assert not index.oldest(5)
    assert not index.entries(None, 5)
    assert not index.listing()
    assert not index.pins()


def test_every_field_comes_back(index: Index) -> None:
    full = Entry(
        digest=digest(1),
        size=1 << 40,
        pulled=1.25,
        used=2.5,
        verified=3.75,
        mtime_ns=1_700_000_000_123_456_789,
        inode=1 << 62,
        boot=BOOT,
        boottime=4.5,
        durable=True,
        source="cafs://host",
        packed_size=99,
        compression="zstd",
    )
    index.apply(enter(full, entry(2)))
    assert index.get(digest(1)) == full
    assert index.get(digest(2)) == entry(2)


def test_what_was_written_is_there_for_the_next_process(path: Path) -> None:
    with opened(path) as first:
        first.apply(replace(many(3), lengths={digest(9): 900}))
        first.pin([digest(1)])
        first.set_complete(True)
        with opened(path) as second:
            assert second.totals() == Totals(3, 30, complete=True)
    with opened(path) as third:
        assert third.totals() == Totals(3, 30, complete=True)
        assert third.pins() == [digest(1)]
        assert third.length(digest(9)) == 900
        assert third.rebuilds == 0


def test_only_its_owner_may_read_the_file(path: Path) -> None:
    with opened(path) as it:
        it.apply(many(1))
        for each in path.parent.iterdir():
            assert each.stat().st_mode & 0o777 == 0o600, each


def test_below_a_prefix(index: Index) -> None:
    low, high = Digest(b"\xab\xcd" + bytes(30)), Digest(b"\xab\xcd" + b"\xff" * 30)
    beside = Digest(b"\xab\xce" + bytes(30))
    last = Digest(b"\xff" * 32)
    index.apply(enter(*(Entry(digest=each, size=7, pulled=1, used=1) for each in
                        (low, high, beside, last))))  # fmt: skip
    assert index.below(b"\xab\xcd") == {low: 7, high: 7}
    assert index.below(b"\xab") == {low: 7, high: 7, beside: 7}
    assert index.below(b"\xff") == index.below(b"\xff\xff") == {last: 7}
    assert index.below(b"\x00") == {}


def test_pages_and_listing_are_in_order_of_digest(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_module, "_STEP", 3)
    rows = [replace(entry(number), verified=float(number % 2)) for number in range(10)]
    index.apply(enter(*reversed(rows)))
    assert index.entries(None, 4) == rows[:4]
    assert index.entries(digest(3), 100) == rows[4:]
    assert index.entries(digest(9), 4) == []
    assert index.between(digest(2), digest(4)) == {row.digest: row for row in rows[2:5]}
    assert index.between(digest(4), digest(2)) == {}
    assert index.listing() == [(each.digest, 10, each.verified == 1.0) for each in rows]


def test_the_oldest_come_first_and_pins_never(index: Index) -> None:
    index.apply(enter(*(entry(number, used=100.0 - number) for number in range(6))))
    index.pin([digest(5), digest(2), digest(77)])
    assert index.oldest(2) == [(digest(4), 10, 96.0), (digest(3), 10, 97.0)]
    assert index.oldest(9, offset=2) == [(digest(1), 10, 99.0), (digest(0), 10, 100.0)]
    assert index.pinned_bytes() == 20
    assert index.is_pinned(digest(77))
    index.unpin([digest(5), digest(77), digest(78)])
    assert not index.is_pinned(digest(77))
    assert index.pins() == [digest(2)]
    assert index.oldest(1) == [(digest(5), 10, 95.0)]


def test_expired_by_either_age(index: Index) -> None:
    pulled_long_ago = replace(entry(1, used=90.0), pulled=1.0)
    unused = entry(2, used=60.0)
    both = replace(entry(3, used=60.0), pulled=1.0)
    index.apply(enter(pulled_long_ago, unused, both, entry(4), replace(both, digest=digest(5))))
    index.pin([digest(5)])

    def found(pulled_before: float | None, used_before: float | None) -> set[int]:
        rows = index.expired(9, pulled_before=pulled_before, used_before=used_before)
        return {each.raw[1] for each, _, _ in rows}

    assert found(None, None) == set()
    assert found(10.0, None) == {1, 3}
    assert found(None, 70.0) == {2, 3}
    assert found(10.0, 70.0) == {1, 2, 3}
    assert len(index.expired(2, pulled_before=10.0, used_before=70.0)) == 2


# What apply does.


def test_changes_are_false_when_empty() -> None:
    assert not Changes()
    assert len(replace(many(2), uses={digest(1): 1.0}, removed={digest(3)})) == 4


def test_removed_goes_before_entered(index: Index) -> None:
    index.apply(enter(entry(1, size=5, used=900.0)))
    index.apply(replace(enter(entry(1, size=6, used=100.0)), removed={digest(1), digest(2)}))
    assert index.get(digest(1)) == entry(1, size=6, used=100.0)
    assert index.totals() == Totals(1, 6, complete=False)


def test_use_only_grows(index: Index) -> None:
    index.apply(enter(entry(1, used=100.0)))
    index.apply(Changes(uses={digest(1): 50.0, digest(2): 70.0}))
    assert index.oldest(9) == [(digest(1), 10, 100.0)]
    index.apply(Changes(uses={digest(1): 150.0}))
    index.apply(enter(entry(1, used=120.0)))
    assert index.oldest(9) == [(digest(1), 10, 150.0)]


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        ({"size": 11, "verified": 9.0, "source": "x"}, True),
        ({"boot": "other"}, True),  # verified again, after a reboot: it was on the disk before
        ({"mtime_ns": 8}, False),
        ({"inode": 8}, False),
        ({"inode": 8, "durable": True}, True),
    ],
)
def test_durable_stays_while_the_file_is_the_same(
    index: Index, change: dict[str, object], kept: bool
) -> None:
    first = replace(entry(1), boot=BOOT, mtime_ns=7, inode=7, verified=1.0)
    index.apply(enter(replace(first, durable=True)))
    index.apply(enter(replace(first, **change)))  # type: ignore[arg-type]  # values of any field
    found = index.get(digest(1))
    assert found is not None
    assert found.durable is kept


def test_a_length_outlives_its_row(index: Index) -> None:
    index.apply(replace(enter(entry(1)), lengths={digest(1): 5}))
    index.apply(Changes(removed={digest(1)}, lengths={digest(2): 6}))
    assert (index.length(digest(1)), index.length(digest(2))) == (5, 6)
    assert index.length(digest(3)) is None


def test_durable_marks_what_that_boot_verified_before(index: Index) -> None:
    seen = [replace(entry(n), verified=1.0, boot=BOOT, boottime=float(n)) for n in range(6)]
    seen[0] = replace(seen[0], boot="another")
    seen[1] = replace(seen[1], verified=0.0)
    index.apply(enter(*seen))
    assert index.mark_durable(BOOT, 4.0, limit=2) == 2
    assert index.mark_durable(BOOT, 4.0, limit=2) == 1
    assert index.mark_durable(BOOT, 4.0) == 0
    assert [each.durable for each in index.entries(None, 9)] == [False, False, True, True, True,
                                                                False]  # fmt: skip


def test_times_to_come_are_clamped(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "_STEP", 2)
    index.apply(enter(*(replace(entry(n, used=1e12), pulled=1e11) for n in range(5)), entry(7)))
    index.clamp(1000.0)
    assert index.get(digest(0)) == replace(entry(0, used=1000.0), pulled=1000.0)
    assert index.get(digest(4)) == replace(entry(4, used=1000.0), pulled=1000.0)
    assert index.get(digest(7)) == entry(7)


def test_complete_is_not_said_of_another_index_than_was_scanned(path: Path) -> None:
    with opened(path) as it:
        before = it.generation
        path.unlink()
        it.apply(many(1))
        it.set_complete(True, generation=before)
        assert not it.totals().complete
        it.set_complete(True, generation=it.generation)
        assert it.totals().complete
        it.set_complete(False)
        assert not it.totals().complete


_DIGESTS = st.integers(0, 5).map(digest)
_TIMES = st.integers(0, 9).map(float)
_CHANGES = st.builds(
    Changes,
    entries=st.dictionaries(_DIGESTS, st.tuples(st.integers(0, 9), _TIMES)).map(
        lambda drawn: {
            each: Entry(digest=each, size=size, pulled=0.0, used=used)
            for each, (size, used) in drawn.items()
        }
    ),
    uses=st.dictionaries(_DIGESTS, _TIMES),
    removed=st.sets(_DIGESTS),
    lengths=st.dictionaries(_DIGESTS, st.none() | st.integers(0, 9)),
)


@settings(max_examples=60, deadline=None)
@given(batches=st.lists(_CHANGES, max_size=8))
def test_it_agrees_with_a_dictionary(batches: list[Changes]) -> None:
    rows: dict[Digest, Entry] = {}
    lengths: dict[Digest, int | None] = {}
    with tempfile.TemporaryDirectory() as directory, opened(Path(directory) / "i") as it:
        for batch in batches:
            it.apply(batch)
            for each in batch.removed:
                rows.pop(each, None)
            for each, new in batch.entries.items():
                used = max(new.used, rows[each].used) if each in rows else new.used
                rows[each] = replace(new, used=used)
            for each, used in batch.uses.items():
                if each in rows:
                    rows[each] = replace(rows[each], used=max(used, rows[each].used))
            lengths |= batch.lengths
            expected = Totals(len(rows), sum(row.size for row in rows.values()), complete=False)
            assert it.totals() == expected
            assert it.entries(None, 99) == sorted(rows.values(), key=lambda row: row.digest)
            assert {each: it.length(each) for each in lengths} == lengths


# Its speed, as far as a test can tell without a clock.


@pytest.mark.parametrize(
    ("query", "values", "by"),
    [
        ("_OLDEST", (9, 0), "SCAN blobs USING COVERING INDEX by_use"),  # stops at LIMIT
        (
            "_MARK_DURABLE",
            (BOOT, 1.0, 9.0, 9),
            "not_durable (boot=? AND boottime>? AND boottime<?)",
        ),
        ("_EXPIRED", (1.0, 1.0, 9), "MULTI-INDEX OR"),
        ("_CLAMP", (1.0, 9), "MULTI-INDEX OR"),
    ],
)
def test_nothing_goes_through_all_rows(
    path: Path, query: str, values: tuple[object, ...], by: str
) -> None:
    with opened(path), raw(path) as db:
        statement = getattr(index_module, query)
        plan = [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {statement}", values)]
    assert any(by in step for step in plan), plan
    assert not [step for step in plan if "TEMP B-TREE" in step], plan
    scans = [step for step in plan if step.startswith("SCAN")]
    assert scans == ([by] if by.startswith("SCAN") else []), plan


# What happens to its file.


def scribble(path: Path, *, start: int = 0, junk: bytes | None = None) -> None:
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(start)
        file.write(os.urandom(size - start) if junk is None else junk)


def garbage(path: Path) -> None:
    scribble(path)


def zeroed(path: Path) -> None:
    scribble(path, junk=bytes(path.stat().st_size))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def another_version(path: Path) -> None:
    with raw(path) as db:
        db.execute("PRAGMA user_version = 77")


def another_schema(path: Path) -> None:
    with raw(path) as db:
        db.execute("DROP INDEX by_use")


def a_table_gone(path: Path) -> None:
    with raw(path) as db:
        db.execute("DROP TABLE blobs")


def totals_gone(path: Path) -> None:
    with raw(path) as db:
        db.execute("DELETE FROM state")


def somebody_elses(path: Path) -> None:
    path.unlink()
    with raw(path) as db:
        db.execute("CREATE TABLE theirs(x)")


def no_hash_for_a_key(path: Path) -> None:
    with raw(path) as db:
        db.execute("UPDATE blobs SET digest = x'0102' WHERE digest = ?", (digest(3).raw,))


@pytest.mark.parametrize(
    "harm",
    [garbage, zeroed, cut, another_version, another_schema, a_table_gone, totals_gone,
     somebody_elses],
)  # fmt: skip
def test_an_unsound_file_is_begun_anew_on_opening(
    path: Path, harm: Callable[[Path], None], expect_log: ExpectLog
) -> None:
    with opened(path) as it:
        it.apply(many(500))
        it.set_complete(True)
    harm(path)
    expect_log(REBUILDING)
    with opened(path) as it:
        assert it.rebuilds == 1
        assert it.totals() == Totals(0, 0, complete=False)
        it.apply(many(2))
    with opened(path) as it:
        assert it.totals() == Totals(2, 20, complete=False)
        assert it.rebuilds == 0


def test_an_empty_file_is_a_new_one(path: Path) -> None:
    path.touch()
    with opened(path) as it:
        assert it.totals() == Totals(0, 0, complete=False)
        assert it.rebuilds == 0


@pytest.mark.parametrize("harm", [a_table_gone, no_hash_for_a_key])
def test_a_reader_does_not_notice_that_it_is_begun_anew(
    path: Path, harm: Callable[[Path], None], expect_log: ExpectLog
) -> None:
    with opened(path) as it:
        it.apply(many(5))
        harm(path)
        expect_log(REBUILDING)
        assert it.listing() == []
        assert it.rebuilds == 1
        it.apply(many(1))
        assert it.totals() == Totals(1, 10, complete=False)


def test_a_page_that_is_broken_is_found_when_it_is_read(path: Path, expect_log: ExpectLog) -> None:
    with opened(path) as it:
        it.apply(many(3000))
    size = path.stat().st_size
    scribble(path, start=size // 2, junk=bytes(size // 2 - 4096))
    expect_log(REBUILDING)
    with opened(path) as it:
        it.listing()
        it.oldest(3000)
        assert it.rebuilds == 1
        assert it.totals() == Totals(0, 0, complete=False)


def test_a_writer_repeats_its_batch_on_the_new_file(path: Path, expect_log: ExpectLog) -> None:
    with opened(path) as it:
        it.apply(many(5))
        a_table_gone(path)
        expect_log(REBUILDING)
        it.apply(many(3))
        assert it.totals() == Totals(3, 30, complete=False)
        assert it.rebuilds == 1


def test_garbage_in_a_wal_that_nobody_has_open_is_passed_over(path: Path, tmp_path: Path) -> None:
    with opened(path) as it:
        it.apply(many(5))
        copy = tmp_path / "copy.sqlite"  # as a killed process leaves it
        copy.write_bytes(path.read_bytes())
        wal = copy.with_name("copy.sqlite-wal")
        wal.write_bytes(path.with_name("index.sqlite-wal").read_bytes())
    garbage(wal)
    with opened(copy) as it:
        it.apply(many(3))
        assert it.totals() == Totals(3, 30, complete=False)


@pytest.mark.parametrize("harm", [garbage, lambda wal: os.truncate(wal, 0)])
def test_a_wal_that_is_harmed_while_open(
    path: Path, harm: Callable[[Path], None], expect_log: ExpectLog
) -> None:
    with opened(path) as first:
        first.apply(many(5))
        harm(path.with_name("index.sqlite-wal"))
        expect_log(REBUILDING)
        with opened(path) as second:
            second.apply(many(3))
            assert second.rebuilds == 1
            first.apply(enter(entry(9)))  # follows
            assert first.totals() == second.totals() == Totals(4, 40, complete=False)


def test_the_other_one_follows_when_the_file_is_replaced(path: Path, expect_log: ExpectLog) -> None:
    with opened(path) as first, opened(path) as second:
        first.apply(many(5))
        a_table_gone(path)
        expect_log(REBUILDING)
        first.apply(many(2))
        second.apply(enter(entry(9)))
        assert second.totals() == first.totals() == Totals(3, 30, complete=False)
        assert (first.rebuilds, second.rebuilds) == (1, 0)


def test_two_who_find_it_unsound_make_one_new_file(path: Path, expect_log: ExpectLog) -> None:
    with opened(path) as first, opened(path) as second:
        first.apply(many(5))
        a_table_gone(path)
        expect_log(REBUILDING)
        assert first.listing() == []
        first.apply(many(2))
        assert len(second.listing()) == 2  # its reads found the old file broken, and the new one
        assert (first.rebuilds, second.rebuilds) == (1, 0)


def test_one_who_closes_a_file_that_is_gone_leaves_its_successor_alone(path: Path) -> None:
    first = Index.open(path)
    first.apply(many(5))
    path.unlink()
    with opened(path) as second:
        second.apply(many(3))
        first.close()
        assert path.with_name("index.sqlite-wal").stat().st_size
        with opened(path) as third:
            assert third.totals() == Totals(3, 30, complete=False)


def test_a_file_that_was_removed_is_made_again(path: Path) -> None:
    with opened(path) as it:
        it.apply(many(5))
        it.set_complete(True)
        for each in path.parent.iterdir():
            each.unlink()
        it.apply(many(2))
        assert it.totals() == Totals(2, 20, complete=False)
        assert it.rebuilds == 0
        assert path.stat().st_mode & 0o777 == 0o600


def test_a_lock_held_by_another_is_an_error_and_stops_no_reader(path: Path) -> None:
    with opened(path, patience=0.05) as it, raw(path) as other:
        it.apply(many(2))
        other.execute("BEGIN IMMEDIATE")
        other.execute("DELETE FROM blobs")
        with pytest.raises(StoreError, match=r"another process has held the lock for 0\.05 s"):
            it.apply(many(5))
        with opened(path, patience=0.05) as late:
            assert late.totals() == it.totals() == Totals(2, 20, complete=False)
        other.execute("ROLLBACK")
        it.apply(many(5))
        assert it.totals().blobs == 5


def test_the_lock_of_the_file_is_not_waited_for_for_ever(path: Path) -> None:
    held = Index.open(path)
    with held._database._alone(), pytest.raises(StoreError, match=r"index\.lock.*another process"):
        Index.open(path, patience=0.05)
    held.close()


def test_a_full_disk_is_an_error_and_nothing_is_written(index: Index) -> None:
    index.apply(many(2))
    writer = index._database._writer
    assert writer
    writer.execute("PRAGMA max_page_count = 30")
    with pytest.raises(StoreError, match="is full") as caught:
        index.apply(replace(many(5000), removed={digest(0)}))
    assert caught.value.hint == "free some space"
    assert index.totals() == Totals(2, 20, complete=False)
    writer.execute("PRAGMA max_page_count = 100000")
    index.apply(many(5000))
    assert index.totals().blobs == 5000
    assert index.rebuilds == 0


def test_an_input_output_error_is_an_error_and_nothing_is_written(path: Path) -> None:
    with opened(path) as it:
        it.apply(many(2))
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        try:
            with pytest.raises(StoreError, match="disk I/O error"):
                it.apply(many(5000))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert it.totals() == Totals(2, 20, complete=False)
        it.apply(many(5000))
        assert it.totals().blobs == 5000


def test_read_only_is_an_error(index: Index) -> None:
    writer = index._database._writer
    assert writer
    writer.execute("PRAGMA query_only = ON")
    with pytest.raises(StoreError, match="readonly"):
        index.apply(many(1))
    assert index.totals().blobs == 0
    writer.execute("PRAGMA query_only = OFF")
    index.apply(many(1))
    assert index.totals().blobs == 1


def test_without_its_directory(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="No such file or directory"):
        Index.open(tmp_path / "none" / "index.sqlite")


def test_a_directory_that_goes_and_comes_back(tmp_path: Path) -> None:
    home = tmp_path / "cache"
    home.mkdir()
    with opened(home / "index.sqlite") as it:
        it.apply(many(2))
        home.rename(tmp_path / "away")
        for _ in range(2):
            with pytest.raises(StoreError, match="No such file or directory"):
                it.apply(many(3))
        (tmp_path / "away").rename(home)
        it.apply(many(3))
        assert it.totals().blobs == 3


def test_a_filesystem_without_shared_memory_is_refused_and_left_clean(path: Path) -> None:
    with pytest.raises(StoreError, match="its filesystem cannot share memory") as caught:
        Index.open(path, vfs="unix-dotfile")  # SQLite's own, that has none
    assert caught.value.hint == "put the cache on a local disk"
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("fstype", ["nfs", "nfs4", "cifs", "smb3", "lustre", "fuse.sshfs"])
def test_network_filesystems_are_known(fstype: str) -> None:
    assert not works_on(fstype)
    assert works_on("ext4")
    assert works_on("tmpfs")
    assert works_on("fuse.ext4")


def test_a_strange_name_is_only_a_name(tmp_path: Path) -> None:
    directory = tmp_path / "a?b#c%20 d"
    directory.mkdir()
    with opened(directory / "index.sqlite") as it:
        it.apply(many(1))
    assert sorted(each.name for each in directory.iterdir()) == ["index.lock", "index.sqlite"]


def test_closed_is_closed(index: Index, no_descriptor_left: None) -> None:
    index.close()
    index.close()
    with pytest.raises(StoreError, match="is closed"):
        index.totals()
    with pytest.raises(StoreError, match="is closed"):
        index.apply(many(1))


def test_nothing_is_left_open(path: Path, no_descriptor_left: None) -> None:
    with opened(path) as it:
        it.apply(many(1))
        path.unlink()
        it.apply(many(1))


def test_our_own_mistakes_are_not_taken_for_a_bad_file(index: Index) -> None:
    index.apply(many(2))
    with pytest.raises(sqlite3.IntegrityError):
        index.apply(replace(enter(entry(5, used=float("nan"))), removed={digest(0)}))
    assert index.totals().blobs == 2
    assert index.rebuilds == 0


def test_many_threads(index: Index) -> None:
    failures: list[BaseException] = []

    def work(thread: int) -> None:
        try:
            for number in range(20):
                index.apply(enter(entry(thread * 100 + number)))
                assert index.get(digest(thread * 100 + number))
                index.oldest(5)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not failures
    assert index.totals() == Totals(80, 800, complete=False)


_OTHER = """
import sys
from pathlib import Path
from cafsfs.digest import Digest
from cafsfs.store.cache.index import Changes, Entry, Index
index = Index.open(Path(sys.argv[1]))
for number in range(50):
    digest = Digest((int(sys.argv[2]) * 100 + number).to_bytes(2, "big") * 16)
    index.apply(Changes({digest: Entry(digest=digest, size=10, pulled=1, used=1)}))
print(index.rebuilds)
index.close()
"""


@pytest.mark.process
def test_processes_that_find_the_same_garbage_make_one_index(path: Path) -> None:
    path.write_bytes(b"not a database, whatever its name says" * 1000)
    others = [
        subprocess.Popen(
            [sys.executable, "-c", _OTHER, str(path), str(number)], stdout=subprocess.PIPE
        )
        for number in range(3)
    ]
    rebuilds = [int(each.communicate(timeout=60)[0]) for each in others]
    assert sum(rebuilds) == 1
    with opened(path) as it:
        assert it.totals() == Totals(150, 1500, complete=False)
