from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptkit.formats.protobuf_wire import WireError
from ckptkit.formats.tf_bundle_proto import (
    FULL,
    METADATA_FIELD,
    BundleEntry,
    BundleHeader,
    decode_entry,
    decode_header,
    encode_entry,
    encode_header,
    slice_key,
)
from tests.support.tf_files import entry, header, message, plenty


def test_entry_with_every_field() -> None:
    data = entry(1, (3, 0, 7), offset=1 << 40, size=12, crc=0xFFFFFFFF, shard=3)
    assert decode_entry(data, plenty()) == BundleEntry(1, (3, 0, 7), 3, 1 << 40, 12, 0xFFFFFFFF, ())


def test_entry_of_a_partitioned_variable() -> None:
    data = entry(1, (10, 4), slices=[[(0, 4), None], [(4, 6), (0, 4)]])
    assert decode_entry(data, plenty()).slices == (((0, 4), (0, FULL)), ((4, 6), (0, 4)))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (message((2, message((3, 1)))), "shape is unknown"),
        (message((2, 5)), "where bytes belong"),
        (message((1, b"x")), "where a number belongs"),
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
