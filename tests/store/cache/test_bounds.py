"""What has to go: a table, and what holds for every bound and every fill."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cafsfs.store.cache.bounds import LOW_WATERMARK, Amount, Bounds, Excess, Fill, excess

UNBOUNDED = Amount(1 << 60)


@pytest.mark.parametrize(
    ("amount", "value"),
    [
        (Amount(), 0),
        (Amount(5), 5),
        (Amount(share=0.5), 500),
        (Amount(share=1.0), 1000),
        (Amount(share=0.0001), 0),
        (Amount(7, share=0.1), 107),
    ],
)
def test_an_amount_in_bytes(amount: Amount, value: int) -> None:
    assert amount.of(1000) == value


@pytest.mark.parametrize(
    ("bounds", "fill", "gone"),
    [
        # Nothing while all bounds hold: the bound is what may be reached.
        (Bounds(size=Amount(100)), Fill(), Excess()),
        (Bounds(size=Amount(100)), Fill(committed=100), Excess()),
        (Bounds(size=Amount(0)), Fill(), Excess()),
        # Else down to the low watermark.
        (Bounds(size=Amount(100)), Fill(committed=101), Excess(6)),
        (Bounds(size=Amount(0)), Fill(committed=1), Excess(1)),
        (Bounds(size=Amount(share=0.1)), Fill(committed=101, disk_total=1000), Excess(6)),
        # What is in flight counts, and what was evicted and is still open.
        (Bounds(size=Amount(100)), Fill(committed=50, partial=30, lingering=21), Excess(6)),
        (Bounds(size=Amount(100)), Fill(partial=101), Excess(6)),
        # Room for others, whoever has taken it.
        (Bounds(size=UNBOUNDED, free=Amount(95)), Fill(disk_free=95), Excess()),
        (Bounds(size=UNBOUNDED, free=Amount(95)), Fill(disk_free=94), Excess(6)),
        (
            Bounds(size=UNBOUNDED, free=Amount(share=0.19)),
            Fill(disk_total=500, disk_free=90),
            Excess(10),
        ),
        # The stricter of the two.
        (Bounds(size=Amount(100), free=Amount(95)), Fill(committed=200, disk_free=94), Excess(105)),
        (Bounds(size=Amount(100), free=Amount(950)), Fill(committed=101), Excess(1000)),
        # Number of files.
        (Bounds(files=100), Fill(files=100), Excess()),
        (Bounds(files=100), Fill(files=101), Excess(0, 6)),
        (Bounds(files=0), Fill(files=3), Excess(0, 3)),
        (Bounds(files=10, size=Amount(10)), Fill(files=11, committed=11), Excess(2, 2)),
    ],
)
def test_what_has_to_go(bounds: Bounds, fill: Fill, gone: Excess) -> None:
    assert excess(bounds, fill) == gone
    assert bool(gone) is (gone != Excess())


COUNTS = st.integers(0, 1 << 50)
SHARES = st.floats(0, 1)
AMOUNTS = st.one_of(
    st.builds(Amount, COUNTS), st.builds(Amount, share=SHARES), st.builds(Amount, COUNTS, SHARES)
)
BOUNDS = st.builds(Bounds, size=AMOUNTS, free=AMOUNTS, files=st.none() | COUNTS)
FILLS = st.builds(
    Fill,
    committed=COUNTS,
    files=COUNTS,
    partial=COUNTS,
    lingering=COUNTS,
    disk_total=COUNTS,
    disk_free=COUNTS,
)


@given(BOUNDS, FILLS)
def test_it_is_never_negative_and_enough(bounds: Bounds, fill: Fill) -> None:
    """Whatever the fill: once so much is gone, nothing more has to."""
    over = excess(bounds, fill)
    assert over.bytes >= 0
    assert over.files >= 0
    left = replace(
        fill,
        committed=fill.committed - over.bytes,
        files=fill.files - over.files,
        disk_free=fill.disk_free + over.bytes,
    )
    assert not excess(bounds, left)


@given(BOUNDS, FILLS)
def test_no_more_goes_than_down_to_the_low_watermark(bounds: Bounds, fill: Fill) -> None:
    over = excess(bounds, fill)
    kept = fill.used - over.bytes
    size, free = bounds.size.of(fill.disk_total), bounds.free.of(fill.disk_total)
    at_size = kept >= int(size * LOW_WATERMARK)
    at_free = fill.disk_free + over.bytes <= free / LOW_WATERMARK
    assert not over.bytes or at_size or at_free
    if bounds.files is not None and over.files:
        assert fill.files - over.files == int(bounds.files * LOW_WATERMARK)


@given(BOUNDS, FILLS)
def test_age_is_no_matter_of_fill(bounds: Bounds, fill: Fill) -> None:
    assert excess(replace(bounds, ttl=0.0, tti=0.0), fill) == excess(bounds, fill)
