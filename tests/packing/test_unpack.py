"""Unpacking: recorded blobs in every slicing, lengths that disagree, limits, bombs, any bytes."""

from __future__ import annotations

import gc
import itertools
import random
import tracemalloc
import weakref
import zlib
from collections.abc import Iterator

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from cafsfs.errors import CorruptBlob, LocalProtocolError, UsageError
from cafsfs.packing import (
    Compression,
    Header,
    Packer,
    Unpacker,
    UnpackLimits,
    foresee_memory,
    hash_bytes,
)
from cafsfs.packing.decoders import MAX_PIECE
from tests.packing.samples import (
    RAW,
    SAMPLES,
    TEXT,
    Sample,
    blob,
    block,
    frame,
    pack,
    skippable_frame,
    slices,
    unpack,
    zlib_blob,
    zstd_blob,
    zstd_bomb,
    zstd_frame,
)

ZSTD, ZLIB, NONE = Compression.ZSTD, Compression.ZLIB, Compression.NONE
MEBIBYTE = 1 << 20

# Incompressible and compressible in turns: blocks of all kinds, and several.
MIXED = b"".join(
    random.Random(seed).randbytes(90_000) + bytes([seed]) * 200_000 for seed in range(4)
)


# Recorded blobs


@pytest.mark.parametrize("sample", SAMPLES, ids=str)
def test_recorded_blobs_unpack_at_every_split_point(sample: Sample) -> None:
    for at in range(len(sample.packed) + 1):
        content = unpack([sample.packed[:at], sample.packed[at:]], packed_length=len(sample.packed))
        assert hash_bytes(content) == sample.digest


@pytest.mark.parametrize("sample", SAMPLES, ids=str)
def test_recorded_blobs_unpack_byte_by_byte_with_the_length_unknown(sample: Sample) -> None:
    content = unpack(slices(sample.packed, 1))
    assert hash_bytes(content) == sample.digest
    assert len(content) == sample.content_length


@pytest.mark.parametrize("sample", SAMPLES, ids=str)
def test_recorded_blobs_truncated_are_refused(sample: Sample) -> None:
    for length in range(len(sample.packed)):
        with pytest.raises(CorruptBlob):
            unpack([sample.packed[:length]], packed_length=len(sample.packed))


@pytest.mark.parametrize("sample", SAMPLES, ids=str)
def test_truncation_shows_without_a_packed_length_where_anything_tells(sample: Sample) -> None:
    only_the_hash_tells = sample.packed.startswith(b"NONE") and sample.announced == 0
    for length in range(16 if only_the_hash_tells else len(sample.packed)):
        with pytest.raises(CorruptBlob):
            unpack([sample.packed[:length]])


@pytest.mark.parametrize("sample", SAMPLES, ids=str)
@pytest.mark.parametrize("extra", [1, 2, 3, 4, 5, 100])
@pytest.mark.parametrize("garbage", [b"\0", b"\x28\xb5\x2f\xfd", b"\x50\x2a\x4d\x18"])
def test_trailing_bytes_are_refused(sample: Sample, extra: int, garbage: bytes) -> None:
    packed = sample.packed + (garbage * 100)[:extra]
    lengths = [len(sample.packed)]
    if not sample.packed.startswith(b"NONE"):
        lengths.append(len(packed))
    for length, step in itertools.product(lengths, (1, len(packed))):
        with pytest.raises(CorruptBlob):
            unpack(slices(packed, step), packed_length=length)


# Round trips


@settings(deadline=None)
@given(
    content=st.binary(max_size=300)
    | st.builds(lambda piece, n: piece * n, st.binary(max_size=50), st.integers(0, 20_000)),
    compression=st.sampled_from(Compression),
    announce=st.booleans(),
    length_known=st.booleans(),
    data=st.data(),
)
def test_what_is_packed_unpacks(
    content: bytes,
    compression: Compression,
    announce: bool,
    length_known: bool,
    data: st.DataObject,
) -> None:
    step = data.draw(st.integers(1 + len(content) // 100, 1 + len(content)), label="pack step")
    packed = pack(content, compression, announce=announce, step=step)
    cuts = data.draw(st.lists(st.integers(0, len(packed)), max_size=8).map(sorted), label="cuts")
    pieces = [packed[a:b] for a, b in itertools.pairwise([0, *cuts, len(packed)])]
    assert unpack(pieces, packed_length=len(packed) if length_known else None) == content


@pytest.mark.parametrize("compression", Compression)
@pytest.mark.parametrize("step", [977, 65536, 1 << 30])
def test_several_blocks_round_trip(compression: Compression, step: int) -> None:
    packed = pack(MIXED, compression)
    assert unpack(slices(packed, step), packed_length=len(packed)) == MIXED


@pytest.mark.parametrize(
    "packed",
    [
        blob(NONE, b""),
        zstd_blob(zstd_frame(b"")),
        zstd_blob(zstd_frame(b"", checksum=True)),
        zstd_blob(frame(block(RAW, 0, b"", last=True))),
        zlib_blob(b""),
    ],
)
def test_empty_content(packed: bytes) -> None:
    for step, length in itertools.product((1, 100), (None, len(packed))):
        assert unpack(slices(packed, step), packed_length=length) == b""


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_buffer_can_be_fed(kind: type[bytes | bytearray | memoryview]) -> None:
    unpacker = Unpacker(lambda piece: None, packed_length=None)
    unpacker.feed(kind(pack(TEXT, ZSTD)))
    assert unpacker.finish() == len(TEXT)


def test_lengths_are_in_bytes_whatever_the_view_counts() -> None:
    packed = pack(bytes(64), NONE)
    unpacker = Unpacker(lambda piece: None, packed_length=len(packed))
    unpacker.feed(memoryview(packed).cast("Q"))
    assert unpacker.finish() == 64


# What is known when


def test_the_header_is_known_when_its_last_byte_came() -> None:
    packed = pack(TEXT, ZSTD)
    unpacker = Unpacker(lambda piece: None, packed_length=None)
    unpacker.feed(packed[:15])
    assert (unpacker.header, unpacker.content_length) == (None, None)
    unpacker.feed(packed[15:16])
    assert unpacker.header == Header(ZSTD, len(TEXT))
    assert unpacker.content_length == len(TEXT)
    assert unpacker.written == 0


def test_the_length_of_none_is_known_from_the_packed_length() -> None:
    unpacker = Unpacker(lambda piece: None, packed_length=116)
    unpacker.feed(blob(NONE, b""))
    assert unpacker.content_length == 100


@pytest.mark.parametrize("packed", [blob(NONE, TEXT), zstd_blob(zstd_frame(TEXT)), zlib_blob(TEXT)])
def test_a_length_that_nothing_tells_stays_none(packed: bytes) -> None:
    unpacker = Unpacker(lambda piece: None, packed_length=None)
    unpacker.feed(packed)
    assert unpacker.finish() == len(TEXT)
    assert unpacker.content_length is None


# The sink


def test_none_is_written_without_a_copy() -> None:
    packed = bytearray(pack(TEXT, NONE))
    pieces: list[bytes | memoryview] = []
    unpacker = Unpacker(pieces.append, packed_length=len(packed))
    unpacker.feed(packed)
    (piece,) = pieces
    assert isinstance(piece, memoryview)
    assert piece.obj is packed


@pytest.mark.parametrize("compression", [ZSTD, ZLIB])
@pytest.mark.parametrize("content", [bytes(10 * MEBIBYTE), MIXED], ids=["zeros", "mixed"])
def test_pieces_are_of_bounded_size(compression: Compression, content: bytes) -> None:
    sizes: list[int] = []
    packed = pack(content, compression)
    unpacker = Unpacker(lambda piece: sizes.append(len(piece)), packed_length=len(packed))
    unpacker.feed(packed)
    assert unpacker.finish() == len(content) == sum(sizes)
    assert min(sizes) > 0
    assert max(sizes) <= MAX_PIECE


@pytest.mark.parametrize("compression", Compression)
@pytest.mark.parametrize("error", [OSError(28, "full"), zstandard.ZstdError("x"), zlib.error("x")])
def test_what_the_sink_raises_passes_untouched(compression: Compression, error: Exception) -> None:
    def write(piece: bytes | memoryview) -> None:
        raise error

    unpacker = Unpacker(write, packed_length=None)
    with pytest.raises(type(error)) as caught:
        unpacker.feed(pack(TEXT, compression))
    assert caught.value is error
    assert unpacker.written == 0


def test_nothing_comes_after_an_exception() -> None:
    def write(piece: bytes | memoryview) -> None:
        raise OSError

    unpacker = Unpacker(write, packed_length=None)
    packed = pack(TEXT, NONE)
    with pytest.raises(OSError):
        unpacker.feed(packed[:20])
    with pytest.raises(LocalProtocolError, match="the unpacker is broken"):
        unpacker.feed(packed[20:])
    with pytest.raises(LocalProtocolError):
        unpacker.finish()


def test_nothing_comes_after_finish() -> None:
    unpacker = Unpacker(lambda piece: None, packed_length=None)
    unpacker.feed(pack(TEXT, ZSTD))
    unpacker.finish()
    with pytest.raises(LocalProtocolError, match="the unpacker is finished"):
        unpacker.feed(b"")
    with pytest.raises(LocalProtocolError):
        unpacker.finish()


@pytest.mark.parametrize("compression", Compression)
def test_an_unpacker_given_up_goes_without_the_garbage_collector(compression: Compression) -> None:
    class Sink:
        def write(self, piece: bytes | memoryview) -> None: ...

    sink = Sink()
    gone = weakref.ref(sink)
    gc.disable()
    try:
        unpacker = Unpacker(sink.write, packed_length=None)
        unpacker.feed(pack(TEXT, compression)[:-5])
        del sink, unpacker
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("compression", Compression)
def test_a_failure_that_its_own_sink_remembers_keeps_nothing(compression: Compression) -> None:
    """Its traceback leads back to the decoder: a circle, of which the collector must see all."""

    class Sink:
        failure: Exception | None = None

        def write(self, piece: bytes | memoryview) -> None:
            raise OSError("disk full")

    sink = Sink()
    gone = weakref.ref(sink)
    try:
        Unpacker(sink.write, packed_length=None).feed(pack(MIXED, compression))
    except OSError as error:
        sink.failure = error
    assert sink.failure is not None
    del sink
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("compression", Compression)
def test_what_a_sink_raises_costs_no_memory(compression: Compression) -> None:
    def fail(piece: bytes | memoryview) -> None:
        raise OSError("disk full")

    packed = pack(MIXED, compression)
    tracemalloc.start()
    try:
        for _ in range(20):
            with pytest.raises(OSError, match="disk full"):
                Unpacker(fail, packed_length=None).feed(packed)
        gc.collect()
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 4 * MAX_PIECE


def test_after_a_sink_has_raised_it_gets_nothing_any_more() -> None:
    """And nobody waits for long: of a bomb only a step is unpacked."""
    pieces = 0

    def fail(piece: bytes | memoryview) -> None:
        nonlocal pieces
        pieces += 1
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        Unpacker(fail, packed_length=None).feed(zstd_blob(zstd_frame(bytes(64 * MEBIBYTE))))
    assert pieces == 1


def test_what_was_released_keeps_no_decoder() -> None:
    unpacker = Unpacker(lambda _: None, packed_length=None)
    unpacker.feed(pack(MIXED, ZSTD)[:-5])
    assert unpacker.memory > 0
    unpacker.release()
    assert unpacker.memory == 0


# Lengths


@pytest.mark.parametrize("compression", Compression)
@pytest.mark.parametrize("announced", [len(TEXT) - 1, len(TEXT) + 1, 1, 1 << 63])
@pytest.mark.parametrize("step", [1, 1 << 20])
def test_an_announced_length_that_disagrees_is_corrupt(
    compression: Compression, announced: int, step: int
) -> None:
    packed = Header(compression, announced).pack() + pack(TEXT, compression)[16:]
    for length in (None, len(packed)):
        with pytest.raises(CorruptBlob):
            unpack(slices(packed, step), packed_length=length)


@pytest.mark.parametrize("compression", Compression)
def test_a_packed_length_that_disagrees_is_corrupt(compression: Compression) -> None:
    packed = pack(TEXT, compression, announce=False)
    for length in (16, len(packed) - 1, len(packed) + 1):
        with pytest.raises(CorruptBlob):
            unpack([packed], packed_length=length)


def test_bytes_beyond_the_packed_length_are_refused_at_once() -> None:
    unpacker = Unpacker(lambda piece: None, packed_length=20)
    unpacker.feed(blob(NONE, b"abcd"))
    unpacker.feed(b"")
    with pytest.raises(CorruptBlob, match="goes on after its 20 bytes"):
        unpacker.feed(b"e")


@pytest.mark.parametrize("length", [-1, 0, 15])
def test_a_packed_length_below_16_is_corrupt(length: int) -> None:
    with pytest.raises(CorruptBlob):
        Unpacker(lambda piece: None, packed_length=length)


# Limits


@pytest.mark.parametrize("compression", Compression)
def test_the_ceiling_holds_where_no_length_is_announced(compression: Compression) -> None:
    packed = pack(TEXT, compression, announce=False)
    assert unpack([packed], limits=UnpackLimits(ceiling=len(TEXT))) == TEXT
    with pytest.raises(CorruptBlob, match="more than the ceiling of 1799 bytes"):
        unpack([packed], limits=UnpackLimits(ceiling=len(TEXT) - 1))


@pytest.mark.parametrize("compression", Compression)
def test_the_ceiling_does_not_hold_where_a_length_is_announced(compression: Compression) -> None:
    assert unpack([pack(TEXT, compression)], limits=UnpackLimits(ceiling=0)) == TEXT


@pytest.mark.parametrize("step", [1, 1000])
def test_a_window_too_large_is_refused_however_small_the_frame(step: int) -> None:
    packed = zstd_blob(frame(block(RAW, 5, b"hello", last=True), window_log=26))
    with pytest.raises(CorruptBlob, match="a window of 67108864 bytes, 33554432 are allowed"):
        unpack(slices(packed, step))
    assert unpack(slices(packed, step), limits=UnpackLimits(max_window=64 << 20)) == b"hello"


def test_windows_of_level_20_are_taken_and_those_of_level_22_are_not() -> None:
    for level, taken in ((20, True), (22, False)):
        parameters = zstandard.ZstdCompressionParameters.from_level(level)
        packed = zstd_blob(frame(block(RAW, 0, b"", last=True), window_log=parameters.window_log))
        if taken:
            assert unpack([packed]) == b""
        else:
            with pytest.raises(CorruptBlob, match="a window"):
                unpack([packed])


@pytest.mark.parametrize(
    "limits", [{"max_window": 1023}, {"max_window": (2 << 30) + 1}, {"ceiling": -1}]
)
def test_limits_that_are_none_are_refused(limits: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        UnpackLimits(**limits)


# Bombs


def _zstd_bomb() -> bytes:
    return zstd_bomb(8192)


def _zlib_bomb() -> bytes:
    squeeze = zlib.compressobj(1)
    zeros = bytes(MEBIBYTE)
    return b"".join(squeeze.compress(zeros) for _ in range(32)) + squeeze.flush()


BOMBS = {ZSTD: _zstd_bomb(), ZLIB: _zlib_bomb()}


def test_the_zstd_bomb_is_32_kb_of_1_gib() -> None:
    assert len(BOMBS[ZSTD]) < 33_000
    assert unpack_to_nothing(zstd_blob(BOMBS[ZSTD])) == 1 << 30


def unpack_to_nothing(packed: bytes, limits: UnpackLimits | None = None) -> int:
    unpacker = Unpacker(
        lambda piece: None, packed_length=len(packed), limits=limits or UnpackLimits()
    )
    unpacker.feed(packed)
    return unpacker.finish()


@pytest.fixture
def peak() -> Iterator[None]:
    tracemalloc.start()
    yield
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 8 * MAX_PIECE  # pieces of three owners at a time, and zlib's own growing


@pytest.mark.usefixtures("peak")
@pytest.mark.parametrize("compression", [ZSTD, ZLIB])
def test_a_bomb_is_refused_at_its_announced_length(compression: Compression) -> None:
    packed = blob(compression, BOMBS[compression], announced=3 * MEBIBYTE)
    unpacker = Unpacker(lambda piece: None, packed_length=len(packed))
    with pytest.raises(CorruptBlob, match="more than the announced 3145728 bytes"):
        unpacker.feed(packed)
    assert unpacker.written <= 3 * MEBIBYTE


@pytest.mark.usefixtures("peak")
@pytest.mark.parametrize("compression", [ZSTD, ZLIB])
def test_a_bomb_is_refused_at_the_ceiling(compression: Compression) -> None:
    packed = blob(compression, BOMBS[compression])
    with pytest.raises(CorruptBlob, match="more than the ceiling"):
        unpack_to_nothing(packed, UnpackLimits(ceiling=3 * MEBIBYTE))


@pytest.mark.usefixtures("peak")
@pytest.mark.parametrize("compression", [ZSTD, ZLIB])
def test_a_bomb_that_is_let_through_takes_no_memory(compression: Compression) -> None:
    expected = {ZSTD: 1 << 30, ZLIB: 32 * MEBIBYTE}
    assert unpack_to_nothing(blob(compression, BOMBS[compression])) == expected[compression]


# Frames


FRAME_ROWS = {
    "two": ([zstd_frame(TEXT), zstd_frame(MIXED)], TEXT + MIXED),
    "checksummed": ([zstd_frame(TEXT, checksum=True)] * 2, TEXT * 2),
    "no size": ([zstd_frame(TEXT, sized=False)] * 2, TEXT * 2),
    "empty between": ([zstd_frame(TEXT), zstd_frame(b""), zstd_frame(TEXT)], TEXT * 2),
    "skippable before": ([skippable_frame(b"abc"), zstd_frame(TEXT)], TEXT),
    "skippable between": ([zstd_frame(b"a"), skippable_frame(b""), zstd_frame(b"b")], b"ab"),
    "skippable behind": ([zstd_frame(TEXT), skippable_frame(bytes(99), kind=15)], TEXT),
    "skippable only": ([skippable_frame(b"abc")], b""),
    "a hundred": ([zstd_frame(b"x", checksum=True)] * 100, b"x" * 100),
}


@pytest.mark.parametrize(("frames", "content"), FRAME_ROWS.values(), ids=FRAME_ROWS.keys())
@pytest.mark.parametrize("announce", [True, False])
def test_rows_of_frames(frames: list[bytes], content: bytes, announce: bool) -> None:
    packed = zstd_blob(*frames, announced=len(content) if announce else None)
    for step in (1 + len(packed) // 5000, 1 << 20):
        assert unpack(slices(packed, step), packed_length=len(packed)) == content
    for cut in (1, 2, 3, 4, 5):
        with pytest.raises(CorruptBlob):
            unpack([packed[:-cut]])


def test_a_wrong_checksum_is_corrupt() -> None:
    packed = bytearray(zstd_blob(zstd_frame(TEXT, checksum=True)))
    packed[-1] ^= 1
    for step in (1, 1000):
        with pytest.raises(CorruptBlob, match="checksum"):
            unpack(slices(bytes(packed), step))


@pytest.mark.parametrize("step", [1, 1000])
@pytest.mark.parametrize(
    "blocks",
    [
        pytest.param(block(RAW, 0, b"", last=True), id="empty"),
        pytest.param(block(RAW, 4, b"abcd") + block(RAW, 0, b"", last=True), id="an empty end"),
        pytest.param(block(RAW, 4, b"abcd", last=True), id="less"),
        pytest.param(block(RAW, 5, b"abcde") + block(RAW, 1, b"f", last=True), id="more"),
    ],
)
def test_a_frame_whose_size_disagrees_is_corrupt(blocks: bytes, step: int) -> None:
    packed = zstd_blob(b"\x28\xb5\x2f\xfd\x20\x05" + blocks)
    with pytest.raises(CorruptBlob):
        unpack(slices(packed, step))


def test_a_frame_that_needs_a_dictionary_is_corrupt() -> None:
    dictionary = zstandard.ZstdCompressionDict(TEXT, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    packed = zstd_blob(zstandard.ZstdCompressor(dict_data=dictionary).compress(TEXT[:50]))
    named = bytearray(packed)
    named[16:22] = b"\x28\xb5\x2f\xfd\x21\x07" + packed[21:22]
    with pytest.raises(CorruptBlob):
        unpack([bytes(named)])


def test_a_zstd_body_without_a_frame_is_corrupt() -> None:
    with pytest.raises(CorruptBlob, match="before its first zstd frame"):
        unpack([blob(ZSTD, b"")])


def test_a_second_zlib_stream_is_corrupt() -> None:
    packed = zlib_blob(TEXT) + zlib.compress(TEXT)
    for step in (1, 1 << 20):
        with pytest.raises(CorruptBlob, match="after the end of its zlib stream"):
            unpack(slices(packed, step))


@pytest.mark.parametrize("length", [MAX_PIECE - 1, MAX_PIECE, MAX_PIECE + 1, 2 * MAX_PIECE])
@pytest.mark.parametrize("step", [1, 64, 1 << 20])
def test_a_zlib_stream_that_ends_with_a_full_piece(length: int, step: int) -> None:
    packed = zlib_blob(bytes(length))
    assert unpack(slices(packed, step)) == bytes(length)
    with pytest.raises(CorruptBlob, match="after the end"):
        unpack(slices(packed + b"\0", step))


def test_a_zlib_checksum_is_checked() -> None:
    packed = zlib_blob(TEXT)
    with pytest.raises(CorruptBlob, match="does not unpack"):
        unpack([packed[:-1] + bytes([packed[-1] ^ 1])])


# Any bytes


def _mutated(data: tuple[bytes, int, int]) -> bytes:
    packed, at, value = data
    changed = bytearray(packed)
    changed[at % len(packed)] = value
    return bytes(changed)


PACKED = st.sampled_from([sample.packed for sample in SAMPLES])
BODIES = st.binary(max_size=200)
ANY_BYTES = st.one_of(
    BODIES,
    st.tuples(PACKED, st.integers(0, 10_000), st.integers(0, 255)).map(_mutated),
    st.tuples(PACKED, BODIES).map(b"".join),
    st.tuples(st.sampled_from([c.value + bytes(12) for c in Compression]), BODIES).map(b"".join),
    BODIES.map(lambda body: zstd_blob(b"\x28\xb5\x2f\xfd", body)),
    BODIES.map(lambda body: zstd_blob(frame(body, window_log=10))),
    BODIES.map(lambda body: blob(ZLIB, b"\x78\x9c" + body)),
)


@settings(deadline=None, max_examples=300)
@given(packed=ANY_BYTES, length_known=st.booleans())
def test_any_bytes_unpack_or_are_corrupt_however_they_come(
    packed: bytes, length_known: bool
) -> None:
    limits = UnpackLimits(ceiling=MEBIBYTE)
    length = len(packed) if length_known else None

    def verdict(step: int) -> bytes | None:
        try:
            return unpack(slices(packed, step), packed_length=length, limits=limits)
        except CorruptBlob:
            return None

    assert verdict(1) == verdict(len(packed) + 1)


# Memory


@pytest.mark.parametrize("sample", SAMPLES, ids=str)
def test_the_first_bytes_tell_what_the_decoder_will_keep(sample: Sample) -> None:
    unpacker = Unpacker(lambda _: None, packed_length=None)
    assert unpacker.memory == 0
    unpacker.feed(sample.packed[:64])
    assert foresee_memory(memoryview(sample.packed)) == unpacker.memory
    unpacker.feed(sample.packed[64:])
    unpacker.finish()
    assert unpacker.memory == 0


@pytest.mark.parametrize(("level", "window"), [(3, 2 * MEBIBYTE), (19, 8 * MEBIBYTE)])
def test_a_window_is_most_of_it(level: int, window: int) -> None:
    packer = Packer(Compression.ZSTD, 1 << 30, level=level)
    start = packer.begin() + packer.feed(bytes(4 * MEBIBYTE))
    assert window < foresee_memory(memoryview(start)) < window + MEBIBYTE


@pytest.mark.parametrize(
    "start", [b"", b"ZSTD", b"what is no blob has no decoder", b"ZSTD" + bytes(60)]
)
def test_what_is_no_blob_has_no_decoder(start: bytes) -> None:
    assert foresee_memory(memoryview(start)) == 0
