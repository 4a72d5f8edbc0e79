"""What stands beside an HDF5 object: the shape of its data, and attributes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

from ckptkit.formats.hdf5_bytes import UNDEFINED, Hdf5Bytes, Piece
from ckptkit.formats.hdf5_dense import ATTRIBUTE_BY_NAME, dense_messages, require_hash
from ckptkit.formats.hdf5_objects import ATTRIBUTE, ATTRIBUTE_INFO, Header
from ckptkit.formats.hdf5_types import ElementType, parse_type

Texts = tuple[str, ...] | None
"""Value of an attribute that is a text or a list of texts; None where it is something else."""

_MAX_TEXT = 1 << 20
_REFERENCE_BYTES = 16  # of a text of any length: how long it is, and where it stands


def parse_shape(piece: Piece) -> tuple[int, ...] | None:
    """Read a dataspace message: the axis lengths, None for a dataset declared to be empty.

    Raises
    ------
    FormatError
    """
    version, rank = piece.number(1), piece.number(1)
    piece.raw(1)  # whether the largest axis lengths follow, which say nothing of the data
    if version not in (1, 2) or rank > 32:
        raise piece.error(f"a dataspace of version {version} with {rank} axes")
    kind = piece.number(1)
    piece.raw(4 if version == 1 else 0)
    if version == 2 and kind == 2:
        return None
    return tuple(piece.number(8) for _ in range(rank))


class Attributes:
    """Reads attributes, and the texts that several of them share.

    Parameters
    ----------
    source : Hdf5Bytes
    """

    def __init__(self, source: Hdf5Bytes) -> None:
        self._source = source
        self._heaps: dict[int, dict[int, tuple[int, int]]] = {}

    def of(self, header: Header) -> dict[str, str | None]:
        """Names of an object's attributes, with the value where it is a single text.

        Raises
        ------
        FormatError
        """
        return {name: single(values) for name, values in self.texts(header).items()}

    def texts(self, header: Header) -> dict[str, Texts]:
        """Names of an object's attributes, with the value where it is a text or a list of texts.

        A list without elements is one of texts, whatever its type: h5py gives numbers to an empty one.

        Raises
        ------
        FormatError
            Damaged, or two of one name.
        """
        found: dict[str, Texts] = {}
        for body in self._bodies(header):
            name, values = self._attribute(body)
            if name in found:
                raise self._source.error(f"an object with two attributes {name!r}", header.address)
            found[name] = values
        return found

    def number(self, header: Header, name: str) -> int | None:
        """An attribute that is a single whole number; None where there is none of that name."""
        for body in self._bodies(header):
            found, element, shape = self._head(body)
            if found == name and element is not None and element.dtype is not None and shape == ():
                kind = element.dtype.kind
                if kind in ("int", "uint"):
                    order: Literal["big", "little"] = "big" if element.big_endian else "little"
                    return int.from_bytes(body.raw(element.size), order, signed=kind == "int")
        return None

    def _bodies(self, header: Header) -> Iterator[Piece]:
        """An object's attributes: in its header, or, where they are many or long, in a heap."""
        yield from header.bodies(ATTRIBUTE)
        info = header.body(ATTRIBUTE_INFO)
        if info is not None:
            info.raw(1)
            info.raw(2 * (info.number(1) & 1))
            heap, tree = info.number(8), info.number(8)
            if heap != UNDEFINED:
                for stored, body in dense_messages(self._source, heap, tree, ATTRIBUTE_BY_NAME):
                    require_hash(self._name(body.anew()), stored, body)
                    yield body

    def _attribute(self, body: Piece) -> tuple[str, Texts]:
        name, element, shape = self._head(body)
        return name, None if element is None else self._values(body, element, shape)

    def _head(self, body: Piece) -> tuple[str, ElementType | None, tuple[int, ...] | None]:
        """Name, type and shape, up to the value; no type where it is in another object."""
        version, flags = body.number(1), body.number(1)
        if version not in (1, 2, 3):
            raise body.error(f"an attribute of version {version}")
        self._source.budget.spend(nodes=1, steps=8)
        sizes = [body.number(2) for _ in range(3)]
        body.raw(1 if version == 3 else 0)
        name, kind, space = (self._padded(body, size, 8 if version == 1 else 1) for size in sizes)
        text = name.raw(name.left).rstrip(b"\0").decode(errors="replace")
        if version > 1 and flags & 3:
            return text, None, None
        return text, parse_type(kind), parse_shape(space)

    @staticmethod
    def _name(body: Piece) -> bytes:
        """The name as it is stored, without the zeros behind it."""
        version = body.raw(2)[0]
        length = body.number(2)
        body.raw(5 if version == 3 else 4)
        return body.raw(length).partition(b"\0")[0]

    @staticmethod
    def _padded(body: Piece, size: int, to: int) -> Piece:
        part = body.part(size)
        body.raw(min(-size % to, body.left))
        return part

    def _values(self, body: Piece, element: ElementType, shape: tuple[int, ...] | None) -> Texts:
        if shape is None or shape == (0,):
            return ()
        if element.text is None or len(shape) > 1:
            return None
        width = element.size if element.text == "fixed" else _REFERENCE_BYTES
        cells = body.part(math.prod(shape) * width)
        values: list[str] = []
        while cells.left:
            value = self._text(cells.part(width), element)
            if value is None:
                return None
            values.append(value)
        return tuple(values)

    def _text(self, cell: Piece, element: ElementType) -> str | None:
        if element.text == "variable":
            length, heap, index = cell.number(4), cell.number(8), cell.number(4)
            if length > _MAX_TEXT:
                return None
            raw = self._from_heap(heap, index)[:length] if length else b""
        else:
            raw = cell.raw(element.size).rstrip(b"\0")
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return None

    def _from_heap(self, address: int, index: int) -> bytes:
        """An object of a collection in the global heap, where texts of any length stand."""
        if address not in self._heaps:
            head = self._source.piece(address, 16, "a collection of texts")
            head.expect(b"GCOL\1", "collection of texts")
            head.raw(3)
            size = head.number(8)
            body = self._source.piece(address + 16, max(0, size - 16), "a collection of texts")
            objects: dict[int, tuple[int, int]] = {}
            while body.left >= 16:
                number = body.number(2)
                body.raw(6)
                length = body.number(8)
                if number == 0:  # the rest is free
                    break
                objects[number] = (body.address, length)
                body.raw(length)
                body.raw(min(-length % 8, body.left))
            self._heaps[address] = objects
        where = self._heaps[address].get(index)
        if where is None:
            raise self._source.error(f"no text {index} in the collection", address)
        return self._source.piece(where[0], min(where[1], _MAX_TEXT), "a text").raw(min(where[1], _MAX_TEXT))


def single(values: Texts) -> str | None:
    """The text that an attribute is, if it is one text.

    Examples
    --------
    >>> single(("tensorflow",)), single(("a", "b")), single(None)
    ('tensorflow', None, None)
    """
    return values[0] if values is not None and len(values) == 1 else None
