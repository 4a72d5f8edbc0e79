"""Ways to damage bytes: what disks, networks and attackers do to a file."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence

from tests.fuzz.grammars import GRAMMARS

_BYTES = (0x00, 0xFF, 0x7F, 0x80)
_EXTREMES = (
    0,
    1,
    -1,
    -2,
    2**7,
    2**15,
    2**16 - 1,
    2**24,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**40,
    2**62,
    2**63 - 1,
)
_WIDTHS = (1, 2, 4, 8)
_TEXT_NUMBERS = (b"-1", b"0", b"1e400", b"9223372036854775807", b"18446744073709551616", b"9" * 5000, b"true")

Mutation = Callable[[random.Random, bytearray, Sequence[bytes]], None]
"""Changes a payload in place; the last argument holds foreign pieces that may be put into it."""


def _place(source: random.Random, data: bytearray) -> int:
    return source.randrange(len(data))


def _span(source: random.Random, data: bytearray) -> tuple[int, int]:
    start = _place(source, data)
    longest = source.choice((1, 2, 4, 8, 16, 64, 512))
    return start, min(len(data), start + source.randint(1, longest))


def _flip_bit(source: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    data[_place(source, data)] ^= 1 << source.randrange(8)


def _set_byte(source: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    data[_place(source, data)] = source.choice((*_BYTES, source.randrange(256)))


def _set_span(source: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    start, stop = _span(source, data)
    data[start:stop] = bytes([source.choice(_BYTES)]) * (stop - start)


def _truncate(source: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    del data[_place(source, data) :]


def _cut_out(source: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    start, stop = _span(source, data)
    del data[start:stop]


def _insert(source: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    start = _place(source, data)
    data[start:start] = source.randbytes(source.choice((1, 2, 4, 8, 64)))


def _double(source: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    start, stop = _span(source, data)
    data[stop:stop] = data[start:stop] * source.choice((1, 1, 1, 50))


def _swap(source: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    length = min(source.choice((1, 4, 8, 32, 128)), max(1, len(data) // 2))
    first, second = (source.randint(0, len(data) - length) for _ in range(2))
    data[first : first + length], data[second : second + length] = (
        data[second : second + length],
        data[first : first + length],
    )


def _set_number(source: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    """Put an extreme number over any field, of any width and byte order."""
    width = source.choice(_WIDTHS)
    value = (source.choice(_EXTREMES) + source.randint(-1, 1)) % (1 << 8 * width)
    start = _place(source, data)
    data[start : start + width] = value.to_bytes(width, source.choice(("little", "little", "big")))


def _near_number(source: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    """Change a field by a little: lengths and offsets that are off by one, or by a row."""
    width = source.choice(_WIDTHS)
    start = max(0, min(_place(source, data), len(data) - width))
    value = int.from_bytes(data[start : start + width], "little") + source.choice((-8, -1, 1, 4, 8, 64, 4096))
    data[start : start + width] = (value % (1 << 8 * width)).to_bytes(width, "little")


def _set_varint(source: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    start = _place(source, data)
    data[start : start + 1] = source.choice(
        (b"\xff" * 9 + b"\x01", b"\xff" * 4 + b"\x0f", b"\x80" * 12, b"\xff\x7f")
    )


def _set_text_number(source: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    found = list(re.finditer(rb"\d+", bytes(data)))
    if found:
        one = source.choice(found)
        data[one.start() : one.end()] = source.choice(_TEXT_NUMBERS)


def _splice(source: random.Random, data: bytearray, foreign: Sequence[bytes]) -> None:
    """Go on with another file from some place."""
    if foreign:
        other = source.choice(foreign)
        data[_place(source, data) :] = other[source.randint(0, len(other)) :]


def _transplant(source: random.Random, data: bytearray, foreign: Sequence[bytes]) -> None:
    """Put a piece of another file into this one."""
    if foreign:
        other = bytearray(source.choice(foreign))
        if other:
            start, stop = _span(source, other)
            place = _place(source, data)
            data[place : place + source.choice((0, stop - start))] = other[start:stop]


MUTATIONS: tuple[Mutation, ...] = (
    _flip_bit, _set_byte, _set_span, _truncate, _cut_out, _insert, _double, _swap, _set_number, _set_number,
    _near_number, _near_number, _set_varint, _set_text_number, _splice, _transplant,
)  # fmt: skip

_BY_GRAMMAR = 0.7
LONGEST = 1 << 20
"""Damaged files stay small, so that what they cost is the reader's doing."""


def mutate(source: random.Random, payload: bytes, foreign: Sequence[bytes], grammar: str = "") -> bytes:
    """A damaged copy, drawn from ``source``: by the payload's grammar once or twice, or one to four times."""
    if grammar and payload and source.random() < _BY_GRAMMAR:
        for _ in range(source.choice((1, 1, 2))):
            payload = GRAMMARS[grammar](source, payload, foreign) or b"\0"
        return payload[:LONGEST]
    data = bytearray(payload)
    for _ in range(source.choice((1, 1, 1, 2, 2, 3, 4))):
        if not data:
            break
        source.choice(MUTATIONS)(source, data, foreign)
        del data[LONGEST:]
    return bytes(data)
