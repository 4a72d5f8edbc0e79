"""The index of a TensorFlow checkpoint, from its blocks to its tensors: a sorted table of messages.

The container is LevelDB's sorted table: data blocks, one metaindex block, one index block, a 48-byte footer.
A block is a run of prefix-compressed (key, value) entries, the restart points, and a trailer of one type byte
and a masked CRC-32C. Source: LevelDB's doc/table_format.md; TensorFlow's copy in tensorflow/core/lib/io/.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ckptkit.base.budget import Budget
from ckptkit.base.checksums import crc32c
from ckptkit.base.errors import FormatError, NotFoundError
from ckptkit.base.files import storage_error
from ckptkit.base.tensors import KNOWN, DType
from ckptkit.base.text import counted
from ckptkit.formats.base import TABLE_MARK
from ckptkit.formats.json_text import JsonError, parse_json
from ckptkit.formats.protobuf_wire import (
    FIXED,
    INT,
    TEXT,
    WireError,
    bytes_field,
    fixed32_field,
    many,
    message,
    number_field,
    read_varint,
    varint,
)

FOOTER_BYTES = 48
TRAILER_BYTES = 5
BLOCK_BYTES = 256 << 10
"""A data block is closed when it reaches this size (TensorFlow's table::Options::block_size)."""
RESTART_INTERVAL = 16

MAX_BLOCK_BYTES = 64 << 20
"""One block after snappy is undone; writers close a block long before, unless one entry is that large."""

_NO_COMPRESSION, _SNAPPY = 0, 1
_ENTRY_STEPS, _ENTRY_NODES = 2, 1
_SNAPPY_MAX_RATIO = 32  # the format's own limit: a 3-byte copy yields at most 64 bytes
_MASK_DELTA = 0xA282EAD8
_EMPTY = bytes([0, 0, 0, 0, 1, 0, 0, 0])
"""The restart points of a block without entries."""


def mask(crc: int) -> int:
    """LevelDB's masked form of a CRC: rotated right by 15 bits plus a constant.

    Examples
    --------
    >>> hex(mask(0))
    '0xa282ead8'
    """
    return ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF


def masked_crc32c(data: bytes) -> int:
    """Masked CRC-32C of some bytes.

    Examples
    --------
    >>> masked_crc32c(b"123456789") == mask(0xE3069283)
    True
    """
    return mask(crc32c(data))


def read_table(path: Path, data: bytes, budget: Budget) -> Iterator[tuple[bytes, bytes]]:
    """Walk over a table's entries; keys are strictly increasing in byte order.

    Its blocks follow each other from the first byte to the footer, as every writer puts them, and the keys of
    its index separate them: whoever looks a key up finds what is read here.
    """
    return Table(path, data, budget).items()


class Table:
    """The blocks of a table, each of which is checked and unpacked when its entries are asked for."""

    def __init__(
        self, path: Path, data: Any, budget: Budget, *, max_block_bytes: int = MAX_BLOCK_BYTES
    ) -> None:
        self._path = path
        self._data = data
        self._budget = budget
        self._max_block_bytes = max_block_bytes

    def _error(self, reason: str, offset: int | None = None) -> FormatError:
        return FormatError(self._path, reason, offset=offset)

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Every key with its value."""
        previous = separator = None
        for limit, offset, size in self.blocks():
            for key, value in self.entries(offset, size):
                if previous is not None and key <= previous:
                    what = "a key occurs twice" if key == previous else "keys are out of order"
                    raise self._error(f"{what}: {_shown(key)}", offset)
                if separator is not None and key <= separator:
                    raise self._error(f"the index hides the key {_shown(key)}", offset)
                previous = key
                yield key, value
            if previous is not None and limit < previous:
                raise self._error(f"the index hides the key {_shown(previous)}", offset)
            separator = limit

    def blocks(self) -> Iterator[tuple[bytes, int, int]]:
        """The blocks of entries, back to back: a key that none in the block is behind, offset and size."""
        metaindex, index = self.footer()
        self.block(*metaindex)  # holds nothing we need, but its checksum must hold
        if metaindex[0] + metaindex[1] + TRAILER_BYTES != index[0]:
            raise self._error("the index block does not follow the one before it", index[0])
        if index[0] + index[1] + TRAILER_BYTES != len(self._data) - FOOTER_BYTES:
            raise self._error("the index block does not end at the footer", index[0])
        block_end = 0
        for limit, handle in self.entries(*index):
            offset, size = self._numbers(handle, 2, "block handle", index[0])
            if offset != block_end:
                overlap = offset < block_end
                what = "blocks overlap or are out of order" if overlap else "bytes between two blocks"
                raise self._error(what, min(offset, block_end))
            block_end = offset + size + TRAILER_BYTES
            yield limit, offset, size
        if block_end != metaindex[0]:
            raise self._error("bytes between two blocks", min(block_end, metaindex[0]))

    def footer(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Offset and size of the metaindex block and of the index block."""
        start = len(self._data) - FOOTER_BYTES
        if start < 0:
            raise self._error(
                f"{len(self._data)} bytes are too few for a checkpoint index: truncated or not one"
            )
        footer = bytes(self._data[start:])
        if footer[-8:] != TABLE_MARK:
            raise self._error("no table magic at the end: truncated, or not a checkpoint index", start)
        numbers = self._numbers(footer[:-8], 4, "footer", start)
        return (numbers[0], numbers[1]), (numbers[2], numbers[3])

    def _numbers(self, raw: bytes, count: int, what: str, offset: int) -> list[int]:
        """The numbers of a footer, which zeros may follow, or of a handle."""
        numbers, position = [], 0
        try:
            for _ in range(count):
                number, position = read_varint(raw, position)
                numbers.append(number)
        except WireError as error:
            raise self._error(f"damaged {what}: {error}", offset) from error
        if raw[position:].strip(b"\0") if what == "footer" else raw[position:]:
            raise self._error(f"damaged {what}: unexpected bytes after its numbers", offset)
        return numbers

    def block(self, offset: int, size: int) -> bytes:
        """One block, its checksum compared and its compression undone."""
        data, end = self._data, offset + size
        if end + TRAILER_BYTES > len(data) - FOOTER_BYTES:
            raise self._error(f"a block of {size} bytes runs past the end: truncated or damaged", offset)
        stored = int.from_bytes(data[end + 1 : end + TRAILER_BYTES], "little")
        if masked_crc32c(data[offset : end + 1]) != stored:
            raise self._error("block checksum (crc32c) differs: damaged", offset)
        block: bytes = data[offset:end]
        compression = data[end]
        if compression == _NO_COMPRESSION:
            return block
        if compression == _SNAPPY:
            return self._undo_snappy(block, offset)
        raise self._error(f"unknown block compression {compression}", offset)

    def _undo_snappy(self, block: bytes, offset: int) -> bytes:
        import cramjam

        try:
            size, _ = read_varint(block)
            if size > self._max_block_bytes or size > _SNAPPY_MAX_RATIO * len(block):
                raise self._error(f"a snappy block of {len(block)} bytes claims to hold {size}", offset)
            self._budget.spend(nbytes=size)
            return bytes(cramjam.snappy.decompress_raw(block))
        except (WireError, cramjam.DecompressionError) as error:
            raise self._error(f"damaged snappy block: {error}", offset) from error

    def entries(self, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
        """The entries of one block, their prefix compression undone."""
        block = self.block(offset, size)
        for key, start, stop in self.places(block, offset):
            yield key, block[start:stop]

    def places(self, block: bytes, offset: int) -> Iterator[tuple[bytes, int, int]]:
        """The keys in a block and where their values are in it.

        At every restart point a key is whole: readers search there.
        """
        restarts = int.from_bytes(block[-4:], "little") if len(block) >= 4 else 0
        last = len(block) - 4
        end = last - 4 * restarts
        if restarts == 0 or end < 0:
            raise self._error(
                f"a block of {len(block)} bytes claims {counted(restarts, 'restart point')}", offset
            )
        key, position, restart = b"", 0, end
        try:
            while position < end:
                at = position
                is_start = restart < last and at == int.from_bytes(block[restart : restart + 4], "little")
                restart += 4 * is_start
                shared, position = read_varint(block, position)
                unshared, position = read_varint(block, position)
                size, position = read_varint(block, position)
                if shared > (0 if is_start else len(key)) or unshared + size > end - position:
                    raise self._error(f"damaged entry at byte {at} of a block", offset)
                self._budget.spend(steps=_ENTRY_STEPS, nodes=_ENTRY_NODES, names=shared + unshared)
                key = key[:shared] + block[position : position + unshared]
                position += unshared + size
                yield key, position - size, position
        except WireError as error:
            raise self._error(f"damaged entry in a block: {error}", offset) from error
        if restart != last and block[restart:] != _EMPTY:
            raise self._error("a restart point of a block is not one of its entries", offset)


def build_table(items: Iterable[tuple[bytes, bytes]], *, block_bytes: int = BLOCK_BYTES) -> bytes:
    """Write a table, uncompressed, byte for byte as TensorFlow's own builder does; keys strictly increase.

    Examples
    --------
    >>> table = build_table([(b"", b"header"), (b"w", b"entry")])
    >>> list(read_table(Path("m.index"), table, Budget(len(table), ValueError)))
    [(b'', b'header'), (b'w', b'entry')]
    """
    table = bytearray()
    index = _BlockBuilder(restart_interval=1)
    block = _BlockBuilder(RESTART_INTERVAL)
    last: bytes | None = None
    closed: bytes | None = None  # handle of a block that still lacks its index entry
    for key, value in items:
        if last is not None:
            if key <= last:
                raise ValueError(f"keys must increase: {key!r} after {last!r}")
            if closed is not None:
                index.add(_separator(last, key), closed)
                closed = None
        block.add(key, value)
        last = key
        if block.size >= block_bytes:
            closed = _append_block(table, block.finish())
            block = _BlockBuilder(RESTART_INTERVAL)
    if not block.empty:
        closed = _append_block(table, block.finish())
    metaindex = _append_block(table, _BlockBuilder(RESTART_INTERVAL).finish())
    if closed is not None and last is not None:
        index.add(_successor(last), closed)
    footer = metaindex + _append_block(table, index.finish())
    return bytes(table + footer.ljust(FOOTER_BYTES - 8, b"\0") + TABLE_MARK)


class _BlockBuilder:
    """Entries of one block, each key without the prefix it shares with the one before."""

    def __init__(self, restart_interval: int) -> None:
        self._interval = restart_interval
        self._buffer = bytearray()
        self._restarts = [0]
        self._since_restart = 0
        self._last = b""

    @property
    def empty(self) -> bool:
        return not self._buffer

    @property
    def size(self) -> int:
        return len(self._buffer) + 4 * len(self._restarts) + 4

    def add(self, key: bytes, value: bytes) -> None:
        shared = 0
        if self._since_restart < self._interval:
            shared = _shared_prefix(self._last, key)
        else:
            self._restarts.append(len(self._buffer))
            self._since_restart = 0
        self._buffer += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        self._last = key
        self._since_restart += 1

    def finish(self) -> bytes:
        return bytes(self._buffer) + struct.pack(
            f"<{len(self._restarts) + 1}I", *self._restarts, len(self._restarts)
        )


def _append_block(table: bytearray, block: bytes) -> bytes:
    """Append a block with its trailer; returns its handle."""
    handle = varint(len(table)) + varint(len(block))
    typed = block + bytes([_NO_COMPRESSION])
    table += typed + masked_crc32c(typed).to_bytes(4, "little")
    return handle


def _shared_prefix(first: bytes, second: bytes) -> int:
    shortest = min(len(first), len(second))
    return next((i for i in range(shortest) if first[i] != second[i]), shortest)


def _separator(low: bytes, high: bytes) -> bytes:
    """Shorten ``low`` to a key that is >= it and < ``high``, as LevelDB's byte comparator does."""
    shared = _shared_prefix(low, high)
    if shared < min(len(low), len(high)) and low[shared] < 0xFF and low[shared] + 1 < high[shared]:
        return low[:shared] + bytes([low[shared] + 1])
    return low


def _successor(key: bytes) -> bytes:
    """Shorten ``key`` to one that is >= it, as LevelDB's byte comparator does."""
    first = next((i for i, byte in enumerate(key) if byte != 0xFF), None)
    return key if first is None else key[:first] + bytes([key[first] + 1])


def _shown(key: bytes) -> str:
    return repr(key[:200].decode("utf-8", "backslashreplace"))


# ----------------------------------------------------------------------------------------------------
# The messages in the table, and the keys of partitioned variables. Sources:
# tensorflow/core/protobuf/tensor_bundle.proto, tensorflow/core/framework/{tensor_shape,tensor_slice,
# versions}.proto, and the ordered code of tensorflow/core/lib/strings/ordered_code.cc.

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
    big_endian: int = 0
    min_consumer: int = 0
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BundleEntry:
    """BundleEntryProto: what one tensor is and where its bytes are."""

    dtype: int = 0  # number in TensorFlow's DataType enum, as stored (100 more for a reference type)
    shape: tuple[int, ...] = ()
    shard: int = 0
    offset: int = 0  # in its data file, in bytes
    size: int = 0
    crc32c: int | None = None  # masked
    slices: Sequence[Slice] = ()  # parts of a partitioned variable, each stored under a key of its own


def _shape(axes: Sequence[int] = (), unknown: int = 0) -> tuple[int, ...]:
    if unknown:
        raise WireError("the shape is unknown")
    return tuple(axes)


def _extent(start: int = 0, length: int | None = None) -> tuple[int, int]:
    if length is not None and length < 0:
        raise WireError(f"a slice of {counted(length, 'element')}")
    if start < 0 or (length is None and start):
        raise WireError(f"a slice that begins at {start}")
    return start, FULL if length is None else length


VERSION = message(lambda least=0: least, {2: ("least", INT)})
_HEADER = message(
    partial(dict, num_shards=0),
    {
        1: ("num_shards", INT),
        2: ("big_endian", INT),
        3: ("min_consumer", VERSION),
        METADATA_FIELD: ("metadata", TEXT),
    },
)
_AXIS = message(lambda size=0: size, {1: ("size", INT)})
SHAPE = message(_shape, {2: ("axes", many(_AXIS, most=_MAX_AXES)), 3: ("unknown", INT)})
_EXTENT = message(_extent, {1: ("start", INT), 2: ("length", INT)})
SLICE = message(lambda extents=(): tuple(extents), {1: ("extents", many(_EXTENT, nodes=1))})
_ENTRY = message(
    BundleEntry,
    {
        1: ("dtype", INT),
        2: ("shape", SHAPE),
        3: ("shard", INT),
        4: ("offset", INT),
        5: ("size", INT),
        6: ("crc32c", FIXED),
        7: ("slices", many(SLICE, nodes=1)),
    },
)


def decode_header(data: bytes, budget: Budget) -> BundleHeader:
    """Read BundleHeaderProto; WireError when it is damaged."""
    found = _HEADER.read(data, budget)
    if "metadata" in found:
        try:
            found["metadata"] = parse_json(found["metadata"], budget)
        except JsonError as error:
            raise WireError("the metadata is not JSON") from error
        if not all(isinstance(value, str) for value in found["metadata"].values()):
            raise WireError("the metadata is not a table of strings")
    return BundleHeader(**found)


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
    entry: BundleEntry = _ENTRY.read(data, budget)
    return entry


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


# ----------------------------------------------------------------------------------------------------
# Which tensors there are and where their bytes are, checked against each other and the data files.

MAX_INDEX_BYTES = 64 << 20
"""An index has about 100 bytes a tensor; this is room for more than any checkpoint has."""
MAX_RANK = 32
"""What numpy 1 can hold."""
MAX_SHARDS = 100_000
"""Data files are numbered with five digits."""
_TENSOR_NODES, _PART_NODES = 3, 3
_BOX_STEPS, _PAIR_STEPS = 8, 4
CONTROL = re.compile(r"[\x00-\x1f\x7f]")

_REFERENCE = 100  # DT_FLOAT_REF = DT_FLOAT + 100 and so on: how TF1 typed mutable variables
_BY_NUMBER = {dtype.tf: dtype for dtype in KNOWN if dtype.tf is not None}
NO_NUMBERS = {7: "strings", 20: "a resource", 21: "a variant"}
"""Types whose elements are of any length: no tensor of a model is made of them."""


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes of a tensor, or of one box of a partitioned one, in a data file."""

    shard: int
    offset: int  # in its data file, in bytes
    size: int
    crc32c: int | None  # masked
    start: tuple[int, ...]  # where the box begins in the tensor
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor as the index describes it."""

    key: str
    dtype: DType | None  # None for strings, variants and resources
    type_name: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...]
    gap: str = ""  # what of a partitioned variable is not in the checkpoint

    @property
    def place(self) -> tuple[int, int]:
        """Shard and offset of the first part, to sort by."""
        return min(((part.shard, part.offset) for part in self.parts), default=(0, 0))

    @property
    def fingerprint(self) -> Hashable:
        """What tensors of the same type, shape and bytes have in common; None without checksums."""
        parts = tuple((part.start, part.shape, part.crc32c) for part in self.parts)
        known = not self.gap and all(part.crc32c is not None for part in self.parts)
        return (self.type_name, self.shape, parts) if known else None


@dataclass(frozen=True)
class BundleIndex:
    """Header and tensors of a checkpoint by key; by name, how many stored parts no tensor lists."""

    header: BundleHeader
    tensors: Mapping[str, StoredTensor]
    unused_parts: Mapping[str, int]

    def notes(self) -> list[str]:
        """What is unusual, one sentence each."""
        return [
            f"{counted(count, 'stored part')} of {name!r} not listed among its parts"
            for name, count in self.unused_parts.items()
            if name in self.tensors
        ]

    def others(self, *, but: str) -> dict[str, str]:
        """What is not a tensor of numbers, by key, except one key."""
        return {
            key: f"{tensor.type_name} {list(tensor.shape)}"
            for key, tensor in self.tensors.items()
            if tensor.dtype is None and key != but
        }


def index_path(prefix: Path) -> Path:
    """``<prefix>.index``."""
    return prefix.with_name(prefix.name + ".index")


def shard_path(prefix: Path, shard: int, num_shards: int) -> Path:
    """``<prefix>.data-NNNNN-of-MMMMM``.

    Examples
    --------
    >>> shard_path(Path("model.ckpt"), 0, 1).name
    'model.ckpt.data-00000-of-00001'
    """
    return prefix.with_name(f"{prefix.name}.data-{shard:05d}-of-{num_shards:05d}")


def load_index(prefix: Path, budget: Budget) -> BundleIndex:
    """Read ``<prefix>.index`` within a budget and check it against the data files beside it."""
    return _IndexFile(index_path(prefix), budget).checked(prefix)


def count_of_data_files(index: Path) -> int:
    """How many data files an index says that there are."""
    return _IndexFile(index, None).header.num_shards


class _IndexFile:
    """An index being read: its header at once, its entries when they are checked."""

    def __init__(self, path: Path, budget: Budget | None) -> None:
        self._path = path
        data = self._bytes()
        self._budget = budget or Budget(len(data), partial(FormatError, path))
        self._table = read_table(path, data, self._budget)
        self.header = self._header(*next(self._table, (b"?", b"")))

    def _bytes(self) -> bytes:
        try:
            with self._path.open("rb") as file:
                data = file.read(MAX_INDEX_BYTES + 1)
        except FileNotFoundError as error:
            hint = "a TensorFlow checkpoint needs its .index"
            raise NotFoundError(f"{self._path}: no such file", hint=hint) from error
        except OSError as error:
            raise storage_error(error, self._path) from error
        if len(data) > MAX_INDEX_BYTES:
            raise self._error(f"larger than {MAX_INDEX_BYTES} bytes: no index of a checkpoint")
        return data

    def _error(self, reason: str, *, key: bytes | None = None, hint: str | None = None) -> FormatError:
        return FormatError(self._path, reason if key is None else f"entry {_shown(key)}: {reason}", hint=hint)

    def _header(self, key: bytes, value: bytes) -> BundleHeader:
        """Read the header: the first entry, which has the empty key."""
        if key:
            raise self._error("has no header entry: a table, but not of a checkpoint")
        try:
            header = decode_header(value, self._budget)
        except WireError as error:
            raise self._error(f"damaged header: {error}") from error
        if header.big_endian:
            raise self._error(
                "written on a big-endian machine, which is not supported",
                hint="load and save it with TensorFlow on a little-endian machine",
            )
        if header.min_consumer > BUNDLE_VERSION:
            raise self._error(f"asks for checkpoint version {header.min_consumer}, {BUNDLE_VERSION} is known")
        if not 0 < header.num_shards <= MAX_SHARDS:
            raise self._error(f"claims {counted(header.num_shards, 'data file')}")
        return header

    def checked(self, prefix: Path) -> BundleIndex:
        """Every tensor, once all entries are sound and fit the data files."""
        self._entries = {key: self._entry(key, value) for key, value in self._table}
        part_keys = {key for key in self._entries if key.startswith(b"\0")}
        self._unused = set(part_keys)
        stored = [self._stored(key, entry) for key, entry in self._entries.items() if key not in part_keys]
        self._check_spans(prefix)
        unused = Counter(self._name(sliced_name(key)) for key in self._entries if key in self._unused)
        return BundleIndex(self.header, {tensor.key: tensor for tensor in stored}, unused)

    def _entry(self, key: bytes, value: bytes) -> BundleEntry:
        self._budget.spend(nodes=_TENSOR_NODES)
        try:
            entry = decode_entry(value, self._budget)
        except WireError as error:
            raise self._error(str(error), key=key) from error
        dtype, shape = type_of(entry.dtype), list(entry.shape)
        itemsize = dtype.itemsize if dtype else 0
        try:
            refuse_impossible(entry.dtype, entry.shape, itemsize)
        except WireError as error:
            raise self._error(str(error), key=key) from error
        expected = math.prod(shape) * itemsize
        if not entry.slices and itemsize and entry.size != expected:
            raise self._error(f"{entry.size} bytes, {dtype} of shape {shape} takes {expected}", key=key)
        return entry

    def _stored(self, key: bytes, entry: BundleEntry) -> StoredTensor:
        name, dtype, shape = self._name(key), type_of(entry.dtype), entry.shape
        type_name = dtype.name if dtype else NO_NUMBERS[entry.dtype % _REFERENCE]
        if not entry.slices:
            whole = _part(entry, (0,) * len(shape))
            return StoredTensor(name, dtype, type_name, shape, (whole,))
        parts = list(self._parts(key, name, entry))
        boxes = [(part.start, part.shape) for part in parts if math.prod(part.shape)]
        if overlap(boxes, len(shape), self._budget):
            raise self._error(f"partitioned variable {name!r}: its parts overlap")
        # disjoint parts that are together as large as the tensor are all of it
        total, size = sum(math.prod(part) for _, part in boxes), math.prod(shape)
        gap = f"parts are missing: {total:,} of {counted(size, 'element')} are there" if total < size else ""
        return StoredTensor(name, dtype, type_name, shape, tuple(parts), gap)

    def _parts(self, key: bytes, name: str, entry: BundleEntry) -> Iterator[Part]:
        """The parts of a partitioned variable that the checkpoint has."""
        room = math.prod(entry.shape)
        for piece in entry.slices:
            self._budget.spend(steps=_BOX_STEPS, nodes=_PART_NODES, names=len(key))
            part_key = slice_key(key, piece)
            try:
                start, shape = box_of(piece, entry.shape)
            except WireError as error:
                raise self._error(f"partitioned variable {name!r}: {error}") from error
            room -= math.prod(shape)
            if room < 0:  # whether they are there or not
                raise self._error(f"partitioned variable {name!r}: its parts overlap")
            stored = self._entries.get(part_key)
            if stored is None:
                continue
            if stored.slices or (stored.dtype - entry.dtype) % _REFERENCE or stored.shape != shape:
                raise self._error(f"partitioned variable {name!r}: its part {_bounds(piece)} does not fit in")
            self._unused.discard(part_key)
            yield _part(stored, start)

    def _check_spans(self, prefix: Path) -> None:
        """Every tensor is inside a data file that exists, and no two share a byte."""
        count = self.header.num_shards
        entries = ((entry, key) for key, entry in self._entries.items() if not entry.slices)
        lengths: dict[int, int] = {}
        previous = (-1, 0, b"")  # shard, end, key
        for shard, offset, size, key in sorted((e.shard, e.offset, e.size, key) for e, key in entries):
            if not 0 <= shard < count:
                raise self._error(f"data file {shard} of {count}", key=key)
            if shard not in lengths:
                lengths[shard] = self._length(shard_path(prefix, shard, count))
            if offset < 0 or size < 0 or offset + size > lengths[shard]:
                raise FormatError(
                    shard_path(prefix, shard, count),
                    f"truncated or not of this index: {_shown(key)} takes bytes {offset} to {offset + size}, "
                    f"the file has {lengths[shard]}",
                )
            if size == 0:
                continue
            if shard == previous[0] and offset < previous[1]:
                raise self._error(f"entries {_shown(previous[2])} and {_shown(key)} share bytes")
            previous = (shard, offset + size, key)

    def _length(self, shard: Path) -> int:
        try:
            return shard.stat().st_size
        except FileNotFoundError as error:
            hint = "put it beside the index, or fetch it again"
            raise self._error(f"its data file {shard.name} is missing", hint=hint) from error
        except OSError as error:
            raise storage_error(error, shard) from error

    def _name(self, key: bytes) -> str:
        try:
            name = key.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self._error(f"a tensor's name is not UTF-8: {_shown(key)}") from error
        if CONTROL.search(name):
            raise self._error(f"a tensor's name has control characters: {_shown(key)}")
        return name


def refuse_impossible(number: int, shape: Sequence[int], itemsize: int) -> None:
    """Refuse a number that no type has, and a shape that no tensor can have; WireError."""
    if not 0 < number < 2 * _REFERENCE or number == _REFERENCE:
        raise WireError(f"no element type has the number {number}")
    if len(shape) > MAX_RANK:
        raise WireError(f"{counted(len(shape), 'axis')}, at most {MAX_RANK} are supported")
    # zero sizes left out, as numpy does: an empty tensor's other axes must be addressable too
    if min(shape, default=0) < 0 or math.prod(filter(None, shape)) * max(itemsize, 1) >= 1 << 62:
        raise WireError(f"impossible shape {list(shape)}")


def type_of(number: int) -> DType | None:
    """The type of a number; opaque and of unknown size where it is not known here."""
    number %= _REFERENCE
    if number in NO_NUMBERS:
        return None
    return _BY_NUMBER.get(number) or DType(f"DataType {number}", 0, "opaque", tf=number)


def _part(entry: BundleEntry, start: tuple[int, ...]) -> Part:
    return Part(entry.shard, entry.offset, entry.size, entry.crc32c, start, entry.shape)


Box = tuple[tuple[int, ...], tuple[int, ...]]
"""Where a part begins in its tensor, and its shape."""


def box_of(piece: Slice, shape: tuple[int, ...]) -> Box:
    """The box of a part inside its tensor; WireError where it leaves it.

    Examples
    --------
    >>> box_of(((0, FULL), (2, 3)), (4, 8))
    ((0, 2), (4, 3))
    """
    if len(piece) != len(shape):
        raise WireError(f"a part has {counted(len(piece), 'axis')}, not {len(shape)}")
    start = tuple(begin for begin, _ in piece)
    size = tuple(axis if count == FULL else count for (_, count), axis in zip(piece, shape, strict=True))
    if any(begin + length > axis for begin, length, axis in zip(start, size, shape, strict=True)):
        raise WireError(f"a part {_bounds(piece)} leaves {list(shape)}")
    return start, size


def overlap(boxes: list[Box], axes: int, budget: Budget) -> bool:
    """Whether boxes meet: of those that begin before one of them ends along the axis most cut, each pair."""
    budget.spend(steps=axes * len(boxes))
    cut = max(range(axes), key=lambda axis: len({start[axis] for start, _ in boxes}), default=0)
    boxes = sorted(boxes, key=lambda box: box[0][cut : cut + 1])
    for number, (start, size) in enumerate(boxes):
        end = sum(start[cut : cut + 1]) + sum(size[cut : cut + 1])
        for later in range(number + 1, len(boxes)):
            budget.spend(steps=_PAIR_STEPS + axes)
            if boxes[later][0][cut : cut + 1] >= (end,):
                break
            if _meet((start, size), boxes[later]):
                return True
    return False


def _meet(first: Box, second: Box) -> bool:
    axes = zip(*first, *second, strict=True)
    return all(a < b + b_size and b < a + a_size for a, a_size, b, b_size in axes)


def _bounds(piece: Slice) -> str:
    return ",".join("all" if length == FULL else f"{start}:{start + length}" for start, length in piece)
