"""The zip directory: agrees with Python's zipfile on good archives, and believes no number of a bad one."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from ckptkit.errors import FormatError
from ckptkit.formats.mapped_file import MappedFile
from ckptkit.formats.zip_directory import ZipDirectory, read_directory
from tests.support.damage import mutations

MEMBERS = {"archive/data.pkl": b"pickle", "archive/data/0": b"0" * 300, "é": b"accent", "empty": b""}


def archive(comment: bytes = b"", method: int = zipfile.ZIP_STORED) -> bytes:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w", method) as made:
        for name, data in MEMBERS.items():
            made.writestr(name, data)
        made.comment = comment
    return raw.getvalue()


def read(folder: Path, raw: bytes) -> ZipDirectory:
    (folder / "x.zip").write_bytes(raw)
    file = MappedFile(folder / "x.zip")
    try:
        return read_directory(file)
    finally:
        file.close()


@pytest.mark.parametrize("comment", [b"", b"hello", b"x" * 65535], ids=["none", "short", "longest"])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_agrees_with_zipfile(tmp_path: Path, comment: bytes, method: int) -> None:
    raw = archive(comment, method)
    found = read(tmp_path, raw)
    assert found.comment == comment
    assert list(found.entries) == list(MEMBERS)
    for row in zipfile.ZipFile(io.BytesIO(raw)).infolist():
        entry = found.entries[row.filename]
        assert (entry.method, entry.crc32, entry.packed, entry.size) == (
            row.compress_type,
            row.CRC,
            row.compress_size,
            row.file_size,
        )
        if method == zipfile.ZIP_STORED:
            assert raw[entry.offset : entry.offset + entry.size] == MEMBERS[row.filename]


def test_a_comment_full_of_end_marks(tmp_path: Path) -> None:
    found = read(tmp_path, archive(b"PK\x05\x06" * 20))
    assert found.comment == b"PK\x05\x06" * 20
    assert list(found.entries) == list(MEMBERS)


def test_streamed_archives(tmp_path: Path) -> None:
    """Written without seeking: sizes stand only behind the data and in the directory, as torch does it."""

    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

        def seek(self, *_: int) -> int:
            raise io.UnsupportedOperation

        def tell(self) -> int:
            raise io.UnsupportedOperation

    raw = Pipe()
    with zipfile.ZipFile(raw, "w") as made, made.open("a", "w", force_zip64=True) as member:
        member.write(b"data")
    entry = read(tmp_path, raw.getvalue()).entries["a"]
    assert raw.getvalue()[entry.offset : entry.offset + entry.size] == b"data"


def poked(where: Callable[[bytes], int], form: str, value: int) -> bytes:
    raw = bytearray(archive())
    struct.pack_into(form, raw, where(bytes(raw)), value)
    return bytes(raw)


def end(offset: int) -> Callable[[bytes], int]:
    return lambda raw: raw.rindex(b"PK\x05\x06") + offset


def central(offset: int) -> Callable[[bytes], int]:
    return lambda raw: raw.index(b"PK\x01\x02") + offset


BAD = {
    "not a zip": b"hello" * 20,
    "only a magic": b"PK\x03\x04",
    "no end": archive()[:-22],
    "bytes behind the end": archive() + b"x",
    "many disks": poked(end(4), "<H", 3),
    "count too high": poked(end(10), "<H", 60000),
    "counts differ": poked(end(8), "<H", 3),
    "directory size too large": poked(end(12), "<I", 1 << 30),
    "directory size too small": poked(end(12), "<I", 4 * 46),
    "directory offset too large": poked(end(16), "<I", 1 << 30),
    "directory offset wrong": poked(end(16), "<I", 7),
    "zip64 without record": poked(end(16), "<I", 0xFFFFFFFF),
    "encrypted": poked(central(8), "<H", 1),
    "stored with two sizes": poked(central(20), "<I", 3),
    "size beyond the file": poked(central(24), "<I", 1 << 30),
    "zip64 size without field": poked(central(24), "<I", 0xFFFFFFFF),
    "name too long": poked(central(28), "<H", 60000),
    "header offset beyond the file": poked(central(42), "<I", 1 << 30),
    "header offset elsewhere": poked(central(42), "<I", 1),
    "two names for one entry": archive().replace(b"empty", b"other", 1),
    "name is no text": archive().replace(b"empty", b"\xff\xfe\xfdty"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_archives(tmp_path: Path, case: str) -> None:
    with pytest.raises(FormatError, match=r"x\.zip") as caught:
        read(tmp_path, BAD[case])
    assert "\n" not in str(caught.value)


def test_duplicate_names(tmp_path: Path) -> None:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w") as made:
        made.writestr("a", b"1")
        with pytest.warns(UserWarning, match="Duplicate"):
            made.writestr("a", b"2")
    with pytest.raises(FormatError, match="two zip entries are called 'a'"):
        read(tmp_path, raw.getvalue())


def test_overlapping_entries(tmp_path: Path) -> None:
    """The way of the quoted-overlap zip bombs: one entry's data contains the next entry's header."""
    raw = bytearray(archive())
    first, second = raw.index(b"PK\x01\x02"), raw.index(b"PK\x01\x02", raw.index(b"PK\x01\x02") + 4)
    grown = struct.unpack_from("<I", raw, first + 24)[0] + 50
    struct.pack_into("<II", raw, first + 20, grown, grown)
    assert second > first
    with pytest.raises(FormatError, match="overlap"):
        read(tmp_path, bytes(raw))


def test_every_truncation(tmp_path: Path) -> None:
    raw = archive()
    for stop in range(1, len(raw)):
        with pytest.raises(FormatError):
            read(tmp_path, raw[:stop])


def test_mutations(tmp_path: Path) -> None:
    raw = archive(b"comment")
    opened = 0
    for damaged in mutations(raw, 1500, seed=8):
        try:
            for entry in read(tmp_path, damaged or b"x").entries.values():
                assert 0 <= entry.offset <= entry.offset + entry.packed <= len(damaged)
            opened += 1
        except FormatError:
            pass
    assert 0 < opened < 1500
