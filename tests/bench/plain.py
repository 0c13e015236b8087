"""A child of the bench: what a machine does without any of us; prints seconds, or a hash."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import zstandard
from blake3 import blake3

STEP = 1 << 20  # bytes a call, as in our hot paths
_PAGE = 4096  # bytes
_HEADER = 16  # bytes before the body of a packed blob
_WORDS = 4096
_PIECES = 32  # of words
_BEYOND_CACHES = 128 << 20  # bytes


def make(path: str, size: str) -> str:
    """Write a file of random bytes, the same for every run; its hash."""
    bytes_of = random.Random(int(size)).randbytes
    return _write(path, int(size), lambda: bytes_of(STEP))


def make_words(path: str, size: str) -> str:
    """Write a file of random words, the same for every run; its hash.

    The words are English in their lengths, and compress to somewhat more than a third. The file is
    made of a few pieces, as no window of a codec is as long as all of them.
    """
    chance = random.Random(int(size))
    words = [chance.randbytes(chance.randint(2, 9)).hex().encode() for _ in range(_WORDS)]
    least = STEP // 4  # the shortest word has so many bytes
    pieces = [
        b"".join(chance.choices(words, k=least))[:STEP]
        for _ in range(min(_PIECES, -(-int(size) // STEP)))
    ]
    return _write(path, int(size), lambda: chance.choice(pieces))


def _write(path: str, size: int, piece_of: Callable[[], bytes]) -> str:
    state = blake3()
    with Path(path).open("wb") as file:
        for start in range(0, size, STEP):
            piece = piece_of()[: size - start]
            state.update(piece)
            file.write(piece)
    return state.hexdigest()


def fingerprint(path: str) -> str:
    """The hash of a file."""
    state = blake3()
    with Path(path).open("rb", buffering=0) as file:
        while piece := file.read(STEP):
            state.update(piece)
    return state.hexdigest()


def read(path: str, size: str) -> float:
    """Read a file from its beginning to its end."""
    buffer = memoryview(bytearray(STEP))
    began = time.perf_counter()
    with Path(path).open("rb", buffering=0) as file:
        done = 0
        while count := file.readinto(buffer):
            done += count
    took = time.perf_counter() - began
    if done != int(size):
        sys.exit(f"read {done} bytes of `{path}`, not {size}")
    return took


def read_at_random(path: str, size: str, count: str) -> float:
    """Read ``count`` pieces of 4 KiB at random places of a file."""
    places = random.Random(0).choices(range(max(1, int(size) // _PAGE)), k=int(count))
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        began = time.perf_counter()
        for place in places:
            os.pread(descriptor, _PAGE, place * _PAGE)
        return time.perf_counter() - began
    finally:
        os.close(descriptor)


def read_each(directory: str, names: str, count: str) -> float:
    """Open, read and close the first ``count`` files of those that ``names``, a file, lists."""
    paths = _paths(directory, names, count)
    began = time.perf_counter()
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.read(descriptor, STEP)
        os.close(descriptor)
    return time.perf_counter() - began


def stat_each(directory: str, names: str, count: str) -> float:
    """Ask for the attributes of the first ``count`` of them."""
    paths = _paths(directory, names, count)
    began = time.perf_counter()
    for path in paths:
        os.stat(path)
    return time.perf_counter() - began


def _paths(directory: str, names: str, count: str) -> list[str]:
    return [f"{directory}/{each}" for each in Path(names).read_text().split()[: int(count)]]


def straight(path: str, target: str) -> float:
    """Unpack a ZSTD blob in memory, hash the content and write it, all in one thread."""
    body = Path(path).read_bytes()[_HEADER:]
    state = blake3()
    buffer = memoryview(bytearray(STEP))
    began = time.perf_counter()
    with (
        Path(target).open("wb", buffering=0) as file,
        zstandard.ZstdDecompressor().stream_reader(body) as reader,
    ):
        while count := reader.readinto(buffer):
            state.update(buffer[:count])
            file.write(buffer[:count])
    return time.perf_counter() - began


def tool(*command: str) -> float:
    """Run a command; starting it counts, that is about a millisecond."""
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - began


def write(path: str, size: str) -> float:
    """Write zeroes to a new file; not synced, as no copy is."""
    piece = bytes(STEP)
    began = time.perf_counter()
    with Path(path).open("wb", buffering=0) as file:
        file.writelines(piece[: int(size) - start] for start in range(0, int(size), STEP))
    return time.perf_counter() - began


def blake(size: str) -> float:
    """Hash what is in the core's cache, as what was just received is."""
    piece = bytes(STEP)
    state = blake3()
    began = time.perf_counter()
    for start in range(0, int(size), STEP):
        state.update(piece[: int(size) - start])
    return time.perf_counter() - began


def blake_on_all_cores(size: str, passes: str) -> float:
    """Hash as many bytes, a thread a core; the mean of some passes.

    From memory, as all that is in the kernel's: the buffers are too large for the caches.
    """
    cores = len(os.sched_getaffinity(0))
    share = max(1, int(size) * int(passes) // cores)
    buffers = [b"1" * min(share, _BEYOND_CACHES) for _ in range(cores)]

    def work(buffer: bytes) -> None:
        state = blake3()
        view = memoryview(buffer)
        for start in range(0, share, STEP):
            at = start % len(buffer)
            state.update(view[at : at + min(STEP, share - start)])

    began = time.perf_counter()
    with ThreadPoolExecutor(cores) as threads:
        list(threads.map(work, buffers))
    return (time.perf_counter() - began) / int(passes)


def blake_files_on_all_cores(directory: str, passes: str) -> float:
    """Read and hash all files below a directory, a thread a core; the mean of some passes."""
    files = [each for each in Path(directory).rglob("*") if each.is_file()]

    def work(path: Path) -> None:
        state = blake3()
        buffer = memoryview(bytearray(STEP))
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                state.update(buffer[:count])

    began = time.perf_counter()
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        list(threads.map(work, files * int(passes)))
    return (time.perf_counter() - began) / int(passes)


def count(least: str, command: str, path: str) -> float:
    """Run a shell command on ``path`` that writes a line for each of ``least`` blobs, or more."""
    began = time.perf_counter()
    line = ("sh", "-c", f'{command} "$1" | wc -l', "sh", path)
    lines = int(subprocess.run(line, check=True, capture_output=True, text=True).stdout)
    took = time.perf_counter() - began
    if lines < int(least):
        sys.exit(f"`{command} {path}` shows {lines} lines for {least} blobs")
    return took


def loopback(size: str) -> float:
    """Receive from a process that only sends, into one buffer."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        sender = os.fork()
        if sender == 0:
            listener.close()  # else its connection would outlive the receiver
            with socket.create_connection(address) as sock:
                for start in range(0, int(size), STEP):
                    sock.sendall(bytes(min(STEP, int(size) - start)))
            os._exit(0)
        sock, _ = listener.accept()
    buffer = memoryview(bytearray(STEP))
    began = time.perf_counter()
    with sock:
        while sock.recv_into(buffer):
            pass
    took = time.perf_counter() - began
    os.waitpid(sender, 0)
    return took


VERBS: dict[str, Callable[..., float | str]] = {
    each.__name__: each
    for each in (
        make,
        make_words,
        fingerprint,
        read,
        read_at_random,
        read_each,
        stat_each,
        straight,
        tool,
        write,
        blake,
        blake_on_all_cores,
        blake_files_on_all_cores,
        count,
        loopback,
    )
}

if __name__ == "__main__":
    print(VERBS[sys.argv[1]](*sys.argv[2:]))
