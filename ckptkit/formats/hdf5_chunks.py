"""Datasets of an HDF5 file that are kept in chunks, packed or not: put together again in memory."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator

from ckptkit.base.tensors import Array
from ckptkit.formats.hdf5_bytes import Hdf5Bytes
from ckptkit.formats.hdf5_datasets import DEFLATE, FLETCHER32, SHUFFLE, Chunk, Dataset


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
    if not dataset.chunks:
        return whole
    block = whole if dataset.chunk == dataset.shape else numpy.empty(dataset.chunk, stored)
    target = block.reshape(-1).view(numpy.uint8)
    for chunk in dataset.chunks:
        _unpack(source, dataset, chunk, name, target)
        if block is not whole:
            place = tuple(
                slice(start, min(start + step, length))
                for start, step, length in zip(chunk.corner, dataset.chunk, dataset.shape, strict=True)
            )
            whole[place] = block[tuple(slice(0, one.stop - one.start) for one in place)]
    return whole


def _unpack(source: Hdf5Bytes, dataset: Dataset, chunk: Chunk, name: str, target: Array) -> None:
    """Unpack a chunk's elements into the bytes of ``target``, which is as long as they should be."""
    applied = [number for index, number in enumerate(dataset.filters) if not chunk.skipped >> index & 1]
    start, nbytes = source.start + chunk.address, chunk.packed

    def check(raw: bytes) -> None:
        if len(raw) < 4 or not _fletcher32_agrees(raw[:-4], int.from_bytes(raw[-4:], "little")):
            raise source.error(f"{name}: a chunk's checksum does not match", chunk.address)

    if applied[-1:] == [FLETCHER32]:
        applied.pop()
        raw = source.file.data[start : start + nbytes]
        check(raw)
        nbytes -= 4
    pieces: Iterator[bytes]
    if applied[-1:] == [DEFLATE]:
        applied.pop()
        pieces = source.file.inflated(start, nbytes)
    else:
        pieces = iter((source.file.data[start : start + nbytes],))
    width = 1
    try:
        if applied == [SHUFFLE]:
            width = dataset.dtype.itemsize
        elif applied:  # an order of filters that h5py does not choose
            pieces = iter((_taken_back(dataset, applied, pieces, check),))
        written = _scatter(pieces, target, width)
    except ValueError:
        written = False
    if not written:
        raise source.error(f"{name}: a chunk does not unpack to {target.size} bytes", chunk.address)


def _taken_back(
    dataset: Dataset, applied: list[int], pieces: Iterator[bytes], check: Callable[[bytes], None]
) -> bytes:
    """What further filters were given, all of it in memory."""
    limit = math.prod(dataset.chunk) * dataset.dtype.itemsize + 4
    raw = _joined(pieces, limit)
    for number in reversed(applied):
        if number == FLETCHER32:
            check(raw)
            raw = raw[:-4]
        elif number == SHUFFLE:
            raw = _unshuffled(raw, dataset.dtype.itemsize)
        else:
            unpacker = zlib.decompressobj()
            try:
                raw = unpacker.decompress(raw, limit + 1)
            except zlib.error as error:
                raise ValueError("damaged compressed data") from error
            if not unpacker.eof:
                raise ValueError("compressed data that ends early, or is too long")
    return raw


def _joined(pieces: Iterator[bytes], limit: int) -> bytes:
    raw = bytearray()
    for piece in pieces:
        raw += piece
        if len(raw) > limit:
            raise ValueError("more than a chunk can hold")
    return bytes(raw)


def _scatter(pieces: Iterator[bytes], target: Array, width: int) -> bool:
    """Put bytes into their places: the first bytes of all elements come first, then the second, and so on.

    False where they are not as many as there are places.
    """
    import numpy

    planes = target.reshape(-1, width)
    count = len(planes)
    position = 0
    for piece in pieces:
        if position + len(piece) > target.size:
            return False
        data = numpy.frombuffer(piece, numpy.uint8)
        while data.size:
            plane, row = divmod(position, count)
            part = data[: count - row]
            planes[row : row + part.size, plane] = part
            position += part.size
            data = data[part.size :]
    return position == target.size


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
