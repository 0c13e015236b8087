"""What some rows need: blobs, lines and servers, made or started when they are needed first."""

from __future__ import annotations

from pathlib import Path

from tests.bench.children import python
from tests.bench.stage import FILLING, PLAIN, ROOT, Stage

SMALL_LENGTH = 4096  # bytes
SMALL_BLOBS = 10_000
GIANTS = 200
DELAY = 0.01  # seconds, each way of the long line

# For what is pulled. ZLIB at its usual 6 takes half a minute a GiB.
_LEVELS = {"ZSTD": 3, "ZLIB": 1}


def small_names(stage: Stage) -> Path:
    """A file with the hashes of small blobs: on the server, and in ``small`` of the files."""

    def make(path: Path) -> None:
        arguments = (stage.root(ROOT), stage.files / "small", stage.part(SMALL_BLOBS))
        path.write_text(stage.ask(FILLING, "small", *arguments, SMALL_LENGTH))

    return stage.once("small-names", make)


def giants(stage: Stage, compression: str) -> Path:
    """A file with the hashes of blobs on the server, each as large as the big one."""

    def make(path: Path) -> None:
        arguments = (stage.root(ROOT), compression, stage.part(GIANTS), stage.size)
        path.write_text(stage.ask(FILLING, "giants", *arguments))

    return stage.once(f"giants-{compression}", make)


def words(stage: Stage) -> tuple[Path, str]:
    """A file as large as the big blob that can be compressed, and its hash."""
    path = stage.directory / "words"
    digest = stage.once(
        "words-digest",
        lambda given: given.write_text(stage.ask(PLAIN, "make_words", path, stage.size)),
    )
    return path, digest.read_text()


def packed(stage: Stage, compression: str) -> tuple[str, str]:
    """A root, and the hash of a blob in it that is stored in this way."""
    if compression == "NONE":
        return ROOT, stage.digest
    root, (path, digest) = compression.lower(), words(stage)

    def pack(directory: Path) -> None:
        arguments = (stage.root(root), path, compression, _LEVELS[compression])
        directory.write_text(stage.ask(FILLING, "packed", *arguments))

    stage.once(f"packed-{root}", pack)
    return root, digest


def stored(stage: Stage, root: str, digest: str) -> Path:
    """Where the server keeps a blob."""
    return stage.root(root) / "blobs" / digest[:2] / digest[2:4] / digest


def distant(stage: Stage) -> str:
    """The address of the server at the end of a long line."""

    def draw(path: Path) -> None:
        line = stage.start(python("tests.bench.delay", stage.address, str(DELAY)), "delay")
        path.write_text(line.await_line("delaying on ").split()[-1])

    return stage.once("distant", draw).read_text()


def sealed(stage: Stage) -> tuple[str, Path]:
    """The address of a server of the same store that encrypts everything, and its secret."""
    secret = stage.directory / "secret"

    def serve(path: Path) -> None:
        secret.touch(mode=0o600)
        secret.write_text("nobody else knows this secret")
        options = ("--listen", "127.0.0.1:0", "--secret-file", str(secret))
        server = stage.start(python("cafsfs", "serve", str(stage.store), *options), "sealed")
        path.write_text(server.await_line(f"serving {stage.store} on ").split()[-1])

    return stage.once("sealed", serve).read_text(), secret
