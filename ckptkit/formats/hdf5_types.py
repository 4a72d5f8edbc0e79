"""Element types in HDF5: the datatype message, read and written.

Keras stores bfloat16, for which HDF5 has no type of its own, as opaque elements of two bytes with an
attribute ``dtype`` beside them.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Literal

from ckptkit.formats.hdf5_bytes import Piece
from ckptkit.tensors import DTYPES, DType

_INTEGER, _FLOAT, _STRING, _OPAQUE, _VARIABLE = 0, 1, 3, 5, 9
_CLASSES = {
    2: "times",
    _STRING: "texts",
    4: "bit fields",
    _OPAQUE: "opaque elements",
    6: "records (complex numbers are stored so)",
    7: "references to other objects",
    8: "an enumeration (booleans are stored so)",
    _VARIABLE: "texts or lists of any length",
    10: "arrays",
    11: "complex numbers",
}
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
        None for what is no number here.
    big_endian : bool
    text : "fixed", "variable" or None
        How a text is stored, where it is one.
    what : str
        In words, for a note, where there is no dtype.
    """

    size: int
    dtype: DType | None = None
    big_endian: bool = False
    text: Literal["fixed", "variable"] | None = None
    what: str = ""

    @property
    def may_be_brain_float(self) -> bool:
        """Whether an attribute may say that these are bfloat16."""
        return self.what == _CLASSES[_OPAQUE] and self.size == 2


def parse_type(piece: Piece) -> ElementType:
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
    if not 1 <= version <= _MAX_VERSION or size == 0:
        raise piece.error("an element type that makes no sense")
    if kind == _INTEGER:
        return _integer(piece, bits, size)
    if kind == _FLOAT:
        return _float(piece, bits, size)
    what = _CLASSES.get(kind, f"elements of type class {kind}")
    if kind == _STRING:
        return ElementType(size, text="fixed", what=what)
    if kind == _VARIABLE and bits & 15 == 1:
        return ElementType(size, text="variable", what=what)
    return ElementType(size, what=what)


def _integer(piece: Piece, bits: int, size: int) -> ElementType:
    start, precision = piece.number(2), piece.number(2)
    dtype = DTYPES.get(f"{'int' if bits & 8 else 'uint'}{8 * size}")
    if start or precision != 8 * size or dtype is None:
        return ElementType(size, what=f"integers of {precision} bits")
    return ElementType(size, dtype, big_endian=bool(bits & 1))


def _float(piece: Piece, bits: int, size: int) -> ElementType:
    start, precision, *fields, bias = struct.unpack("<HHBBBBI", piece.raw(12))
    found = (bits >> 8 & 0xFF, *fields, bias)
    name = next((name for name, known in _FLOAT_FIELDS.items() if known == found), None)
    unusual = start or precision != 8 * size or bits & 0x40 or bits & 0x30 != _IMPLIED_BIT
    if name is None or unusual or DTYPES[name].itemsize != size:
        return ElementType(size, what=f"floating-point numbers of an unusual kind ({precision} bits)")
    return ElementType(size, DTYPES[name], big_endian=bool(bits & 1))


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
    return None


def fixed_text_message(length: int) -> bytes:
    """The datatype message of a UTF-8 text of so many bytes, filled up with zeros."""
    return struct.pack("<BB2xI", _STRING | 1 << 4, 0x11, length)
