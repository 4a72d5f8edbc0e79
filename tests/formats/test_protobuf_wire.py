from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptkit.formats.protobuf_wire import (
    Field,
    WireError,
    bytes_field,
    fields,
    fixed32_field,
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
        Field(1, 0, 150),
        Field(2, 2, b"abc"),
        Field(3, 5, 0x80000001),
        Field(4, 1, 2),
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


def test_a_value_of_the_wrong_kind_is_refused() -> None:
    number, text = fields(bytes.fromhex("08 01 12 01 ff"), plenty())
    with pytest.raises(WireError, match="where bytes belong"):
        number.payload()
    with pytest.raises(WireError, match="where a number belongs"):
        text.signed()
    with pytest.raises(WireError, match="not UTF-8"):
        text.text()


@settings(max_examples=50)
@given(st.integers(-(2**63), 2**63 - 1), st.binary(max_size=300), st.integers(0, 2**32 - 1))
def test_what_is_encoded_is_decoded(number: int, payload: bytes, fixed: int) -> None:
    decoded = {
        f.number: f
        for f in fields(
            number_field(1, number) + bytes_field(2000, payload) + fixed32_field(3, fixed), plenty()
        )
    }
    assert (decoded[1].signed() if 1 in decoded else 0) == number
    assert decoded[2000].payload() == payload
    assert (decoded[3].unsigned() if 3 in decoded else 0) == fixed
