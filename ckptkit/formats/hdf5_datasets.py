"""The datasets of an HDF5 file: where their bytes are, checked before one of them is read."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ckptkit.base.tensors import DTYPES, DType
from ckptkit.formats.hdf5_attributes import Attributes, parse_shape
from ckptkit.formats.hdf5_bytes import ANEW, UNDEFINED, Hdf5Bytes, Piece
from ckptkit.formats.hdf5_objects import (
    DATASPACE,
    EXTERNAL_FILES,
    FILL_VALUE,
    FILTERS,
    LAYOUT,
    OLD_FILL_VALUE,
    Header,
    Objects,
)
from ckptkit.formats.hdf5_types import BRAIN_FLOAT, ElementType, parse_type
from ckptkit.formats.mapped_file import MAX_DIMS

_COMPACT, _CONTIGUOUS, _CHUNKED, _VIRTUAL = 0, 1, 2, 3
DEFLATE, SHUFFLE, FLETCHER32 = 1, 2, 3
"""Filters that chunks can go through: zlib, bytes sorted by their place in an element, a checksum behind."""
_PLAIN = "write the dataset anew, plain or packed by gzip"


@dataclass(frozen=True)
class Chunk:
    """One block of a dataset: its first element's indices, its bytes, and which filters it skipped."""

    corner: tuple[int, ...]
    address: int
    packed: int
    skipped: int


@dataclass(frozen=True)
class NotRead:
    """A dataset that cannot be carried, or is none: why, and whether it is a tensor all the same."""

    why: str
    is_tensor: bool = False


@dataclass(frozen=True)
class Dataset:
    """A dataset whose elements can be carried.

    Parameters
    ----------
    dtype : DType
    big_endian : bool
    shape : tuple of int
    address : int or None
        Where its elements stand one after the other; None for one in chunks, or without elements.
    chunk : tuple of int
        Axis lengths of a chunk.
    chunks : sequence of Chunk
    filters : tuple of int
        What a chunk went through when it was written, in order.
    fill : bytes
        The element that stands for those that were never written; zeros where there is none.
    """

    dtype: DType
    big_endian: bool
    shape: tuple[int, ...]
    address: int | None
    chunk: tuple[int, ...] = ()
    chunks: Sequence[Chunk] = ()
    filters: tuple[int, ...] = ()
    fill: bytes = b""

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def is_checked(self) -> bool:
        """Whether every chunk has a checksum."""
        checked = [not chunk.skipped for chunk in self.chunks]
        return FLETCHER32 in self.filters and bool(checked) and all(checked)


def parse_dataset(objects: Objects, attributes: Attributes, header: Header, name: str) -> Dataset | NotRead:
    """Read what an object header says of a dataset.

    Parameters
    ----------
    objects : Objects
    attributes : Attributes
    header : Header
    name : str
        For errors.

    Returns
    -------
    Dataset or NotRead

    Raises
    ------
    FormatError
        Damaged, kept in another file, or stored in a way that is not supported.
    """
    source = objects.source
    if any(True for _ in header.bodies(EXTERNAL_FILES)):
        raise source.error(f"{name}: its data is kept in another file", header.address, "not followed")
    space, layout = (header.body(what) for what in (DATASPACE, LAYOUT))
    kind = objects.datatype(header)
    if space is None or kind is None or layout is None:
        raise source.error(f"{name}: a dataset without shape, type or place", header.address)
    element = parse_type(kind)
    shape = parse_shape(space)
    dtype = element.dtype
    if element.may_be_brain_float and attributes.of(header).get("dtype") == BRAIN_FLOAT:
        dtype = DTYPES[BRAIN_FLOAT]
    storage = _Storage(source, header, layout, name)
    if dtype is None:
        return NotRead(element.what, is_tensor=element.text is None)
    if shape is None:
        return NotRead("declared to be empty")
    if len(shape) > MAX_DIMS or math.prod(shape) * dtype.itemsize >= 1 << 63:
        raise layout.error(f"{name}: a shape {list(shape)[:4]} … that nothing could hold")
    return storage.dataset(objects, element, dtype, shape)


class _Storage:
    """Where a dataset's elements are."""

    def __init__(self, source: Hdf5Bytes, header: Header, body: Piece, name: str) -> None:
        self._source = source
        self._header = header
        self._body = body
        self._name = name
        version = body.number(1)
        if version not in (3, 4):
            raise source.error(
                f"{name}: a data layout of version {version}: not supported", body.address, ANEW
            )
        self._kind = body.number(1)
        if self._kind == _VIRTUAL:
            raise source.error(
                f"{name}: a virtual dataset, put together from others", body.address, "not followed"
            )
        if self._kind == _CHUNKED and version == 4:
            raise source.error(
                f"{name}: chunks with one of HDF5's newer indexes: not supported", body.address, ANEW
            )
        if self._kind not in (_COMPACT, _CONTIGUOUS, _CHUNKED):
            raise body.error(f"{name}: a data layout of class {self._kind}")

    def dataset(
        self, objects: Objects, element: ElementType, dtype: DType, shape: tuple[int, ...]
    ) -> Dataset:
        nbytes = math.prod(shape) * dtype.itemsize
        if self._kind == _CHUNKED:
            return self._chunked(objects, element, dtype, shape)
        if self._kind == _COMPACT:
            size = self._body.number(2)
            address = self._body.address
            self._body.raw(size)
        else:
            address, size = self._body.number(8), self._body.number(8)
        if size != nbytes and not (address == UNDEFINED and nbytes == 0):
            raise self._body.error(f"{self._name}: {nbytes} bytes by its shape, {size} by its place")
        if nbytes == 0:
            return Dataset(dtype, element.big_endian, shape, None)
        if address == UNDEFINED:
            self._source.claim(nbytes, self._name)
            return Dataset(dtype, element.big_endian, shape, None, fill=self._fill(dtype.itemsize))
        self._source.require(address, nbytes, self._name)
        return Dataset(dtype, element.big_endian, shape, address)

    def _chunked(
        self, objects: Objects, element: ElementType, dtype: DType, shape: tuple[int, ...]
    ) -> Dataset:
        body = self._body
        axes = body.number(1)
        tree = body.number(8)
        *chunk, itemsize = (body.number(4) for _ in range(max(axes, 1)))
        if len(chunk) != len(shape) or itemsize != dtype.itemsize or 0 in chunk:
            raise body.error(f"{self._name}: chunks of {axes} axes in a dataset of {len(shape)}")
        filters = _parse_filters(self._source, self._header.body(FILTERS), self._name)
        chunks = [] if tree == UNDEFINED else self._chunks(objects, tree, shape, tuple(chunk))
        unpacked = max(math.prod(shape), max(len(chunks), 1) * math.prod(chunk)) * itemsize
        self._source.claim(unpacked, self._name)
        if not filters and any(one.packed != math.prod(chunk) * itemsize for one in chunks):
            raise body.error(f"{self._name}: chunks of the wrong size")
        fill = self._fill(itemsize)
        return Dataset(dtype, element.big_endian, shape, None, tuple(chunk), chunks, filters, fill)

    def _fill(self, itemsize: int) -> bytes:
        """The element that stands for those that were never written; nothing where it is zero."""
        body, old = self._header.body(FILL_VALUE), self._header.body(OLD_FILL_VALUE)
        value = b""
        if body is not None:
            version = body.number(1)
            flags = body.number(1) if version == 3 else body.raw(3)[2] << 5
            if version not in (1, 2, 3):
                raise body.error(f"{self._name}: a fill value of version {version}")
            if flags & 0x20 and body.left:
                value = body.raw(body.number(4))
        elif old is not None:
            value = old.raw(old.number(4))
        if len(value) not in (0, itemsize):
            raise self._body.error(f"{self._name}: a fill value of {len(value)} bytes")
        return value if value.strip(b"\0") else b""

    def _chunks(
        self, objects: Objects, tree: int, shape: tuple[int, ...], chunk: tuple[int, ...]
    ) -> list[Chunk]:
        """Every chunk, each at its own place of the grid; in a sorted tree no two are at one place."""
        numbers = struct.Struct(f"<{len(shape) + 1}Q")

        def rank(key: Piece) -> tuple[int, ...]:
            return numbers.unpack(key.raw(8 + numbers.size)[8:])

        found: list[Chunk] = []
        for leaf in objects.leaves(tree, kind=1, key_bytes=8 + numbers.size, rank=rank):
            packed, skipped = leaf.key.number(4), leaf.key.number(4)
            *corner, byte = leaf.low
            places = zip(corner, chunk, shape, strict=True)
            if byte or not all(first % step == 0 and first < size for first, step, size in places):
                raise leaf.key.error(f"{self._name}: a chunk where none belongs")
            self._source.budget.spend(steps=12)
            self._source.require(leaf.address, packed, f"{self._name}: a chunk")
            found.append(Chunk(tuple(corner), leaf.address, packed, skipped))
        return found


def _parse_filters(source: Hdf5Bytes, body: Piece | None, name: str) -> tuple[int, ...]:
    """Numbers of the filters of a pipeline, in the order in which they were applied."""
    if body is None:
        return ()
    version, count = body.number(1), body.number(1)
    if version not in (1, 2):
        raise body.error(f"{name}: a filter pipeline of version {version}")
    body.raw(6 if version == 1 else 0)
    filters = []
    for _ in range(count):
        number = body.number(2)
        length = body.number(2) if version == 1 or number >= 256 else 0
        body.raw(2)
        values = body.number(2)
        title = body.raw(length + (-length % 8 if version == 1 else 0))
        body.raw(4 * (values + (values & 1 if version == 1 else 0)))
        if number not in (DEFLATE, SHUFFLE, FLETCHER32) or number in filters:
            said = title.rstrip(b"\0").decode(errors="replace") or f"number {number}"
            raise source.error(f"{name}: packed by filter {said!r}: not supported", body.address, _PLAIN)
        filters.append(number)
    return tuple(filters)


def refuse_overlap(source: Hdf5Bytes, datasets: Mapping[str, Dataset]) -> None:
    """Raise FormatError where two datasets claim the same bytes; one under several names is one."""
    spans = sorted(
        (start, start + length, name)
        for name, dataset in {id(dataset): (name, dataset) for name, dataset in datasets.items()}.values()
        for start, length in (
            [(dataset.address, dataset.nbytes)]
            if dataset.address is not None
            else [(chunk.address, chunk.packed) for chunk in dataset.chunks]
        )
    )
    stop, before = 0, ""
    for start, end, name in spans:
        if start < stop:
            raise source.error(f"{before} and {name} overlap", start)
        stop, before = end, name
