"""The header of a ``.npy`` array: read strictly, written as numpy writes it.

Source: numpy's description of the format, versions 1.0 to 3.0 (``numpy.lib.format``).
"""

from __future__ import annotations

import ast
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ckptkit.base.tensors import DTYPES, NOT_IN_NUMPY, DType, TensorSpec
from ckptkit.formats.mapped_file import MAX_DIMS

MAGIC = b"\x93NUMPY"
MAX_HEADER_BYTES = 10_000
"""numpy's own limit for files it does not trust."""

_AXIS = rb"(?:0|[1-9][0-9]{0,18})"
_USUAL = re.compile(
    rb"\{'descr': '(?P<descr>[<>|=][A-Za-z][0-9]{1,3})', 'fortran_order': (?P<order>True|False), "
    rb"'shape': \((?P<shape>|" + _AXIS + rb",|" + _AXIS + rb"(?:, " + _AXIS + rb")+)\), \} *\n"
)
"""As numpy writes it; any other table of Python's is parsed as Python, which takes ten times as long."""
_STEPS = 8
"""For each byte of such a table."""
_ALIGNMENT = 64
_KINDS = {"float": "f", "int": "i", "uint": "u", "bool": "b", "complex": "c"}
CODES: Mapping[str, str] = {
    d.name: ("|" if d.itemsize == 1 else "<") + f"{_KINDS[d.kind]}{d.itemsize}"
    for d in DTYPES.values()
    if d.name not in NOT_IN_NUMPY
}
"""Names of element types as a header spells them (``<f4``)."""

_BY_CODE = {code[1:]: DTYPES[name] for name, code in CODES.items()}
_TEXTS, _OBJECTS = "SUa", "O"
_OPAQUE_CODE = re.compile(r"[<>|=]([A-Za-z])([0-9]{1,9})(\[[A-Za-z0-9/]{1,20}\])?")
_IN_WORDS = {"f16": "float128", "c32": "complex256", "f12": "float96", "c24": "complex192"}
"""Names of long doubles, by numpy's code on machines of 64 and of 32 bits."""


def descr(dtype: DType) -> str | None:
    """How a header spells an element type; None where numpy has none."""
    return repr(CODES[dtype.name]) if dtype.name in CODES else dtype.npy


@dataclass(frozen=True)
class NpyHeader:
    """What a header says."""

    dtype: DType | None  # none where the elements cannot be carried
    is_text: bool  # whether they are texts
    code: str  # element type as written
    big_endian: bool  # whether each element's bytes run the other way
    fortran: bool  # whether the first axis changes fastest
    shape: tuple[int, ...]  # axis lengths
    start: int  # where the elements start, counted from the magic bytes
    steps: int  # what reading it cost, for `ckptkit.base.budget`

    @property
    def nbytes(self) -> int:
        """Bytes of header and elements together."""
        assert self.dtype is not None
        return self.start + math.prod(self.shape) * self.dtype.itemsize


def parse_header(raw: bytes) -> NpyHeader:
    """Read the header at the start of an array; its first `MAX_HEADER_BYTES` + 12 bytes are enough."""
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
    usual = _USUAL.fullmatch(raw, start, start + length)
    if usual is not None:
        axes = tuple(map(int, usual["shape"].replace(b",", b" ").split()))
        table = {"descr": usual["descr"].decode(), "fortran_order": usual["order"] == b"True", "shape": axes}
        return _checked(table, start + length, steps=8 + length // 16)
    try:
        text = raw[start : start + length].decode("utf-8" if version == 3 else "latin-1")
        tree = ast.parse(text.strip(), mode="eval")
        table = ast.literal_eval(tree)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError(".npy header is no table of plain values") from error
    if isinstance(tree.body, ast.Dict) and isinstance(table, dict) and len(tree.body.keys) != len(table):
        raise ValueError(".npy header says something twice")
    return _checked(table, start + length, steps=8 + _STEPS * length)


def _checked(table: object, start: int, *, steps: int) -> NpyHeader:
    if not isinstance(table, dict) or table.keys() != {"descr", "fortran_order", "shape"}:
        raise ValueError(".npy header lacks descr, fortran_order or shape")
    shape, fortran, code = table["shape"], table["fortran_order"], table["descr"]
    if not isinstance(fortran, bool) or not isinstance(shape, tuple) or len(shape) > MAX_DIMS:
        raise ValueError(".npy header with a malformed shape or order")
    if not all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 1 << 62 for n in shape):
        raise ValueError(".npy header with a malformed shape")
    known = _BY_CODE.get(code[1:]) if isinstance(code, str) and code[:1] in "<>|=" else None
    dtype = known or _opaque(code)
    is_text = isinstance(code, str) and code[1:2] in tuple(_TEXTS)
    big_endian = known is not None and str(code).startswith(">")
    return NpyHeader(dtype, is_text, str(code), big_endian, fortran, shape, start, steps)


def _opaque(code: object) -> DType | None:
    """A type whose elements are of so many bytes, whatever is in them; None for texts and Python objects."""
    if isinstance(code, list):
        return _record(code)
    found = _OPAQUE_CODE.fullmatch(code) if isinstance(code, str) else None
    if found is None or found[1] in _TEXTS or found[1] == _OBJECTS or not int(found[2]):
        return None
    assert isinstance(code, str)
    kind, itemsize, unit = found[1], int(found[2]), found[3] or ""
    names = {"V": f"void{8 * itemsize}", "M": f"datetime64{unit}", "m": f"timedelta64{unit}"}
    name = names.get(kind) or _IN_WORDS.get(code[1:], code[1:])
    name = f"{name}, big-endian" if code[0] == ">" else name
    return DType(name, itemsize, "opaque", npy=repr(code))


def _record(code: list[Any]) -> DType | None:
    import numpy

    try:
        record = numpy.lib.format.descr_to_dtype(code)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError, MemoryError):
        return None
    if record.hasobject or not record.itemsize:
        return None
    name = f"record of {', '.join(record.names or ())}"[:80]
    return DType(name if name.isprintable() else "record", record.itemsize, "opaque", npy=repr(code))


def header_bytes(spec: TensorSpec) -> bytes:
    """Write the header of a C-ordered array, padded so that the elements start at a multiple of 64 bytes.

    Version 1.0; 3.0 where a record has a field that is not called in ASCII.

    Examples
    --------
    >>> header_bytes(TensorSpec("w", DTYPES["float32"], (2, 3)))[10:128].decode().strip()
    "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }"
    """
    table = f"{{'descr': {descr(spec.dtype)}, 'fortran_order': False, 'shape': {spec.shape}, }}"
    start, form, version = (10, "<H", b"\x01\x00") if table.isascii() else (12, "<I", b"\x03\x00")
    raw = table.encode()
    length = -(-(start + len(raw) + 1) // _ALIGNMENT) * _ALIGNMENT - start
    return MAGIC + version + struct.pack(form, length) + raw.ljust(length - 1) + b"\n"
