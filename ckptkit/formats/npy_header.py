"""The header of a ``.npy`` array: read strictly, written as numpy writes it.

Source: numpy's description of the format, versions 1.0 to 3.0 (``numpy.lib.format``).
"""

from __future__ import annotations

import ast
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from ckptkit.formats.mapped_file import MAX_DIMS
from ckptkit.tensors import DTYPES, DType, TensorSpec

MAGIC = b"\x93NUMPY"
MAX_HEADER_BYTES = 10_000
"""numpy's own limit for files it does not trust."""

_ALIGNMENT = 64
_KINDS = {"float": "f", "int": "i", "uint": "u", "bool": "b", "complex": "c"}
_NOT_IN_NUMPY = frozenset({"bfloat16", "float8_e4m3fn", "float8_e5m2"})
CODES: Mapping[str, str] = {
    d.name: ("|" if d.itemsize == 1 else "<") + f"{_KINDS[d.kind]}{d.itemsize}"
    for d in DTYPES.values()
    if d.name not in _NOT_IN_NUMPY
}
"""Names of element types as a header spells them (``<f4``)."""

_BY_CODE = {code[1:]: DTYPES[name] for name, code in CODES.items()}


@dataclass(frozen=True)
class NpyHeader:
    """What a header says.

    Parameters
    ----------
    dtype : DType or None
        None where ckptkit cannot hold the elements; ``code`` says what they are.
    code : str
        Element type as written.
    big_endian : bool
        Whether each element's bytes run the other way.
    fortran : bool
        Whether the first axis changes fastest.
    shape : tuple of int
        Axis lengths.
    start : int
        Where the elements start, counted from the magic bytes.
    """

    dtype: DType | None
    code: str
    big_endian: bool
    fortran: bool
    shape: tuple[int, ...]
    start: int

    @property
    def nbytes(self) -> int:
        """Bytes of header and elements together."""
        assert self.dtype is not None
        return self.start + math.prod(self.shape) * self.dtype.itemsize


def parse_header(raw: bytes) -> NpyHeader:
    """Read the header at the start of ``raw`` (the array's first bytes, `MAX_HEADER_BYTES` + 12 are enough).

    Raises
    ------
    ValueError
        With the reason.
    """
    if raw[:6] != MAGIC or len(raw) < 12:
        raise ValueError("no .npy array")
    version = raw[6]
    if version == 1:
        start, length = 10, struct.unpack_from("<H", raw, 8)[0]
    elif version in (2, 3):
        start, length = 12, struct.unpack_from("<I", raw, 8)[0]
    else:
        raise ValueError(f".npy version {version}")
    if length > MAX_HEADER_BYTES or start + length > len(raw):
        raise ValueError(f".npy header of {length} bytes")
    try:
        table = ast.literal_eval(
            raw[start : start + length].decode("utf-8" if version == 3 else "latin-1").strip()
        )
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError(".npy header is no table of plain values") from error
    return _checked(table, start + length)


def _checked(table: object, start: int) -> NpyHeader:
    if not isinstance(table, dict) or table.keys() != {"descr", "fortran_order", "shape"}:
        raise ValueError(".npy header lacks descr, fortran_order or shape")
    shape, fortran, code = table["shape"], table["fortran_order"], table["descr"]
    if not isinstance(fortran, bool) or not isinstance(shape, tuple) or len(shape) > MAX_DIMS:
        raise ValueError(".npy header with a malformed shape or order")
    if not all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 1 << 62 for n in shape):
        raise ValueError(".npy header with a malformed shape")
    if not isinstance(code, str):
        return NpyHeader(None, "a structure", False, fortran, shape, start)
    dtype = _BY_CODE.get(code[1:]) if code[:1] in "<>|=" else None
    return NpyHeader(dtype, code, code[:1] == ">", fortran, shape, start)


def header_bytes(spec: TensorSpec) -> bytes:
    """Write the header (version 1.0) of a C-ordered array, padded so that the elements start at 64 bytes.

    Examples
    --------
    >>> header_bytes(TensorSpec("w", DTYPES["float32"], (2, 3)))[10:128].decode().strip()
    "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }"
    """
    table = f"{{'descr': '{CODES[spec.dtype.name]}', 'fortran_order': False, 'shape': {spec.shape}, }}"
    length = -(-(10 + len(table) + 1) // _ALIGNMENT) * _ALIGNMENT - 10
    return MAGIC + b"\x01\x00" + struct.pack("<H", length) + table.ljust(length - 1).encode() + b"\n"
