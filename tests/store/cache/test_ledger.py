"""What one process knows between two looks at the index; two ledgers play two processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cafsfs.digest import Digest
from cafsfs.errors import StoreError
from cafsfs.packing import hash_bytes
from cafsfs.store.cache import ledger as ledger_module
from cafsfs.store.cache.index import Changes, Entry, Index
from cafsfs.store.cache.ledger import Known, Ledger

DIGESTS = [hash_bytes(bytes([each])) for each in range(8)]
ONE, TWO, THREE = DIGESTS[:3]


def entry(digest: Digest, size: int, used: float = 1.0) -> Entry:
    return Entry(digest=digest, size=size, pulled=1.0, used=used, verified=1.0, boot="b")


def flush(ledger: Ledger) -> None:
    changes = ledger.begin_flush()
    ledger.index.apply(changes)
    ledger.end_flush(ledger.index.totals())


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    index = Index.open(tmp_path / "index.sqlite")
    yield index
    index.close()


@pytest.fixture
def ledger(index: Index) -> Ledger:
    return Ledger(index)


# --- counts


def test_what_comes_and_goes_is_counted_at_once(ledger: Ledger) -> None:
    ledger.enter(entry(ONE, 10), replaced=None)
    ledger.enter(entry(TWO, 20), replaced=None)
    assert (ledger.used, ledger.blobs) == (30, 2)
    ledger.enter(entry(ONE, 15), replaced=10)
    assert (ledger.used, ledger.blobs) == (35, 2)
    ledger.strike(TWO, 20)
    ledger.strike(THREE, None)  # nothing was counted for it
    assert (ledger.used, ledger.blobs) == (15, 1)
    flush(ledger)
    assert (ledger.used, ledger.blobs) == (15, 1)


def test_what_others_have_written_is_learnt_by_a_flush(tmp_path: Path, index: Index) -> None:
    others = Index.open(tmp_path / "index.sqlite")
    one, other = Ledger(index), Ledger(others)
    one.enter(entry(ONE, 10), replaced=None)
    other.enter(entry(TWO, 20), replaced=None)
    flush(one)
    assert (one.used, other.used) == (10, 20)
    flush(other)
    assert other.used == 30
    flush(one)
    assert (one.used, one.blobs) == (30, 2)
    others.close()


def test_the_same_blob_of_two_processes_counts_once(tmp_path: Path, index: Index) -> None:
    others = Index.open(tmp_path / "index.sqlite")
    one, other = Ledger(index), Ledger(others)
    for each in (one, other):
        each.enter(entry(ONE, 10), replaced=None)
    for each in (one, other, one):
        flush(each)
    assert (one.used, one.blobs) == (other.used, other.blobs) == (10, 1)
    others.close()


def test_what_happens_during_a_flush_is_counted(ledger: Ledger) -> None:
    ledger.enter(entry(ONE, 10), replaced=None)
    changes = ledger.begin_flush()
    ledger.enter(entry(TWO, 20), replaced=None)
    ledger.index.apply(changes)
    ledger.end_flush(ledger.index.totals())
    assert (ledger.used, ledger.blobs, ledger.backlog) == (30, 2, 1)
    flush(ledger)
    assert (ledger.used, ledger.blobs, ledger.backlog) == (30, 2, 0)


# --- a flush that fails


def test_nothing_is_lost(ledger: Ledger) -> None:
    ledger.enter(entry(ONE, 10), replaced=None)
    ledger.enter(entry(TWO, 20), replaced=None)
    ledger.use(ONE)
    ledger.remember_length(THREE, 5)
    ledger.begin_flush()
    ledger.strike(TWO, 20)
    ledger.undo_flush()
    assert (ledger.used, ledger.blobs) == (10, 1)
    flush(ledger)
    assert (ledger.used, ledger.blobs) == (10, 1)
    assert ledger.index.get(TWO) is None
    assert ledger.index.length(THREE) == 5


def test_the_newer_word_counts(ledger: Ledger) -> None:
    ledger.enter(entry(ONE, 10), replaced=None)
    ledger.enter(entry(TWO, 20), replaced=None)
    flush(ledger)
    ledger.strike(ONE, 10)
    ledger.enter(entry(TWO, 25), replaced=20)
    ledger.begin_flush()
    ledger.enter(entry(ONE, 11), replaced=None)
    ledger.enter(entry(TWO, 26), replaced=25)
    ledger.undo_flush()
    assert (ledger.used, ledger.blobs) == (37, 2)
    flush(ledger)
    assert [each.size for each in ledger.index.entries(None, 10)] in ([11, 26], [26, 11])
    assert (ledger.used, ledger.blobs) == (37, 2)


def test_a_backlog_has_an_end(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """For an index that cannot be written for days."""
    monkeypatch.setattr(ledger_module, "_BACKLOG", 4)
    for digest in DIGESTS[:3]:
        ledger.enter(entry(digest, 10), replaced=None)
        ledger.use(digest)
    ledger.begin_flush()
    ledger.undo_flush()
    assert ledger.backlog == 3  # when it was used is dropped first
    for digest in DIGESTS[3:6]:
        ledger.enter(entry(digest, 10), replaced=None)
    ledger.begin_flush()
    ledger.undo_flush()
    assert ledger.backlog <= 4


def test_what_is_dropped_of_a_backlog_makes_the_index_incomplete(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or no walk would find the files."""
    monkeypatch.setattr(ledger_module, "_BACKLOG", 2)
    ledger.index.set_complete(True)
    flush(ledger)
    for digest in DIGESTS[:4]:
        ledger.enter(entry(digest, 10), replaced=None)
    ledger.begin_flush()
    ledger.undo_flush()
    assert not ledger.complete
    flush(ledger)
    assert not ledger.complete
    assert (ledger.used, ledger.blobs) == (0, 0)


# --- what is known


def test_what_is_pending_is_found_before_it_is_written(ledger: Ledger) -> None:
    ledger.enter(entry(ONE, 10), replaced=None)
    assert ledger.find(ONE) == entry(ONE, 10)
    changes = ledger.begin_flush()
    assert ledger.find(ONE) == entry(ONE, 10)
    ledger.strike(ONE, 10)
    assert ledger.find(ONE) is None
    ledger.index.apply(changes)
    ledger.end_flush(ledger.index.totals())
    assert ledger.find(ONE) is None
    flush(ledger)
    assert ledger.find(ONE) is None
    assert ledger.find(TWO) is None


def test_an_index_that_cannot_be_asked_knows_nothing(
    ledger: Ledger, expect_log: Callable[[str], None]
) -> None:
    expect_log("WARNING cafsfs.store.cache.ledger: ")
    ledger.index.close()
    assert ledger.find(ONE) is None


def test_what_is_known_has_an_end(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "_KNOWN", 3)
    for digest in DIGESTS[:3]:
        ledger.note(digest, Known(1))
    ledger.use(ONE)  # the least recently used one goes
    ledger.note(DIGESTS[3], Known(1))
    assert ledger.all_known() == [THREE, ONE, DIGESTS[3]]
    assert ledger.forget(ONE)
    assert not ledger.forget(ONE)
    assert ledger.known(ONE) is None


def test_a_stamp_tells_a_change(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    stat = path.stat()
    known = Known(7, stat.st_mtime_ns, stat.st_ino)
    assert known.describes(stat)
    assert not Known(7).describes(stat)  # nobody has verified it
    os.utime(path, (1, 1))
    assert not known.describes(path.stat())


def test_uses_grow_only(ledger: Ledger) -> None:
    ledger.enter(entry(ONE, 10, used=1.0), replaced=None)
    flush(ledger)
    ledger.use(ONE)
    ledger.use(TWO)  # which has no row
    flush(ledger)
    found = ledger.index.get(ONE)
    assert found is not None
    assert found.used > 1.0
    assert ledger.index.get(TWO) is None


# --- open files


def test_an_evicted_file_lingers_until_its_last_reader_leaves(ledger: Ledger) -> None:
    ledger.enter(entry(ONE, 10), replaced=None)
    first, second = ledger.opened(ONE, 10), ledger.opened(ONE, 10)
    assert first is second
    assert ledger.is_open(ONE)
    ledger.strike(ONE, 10)
    assert (ledger.used, ledger.lingering) == (0, 10)
    assert not ledger.is_open(ONE)
    ledger.closed(first)
    assert ledger.lingering == 10
    ledger.closed(second)
    assert ledger.lingering == 0


def test_who_opens_it_anew_has_another_file(ledger: Ledger) -> None:
    old = ledger.opened(ONE, 10)
    ledger.strike(ONE, 10)
    new = ledger.opened(ONE, 12)
    assert new is not old
    ledger.closed(old)
    assert ledger.is_open(ONE)
    ledger.strike(ONE, 12)
    assert ledger.lingering == 12
    ledger.closed(new)
    assert ledger.lingering == 0
    assert not ledger.is_open(ONE)


def test_what_does_not_count_does_not_linger(ledger: Ledger) -> None:
    files = ledger.opened(ONE, 10, counted=False)
    ledger.strike(ONE, 10)
    assert ledger.lingering == 0
    ledger.closed(files)
    assert ledger.lingering == 0


def test_what_is_open_is_used(ledger: Ledger) -> None:
    ledger.opened(ONE, 10)
    ledger.opened(TWO, 10, counted=False)
    ledger.use_what_is_open()
    assert ledger.begin_flush().uses.keys() == {ONE}


def test_closed_before_it_is_evicted(ledger: Ledger) -> None:
    ledger.closed(ledger.opened(ONE, 10))
    assert not ledger.is_open(ONE)
    ledger.strike(ONE, 10)
    assert ledger.lingering == 0


# --- a model

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["enter", "strike", "flush", "begin", "end", "undo"]),
        st.integers(0, 3),
        st.integers(0, 100),
    ),
    max_size=30,
)


@given(STEPS)
def test_as_a_dictionary_of_sizes(steps: list[tuple[str, int, int]]) -> None:
    index = Index.in_memory()
    ledger, sizes, writing = Ledger(index), dict[Digest, int](), None
    for step, number, size in steps:
        digest = DIGESTS[number]
        if step == "enter":
            ledger.enter(entry(digest, size), replaced=sizes.get(digest))
            sizes[digest] = size
        elif step == "strike":
            ledger.strike(digest, sizes.pop(digest, None))
        elif step == "flush" and writing is None:
            flush(ledger)
        elif step == "begin" and writing is None:
            writing = ledger.begin_flush()
        elif writing is not None:
            _end(ledger, writing, undo=step == "undo")
            writing = None
        assert (ledger.used, ledger.blobs) == (sum(sizes.values()), len(sizes))
        found = {each: ledger.find(each) for each in DIGESTS}
        assert {each: known.size for each, known in found.items() if known} == sizes
    if writing is not None:
        _end(ledger, writing, undo=True)
    flush(ledger)
    assert {each.digest: each.size for each in index.entries(None, 100)} == sizes
    index.close()


def _end(ledger: Ledger, writing: Changes, *, undo: bool) -> None:
    if undo:
        ledger.undo_flush()
    else:
        ledger.index.apply(writing)
        ledger.end_flush(ledger.index.totals())


def test_errors_of_the_index_reach_who_flushes(ledger: Ledger) -> None:
    ledger.enter(entry(ONE, 10), replaced=None)
    ledger.index.close()
    with pytest.raises(StoreError):
        flush(ledger)
    ledger.undo_flush()
    assert ledger.backlog == 1
