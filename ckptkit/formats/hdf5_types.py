"""Element types in HDF5: the datatype message, read and written.

Keras stores bfloat16, for which HDF5 has no type of its own, as opaque elements of two bytes with an
attribute ``dtype`` beside them. h5py stores booleans as an enumeration of FALSE and TRUE, complex numbers as
a record of ``r`` and ``i``. Source: the HDF5 file format specification, "Datatype Message".
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from ckptkit.base.tensors import DTYPES, DType
from ckptkit.formats.hdf5_bytes import Piece

_INTEGER, _FLOAT, _TIME, _STRING, _BITS, _OPAQUE, _RECORD, _REFERENCE, _ENUM, _VARIABLE, _ARRAY, _COMPLEX = (
    range(12)
)
_MAX_NESTING = 8
_MAX_VERSION = 5

# sign bit's position, then the location and size of exponent and mantissa in bits, and the exponent's bias
_FLOAT_FIELDS = {
    "float16": (15, 10, 5, 0, 10, 15),
    "bfloat16": (15, 7, 8, 0, 7, 127),
    "float32": (31, 23, 8, 0, 23, 127),
    "float64": (63, 52, 11, 0, 52, 1023),
}
_IMPLIED_BIT = 2 << 4  # the mantissa's first bit is always one and not stored

VARIABLE_TEXT = bytes.fromhex("19010100 10000000 10000000 01000000 00000800")
"""The type of a UTF-8 text of any length, as h5py writes it for a Python str."""

BRAIN_FLOAT = "bfloat16"


@dataclass(frozen=True)
class ElementType:
    """What a datatype message says.

    Parameters
    ----------
    size : int
        Bytes of an element.
    dtype : DType or None
        Opaque where nothing here computes with it; None where an element is not so many bytes by itself, or
        a text.
    big_endian : bool
    text : "fixed", "variable" or None
        How a text is stored, where it is one.
    what : str
        In words, where there is no dtype.
    """

    size: int
    dtype: DType | None = None
    big_endian: bool = False
    text: Literal["fixed", "variable"] | None = None
    what: str = ""

    @property
    def may_be_brain_float(self) -> bool:
        """Whether an attribute may say that these are bfloat16."""
        return self.dtype == VOID16


def _opaque(name: str, size: int) -> DType:
    return DType(name if name.isprintable() else name.partition(" ")[0], size, "opaque")


VOID16 = _opaque("void16", 2)
"""What bfloat16 looks like."""


def parse_type(piece: Piece, depth: int = 0) -> ElementType:
    """Read a datatype message.

    Raises
    ------
    FormatError
        It is cut off, or of a version that is not known.
    """
    kind = piece.number(1)
    kind, version = kind & 15, kind >> 4
    bits = piece.number(3)
    size = piece.number(4)
    if not 1 <= version <= _MAX_VERSION or size == 0 or depth > _MAX_NESTING:
        raise piece.error("an element type that makes no sense")
    if kind == _STRING:
        return ElementType(size, text="fixed", what="texts")
    if kind == _VARIABLE:
        parse_type(piece, depth + 1)
        if bits & 15 == 1:
            return ElementType(size, text="variable", what="texts")
        return ElementType(size, what="lists of any length")
    if kind == _REFERENCE:
        return ElementType(size, what="references to other objects")
    if kind == _OPAQUE:
        piece.raw(bits & 0xFF)  # its tag
        return ElementType(size, _opaque(f"void{8 * size}", size))
    if kind in _SIMPLE:
        return _SIMPLE[kind](piece, bits, size)
    if kind in _NESTED:
        return _NESTED[kind](piece, bits, size, version, depth)
    raise piece.error(f"elements of type class {kind}")


def _integer(piece: Piece, bits: int, size: int) -> ElementType:
    start, precision = piece.number(2), piece.number(2)
    dtype = DTYPES.get(f"{'int' if bits & 8 else 'uint'}{8 * size}")
    if start or precision != 8 * size or dtype is None:
        return ElementType(size, _opaque(f"integer of {precision} bits in {size} bytes", size))
    return ElementType(size, dtype, big_endian=bool(bits & 1))


def _float(piece: Piece, bits: int, size: int) -> ElementType:
    start, precision, *fields, bias = struct.unpack("<HHBBBBI", piece.raw(12))
    found = (bits >> 8 & 0xFF, *fields, bias)
    name = next((name for name, known in _FLOAT_FIELDS.items() if known == found), None)
    unusual = start or precision != 8 * size or bits & 0x40 or bits & 0x30 != _IMPLIED_BIT
    if name is None or unusual or DTYPES[name].itemsize != size:
        return ElementType(size, _opaque(f"float of {precision} bits in {size} bytes", size))
    return ElementType(size, DTYPES[name], big_endian=bool(bits & 1))


def _time(piece: Piece, _bits: int, size: int) -> ElementType:
    piece.raw(2)
    return ElementType(size, _opaque(f"time of {8 * size} bits", size))


def _bit_field(piece: Piece, _bits: int, size: int) -> ElementType:
    piece.raw(4)
    return ElementType(size, _opaque(f"bit field of {8 * size} bits", size))


_SIMPLE: Mapping[int, Callable[[Piece, int, int], ElementType]] = {
    _INTEGER: _integer,
    _FLOAT: _float,
    _TIME: _time,
    _BITS: _bit_field,
}


def _enumeration(piece: Piece, bits: int, size: int, version: int, depth: int) -> ElementType:
    """Numbers of the type below it; booleans where they are called so."""
    base = parse_type(piece, depth + 1)
    names = [_member_name(piece, version) for _ in range(bits & 0xFFFF)]
    values = [piece.raw(base.size) for _ in names]
    if size == base.size == 1 and dict(zip(names, values, strict=True)) == _BOOLEAN:
        return ElementType(1, DTYPES["bool"])
    return base


_BOOLEAN = {b"FALSE": b"\0", b"TRUE": b"\1"}


def _record(piece: Piece, bits: int, size: int, version: int, depth: int) -> ElementType:
    """Fields side by side; a complex number where they are ``r`` and ``i``."""
    width = 4 if version < 3 else -(-size.bit_length() // 8)
    fields: list[tuple[str, int, ElementType]] = []
    for _ in range(bits & 0xFFFF):
        name = _member_name(piece, version).decode(errors="replace")
        offset = piece.number(width)
        piece.raw(28 if version == 1 else 0)  # axes, which nothing has written since version 1.4
        fields.append((name, offset, parse_type(piece, depth + 1)))
    scattered = next((one for _, _, one in fields if one.dtype is None and one.text != "fixed"), None)
    if scattered is not None:
        return ElementType(size, what=f"records with {scattered.what} in them")
    if len(fields) == 2 and [(name, offset) for name, offset, _ in fields] == [("r", 0), ("i", size // 2)]:
        found = _complex_of(fields[0][2], size) if fields[0][2] == fields[1][2] else None
        if found is not None:
            return found
    return ElementType(size, _opaque(f"record of {', '.join(name for name, _, _ in fields)}"[:80], size))


def _array(piece: Piece, _bits: int, size: int, version: int, depth: int) -> ElementType:
    axes = piece.number(1)
    piece.raw(3 if version < 3 else 0)
    shape = [piece.number(4) for _ in range(axes)]
    piece.raw(4 * axes if version < 3 else 0)
    base = parse_type(piece, depth + 1)
    if base.dtype is None and base.text != "fixed":
        return ElementType(size, what=f"arrays of {base.what}")
    of = base.dtype or base.what
    return ElementType(size, _opaque(f"array of {'x'.join(map(str, shape))} {of}"[:80], size))


def _complex(piece: Piece, _bits: int, size: int, _version: int, depth: int) -> ElementType:
    """The class of its own that HDF5 2.0 has."""
    base = parse_type(piece, depth + 1)
    return _complex_of(base, size) or ElementType(size, _opaque(f"complex of {8 * size} bits", size))


def _complex_of(part: ElementType, size: int) -> ElementType | None:
    dtype = DTYPES.get(f"complex{8 * size}")
    if dtype is None or part.dtype != DTYPES[f"float{4 * size}"]:
        return None
    return ElementType(size, dtype, part.big_endian)


_NESTED: Mapping[int, Callable[[Piece, int, int, int, int], ElementType]] = {
    _RECORD: _record,
    _ENUM: _enumeration,
    _ARRAY: _array,
    _COMPLEX: _complex,
}


def _member_name(piece: Piece, version: int) -> bytes:
    """A name that a zero ends; before version 3 more zeros fill it up to a multiple of eight bytes."""
    name = piece.until_zero()
    piece.raw(-(len(name) + 1) % 8 if version < 3 else 0)
    return name


def type_message(dtype: DType) -> bytes | None:
    """The datatype message of an element type as h5py writes it; None where Keras could not read it.

    Examples
    --------
    >>> type_message(DTYPES["int16"]).hex()
    '100800000200000000001000'
    """
    bits = 8 * dtype.itemsize
    if dtype.name == BRAIN_FLOAT:
        return struct.pack("<B3xI", _OPAQUE | 1 << 4, dtype.itemsize)
    if dtype.name in _FLOAT_FIELDS:
        sign, *fields, bias = _FLOAT_FIELDS[dtype.name]
        head = struct.pack("<BBBxI", _FLOAT | 1 << 4, _IMPLIED_BIT, sign, dtype.itemsize)
        return head + struct.pack("<HHBBBBI", 0, bits, *fields, bias)
    if dtype.kind in ("int", "uint"):
        signed = 8 if dtype.kind == "int" else 0
        return struct.pack("<BB2xIHH", _INTEGER | 1 << 4, signed, dtype.itemsize, 0, bits)
    if dtype.kind == "bool":
        head = struct.pack("<BB2xI", _ENUM | 1 << 4, len(_BOOLEAN), 1)
        base = struct.pack("<BB2xIHH", _INTEGER | 1 << 4, 8, 1, 0, 8)
        return head + base + b"".join(name.ljust(8, b"\0") for name in _BOOLEAN) + b"".join(_BOOLEAN.values())
    if dtype.kind == "complex":
        part = type_message(DTYPES[f"float{bits // 2}"])
        assert part is not None
        head = struct.pack("<BB2xI", _RECORD | 1 << 4, 2, dtype.itemsize)
        offsets = ((b"r", 0), (b"i", dtype.itemsize // 2))
        return head + b"".join(struct.pack("<8sI28x", name, offset) + part for name, offset in offsets)
    return None


def fixed_text_message(length: int) -> bytes:
    """The datatype message of a UTF-8 text of so many bytes, filled up with zeros."""
    return struct.pack("<BB2xI", _STRING | 1 << 4, 0x11, length)
