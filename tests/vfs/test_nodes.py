"""Inode numbers: one a blob, the same until the kernel forgets it, whatever collides."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cafsfs.digest import Digest
from cafsfs.vfs.nodes import BlobTable, Fixed

FIRST = 1 << 10  # below are the nodes that always exist


def colliding(number: int, tail: int) -> Digest:
    """A digest whose number, by its first 8 bytes, is ``number``."""
    return Digest(number.to_bytes(8, "little") + bytes([tail] * 24))


@pytest.mark.parametrize("number", [0, 1, 2, 16, FIRST - 1, FIRST, (1 << 63) - 1, 1 << 63])
def test_numbers_of_others_are_never_given_to_a_blob(number: int) -> None:
    table = BlobTable()
    given = [table.add(colliding(number, tail), 1).inode for tail in range(3)]
    assert len(set(given)) == 3
    assert all(FIRST <= each < 1 << 63 for each in given)
    assert not {each.value for each in Fixed} & set(given)


def test_a_number_derives_from_the_hash() -> None:
    digest = colliding(0x1122334455667788, 7)
    assert (
        BlobTable().add(digest, 1).inode
        == BlobTable().add(digest, 1).inode
        == int("1122334455667788", 16)
    )


def test_the_second_of_two_that_collide_gets_another_number_for_as_long_as_it_is_known() -> None:
    table = BlobTable()
    first, second = (table.add(colliding(5000, tail), 1) for tail in (1, 2))
    first.lookups = second.lookups = 1
    assert first.inode == 5000 != second.inode
    table.forget(first.inode, 1)
    assert table.add(second.digest, 1) is second  # not moved to the number that is free now
    assert table.add(first.digest, 1).inode == 5000
    table.forget(second.inode, 1)
    assert table.node(second.inode) is None


def test_the_bit_that_signed_integers_lack_tells_no_blobs_apart() -> None:
    table = BlobTable()
    numbers = {table.add(colliding(5000 + bit, 1), 1).inode for bit in (0, 1 << 63)}
    assert len(numbers) == 2


def test_forgetting_more_than_was_counted_forgets() -> None:
    table = BlobTable()
    node = table.add(colliding(5000, 1), 1)
    node.lookups = 1
    table.forget(node.inode, 5)
    table.forget(node.inode, 5)
    assert len(table) == 0
    assert table.find(node.digest) is None


class Kernel(RuleBasedStateMachine):
    """Look up, list and forget blobs that collide; the model is a dictionary."""

    DIGESTS = st.builds(
        colliding,
        st.sampled_from([0, 1, FIRST, FIRST + 1, 2 * FIRST, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]),
        st.integers(0, 2),
    )

    def __init__(self) -> None:
        super().__init__()
        self.table = BlobTable()
        self.known: dict[Digest, tuple[int, int]] = {}  # number, references

    @rule(digest=DIGESTS)
    def look_up(self, digest: Digest) -> None:
        node = self.table.add(digest, 1)
        node.lookups += 1
        number, references = self.known.get(digest, (node.inode, 0))
        assert node.inode == number
        self.known[digest] = (number, references + 1)

    @rule(digest=DIGESTS)
    def list_without_taking(self, digest: Digest) -> None:
        node = self.table.add(digest, 1)
        self.table.forget(node.inode, 0)

    @precondition(lambda self: self.known)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        digest = data.draw(st.sampled_from(sorted(self.known)))
        number, references = self.known.pop(digest)
        count = data.draw(st.integers(1, references))
        self.table.forget(number, count)
        if references > count:
            self.known[digest] = (number, references - count)

    @invariant()
    def each_known_blob_has_its_number(self) -> None:
        assert len(self.table) == len(self.known)
        assert len({number for number, _ in self.known.values()}) == len(self.known)
        for digest, (number, references) in self.known.items():
            node = self.table.node(number)
            assert node is not None
            assert (node.digest, node.lookups) == (digest, references)
            assert self.table.find(digest) is node
            assert FIRST <= number < 1 << 63


TestKernel = Kernel.TestCase
TestKernel.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
