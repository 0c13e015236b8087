"""How much a cache may hold, and how much of it has to go. Pure arithmetic, no I/O."""

from __future__ import annotations

from dataclasses import dataclass, field

# A bound is the high watermark: eviction begins when it is passed, pulls in flight counted with
# the length that is expected of them. It goes on to the low watermark, so that a full cache is not
# evicted from at every pull.
LOW_WATERMARK = 0.95  # of the bound


@dataclass(frozen=True, slots=True)
class Amount:
    """So many bytes, or a share (0 to 1) of the disk that the cache is on."""

    bytes: int = 0
    share: float = 0.0

    def of(self, disk: int) -> int:
        """In bytes, on a disk of ``disk`` bytes."""
        return self.bytes + int(self.share * disk)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What a cache may hold. What is not set is not bounded.

    ``size``: committed and partial blobs, and evicted ones that are still open here. ``free``: to
    be left free on the disk, whoever uses the rest. ``files``: number of blobs. ``ttl`` and
    ``tti``: seconds since a blob was pulled, and since it was last used.
    """

    size: Amount = Amount(bytes=20 << 30)
    free: Amount = Amount()
    files: int | None = None
    ttl: float | None = None
    tti: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fill:
    """How full a cache and its disk are, in bytes but ``files``.

    ``partial`` is what is in flight, ``lingering`` what was evicted and is still open here.
    ``disk_free`` is what an ordinary user may still write.
    """

    committed: int = 0
    files: int = 0
    partial: int = 0
    lingering: int = 0
    disk_total: int = 0
    disk_free: int = 0

    @property
    def used(self) -> int:
        """All that counts as the cache's."""
        return self.committed + self.partial + self.lingering


@dataclass(frozen=True, slots=True)
class CacheUsage:
    """How full the cache is; sizes in bytes.

    ``room`` is what the disk has for more. ``trouble`` tells why it is not used, or not written
    to, at the moment. ``complete`` is False while files of a former mount may be missing from the
    count.
    """

    used: int
    bound: int
    blobs: int
    partial: int = 0
    lingering: int = 0
    complete: bool = True
    trouble: str | None = None
    room: int | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Excess:
    """What has to go: so many bytes, and so many files."""

    bytes: int = 0
    files: int = 0

    def __bool__(self) -> bool:
        return self.bytes > 0 or self.files > 0


def excess(bounds: Bounds, fill: Fill) -> Excess:
    """What to evict now: nothing while all bounds hold, else down to the low watermark."""
    too_many_bytes = _over(fill.used, bounds.size.of(fill.disk_total))
    wanted = bounds.free.of(fill.disk_total)
    if fill.disk_free < wanted:
        too_many_bytes = max(too_many_bytes, int(wanted / LOW_WATERMARK) - fill.disk_free)
    too_many_files = 0 if bounds.files is None else _over(fill.files, bounds.files)
    return Excess(too_many_bytes, too_many_files)


def _over(used: int, bound: int) -> int:
    return used - int(bound * LOW_WATERMARK) if used > bound else 0
