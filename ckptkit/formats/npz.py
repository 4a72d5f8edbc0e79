"""Npz archives: ``.npy`` arrays in a zip archive, read strictly and written as numpy does.

Source: numpy's description of the format of arrays, versions 1.0 to 3.0 (``numpy.lib.format``).
"""

from __future__ import annotations

import ast
import contextlib
import math
import re
import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ckptkit.base.budget import Budget
from ckptkit.base.errors import ConversionError, FormatError, UsageError
from ckptkit.base.tensors import DTYPES, NOT_IN_NUMPY, Array, DType, Piece, TensorSpec
from ckptkit.formats.json_text import parse_metadata
from ckptkit.formats.mapped_file import MAX_DIMS
from ckptkit.formats.members import unsafe_name
from ckptkit.formats.readers import MappedReader
from ckptkit.formats.writing import SingleFileWriter, metadata_json
from ckptkit.formats.zip import (
    DEFLATED,
    STORED,
    CheckedMembers,
    ZipEntry,
    ZipWriter,
    damaged,
    plain_name,
    read_directory,
)

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

    dtype: DType | None  # None where the elements cannot be carried
    is_text: bool
    code: str  # element type as written
    big_endian: bool
    fortran: bool  # whether the first axis changes fastest
    shape: tuple[int, ...]
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
        raise ValueError("not an .npy array")
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
        raise ValueError(".npy header is not a table of plain values") from error
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
    """A type of which only the size of its elements matters; None for texts and Python objects."""
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


# ----------------------------------------------------------------------------------------------------
# Archives: read, and never unpickled; written uncompressed.

_EXTENSION = ".npy"
_COMMENT_PREFIX = b"ckptkit:"
_MAX_COMMENT = 0xFFFF
_HEAD_BYTES = MAX_HEADER_BYTES + 12


class NpzReader(MappedReader):
    """An npz archive. Stored arrays are mapped, compressed ones unpacked when read."""

    format = "npz"

    def _open(self) -> None:
        self._budget = Budget(self._file.size, partial(FormatError, self.path))
        self._arrays: dict[str, tuple[ZipEntry, NpyHeader]] = {}
        specs: dict[str, TensorSpec] = {}
        left_out: dict[str, str] = {}
        also: dict[str, str] = {}
        directory = read_directory(self._file)
        self._members = CheckedMembers(self._file, directory)
        for entry in directory.entries.values():
            if not entry.name.endswith(_EXTENSION) and not self._begins_as_array(entry):
                also[entry.name] = f"a file of {entry.size:,} bytes"
                continue
            name = entry.name.removesuffix(_EXTENSION)
            if not entry.is_utf8:
                raise FormatError(self.path, f"zip entry {entry.name!r} does not say how its name is coded")
            if name != entry.name and name in directory.entries:
                raise FormatError(self.path, f"zip entries {entry.name!r} and {name!r} are one to numpy")
            header = self._header(entry)
            if header.is_text:
                also[name] = f"texts {list(header.shape)}"
                continue
            if header.dtype is None:
                left_out[name] = _unreadable(header)
                continue
            specs[name] = TensorSpec(name, header.dtype, header.shape)
            self._arrays[name] = (entry, header)
        self.metadata = _metadata(self.path, directory.comment)
        self.specs = specs
        self.left_out = left_out
        self._also = also  # members that are not arrays, and arrays of texts

    def _read(self, name: str) -> Array:
        """A view of the file, or a copy where it is compressed or big-endian."""
        entry, header = self._arrays[name]
        assert header.dtype is not None
        shape = header.shape[::-1] if header.fortran else header.shape
        if entry.method == STORED:
            array = self._file.view(entry.offset + header.start, header.dtype, shape)
        else:
            array = self._inflated(entry)[header.start :].view(header.dtype.numpy).reshape(shape)
        if header.big_endian:
            array = array.byteswap(inplace=entry.method != STORED)
        array.flags.writeable = False
        return array.T if header.fortran else array

    def _place(self, name: str) -> tuple[int, int]:
        entry, header = self._arrays[name]
        if entry.method != STORED:
            return entry.offset, entry.packed
        return entry.offset + header.start, self.specs[name].nbytes

    def _is_plain(self, name: str) -> bool:
        entry, header = self._arrays[name]
        turned = header.fortran and sum(size != 1 for size in header.shape) > 1
        return entry.method == STORED and not header.big_endian and not turned

    def check(self, name: str, known: int | None = None) -> bool:
        """Compare an array with the CRC-32 of its zip entry, once; True, or FormatError."""
        self._require(name)
        return self._members.require(self._arrays[name][0])

    def check_rest(self) -> None:
        """Check every member that has not been checked."""
        self._members.require_all()

    def _check_bytes(self, name: str) -> None:
        entry, _ = self._arrays[name]
        if entry.method == STORED:  # unpacking compares by itself
            self._members.require(entry)

    def _begins_as_array(self, entry: ZipEntry) -> bool:
        """Whether numpy takes a member for an array, whatever it is called."""
        start = self._file.data[entry.offset : entry.offset + min(entry.packed, 64)]
        if entry.method == DEFLATED:
            with contextlib.suppress(zlib.error):
                start = zlib.decompressobj(-zlib.MAX_WBITS).decompress(start, len(MAGIC))
        return start.startswith(MAGIC)

    def _header(self, entry: ZipEntry) -> NpyHeader:
        if entry.method == STORED:
            raw = self._file.data[entry.offset : entry.offset + min(entry.size, _HEAD_BYTES)]
        elif entry.method == DEFLATED:
            self._budget.spend(nbytes=entry.size)
            packed = self._file.data[entry.offset : entry.offset + min(entry.packed, 2 * _HEAD_BYTES)]
            try:
                raw = zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, _HEAD_BYTES)
            except zlib.error as error:
                raise damaged(self._file, entry, f"damaged compressed data ({error})") from error
        else:
            raise damaged(self._file, entry, f"packed by method {entry.method}, which numpy does not use")
        try:
            header = parse_header(raw)
        except ValueError as error:
            raise damaged(self._file, entry, str(error)) from error
        self._budget.spend(nodes=1, steps=header.steps)
        if header.dtype is not None and header.nbytes != entry.size:
            reason = f"an array of {header.nbytes} bytes in an entry of {entry.size}"
            raise damaged(self._file, entry, reason)
        return header

    def _inflated(self, entry: ZipEntry) -> Array:
        """The bytes of a whole entry, unpacked piece by piece into their place."""
        import numpy

        data = numpy.empty(entry.size, numpy.uint8)
        position = 0
        for piece in self._members.inflated(entry):
            data[position : position + len(piece)] = numpy.frombuffer(piece, numpy.uint8)
            position += len(piece)
        return data


def _metadata(path: Path, comment: bytes) -> dict[str, str]:
    if not comment.startswith(_COMMENT_PREFIX):
        return {}
    return parse_metadata(path, comment.removeprefix(_COMMENT_PREFIX))


def _unreadable(header: NpyHeader) -> str:
    if "O" in header.code:
        return "Python objects, which ckptkit never unpickles"
    return f"elements of type {header.code[:40]!r}, which is not known here"


class NpzWriter(SingleFileWriter):
    """Writes an npz archive; metadata goes into its comment, where numpy does not see it."""

    most = 150_000

    def __init__(
        self, path: Path, specs: Iterable[TensorSpec], metadata: Mapping[str, str], *, force: bool = False
    ) -> None:
        super().__init__(Path(path), specs, metadata)
        for spec in self.specs.values():
            if descr(spec.dtype) is None:
                raise UsageError(
                    f"{self.path}: npz cannot hold {spec.name!r} as {spec.dtype}: numpy has no name for it",
                    hint="write float32 or float16, or safetensors" if spec.dtype.is_float else None,
                )
        self._refuse_names()
        length = len(_COMMENT_PREFIX + metadata_json(self.metadata))
        if length > _MAX_COMMENT:
            raise UsageError(f"{self.path}: metadata of {length} bytes, npz holds {_MAX_COMMENT}")
        self.stage(force=force)
        self._zip = ZipWriter(self.file)
        self._arrays = {
            name: self._zip.reserve(name + _EXTENSION, len(header_bytes(spec)) + spec.nbytes)
            for name, spec in self.specs.items()
        }

    def _refuse_names(self) -> None:
        """A member's name is a tensor's, and programs that unpack archives make paths of them."""
        seen: dict[str, str] = {}
        for name in self.specs:
            other = seen.setdefault(plain_name(name), name)
            why = unsafe_name(name) or (f"is the path of {other!r} too" if other != name else None)
            if why is not None:
                raise ConversionError(
                    f"{self.path}: npz cannot hold a tensor called {name[:200]!r}: as a member it {why}",
                    hint="choose --to safetensors",
                )

    def put(self, spec: TensorSpec, pieces: Iterable[Piece]) -> int:
        """Write a tensor at its place."""
        return self._zip.fill(self._arrays[spec.name], pieces, head=header_bytes(spec))

    def end(self) -> None:
        """Write what is not the tensors."""
        self._zip.close(_COMMENT_PREFIX + metadata_json(self.metadata))
