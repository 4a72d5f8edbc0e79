"""Pieces of a file: never outside of it, never more than it can hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckptkit.base.errors import FormatError
from ckptkit.formats.hdf5_bytes import MAX_NAME, UNDEFINED, Hdf5Bytes
from ckptkit.formats.mapped_file import MappedFile


def part(path: Path, raw: bytes, start: int = 0, size: int | None = None) -> Hdf5Bytes:
    path.write_bytes(raw)
    return Hdf5Bytes(MappedFile(path), start, size)


def test_a_piece_is_read_to_its_end_and_not_beyond(tmp_path: Path) -> None:
    piece = part(tmp_path / "m", b"headabcdef\x01\x02tail", start=4, size=8).piece(0, 8, "it")
    assert piece.raw(3) == b"abc"
    inner = piece.part(3)
    assert (inner.address, inner.left, inner.raw(3)) == (3, 3, b"def")
    assert piece.number(2) == 0x0201
    with pytest.raises(FormatError, match="at byte 12: a structure is shorter"):
        piece.number(1)


@pytest.mark.parametrize(("address", "length"), [(0, 9), (8, 1), (9, 0), (UNDEFINED, 1), (1, UNDEFINED)])
def test_pieces_outside_are_refused(tmp_path: Path, address: int, length: int) -> None:
    with pytest.raises(FormatError, match=r"m: at byte \d+: it of \d+ bytes reaches outside"):
        part(tmp_path / "m", bytes(20), start=4, size=8).piece(address, length, "it")


def test_reading_the_same_again_and_again_is_noticed(tmp_path: Path) -> None:
    source = part(tmp_path / "m", bytes(100))
    for _ in range(2):
        source.piece(0, 100, "it")
    with pytest.raises(FormatError, match="lie over each other"):
        source.piece(0, 1, "it")


@pytest.mark.parametrize(
    ("raw", "expected"),
    [(b"abc\0", b"abc"), (b"\0", b""), (b"abc", None), (b"x" * MAX_NAME + b"\0", b"x" * MAX_NAME)],
)
def test_texts_end_with_a_zero(tmp_path: Path, raw: bytes, expected: bytes | None) -> None:
    source = part(tmp_path / "m", b"12" + raw + b"more\0", start=2, size=len(raw) + 5)
    if expected is None:
        with pytest.raises(FormatError, match="a name without an end"):
            source.text(0, len(raw))
    else:
        assert source.text(0, len(raw)) == expected


def test_texts_longer_than_any_name(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="longer than any"):
        part(tmp_path / "m", b"x" * (MAX_NAME + 1) + b"\0").text(0, MAX_NAME + 2)
