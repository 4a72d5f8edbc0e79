"""Everything in an HDF5 file but the data, made in one go from the list of tensors.

Written is what h5py writes by default and every release of HDF5 reads: superblock 0, symbol-table groups,
contiguous datasets. The data comes first, after the superblock, and the structures after it, so that no
address has to be known twice. No times are noted: the same tensors give the same bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ckptkit.base.errors import ConversionError, UsageError
from ckptkit.base.tensors import DTYPES, DType, TensorSpec
from ckptkit.base.text import counted
from ckptkit.formats.base import HDF5_MARK
from ckptkit.formats.hdf5_reader import (
    ATTRIBUTE,
    BOOLEAN,
    BRAIN_FLOAT,
    DATASPACE,
    DATATYPE,
    ENUM,
    FLOAT,
    FLOAT_FIELDS,
    IMPLIED_BIT,
    INTEGER,
    LAYOUT,
    MAX_DEPTH,
    MAX_NAME,
    OPAQUE,
    RECORD,
    STRING,
    SYMBOL_TABLE,
    UNDEFINED,
)
from ckptkit.formats.mapped_file import MAX_DIMS

ALIGNMENT = 64
"""Of each tensor's first byte: whole cache lines, and any vector load."""

MAX_ATTRIBUTE = 60_000
"""A message of an object header holds fewer than 65536 bytes; an attribute is one."""

VARIABLE_TEXT = bytes.fromhex("19010100 10000000 10000000 01000000 00000800")
"""The type of a UTF-8 text of any length, as h5py writes it for a Python str."""


_SUPERBLOCK_BYTES = 96
_FILL_VALUE = 0x05
_CONSTANT = 1
_LEAF_K, _INTERNAL_K = 4, 16
_TABLE_ROWS = 2 * _LEAF_K
_TEXTS_BYTES = 4096
"""A collection of texts is never smaller."""


@dataclass(frozen=True)
class Hdf5Layout:
    """A file before its data."""

    head: bytes  # what it begins with
    offsets: Mapping[str, int]  # where each tensor's bytes go
    tail_offset: int
    tail: bytes  # what it ends with, and where that begins


_Group = dict[str, "TensorSpec | _Group"]

Attributes = Mapping[str, "bytes | Sequence[bytes]"]
"""Texts, and lists of texts, by the names of a group's attributes."""


def hdf5_layout(
    path: Path,
    specs: Iterable[TensorSpec],
    attributes: Mapping[str, Attributes],
    place: Callable[[str], str] = str,
) -> Hdf5Layout:
    """Lay out a file: ``attributes`` by the group's path, "" for the root; ``place`` is a dataset's path."""
    specs = list(specs)
    root = _tree(path, specs, place)
    offsets: dict[str, int] = {}
    position = _SUPERBLOCK_BYTES
    for spec in specs:
        if spec.nbytes:
            position += -position % ALIGNMENT
            offsets[spec.name] = position
            position += spec.nbytes
    start = position + -position % 8
    builder = _Builder(path, start, offsets, attributes, widest=_widest(root))
    if any(spec.dtype.name == BRAIN_FLOAT for spec in specs):
        builder.keep_text(BRAIN_FLOAT)
    group = builder.group(root)
    return Hdf5Layout(builder.superblock(group), offsets, start, bytes(builder.tail))


def _tree(path: Path, specs: Iterable[TensorSpec], place: Callable[[str], str]) -> _Group:
    root: _Group = {}
    for spec in specs:
        *folders, last = place(spec.name).split("/")
        parts_fit = all(part not in ("", ".", "..") and "\0" not in part for part in (*folders, last))
        if not parts_fit or len(place(spec.name)) > MAX_NAME or len(folders) >= MAX_DEPTH:
            raise ConversionError(f"{path}: HDF5 cannot hold a tensor called {spec.name!r}")
        if len(spec.shape) > MAX_DIMS:
            raise ConversionError(
                f"{path}: {spec.name!r} has {counted(len(spec.shape), 'axis')}, HDF5 holds {MAX_DIMS}"
            )
        group = root
        for folder in folders:
            below = group.setdefault(folder, {})
            if isinstance(below, TensorSpec):
                raise _both(path, below.name)
            group = below
        if last in group:
            raise _both(path, spec.name)
        group[last] = spec
    return root


def _both(path: Path, name: str) -> ConversionError:
    return ConversionError(
        f"{path}: {name!r} is a tensor and the beginning of other names; HDF5 cannot hold both"
    )


def _widest(group: _Group) -> int:
    """Members of the group that has most."""
    return max([len(group), *(_widest(below) for below in group.values() if isinstance(below, dict))])


@dataclass(frozen=True)
class _Placed:
    """Addresses of a group: of its header, of its tree of members, of its names."""

    header: int
    tree: int
    heap: int


class _Builder:
    def __init__(
        self,
        path: Path,
        start: int,
        offsets: Mapping[str, int],
        attributes: Mapping[str, Attributes],
        widest: int,
    ) -> None:
        self._path = path
        self._start = start
        self._offsets = offsets
        self._attributes = attributes
        tables = -(-widest // _TABLE_ROWS)
        self._internal_k = max(_INTERNAL_K, -(-tables // 2))
        if self._internal_k > 0xFFFF:
            raise ConversionError(f"{path}: {counted(widest, 'tensor')} in one group are too many for HDF5")
        self._texts: int | None = None
        self.tail = bytearray()

    def _add(self, raw: bytes) -> int:
        """Put a structure at the end; returns its address."""
        address = self._start + len(self.tail)
        self.tail += raw + bytes(-len(raw) % 8)
        return address

    def superblock(self, root: _Placed) -> bytes:
        """The first bytes of the file."""
        versions = bytes((0, 0, 0, 0, 0, 8, 8, 0))
        end = self._start + len(self.tail)
        return (
            HDF5_MARK
            + versions
            + struct.pack("<HHI", _LEAF_K, self._internal_k, 0)
            + struct.pack("<QQQQ", 0, UNDEFINED, end, UNDEFINED)
            + struct.pack("<QQIIQQ", 0, root.header, 1, 0, root.tree, root.heap)
        )

    def keep_text(self, text: str) -> None:
        """Store the one text that attributes refer to."""
        raw = text.encode()
        padded = raw + bytes(-len(raw) % 8)
        used = 16 + 16 + len(padded)
        body = struct.pack("<4sB3xQ", b"GCOL", 1, _TEXTS_BYTES)
        body += struct.pack("<HH4xQ", 1, 1, len(raw)) + padded
        body += struct.pack("<HH4xQ", 0, 0, _TEXTS_BYTES - used)
        self._texts = self._add(body + bytes(_TEXTS_BYTES - len(body)))

    def group(self, members: _Group, path: str = "") -> _Placed:
        """Write a group after everything in it."""
        headers: list[tuple[bytes, int]] = []
        for name, member in sorted(members.items(), key=lambda item: item[0].encode()):
            if isinstance(member, TensorSpec):
                address = self._dataset(member)
            else:
                address = self.group(member, f"{path}/{name}" if path else name).header
            headers.append((name.encode(), address))
        heap, name_offsets = self._heap([name for name, _ in headers])
        tree = self._tree(list(zip(name_offsets, (address for _, address in headers), strict=True)))
        messages = [_message(SYMBOL_TABLE, struct.pack("<QQ", tree, heap))]
        for name, value in self._attributes.get(path, {}).items():
            messages += self._texts_attribute(name, value)
        return _Placed(self._header(messages), tree, heap)

    def _texts_attribute(self, name: str, value: bytes | Sequence[bytes]) -> list[bytes]:
        """An attribute of texts; a long list in parts, ``name0`` and so on, as Keras has it."""
        texts = [value] if isinstance(value, bytes) else list(value)
        length = max(1, *map(len, texts)) if texts else 1
        if length > MAX_ATTRIBUTE:
            raise UsageError(f"{self._path}: {name} of {length} bytes, HDF5 holds {MAX_ATTRIBUTE}")
        kind = fixed_text_message(length)
        if isinstance(value, bytes):
            return [_attribute(name, kind, value)]
        most = MAX_ATTRIBUTE // length
        parts = [texts[first : first + most] for first in range(0, len(texts), most)] or [texts]
        names = [name] if len(parts) == 1 else [f"{name}{number}" for number in range(len(parts))]
        return [
            _attribute(name, kind, b"".join(text.ljust(length, b"\0") for text in part), len(part))
            for name, part in zip(names, parts, strict=True)
        ]

    def _heap(self, names: list[bytes]) -> tuple[int, list[int]]:
        """Names of a group's members, with where each begins; the empty name comes first."""
        data = bytearray(8)
        offsets = []
        for name in names:
            offsets.append(len(data))
            data += name + bytes(8 - len(name) % 8)
        no_free_space = 1
        address = self._start + len(self.tail)
        self._add(struct.pack("<4sB3xQQQ", b"HEAP", 0, len(data), no_free_space, address + 32) + data)
        return address, offsets

    def _tree(self, rows: list[tuple[int, int]]) -> int:
        """A tree of one node over the tables of a group's members, sorted by name."""
        tables = []
        for first in range(0, len(rows), _TABLE_ROWS):
            part = rows[first : first + _TABLE_ROWS]
            body = struct.pack("<4sBxH", b"SNOD", 1, len(part))
            body += b"".join(struct.pack("<QQ24x", name, header) for name, header in part)
            tables.append((self._add(body + bytes(40 * (_TABLE_ROWS - len(part)))), part[-1][0]))
        node = struct.pack("<4sBBHQQ", b"TREE", 0, 0, len(tables), UNDEFINED, UNDEFINED)
        node += struct.pack("<Q", 0)  # each key is the greatest name before it, the first the empty one
        node += b"".join(struct.pack("<QQ", table, greatest) for table, greatest in tables)
        length = 24 + 8 * 2 * self._internal_k + 8 * (2 * self._internal_k + 1)
        return self._add(node + bytes(length - len(node)))

    def _dataset(self, spec: TensorSpec) -> int:
        kind = type_message(spec.dtype)
        if kind is None:
            raise UsageError(f"{self._path}: a Keras weights file cannot hold {spec.name!r} as {spec.dtype}")
        shape = struct.pack(f"<BBB5x{len(spec.shape)}Q", 1, len(spec.shape), 0, *spec.shape)
        offset = self._offsets.get(spec.name, UNDEFINED)
        messages = [
            _message(DATASPACE, shape),
            _message(DATATYPE, kind, _CONSTANT),
            _message(_FILL_VALUE, bytes((2, 2, 2, 1, 0, 0, 0, 0)), _CONSTANT),  # zero, written when space is
            _message(LAYOUT, struct.pack("<BBQQ", 3, 1, offset, spec.nbytes)),
        ]
        if spec.dtype.name == BRAIN_FLOAT:
            assert self._texts is not None
            value = struct.pack("<IQI", len(BRAIN_FLOAT), self._texts, 1)
            messages.append(_attribute("dtype", VARIABLE_TEXT, value))
        return self._header(messages)

    def _header(self, messages: list[bytes]) -> int:
        body = b"".join(messages)
        return self._add(struct.pack("<BxHII4x", 1, len(messages), 1, len(body)) + body)


def _message(kind: int, body: bytes, flags: int = 0) -> bytes:
    body += bytes(-len(body) % 8)
    return struct.pack("<HHB3x", kind, len(body), flags) + body


def _attribute(name: str, kind: bytes, value: bytes, count: int | None = None) -> bytes:
    """An attribute of a single value, or of a list of so many."""
    lengths = () if count is None else (count,)
    title, space = name.encode() + b"\0", struct.pack(f"<BBB5x{len(lengths)}Q", 1, len(lengths), 0, *lengths)
    body = struct.pack("<BxHHH", 1, len(title), len(kind), len(space))
    for part in (title, kind, space):
        body += part + bytes(-len(part) % 8)
    return _message(ATTRIBUTE, body + value)


def type_message(dtype: DType) -> bytes | None:
    """The datatype message of an element type as h5py writes it; None where Keras could not read it.

    Examples
    --------
    >>> type_message(DTYPES["int16"]).hex()
    '100800000200000000001000'
    """
    bits = 8 * dtype.itemsize
    if dtype.name == BRAIN_FLOAT:
        return struct.pack("<B3xI", OPAQUE | 1 << 4, dtype.itemsize)
    if dtype.name in FLOAT_FIELDS:
        sign, *fields, bias = FLOAT_FIELDS[dtype.name]
        head = struct.pack("<BBBxI", FLOAT | 1 << 4, IMPLIED_BIT, sign, dtype.itemsize)
        return head + struct.pack("<HHBBBBI", 0, bits, *fields, bias)
    if dtype.kind in ("int", "uint"):
        signed = 8 if dtype.kind == "int" else 0
        return struct.pack("<BB2xIHH", INTEGER | 1 << 4, signed, dtype.itemsize, 0, bits)
    if dtype.kind == "bool":
        head = struct.pack("<BB2xI", ENUM | 1 << 4, len(BOOLEAN), 1)
        base = struct.pack("<BB2xIHH", INTEGER | 1 << 4, 8, 1, 0, 8)
        return head + base + b"".join(name.ljust(8, b"\0") for name in BOOLEAN) + b"".join(BOOLEAN.values())
    if dtype.kind == "complex":
        part = type_message(DTYPES[f"float{bits // 2}"])
        assert part is not None
        head = struct.pack("<BB2xI", RECORD | 1 << 4, 2, dtype.itemsize)
        offsets = ((b"r", 0), (b"i", dtype.itemsize // 2))
        return head + b"".join(struct.pack("<8sI28x", name, offset) + part for name, offset in offsets)
    return None


def fixed_text_message(length: int) -> bytes:
    """The datatype message of a UTF-8 text of a fixed number of bytes, padded with zeros."""
    return struct.pack("<BB2xI", STRING | 1 << 4, 0x11, length)
