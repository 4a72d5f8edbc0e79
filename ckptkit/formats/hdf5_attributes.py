"""What stands beside an HDF5 object: the shape of its data, and attributes."""

from __future__ import annotations

from ckptkit.formats.hdf5_bytes import Hdf5Bytes, Piece
from ckptkit.formats.hdf5_objects import ATTRIBUTE, Header
from ckptkit.formats.hdf5_types import parse_type

_MAX_TEXT = 1 << 20


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
        return dict(self._attribute(body) for body in header.bodies(ATTRIBUTE))

    def _attribute(self, body: Piece) -> tuple[str, str | None]:
        version, flags = body.number(1), body.number(1)
        if version not in (1, 2, 3):
            raise body.error(f"an attribute of version {version}")
        sizes = [body.number(2) for _ in range(3)]
        body.raw(1 if version == 3 else 0)
        name, kind, space = (self._padded(body, size, 8 if version == 1 else 1) for size in sizes)
        text = name.raw(name.left).rstrip(b"\0").decode(errors="replace")
        if version > 1 and flags & 3:
            return text, None  # its type stands in another object
        return text, self._text(body, kind, space)

    @staticmethod
    def _padded(body: Piece, size: int, to: int) -> Piece:
        part = body.part(size)
        body.raw(min(-size % to, body.left))
        return part

    def _text(self, body: Piece, kind: Piece, space: Piece) -> str | None:
        """Value of an attribute that is one text."""
        element = parse_type(kind)
        shape = parse_shape(space)
        if shape not in ((), (1,)) or element.text is None:
            return None
        if element.text == "variable":
            length, heap, index = body.number(4), body.number(8), body.number(4)
            raw = self._from_heap(heap, index)[:length] if 0 < length <= _MAX_TEXT else b""
        else:
            raw = body.raw(element.size).rstrip(b"\0")
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
