"""What an inode stands for, and the table that gives each its number.

The kernel keys its page cache by our inode numbers. The number of a blob derives from its hash, so
that it is the same on every mount; but collisions of 64 bits can be made on purpose, so the table
compares the hash on every lookup and gives the second blob another number. A number stays taken
until the kernel has forgotten it.

A node whose pages were found wrong while somebody has it open is given up: he fails at its end,
and must not be helped over it by what others, who open the blob later, bring into the same pages.
The next lookup makes another node, with pages of its own.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from cafsfs.digest import Digest

ROOT_INODE = 1  # FUSE's own; 0 is never used: it means "no entry"
_FIRST_BLOB_INODE = 1 << 10  # below are the nodes that always exist
_INODE_MASK = (1 << 63) - 1  # some tools keep inode numbers in a signed integer


class Fixed(enum.Enum):
    """The nodes that always exist; the value is the inode number."""

    ROOT = ROOT_INODE
    BLAKE3 = 2
    CONTROL = 3


@dataclass(frozen=True, slots=True)
class ControlFile:
    """A file below ``.cafsfs/``."""

    name: str
    inode: int


@dataclass(slots=True)
class BlobNode:
    """A blob that the kernel knows. ``size`` is None after a size proved wrong.

    ``ended``: the kernel may have the end of its content in memory.
    """

    digest: Digest
    inode: int
    size: int | None
    lookups: int = 0
    ended: bool = False


Node = Fixed | ControlFile | BlobNode


class BlobTable:
    """The blobs that the kernel knows, by inode number and by digest."""

    def __init__(self) -> None:
        self._by_inode: dict[int, BlobNode] = {}
        self._by_digest: dict[Digest, BlobNode] = {}

    def __len__(self) -> int:
        return len(self._by_inode)

    def node(self, inode: int) -> BlobNode | None:
        """The blob behind an inode number."""
        return self._by_inode.get(inode)

    def find(self, digest: Digest) -> BlobNode | None:
        """The node of a blob, if the kernel knows it."""
        return self._by_digest.get(digest)

    def is_current(self, node: BlobNode) -> bool:
        """False for one that was given up."""
        return self._by_digest.get(node.digest) is node

    def give_up(self, node: BlobNode) -> None:
        """Let the next lookup of the blob make another node."""
        if self.is_current(node):
            del self._by_digest[node.digest]

    def add(self, digest: Digest, size: int) -> BlobNode:
        """The node of a blob, made where there is none; not yet counted as looked up."""
        node = self._by_digest.get(digest)
        if node is None:
            node = BlobNode(digest, self._free_number(digest), size)
            self._by_inode[node.inode] = self._by_digest[digest] = node
        node.size = size
        return node

    def forget(self, inode: int, lookups: int) -> None:
        """The kernel drops ``lookups`` references; at 0 the number is free again."""
        node = self._by_inode.get(inode)
        if node is None:
            return
        node.lookups -= lookups
        if node.lookups <= 0:
            del self._by_inode[inode]
            self.give_up(node)

    def _free_number(self, digest: Digest) -> int:
        number = int.from_bytes(digest.raw[:8], "little") & _INODE_MASK
        while number < _FIRST_BLOB_INODE or number in self._by_inode:
            number = (number + _FIRST_BLOB_INODE) & _INODE_MASK
        return number
