"""Where lines of the log go: files that turn over, JSON, the journal; behind a bounded queue."""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import tempfile
import threading
from array import array
from collections.abc import Iterator
from pathlib import Path

import pytest

from cafsfs.config.options import LogOptions
from cafsfs.errors import UsageError
from cafsfs.report import journal, logs
from cafsfs.report.logs import flush_log, leave_terminal, queued_log, reopen_files, set_level
from cafsfs.report.repeats import Repeats

LOG = logging.getLogger("elsewhere")
PULLED = {"hash": "ab" * 32, "bytes": 5, "waiting": 0, "server": None}


@pytest.fixture(autouse=True)
def bare_root() -> Iterator[None]:
    """The root logger as it was, afterwards. Tests take pytest's handlers away: see ``bare``."""
    root = logging.getLogger()
    level = root.level
    yield
    for each in root.handlers:
        each.close()
    root.handlers[:], root.level = [], level


def bare() -> logging.Logger:
    """The root logger without handlers; pytest adds its own after the fixtures."""
    root = logging.getLogger()
    root.handlers[:] = []
    return root


def start(path: Path, **options: object) -> None:
    bare()
    logs.start_logging(
        LogOptions(log_file=path, **options),  # type: ignore[arg-type]  # as the tests say
        {"mountpoint": "/mnt/cafs"},
    )


class Journal:
    """A socket like journald's, and what came by it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(10)

    def close(self) -> None:
        self._socket.close()

    def receive(self) -> dict[str, str]:
        """The fields of the next record, by the native protocol."""
        data, ancillary, _, _ = self._socket.recvmsg(1 << 20, socket.CMSG_SPACE(4))
        for _, _, passed in ancillary:
            [descriptor] = array("i", passed)
            with open(descriptor, "rb") as large:
                large.seek(0)
                data = large.read()
        fields = {}
        while data:
            head, _, data = data.partition(b"\n")
            name, equals, value = head.partition(b"=")
            if not equals:
                length = int.from_bytes(data[:8], sys.byteorder)
                value, data = data[8 : 8 + length], data[9 + length :]
            fields[name.decode()] = value.decode()
        return fields


@pytest.fixture
def fake_journal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Journal]:
    with tempfile.TemporaryDirectory() as directory:  # a socket's path is short
        made = Journal(Path(directory, "socket"))
        monkeypatch.setattr(journal, "SOCKET", made.path)
        yield made
        made.close()


# --- files


def test_a_file_has_lines_for_people(tmp_path: Path) -> None:
    start(tmp_path / "log")
    LOG.warning("read: %s", "why")
    assert (tmp_path / "log").read_text().endswith(" WARNING elsewhere: read: why\n")


def test_a_file_that_cannot_be_written_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot log to") as caught:
        start(tmp_path / "none" / "log")
    assert caught.value.hint == "name another file with --log-file"


def test_a_file_turns_over_and_four_old_ones_are_kept(tmp_path: Path) -> None:
    start(tmp_path / "log", log_size=500)
    for number in range(100):
        LOG.info("line %d", number)
    names = sorted(each.name for each in tmp_path.iterdir())
    assert names == ["log", "log.1", "log.2", "log.3", "log.4"]
    assert all(each.stat().st_size <= 500 for each in tmp_path.iterdir())
    assert "line 99" in (tmp_path / "log").read_text()


def test_a_file_without_a_bound_never_does(tmp_path: Path) -> None:
    start(tmp_path / "log", log_size=0)
    for number in range(1000):
        LOG.info("line %d", number)
    assert [each.name for each in tmp_path.iterdir()] == ["log"]


def test_a_file_that_was_moved_is_opened_anew(tmp_path: Path) -> None:
    start(tmp_path / "log")
    with queued_log():
        LOG.info("before")
        flush_log()
        (tmp_path / "log").rename(tmp_path / "moved")
        reopen_files()
        LOG.info("after")
        flush_log()
    assert "before" in (tmp_path / "moved").read_text()
    assert "after" in (tmp_path / "log").read_text()
    assert "after" not in (tmp_path / "moved").read_text()


# --- JSON


def test_json_has_a_line_for_each_record_with_its_fields(tmp_path: Path) -> None:
    start(tmp_path / "log", log_format="json")
    LOG.info("pulled %d\nbytes", 5, extra={"fields": PULLED})
    with queued_log():
        try:
            raise KeyError("a bug")
        except KeyError:
            LOG.exception("read failed")
        flush_log()
    first, second = map(json.loads, (tmp_path / "log").read_text().splitlines())
    assert first["message"] == "pulled 5\nbytes"
    assert (first["level"], first["logger"], first["pid"]) == ("info", "elsewhere", os.getpid())
    assert (first["mountpoint"], first["hash"], first["bytes"]) == ("/mnt/cafs", "ab" * 32, 5)
    assert first["time"].endswith("+00:00")
    assert second["level"] == "error"
    assert "KeyError: 'a bug'" in second["message"]


# --- the queue


@pytest.mark.parametrize("name", ["httpx", "httpcore"])
def test_libraries_that_log_heads_and_urls_are_silent(tmp_path: Path, name: str) -> None:
    """Passwords of mirrors and proxies may be in them."""
    start(tmp_path / "log", log_level="debug")
    logging.getLogger(f"{name}.http11").debug("Authorization: Basic c2VjcmV0")
    logging.getLogger(name).info("GET https://host/token")
    assert (tmp_path / "log").read_text() == ""


def test_levels_change_live(tmp_path: Path) -> None:
    start(tmp_path / "log")
    LOG.debug("too much")
    set_level("debug")
    LOG.debug("all of it")
    set_level("error")
    LOG.warning("not any more")
    assert [line.split(": ")[1] for line in (tmp_path / "log").read_text().splitlines()] == [
        "all of it"
    ]


def test_repeats_are_told_at_the_end(tmp_path: Path) -> None:
    start(tmp_path / "log")
    with queued_log():
        for _ in range(100):
            LOG.warning("down")
    lines = (tmp_path / "log").read_text().splitlines()
    assert [line.partition("elsewhere: ")[2] for line in lines] == [
        "down",
        "down (repeated 99 times in 1 s)",
    ]


def test_repeats_are_told_when_nothing_else_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "_LOOK", 0.01)
    monkeypatch.setattr(logs, "Repeats", lambda: Repeats(span=0.05))
    told = threading.Event()
    bare()

    class Watched(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "repeated once" in record.getMessage():
                told.set()

    bare().addHandler(Watched())
    with queued_log():
        LOG.warning("down")
        LOG.warning("down")
        assert told.wait(30)


def test_a_reader_that_is_frozen_holds_nobody_up() -> None:
    frozen = threading.Event()
    bare()

    class Frozen(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            frozen.wait(30)

    bare().addHandler(Frozen())
    try:
        with queued_log():
            for number in range(3 * logs._LINES):
                LOG.warning("line %d", number)
    finally:
        frozen.set()


# --- the journal


def test_the_journal_gets_level_and_fields(fake_journal: Journal) -> None:
    handler = journal.JournalHandler({"mountpoint": "/mnt/cafs"})
    bare().addHandler(handler)
    LOG.warning("pulled %s", "it", extra={"fields": PULLED})
    told = fake_journal.receive()
    assert told["MESSAGE"] == "pulled it"
    assert told["PRIORITY"] == "4"
    assert told["SYSLOG_IDENTIFIER"] == "cafsfs"
    assert told["LOGGER"] == "elsewhere"
    assert told["CODE_FILE"] == __file__
    assert told["CODE_FUNC"] == "test_the_journal_gets_level_and_fields"
    assert told["CAFSFS_MOUNTPOINT"] == "/mnt/cafs"
    assert (told["CAFSFS_HASH"], told["CAFSFS_BYTES"]) == ("ab" * 32, "5")
    assert told["CAFSFS_WAITING"] == "0"
    assert "CAFSFS_SERVER" not in told
    for level, priority in ((10, "7"), (20, "6"), (40, "3"), (50, "2")):
        LOG.setLevel(10)
        LOG.log(level, "two\nlines" * level)
        told = fake_journal.receive()
        assert (told["MESSAGE"], told["PRIORITY"]) == ("two\nlines" * level, priority)
    LOG.setLevel(logging.NOTSET)


def test_a_line_of_a_megabyte_gets_there(fake_journal: Journal) -> None:
    bare().addHandler(journal.JournalHandler({}))
    LOG.warning("x" * (1 << 20))
    assert fake_journal.receive()["MESSAGE"] == "x" * (1 << 20)


def test_a_journal_that_went_away_and_came_back(fake_journal: Journal) -> None:
    bare().addHandler(journal.JournalHandler({}))
    fake_journal.close()
    fake_journal.path.unlink()
    LOG.warning("lost")
    again = Journal(fake_journal.path)
    LOG.warning("heard")
    assert again.receive()["MESSAGE"] == "heard"
    again.close()


def test_who_leaves_the_terminal_goes_on_in_the_journal(
    fake_journal: Journal, tmp_path: Path
) -> None:
    start(tmp_path / "terminal")
    with queued_log():
        LOG.warning("before")
        flush_log()
        leave_terminal({"mountpoint": "/mnt/cafs"})
        LOG.warning("after")
        assert fake_journal.receive()["MESSAGE"] == "after"
    assert "after" not in (tmp_path / "terminal").read_text()


def test_standard_error_in_the_journal_is_known_by_what_systemd_says(
    fake_journal: Journal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ours = os.fstat(2)
    monkeypatch.setenv("JOURNAL_STREAM", f"{ours.st_dev}:{ours.st_ino}")
    assert journal.is_behind(2)
    with open(tmp_path / "other", "w") as other:
        assert not journal.is_behind(other.fileno())
    monkeypatch.delenv("JOURNAL_STREAM")
    assert not journal.is_behind(2)
    assert not journal.is_behind(99999)
