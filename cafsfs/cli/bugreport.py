"""``cafsfs bugreport``: one file with all that somebody else needs, and no secret in it."""

from __future__ import annotations

import io
import os
import sys
import tarfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

import click

from cafsfs.cli.completing import complete_mount
from cafsfs.cli.talk import emit
from cafsfs.config.layers import environment_layer, resolve, toml_layers
from cafsfs.config.options import StoreOptions
from cafsfs.doctor.apart import run_apart
from cafsfs.doctor.evidence import gathered, pieces_of, said_by
from cafsfs.errors import MountError, StoreError, UsageError
from cafsfs.fuse import mounts as kernel
from cafsfs.report.ours import Found, find_ours

_PATIENCE = 30.0  # seconds for one piece; they are gathered side by side
_CAFSFS = (sys.executable, "-P", "-m", "cafsfs")  # -P: nothing from the working directory
_LONGEST_SECRET = 4097  # bytes, with a line feed


@click.command(short_help="Pack all that is needed to find out what went wrong.")
@click.argument("mountpoint", required=False, shell_complete=complete_mount)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="file to write  [default: cafsfs-bugreport-TIME.tar.gz]",
)
@click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="TOML file of the mount",
)
def bugreport(mountpoint: str | None, output: Path | None, config: Path | None) -> None:
    """Pack what is needed to find out what is wrong with the mount on MOUNTPOINT, or with all.

    Versions, status, what `cafsfs doctor` finds, the configuration, the end of the log, and where
    each task and thread is; no content of blobs. Secrets are left out, and of http URLs all but
    the host. Still: look through it before you give it away. No mount is touched; what does not
    answer is left out after a while. Prints the name of the file, which only you can read.

    \b
    cafsfs bugreport /mnt/cafs
    cafsfs bugreport --config /etc/cafsfs/data.toml -o report.tar.gz
    """
    path = output or Path(time.strftime("cafsfs-bugreport-%Y%m%dT%H%M%S.tar.gz"))
    pieces = {**pieces_of(_find(mountpoint)), **_by_commands(mountpoint, config)}
    secrets = _secrets(config)
    jobs = [(partial(gathered, each, secrets), _PATIENCE) for each in pieces.values()]
    said = dict(zip(pieces, run_apart(jobs), strict=True))
    late = b"this was not told in time\n"
    _write(path, {name: late if text is None else text for name, text in said.items()})
    emit(f"{path}\n")


def _find(mountpoint: str | None) -> list[Found]:
    """The mounts that the report is about; raises MountError."""
    if mountpoint is None:
        return find_ours()
    point = kernel.canonical(mountpoint)
    there = find_ours(point)
    if not there:
        raise MountError(
            f"no mount of cafsfs is on `{point}`", hint="`cafsfs mounts` lists what is mounted"
        )
    return there


def _by_commands(mountpoint: str | None, config: Path | None) -> dict[str, Callable[[], str]]:
    """What commands of ours tell; in processes of their own, for they may fail."""
    given = [] if config is None else ["--config", str(config)]
    target = [] if mountpoint is None else [mountpoint]
    commands = {
        "config.json": ["config", "show", "--json", *given],
        "doctor.json": ["doctor", "--json", *given, *target],
    }
    return {
        name: partial(said_by, *_CAFSFS, *words, patience=_PATIENCE)
        for name, words in commands.items()
    }


def _secrets(config: Path | None) -> tuple[bytes, ...]:
    """What stands in the file of the secret, if one is configured; no report shows it."""
    with suppress(UsageError, OSError):  # the report tells that the configuration is wrong
        layers = [environment_layer(os.environ), *toml_layers(config)]
        if path := resolve(StoreOptions, layers).secret_file:
            with path.open("rb") as file:
                secret = file.read(_LONGEST_SECRET).removesuffix(b"\n")
            return (secret,) if secret else ()
    return ()


def _write(path: Path, files: Mapping[str, bytes]) -> None:
    """A new archive, for its owner's eyes; raises StoreError."""
    directory = path.name.removesuffix(".gz").removesuffix(".tar")
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as tar:
            for name, content in sorted(files.items()):
                member = tarfile.TarInfo(f"{directory}/{name}")
                member.size, member.mtime, member.mode = len(content), int(time.time()), 0o600
                tar.addfile(member, io.BytesIO(content))
    except OSError as error:
        raise StoreError(
            f"cannot write the report `{path}`: {error.strerror}", hint="name another file with -o"
        ) from None
