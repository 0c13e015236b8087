"""Uploads to several places: who gets the blob, who is passed over, and what is said of both."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from cafsfs.digest import Digest
from cafsfs.errors import (
    CafsError,
    CorruptBlob,
    ServerRefused,
    TooFewReplicas,
    Unreachable,
    UsageError,
)
from cafsfs.packing import hash_bytes
from cafsfs.store.contracts import ContentSource
from cafsfs.store.health import Site
from cafsfs.store.memory import MemorySource
from tests.store.routes import routed
from tests.store.scripted import ScriptedStore

SMALL = b"small"
LARGE = bytes(100_000)
OUTCOMES = ("has", "takes", "full", "gone")


class Named(ScriptedStore):
    """Answers an upload with its name; ``outcome`` is what becomes of one."""

    def __init__(self, name: str, outcome: str, content: bytes) -> None:
        super().__init__(*([content] if outcome == "has" else []))
        self.name = name
        self._outcome = outcome

    async def find_missing(self, digests: object) -> set[Digest]:
        if self._outcome == "gone":
            raise Unreachable(f"cannot connect to {self.name}")
        return await super().find_missing(digests)  # type: ignore[arg-type]  # of the contract

    async def put(self, digest: Digest, source: ContentSource) -> tuple[str, ...]:
        await super().put(digest, source)
        if self._outcome in {"full", "gone"}:
            del self.blobs[digest]
            raise (
                ServerRefused(f"{self.name} answers ERIO")
                if self._outcome == "full"
                else Unreachable(f"cannot connect to {self.name}")
            )
        return (self.name,)


def group(outcomes: Sequence[str], content: bytes) -> list[Named]:
    """Stores called 0, 1, 2 … that are written to in this order."""
    return [Named(str(number), outcome, content) for number, outcome in enumerate(outcomes)]


def in_line(stores: Sequence[Named]) -> list[Site]:
    return [Site(name=each.name, priority=number) for number, each in enumerate(stores)]


@pytest.fixture
def talkative(expect_log: Callable[[str], None]) -> None:
    expect_log("is down|going on with the next server")


@given(
    outcomes=st.lists(st.sampled_from(OUTCOMES), min_size=1, max_size=5),
    replicas=st.integers(1, 5),
    content=st.sampled_from([SMALL, LARGE]),
)
@pytest.mark.usefixtures("talkative")
def test_as_many_have_it_as_should_or_the_error_says_who(
    outcomes: list[str], replicas: int, content: bytes
) -> None:
    replicas = min(replicas, len(outcomes))
    stores = group(outcomes, content)
    digest = hash_bytes(content)
    good = [each.name for each in stores if each._outcome in {"has", "takes"}]

    async def put() -> tuple[str, ...]:
        store = routed(*stores, sites=in_line(stores), replicas=replicas)
        return await store.put(digest, MemorySource(content))

    if len(good) >= replicas:
        assert sorted(trio.run(put)) == good[:replicas]
    else:
        with pytest.raises(CafsError) as caught:
            trio.run(put)
        said = str(caught.value)
        servers = caught.value.servers if isinstance(caught.value, TooFewReplicas) else ()
        assert sorted(servers) == good
        assert bool(good) == (f" only, not on {replicas} servers: " in said)
        for each in stores:
            refused = f"connect to {each.name}" in said or f"{each.name} answers" in said
            assert refused == (each.name not in good)
    for each in stores:
        assert each.calls.count("put") <= 1
        if each._outcome == "has" and content is LARGE:
            assert "put" not in each.calls


async def test_what_a_place_has_is_not_sent_to_it_again() -> None:
    for content, calls in ((LARGE, ["find_missing"]), (SMALL, ["put"])):
        stores = group(["has"], content)
        names = await routed(*stores).put(hash_bytes(content), MemorySource(content))
        assert names == ("0",)
        assert stores[0].calls == calls


async def test_who_has_it_and_who_refused_and_why(expect_log: Callable[[str], None]) -> None:
    expect_log("going on with the next server")
    expect_log("0 is down")
    stores = group(["gone", "takes", "full"], SMALL)
    store = routed(*stores, sites=in_line(stores), replicas=2)
    with pytest.raises(TooFewReplicas) as caught:
        await store.put(hash_bytes(SMALL), MemorySource(SMALL))
    assert str(caught.value) == (
        "it is on 1 only, not on 2 servers: cannot connect to 0; 2 answers ERIO"
    )
    assert caught.value.servers == ("1",)


async def test_where_nobody_has_it_each_says_why(expect_log: Callable[[str], None]) -> None:
    expect_log("going on with the next server")
    expect_log("is down")
    stores = group(["gone", "gone"], SMALL)
    with pytest.raises(Unreachable, match=r"^cannot connect to 0; cannot connect to 1$"):
        await routed(*stores, sites=in_line(stores)).put(hash_bytes(SMALL), MemorySource(SMALL))


async def test_content_that_is_wrong_is_stored_nowhere() -> None:
    stores = group(["takes", "takes", "takes"], SMALL)
    stores[0].errors = [CorruptBlob("it changed")]
    store = routed(*stores, sites=in_line(stores), replicas=2)
    with pytest.raises(CorruptBlob, match="it changed"):
        await store.put(hash_bytes(SMALL), MemorySource(SMALL))
    assert stores[2].calls == []


def test_there_cannot_be_more_replicas_than_servers() -> None:
    with pytest.raises(UsageError, match="3 replicas need 3 servers, there are 2"):
        routed(*group(["takes", "takes"], SMALL), replicas=3)


# --- find_unseen


@pytest.mark.parametrize("first", [True, False])
async def test_what_anybody_has_is_seen_whoever_else_is_gone(
    first: bool,
    expect_log: Callable[[str], None],
) -> None:
    expect_log("is down")
    outcomes = ["gone", "has"] if first else ["has", "gone"]
    stores = group(outcomes, SMALL)
    absent = hash_bytes(b"absent")
    unseen, trouble = await routed(*stores).find_unseen([hash_bytes(SMALL), absent])
    assert unseen == {absent}
    assert isinstance(trouble, Unreachable)
    with pytest.raises(Unreachable):
        await routed(*stores).find_missing([hash_bytes(SMALL), absent])


async def test_where_all_is_seen_or_all_have_answered_there_is_no_trouble() -> None:
    stores = group(["has", "takes"], SMALL)
    present, absent = hash_bytes(SMALL), hash_bytes(b"absent")
    assert await routed(*stores).find_unseen([present, absent]) == ({absent}, None)
    assert await routed(*stores).find_unseen([present]) == (set(), None)
    assert await routed(*group(["has", "gone"], SMALL)).find_unseen([present]) == (set(), None)
    gone = group(["gone"], SMALL)
    assert await routed(*gone).find_unseen([]) == (set(), None)


async def test_a_store_of_one_place_sees_all_or_nothing() -> None:
    present, absent = hash_bytes(SMALL), hash_bytes(b"absent")
    assert await ScriptedStore(SMALL).find_unseen([present, absent]) == ({absent}, None)
    broken = ScriptedStore(SMALL)
    broken.errors = [Unreachable("gone")]
    unseen, trouble = await broken.find_unseen([present])
    assert unseen == {present}
    assert isinstance(trouble, Unreachable)
