"""Zip archives: by the same rules as tar, and never outside the folder."""

from __future__ import annotations

import io
import random
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from ckptkit.base.errors import FormatError, NotFoundError
from ckptkit.formats.tar_members import DEFAULT_LIMITS, SafeMember, TarLimits
from ckptkit.store.unpack import checkpoint_in, iter_safe_zip_members, unpack
from tests.support.entries import random_bytes

CONTENT = {
    "moat/m.index": b"index" * 200,
    "moat/m.data-00000-of-00001": random_bytes(700_000),
    "moat/checkpoint": b"",
}


def zipped(
    files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED, modes: dict[str, int] | None = None
) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, body in files.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = method
            info.create_system = 3
            info.external_attr = (modes or {}).get(name, 0) << 16
            archive.writestr(info, body)
    return buffer.getvalue()


def backslashed(files: dict[str, bytes]) -> bytes:
    """Zip with these very names, as Compress-Archive of Windows PowerShell 5 writes them."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, body in files.items():
            info = zipfile.ZipInfo("x")
            info.filename = name
            info.create_system = 0
            archive.writestr(info, body)
    return buffer.getvalue()


def walk(path: Path, data: bytes, limits: TarLimits = DEFAULT_LIMITS) -> dict[str, bytes | None]:
    path.write_bytes(data)
    return {
        member.name: None if stream is None else stream.read()
        for member, stream in iter_safe_zip_members(path, limits=limits)
    }


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_files_and_folders(tmp_path: Path, method: int) -> None:
    data = zipped({"./": b"", "moat/": b"", **CONTENT}, method, {"moat/": stat.S_IFDIR | 0o777})
    assert walk(tmp_path / "x", data) == {"moat": None, **CONTENT}
    members = [member for member, _ in iter_safe_zip_members(tmp_path / "x")]
    assert members[:2] == [SafeMember("moat", 0, True), SafeMember("moat/m.index", 1000, False)]


def test_backslashes_are_folders(tmp_path: Path) -> None:
    files = {"moat\\": b"", **{name.replace("/", "\\"): body for name, body in CONTENT.items()}}
    assert walk(tmp_path / "x", backslashed(files)) == {"moat": None, **CONTENT}
    folder = unpack(tmp_path / "x", tmp_path / "u" / "m")
    assert {name: (folder / name).read_bytes() for name in CONTENT} == CONTENT


def test_an_archive_written_as_a_stream(tmp_path: Path) -> None:
    """Sizes stand behind the bytes then; the directory has them all the same."""

    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

    buffer = Pipe()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, body in CONTENT.items():
            archive.writestr(name, body)
    assert walk(tmp_path / "x", buffer.getvalue()) == CONTENT


def test_unpack_takes_zip_by_its_content(tmp_path: Path) -> None:
    (tmp_path / "named.tar.gz").write_bytes(zipped(CONTENT, modes={"moat/m.index": stat.S_IFREG | 0o4777}))
    folder = unpack(tmp_path / "named.tar.gz", tmp_path / "u" / "m")
    assert {name: (folder / name).read_bytes() for name in CONTENT} == CONTENT
    assert checkpoint_in(folder) == folder / "moat"
    assert (folder / "moat" / "m.index").stat().st_mode & 0o7133 == 0


REFUSED: dict[str, tuple[bytes, str]] = {
    "parent": (zipped({"../evil": b"x"}), "'..'"),
    "parent inside": (zipped({"a/../../evil": b"x"}), "'..'"),
    "absolute": (zipped({"/etc/evil": b"x"}), "absolute"),
    "drive": (zipped({"C:/evil": b"x"}), "absolute"),
    "parent by backslashes": (backslashed({"..\\evil": b"x"}), "'..'"),
    "parent inside by backslashes": (backslashed({"a\\..\\..\\evil": b"x"}), "'..'"),
    "absolute by a backslash": (backslashed({"\\evil": b"x"}), "absolute"),
    "share": (backslashed({"\\\\host\\share\\evil": b"x"}), "absolute"),
    "drive and backslash": (backslashed({"C:\\evil": b"x"}), "absolute"),
    "same name by a backslash": (backslashed({"a/b": b"1", "a\\b": b"2"}), "two zip entries have the path"),
    "file as folder by a backslash": (backslashed({"a": b"1", "A\\b": b"2"}), "letter case"),
    "folder with bytes by a backslash": (backslashed({"a\\": b"x"}), "neither a file nor a folder"),
    "escape sequence": (zipped({"a\x1b[31m": b"x"}), "unsafe characters"),
    "letter case": (zipped({"Model": b"1", "model": b"2"}), "letter case"),
    "accents": (zipped({"\u00e9": b"1", "e\u0301": b"2"}), "letter case"),
    "file as folder": (zipped({"a": b"1", "A/b": b"2"}), "letter case"),
    "same name": (zipped({"ab": b"1", "ba": b"2"}).replace(b"ba", b"ab"), "two zip entries"),
    "symbolic link": (zipped({"l": b"/etc/passwd"}, modes={"l": stat.S_IFLNK | 0o777}), "a link"),
    "device": (zipped({"d": b""}, modes={"d": stat.S_IFCHR | 0o666}), "neither a file nor a folder"),
    "folder with bytes": (zipped({"a/": b"x"}), "neither a file nor a folder"),
    "folder without a slash": (zipped({"a": b""}, modes={"a": stat.S_IFDIR}), "neither a file nor a folder"),
    "bzip2": (zipped({"a": b"x"}, zipfile.ZIP_BZIP2), "method 12, which is not supported"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_unsafe_members_are_refused(tmp_path: Path, case: str) -> None:
    data, reason = REFUSED[case]
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(FormatError, match=reason):
        unpack(tmp_path / "a.zip", tmp_path / "u" / "m")
    assert list((tmp_path / "u").iterdir()) == []


def directory_record(data: bytes) -> int:
    return data.index(b"PK\x01\x02")


def patched(at: Callable[[bytes], int], form: str, *values: int) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        changed = bytearray(data)
        struct.pack_into(form, changed, at(data), *values)
        return bytes(changed)

    return change


def both(offset: int, local: int, value: int, data: bytes) -> bytes:
    """The first member's record in the directory and its own header say the same thing, which is wrong."""
    changed = patched(lambda d: directory_record(d) + offset, "<I", value)(data)
    return patched(lambda _: local, "<I", value)(changed)


def encrypted(data: bytes) -> bytes:
    return patched(lambda d: directory_record(d) + 8, "<H", 1)(data)


def overlapping(data: bytes) -> bytes:
    """Lead the second record of the directory to the first one's member, as quines and bombs do."""
    second = data.index(b"PK\x01\x02", directory_record(data) + 4)
    changed = bytearray(data)
    struct.pack_into("<I", changed, second + 42, 0)
    changed[second + 46 : second + 47] = b"a"
    return bytes(changed)


DAMAGED: dict[str, tuple[bytes, str]] = {
    "encrypted": (encrypted(zipped({"a": b"x"})), "is encrypted"),
    "overlap": (overlapping(zipped({"a": b"x", "b": b"x"})), "overlap|two zip entries"),
    "crc": (both(16, 14, 7, zipped({"a": b"x"})), "CRC-32"),
    "longer": (
        both(24, 22, 999, zipped({"a": b"x" * 1000})),
        "longer than",
    ),
    "shorter": (
        both(24, 22, 9999, zipped({"a": b"x" * 1000})),
        "ends early",
    ),
    "two sizes": (
        patched(lambda d: directory_record(d) + 24, "<I", 999)(zipped({"a": b"x" * 1000})),
        "its own header and the directory disagree",
    ),
    "truncated": (zipped(CONTENT)[:-10], "truncated"),
    "nothing in it": (zipped({}), "holds no file"),
    "noise": (b"PK\x03\x04" + random_bytes(5000), "truncated"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_archives_are_refused(tmp_path: Path, case: str) -> None:
    data, reason = DAMAGED[case]
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(FormatError, match=reason):
        unpack(tmp_path / "a.zip", tmp_path / "u" / "m")
    assert list((tmp_path / "u").iterdir()) == []


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (TarLimits(members=2), "more than 2 members"),
        (TarLimits(total_bytes=500_000), "more than 500000 bytes"),
        (TarLimits(ratio=1, ratio_from_bytes=1000), "bomb"),
    ],
)
def test_limits(tmp_path: Path, limits: TarLimits, reason: str) -> None:
    data = zipped({**CONTENT, "zeros": bytes(100_000)})
    with pytest.raises(FormatError, match=reason):
        walk(tmp_path / "x", data, limits)
    assert len(walk(tmp_path / "x", data, TarLimits(members=4))) == 4


def test_a_bomb_that_lies_about_its_size_gives_no_more_than_it_says(tmp_path: Path) -> None:
    bomb = both(24, 22, 1000, zipped({"zeros": bytes(64 << 20)}))
    with pytest.raises(FormatError, match="longer than its size says"):
        walk(tmp_path / "x", bomb)


def test_flipped_bytes_never_give_other_contents(tmp_path: Path) -> None:
    source = random.Random(5)
    good = {"a/b": bytes(range(256)) * 8, "a/c": b"text" * 100}
    whole = zipped(good)
    refused = 0
    for position in source.sample(range(len(whole)), 150):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << source.randrange(8)
        try:
            found = walk(tmp_path / "x", bytes(damaged))
        except FormatError:
            refused += 1
            continue
        assert list(found.values()) == list(good.values())
    assert refused > 50


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"x\.zip"):
        next(iter_safe_zip_members(tmp_path / "x.zip"))


def test_the_checksum_used_here_is_that_of_zlib() -> None:
    data = zipped({"a": b"123456789"})
    assert struct.unpack_from("<I", data, directory_record(data) + 16)[0] == zlib.crc32(b"123456789")
