from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptkit.formats.protobuf_wire import (
    FIXED,
    INT,
    TEXT,
    WireError,
    bytes_field,
    fields,
    fixed32_field,
    many,
    message,
    number_field,
    read_varint,
    varint,
)
from tests.support.tf_files import plenty


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        (0, "00"),
        (1, "01"),
        (127, "7f"),
        (128, "8001"),
        (300, "ac02"),
        (2**32 - 1, "ffffffff0f"),
        (2**64 - 1, "ffffffffffffffffff01"),
        (-1, "ffffffffffffffffff01"),
    ],
)
def test_varints_are_those_of_the_specification(value: int, encoded: str) -> None:
    assert varint(value).hex() == encoded
    assert read_varint(bytes.fromhex(encoded)) == (value % 2**64, len(encoded) // 2)


@pytest.mark.parametrize("encoded", ["", "80", "ffff", "ffffffffffffffffff02", "80" * 10 + "01", "ff" * 200])
def test_endless_and_oversized_varints_are_refused(encoded: str) -> None:
    with pytest.raises(WireError):
        read_varint(bytes.fromhex(encoded))


def test_fields_of_every_wire_type() -> None:
    encoded = bytes.fromhex("08 96 01 12 03 61 62 63 1d 01 00 00 80 21 02 00 00 00 00 00 00 00")
    assert list(fields(encoded, plenty())) == [
        (1, 0, 150),
        (2, 2, b"abc"),
        (3, 5, 0x80000001),
        (4, 1, 2),
    ]


@pytest.mark.parametrize(
    ("encoded", "reason"),
    [
        ("00", "field number 0"),
        ("08", "past the end"),
        ("12 05 61", "past the end"),
        ("12 ff ff ff ff ff ff ff ff ff 01", "past the end"),
        ("1d 00 00 00", "past the end"),
        ("0b", "wire type 3"),
        ("0f", "wire type 7"),
    ],
)
def test_damaged_messages_are_refused(encoded: str, reason: str) -> None:
    with pytest.raises(WireError, match=reason):
        list(fields(bytes.fromhex(encoded), plenty()))


KNOWN = message(
    dict,
    {1: ("number", INT), 2: ("text", TEXT), 3: ("fixed", FIXED), 4: ("list", many(INT, most=2, nodes=1))},
)


@pytest.mark.parametrize(
    ("encoded", "reason"),
    [
        ("12 01 ff", "field 2 is not UTF-8"),
        ("0a 01 61", "field 1 holds bytes, not a number"),
        ("10 01", "field 2 holds a number, not bytes"),
        ("18 01", "field 3 holds a number, not 4 bytes"),
        ("08 01 08 02", "field 1 occurs twice"),
        ("20 01 20 02 20 03", "more than 2 list"),
    ],
)
def test_what_two_readers_may_understand_differently_is_refused(encoded: str, reason: str) -> None:
    with pytest.raises(WireError, match=reason):
        KNOWN.read(bytes.fromhex(encoded), plenty())


def test_known_fields_have_names_and_others_are_passed_over() -> None:
    encoded = bytes.fromhex("08 96 01 12 03 61 62 63 1d 01 00 00 80 20 05 20 06 a8 01 07")
    assert KNOWN.read(encoded, plenty()) == {
        "number": 150,
        "text": "abc",
        "fixed": 0x80000001,
        "list": [5, 6],
    }


def test_each_of_a_repeated_field_costs() -> None:
    budget = plenty()
    before = budget.nodes
    KNOWN.read(bytes.fromhex("08 01 20 05 20 06"), budget)
    assert before - budget.nodes == 2


@settings(max_examples=50)
@given(st.integers(-(2**63), 2**63 - 1), st.text(max_size=100), st.integers(0, 2**32 - 1))
def test_what_is_encoded_is_decoded(number: int, text: str, fixed: int) -> None:
    encoded = number_field(1, number) + bytes_field(2, text.encode()) + fixed32_field(3, fixed)
    decoded = KNOWN.read(encoded, plenty())
    assert decoded.get("number", 0) == number
    assert decoded["text"] == text
    assert decoded.get("fixed", 0) == fixed
    payload = text.encode() * 3
    assert list(fields(bytes_field(2000, payload), plenty())) == [(2000, 2, payload)]
