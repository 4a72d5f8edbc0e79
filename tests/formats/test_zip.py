"""The zip directory: agrees with Python's zipfile on good archives, and believes no number of a bad one."""

from __future__ import annotations

import io
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from ckptkit.base.errors import FormatError
from ckptkit.formats.mapped_file import MappedFile
from ckptkit.formats.zip import ZipDirectory, read_directory
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


# -- archives that two programs would read in two ways -------------------------------------------------------


def streamed(descriptor: bool = True) -> bytes:
    """One member whose sizes stand behind its data."""

    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return not descriptor

        def tell(self) -> int:
            raise io.UnsupportedOperation

    raw = Pipe()
    with zipfile.ZipFile(raw, "w") as made:
        made.writestr("a", b"data")
    return raw.getvalue()


def spliced(raw: bytes, at: int, more: bytes) -> bytes:
    """Bytes put in, and every offset behind them moved on, so that the directory still finds its members."""
    changed = bytearray(raw[:at] + more + raw[at:])
    last = changed.rindex(b"PK\x05\x06")
    start = struct.unpack_from("<I", changed, last + 16)[0] + len(more)
    struct.pack_into("<I", changed, last + 16, start)
    for found in re.finditer(b"PK\x01\x02", bytes(changed[start:])):
        place = start + found.start() + 42
        offset = struct.unpack_from("<I", changed, place)[0]
        struct.pack_into("<I", changed, place, offset + len(more) if offset >= at else offset)
    return bytes(changed)


def with_extra(raw: bytes, field: bytes) -> bytes:
    """An extra field in the directory's first record."""
    changed = bytearray(raw)
    place = changed.index(b"PK\x01\x02")
    name = struct.unpack_from("<H", changed, place + 28)[0]
    struct.pack_into("<H", changed, place + 30, len(field))
    changed[place + 46 + name : place + 46 + name] = field
    last = changed.rindex(b"PK\x05\x06")
    struct.pack_into("<I", changed, last + 12, struct.unpack_from("<I", changed, last + 12)[0] + len(field))
    return bytes(changed)


def named(*names: str) -> bytes:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w") as made:
        for name in names:
            made.writestr(name, name.encode())
    return raw.getvalue()


def behind(raw: bytes, more: bytes) -> bytes:
    """A comment, of which the end record tells."""
    last = raw.rindex(b"PK\x05\x06")
    return raw[: last + 20] + struct.pack("<H", len(more)) + more


WHOLE = archive()
DIRECTORY = WHOLE.index(b"PK\x01\x02")
SECOND = WHOLE.index(b"PK\x03\x04", 4)
SFX = b"#!/bin/sh\n"

TWO_READINGS: dict[str, tuple[bytes, str]] = {
    "a prefix": (SFX + WHOLE, "something was put into the file"),
    "a prefix that is allowed for": (spliced(WHOLE, 0, SFX), "10 bytes that belong to no zip entry"),
    "a hidden member": (spliced(WHOLE, SECOND, named("x")[:32]), "32 bytes that belong to no zip entry"),
    "a hidden archive": (
        spliced(WHOLE, DIRECTORY, named("x")),
        "that belong to no zip entry before",
    ),
    "zeros between": (spliced(WHOLE, SECOND, bytes(8)), "8 bytes that belong to no zip entry"),
    "two archives": (WHOLE + WHOLE, "something was put into the file"),
    "two ends": (
        WHOLE + WHOLE[WHOLE.rindex(b"PK\x05\x06") :],
        "something was put into the file",
    ),
    "an end in the comment": (behind(WHOLE, named("other") + b"."), "a second end in its comment"),
    "an empty end in the comment": (behind(WHOLE, b"PK\x05\x06" + bytes(19)), "a second end in its comm"),
    "bytes before the end": (
        WHOLE[: WHOLE.rindex(b"PK\x05\x06")] + b"12345" + WHOLE[WHOLE.rindex(b"PK\x05\x06") :],
        "something was put into the file",
    ),
    "other checksum": (poked(lambda raw: 14, "<I", 7), "its own header and the directory disagree"),
    "other size": (poked(lambda raw: 22, "<I", 7), "its own header and the directory disagree"),
    "other packed size": (poked(lambda raw: 18, "<I", 5), "its own header and the directory disagree"),
    "other method": (poked(lambda raw: 8, "<H", 8), "its own header and the directory disagree"),
    "other coding of names": (poked(lambda raw: 6, "<H", 0x800), "header and the directory disagree"),
    "encrypted in one place": (poked(lambda raw: 6, "<H", 1), "its own header and the directory disagree"),
    "sizes promised later": (poked(lambda raw: 14, "<I", 0), "its own header and the directory disagree"),
    "a descriptor that disagrees": (
        streamed().replace(b"dataPK\x07\x08", b"dataPK\x07\x09"),
        "16 bytes",
    ),
    "a 64-bit size beside": (
        with_extra(WHOLE, struct.pack("<HHQ", 1, 8, 7)),
        "32 and of 64 bits disagree",
    ),
    "two 64-bit sizes": (with_extra(WHOLE, struct.pack("<HHQ", 1, 8, 6) * 2), "or has them twice"),
    "another name beside": (
        with_extra(WHOLE, struct.pack("<HHBI", 0x7075, 10, 1, 0) + b"other"),
        "has another name in an extra field",
    ),
    "one path": (named("a/b", "a/./b"), "two zip entries have the path 'a/b'"),
    "one path upwards": (named("a/b", "a/c/../b"), "have the path"),
    "one path, backslashes": (named("a/b", "a\\b"), "have the path"),
    "a zero byte": (named("ab").replace(b"ab", b"a\0"), "zero byte"),
}


@pytest.mark.parametrize("case", TWO_READINGS)
def test_archives_that_can_be_read_in_two_ways(tmp_path: Path, case: str) -> None:
    raw, said = TWO_READINGS[case]
    with pytest.raises(FormatError, match=said) as caught:
        read(tmp_path, raw)
    assert "\n" not in str(caught.value)


SOUND: dict[str, tuple[bytes, list[str]]] = {
    "behind each other": (WHOLE, [*MEMBERS]),
    "streamed": (streamed(), ["a"]),
    "letter case": (named("w.npy", "W.npy"), ["w.npy", "W.npy"]),
    "a comment of some marks": (behind(WHOLE, b"PK\x05\x06PK\x01\x02" * 9), [*MEMBERS]),
    "a size said twice": (with_extra(WHOLE, struct.pack("<HHQ", 1, 8, 6)), [*MEMBERS]),
    "empty": (named(), []),
}


@pytest.mark.parametrize("case", SOUND)
def test_archives_that_only_look_odd(tmp_path: Path, case: str) -> None:
    raw, names = SOUND[case]
    assert list(read(tmp_path, raw).entries) == names


def test_wide_ends_that_disagree(tmp_path: Path) -> None:
    raw = bytearray(WHOLE)
    last = raw.rindex(b"PK\x05\x06")
    count, size, offset = struct.unpack_from("<HII", raw, last + 10)
    wide = struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, size, offset)
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, last, 1)
    assert list(read(tmp_path, bytes(raw[:last] + wide + locator + raw[last:])).entries) == list(MEMBERS)
    fewer = wide.replace(struct.pack("<2Q", count, count), struct.pack("<2Q", count - 1, count - 1))
    with pytest.raises(FormatError, match="two ends that disagree"):
        read(tmp_path, bytes(raw[:last] + fewer + locator + raw[last:]))
    with pytest.raises(FormatError, match="not where it should be"):  # some look right before the locator
        read(tmp_path, bytes(raw[:last] + wide + fewer + locator + raw[last:]))
