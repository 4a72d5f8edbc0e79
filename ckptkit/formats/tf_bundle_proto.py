"""The messages inside a TensorFlow checkpoint's index, and the keys of partitioned variables.

Sources: tensorflow/core/protobuf/tensor_bundle.proto, tensorflow/core/framework/{tensor_shape,
tensor_slice,versions}.proto, and the ordered code of tensorflow/core/lib/strings/ordered_code.cc.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from ckptkit.base.budget import Budget
from ckptkit.formats.json_text import JsonError, parse_json
from ckptkit.formats.protobuf_wire import (
    FIXED32,
    LENGTH_DELIMITED,
    VARINT,
    Field,
    WireError,
    bytes_field,
    fixed32_field,
    known_fields,
    number_field,
)

BUNDLE_VERSION = 1
"""TensorFlow's kTensorBundleVersion: what is written, and the newest a file may ask for."""
METADATA_FIELD = 21_001
"""Where ckptkit's own metadata travels in BundleHeaderProto; TensorFlow skips fields it does not know."""
_MAX_AXES = 254
"""TensorFlow's TensorShape::MaxDimensions()."""
FULL = -1
"""Length of a slice that takes a whole axis."""

Slice = tuple[tuple[int, int], ...]
"""Per axis, (start, length); (0, FULL) is the whole axis."""


@dataclass(frozen=True)
class BundleHeader:
    """BundleHeaderProto: the value of the empty key."""

    num_shards: int = 1
    big_endian: bool = False
    min_consumer: int = 0
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BundleEntry:
    """BundleEntryProto: what one tensor is and where its bytes lie."""

    dtype: int  # number in TensorFlow's DataType enum, as stored (100 more for a reference type)
    shape: tuple[int, ...]  # sizes of the axes
    shard: int = 0  # which data file, and the bytes' place in it
    offset: int = 0  # which data file, and the bytes' place in it
    size: int = 0  # which data file, and the bytes' place in it
    crc32c: int | None = None  # masked checksum of the bytes; None when the entry has none
    # for a partitioned variable, the parts that are stored under keys of their own; else empty
    slices: tuple[Slice, ...] = ()


_HEADER = {1: VARINT, 2: VARINT, 3: LENGTH_DELIMITED, METADATA_FIELD: LENGTH_DELIMITED}
_VERSION = {2: VARINT}
_ENTRY = {
    1: VARINT,
    2: LENGTH_DELIMITED,
    3: VARINT,
    4: VARINT,
    5: VARINT,
    6: FIXED32,
    7: LENGTH_DELIMITED,
}
_SLICES = (7,)
_SHAPE = {2: LENGTH_DELIMITED, 3: VARINT}
_AXES = (2,)
_AXIS = {1: VARINT}
_SLICE = {1: LENGTH_DELIMITED}
_EXTENTS = (1,)
_EXTENT = {1: VARINT, 2: VARINT}


def decode_header(data: bytes, budget: Budget) -> BundleHeader:
    """Read BundleHeaderProto; WireError when it is damaged."""
    shards = min_consumer = 0
    big_endian = False
    metadata: dict[str, str] = {}
    for item in known_fields(data, _HEADER, budget):
        if item.number == 1:
            shards = item.signed()
        elif item.number == 2:
            big_endian = item.unsigned() != 0
        elif item.number == 3:
            min_consumer = _only_number(item, _VERSION, budget)
        else:
            metadata = _decode_metadata(item, budget)
    return BundleHeader(shards, big_endian, min_consumer, metadata)


def _only_number(message: Field, wires: Mapping[int, int], budget: Budget) -> int:
    """The one field that is asked for of a message; 0 where it is not there."""
    value = 0
    for item in known_fields(message.payload(), wires, budget):
        value = item.signed()
    return value


def _decode_metadata(item: Field, budget: Budget) -> dict[str, str]:
    try:
        metadata = parse_json(item.text(), budget)
    except JsonError as error:
        raise WireError("the metadata is not JSON") from error
    if not all(isinstance(value, str) for value in metadata.values()):
        raise WireError("the metadata is not a table of strings")
    return metadata


def encode_header(header: BundleHeader) -> bytes:
    """Write BundleHeaderProto, little endian.

    Examples
    --------
    >>> encode_header(BundleHeader()).hex()
    '08011a020801'
    """
    encoded = number_field(1, header.num_shards) + bytes_field(3, number_field(1, BUNDLE_VERSION))
    if header.metadata:
        text = json.dumps(dict(header.metadata), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        encoded += bytes_field(METADATA_FIELD, text.encode())
    return encoded


def decode_entry(data: bytes, budget: Budget) -> BundleEntry:
    """Read BundleEntryProto; WireError when it is damaged. Ranges are the caller's to check."""
    numbers = {1: 0, 3: 0, 4: 0, 5: 0}
    shape: tuple[int, ...] = ()
    crc: int | None = None
    slices: list[Slice] = []
    for item in known_fields(data, _ENTRY, budget, repeated=_SLICES):
        if item.number in numbers:
            numbers[item.number] = item.signed()
        elif item.number == 2:
            shape = _decode_shape(item.payload(), budget)
        elif item.number == 6:
            crc = item.unsigned()
        else:
            budget.spend(nodes=1)
            slices.append(_decode_slice(item.payload(), budget))
    return BundleEntry(numbers[1], shape, numbers[3], numbers[4], numbers[5], crc, tuple(slices))


def _decode_shape(data: bytes, budget: Budget) -> tuple[int, ...]:
    shape: list[int] = []
    for item in known_fields(data, _SHAPE, budget, repeated=_AXES):
        if item.number == 2:
            if len(shape) == _MAX_AXES:
                raise WireError(f"more than {_MAX_AXES} axes")
            shape.append(_only_number(item, _AXIS, budget))
        elif item.unsigned():
            raise WireError("the shape is unknown")
    return tuple(shape)


def _decode_slice(data: bytes, budget: Budget) -> Slice:
    extents = []
    for item in known_fields(data, _SLICE, budget, repeated=_EXTENTS):
        budget.spend(nodes=1)
        extents.append(_decode_extent(item.payload(), budget))
    return tuple(extents)


def _decode_extent(data: bytes, budget: Budget) -> tuple[int, int]:
    start, length = 0, FULL
    for item in known_fields(data, _EXTENT, budget):
        if item.number == 1:
            start = item.signed()
        else:
            length = item.signed()
            if length < 0:
                raise WireError(f"a slice of {length} elements")
    if start < 0 or (length == FULL and start):
        raise WireError(f"a slice that begins at {start}")
    return start, length


def encode_entry(entry: BundleEntry) -> bytes:
    """Write BundleEntryProto of a whole (not partitioned) tensor.

    Examples
    --------
    >>> encode_entry(BundleEntry(9, (), offset=160, size=8, crc32c=1)).hex()
    '0809120020a00128083501000000'
    """
    shape = b"".join(bytes_field(2, number_field(1, size)) for size in entry.shape)
    return (
        number_field(1, entry.dtype)
        + bytes_field(2, shape)
        + number_field(3, entry.shard)
        + number_field(4, entry.offset)
        + number_field(5, entry.size)
        + fixed32_field(6, entry.crc32c or 0)
    )


def slice_key(name: bytes, part: Slice) -> bytes:
    r"""Key under which one part of a partitioned variable is stored.

    Follows EncodeTensorNameSlice of tensorflow/core/util/saved_tensor_slice_util.cc: 0, the name, the
    number of axes, and start and length of each axis, in an encoding that sorts like the values.

    Examples
    --------
    >>> slice_key(b"p/w", ((0, 4), (0, 4)))
    b'\x00p/w\x00\x01\x01\x02\x80\x84\x80\x84'
    """
    key = _ordered_unsigned(0) + _ordered_bytes(name) + _ordered_unsigned(len(part))
    return key + b"".join(_ordered_signed(start) + _ordered_signed(length) for start, length in part)


def sliced_name(key: bytes) -> bytes:
    r"""Name of the variable in a key that `slice_key` made.

    Examples
    --------
    >>> sliced_name(slice_key(b"p/w", ((0, 4), (0, 4))))
    b'p/w'
    """
    runs = key[1:].partition(b"\x00\x01")[0].split(b"\x00\xff")
    return b"\x00".join(run.replace(b"\xff\x00", b"\xff") for run in runs)


def _ordered_unsigned(value: int) -> bytes:
    size = (value.bit_length() + 7) // 8
    return bytes([size]) + value.to_bytes(size, "big")


def _ordered_bytes(value: bytes) -> bytes:
    # split at 00 first: each of the two escapes contains the byte that the other one escapes
    return b"\x00\xff".join(run.replace(b"\xff", b"\xff\x00") for run in value.split(b"\x00")) + b"\x00\x01"


def _ordered_signed(value: int) -> bytes:
    """``size`` leading ones, then the value in two's complement in the bits that are left."""
    bits = (~value if value < 0 else value).bit_length()
    size = bits // 7 + 1  # one sign bit, and seven bits of value per byte
    header = ((1 << size) - 1) << (7 * size)
    return ((value & ((1 << 8 * size) - 1)) ^ header).to_bytes(size, "big")
