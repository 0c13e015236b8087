"""A child of the bench: fills caches and stores, of which nobody has to pull or put anything."""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from blake3 import blake3

from cafsfs.digest import Digest
from cafsfs.packing import Compression, Header, Packer
from cafsfs.store.cache.durability import boot_id, since_boot
from cafsfs.store.cache.index import Changes, Entry, Index
from cafsfs.store.cache.premises import Premises
from cafsfs.store.local_root import blob_path

_BATCH = 50_000  # rows written at once
TINY = 8  # bytes of each of a million blobs
_STEP = 1 << 20  # bytes written at once
_GRAIN = 2 << 10  # bytes of each step that compress to nothing less
_TAIL = 8  # bytes by which one giant differs from the next


def content(number: int, length: int = TINY) -> bytes:
    """What the blob of this number holds, of so many bytes."""
    return number.to_bytes(length, "little")


def many(directory: str, count: str, length: str) -> str:
    """Small blobs, and an index that knows all of them: verified, and on the disk.

    A process a core writes the files, this one the index: a million take 22 s on two cores.
    """
    blobs = sorted(_blobs(int(count), int(length)))
    premises = Premises(Path(directory))
    share = -(-len(blobs) // len(os.sched_getaffinity(0))) or 1
    writers = []
    for start in range(0, len(blobs), share):
        writer = os.fork()
        if writer == 0:
            _write_files(premises.blobs, blobs[start : start + share], int(length))
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


def _blobs(count: int, length: int) -> Iterator[tuple[bytes, int]]:
    return ((blake3(content(each, length)).digest(), each) for each in range(count))


def _write_files(root: Path, blobs: Sequence[tuple[bytes, int]], length: int) -> None:
    """In the order of their names: each directory is looked for once."""
    last = b""
    for raw, number in blobs:
        path = f"{root}/{raw[:1].hex()}/{raw[1:2].hex()}/{raw.hex()}"
        if raw[:2] != last:
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            last = raw[:2]
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        os.write(descriptor, content(number, length))
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


def small(store: str, files: str, count: str, length: str) -> str:
    """Small blobs in a root of a server, and the same as plain files; their hashes, in order."""
    Path(files).mkdir()
    names = []
    for raw, number in _blobs(int(count), int(length)):
        data = content(number, int(length))
        _packed_file(store, raw.hex()).write_bytes(
            Header(Compression.NONE, len(data)).pack() + data
        )
        Path(files, raw.hex()).write_bytes(data)
        names.append(raw.hex())
    return "\n".join(names)


def packed(store: str, path: str, compression: str, level: str) -> str:
    """A file as a blob in a root of a server; its hash."""
    hasher = blake3()
    hasher.update_mmap(path)
    packer = Packer(Compression[compression], Path(path).stat().st_size, level=int(level))
    with (
        _packed_file(store, hasher.hexdigest()).open("wb") as target,
        Path(path).open("rb") as file,
    ):
        target.write(packer.begin())
        while data := file.read(_STEP):
            target.write(packer.feed(data))
        target.write(packer.finish())
    return hasher.hexdigest()


def giants(store: str, compression: str, count: str, size: str) -> str:
    """Blobs of ``size`` bytes in a root of a server that take little room; their hashes.

    Stored as they are, they are holes; compressed, a four-hundredth of them is left. They differ in
    their last bytes only, so one pass hashes them all: each is true to its name.
    """
    kind = Compression[compression]
    hasher = blake3()
    packer = Packer(kind, int(size) - _TAIL)
    packer.begin()  # a frame without its header: all of them have it in common
    frame = bytearray()
    for piece in _thin(int(size) - _TAIL, _GRAIN if kind is Compression.ZSTD else 0):
        hasher.update(piece)
        if kind is Compression.ZSTD:
            frame += packer.feed(piece)
    frame += packer.finish() if frame else b""
    names = []
    for number in range(int(count)):
        tail = number.to_bytes(_TAIL, "little")
        own = hasher.copy()
        own.update(tail)
        names.append(own.hexdigest())
        with _packed_file(store, names[-1]).open("wb") as file:
            file.write(Header(kind, int(size)).pack() + frame)
            if not frame:
                file.seek(int(size) - _TAIL, os.SEEK_CUR)
            file.write(_tail_frame(kind, tail))
    return "\n".join(names)


def _thin(length: int, grain: int) -> Iterator[bytes]:
    """Zeroes, but for ``grain`` bytes a MiB, which are other ones in the next MiB."""
    seed = random.Random(0).randbytes(grain)
    for start in range(0, length, _STEP):
        salt = start // _STEP & 255  # or a window of 2 MiB would know them
        yield bytes(each ^ salt for each in seed).ljust(min(_STEP, length - start), b"\0")


def _tail_frame(kind: Compression, tail: bytes) -> bytes:
    packer = Packer(kind, len(tail))
    packer.begin()
    return bytes(packer.feed(tail)) + packer.finish()


def _packed_file(store: str, name: str) -> Path:
    path = blob_path(Path(store, "blobs"), Digest.parse(name))
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


VERBS: dict[str, Callable[..., str]] = {
    each.__name__: each for each in (many, large, small, packed, giants)
}

if __name__ == "__main__":
    print(VERBS[sys.argv[1]](*sys.argv[2:]))
