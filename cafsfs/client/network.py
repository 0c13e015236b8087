"""A group of servers as one store: where the stack of a client is put together.

As it reads aloud: a RoutingStore of, for each server, a RetryingStore of an UnpackingStore of a
RemoteStore; and behind all servers, for each HTTP mirror, the same of a MirrorStore.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Self

import trio

from cafsfs.client.credentials import NO_CREDENTIALS, Credentials
from cafsfs.client.mirror_template import MirrorTemplate, told_apart
from cafsfs.client.remote import RemoteStore
from cafsfs.client.servers import Deadlines, Member
from cafsfs.errors import UsageError
from cafsfs.packing import Compression
from cafsfs.store.budget import MemoryBudget
from cafsfs.store.contracts import ContentStore
from cafsfs.store.health import Site
from cafsfs.store.retrying import RetryingStore
from cafsfs.store.router import Place, PlaceState, Router
from cafsfs.store.routing import RoutingStore
from cafsfs.store.unpacking import UnpackingStore

if TYPE_CHECKING:
    from cafsfs.client.mirror import MirrorStore

WORKERS = 4  # threads that hash, unpack, read and write; two cores are busy with two


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkOptions:
    """How a group is talked to.

    ``connections`` to each server, and ``reserve`` more for pulls that have waited a moment.
    ``attempts``: at one server, of what a broken connection has interrupted. ``zone`` is where we
    are. ``slow_rate``: see RoutingStore. ``credentials`` are shown to all.
    """

    connections: int = 4
    reserve: int = 0
    attempts: int = 2
    deadlines: Deadlines = field(default_factory=Deadlines)
    credentials: Credentials = NO_CREDENTIALS
    zone: str | None = None
    slow_rate: float = 0


class Network:
    """The servers ``members``, which serve ``root``, and ``mirrors``, the last to be asked.

    Within ``async with`` those that are down are greeted in the background, and the times of all
    are measured; it closes the network, too. With ``parking``, as a mount wants it, that is done in
    that nursery, and operations fail at once while no server can be reached; see RemoteStore on the
    rest. Raises UsageError for a bad root, and for mirrors over http where authentication is
    required.
    """

    def __init__(
        self,
        members: Sequence[Member],
        root: str,
        *,
        mirrors: Sequence[MirrorTemplate] = (),
        options: NetworkOptions,
        limiter: trio.CapacityLimiter,
        budget: MemoryBudget,
        parking: trio.Nursery | None = None,
    ) -> None:
        if options.credentials.required:
            _check_mirrors(mirrors)
        self._options = options
        self._limiter = limiter
        self._budget = budget
        self._remotes = [
            RemoteStore(
                member.server,
                root,
                connections=options.connections,
                reserve=options.reserve,
                parking=parking,
                deadlines=options.deadlines,
                credentials=options.credentials,
            )
            for member in members
        ]
        self._mirrors = [self._mirror(each) for each in told_apart(mirrors)]
        self.router = Router(
            [
                *map(Place, map(_site, members), self._remotes),
                *(Place(Site(name=each.name, last=True), each) for each in self._mirrors),
            ],
            zone=options.zone,
            nursery=parking,
            fail_fast=parking is not None,
        )
        self._background = None if parking is not None else trio.open_nursery()
        self._tasks: trio.Nursery | None = None

    async def __aenter__(self) -> Self:
        if self._background is not None:
            self._tasks = await self._background.__aenter__()
            self.router.work_in(self._tasks)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.router.work_in(None)  # who goes on to use us must not start tasks there
        if self._background is not None and self._tasks is not None:
            self._tasks.cancel_scope.cancel()
            # Not told of ``error``, which it would put into a group.
            await self._background.__aexit__(None, None, None)
        await self.aclose()

    def store(
        self, *, compression: Compression = Compression.NONE, replicas: int = 1
    ) -> RoutingStore:
        """The group; ``compression`` and ``replicas`` are for uploads."""
        stores = [
            RetryingStore(each, attempts=self._options.attempts)
            for each in self._contents(compression)
        ]
        return RoutingStore(
            self.router,
            stores,
            replicas=replicas,
            slow_rate=self._options.slow_rate,
            crowded=self._crowded,
        )

    def first(self, *, compression: Compression = Compression.NONE) -> ContentStore:
        """The first server alone, and nothing is tried again."""
        return self._contents(compression)[0]

    def states(self) -> list[PlaceState]:
        """What is known of each server."""
        return self.router.states()

    async def aclose(self) -> None:
        """Close the idle connections now, and those of servers that are in use when they are done.

        Who is cancelled closes all the same.
        """
        for remote in self._remotes:
            remote.close()
        with trio.CancelScope(shield=True):
            for mirror in self._mirrors:
                await mirror.aclose()
        await trio.lowlevel.checkpoint()

    def _crowded(self) -> bool:
        return self._limiter.statistics().tasks_waiting > 0 or self._budget.waiting

    def _mirror(self, template: MirrorTemplate) -> MirrorStore:
        from cafsfs.client.mirror import MirrorStore  # noqa: PLC0415  # 50 ms; few have a mirror

        return MirrorStore(
            template,
            connections=self._options.connections,
            deadlines=self._options.deadlines,
        )

    def _contents(self, compression: Compression) -> list[UnpackingStore]:
        return [
            UnpackingStore(
                packed, limiter=self._limiter, compression=compression, budget=self._budget
            )
            for packed in (*self._remotes, *self._mirrors)
        ]


def _check_mirrors(mirrors: Sequence[MirrorTemplate]) -> None:
    """A mirror shares no secret with us; but that of https proves at least who it is."""
    for each in mirrors:
        if not each.name.startswith("https://"):
            raise UsageError(
                f"authentication is required, and the mirror {each.name} cannot prove who it is",
                hint="name it with https, or not at all",
            )


def _site(member: Member) -> Site:
    return Site(
        name=str(member.server), zone=member.zone, priority=member.priority, weight=member.weight
    )
