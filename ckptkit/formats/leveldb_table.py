"""LevelDB's sorted table, the container of a TensorFlow checkpoint's index: read and write.

Layout: data blocks, one metaindex block, one index block, a 48-byte footer. A block is a run of
prefix-compressed (key, value) entries, the restart points, and a trailer of one type byte and a masked
CRC-32C. Source: LevelDB's doc/table_format.md; TensorFlow's copy in tensorflow/core/lib/io/.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

from ckptkit.base.budget import Budget
from ckptkit.base.checksums import crc32c
from ckptkit.base.errors import FormatError
from ckptkit.formats.protobuf_wire import WireError, read_varint, varint

FOOTER_BYTES = 48
MAGIC = 0xDB4775248B80FB57
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
    metaindex, index = _read_footer(path, data)
    _read_block(path, data, *metaindex, budget)  # holds nothing we need, but its checksum must hold
    if metaindex[0] + metaindex[1] + TRAILER_BYTES != index[0]:
        raise FormatError(path, "the index block does not follow the one before it", offset=index[0])
    if index[0] + index[1] + TRAILER_BYTES != len(data) - FOOTER_BYTES:
        raise FormatError(path, "the index block does not end at the footer", offset=index[0])
    previous = separator = None
    block_end = 0
    for limit, handle in _block_entries(path, _read_block(path, data, *index, budget), index[0], budget):
        offset, size = _read_handle(path, handle, index[0])
        if offset != block_end:
            what = "blocks overlap or are out of order" if offset < block_end else "bytes between two blocks"
            raise FormatError(path, what, offset=min(offset, block_end))
        block_end = offset + size + TRAILER_BYTES
        for key, value in _block_entries(path, _read_block(path, data, offset, size, budget), offset, budget):
            if previous is not None and key <= previous:
                what = "a key occurs twice" if key == previous else "keys are out of order"
                raise FormatError(path, f"{what}: {_shown(key)}", offset=offset)
            if separator is not None and key <= separator:
                raise FormatError(path, f"the index hides the key {_shown(key)}", offset=offset)
            previous = key
            yield key, value
        if previous is not None and limit < previous:
            raise FormatError(path, f"the index hides the key {_shown(previous)}", offset=offset)
        separator = limit
    if block_end != metaindex[0]:
        raise FormatError(path, "bytes between two blocks", offset=min(block_end, metaindex[0]))


def _read_footer(path: Path, data: bytes) -> tuple[tuple[int, int], tuple[int, int]]:
    start = len(data) - FOOTER_BYTES
    if start < 0:
        raise FormatError(path, f"{len(data)} bytes are too few for a checkpoint index: truncated or not one")
    footer = data[start:]
    if int.from_bytes(footer[-8:], "little") != MAGIC:
        raise FormatError(
            path, "no table magic at the end: truncated, or not a checkpoint index", offset=start
        )
    try:
        numbers = []
        position = 0
        for _ in range(4):
            number, position = read_varint(footer[:-8], position)
            numbers.append(number)
        if footer[position:-8].strip(b"\0"):
            raise WireError("something behind its numbers")
    except WireError as error:
        raise FormatError(path, f"damaged footer: {error}", offset=start) from error
    return (numbers[0], numbers[1]), (numbers[2], numbers[3])


def _read_handle(path: Path, handle: bytes, block: int) -> tuple[int, int]:
    try:
        offset, position = read_varint(handle)
        size, position = read_varint(handle, position)
        if position != len(handle):
            raise WireError("something behind its numbers")
    except WireError as error:
        raise FormatError(path, f"damaged block handle: {error}", offset=block) from error
    return offset, size


def _read_block(path: Path, data: bytes, offset: int, size: int, budget: Budget) -> bytes:
    """One block, its checksum compared and its compression undone."""
    end = offset + size
    if end + TRAILER_BYTES > len(data) - FOOTER_BYTES:
        raise FormatError(
            path, f"a block of {size} bytes runs past the end: truncated or damaged", offset=offset
        )
    stored = int.from_bytes(data[end + 1 : end + TRAILER_BYTES], "little")
    if masked_crc32c(data[offset : end + 1]) != stored:
        raise FormatError(path, "block checksum (crc32c) differs: damaged", offset=offset)
    compression, block = data[end], data[offset:end]
    if compression == _NO_COMPRESSION:
        return block
    if compression == _SNAPPY:
        return _undo_snappy(path, block, offset, budget)
    raise FormatError(path, f"unknown block compression {compression}", offset=offset)


def _undo_snappy(path: Path, block: bytes, offset: int, budget: Budget) -> bytes:
    import cramjam

    try:
        size, _ = read_varint(block)
    except WireError as error:
        raise FormatError(path, f"damaged snappy block: {error}", offset=offset) from error
    if size > MAX_BLOCK_BYTES or size > _SNAPPY_MAX_RATIO * len(block):
        raise FormatError(path, f"a snappy block of {len(block)} bytes claims to hold {size}", offset=offset)
    budget.spend(nbytes=size)
    try:
        return bytes(cramjam.snappy.decompress_raw(block))
    except cramjam.DecompressionError as error:
        raise FormatError(path, f"damaged snappy block: {error}", offset=offset) from error


def _block_entries(path: Path, block: bytes, offset: int, budget: Budget) -> Iterator[tuple[bytes, bytes]]:
    """Undo the prefix compression of one block that begins at ``offset`` in the file.

    At every restart point a key is whole: readers search there.
    """
    restarts = int.from_bytes(block[-4:], "little") if len(block) >= 4 else 0
    end = len(block) - 4 - 4 * restarts
    if restarts == 0 or end < 0:
        raise FormatError(
            path, f"a block of {len(block)} bytes claims {restarts} restart points", offset=offset
        )
    key, position, restart = b"", 0, end
    try:
        while position < end:
            at = position
            is_start = restart < len(block) - 4 and at == int.from_bytes(
                block[restart : restart + 4], "little"
            )
            restart += 4 * is_start
            shared, position = read_varint(block, position)
            unshared, position = read_varint(block, position)
            size, position = read_varint(block, position)
            if shared > (0 if is_start else len(key)) or unshared + size > end - position:
                raise FormatError(path, f"damaged entry at byte {at} of a block", offset=offset)
            budget.spend(steps=_ENTRY_STEPS, nodes=_ENTRY_NODES, names=shared + unshared + size)
            key = key[:shared] + block[position : position + unshared]
            position += unshared
            yield key, block[position : position + size]
            position += size
    except WireError as error:
        raise FormatError(path, f"damaged entry in a block: {error}", offset=offset) from error
    if restart != len(block) - 4 and block[restart:] != _EMPTY:
        raise FormatError(path, "a restart point of a block is not one of its entries", offset=offset)


def build_table(items: Iterable[tuple[bytes, bytes]], *, block_bytes: int = BLOCK_BYTES) -> bytes:
    """Write a table, uncompressed, byte for byte as TensorFlow's own table builder does.

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
    return bytes(table + footer.ljust(FOOTER_BYTES - 8, b"\0") + MAGIC.to_bytes(8, "little"))


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
    return repr(key[:80].decode("utf-8", "backslashreplace"))
