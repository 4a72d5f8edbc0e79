from __future__ import annotations

import functools
import random
import struct
from pathlib import Path

import pytest

from ckptkit.base.budget import Budget
from ckptkit.base.errors import FormatError
from ckptkit.formats import leveldb_table
from ckptkit.formats.leveldb_table import build_table, mask, read_table
from tests.support import tf_files

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
    index_offset, index_size = leveldb_table._read_footer(NAME, written)[1]
    index = leveldb_table._read_block(NAME, written, index_offset, index_size, tf_files.plenty())
    separators = [key for key, _ in leveldb_table._block_entries(NAME, index, 0, tf_files.plenty())]
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
