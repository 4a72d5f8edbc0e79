"""Where HDF5 keeps many links of a group, or attributes of an object: messages in a heap, found by a tree.

Files with ``track_order`` or ``libver="latest"`` have them, from nine members on. Source: the HDF5 File
Format Specification 3.0, III.A.2 (version 2 B-trees) and III.G (fractal heaps).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator

from ckptkit.formats.hdf5_bytes import UNDEFINED, Hdf5Bytes, Piece, lookup3

LINK_BY_NAME, ATTRIBUTE_BY_NAME = 5, 8
"""Kinds of trees: how they sort their records."""

_HUGE_OBJECT = 1
_RECORD_BYTES = {_HUGE_OBJECT: 24, LINK_BY_NAME: 11, ATTRIBUTE_BY_NAME: 17}
_MAX_DEPTH = 8
_MANAGED, _HUGE = 0, 1
_SHARED = 2
_CHECKED_BLOCKS = 2


def dense_messages(source: Hdf5Bytes, heap: int, tree: int, kind: int) -> Iterator[tuple[int, Piece]]:
    """The messages in a heap, in the order of a tree of links or attributes, each behind its name's hash.

    Raises
    ------
    FormatError
        Damaged, or packed or shared in a way that is not supported.
    """
    messages = _Heap(source, heap)
    before = 0
    for record in _records(source, tree, kind):
        found = record.number(4) if kind == LINK_BY_NAME else 0
        place = record.part(messages.place_bytes)
        if kind == ATTRIBUTE_BY_NAME:
            if record.number(1) & _SHARED:
                raise record.error("an attribute that several objects share: not supported")
            record.raw(4)  # when it was made
            found = record.number(4)
        if found < before:
            raise record.error("a tree that is not in order")
        before = found
        yield found, messages.message(place)


def require_hash(name: bytes, stored: int, message: Piece) -> None:
    """Raise FormatError unless a name has the hash by which HDF5 looks it up."""
    if lookup3(name) != stored:
        raise message.error(f"{name[:80]!r} is listed under the hash of another name")


def _records(source: Hdf5Bytes, tree: int, kind: int) -> Iterator[Piece]:
    """Every record of a version 2 B-tree."""
    head = source.piece(tree, 38, "the head of a tree")
    head.expect(b"BTHD\0", "head of a tree")
    found, node_bytes, record_bytes, depth = (head.number(width) for width in (1, 4, 2, 2))
    head.raw(2)
    root, records, total = head.number(8), head.number(2), head.number(8)
    if found != kind or record_bytes != _RECORD_BYTES[kind] or depth > _MAX_DEPTH:
        raise head.error("a tree of another kind, or deeper than any group needs")
    most, pointers = _node_limits(node_bytes, record_bytes, depth)
    source.require_checksum(tree, 34, "the head of a tree")
    # Records of nodes stand between those of the nodes below them.
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
            raise head.error(f"a node of {count} records in a tree of at most {most[level]}")
        length = 6 + count * record_bytes + (count + 1) * sum(pointers[level])
        source.require_checksum(address, length, "a node of a tree")
        source.budget.spend(nodes=count)
        node = source.piece(address, length, "a node of a tree")
        node.expect(b"BTIN\0" if level else b"BTLF\0", "node of a tree")
        node.raw(1)
        parts: list[tuple[int, int, int] | Piece] = [node.part(record_bytes) for _ in range(count)]
        for place in range(0, 2 * count + 1, 2) if level else ():
            child, held, _ = (node.number(width) for width in pointers[level])
            parts.insert(place, (child, held, level - 1))
        waiting += reversed(parts)
    if seen != total:
        raise head.error(f"a tree of {seen} records that should have {total}")


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
        head = source.piece(address, 142, "the head of a heap")
        head.expect(b"FRHP\0", "head of a heap")
        self.place_bytes, filters, self._flags, largest = (head.number(width) for width in (2, 2, 1, 4))
        if filters:
            raise source.error("links or attributes in a packed heap: not supported", address)
        source.require_checksum(address, 142, "the head of a heap")
        head.raw(8)
        self._huge_tree = head.number(8)
        head.raw(80)  # how full it is
        self._width, self._first, self._most = head.number(2), head.number(8), head.number(8)
        bits = head.number(2)
        head.raw(2)
        root, rows = head.number(8), head.number(2)
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
            length = 13 + self._offset_bytes + 8 * rows * self._width
            block = self._source.piece(address, length, "a block of a heap")
            block.expect(b"FHIB\0", "block of a heap")
            self._source.require_checksum(address, length, "a block of a heap")
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
            block = self._source.piece(address, 13, "a block of a heap")
            block.expect(b"FHDB\0", "block of a heap")
            if block.number(8) != self._address:
                raise block.error("a block of another heap")
            if self._flags & _CHECKED_BLOCKS:
                hole = 13 + self._offset_bytes
                self._source.require_checksum(address, size, "a block of a heap", hole)
            self._checked.add(address)
        return self._source.piece(address + offset - start, length, "a message of a heap")

    def _huge_object(self, place: Piece) -> tuple[int, int]:
        """Address and length of a message too long for the blocks."""
        if self.place_bytes > 16:
            return place.number(8), place.number(8)
        if self._huge is None:
            self._huge = {}
            for record in _records(self._source, self._huge_tree, _HUGE_OBJECT):
                address, length, key = record.number(8), record.number(8), record.number(8)
                self._huge[key] = (address, length)
        found = self._huge.get(place.number(place.left))
        if found is None:
            raise place.error("a message that is in no list of its heap")
        return found
