"""The protocol-buffer wire format: as much of it as TensorFlow's checkpoint index needs.

A message is a run of fields; each is a tag (field number and wire type) and a value. Only the wire is
known here; what the numbers mean is with the messages (``tf_index``, ``tf_object_graph``).
Source: https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ckptkit.base.budget import Budget
from ckptkit.base.tensors import Array

VARINT, FIXED64, LENGTH_DELIMITED, FIXED32 = 0, 1, 2, 5

_VARINT_BYTES = 10
_WINDOW = 1 << 20
_FIXED_SIZES = {FIXED64: 8, FIXED32: 4}
_HELD = {VARINT: "a number", FIXED64: "8 bytes", LENGTH_DELIMITED: "bytes", FIXED32: "4 bytes"}
_FIELD_STEPS = 2


class WireError(ValueError):
    """The bytes are not a valid message; callers say in which file."""


def read_varint(data: bytes, position: int = 0) -> tuple[int, int]:
    """Read a base-128 number of at most 64 bits.

    Examples
    --------
    >>> read_varint(bytes([0xAC, 0x02]))
    (300, 2)
    """
    value = 0
    for index in range(_VARINT_BYTES):
        if position >= len(data):
            raise WireError("a number runs past the end")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            if value >> 64:
                break
            return value, position
    raise WireError("a number has more than 64 bits")


def fields(data: bytes, budget: Budget) -> Iterator[tuple[int, int, int | bytes]]:
    """Number, wire type and value of each field of a message in their order, at the cost of a few steps.

    Examples
    --------
    >>> list(fields(bytes([0x08, 0x96, 0x01]), Budget(3, ValueError)))
    [(1, 0, 150)]
    """
    position = 0
    while position < len(data):
        budget.steps -= _FIELD_STEPS
        if budget.steps < 0:
            budget.spend()
        tag = data[position]
        if tag < 0x80:
            position += 1
        else:
            tag, position = read_varint(data, position)
        number, wire = tag >> 3, tag & 7
        if number == 0:
            raise WireError("field number 0")
        if wire == VARINT:
            value, position = read_varint(data, position)
            yield number, wire, value
            continue
        if wire == LENGTH_DELIMITED:
            size, position = read_varint(data, position)
        elif wire in _FIXED_SIZES:
            size = _FIXED_SIZES[wire]
        else:
            raise WireError(f"field {number} has the unknown wire type {wire}")
        if size > len(data) - position:
            raise WireError(f"field {number} runs past the end")
        payload = bytes(data[position : position + size])
        position += size
        yield number, wire, payload if wire == LENGTH_DELIMITED else int.from_bytes(payload, "little")


def places(data: Any, start: int, stop: int, budget: Budget) -> Iterator[tuple[int, int, int, int]]:
    """Number and wire type of each field in a range, and where its content is; nothing is copied.

    Of a number (VARINT) it is the value itself that comes third.

    Examples
    --------
    >>> list(places(bytes([0x08, 0x96, 0x01, 0x12, 0x01, 0x61]), 0, 6, Budget(6, ValueError)))
    [(1, 0, 150, 3), (2, 2, 5, 6)]
    """
    while start < stop:
        budget.spend(steps=2 * _FIELD_STEPS)
        tag, start = _varint_at(data, start, stop)
        number, wire = tag >> 3, tag & 7
        if number == 0:
            raise WireError("field number 0")
        if wire == VARINT:
            value, start = _varint_at(data, start, stop)
            yield number, wire, value, start
            continue
        if wire == LENGTH_DELIMITED:
            size, start = _varint_at(data, start, stop)
        elif wire in _FIXED_SIZES:
            size = _FIXED_SIZES[wire]
        else:
            raise WireError(f"field {number} has the unknown wire type {wire}")
        if size > stop - start:
            raise WireError(f"field {number} runs past the end")
        yield number, wire, start, start + size
        start += size


def _varint_at(data: Any, start: int, stop: int) -> tuple[int, int]:
    first = data[start] if start < stop else 0x80
    if first < 0x80:
        return first, start + 1
    value, used = read_varint(data[start : min(start + _VARINT_BYTES, stop)])
    return value, start + used


def packed_numbers(
    data: Any,
    start: int,
    stop: int,
    *,
    most: int,
    width: int,
    release: Callable[[int, int], None] = lambda start, nbytes: None,
) -> Array:
    """The packed numbers in a range, of which there are at most so many, cut to some bytes each.

    ``release`` is told of the bytes that have been gone over.

    Examples
    --------
    >>> packed_numbers(bytes([1, 0xAC, 0x02]), 0, 3, most=2, width=2).tolist()
    [1, 300]
    """
    import numpy

    found = numpy.empty(min(most, stop - start), f"<u{width}")
    count = 0
    while start < stop:
        numbers, used = _varints(numpy.frombuffer(data[start : min(start + _WINDOW, stop)], numpy.uint8))
        release(start, used)
        if not used or count + len(numbers) > most:
            raise WireError(f"not the {most} numbers that it should have")
        found[count : count + len(numbers)] = numbers.astype(found.dtype)
        count, start = count + len(numbers), start + used
    return found[:count]


def _varints(raw: Array) -> tuple[Array, int]:
    """The numbers of some bytes, of which the last may be cut off; and the bytes that they take."""
    import numpy

    ends = numpy.flatnonzero(raw < 0x80)
    starts = numpy.concatenate(([0], ends + 1))[: len(ends)]
    lengths = ends - starts + 1
    if not len(ends) or lengths.max() > _VARINT_BYTES:
        return numpy.empty(0, numpy.uint64), 0
    values = numpy.zeros(len(ends), numpy.uint64)
    for step in range(int(lengths.max())):
        longer = numpy.flatnonzero(lengths > step)
        values[longer] |= (raw[starts[longer] + step] & 0x7F).astype(numpy.uint64) << numpy.uint64(7 * step)
    return values, int(ends[-1]) + 1


@dataclass(frozen=True)
class Kind:
    """What a field holds, and what becomes of its value."""

    wire: int
    read: Callable[[Any, Budget], Any]
    repeated: bool = False
    most: int = 1 << 62  # of a repeated field
    nodes: int = 0  # what each of them costs


def _signed(value: int, _budget: Budget) -> int:
    """An int32 or int64, which is two's complement in 64 bits."""
    return value - (1 << 64) if value >> 63 else value


INT = Kind(VARINT, _signed)
FIXED = Kind(FIXED32, lambda value, _budget: value)
TEXT = Kind(LENGTH_DELIMITED, lambda value, _budget: value.decode())


def message(make: Callable[..., Any], members: Mapping[int, tuple[str, Kind]]) -> Kind:
    """A message, of whose known fields ``make`` is given those that are there, by name.

    Two readers must understand a message alike: no field may be of another wire type, or occur twice.

    Examples
    --------
    >>> point = message(dict, {1: ("x", INT), 2: ("y", INT)})
    >>> point.read(bytes([0x08, 0x96, 0x01]), Budget(3, ValueError))
    {'x': 150}
    """

    def read(data: bytes, budget: Budget) -> Any:
        found: dict[str, Any] = {}
        for number, wire, value in fields(data, budget):
            if number not in members:
                continue
            name, kind = members[number]
            if wire != kind.wire:
                raise WireError(f"field {number} holds {_HELD[wire]}, not {_HELD[kind.wire]}")
            if kind.repeated:
                budget.spend(nodes=kind.nodes)
            elif name in found:
                raise WireError(f"field {number} occurs twice")
            try:
                one = kind.read(value, budget)
            except UnicodeDecodeError as error:
                raise WireError(f"field {number} is not UTF-8 text") from error
            if not kind.repeated:
                found[name] = one
            elif len(found.setdefault(name, [])) < kind.most:
                found[name].append(one)
            else:
                raise WireError(f"more than {kind.most} {name}")
        return make(**found)

    return Kind(LENGTH_DELIMITED, read)


def many(kind: Kind, *, nodes: int = 0, most: int = 1 << 62) -> Kind:
    """A repeated field, which is handed on as a list."""
    return replace(kind, repeated=True, nodes=nodes, most=most)


def varint(value: int) -> bytes:
    """Encode an int of at most 64 bits; a negative one as two's complement, as int64 fields have it.

    Examples
    --------
    >>> varint(300).hex()
    'ac02'
    """
    value &= (1 << 64) - 1
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def number_field(number: int, value: int) -> bytes:
    """Encode a varint field; nothing for 0, which is what proto3 does with a default.

    Examples
    --------
    >>> number_field(1, 150).hex(), number_field(1, 0)
    ('089601', b'')
    """
    return varint(number << 3 | VARINT) + varint(value) if value else b""


def bytes_field(number: int, payload: bytes) -> bytes:
    """Encode a string, bytes or message field, empty ones too."""
    return varint(number << 3 | LENGTH_DELIMITED) + varint(len(payload)) + payload


def fixed32_field(number: int, value: int) -> bytes:
    """Encode a fixed32 field; nothing for 0."""
    return varint(number << 3 | FIXED32) + value.to_bytes(4, "little") if value else b""
