"""Read HDF5 files without libhdf5, in the order of their bytes: superblock, object headers, groups, datasets.

libhdf5 1.14.6, which h5py brings, ends the process with a segmentation fault on some damaged files (of 3000
random ones, on one), which no Python code can turn into an error. Source of every structure: the HDF5 File
Format Specification, version 3.0.
"""

from __future__ import annotations

import contextlib
import math
import struct
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, Literal, NamedTuple, TypeVar

from ckptkit.base.budget import Budget
from ckptkit.base.errors import FormatError
from ckptkit.base.tensors import DTYPES, Array, DType
from ckptkit.base.text import counted
from ckptkit.formats.base import HDF5_MARK
from ckptkit.formats.mapped_file import MAX_DIMS, MappedFile

UNDEFINED = (1 << 64) - 1
"""An address that means "nowhere"."""

MAX_DEPTH, MAX_NAME = 64, 1024
"""Groups inside each other, and characters of a whole path: no file of weights comes near."""

REWRITE = "write it again with Keras, or with h5py's defaults"
"""What to do with a sound file of a kind that is not read."""
_DAMAGED = "the file is damaged: fetch or write it again"
_TOO_SHORT = "a structure is shorter than what it should hold"


class Hdf5Bytes:
    """An HDF5 file, or a part of a file that is one.

    Each structure of a sound file is read once, or nearly so, and all of them together are no longer than the
    file: structures that overlap, or that lead back to themselves, use that allowance up.
    """

    def __init__(self, file: MappedFile, start: int = 0, size: int | None = None) -> None:
        self.file = file
        self.start = start
        self.size = file.size - start if size is None else size
        self._allowance = 2 * self.size
        self.budget = Budget(file.size, partial(FormatError, file.path))

    def piece(
        self, address: int, length: int, what: str, mark: bytes = b"", *, checked: bool = False
    ) -> Piece:
        """A range that holds a structure: after its mark, and before its checksum if it ends with one."""
        self.require(address, length, what)
        self._spend(address, length)
        self.budget.spend(steps=2)
        first = self.start + address
        raw = self.file.data[first : first + length]
        if not raw.startswith(mark):
            raise self.error(f"not {what}", address)
        if checked:
            raw, stored = raw[:-4], raw[-4:]
            self.require_checksum(raw, stored, address, what)
        return Piece(self, address, raw, len(mark))

    def claim(self, nbytes: int, name: str) -> None:
        """Count what a dataset becomes in memory that is not in the file as it is."""
        if nbytes > self.budget.nbytes:
            raise self.error(
                f"{name}: {nbytes:,} bytes when unpacked, too many for a file of {self.file.size:,} bytes",
                hint="write the dataset again, in one piece",
            )
        self.budget.spend(nbytes=nbytes)

    def require_checksum(self, raw: bytes, stored: bytes, address: int, what: str) -> None:
        """Compare the bytes of a structure with their checksum."""
        self.budget.spend(steps=len(raw) // 4)
        if lookup3(raw) != int.from_bytes(stored, "little"):
            raise self.error(f"the checksum of {what} does not match", address)

    def text(self, address: int, limit: int) -> bytes:
        """Bytes up to the next zero, which must come before ``limit`` (an address)."""
        first, stop = self.start + address, self.start + min(limit, address + MAX_NAME + 1, self.size)
        end = self.file.data.find(b"\0", first, stop) if first < stop else -1
        if end < 0:
            raise self.error("a name without an end, or longer than any layer's", address)
        self._spend(address, end - first)
        return self.file.data[first:end]

    def _spend(self, address: int, length: int) -> None:
        self._allowance -= length
        if self._allowance < 0:
            raise self.error("structures that overlap", address)

    def require(self, address: int, length: int, what: str) -> None:
        """Raise FormatError unless a range is inside the file."""
        if address > self.size or length > self.size - address:
            raise self.error(f"{what} of {length} bytes reaches outside the file", min(address, self.size))

    def error(self, reason: str, address: int | None = None, hint: str = _DAMAGED) -> FormatError:
        """Make the error that names the file and the place."""
        offset = None if address is None else self.start + address
        return FormatError(self.file.path, reason, offset=offset, hint=hint)


def lookup3(raw: bytes) -> int:
    """Checksum of HDF5's newer structures: Bob Jenkins' hash of 2006, ``hashlittle`` with 0 to begin with.

    Examples
    --------
    >>> hex(lookup3(b"Four score and seven years ago"))  # from the source of the hash
    '0x17770551'
    """
    mask = 0xFFFFFFFF
    a = b = c = 0xDEADBEEF + len(raw) & mask
    whole = max(len(raw) - 1, 0) // 12 * 12
    x: int
    y: int
    z: int
    for x, y, z in struct.iter_unpack("<3I", raw[:whole]):  # cut to 32 bits where a value is shifted next
        a, b, c = a + x, b + y, c + z & mask
        a, c = (a - c ^ c << 4 ^ c >> 28) & mask, c + b
        b, a = (b - a ^ a << 6 ^ a >> 26) & mask, a + c
        c, b = (c - b ^ b << 8 ^ b >> 24) & mask, b + a
        a, c = (a - c ^ c << 16 ^ c >> 16) & mask, c + b
        b, a = (b - a ^ a << 19 ^ a >> 13) & mask, a + c
        c, b = (c - b ^ b << 4 ^ b >> 28) & mask, b + a
    if whole == len(raw):
        return c
    x, y, z = struct.unpack("<3I", raw[whole:].ljust(12, b"\0"))
    a, b, c = a + x & mask, b + y & mask, c + z & mask
    c = (c ^ b) - (b << 14 & mask | b >> 18) & mask
    a = (a ^ c) - (c << 11 & mask | c >> 21) & mask
    b = (b ^ a) - (a << 25 & mask | a >> 7) & mask
    c = (c ^ b) - (b << 16 & mask | b >> 16) & mask
    a = (a ^ c) - (c << 4 & mask | c >> 28) & mask
    b = (b ^ a) - (a << 14 & mask | a >> 18) & mask
    return (c ^ b) - (b << 24 & mask | b >> 8) & mask


class Piece:
    """Some bytes of the file, read from their beginning to their end and not beyond."""

    def __init__(self, source: Hdf5Bytes, address: int, raw: bytes, position: int = 0) -> None:
        self._source = source
        self._address = address
        self._raw = raw
        self._position = position

    @property
    def left(self) -> int:
        """Number of bytes not yet read."""
        return len(self._raw) - self._position

    @property
    def address(self) -> int:
        """Where the next byte is in the file."""
        return self._address + self._position

    def raw(self, length: int) -> bytes:
        """Read the next bytes."""
        start = self._position
        end = start + length
        if end > len(self._raw):
            raise self.error(_TOO_SHORT)
        self._position = end
        return self._raw[start:end]

    def number(self, width: int) -> int:
        """Read an unsigned number of ``width`` bytes."""
        start = self._position  # as `raw`: this is what reading a file of many objects consists of
        end = start + width
        if end > len(self._raw):
            raise self.error(_TOO_SHORT)
        self._position = end
        return int.from_bytes(self._raw[start:end], "little")

    def fields(self, form: str) -> tuple[Any, ...]:
        """Read the next numbers, whose widths and gaps are given as `struct` has them."""
        packed = _struct(form)
        return packed.unpack(self.raw(packed.size))

    def until_zero(self) -> bytes:
        """Read the next bytes up to a zero, and the zero."""
        end = self._raw.find(b"\0", self._position)
        return self.raw(end + 1 - self._position if end >= 0 else self.left + 1)[:-1]

    def part(self, length: int) -> Piece:
        """Read the next bytes as a piece of their own."""
        address = self.address
        return Piece(self._source, address, self.raw(length))

    def again(self) -> Piece:
        """The same bytes, to be read from their beginning."""
        return Piece(self._source, self._address, self._raw)

    def error(self, reason: str, hint: str = _DAMAGED) -> FormatError:
        """Make the error that names the file and this place."""
        return self._source.error(reason, self.address, hint)


@cache
def _struct(form: str) -> struct.Struct:
    return struct.Struct("<" + form)


# ----------------------------------------------------------------------------------------------------
# Superblock, object headers and groups. Groups are read in every way HDF5 keeps them: symbol tables (h5py's
# default), links in the group's header, and links in a heap (many members, with ``track_order`` or
# ``libver="latest"``). Links to other files are refused.

OLD_FILL_VALUE, FILL_VALUE = 0x04, 0x05
DATASPACE, LINK_INFO, DATATYPE, LINK, EXTERNAL_FILES, LAYOUT, FILTERS = 1, 2, 3, 6, 7, 8, 0x0B
ATTRIBUTE, CONTINUATION, SYMBOL_TABLE, ATTRIBUTE_INFO = 0x0C, 0x10, 0x11, 0x15
_SHARED = 2
_NAMED_TYPES = ((2, 0), (2, 2), (3, 2))
"""Version and kind of a shared message that is in the header of another object."""
_HARD, _SOFT, _EXTERNAL = 0, 1, 64
_CACHED_TABLE, _CACHED_SOFT_LINK = 1, 2

_NO_LINKS = "copy what it links to into one file, for example with h5py's File.copy"


@dataclass(frozen=True)
class Header:
    """An object's header: its messages, which say what it is and where its parts are."""

    address: int
    messages: Mapping[int, Sequence[tuple[int, Piece]]]  # flags and body of each, by their kind

    def body(self, kind: int) -> Piece | None:
        """The body of the only message of a kind, None where there is none."""
        found = self.messages.get(kind)
        if not found:
            return None
        (flags, body), *others = found
        if others:
            raise body.error(f"an object with two messages of kind {kind:#x}")
        if flags & _SHARED:
            raise body.error(
                f"a message of kind {kind:#x} that several objects share: not supported", REWRITE
            )
        return body.again()

    def shared(self, kind: int) -> Piece | None:
        """Where the only message of a kind is, when that is in another object."""
        found = self.messages.get(kind, ())
        return found[0][1].again() if len(found) == 1 and found[0][0] & _SHARED else None

    def bodies(self, kind: int) -> Iterator[Piece]:
        """The bodies of all messages of a kind."""
        return (body.again() for _, body in self.messages.get(kind, ()))

    @property
    def is_group(self) -> bool:
        """Whether it has members."""
        return not self.messages.keys().isdisjoint((SYMBOL_TABLE, LINK_INFO, LINK))

    @property
    def is_dataset(self) -> bool:
        """Whether it holds data."""
        return LAYOUT in self.messages


class Link(NamedTuple):
    """A member of a group: the address of an object, or, of a soft link, the path where to look for one."""

    address: int | None
    target: str = ""


_Rank = TypeVar("_Rank", bytes, "tuple[int, ...]")


class Hdf5File(Hdf5Bytes):
    """An HDF5 file: its superblock, and from there its object headers, groups and attributes."""

    def __init__(self, file: MappedFile, start: int = 0, size: int | None = None) -> None:
        super().__init__(file, start, size)
        self._headers: dict[int, Header] = {}
        self._links: dict[int, dict[str, Link]] = {}
        self._noted: tuple[int, ...] | None = None  # where the superblock says that the root's members are
        self._heaps: dict[int, dict[int, tuple[int, int]]] = {}  # collections of texts, by address
        self.outside: list[tuple[str, str]] | None = (
            None  # a list takes links to other files, as name and target
        )
        self.root = self._superblock()

    def forget(self) -> None:
        """Give back the memory of headers, groups and texts; what is needed again is read again."""
        for found in (self._headers, self._links, self._heaps):
            found.clear()

    def _superblock(self) -> int:
        what = "the HDF5 superblock"
        version = self.piece(0, 9, what, HDF5_MARK).number(1)
        if version in (0, 1):
            body = self.piece(9, 87 + 4 * version, what)
            widths, base, end, root, cached, *noted = body.fields(f"4x2s{9 + 4 * version}xQ8xQ16xQI4xQQ")
            self._noted = tuple(noted) if cached == _CACHED_TABLE else None
        elif version in (2, 3):
            body = self.piece(0, 48, what, checked=True)
            widths, base, end, root = body.fields("9x2sxQ8xQQ")
        else:
            raise self.error(f"an HDF5 superblock of version {version}", 8, REWRITE)
        if widths != b"\x08\x08":
            raise self.error("an HDF5 file with addresses of other than 8 bytes", 9)
        if base:
            raise self.error("an HDF5 file that does not begin at its own beginning", 9)
        if end > self.size:
            raise self.error(f"truncated: {self.size} bytes of {end}", hint="fetch or write it again")
        if end < self.size:
            extra = self.size - end
            raise self.error(f"{extra} bytes after the end of the HDF5 file", end, "fetch it again")
        return int(root)

    # -- object headers --------------------------------------------------------------------------------------

    def header(self, address: int) -> Header:
        """An object header of either version, with its continuations."""
        if address not in self._headers:
            self._headers[address] = Header(address, self._messages(address))
        return self._headers[address]

    def _messages(self, address: int) -> dict[int, list[tuple[int, Piece]]]:
        what = "an object header"
        start = self.piece(address, 6, what)
        if start.raw(4) != b"OHDR":
            version, length = self.piece(address, 16, what).fields("B7xI4x")
            if version != 1:
                raise self.error(f"not {what}", address)
            return self._in_blocks(self.piece(address + 16, length, what), "HHB3x")
        version, flags = start.fields("BB")
        if version != 2:
            raise start.error("an object header of another version than 1 and 2")
        skipped, width = 16 * (flags >> 5 & 1) + 4 * (flags >> 4 & 1), 1 << (flags & 3)
        first = 6 + skipped + width
        length = self.piece(address + 6 + skipped, width, what).number(width)
        whole = self.piece(address, first + length + 4, what, checked=True)
        whole.raw(first)
        return self._in_blocks(whole, "BHB2x" if flags & 4 else "BHB")

    def _in_blocks(self, first: Piece, form: str) -> dict[int, list[tuple[int, Piece]]]:
        """The messages of a header's first block and of those that it continues in, by their kind."""
        messages: dict[int, list[tuple[int, Piece]]] = {}
        blocks, newer, head_bytes = [first], form.startswith("B"), _struct(form).size
        what, mark = "the rest of an object header", b"OCHK" if newer else b""
        for block in blocks:  # grows while it is walked over
            while block.left >= head_bytes:
                self.budget.spend(steps=2)
                kind, length, flags = block.fields(form)
                body = block.part(length)
                if kind == CONTINUATION:
                    place, size = body.fields("QQ")
                    blocks.append(self.piece(place, size, what, mark, checked=newer))
                else:
                    messages.setdefault(kind, []).append((flags, body))
        return messages

    def datatype(self, header: Header) -> Piece | None:
        """The type of a dataset's elements: in its own header, or in that of a type with a name."""
        shared = header.shared(DATATYPE)
        if shared is None:
            return header.body(DATATYPE)
        if shared.fields("BB") not in _NAMED_TYPES:
            raise shared.error("an element type that several objects share: not supported", REWRITE)
        return self.header(shared.number(8)).body(DATATYPE)

    # -- groups ----------------------------------------------------------------------------------------------

    def links(self, header: Header) -> dict[str, Link]:
        """The members of a group by name, in the order in which they were made where the file tells it."""
        if header.address not in self._links:
            self._links[header.address] = self._members(header)
        return self._links[header.address]

    def _members(self, header: Header) -> dict[str, Link]:
        found: dict[str, Link] = {}
        for raw, address, target in self._raw_links(header):
            try:
                name = raw.decode()
            except UnicodeDecodeError as error:
                raise self.error("a name that is not UTF-8", header.address) from error
            if not name or "/" in name or "\0" in name or name == "." or name in found:
                raise self.error(f"a group with two members, or none, of name {name!r}", header.address)
            found[name] = Link(address, target.decode(errors="replace"))
        return found

    def _raw_links(self, header: Header) -> Iterator[tuple[bytes, int | None, bytes]]:
        table = header.body(SYMBOL_TABLE)
        if table is not None:
            tree, heap = table.fields("QQ")
            if header.address == self.root and self._noted not in (None, (tree, heap)):
                raise table.error("the root group has its members at two places")
            yield from self._symbols(tree, heap)
            return
        info = header.body(LINK_INFO)
        dense = dense_messages(self, info, LINK_BY_NAME, lambda body: self._link(body)[1])
        links = [self._link(body) for body in (*header.bodies(LINK), *dense)]
        for _, name, address, target in sorted(links):  # by their order, and by name where none was tracked
            yield name, address, target

    def _link(self, body: Piece) -> tuple[int, bytes, int | None, bytes]:
        """When it was made, its name, its address or None, and the path that a soft link holds."""
        version, flags = body.fields("BB")
        if version != 1:
            raise body.error(f"a link of version {version}")
        kind = body.number(1) if flags & 8 else _HARD
        order = body.number(8 if flags & 4 else 0)
        body.raw(1 if flags & 16 else 0)
        name = body.raw(body.number(1 << (flags & 3)))
        if len(name) > MAX_NAME:
            raise body.error("a name longer than any layer's")
        if kind == _SOFT:
            return order, name, None, body.raw(body.number(2))
        if kind == _EXTERNAL and self.outside is not None:
            where, _, inside = body.raw(body.number(2))[1:].rstrip(b"\0").partition(b"\0")
            target = b"%s:%s" % (where, inside)
            self.outside.append((name.decode(errors="replace"), target.decode(errors="replace")))
            return order, name, None, b""
        if kind != _HARD:
            what = "a link to another file" if kind == _EXTERNAL else "a link of an unknown kind"
            raise body.error(f"{name.decode(errors='replace')!r} is {what}: not followed", _NO_LINKS)
        return order, name, body.number(8), b""

    def _symbols(self, tree: int, heap: int) -> Iterator[tuple[bytes, int | None, bytes]]:
        """Members of a group whose names are in a heap, sorted through a tree of tables."""
        size, names = self.piece(heap, 32, "a group's names", b"HEAP\0").fields("3xQ8xQ")
        self.require(names, size, "a group's names")

        def text(row: Piece, offset: int) -> bytes:
            if offset >= size:
                raise row.error("a name outside of its heap")
            return self.text(names + offset, names + size)

        def rank(key: Piece) -> bytes:
            return text(key, key.number(8))

        for _, address, first, last in self.leaves(tree, kind=0, key_bytes=8, rank=rank):
            before = first
            (count,) = self.piece(address, 8, "a group's table", b"SNOD\1").fields("xH")
            rows = self.piece(address + 8, 40 * count, "a group's table")
            while rows.left:
                row = rows.part(40)
                name_at, target, cached, target_at = row.fields("QQI4xI12x")
                name = text(row, name_at)
                if not before < name <= last:  # HDF5 looks names up by their order
                    raise row.error(f"a group whose members are not in order, at {name[:80]!r}")
                before = name
                if cached == _CACHED_SOFT_LINK:
                    yield name, None, text(row, target_at)
                else:
                    yield name, target, b""

    def leaves(
        self, tree: int, *, kind: int, key_bytes: int, rank: Callable[[Piece], _Rank]
    ) -> Iterator[tuple[Piece, int, _Rank, _Rank]]:
        """What the lowest nodes of a B-tree point to: key, address, and what it is sorted between."""
        waiting: list[tuple[int, int | None, tuple[_Rank, _Rank] | None]] = [(tree, None, None)]
        while waiting:
            address, expected, around = waiting.pop()
            node = self.piece(address, 24, "a node of a tree", b"TREE")
            found, level, count = node.fields("BBH16x")
            if found != kind or expected not in (None, level):
                raise node.error("a node of another tree")
            if not count:
                continue
            rows = self.piece(address + 24, count * (key_bytes + 8) + key_bytes, "a node of a tree")
            self.budget.spend(nodes=count, steps=4 * count)
            key = rows.part(key_bytes)
            low = rank(key.again())
            if around and low < around[0]:
                raise rows.error("a tree that is not in order")
            below: list[tuple[int, int | None, tuple[_Rank, _Rank] | None]] = []
            for _ in range(count):
                child, following = rows.number(8), rows.part(key_bytes)
                high = rank(following.again())
                if not low < high or (around and around[1] < high):
                    raise rows.error("a tree that is not in order")
                if level:
                    below.append((child, level - 1, (low, high)))
                else:
                    yield key, child, low, high
                key, low = following, high
            waiting += reversed(below)

    # -- attributes ----------------------------------------------------------------------------------------

    def attributes(self, header: Header) -> dict[str, str | None]:
        """Names of an object's attributes, with the value where it is a single text."""
        return {name: single(values) for name, values in self.attribute_texts(header).items()}

    def attribute_texts(self, header: Header) -> dict[str, Texts]:
        """Names of an object's attributes, with the value where it is a text or a list of texts.

        A list without elements is one of texts, whatever its type: h5py gives numbers to an empty one.
        """
        found: dict[str, Texts] = {}
        for body in self._attribute_bodies(header):
            name, values = self._attribute(body)
            if name in found:
                raise self.error(f"an object with two attributes {name!r}", header.address)
            found[name] = values
        return found

    def attribute_number(self, header: Header, name: str) -> int | None:
        """An attribute that is a single whole number; None where there is none of that name."""
        for body in self._attribute_bodies(header):
            found, element, shape = self._attribute_head(body)
            if found == name and element is not None and element.dtype is not None and shape == ():
                kind = element.dtype.kind
                if kind in ("int", "uint"):
                    order: Literal["big", "little"] = "big" if element.big_endian else "little"
                    return int.from_bytes(body.raw(element.size), order, signed=kind == "int")
        return None

    def _attribute_bodies(self, header: Header) -> Iterator[Piece]:
        """An object's attributes: in its header, or, where they are many or long, in a heap."""
        yield from header.bodies(ATTRIBUTE)
        info = header.body(ATTRIBUTE_INFO)
        yield from dense_messages(self, info, ATTRIBUTE_BY_NAME, self._attribute_name)

    def _attribute(self, body: Piece) -> tuple[str, Texts]:
        name, element, shape = self._attribute_head(body)
        return name, None if element is None else self._texts(body, element, shape)

    def _attribute_head(self, body: Piece) -> tuple[str, ElementType | None, tuple[int, ...] | None]:
        """Name, type and shape, up to the value; no type where it is in another object."""
        version, flags, *sizes = body.fields("BBHHH")
        if version not in (1, 2, 3):
            raise body.error(f"an attribute of version {version}")
        self.budget.spend(nodes=1, steps=8)
        body.raw(1 if version == 3 else 0)
        name, kind, space = (self._padded(body, size, 8 if version == 1 else 1) for size in sizes)
        text = name.raw(name.left).rstrip(b"\0").decode(errors="replace")
        if version > 1 and flags & 3:
            return text, None, None
        return text, parse_type(kind), parse_shape(space)

    @staticmethod
    def _attribute_name(body: Piece) -> bytes:
        """The name as it is stored, without the zeros after it."""
        version, length = body.fields("BxH")
        body.raw(5 if version == 3 else 4)
        return body.raw(length).partition(b"\0")[0]

    @staticmethod
    def _padded(body: Piece, size: int, to: int) -> Piece:
        part = body.part(size)
        body.raw(min(-size % to, body.left))
        return part

    def _texts(self, body: Piece, element: ElementType, shape: tuple[int, ...] | None) -> Texts:
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
            length, heap, index = cell.fields("IQI")
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
        """An object of a collection in the global heap, which holds texts of any length."""
        if address not in self._heaps:
            (size,) = self.piece(address, 16, "a collection of texts", b"GCOL\1").fields("3xQ")
            body = self.piece(address + 16, max(0, size - 16), "a collection of texts")
            objects: dict[int, tuple[int, int]] = {}
            while body.left >= 16:
                number, length = body.fields("H6xQ")
                if number == 0:  # the rest is free
                    break
                objects[number] = (body.address, length)
                body.raw(length)
                body.raw(min(-length % 8, body.left))
            self._heaps[address] = objects
        where = self._heaps[address].get(index)
        if where is None:
            raise self.error(f"no text {index} in the collection", address)
        return self.piece(where[0], min(where[1], _MAX_TEXT), "a text").raw(min(where[1], _MAX_TEXT))


# ----------------------------------------------------------------------------------------------------
# Heaps that hold many links of a group or attributes of an object, found through a tree. Files with
# ``track_order`` or ``libver="latest"`` have them, from nine members on. Source: the HDF5 File Format
# Specification 3.0, III.A.2 (version 2 B-trees) and III.G (fractal heaps).

LINK_BY_NAME, ATTRIBUTE_BY_NAME = 5, 8
"""Kinds of trees: how they sort their records."""

_HUGE_OBJECT = 1
_RECORD_BYTES = {_HUGE_OBJECT: 24, LINK_BY_NAME: 11, ATTRIBUTE_BY_NAME: 17}
_MAX_DEPTH = 8
_MANAGED, _HUGE = 0, 1
_CHECKED_BLOCKS = 2


_ORDER_BYTES = {LINK_BY_NAME: 8, ATTRIBUTE_BY_NAME: 2}
"""Of the number that the next member will have, where their order is tracked."""


def dense_messages(
    source: Hdf5Bytes, info: Piece | None, kind: int, name_of: Callable[[Piece], bytes]
) -> Iterator[Piece]:
    """The messages in a heap that a message tells of, in the order of their tree of links or attributes.

    The tree sorts them by the hash of their names, by which HDF5 looks them up.
    """
    if info is None:
        return
    _, flags = info.fields("BB")
    heap, tree = info.fields(f"{_ORDER_BYTES[kind] * (flags & 1)}xQQ")
    if heap == UNDEFINED:
        return
    messages = _Heap(source, heap)
    before = 0
    for record in _records(source, tree, kind):
        stored = record.number(4) if kind == LINK_BY_NAME else 0
        place = record.part(messages.place_bytes)
        if kind == ATTRIBUTE_BY_NAME:
            if record.number(1) & _SHARED:
                raise record.error("an attribute that several objects share: not supported")
            record.raw(4)  # when it was made
            stored = record.number(4)
        if stored < before:
            raise record.error("a tree that is not in order")
        before = stored
        message = messages.message(place)
        name = name_of(message.again())
        if lookup3(name) != stored:
            raise message.error(f"{name[:80]!r} is listed under the hash of another name")
        yield message


def _records(source: Hdf5Bytes, tree: int, kind: int) -> Iterator[Piece]:
    """Every record of a version 2 B-tree."""
    head = source.piece(tree, 38, "the head of a tree", b"BTHD\0", checked=True)
    found, node_bytes, record_bytes, depth, root, records, total = head.fields("BIHHxxQHQ")
    if found != kind or record_bytes != _RECORD_BYTES[kind] or depth > _MAX_DEPTH:
        raise head.error("a tree of another kind, or deeper than any group needs")
    most, pointers = _node_limits(node_bytes, record_bytes, depth)
    # Records of nodes come between those of the nodes below them.
    waiting: list[tuple[int, int, int] | Piece] = [] if root == UNDEFINED else [(root, records, depth)]
    seen = 0
    while waiting:
        one = waiting.pop()
        if isinstance(one, Piece):
            seen += 1
            yield one
            continue
        address, count, level = one
        if count > most[level]:
            raise head.error(f"a node of {counted(count, 'record')} in a tree of at most {most[level]}")
        length = 6 + count * record_bytes + (count + 1) * sum(pointers[level]) + 4
        source.budget.spend(nodes=count)
        mark = b"BTIN\0" if level else b"BTLF\0"
        node = source.piece(address, length, "a node of a tree", mark, checked=True)
        node.raw(1)
        parts: list[tuple[int, int, int] | Piece] = [node.part(record_bytes) for _ in range(count)]
        for place in range(0, 2 * count + 1, 2) if level else ():
            child, held, _ = (node.number(width) for width in pointers[level])
            parts.insert(place, (child, held, level - 1))
        waiting += reversed(parts)
    if seen != total:
        raise head.error(f"a tree of {counted(seen, 'record')} that should have {total}")


def _node_limits(
    node_bytes: int, record_bytes: int, depth: int
) -> tuple[list[int], list[tuple[int, int, int]]]:
    """Of each level: how many records a node holds at most, and how wide the parts of its pointers are."""
    overhead = 10
    most, pointers = [(node_bytes - overhead) // record_bytes], [(0, 0, 0)]
    held = most[0]
    for level in range(1, depth + 1):
        pointers.append((8, _bytes_of(most[0]), _bytes_of(held) if level > 1 else 0))
        width = sum(pointers[level])
        most.append((node_bytes - overhead - width) // (record_bytes + width))
        held = (most[level] + 1) * held + most[level]
    return most, pointers


def _bytes_of(number: int) -> int:
    """How many bytes a number up to this one takes."""
    return (max(number, 1).bit_length() - 1) // 8 + 1


class _Heap:
    """A fractal heap: blocks that double in size, in which messages are found by their offset."""

    def __init__(self, source: Hdf5Bytes, address: int) -> None:
        self._source = source
        self._address = address
        head = source.piece(address, 142, "the head of a heap", b"FRHP\0")
        self.place_bytes, filters, self._flags, largest = head.fields("HHBI")
        if filters:
            raise source.error("links or attributes in a packed heap: not supported", address)
        source.piece(address, 146, "the head of a heap", checked=True)
        self._huge_tree, self._width, self._first, self._most, bits, root, rows = head.fields(
            "8xQ80xHQQH2xQH"
        )
        sizes = (self._width, self._first, self._most)
        if any(size == 0 or size & (size - 1) for size in sizes) or self._first > self._most or bits > 64:
            raise head.error("a heap whose sizes make no sense")
        self._offset_bytes = -(-bits // 8)
        self._length_bytes = min(-(-(self._most.bit_length() - 1) // 8), _bytes_of(largest))
        self._blocks = [] if root == UNDEFINED else self._direct_blocks(root, rows)
        self._starts = [start for start, _, _ in self._blocks]
        self._checked: set[int] = set()
        self._huge: dict[int, tuple[int, int]] | None = None

    def _direct_blocks(self, root: int, rows: int) -> list[tuple[int, int, int]]:
        """Offset in the heap, size and address of each block that holds messages."""
        if rows == 0:
            return [(0, self._first, root)]
        blocks: list[tuple[int, int, int]] = []
        waiting = [(root, rows, 0)]
        while waiting:
            address, rows, offset = waiting.pop()
            length = 13 + self._offset_bytes + 8 * rows * self._width + 4
            block = self._source.piece(address, length, "a block of a heap", b"FHIB\0", checked=True)
            block.raw(8 + self._offset_bytes)
            for row in range(rows):
                size = self._first << max(0, row - 1)
                for _ in range(self._width):
                    child = block.number(8)
                    if child == UNDEFINED:
                        pass
                    elif size <= self._most:
                        blocks.append((offset, size, child))
                    else:
                        inner = size.bit_length() - (self._first * self._width).bit_length() + 1
                        if inner < 1:
                            raise block.error("a heap whose sizes make no sense")
                        waiting.append((child, inner, offset))
                    offset += size
        return sorted(blocks)

    def message(self, place: Piece) -> Piece:
        """The message at a place as links and attributes are found by."""
        kind = place.number(1) >> 4 & 3
        if kind == _HUGE:
            address, length = self._huge_object(place)
            return self._source.piece(address, length, "a message outside of its heap")
        if kind != _MANAGED:
            raise place.error("a message of an unknown kind")
        offset, length = place.number(self._offset_bytes), place.number(self._length_bytes)
        index = bisect_right(self._starts, offset) - 1
        if index < 0 or offset + length > self._starts[index] + self._blocks[index][1]:
            raise place.error("a message outside of its heap")
        start, size, address = self._blocks[index]
        if address not in self._checked:
            self._require_block(address, size)
            self._checked.add(address)
        return self._source.piece(address + offset - start, length, "a message of a heap")

    def _require_block(self, address: int, size: int) -> None:
        """Check that a block belongs to this heap, and its checksum, which is among its first bytes."""
        what = "a block of a heap"
        if self._source.piece(address, 13, what, b"FHDB\0").number(8) != self._address:
            raise self._source.error("a block of another heap", address)
        if self._flags & _CHECKED_BLOCKS:
            block = self._source.piece(address, size, what)
            head, stored = block.raw(13 + self._offset_bytes), block.raw(4)
            self._source.require_checksum(head + bytes(4) + block.raw(block.left), stored, address, what)

    def _huge_object(self, place: Piece) -> tuple[int, int]:
        """Address and length of a message too long for the blocks."""
        if self.place_bytes > 16:
            address, length = place.fields("QQ")
            return address, length
        if self._huge is None:
            self._huge = {}
            for record in _records(self._source, self._huge_tree, _HUGE_OBJECT):
                address, length, key = record.fields("QQQ")
                self._huge[key] = (address, length)
        found = self._huge.get(place.number(place.left))
        if found is None:
            raise place.error("a message that is in no list of its heap")
        return found


# ----------------------------------------------------------------------------------------------------
# Element types: the datatype message. Keras stores bfloat16, for which HDF5 has no type of its own, as
# opaque elements of two bytes with an attribute ``dtype`` beside them. h5py stores booleans as an enumeration
# of FALSE and TRUE, complex numbers as a record of ``r`` and ``i``.

INTEGER, FLOAT, TIME, STRING, BITS, OPAQUE = range(6)
RECORD, REFERENCE, ENUM, VARIABLE, ARRAY, COMPLEX = range(6, 12)
_MAX_NESTING = 8
_MAX_VERSION = 5

# sign bit's position, then the location and size of exponent and mantissa in bits, and the exponent's bias
FLOAT_FIELDS = {
    "float16": (15, 10, 5, 0, 10, 15),
    "bfloat16": (15, 7, 8, 0, 7, 127),
    "float32": (31, 23, 8, 0, 23, 127),
    "float64": (63, 52, 11, 0, 52, 1023),
}
IMPLIED_BIT = 2 << 4  # the mantissa's first bit is always one and not stored

BRAIN_FLOAT = "bfloat16"


@dataclass(frozen=True)
class ElementType:
    """What a datatype message says."""

    size: int  # bytes of an element
    # opaque where nothing here computes with it; None for texts and elements without a size of their own
    dtype: DType | None = None
    big_endian: bool = False
    text: Literal["fixed", "variable"] | None = None  # how a text is stored, where it is one
    what: str = ""  # in words, where there is no dtype

    @property
    def may_be_brain_float(self) -> bool:
        """Whether an attribute may say that these are bfloat16."""
        return self.dtype == VOID16


def _opaque(name: str, size: int) -> DType:
    return DType(name if name.isprintable() else name.partition(" ")[0], size, "opaque")


VOID16 = _opaque("void16", 2)
"""What bfloat16 looks like."""


def parse_type(piece: Piece, depth: int = 0) -> ElementType:
    """Read a datatype message."""
    kind = piece.number(1)
    kind, version = kind & 15, kind >> 4
    bits = piece.number(3)
    size = piece.number(4)
    if not 1 <= version <= _MAX_VERSION or size == 0 or depth > _MAX_NESTING:
        raise piece.error("an element type that makes no sense")
    if kind == STRING:
        return ElementType(size, text="fixed", what="texts")
    if kind == VARIABLE:
        parse_type(piece, depth + 1)
        if bits & 15 == 1:
            return ElementType(size, text="variable", what="texts")
        return ElementType(size, what="lists of any length")
    if kind == REFERENCE:
        return ElementType(size, what="references to other objects")
    if kind in (OPAQUE, TIME, BITS):
        name, properties = {
            OPAQUE: (f"void{8 * size}", bits & 0xFF),  # a tag
            TIME: (f"time of {8 * size} bits", 2),
            BITS: (f"bit field of {8 * size} bits", 4),
        }[kind]
        piece.raw(properties)
        return ElementType(size, _opaque(name, size))
    if kind in _CLASSES:
        return _CLASSES[kind](piece, bits, size, version, depth)
    raise piece.error(f"elements of type class {kind}")


def _integer(piece: Piece, bits: int, size: int, _version: int, _depth: int) -> ElementType:
    start, precision = piece.fields("HH")
    dtype = DTYPES.get(f"{'int' if bits & 8 else 'uint'}{8 * size}")
    if start or precision != 8 * size or dtype is None:
        return ElementType(size, _opaque(f"integer of {precision} bits in {size} bytes", size))
    return ElementType(size, dtype, big_endian=bool(bits & 1))


def _float(piece: Piece, bits: int, size: int, _version: int, _depth: int) -> ElementType:
    start, precision, *fields, bias = piece.fields("HHBBBBI")
    found = (bits >> 8 & 0xFF, *fields, bias)
    name = next((name for name, known in FLOAT_FIELDS.items() if known == found), None)
    unusual = start or precision != 8 * size or bits & 0x40 or bits & 0x30 != IMPLIED_BIT
    if name is None or unusual or DTYPES[name].itemsize != size:
        return ElementType(size, _opaque(f"float of {precision} bits in {size} bytes", size))
    return ElementType(size, DTYPES[name], big_endian=bool(bits & 1))


def _enumeration(piece: Piece, bits: int, size: int, version: int, depth: int) -> ElementType:
    """Numbers of the type below it; booleans where they are called so."""
    base = parse_type(piece, depth + 1)
    names = [_member_name(piece, version) for _ in range(bits & 0xFFFF)]
    values = [piece.raw(base.size) for _ in names]
    if size == base.size == 1 and dict(zip(names, values, strict=True)) == BOOLEAN:
        return ElementType(1, DTYPES["bool"])
    return base


BOOLEAN = {b"FALSE": b"\0", b"TRUE": b"\1"}


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
    """The complex class of HDF5 2.0."""
    base = parse_type(piece, depth + 1)
    return _complex_of(base, size) or ElementType(size, _opaque(f"complex of {8 * size} bits", size))


def _complex_of(part: ElementType, size: int) -> ElementType | None:
    dtype = DTYPES.get(f"complex{8 * size}")
    if dtype is None or part.dtype != DTYPES[f"float{4 * size}"]:
        return None
    return ElementType(size, dtype, part.big_endian)


_CLASSES: Mapping[int, Callable[[Piece, int, int, int, int], ElementType]] = {
    INTEGER: _integer,
    FLOAT: _float,
    RECORD: _record,
    ENUM: _enumeration,
    ARRAY: _array,
    COMPLEX: _complex,
}


def _member_name(piece: Piece, version: int) -> bytes:
    """A name that a zero ends; before version 3 more zeros fill it up to a multiple of eight bytes."""
    name = piece.until_zero()
    piece.raw(-(len(name) + 1) % 8 if version < 3 else 0)
    return name


# ----------------------------------------------------------------------------------------------------
# Shapes and attributes.

Texts = tuple[str, ...] | None
"""Value of an attribute that is a text or a list of texts; None where it is something else."""

_MAX_TEXT = 1 << 20
_REFERENCE_BYTES = 16  # of a text of any length: how long it is, and where


def parse_shape(piece: Piece) -> tuple[int, ...] | None:
    """Read a dataspace message: the axis lengths, None for a dataset declared to be empty."""
    # the third says whether the largest axis lengths follow, which say nothing of the data
    version, rank, _, kind = piece.fields("BBBB")
    if version not in (1, 2) or rank > 32:
        raise piece.error(f"a dataspace of version {version} with {counted(rank, 'axis')}")
    piece.raw(4 if version == 1 else 0)
    return None if version == 2 and kind == 2 else piece.fields(f"{rank}Q")


def single(values: Texts) -> str | None:
    """The text that an attribute is, if it is one text.

    Examples
    --------
    >>> single(("tensorflow",)), single(("a", "b")), single(None)
    ('tensorflow', None, None)
    """
    return values[0] if values is not None and len(values) == 1 else None


# ----------------------------------------------------------------------------------------------------
# Datasets: where their bytes are, checked before one of them is read.

_COMPACT, _CONTIGUOUS, _CHUNKED, _VIRTUAL = 0, 1, 2, 3
DEFLATE, SHUFFLE, FLETCHER32 = 1, 2, 3
"""Filters of chunks: zlib, bytes sorted by their place in an element, a checksum at the end."""
_PLAIN = "write the dataset again, plain or packed by gzip"


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
    """A dataset whose elements can be carried."""

    dtype: DType
    big_endian: bool
    shape: tuple[int, ...]
    address: int | None  # of its elements in one piece; None for one in chunks, or without elements
    chunk: tuple[int, ...] = ()  # axis lengths of a chunk
    chunks: Sequence[Chunk] = ()
    filters: tuple[int, ...] = ()  # what a chunk went through when it was written, in order
    fill: bytes = b""  # the element that was never written; empty for zeros

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def is_checked(self) -> bool:
        """Whether every chunk has a checksum."""
        checked = [not chunk.skipped for chunk in self.chunks]
        return FLETCHER32 in self.filters and bool(checked) and all(checked)


def parse_dataset(file: Hdf5File, header: Header, name: str) -> Dataset | NotRead:
    """Read the dataset that an object header describes."""
    if any(True for _ in header.bodies(EXTERNAL_FILES)):
        raise file.error(f"{name}: its data is kept in another file", header.address, "not followed")
    space, layout = (header.body(what) for what in (DATASPACE, LAYOUT))
    kind = file.datatype(header)
    if space is None or kind is None or layout is None:
        raise file.error(f"{name}: a dataset without shape, type or place", header.address)
    element = parse_type(kind)
    shape = parse_shape(space)
    dtype = element.dtype
    if element.may_be_brain_float and file.attributes(header).get("dtype") == BRAIN_FLOAT:
        dtype = DTYPES[BRAIN_FLOAT]
    storage = _Storage(file, header, layout, name)
    if dtype is None:
        return NotRead(element.what, is_tensor=element.text is None)
    if shape is None:
        return NotRead("declared to be empty")
    if len(shape) > MAX_DIMS or math.prod(shape) * dtype.itemsize >= 1 << 63:
        raise layout.error(f"{name}: implausible shape {list(shape)[:4]} …")
    return storage.dataset(element, dtype, shape)


class _Storage:
    """Where a dataset's elements are."""

    def __init__(self, file: Hdf5File, header: Header, body: Piece, name: str) -> None:
        self._file = file
        self._header = header
        self._body = body
        self._name = name
        version, self._kind = body.number(1), body.number(1)
        newest_chunks = version == 5 and self._kind == _CHUNKED  # HDF5 2.0 has it for chunks with filters
        if version not in (3, 4) and not newest_chunks:
            raise body.error(f"{name}: a data layout of version {version}: not supported", REWRITE)
        if self._kind == _VIRTUAL:
            raise body.error(f"{name}: a virtual dataset, put together from others", "not followed")
        if self._kind == _CHUNKED and version > 3:
            raise body.error(f"{name}: chunks with one of HDF5's newer indexes: not supported", REWRITE)
        if self._kind not in (_COMPACT, _CONTIGUOUS, _CHUNKED):
            raise body.error(f"{name}: a data layout of class {self._kind}")

    def dataset(self, element: ElementType, dtype: DType, shape: tuple[int, ...]) -> Dataset:
        nbytes = math.prod(shape) * dtype.itemsize
        if self._kind == _CHUNKED:
            return self._chunked(element, dtype, shape)
        if self._kind == _COMPACT:
            size = self._body.number(2)
            address = self._body.address
            self._body.raw(size)
        else:
            address, size = self._body.fields("QQ")
        if size != nbytes and not (address == UNDEFINED and nbytes == 0):
            raise self._body.error(f"{self._name}: {nbytes} bytes by its shape, {size} by its place")
        if nbytes == 0:
            return Dataset(dtype, element.big_endian, shape, None)
        if address == UNDEFINED:
            self._file.claim(nbytes, self._name)
            return Dataset(dtype, element.big_endian, shape, None, fill=self._fill(dtype.itemsize))
        self._file.require(address, nbytes, self._name)
        return Dataset(dtype, element.big_endian, shape, address)

    def _chunked(self, element: ElementType, dtype: DType, shape: tuple[int, ...]) -> Dataset:
        body = self._body
        axes, tree = body.fields("BQ")
        *chunk, itemsize = body.fields(f"{max(axes, 1)}I")
        if len(chunk) != len(shape) or itemsize != dtype.itemsize or 0 in chunk:
            raise body.error(f"{self._name}: chunks of {counted(axes, 'axis')} in a dataset of {len(shape)}")
        filters = _parse_filters(self._header.body(FILTERS), self._name)
        chunks = [] if tree == UNDEFINED else self._chunks(tree, shape, tuple(chunk))
        unpacked = max(math.prod(shape), max(len(chunks), 1) * math.prod(chunk)) * itemsize
        self._file.claim(unpacked, self._name)
        if not filters and any(one.packed != math.prod(chunk) * itemsize for one in chunks):
            raise body.error(f"{self._name}: chunks of the wrong size")
        fill = self._fill(itemsize)
        return Dataset(dtype, element.big_endian, shape, None, tuple(chunk), chunks, filters, fill)

    def _fill(self, itemsize: int) -> bytes:
        """The value of elements that were never written; empty where it is zero."""
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

    def _chunks(self, tree: int, shape: tuple[int, ...], chunk: tuple[int, ...]) -> list[Chunk]:
        """Every chunk, each at its own place of the grid; in a sorted tree no two are at one place."""
        numbers = struct.Struct(f"<{len(shape) + 1}Q")

        def rank(key: Piece) -> tuple[int, ...]:
            return numbers.unpack(key.raw(8 + numbers.size)[8:])

        found: list[Chunk] = []
        leaves = self._file.leaves(tree, kind=1, key_bytes=8 + numbers.size, rank=rank)
        for key, address, (*corner, byte), _ in leaves:
            packed, skipped = key.number(4), key.number(4)
            places = zip(corner, chunk, shape, strict=True)
            if byte or not all(first % step == 0 and first < size for first, step, size in places):
                raise key.error(f"{self._name}: a chunk where none belongs")
            self._file.budget.spend(steps=12)
            self._file.require(address, packed, f"{self._name}: a chunk")
            found.append(Chunk(tuple(corner), address, packed, skipped))
        return found


def _parse_filters(body: Piece | None, name: str) -> tuple[int, ...]:
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
        raw_title = body.raw(length + (-length % 8 if version == 1 else 0))
        body.raw(4 * (values + (values & 1 if version == 1 else 0)))
        if number not in (DEFLATE, SHUFFLE, FLETCHER32) or number in filters:
            title = raw_title.rstrip(b"\0").decode(errors="replace") or f"number {number}"
            raise body.error(f"{name}: packed by filter {title!r}: not supported", _PLAIN)
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


# ----------------------------------------------------------------------------------------------------
# Datasets in chunks, packed or not, put together in memory.


def read_chunks(source: Hdf5Bytes, dataset: Dataset, name: str) -> Array:
    """Put a dataset in chunks together; what was never written is its fill value."""
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
    """Take back what a chunk went through, and copy its elements to ``target``, which is of their bytes."""
    start = source.start + chunk.address
    raw = source.file.data[start : start + chunk.packed]
    limit = target.size + 4  # with a checksum at the end
    left = [number for index, number in enumerate(dataset.filters) if not chunk.skipped >> index & 1]
    while left and left != [SHUFFLE]:
        number = left.pop()
        if number == DEFLATE:
            unpacker = zlib.decompressobj()
            with contextlib.suppress(zlib.error):
                raw = unpacker.decompress(raw, limit + 1)
            if not unpacker.eof or unpacker.unused_data:
                raw = b""
        elif number == SHUFFLE:
            raw = _unshuffled(raw, dataset.dtype.itemsize)
        elif len(raw) < 4 or not _fletcher32_agrees(raw[:-4], int.from_bytes(raw[-4:], "little")):
            raise source.error(f"{name}: a chunk's checksum does not match", chunk.address)
        else:
            raw = raw[:-4]
    if len(raw) != target.size:
        raise source.error(f"{name}: a chunk does not unpack to {target.size} bytes", chunk.address)
    _unshuffle(raw, dataset.dtype.itemsize if left else 1, target)


def _unshuffle(raw: bytes, itemsize: int, target: Array) -> None:
    """Undo shuffle, which puts the first bytes of all elements first, then the second, and so on."""
    import numpy

    planes = numpy.frombuffer(raw, numpy.uint8).reshape(itemsize, -1)
    for place, plane in zip(target.reshape(-1, itemsize).T, planes, strict=True):
        place[...] = plane


def _unshuffled(raw: bytes, itemsize: int) -> bytes:
    """The same in memory of its own; a part of an element at the end is left where it is."""
    import numpy

    whole = len(raw) - len(raw) % itemsize
    target = numpy.empty(whole, numpy.uint8)
    _unshuffle(raw[:whole], itemsize, target)
    return target.tobytes() + raw[whole:]


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


# ----------------------------------------------------------------------------------------------------
# Every object of a file, by the paths that links give it.

NEITHER = NotRead("neither a group nor a dataset")
"""Other objects, which hold no values."""


@dataclass(frozen=True)
class Contents:
    """The objects under the root group of an HDF5 file, by path."""

    groups: dict[str, Header] = field(default_factory=dict)
    objects: dict[str, Dataset | NotRead] = field(default_factory=dict)  # everything else

    @property
    def datasets(self) -> dict[str, Dataset]:
        """The tensors."""
        return {path: one for path, one in self.objects.items() if isinstance(one, Dataset)}

    def not_read(self, *, tensors: bool) -> dict[str, str]:
        """Why the rest is not carried: of tensors, or of what is not a tensor of the model."""
        return {
            path: one.why
            for path, one in self.objects.items()
            if isinstance(one, NotRead) and one.is_tensor is tensors
        }


def contents(file: Hdf5File) -> Contents:
    """Every object under the root group, by each of its paths."""
    return _Walk(file).contents()


class _Walk:
    """Finds every object under the root group of a file, by each of the names that links give it."""

    def __init__(self, file: Hdf5File) -> None:
        self._file = file
        self._parsed: dict[int, Dataset | NotRead] = {}
        self._followed: dict[tuple[int, str], int | None] = {}

    def contents(self) -> Contents:
        """Walk from the root, depth first."""
        found = Contents()
        root = self._file.root
        waiting: list[tuple[str, tuple[int, ...]]] = [("", (root,))]
        while waiting:
            prefix, above = waiting.pop()
            below: list[tuple[str, tuple[int, ...]]] = []
            for name, link in self._file.links(self._file.header(above[-1])).items():
                path = prefix + name
                self._count(path, above[-1])
                address = self._address(name, link, above[-1])
                if address is None:
                    why = f"a soft link to {link.target}, which is not in the file"
                    found.objects[path] = NotRead(why)
                elif address in above:
                    found.objects[path] = NotRead("a link back to a group around it")
                elif self._file.header(address).is_group:
                    found.groups[path] = self._file.header(address)
                    below.append((path + "/", (*above, address)))
                else:
                    found.objects[path] = self._parse(path, address)
            waiting += reversed(below)
        return found

    def _parse(self, path: str, address: int) -> Dataset | NotRead:
        if address not in self._parsed:
            header = self._file.header(address)
            self._parsed[address] = parse_dataset(self._file, header, path) if header.is_dataset else NEITHER
        return self._parsed[address]

    def _count(self, path: str, address: int) -> None:
        """Links can lead to one group by very many ways."""
        self._file.budget.spend(nodes=1, names=len(path), steps=8)
        if path.count("/") >= MAX_DEPTH or len(path) > MAX_NAME:
            raise self._file.error("groups inside each other deeper than any model's", address)

    def _address(self, name: str, link: Link, group: int, hops: int = 16) -> int | None:
        """Where a link of a group leads; None for a soft link to something that is not there."""
        if link.address is not None or (group, name) in self._followed:
            return self._followed.get((group, name), link.address)
        self._followed[group, name] = None
        at = self._file.root if link.target.startswith("/") else group
        for step in link.target.split("/"):
            self._file.budget.spend(steps=1)
            if step in ("", "."):
                continue
            header = self._file.header(at)
            following = self._file.links(header).get(step) if header.is_group else None
            reached = self._address(step, following, at, hops - 1) if following and hops else None
            if reached is None:
                return None
            at = reached
        self._followed[group, name] = at
        return at
