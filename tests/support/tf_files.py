"""TensorFlow checkpoints put together by hand, so that tests can also build what no writer would.

Nothing here uses ckptkit's own encoders: tables, messages and checksums are written a second time, plainly
(no prefix compression, one restart point per entry).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import cramjam
import google_crc32c
import numpy as np

from ckptkit.base.budget import Budget

MAGIC = 0xDB4775248B80FB57
TF_NUMBERS = {"float32": 1, "float64": 2, "int32": 3, "uint8": 4, "int64": 9, "bool": 10, "bfloat16": 14}


def plenty() -> Budget:
    """A budget that no test here uses up."""
    return Budget(1 << 40, ValueError)


def masked(data: bytes) -> int:
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) % 2**32


def varint(value: int) -> bytes:
    if 0 <= value < 128:
        return value.to_bytes(1, "little")
    value %= 2**64
    groups = []
    while True:
        groups.append(value % 128)
        value //= 128
        if not value:
            break
    return bytes([*(group + 128 for group in groups[:-1]), groups[-1]])


def message(*fields: tuple[int, int | bytes]) -> bytes:
    """Encode (number, value) fields; field 6 of an entry (crc32c) is the only fixed32, see `entry`."""
    encoded = b""
    for number, value in fields:
        if isinstance(value, bytes):
            encoded += varint(number * 8 + 2) + varint(len(value)) + value
        else:
            encoded += varint(number * 8) + varint(value)
    return encoded


def header(shards: int = 1, *extra: tuple[int, int | bytes]) -> bytes:
    return message((1, shards), (3, message((1, 1))), *extra)


def shape_message(shape: Sequence[int]) -> bytes:
    return message(*((2, message((1, size))) for size in shape))


def entry(
    dtype: int,
    shape: Sequence[int],
    *,
    offset: int = 0,
    size: int = 0,
    crc: int | None = None,
    shard: int = 0,
    slices: Iterable[Sequence[tuple[int, int] | None]] = (),
) -> bytes:
    """BundleEntryProto; a None extent in a slice means the whole axis."""
    encoded = message((1, dtype), (2, shape_message(shape)), (3, shard), (4, offset), (5, size))
    if crc is not None:
        encoded += bytes([6 * 8 + 5]) + struct.pack("<I", crc)
    for one in slices:
        extents = (b"" if extent is None else message((1, extent[0]), (2, extent[1])) for extent in one)
        encoded += message((7, message(*((1, extent) for extent in extents))))
    return encoded


def part_key(name: bytes, *extents: tuple[int, int]) -> bytes:
    """Key of a part whose numbers are all below 64 (one byte each in ordered code)."""
    return (
        b"\0"
        + name
        + b"\0\1"
        + (bytes([1, len(extents)]) if extents else b"\0")
        + bytes(128 + n for extent in extents for n in extent)
    )


def block(entries: Iterable[tuple[bytes, bytes]]) -> bytes:
    body, starts = b"", []
    for key, value in entries:
        starts.append(len(body))
        body += varint(0) + varint(len(key)) + varint(len(value)) + key + value
    starts = starts or [0]
    return body + struct.pack(f"<{len(starts) + 1}I", *starts, len(starts))


def table(
    blocks: Iterable[Iterable[tuple[bytes, bytes]]],
    *,
    snappy: bool = False,
    kind: int | None = None,
    metaindex: bytes | None = None,
) -> bytes:
    """A whole table; ``kind`` overrides the compression byte."""
    file, index = b"", []

    def append(raw: bytes, compress: bool) -> bytes:
        nonlocal file
        stored = bytes(cramjam.snappy.compress_raw(raw)) if compress else raw
        typed = stored + bytes([(1 if compress else 0) if kind is None else kind])
        handle = varint(len(file)) + varint(len(stored))
        file += typed + struct.pack("<I", masked(typed))
        return handle

    for entries in map(list, blocks):
        handle = append(block(entries), snappy)
        index.append((entries[-1][0] if entries else b"", handle))
    meta_handle = append(block([]) if metaindex is None else metaindex, snappy)
    footer = meta_handle + append(block(index), snappy)
    return file + footer + bytes(40 - len(footer)) + struct.pack("<Q", MAGIC)


def write_checkpoint(
    prefix: Path, tensors: Mapping[str, np.ndarray], *, snappy: bool = False, per_block: int = 1000
) -> None:
    """One shard, plain names, sorted."""
    data, entries = b"", [(b"", header())]
    for name in sorted(tensors, key=str.encode):
        array = np.ascontiguousarray(tensors[name])
        raw = array.tobytes()
        number = TF_NUMBERS[array.dtype.name]
        shape = tensors[name].shape
        entries.append(
            (name.encode(), entry(number, shape, offset=len(data), size=len(raw), crc=masked(raw)))
        )
        data += raw
    write_raw(
        prefix, [entries[i : i + per_block] for i in range(0, len(entries), per_block)], data, snappy=snappy
    )


def write_raw(
    prefix: Path, blocks: Iterable[Iterable[tuple[bytes, bytes]]], *shards: bytes, snappy: bool = False
) -> None:
    """Any index beside any data files."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    Path(f"{prefix}.index").write_bytes(table(blocks, snappy=snappy))
    for number, data in enumerate(shards):
        Path(f"{prefix}.data-{number:05d}-of-{len(shards):05d}").write_bytes(data)
