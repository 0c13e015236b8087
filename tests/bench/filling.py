"""A child of the bench: fills cache directories, of which nobody has to pull anything."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from blake3 import blake3

from cafsfs.digest import Digest
from cafsfs.store.cache.durability import boot_id, since_boot
from cafsfs.store.cache.index import Changes, Entry, Index
from cafsfs.store.cache.premises import Premises
from cafsfs.store.local_root import blob_path

_BATCH = 50_000  # rows written at once
_LENGTH = 8  # bytes of each blob


def content(number: int) -> bytes:
    """What the blob of this number holds."""
    return number.to_bytes(_LENGTH, "little")


def many(directory: str, count: str) -> str:
    """Tiny blobs, and an index that knows all of them: verified, and on the disk.

    A process a core writes the files, this one the index: a million take 22 s on two cores.
    """
    blobs = sorted((blake3(content(each)).digest(), each) for each in range(int(count)))
    premises = Premises(Path(directory))
    share = -(-len(blobs) // len(os.sched_getaffinity(0))) or 1
    writers = []
    for start in range(0, len(blobs), share):
        writer = os.fork()
        if writer == 0:
            _write_files(premises.blobs, blobs[start : start + share])
            os._exit(0)
        writers.append(writer)
    failed = [each for each in writers if os.waitpid(each, 0)[1]]  # waits for all of them
    if failed:
        sys.exit("a process that writes files has failed")
    index = Index.open(premises.index)
    for start in range(0, len(blobs), _BATCH):
        index.apply(_rows(premises.blobs, blobs[start : start + _BATCH]))
    index.set_complete(True)
    index.close()
    premises.close()
    return str(len(blobs))


def _write_files(root: Path, blobs: Sequence[tuple[bytes, int]]) -> None:
    """In the order of their names: each directory is looked for once."""
    last = b""
    for raw, number in blobs:
        path = f"{root}/{raw[:1].hex()}/{raw[1:2].hex()}/{raw.hex()}"
        if raw[:2] != last:
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            last = raw[:2]
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        os.write(descriptor, content(number))
        os.close(descriptor)


def _rows(root: Path, blobs: Sequence[tuple[bytes, int]]) -> Changes:
    now, boot, boottime = time.time(), boot_id(), since_boot()
    changes = Changes()
    for raw, _ in blobs:
        digest = Digest(raw)
        found = blob_path(root, digest).stat()
        changes.entries[digest] = Entry(
            digest=digest,
            size=found.st_size,
            pulled=now,
            used=now,
            verified=now,
            mtime_ns=found.st_mtime_ns,
            inode=found.st_ino,
            boot=boot,
            boottime=boottime,
            durable=True,
        )
    return changes


def large(directory: str, path: str, count: str) -> str:
    """``count`` blobs that are pieces of a file; without an index."""
    premises = Premises(Path(directory))
    piece = -(-Path(path).stat().st_size // int(count))
    made = 0
    with Path(path).open("rb") as file:
        while data := file.read(piece):
            target = blob_path(premises.blobs, Digest(blake3(data).digest()))
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            target.write_bytes(data)
            made += 1
    premises.close()
    return str(made)


VERBS: dict[str, Callable[..., str]] = {each.__name__: each for each in (many, large)}

if __name__ == "__main__":
    print(VERBS[sys.argv[1]](*sys.argv[2:]))
