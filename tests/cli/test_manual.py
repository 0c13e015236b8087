"""The man pages: made as ``make man`` makes them, read by man's own formatter without a warning."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cafsfs.cli.app import cafsfs
from cafsfs.cli.guides import TOPICS, walk
from cafsfs.cli.manual import PAGES
from cafsfs.config.options import ALL_OPTIONS, IN_MOUNT_OPTIONS, flag, option_names
from tests.cli.running import REPOSITORY

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Each page as a terminal of 100 columns shows it."""
    directory = tmp_path_factory.mktemp("man")
    return {name: shown(make(name, directory)) for name in PAGES}


def make(name: str, directory: Path) -> Path:
    """As `make install` does in a fresh checkout, which has no Pygments."""
    source, page = directory / f"{name}.rst", directory / name
    source.write_text(PAGES[name]())
    (directory / "pygments.py").write_text("raise ImportError")
    makefile = (REPOSITORY / "Makefile").read_text()
    options = re.findall(r"-m docutils (.*) build/man/\S+ build", makefile)[0].split()
    done = subprocess.run(
        [sys.executable, "-m", "docutils", *options, str(source), str(page)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(directory)},
    )
    assert (done.returncode, done.stderr) == (0, "")
    return page


def shown(page: Path) -> str:
    if shutil.which("groff") is None:
        pytest.skip("there is no groff here")
    command = ["groff", "-k", "-man", "-Tutf8", "-ww", "-rLL=100n", str(page)]
    env = {**os.environ, "GROFF_NO_SGR": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    return re.sub(r".\x08", "", done.stdout)  # bold and underlined


@pytest.mark.parametrize("name", PAGES)
def test_man_shows_the_page(name: str, tmp_path: Path) -> None:
    if shutil.which("man") is None:
        pytest.skip("there is no man here")
    command = ["man", "--warnings=w", "-l", str(make(name, tmp_path))]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "LC_ALL": "C.UTF-8", "MANWIDTH": "100"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    title, section = name.rsplit(".", 1)
    assert done.stdout.lstrip().startswith(f"{title}({section})")


def test_cafsfs_tells_every_command_and_option(pages: dict[str, str]) -> None:
    text = pages["cafsfs.1"]
    for path, _ in walk(cafsfs):
        assert re.search(rf"^ +cafsfs {path}\b", text, re.MULTILINE), path
    for name in option_names(*ALL_OPTIONS):
        assert re.search(rf"^ +{flag(name)}\b", text, re.MULTILINE), name
    for topic in TOPICS:
        assert f"cafsfs help {topic}" in text
    assert "--background-child" not in pages["cafsfs.1"]  # which is ours alone


def test_mount_cafsfs_tells_what_fstab_takes(pages: dict[str, str]) -> None:
    text = pages["mount.cafsfs.8"]
    for name in option_names(*IN_MOUNT_OPTIONS):
        assert re.search(rf"^ +{flag(name)}\b", text, re.MULTILINE), name
    assert "_netdev,nofail" in text


@pytest.mark.parametrize("name", PAGES)
def test_the_page_says_what_only_the_service_gives(name: str, pages: dict[str, str]) -> None:
    text = " ".join(pages[name].split()).lower()
    for each in ("what only the service gives", "restart:", "a watchdog:", "credentials:"):
        assert each in text


@pytest.mark.parametrize("name", PAGES)
def test_nothing_of_the_source_shows(name: str, pages: dict[str, str]) -> None:
    assert "``" not in pages[name]
    assert ".. " not in pages[name]
    assert "System Message" not in pages[name]


def test_make_has_targets_for_the_installer() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    assert all(name in makefile for name in PAGES)
