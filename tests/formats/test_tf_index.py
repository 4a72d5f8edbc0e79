"""The index of a TensorFlow checkpoint: its table, its messages, and what they are checked against."""

from __future__ import annotations

import functools
import random
import struct
import tarfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptkit.base.budget import Budget
from ckptkit.base.errors import FormatError, NotFoundError
from ckptkit.formats import tf_index
from ckptkit.formats.base import bytes_of
from ckptkit.formats.protobuf_wire import WireError
from ckptkit.formats.tf_bundle import TfBundleReader
from ckptkit.formats.tf_index import (
    FULL,
    METADATA_FIELD,
    BundleEntry,
    BundleHeader,
    build_table,
    decode_entry,
    decode_header,
    encode_entry,
    encode_header,
    index_path,
    load_index,
    mask,
    read_table,
    shard_path,
    slice_key,
)
from tests.support import tf_files
from tests.support.tf_files import entry, header, masked, message, part_key, plenty, varint, write_raw

NAME = Path("m.index")


def entries_of(count: int, seed: int = 0) -> list[tuple[bytes, bytes]]:
    source = random.Random(seed)
    keys = {b""} | {
        b"layer_%d/%s" % (source.randrange(50), source.randbytes(source.randrange(1, 30)))
        for _ in range(count)
    }
    return [(key, source.randbytes(source.randrange(60))) for key in sorted(keys)]


def with_checksum(block: bytes, kind: int = 0) -> bytes:
    typed = block + bytes([kind])
    return typed + struct.pack("<I", tf_files.masked(typed))


def test_mask_rotates_and_adds() -> None:
    assert mask(0) == 0xA282EAD8
    assert mask(0x8000) == 0xA282EAD9  # bit 15 becomes bit 0
    assert mask(1) == 0xA284EAD8  # bit 0 becomes bit 17
    assert mask(0xFFFFFFFF) == 0xA282EAD7  # all ones, and the sum wraps


@pytest.mark.parametrize("snappy", [False, True])
@pytest.mark.parametrize("per_block", [1, 7, 10_000])
def test_reads_tables_of_many_blocks(snappy: bool, per_block: int) -> None:
    entries = entries_of(200)
    blocks = [entries[i : i + per_block] for i in range(0, len(entries), per_block)]
    assert list(read_table(NAME, tf_files.table(blocks, snappy=snappy), tf_files.plenty())) == entries


@pytest.mark.parametrize("block_bytes", [1, 100, 4096, 1 << 20])
def test_reads_what_it_writes(block_bytes: int) -> None:
    entries = entries_of(300)
    assert list(read_table(NAME, build_table(entries, block_bytes=block_bytes), tf_files.plenty())) == entries


def test_prefix_compression_and_restart_points_as_in_the_format() -> None:
    keys = [b"k%02d" % number for number in range(20)]
    written = build_table([(key, b"v") for key in keys])
    # shared bytes, other bytes, value's size; each key shares "k0" or "k1" with the one before, k10 only "k"
    entries = [b"\x00\x03\x01k00v"]
    entries += [b"\x02\x01\x01%dv" % number for number in range(1, 10)]
    entries += [b"\x01\x02\x0110v"]
    entries += [b"\x02\x01\x01%dv" % number for number in range(1, 6)]
    restart = len(b"".join(entries))
    entries += [b"\x00\x03\x01k16v"]  # the seventeenth begins afresh
    entries += [b"\x02\x01\x01%dv" % number for number in range(7, 10)]
    block = b"".join(entries) + struct.pack("<III", 0, restart, 2)
    assert written.startswith(with_checksum(block))


def test_index_keys_separate_the_blocks() -> None:
    entries = entries_of(100)
    written = build_table(entries, block_bytes=1)
    table = tf_index.Table(NAME, written, tf_files.plenty())
    separators = [key for key, _ in table.entries(*table.footer()[1])]
    keys = [key for key, _ in entries]
    assert len(separators) == len(keys)
    for separator, key, following in zip(separators, keys, keys[1:], strict=False):
        assert key <= separator < following
    assert separators[-1] >= keys[-1]


def test_keys_must_increase_when_writing() -> None:
    with pytest.raises(ValueError, match="must increase"):
        build_table([(b"b", b""), (b"a", b"")])


TWICE = tf_files.table([[(b"", b""), (b"a", b"1"), (b"a", b"2")]])
UNSORTED = tf_files.table([[(b"b", b"")], [(b"a", b"")]])
GOOD = tf_files.table([[(b"", b"x"), (b"a", b"1")]])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "too few"),
        (b"x" * 47, "too few"),
        (b"<!DOCTYPE html>" * 10, "no table magic"),
        (GOOD[:-1], "no table magic"),
        (GOOD[:-48] + b"\xff" * 40 + GOOD[-8:], "damaged footer"),
        (GOOD[-48:], "past the end"),
        (TWICE, "occurs twice"),
        (UNSORTED, "out of order"),
        (tf_files.table([[(b"", b"x")]], kind=2), "unknown block compression 2"),
        (tf_files.table([[(b"", b"x")]], kind=1), "snappy"),
    ],
)
def test_damaged_tables_are_refused(data: bytes, reason: str) -> None:
    with pytest.raises(FormatError, match=reason):
        list(read_table(NAME, data, tf_files.plenty()))


def test_of_the_metaindex_only_the_checksum_matters() -> None:
    odd = tf_files.table([[(b"", b"x")]], metaindex=b"odd")
    assert list(read_table(NAME, odd, tf_files.plenty())) == [(b"", b"x")]
    with pytest.raises(FormatError, match="checksum"):
        list(read_table(NAME, odd.replace(b"odd", b"Odd"), tf_files.plenty()))


def single_block(block: bytes, kind: int = 0) -> bytes:
    """A table whose one data block is ``block`` as given."""
    meta = with_checksum(tf_files.block([]))
    data = with_checksum(block, kind)
    index = tf_files.block([(b"z", tf_files.varint(0) + tf_files.varint(len(block)))])
    footer = b"".join(map(tf_files.varint, (len(data), len(meta) - 5, len(data) + len(meta), len(index))))
    return data + meta + with_checksum(index) + footer.ljust(40, b"\0") + struct.pack("<Q", tf_files.MAGIC)


RESTARTS = struct.pack("<II", 0, 1)
HUGE = tf_files.varint(2**63)


@pytest.mark.parametrize(
    ("block", "kind"),
    [
        (b"", 0),
        (b"\0\0\0", 0),
        (struct.pack("<I", 0), 0),  # no restart point at all
        (struct.pack("<I", 2**32 - 1), 0),
        (b"\x01\x01\x00a" + RESTARTS, 0),  # shares a byte with nothing
        (b"\x00\x05\x00a" + RESTARTS, 0),
        (b"\x00\x01\x05a" + RESTARTS, 0),
        (b"\x00" + HUGE + b"\x00a" + RESTARTS, 0),
        (b"\x00\x01" + HUGE + b"a" + RESTARTS, 0),
        (b"\x00\x01\x00a" + b"\x02\x01\x00a" + RESTARTS, 0),
        (b"\xff" * 20 + RESTARTS, 0),
        (b"\x80" + RESTARTS[:0], 1),
        (b"", 1),
        (tf_files.varint(2**32 - 1) + b"\x00a", 1),  # claims 4 GB
        (tf_files.varint(2**62), 1),
        (tf_files.varint(5) + b"\x00a", 1),
    ],
)
def test_damaged_blocks_are_refused_even_when_their_checksum_holds(block: bytes, kind: int) -> None:
    with pytest.raises(FormatError, match=r"^m\.index: "):
        list(read_table(NAME, single_block(block, kind), tf_files.plenty()))


def test_a_block_listed_many_times_is_refused() -> None:
    block = tf_files.block([(b"a", b"")])
    data = with_checksum(block)
    handle = tf_files.varint(0) + tf_files.varint(len(block))
    index = tf_files.block([(b"b", handle), (b"c", handle)])
    meta = with_checksum(tf_files.block([]))
    footer = b"".join(map(tf_files.varint, (len(data), len(meta) - 5, len(data) + len(meta), len(index))))
    whole = data + meta + with_checksum(index) + footer.ljust(40, b"\0") + struct.pack("<Q", tf_files.MAGIC)
    with pytest.raises(FormatError, match="overlap"):
        list(read_table(NAME, whole, tf_files.plenty()))


@pytest.mark.parametrize(
    ("what", "left", "reason"),
    [("names", 1000, "bytes of names"), ("nodes", 99, "values and entries"), ("steps", 99, "steps of work")],
)
def test_limits_hold(what: str, left: int, reason: str) -> None:
    table = build_table([(b"k" * 50 + b"%03d" % number, b"") for number in range(100)])
    budget = Budget(len(table), functools.partial(FormatError, NAME))
    setattr(budget, what, left)
    with pytest.raises(FormatError, match=rf"^m\.index: more than [0-9,]+ {reason}"):
        list(read_table(NAME, table, budget))


def test_every_flipped_byte_is_refused_or_harmless() -> None:
    entries = entries_of(10)
    good = build_table(entries)
    harmless = []
    for position in range(len(good)):
        damaged = bytearray(good)
        damaged[position] ^= 0x55
        try:
            assert list(read_table(NAME, bytes(damaged), tf_files.plenty())) == entries
            harmless.append(position)
        except FormatError:
            pass
    footer_padding = range(len(good) - 48 + 4, len(good) - 8)
    assert set(harmless) <= set(footer_padding)


def put_together(*stored: bytes, index: list[tuple[bytes, bytes]], padding: bytes = b"") -> bytes:
    """A table of checked blocks one after the other, with an index as given."""
    file = b"".join(map(with_checksum, stored))
    meta, block = tf_files.block([]), tf_files.block(index)
    places = (len(file), len(meta), len(file) + len(meta) + 5, len(block))
    footer = b"".join(map(tf_files.varint, places)) + padding
    file += with_checksum(meta) + with_checksum(block)
    return file + footer.ljust(40, b"\0") + struct.pack("<Q", tf_files.MAGIC)


A, C = tf_files.block([(b"a", b"")]), tf_files.block([(b"c", b"")])
AT_A = tf_files.varint(0) + tf_files.varint(len(A))
AT_C = tf_files.varint(len(A) + 5) + tf_files.varint(len(C))
TWO_READINGS = {
    "right": (put_together(A, C, index=[(b"b", AT_A), (b"d", AT_C)]), None),
    "prefix": (b"x" * 9 + put_together(A, C, index=[(b"b", AT_A), (b"d", AT_C)]), "checksum"),
    "block that the index leaves out": (put_together(A, C, index=[(b"b", AT_A)]), "bytes between"),
    "block before the first": (put_together(A, C, index=[(b"d", AT_C)]), "bytes between"),
    "key above its separator": (put_together(A, C, index=[(b"b", AT_A), (b"b2", AT_C)]), "hides the key 'c'"),
    "key below the separator": (put_together(A, C, index=[(b"c", AT_A), (b"d", AT_C)]), "hides the key 'c'"),
    "bytes behind a handle": (put_together(A, C, index=[(b"b", AT_A + b"x"), (b"d", AT_C)]), "handle"),
    "bytes in the footer": (put_together(A, C, index=[(b"b", AT_A), (b"d", AT_C)], padding=b"x"), "footer"),
    "two tables": (put_together(A, index=[(b"b", AT_A)]) * 2, "does not"),
    "restart point inside an entry": (
        single_block(b"\x00\x01\x00a\x00\x01\x00b" + struct.pack("<III", 0, 2, 2)),
        "restart point",
    ),
    "restart points out of order": (
        single_block(b"\x00\x01\x00a\x00\x01\x00b" + struct.pack("<III", 4, 0, 2)),
        "restart point",
    ),
}


@pytest.mark.parametrize("case", TWO_READINGS)
def test_what_two_readers_would_find_differently_is_refused(case: str) -> None:
    table, reason = TWO_READINGS[case]
    if reason is None:
        assert list(read_table(NAME, table, tf_files.plenty())) == [(b"a", b""), (b"c", b"")]
        return
    with pytest.raises(FormatError, match=reason):
        list(read_table(NAME, table, tf_files.plenty()))


# ----------------------------------------------------------------------------------------------------
#


def test_entry_with_every_field() -> None:
    data = entry(1, (3, 0, 7), offset=1 << 40, size=12, crc=0xFFFFFFFF, shard=3)
    assert decode_entry(data, plenty()) == BundleEntry(1, (3, 0, 7), 3, 1 << 40, 12, 0xFFFFFFFF, ())


def test_entry_of_a_partitioned_variable() -> None:
    data = entry(1, (10, 4), slices=[[(0, 4), None], [(4, 6), (0, 4)]])
    assert decode_entry(data, plenty()).slices == [((0, 4), (0, FULL)), ((4, 6), (0, 4))]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (message((2, message((3, 1)))), "shape is unknown"),
        (message((2, 5)), "holds a number, not bytes"),
        (message((1, b"x")), "holds bytes, not a number"),
        (message((7, message((1, message((1, 3)))))), "begins at 3"),
        (message((7, message((1, message((1, -1), (2, 3)))))), "begins at -1"),
        (message((7, message((1, message((2, -2)))))), "-2 elements"),
        (b"\x08", "past the end"),
    ],
)
def test_damaged_entries_are_refused(data: bytes, reason: str) -> None:
    with pytest.raises(WireError, match=reason):
        decode_entry(data, plenty())


def test_header() -> None:
    assert decode_header(header(5), plenty()) == BundleHeader(5, False, 0, {})
    assert decode_header(header(1, (2, 1)), plenty()).big_endian
    assert decode_header(message((3, message((1, 2), (2, 2)))), plenty()).min_consumer == 2


def test_metadata_travels_in_an_unknown_field() -> None:
    metadata = {"layout": "torch", "a": "ä\n"}
    assert decode_header(encode_header(BundleHeader(metadata=metadata)), plenty()).metadata == metadata
    reordered = dict(reversed(metadata.items()))
    assert encode_header(BundleHeader(metadata=reordered)) == encode_header(BundleHeader(metadata=metadata))


@pytest.mark.parametrize("text", [b"", b"[1]", b'{"a":1}', b"\xff", b"[" * 100_000])
def test_metadata_that_is_no_table_of_strings_is_refused(text: bytes) -> None:
    with pytest.raises(WireError):
        decode_header(header(1, (METADATA_FIELD, text)), plenty())


@settings(max_examples=50)
@given(
    st.lists(st.integers(0, 2**40), max_size=6),
    st.integers(0, 2**62),
    st.integers(0, 2**62),
    st.integers(1, 2**32 - 1),
)
def test_entries_written_are_read(shape: list[int], offset: int, size: int, crc: int) -> None:
    whole = BundleEntry(1, tuple(shape), 0, offset, size, crc)
    assert decode_entry(encode_entry(whole), plenty()) == whole


@pytest.mark.parametrize(
    ("name", "part", "key"),
    [
        # written by TensorFlow 2.21 for a variable of 10 rows in three parts
        (b"p/w", ((4, 3), (0, 4)), b"\x00p/w\x00\x01\x01\x02\x84\x83\x80\x84"),
        # by the rules of ordered_code.cc: escapes, one byte up to 63, two up to 8191, and the whole axis
        (b"a\x00b\xff\x00", (), b"\x00a\x00\xffb\xff\x00\x00\xff\x00\x01\x00"),
        (b"w", ((0, FULL),), b"\x00w\x00\x01\x01\x01\x80\x7f"),
        (b"w", ((63, 64),), b"\x00w\x00\x01\x01\x01\xbf\xc0\x40"),
        (b"w", ((8191, 8192),), b"\x00w\x00\x01\x01\x01\xdf\xff\xe0\x20\x00"),
        (b"w", ((2**20 - 1, 2**20),), b"\x00w\x00\x01\x01\x01\xef\xff\xff\xf0\x10\x00\x00"),
        (
            b"w",
            ((2**55, 2**62),),
            b"\x00w\x00\x01\x01\x01\xff\x80\x80" + bytes(6) + b"\xff\xc0\x40" + bytes(7),
        ),
    ],
)
def test_slice_keys(name: bytes, part: tuple[tuple[int, int], ...], key: bytes) -> None:
    assert slice_key(name, part) == key


@settings(max_examples=200)
@given(
    st.tuples(st.integers(0, 2**62), st.integers(-1, 2**62)),
    st.tuples(st.integers(0, 2**62), st.integers(-1, 2**62)),
)
def test_slice_keys_sort_like_the_slices(first: tuple[int, int], second: tuple[int, int]) -> None:
    assert (slice_key(b"w", (first,)) < slice_key(b"w", (second,))) == (first < second)


# ----------------------------------------------------------------------------------------------------
#

FLOAT, INT32, STRING = 1, 3, 7
HUGE_AXIS = 2**62
Entries = list[tuple[bytes, bytes]]


def load(tmp_path: Path, entries: Entries, *shards: bytes, head: bytes | None = None) -> tf_index.BundleIndex:
    whole = [(b"", header(len(shards)) if head is None else head), *entries]
    write_raw(tmp_path / "m", [sorted(whole)], *shards)
    return load_index(tmp_path / "m", plenty())


def test_names_of_the_files() -> None:
    assert index_path(Path("a/m.ckpt")) == Path("a/m.ckpt.index")
    assert shard_path(Path("a/m"), 3, 12) == Path("a/m.data-00003-of-00012")


def test_reference_types_of_tf1_are_accepted(tmp_path: Path) -> None:
    index = load(tmp_path, [(b"w", entry(101, (2,), size=8))], bytes(8))
    dtype = index.tensors["w"].dtype
    assert dtype is not None
    assert dtype.name == "float32"


@pytest.mark.parametrize(("number", "what"), [(7, "strings"), (20, "a resource"), (21, "a variant")])
def test_what_is_no_tensor_of_numbers_is_told(tmp_path: Path, number: int, what: str) -> None:
    index = load(
        tmp_path,
        [(b"s", entry(number, (3,), size=5)), (b"t", entry(number, (), size=5, offset=5))],
        bytes(10),
    )
    assert index.others(but="t") == {"s": f"{what} [3]"}


def test_a_type_that_is_not_known_is_opaque_and_of_the_size_it_has(tmp_path: Path) -> None:
    (tensor,) = load(tmp_path, [(b"s", entry(77, (3,), size=5))], bytes(5)).tensors.values()
    assert (tensor.dtype.kind, tensor.dtype.name, tensor.dtype.tf) == ("opaque", "DataType 77", 77)
    with TfBundleReader(tmp_path / "m") as reader:
        assert reader.specs["s"].nbytes == 5
        assert bytes(bytes_of(reader, "s").data) == bytes(5)


F4 = entry(FLOAT, (4,), size=16)
REFUSED: dict[str, tuple[Entries, str]] = {
    "size": ([(b"w", entry(FLOAT, (4,), size=12))], r"12 bytes, float32 of shape \[4\] takes 16"),
    "negative axis": ([(b"w", entry(FLOAT, (-1,), size=16))], r"impossible shape \[-1\]"),
    "huge shape": ([(b"w", entry(FLOAT, (HUGE_AXIS, HUGE_AXIS), size=16))], "impossible shape"),
    "huge empty shape": ([(b"w", entry(FLOAT, (0, HUGE_AXIS, HUGE_AXIS), size=0))], "impossible shape"),
    "many axes": ([(b"w", entry(FLOAT, (1,) * 33, size=4))], "33 axes"),
    "no type": ([(b"w", entry(0, (4,), size=16))], "number 0"),
    "type 100": ([(b"w", entry(100, (4,), size=16))], "number 100"),
    "negative type": ([(b"w", entry(-1, (4,), size=16))], "number -1"),
    "past the end": ([(b"w", entry(FLOAT, (4,), offset=90, size=16))], "90 to 106, the file has 100"),
    "far past the end": ([(b"w", entry(FLOAT, (4,), offset=2**63 - 8, size=16))], "truncated"),
    "negative offset": ([(b"w", entry(FLOAT, (4,), offset=-4, size=16))], "truncated"),
    "negative size": ([(b"w", entry(STRING, (4,), size=-4))], "truncated"),
    "no such shard": ([(b"w", entry(FLOAT, (4,), size=16, shard=1))], "data file 1 of 1"),
    "negative shard": ([(b"w", entry(FLOAT, (4,), size=16, shard=-1))], "data file -1 of 1"),
    "overlap": ([(b"a", F4), (b"b", entry(FLOAT, (4,), offset=12, size=16))], "'a' and 'b' share bytes"),
    "same bytes": ([(b"a", F4), (b"b", F4)], "share bytes"),
    "overlap with strings": ([(b"a", F4), (b"b", entry(STRING, (), offset=8, size=2))], "share bytes"),
    "name": ([(b"\xff", F4)], "not UTF-8"),
    "control character": ([(b"a\x1b[0m", F4)], "control characters"),
    "entry": ([(b"w", b"\x08")], "'w'.*past the end"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_impossible_numbers_are_refused(tmp_path: Path, case: str) -> None:
    entries, reason = REFUSED[case]
    with pytest.raises(FormatError, match=reason):
        load(tmp_path, entries, bytes(100))


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (header(1, (2, 1)), "big-endian"),
        (header(0), "claims 0 data files"),
        (header(-1), "claims -1 data files"),
        (header(2**31), "data files"),
        (message((1, 1), (3, message((1, 9), (2, 2)))), "checkpoint version 2"),
        (b"\x08", "damaged header"),
        (header(1, (21_001, b"{")), "metadata is not JSON"),
    ],
)
def test_headers_that_are_refused(tmp_path: Path, head: bytes, reason: str) -> None:
    with pytest.raises(FormatError, match=reason):
        load(tmp_path, [(b"w", F4)], bytes(100), head=head)


def test_a_table_of_something_else_is_refused(tmp_path: Path) -> None:
    write_raw(tmp_path / "m", [[(b"user1", b"x")]], b"")
    with pytest.raises(FormatError, match="no header entry"):
        load_index(tmp_path / "m", plenty())


def test_a_missing_index_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"m\.index"):
        load_index(tmp_path / "m", plenty())


def test_a_missing_data_file_is_named(tmp_path: Path) -> None:
    entries = [(b"a", F4), (b"b", entry(FLOAT, (4,), size=16, shard=1))]
    load(tmp_path, entries, bytes(16), bytes(16))
    shard_path(tmp_path / "m", 1, 2).unlink()
    with pytest.raises(FormatError, match=r"m\.index: its data file m\.data-00001-of-00002 is missing"):
        load_index(tmp_path / "m", plenty())


def test_an_index_of_unlikely_size_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "m.index").open("wb") as file:
        file.truncate(tf_index.MAX_INDEX_BYTES + 1)
    with pytest.raises(FormatError, match="no index of a checkpoint"):
        load_index(tmp_path / "m", plenty())


def rows(*runs: tuple[int, int]) -> Entries:
    """A float32 variable w of 6 x 2, cut into these rows, its parts one after the other in the data file."""
    entries: Entries = [(b"w", entry(FLOAT, (6, 2), slices=[[run, None] for run in runs]))]
    offset = 0
    for start, length in dict.fromkeys(runs):
        key = b"\0w\0\1\1\2" + bytes([128 + start, 128 + length, 128, 127])
        entries.append((key, entry(FLOAT, (length, 2), offset=offset, size=8 * length)))
        offset += 8 * length
    return entries


def test_parts_of_a_partitioned_variable(tmp_path: Path) -> None:
    tensor = load(tmp_path, rows((4, 2), (0, 1), (1, 3)), bytes(100)).tensors["w"]
    assert [(part.start, part.shape, part.offset) for part in tensor.parts] == [
        ((4, 0), (2, 2), 0),
        ((0, 0), (1, 2), 16),
        ((1, 0), (3, 2), 24),
    ]


def quarters(*boxes: tuple[tuple[int, int], tuple[int, int]]) -> Entries:
    """A float32 variable w of 4 x 4, cut along both axes."""
    entries: Entries = [(b"w", entry(FLOAT, (4, 4), slices=boxes))]
    offset = 0
    for box in boxes:
        size = 4 * box[0][1] * box[1][1]
        entries.append((part_key(b"w", *box), entry(FLOAT, (box[0][1], box[1][1]), offset=offset, size=size)))
        offset += size
    return entries


def test_a_variable_cut_along_two_axes(tmp_path: Path) -> None:
    boxes = (((0, 1), (0, 4)), ((1, 3), (0, 1)), ((1, 3), (1, 3)))
    assert len(load(tmp_path, quarters(*boxes), bytes(100)).tensors["w"].parts) == 3


def changed(entries: Entries, position: int, value: bytes) -> Entries:
    return [*entries[:position], (entries[position][0], value), *entries[position + 1 :]]


TWO = rows((0, 3), (3, 3))
BAD_PARTS: dict[str, tuple[Entries, str]] = {
    "overlap": (rows((0, 3), (2, 3)), "overlap"),
    "twice": (rows((0, 3), (0, 3)), "overlap"),
    "too long": (rows((0, 3), (3, 4)), "leaves"),
    "other type": (changed(TWO, 1, entry(INT32, (3, 2), size=24)), "does not fit"),
    "other shape": (changed(TWO, 1, entry(FLOAT, (2, 3), size=24)), "does not fit"),
    "parts of parts": (changed(TWO, 1, entry(FLOAT, (3, 2), slices=[[None, None]])), "does not fit"),
    "axes": (
        [(b"w", entry(FLOAT, (6, 2), slices=[[(0, 6)]])), (part_key(b"w", (0, 6)), F4)],
        "1 axis, not 2",
    ),
    "overlap along two axes": (
        quarters(((0, 2), (0, 2)), ((1, 2), (1, 2)), ((0, 2), (2, 2)), ((2, 2), (0, 2))),
        "overlap",
    ),
}


@pytest.mark.parametrize("case", BAD_PARTS)
def test_parts_that_do_not_make_a_whole_are_refused(tmp_path: Path, case: str) -> None:
    entries, reason = BAD_PARTS[case]
    with pytest.raises(FormatError, match=f"variable 'w'.*{reason}"):
        load(tmp_path, entries, bytes(200))


GAPS: dict[str, tuple[Entries, str]] = {
    "a part that is listed": (TWO[:2], "6 of 12"),
    "every part": (TWO[:1], "0 of 12"),
    "a part that is not": (rows((0, 2), (3, 3)), "10 of 12"),
    "a part along two axes": (quarters(((0, 2), (0, 2)), ((2, 2), (0, 2)), ((0, 2), (2, 2))), "12 of 16"),
}


@pytest.mark.parametrize("case", GAPS)
def test_what_is_missing_of_a_partitioned_variable_is_said(tmp_path: Path, case: str) -> None:
    """An optimizer slot whose parts are not all there is a known fault of TensorFlow's own writers."""
    entries, found = GAPS[case]
    tensor = load(tmp_path, entries, bytes(100)).tensors["w"]
    assert tensor.gap == f"parts are missing: {found} elements are there"
    assert tensor.fingerprint is None


def test_many_parts_along_two_axes_cost_steps(tmp_path: Path) -> None:
    """Parts that meet along the axis that is cut most are compared by pairs: here all of them."""
    side = 60  # bars along both axes: no two share a beginning on axis 0, and each reaches to the end
    parts = [((i, side - i), (i, 1)) for i in range(side)]
    entries: Entries = [(b"w", entry(FLOAT, (side, side), slices=parts))]
    for number, ((i, rows), _) in enumerate(parts):
        key = part_key(b"w", (i, rows), (i, 1))
        entries.append((key, entry(FLOAT, (rows, 1), offset=4 * side * number, size=4 * rows)))
    index = load(tmp_path, entries, bytes(4 * side * side))
    assert index.tensors["w"].gap.startswith("parts are missing: 1,830 of 3,600")
    budget = plenty()
    budget.steps = 9_000
    with pytest.raises(ValueError, match="steps of work"):
        load_index(tmp_path / "m", budget)


def test_parts_that_no_variable_lists_are_named(tmp_path: Path) -> None:
    index = load(tmp_path, TWO[1:], bytes(100))
    assert index.tensors == {}
    assert index.unused_parts == {"w": 2}
    assert index.notes() == []
    more = load(tmp_path, [*TWO[1:], (b"w", entry(FLOAT, (0,)))], bytes(100))
    assert more.notes() == ["2 stored parts of 'w' not listed among its parts"]


def test_parts_of_a_type_of_unknown_size_are_left_out_by_name(tmp_path: Path) -> None:
    parts = [(0, 3), (3, 3)]
    entries: Entries = [(b"w", entry(77, (6, 2), slices=[[run, None] for run in parts]))]
    for start, length in parts:
        key = b"\0w\0\1\1\2" + bytes([128 + start, 128 + length, 128, 127])
        entries.append((key, entry(77, (length, 2), offset=9 * start, size=9)))
    load(tmp_path, entries, bytes(100))
    with TfBundleReader(tmp_path / "m") as reader:
        assert reader.specs == {}
        assert reader.left_out == {"w": "in 2 parts, of a type of unknown size (DataType 77)"}


def test_parts_of_an_opaque_type_are_put_together(tmp_path: Path) -> None:
    parts = [(0, 3), (3, 3)]
    entries: Entries = [(b"w", entry(11, (6, 2), slices=[[run, None] for run in parts]))]  # qint8
    for start, length in parts:
        key = b"\0w\0\1\1\2" + bytes([128 + start, 128 + length, 128, 127])
        entries.append((key, entry(11, (length, 2), offset=2 * start, size=2 * length)))
    load(tmp_path, entries, bytes(range(12)))
    with TfBundleReader(tmp_path / "m") as reader:
        assert bytes(bytes_of(reader, "w").data) == bytes(range(12))


MIB = b"w" * (1 << 20)
CRC = 0x12345678


def graph_of(graph: bytes) -> tuple[Entries, bytes]:
    """Entries of a checkpoint with an object graph of any bytes, and their data."""
    length = len(graph).to_bytes(4, "little")
    raw = varint(len(graph)) + struct.pack("<I", masked(length)) + graph
    name = b"_CHECKPOINTABLE_OBJECT_GRAPH"
    return [
        (name, entry(STRING, (), size=len(raw))),
        (b"w", entry(FLOAT, (), offset=len(raw), size=4)),
    ], raw + b"xxxx"


def _node(*fields: tuple[int, bytes]) -> tuple[int, bytes]:
    return (1, message(*fields))


def _child(name: bytes, number: int) -> tuple[int, bytes]:
    return (1, message((1, number), (2, name)))


def _slots_of_slots() -> bytes:
    """Names that grow with every slot variable of a slot variable."""
    variables = [_node((2, message((1, b"VARIABLE_VALUE"), (2, b"n"), (3, b"k%d" % n)))) for n in range(3000)]
    slots = [(3, message((1, n), (2, b"s" * 2000), (3, n + 1))) for n in range(2999)]
    return message(*variables, _node(*slots))


def _long_lists_shared() -> bytes:
    """Many objects whose lists of variables are the same long one."""
    long_list = _node(*(_child(b"", 0) for _ in range(8000)))
    owners = [_node(_child(b"variables", 0), _child(b"_all_variables", 0)) for _ in range(8000)]
    return message(long_list, *owners)


def _whole_axis_parts(count: int) -> Entries:
    return [(b"w", entry(FLOAT, (0,), slices=[[None]] * count)), (b"\0w\0\1\1\1\x80\x7f", entry(FLOAT, (0,)))]


BOMBS: dict[str, tuple[Entries, bytes]] = {
    "a scalar in many parts": ([(b"w", entry(FLOAT, ()) + b"\x3a\x00" * 300_000)], b""),
    "parts under a long name": ([(MIB, entry(FLOAT, (0,)) + b"\x3a\x02\x0a\x00" * 500)], b""),
    "parts of a whole axis": (_whole_axis_parts(60_000), b""),
    "axes by the million": ([(b"w", b"\x12" + varint(2 << 20) + b"\x12\x00" * (1 << 20))], b""),
    "extents of one part": ([(b"w", message((1, 1), (7, b"\x0a\x00" * 300_000)))], b""),
    "metadata of empty tables": ([(b"w", entry(FLOAT, ()))], b""),
    "objects without content": graph_of(b"\x0a\x00" * 300_000),
    "children by the thousand": graph_of(message((1, b"\x0a\x00" * 150_000))),
    "names that grow": graph_of(_slots_of_slots()),
    "long lists shared": graph_of(_long_lists_shared()),
}


@pytest.mark.parametrize("case", BOMBS)
def test_small_files_that_ask_for_much_are_refused_soon(case: str, tmp_path: Path) -> None:
    entries, data = BOMBS[case]
    head = (
        header(1, (METADATA_FIELD, b'{"a":[' + b"{}," * 400_000 + b"{}]}"))
        if "metadata" in case
        else header(1)
    )
    write_raw(tmp_path / "m", [sorted([(b"", head), *entries])], data)
    started = time.process_time()
    with pytest.raises(
        FormatError, match=r"m\.index: (.*axes|more than [0-9,]+ .* in a file of [0-9,]+ bytes)"
    ):
        TfBundleReader(tmp_path / "m")
    assert time.process_time() - started < 10  # a second where nothing else runs


def test_an_archive_buys_no_more_than_its_own_size(tmp_path: Path) -> None:
    """A few kilobytes unpack to megabytes of objects."""
    entries, data = graph_of(b"\x0a\x00" * 1_000_000)
    write_raw(tmp_path / "m", [[(b"", header(1)), *entries]], data)
    path = tmp_path / "m.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name in ("m.index", "m.data-00000-of-00001"):
            archive.add(tmp_path / name, name)
    with pytest.raises(FormatError) as caught:
        TfBundleReader(path)
    assert str(caught.value).startswith(f"{path}: m.index in it: more than ")
    assert f"in a file of {path.stat().st_size:,} bytes" in str(caught.value)


@pytest.mark.parametrize(
    ("twice", "reason"),
    [
        (entry(FLOAT, (2,), size=8) + message((1, 3)), "field 1 occurs twice"),
        (entry(FLOAT, (1,), size=8) + message((2, message((2, message((1, 2)))))), "field 2 occurs twice"),
        (entry(FLOAT, (), size=4) + bytes([6 * 8]) + varint(CRC), "field 6 holds a number, not 4 bytes"),
        (message((1, 1), (2, message((2, message((1, 1), (1, 2))))), (5, 8)), "field 1 occurs twice"),
    ],
)
def test_what_two_readers_would_merge_or_skip_is_refused(twice: bytes, reason: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=reason):
        load(tmp_path, [(b"w", twice)], bytes(8))
