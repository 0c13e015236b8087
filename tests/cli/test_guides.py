"""The guides that ship: complete, shown rightly, and true: each statement has its test."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import click
import pytest

from cafsfs.cli.app import cafsfs
from cafsfs.cli.guides import TOPICS, as_plain_text, commands_with, read_guide, walk
from cafsfs.config.layers import environment_layer
from cafsfs.config.mount_options import parse_mount_options
from cafsfs.config.options import ALL_OPTIONS, ServeOptions, option_names
from cafsfs.config.uri import parse_uri
from cafsfs.errors import UsageError
from tests.cli.guides import (
    GUIDES,
    REPOSITORY,
    Entry,
    documented,
    entries,
    entry_of,
    proven_by,
    source_of,
)
from tests.cli.running import environment, run
from tests.test_house import check_commands

MESSAGES = entries(GUIDES / "troubleshooting.rst")


def test_every_guide_that_ships_is_a_topic() -> None:
    assert {each.stem for each in GUIDES.glob("*.rst")} == set(TOPICS)


@pytest.mark.process
@pytest.mark.parametrize("topic", TOPICS)
def test_a_guide_is_shown(topic: str) -> None:
    text = run("help", topic).ok().text
    assert text == as_plain_text(read_guide(topic, cafsfs))
    title, underline = text.splitlines()[:2]
    assert set(underline) == {"="}
    assert len(underline) == len(title)
    assert "``" not in text
    assert not re.search(r"^ *\.\. ", text, re.MULTILINE)
    terms = {each.term for each in MESSAGES}
    prose = [e for e in text.splitlines() if re.match(r"(- | {0,2}\w)", e) and e not in terms]
    assert max(map(len, prose)) < 80


@pytest.mark.process
def test_without_a_topic_all_are_listed() -> None:
    text = run("help").ok().text
    for name in (*TOPICS, *cafsfs.commands):
        assert re.search(rf"^  {name} ", text, re.MULTILINE), name


@pytest.mark.process
def test_a_command_is_a_topic_too() -> None:
    assert run("help", "cache", "verify").ok().text == run("cache", "verify", "--help").ok().text


@pytest.mark.process
def test_a_topic_that_is_none() -> None:
    done = run("help", "quikstart")
    assert (done.code, done.complaint()) == (2, "there is no guide or command `quikstart`")
    assert done.hint() == "did you mean `quickstart`?"
    done = run("help", "quickstart", "more")
    assert (done.code, done.complaint()) == (2, "there is no guide or command `quickstart more`")


@pytest.mark.process
@pytest.mark.parametrize("pager", ["sed s/^/paged:/", ""])
def test_on_a_terminal_it_goes_through_a_pager(pager: str) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "cafsfs", "help", "quickstart"]
    env = environment(PAGER=pager, TERM="dumb" if not pager else "xterm")
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=env) as shown:
        os.close(theirs)
        read = b""
        with suppress(OSError):  # EIO: the other end has been closed
            while piece := os.read(ours, 1 << 16):
                read += piece
    os.close(ours)
    assert shown.returncode == 0
    lines = read.decode().splitlines()
    assert lines[0] == ("paged:" if pager else "") + "Quick start: a store, a mount, a file"


def test_guides_are_in_the_package() -> None:
    project = (REPOSITORY / "pyproject.toml").read_text()
    assert '"guide/*.rst"' in project


@pytest.mark.parametrize("topic", TOPICS)
def test_commands_of_a_guide_exist(topic: str) -> None:
    text = read_guide(topic, cafsfs)
    blocks = re.findall(r"::\n\n((?: {4}.*\n|\n)+)", text)
    literals = re.findall(r"``(.+?)``", text, re.DOTALL)
    check_commands([each.strip() for each in (*"\n".join(blocks).splitlines(), *literals)])


# --- configuration


@pytest.mark.parametrize("group", ALL_OPTIONS, ids=lambda group: group.__name__)
def test_every_option_is_described_with_its_ways(group: type) -> None:
    """What the guide says of where an option can be given is what the parsers take."""
    text = read_guide("configuration", cafsfs)
    for name, each in option_names(group).items():
        key = name.replace("_", "-")
        help_ = each.metadata["help"]
        described = [
            " ".join(found.split())
            for found in re.findall(rf"^``--{key}\b.*``\n((?: {{4}}.*\n)+)", text, re.MULTILINE)
            if help_[1:] in " ".join(found.replace("``", "").split())
        ]
        assert len(described) == 1, (name, described)
        given = described[0].partition("Given as ")[2]
        serving = group is ServeOptions  # which has a secret-file, too
        for way, taken in (
            (f"``-o {key}``", takes(partial(parse_mount_options, [f"{key}=1"]))),
            (f"``?{key}=``", takes(partial(parse_uri, f"cafs://h/r?{key}=1"))),
        ):
            assert (way in given) is (taken and not serving), way
        variable = f"CAFSFS_{name.upper()}"
        assert f"``{variable}``" in given
        assert environment_layer({variable: "1"}).values == {name: "1"}
        assert commands_with(name, group, cafsfs), name


def takes(parse: Callable[[], object]) -> bool:
    try:
        parse()
    except UsageError:
        return False
    return True


def test_the_commands_of_an_option_have_it() -> None:
    commands = dict(walk(cafsfs))
    for group in ALL_OPTIONS:
        for name in option_names(group):
            for path in commands_with(name, group, cafsfs):
                names = [o.name for o in commands[path].params if isinstance(o, click.Option)]
                assert name in names


# --- semantics


def test_every_sentence_of_the_semantics_has_its_test() -> None:
    """Bullets of one sentence each, with notes that name tests, and nothing else but headings."""
    source = (GUIDES / "semantics.rst").read_text().split("\n\n", 2)[2]  # behind the opening
    source = re.sub(r"^.+\n-{4,}\n", "", source, flags=re.MULTILINE)
    bullets = re.split(r"^(?=- )", source, flags=re.MULTILINE)
    assert bullets.pop(0).strip() == ""
    assert len(bullets) > 60
    for each in bullets:
        sentence, *notes = (part for part in re.split(r"\n{2,}", each) if part.strip())
        assert re.fullmatch(r"- [^.]+(\.[^\s.][^.]*)*\.(\*\*)?", sentence), sentence
        named = "\n".join(notes).splitlines()
        assert named, sentence
        assert all(re.fullmatch(r"  \.\. test: tests/\S+\.py::test_\w+", note) for note in named)


def test_guides_that_guides_and_readme_name_are_there() -> None:
    texts = [read_guide(topic, cafsfs) for topic in TOPICS]
    texts.append((REPOSITORY / "README.md").read_text())
    named = {name for text in texts for name in re.findall(r"cafsfs help\s+([a-z]+)`", text)}
    assert named <= {*TOPICS, *cafsfs.commands}
    assert set(TOPICS) <= set(re.findall(r"cafsfs/guide/(\w+)\.rst", texts[-1]))


# --- troubleshooting


def test_the_messages_are_found() -> None:
    assert len(MESSAGES) > 30
    assert all(":Cause: " in each.body and ":Fix: " in each.body for each in MESSAGES)


@pytest.mark.parametrize("entry", MESSAGES, ids=lambda entry: entry.term)
def test_a_documented_message_is_asserted_by_its_test(entry: Entry) -> None:
    (test,) = entry.tests
    assert entry in map(entry_of, proven_by(test)), test


def test_a_message_is_found_as_it_is_documented_and_not_otherwise() -> None:
    pattern = documented("cannot listen on")
    assert pattern.search("error: cannot listen on 127.0.0.1:80: Address already in use\n")
    assert not pattern.search("error: cannot listen on 127.0.0.1:80: Permission denied\n")
    pattern = documented("what the cache had for")
    line = f"cafsfs.store.cache.disk_cache: what the cache had for {'0' * 64} was not its content"
    assert pattern.search(f"2026-11-21 13:12:24,942 WARNING {line}; discarded\n")
    assert not pattern.search(f"WARNING {line}; discarded, and more")
    assert not pattern.search(f"ERROR {line}; discarded")
    assert not documented("No such file").search("No such file or directory, it seems")


def test_a_message_that_no_test_asserts_is_found_out() -> None:
    assert proven_by("tests/cli/test_guides.py::test_the_messages_are_found") == set()


@pytest.mark.process
def test_every_test_that_a_guide_names_is_collected_and_not_skipped() -> None:
    named = sorted(
        set(re.findall(r"\.\. test: (\S+)", "".join(p.read_text() for p in GUIDES.glob("*.rst"))))
    )
    assert named
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "--collect-only", *named]
    done = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    collected = set(re.findall(r"^(tests/\S+::\w+)", done.stdout, re.MULTILINE))
    assert collected == set(named)
    for each in named:
        assert not re.search(r"^@?pytest\.mark\.(skip\b|xfail)", source_of(each), re.MULTILINE)


@pytest.mark.process
def test_guides_are_sound_restructuredtext(tmp_path: Path) -> None:
    """Said once for all of them: docutils takes half a second to start."""
    whole = tmp_path / "guides.rst"
    texts = [read_guide(topic, cafsfs) for topic in TOPICS]
    whole.write_text("\n".join(texts))
    command = [sys.executable, "-m", "docutils", "--report=2", "--halt=5"]
    done = subprocess.run(
        [*command, str(whole), str(tmp_path / "out")], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
