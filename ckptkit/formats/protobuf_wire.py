"""The protocol-buffer wire format: as much of it as TensorFlow's checkpoint index needs.

A message is a run of fields; each is a tag (field number and wire type) and a value. Only the wire is
known here; what the numbers mean is with the messages (``tf_index``, ``tf_object_graph``).
Source: https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

from ckptkit.base.budget import Budget

VARINT, FIXED64, LENGTH_DELIMITED, FIXED32 = 0, 1, 2, 5

_VARINT_BYTES = 10
_FIXED_SIZES = {FIXED64: 8, FIXED32: 4}
_FIELD_STEPS = 2


class WireError(ValueError):
    """The bytes are not a valid message; callers say in which file."""


class Field(NamedTuple):
    """One field of a message: its number, its wire type, and an int or the bytes it holds."""

    number: int
    wire: int
    value: int | bytes

    def unsigned(self) -> int:
        """The value as an unsigned integer; WireError when the field holds bytes."""
        if isinstance(self.value, bytes):
            raise WireError(f"field {self.number} holds bytes where a number belongs")
        return self.value

    def signed(self) -> int:
        """The value as int32 or int64 (two's complement in 64 bits); WireError when it holds bytes."""
        value = self.unsigned()
        return value - (1 << 64) if value >> 63 else value

    def payload(self) -> bytes:
        """The bytes of a string, bytes or message field; WireError when it holds a number."""
        if isinstance(self.value, int):
            raise WireError(f"field {self.number} holds a number where bytes belong")
        return self.value

    def text(self) -> str:
        """The string; WireError when it is not UTF-8."""
        try:
            return self.payload().decode("utf-8")
        except UnicodeDecodeError as error:
            raise WireError(f"field {self.number} is not UTF-8 text") from error


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


def fields(data: bytes, budget: Budget) -> Iterator[Field]:
    """Walk over the fields of a message in their order, each at the cost of a few steps.

    Examples
    --------
    >>> list(fields(bytes([0x08, 0x96, 0x01]), Budget(3, ValueError)))
    [Field(number=1, wire=0, value=150)]
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
            yield Field(number, wire, value)
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
        yield Field(number, wire, payload if wire == LENGTH_DELIMITED else int.from_bytes(payload, "little"))


def known_fields(
    data: bytes, wires: Mapping[int, int], budget: Budget, *, repeated: Collection[int] = ()
) -> Iterator[Field]:
    """The fields of a message that its reader knows, as two readers must understand them alike."""
    seen: set[int] = set()
    for item in fields(data, budget):
        wire = wires.get(item.number)
        if wire is None:
            continue
        if item.wire != wire:
            item.payload() if wire == LENGTH_DELIMITED else item.unsigned()  # says what does not belong
            raise WireError(f"field {item.number} has the wire type {item.wire}, not {wire}")
        if item.number not in repeated:
            if item.number in seen:
                raise WireError(f"field {item.number} occurs twice")
            seen.add(item.number)
        yield item


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
