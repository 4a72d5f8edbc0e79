"""The objects of an HDF5 file: its superblock, object headers and groups.

Groups are read in every way HDF5 keeps them: symbol tables (h5py's default), links in the group's header, and
links in a heap (many members, with ``track_order`` or ``libver="latest"``). Links to other files are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from ckptkit.formats.hdf5_bytes import ANEW, MAX_NAME, UNDEFINED, Hdf5Bytes, Piece
from ckptkit.formats.hdf5_dense import LINK_BY_NAME, dense_messages, require_hash

MAGIC = b"\x89HDF\r\n\x1a\n"

OLD_FILL_VALUE, FILL_VALUE = 0x04, 0x05
DATASPACE, LINK_INFO, DATATYPE, LINK, EXTERNAL_FILES, LAYOUT, FILTERS = (
    0x01,
    0x02,
    0x03,
    0x06,
    0x07,
    0x08,
    0x0B,
)
ATTRIBUTE, CONTINUATION, SYMBOL_TABLE, ATTRIBUTE_INFO = 0x0C, 0x10, 0x11, 0x15
_SHARED = 2
_NAMED_TYPES = ((2, 0), (2, 2), (3, 2))
"""Version and kind of a shared message that is in the header of another object."""
_HARD, _SOFT, _EXTERNAL = 0, 1, 64
_CACHED_TABLE, _CACHED_SOFT_LINK = 1, 2

_NO_LINKS = "copy what it links to into one file, for example with h5py's File.copy"


@dataclass(frozen=True)
class Message:
    """One message of an object header."""

    kind: int
    flags: int
    body: Piece


@dataclass(frozen=True)
class Header:
    """An object's header: what it is and where its parts are."""

    address: int
    messages: Sequence[Message]

    def body(self, kind: int) -> Piece | None:
        """The body of the only message of a kind, None where there is none.

        Raises
        ------
        FormatError
            There are several, or it stands in another object.
        """
        found = [message for message in self.messages if message.kind == kind]
        if not found:
            return None
        body = found[0].body.anew()
        if len(found) > 1:
            raise body.error(f"an object with two messages of kind {kind:#x}")
        if found[0].flags & _SHARED:
            raise body.unsupported(f"a message of kind {kind:#x} that several objects share: not supported")
        return body

    def shared(self, kind: int) -> Piece | None:
        """Where the only message of a kind is, when that is in another object."""
        found = [message for message in self.messages if message.kind == kind]
        return found[0].body.anew() if len(found) == 1 and found[0].flags & _SHARED else None

    def bodies(self, kind: int) -> Iterator[Piece]:
        """The bodies of all messages of a kind."""
        return (message.body.anew() for message in self.messages if message.kind == kind)

    @property
    def is_group(self) -> bool:
        """Whether other objects hang on it."""
        return any(message.kind in (SYMBOL_TABLE, LINK_INFO, LINK) for message in self.messages)

    @property
    def is_dataset(self) -> bool:
        """Whether it holds data."""
        return any(message.kind == LAYOUT for message in self.messages)


@dataclass(frozen=True)
class Link:
    """A member of a group: the address of an object, or, of a soft link, the path where to look for one."""

    name: str
    address: int | None
    target: str = ""


_Rank = TypeVar("_Rank", bytes, "tuple[int, ...]")


@dataclass(frozen=True)
class Leaf(Generic[_Rank]):
    """What the lowest level of a B-tree points to, the key before it, and what it is sorted between."""

    key: Piece
    address: int
    low: _Rank
    high: _Rank


class Objects:
    """Walks over an HDF5 file.

    Parameters
    ----------
    source : Hdf5Bytes

    Attributes
    ----------
    root : int
        Address of the root group.

    Raises
    ------
    FormatError
        No HDF5 file, a truncated one, or one with unusual widths.
    """

    def __init__(self, source: Hdf5Bytes) -> None:
        self.source = source
        self._noted: tuple[int, int] | None = None  # where the superblock says that the root's members are
        self.root = self._superblock()

    def _superblock(self) -> int:
        head = self.source.piece(0, 9, "the superblock")
        head.expect(MAGIC, "HDF5 superblock")
        version = head.number(1)
        if version in (0, 1):
            body = self.source.piece(9, 87 + 4 * version, "the superblock")
            body.raw(4)
            widths = body.raw(2)
            body.raw(9 + 4 * version)
        elif version in (2, 3):
            self.source.require_checksum(0, 44, "the superblock")
            body = self.source.piece(9, 39, "the superblock")
            widths = body.raw(2)
            body.raw(1)
        else:
            raise self.source.error(f"an HDF5 superblock of version {version}", 8, ANEW)
        if widths != b"\x08\x08":
            raise body.error("an HDF5 file with addresses of other than 8 bytes")
        base, _, end = body.number(8), body.number(8), body.number(8)
        if base:
            raise body.error("an HDF5 file that does not begin at its own beginning")
        if end > self.source.size:
            raise self.source.error(
                f"truncated: {self.source.size} bytes of {end}", hint="fetch or write it again"
            )
        if end < self.source.size:
            raise self.source.error(
                f"{self.source.size - end} bytes behind the end of the HDF5 file", end, "fetch it again"
            )
        if version >= 2:
            return body.number(8)
        body.raw(16)  # of the driver, and of the root's name
        root = body.number(8)
        if body.number(4) == _CACHED_TABLE:
            body.raw(4)
            self._noted = (body.number(8), body.number(8))
        return root

    # -- object headers --------------------------------------------------------------------------------------

    def header(self, address: int) -> Header:
        """Read an object header of either version, with its continuations.

        Raises
        ------
        FormatError
        """
        newer = self.source.piece(address, 4, "an object header")
        if newer.raw(4) == b"OHDR":
            return Header(address, self._newer_messages(address + 4))
        prefix = self.source.piece(address, 16, "an object header")
        if prefix.number(1) != 1:
            raise self.source.error("no object header where one should be", address)
        prefix.raw(7)
        size = prefix.number(4)
        blocks = [self.source.piece(address + 16, size, "an object header")]
        messages: list[Message] = []
        for block in blocks:  # grows while it is walked over
            while block.left >= 8:
                self.source.budget.spend(steps=2)
                kind, length, flags = block.number(2), block.number(2), block.number(1)
                block.raw(3)
                self._take(messages, Message(kind, flags, block.part(length)), blocks, newer=False)
        return Header(address, messages)

    def datatype(self, header: Header) -> Piece | None:
        """The type of a dataset's elements: in its own header, or in that of a type with a name.

        Raises
        ------
        FormatError
            In neither, or in a heap of messages.
        """
        shared = header.shared(DATATYPE)
        if shared is None:
            return header.body(DATATYPE)
        if (shared.number(1), shared.number(1)) not in _NAMED_TYPES:
            raise shared.unsupported("an element type that several objects share: not supported")
        return self.header(shared.number(8)).body(DATATYPE)

    def _newer_messages(self, address: int) -> list[Message]:
        start = self.source.piece(address, 2, "an object header")
        if start.number(1) != 2:
            raise start.error("an object header of another version than 1 and 2")
        flags = start.number(1)
        times, limits, width = 16 * (flags >> 5 & 1), 4 * (flags >> 4 & 1), 1 << (flags & 3)
        sizes = self.source.piece(address + 2, times + limits + width, "an object header")
        sizes.raw(times + limits)
        first, size = sizes.address + width, sizes.number(width)
        self.source.require_checksum(address - 4, first + size - (address - 4), "an object header")
        blocks = [self.source.piece(first, size, "an object header")]
        messages: list[Message] = []
        for block in blocks:
            while block.left >= 4 + 2 * (flags >> 2 & 1):
                self.source.budget.spend(steps=2)
                kind, length, marks = block.number(1), block.number(2), block.number(1)
                block.raw(2 * (flags >> 2 & 1))
                self._take(messages, Message(kind, marks, block.part(length)), blocks, newer=True)
        return messages

    def _take(self, messages: list[Message], message: Message, blocks: list[Piece], *, newer: bool) -> None:
        """Keep a message, or find the block with more of them that it points to."""
        if message.kind != CONTINUATION:
            messages.append(message)
            return
        address, length = message.body.number(8), message.body.number(8)
        block = self.source.piece(address, length, "the rest of an object header")
        if newer:
            block.expect(b"OCHK", "rest of an object header")
            self.source.require_checksum(address, max(0, length - 4), "the rest of an object header")
            block = block.part(max(0, block.left - 4))
        blocks.append(block)

    # -- groups ----------------------------------------------------------------------------------------------

    def links(self, header: Header) -> dict[str, Link]:
        """The members of a group by name, in the order in which they were made where the file tells it.

        Raises
        ------
        FormatError
            Damaged, or with a link to another file.
        """
        found: dict[str, Link] = {}
        for raw, address, target in self._raw_links(header):
            try:
                name = raw.decode()
            except UnicodeDecodeError as error:
                raise self.source.error("a name that is not UTF-8", header.address) from error
            if not name or "/" in name or "\0" in name or name == "." or name in found:
                raise self.source.error(
                    f"a group with two members, or none, of name {name!r}", header.address
                )
            found[name] = Link(name, address, target.decode(errors="replace"))
        return found

    def _raw_links(self, header: Header) -> Iterator[tuple[bytes, int | None, bytes]]:
        table = header.body(SYMBOL_TABLE)
        if table is not None:
            tree, heap = table.number(8), table.number(8)
            if header.address == self.root and self._noted not in (None, (tree, heap)):
                raise table.error("the root group has its members at two places")
            yield from self._symbols(tree, heap)
            return
        bodies = list(header.bodies(LINK))
        info = header.body(LINK_INFO)
        if info is not None:
            info.raw(1)
            info.raw(8 * (info.number(1) & 1))
            heap, tree = info.number(8), info.number(8)
            if heap != UNDEFINED:
                for stored, body in dense_messages(self.source, heap, tree, LINK_BY_NAME):
                    require_hash(self._link(body.anew())[1], stored, body)
                    bodies.append(body)
        links = [self._link(body) for body in bodies]
        for _, name, address, target in sorted(links):  # by their order, and by name where none was tracked
            yield name, address, target

    def _link(self, body: Piece) -> tuple[int, bytes, int | None, bytes]:
        """When it was made, its name, its address or None, and the path that a soft link holds."""
        version, flags = body.number(1), body.number(1)
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
        if kind != _HARD:
            what = "a link to another file" if kind == _EXTERNAL else "a link of an unknown kind"
            shown = name.decode(errors="replace")
            raise self.source.error(f"{shown!r} is {what}: not followed", body.address, _NO_LINKS)
        return order, name, body.number(8), b""

    def _symbols(self, tree: int, heap: int) -> Iterator[tuple[bytes, int | None, bytes]]:
        """Members of a group whose names are in a heap, sorted through a tree of tables."""
        head = self.source.piece(heap, 32, "a group's names")
        head.expect(b"HEAP\0", "heap of a group's names")
        head.raw(3)
        size, _, names = head.number(8), head.number(8), head.number(8)
        self.source.require(names, size, "a group's names")

        def text(row: Piece, offset: int) -> bytes:
            if offset >= size:
                raise row.error("a name outside of its heap")
            return self.source.text(names + offset, names + size)

        def rank(key: Piece) -> bytes:
            return text(key, key.number(8))

        for leaf in self.leaves(tree, kind=0, key_bytes=8, rank=rank):
            before, address = leaf.low, leaf.address
            table = self.source.piece(address, 8, "a group's table")
            table.expect(b"SNOD\1", "table of a group")
            table.raw(1)
            rows = self.source.piece(address + 8, 40 * table.number(2), "a group's table")
            while rows.left:
                row = rows.part(40)
                name, target, cached = text(row, row.number(8)), row.number(8), row.number(4)
                if not before < name <= leaf.high:  # HDF5 looks names up by their order
                    raise row.error(f"a group whose members are not in order, at {name[:80]!r}")
                before = name
                if cached == _CACHED_SOFT_LINK:
                    row.raw(4)
                    yield name, None, text(row, row.number(4))
                else:
                    yield name, target, b""

    def leaves(
        self, tree: int, *, kind: int, key_bytes: int, rank: Callable[[Piece], _Rank]
    ) -> Iterator[Leaf[_Rank]]:
        """What the lowest nodes of a B-tree point to, in order.

        Parameters
        ----------
        tree : int
            Address of the root node.
        kind : int
            0 for a tree of a group, 1 for one of chunks.
        key_bytes : int
            Length of a key.
        rank : callable
            What keys are sorted by.

        Raises
        ------
        FormatError
            Damaged, or not in order: HDF5 would find another part of it than whoever walks over it.
        """
        waiting: list[tuple[int, int | None, tuple[_Rank, _Rank] | None]] = [(tree, None, None)]
        while waiting:
            address, expected, around = waiting.pop()
            node = self.source.piece(address, 24, "a node of a tree")
            node.expect(b"TREE", "node of a tree")
            found, level, count = node.number(1), node.number(1), node.number(2)
            if found != kind or expected not in (None, level):
                raise node.error("a node of another tree")
            if not count:
                continue
            rows = self.source.piece(address + 24, count * (key_bytes + 8) + key_bytes, "a node of a tree")
            self.source.budget.spend(nodes=count, steps=4 * count)
            key = rows.part(key_bytes)
            low = rank(key.anew())
            if around and low < around[0]:
                raise rows.error("a tree that is not in order")
            below: list[tuple[int, int | None, tuple[_Rank, _Rank] | None]] = []
            for _ in range(count):
                child, following = rows.number(8), rows.part(key_bytes)
                high = rank(following.anew())
                if not low < high or (around and around[1] < high):
                    raise rows.error("a tree that is not in order")
                if level:
                    below.append((child, level - 1, (low, high)))
                else:
                    yield Leaf(key, child, low, high)
                key, low = following, high
            waiting += reversed(below)
