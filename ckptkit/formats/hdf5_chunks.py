"""Datasets of an HDF5 file that are kept in chunks, packed or not: put together again in memory."""

from __future__ import annotations

import math
import zlib

from ckptkit.formats.hdf5_bytes import Hdf5Bytes
from ckptkit.formats.hdf5_datasets import FLETCHER32, SHUFFLE, Chunk, Dataset
from ckptkit.tensors import Array


def read_chunks(source: Hdf5Bytes, dataset: Dataset, name: str) -> Array:
    """Put a dataset in chunks together; what was never written is its fill value.

    Returns
    -------
    numpy.ndarray
        In the file's byte order.

    Raises
    ------
    FormatError
        Damaged chunks.
    """
    import numpy

    stored = dataset.dtype.numpy.newbyteorder(">" if dataset.big_endian else "<")
    count = math.prod(-(-size // step) for size, step in zip(dataset.shape, dataset.chunk, strict=False))
    whole = (numpy.empty if dataset.chunk and len(dataset.chunks) == count else numpy.zeros)(
        dataset.shape, stored
    )
    if dataset.fill:
        whole[...] = numpy.frombuffer(dataset.fill, stored)[0]
    for chunk in dataset.chunks:
        raw = _unpacked(source, dataset, chunk, name)
        block = numpy.frombuffer(raw, stored).reshape(dataset.chunk)
        place = tuple(
            slice(start, min(start + step, length))
            for start, step, length in zip(chunk.corner, dataset.chunk, dataset.shape, strict=True)
        )
        whole[place] = block[tuple(slice(0, one.stop - one.start) for one in place)]
    return whole


def _unpacked(source: Hdf5Bytes, dataset: Dataset, chunk: Chunk, name: str) -> bytes:
    """Bytes of a chunk's elements, no more than it may have."""
    size = math.prod(dataset.chunk) * dataset.dtype.itemsize
    first = source.start + chunk.address
    raw = source.file.data[first : first + chunk.packed]
    applied = [number for index, number in enumerate(dataset.filters) if not chunk.skipped >> index & 1]
    for position, number in reversed(list(enumerate(applied))):
        if number == FLETCHER32:
            raw, stored = raw[:-4], raw[-4:]
            if len(stored) < 4 or not _fletcher32_agrees(raw, int.from_bytes(stored, "little")):
                raise source.error(f"{name}: a chunk's checksum does not match", chunk.address)
        elif number == SHUFFLE:
            raw = _unshuffled(raw, dataset.dtype.itemsize)
        else:
            limit = size + (4 if FLETCHER32 in applied[:position] else 0)
            raw = _inflated(raw, limit)
    if len(raw) != size:
        raise source.error(f"{name}: a chunk does not unpack to {size} bytes", chunk.address)
    return raw


def _inflated(raw: bytes, limit: int) -> bytes:
    """Unpacked bytes; nothing where they are damaged or more than ``limit``."""
    unpacker = zlib.decompressobj()
    try:
        unpacked = unpacker.decompress(raw, limit + 1)
    except zlib.error:
        return b""
    return unpacked if unpacker.eof and len(unpacked) <= limit else b""


def _unshuffled(raw: bytes, itemsize: int) -> bytes:
    """Undo shuffle, which puts the first bytes of all elements first, then the second, and so on."""
    import numpy

    whole = len(raw) - len(raw) % itemsize
    planes = numpy.frombuffer(raw, numpy.uint8, whole).reshape(itemsize, -1)
    return planes.T.tobytes() + raw[whole:]


def _fletcher32_agrees(raw: bytes, stored: int) -> bool:
    """Whether a Fletcher checksum over big-endian words is the stored one, modulo 65535."""
    import numpy

    words = numpy.frombuffer(raw + bytes(len(raw) % 2), ">u2").astype(numpy.int64)
    low = high = 0
    for start in range(0, len(words), 1 << 20):
        block = words[start : start + (1 << 20)] % 65535
        weights = numpy.arange(len(block), 0, -1)
        high = (high + low * len(block) + int((block * weights).sum())) % 65535
        low = (low + int(block.sum())) % 65535
    return (stored & 0xFFFF) % 65535 == low and (stored >> 16) % 65535 == high
