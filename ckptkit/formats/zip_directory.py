"""The central directory of a zip archive, every number in it checked against the file.

PyTorch files and npz files are zip archives; most entries are stored, so a tensor is a range of the file.
Source of the layout: PKWARE's APPNOTE 6.3 (sections 4.3.7, 4.3.12, 4.3.14 to 4.3.16, 4.5.3).
"""

from __future__ import annotations

import contextlib
import itertools
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckptkit.errors import FormatError
from ckptkit.formats.mapped_file import MappedFile

LOCAL_MAGIC = b"PK\x03\x04"
CENTRAL_MAGIC = b"PK\x01\x02"
END_MAGIC = b"PK\x05\x06"
END64_MAGIC = b"PK\x06\x06"
LOCATOR64_MAGIC = b"PK\x06\x07"

LOCAL = struct.Struct("<4s5H3I2H")
CENTRAL = struct.Struct("<4s6H3I5H2I")
END = struct.Struct("<4s4H2IH")
END64 = struct.Struct("<4sQ2H2I4Q")
LOCATOR64 = struct.Struct("<4sIQI")

STORED, DEFLATED = 0, 8
MAX_ENTRIES = 200_000
_MAX_COMMENT = 0xFFFF
_ENCRYPTED = 0x1 | 0x40 | 0x2000


@dataclass(frozen=True)
class ZipEntry:
    """One member: where its bytes lie and what they should be.

    Parameters
    ----------
    name : str
        Path inside the archive.
    method : int
        0 stored, 8 deflated.
    crc32 : int
        Of the uncompressed bytes.
    packed, size : int
        Bytes in the file, and bytes when unpacked.
    offset : int
        Where the member's data starts in the file.
    attributes : int
        The directory's external attributes: where Unix wrote them, its mode stands in the upper 16 bits.
    """

    name: str
    method: int
    crc32: int
    packed: int
    size: int
    offset: int
    attributes: int = 0


@dataclass(frozen=True)
class ZipDirectory:
    """All members of an archive by name, in directory order, and the archive's comment."""

    entries: dict[str, ZipEntry]
    comment: bytes


@dataclass(frozen=True)
class _End:
    """What the records at the end of an archive say."""

    count: int
    size: int
    offset: int
    stop: int
    comment: bytes


def check_stored(path: Path) -> None:
    """Compare every member of a zip archive that is stored as it is with its CRC-32.

    A checksum of 0 says that none was kept, as ``torch.serialization.set_crc32_options(False)`` writes it.

    Raises
    ------
    FormatError
        When the archive is damaged.
    """
    with contextlib.closing(MappedFile(path)) as file:
        for entry in read_directory(file).entries.values():
            if entry.method != STORED or not entry.crc32:
                continue
            found = file.crc32(entry.offset, entry.packed)
            file.release(entry.offset, entry.packed)
            if found != entry.crc32:
                raise FormatError(
                    path,
                    f"damaged member {entry.name[:200]!r}: CRC-32 is {found:08x}, not {entry.crc32:08x}",
                    offset=entry.offset,
                )


def read_directory(file: MappedFile) -> ZipDirectory:
    """Read and check the directory of an archive.

    Raises
    ------
    FormatError
        Truncated, damaged, encrypted, spread over several disks, with duplicate names or members that overlap
        or reach outside the file.
    """
    end = _find_end(file)
    if end.count > MAX_ENTRIES:
        raise FormatError(file.path, f"zip directory of {end.count} entries, more than {MAX_ENTRIES}")
    if end.offset + end.size > end.stop or end.count * CENTRAL.size > end.size:
        raise FormatError(file.path, "zip directory does not fit into the file", offset=end.offset)
    entries: dict[str, ZipEntry] = {}
    spans: list[tuple[int, int, str]] = []
    position = end.offset
    for _ in range(end.count):
        entry, header, position = _central_entry(file, position, end)
        if entry.name in entries:
            raise FormatError(file.path, f"two zip entries are called {entry.name!r}")
        entries[entry.name] = entry
        spans.append((header, entry.offset + entry.packed, entry.name))
    _refuse_overlap(file, sorted(spans))
    return ZipDirectory(entries, end.comment)


def _find_end(file: MappedFile) -> _End:
    data, lowest = file.data, max(0, file.size - END.size - _MAX_COMMENT)
    position = file.size
    while (position := data.rfind(END_MAGIC, lowest, position)) >= 0:
        if position + END.size <= file.size:
            *_, length = fields = END.unpack(data[position : position + END.size])
            if position + END.size + length == file.size:
                comment = data[position + END.size : file.size]
                return _end_of(file, position, fields, comment)
    raise FormatError(
        file.path, "a zip archive without its end: the file is truncated", hint="fetch or copy it again"
    )


def _end_of(file: MappedFile, position: int, fields: tuple[Any, ...], comment: bytes) -> _End:
    _, disk, first_disk, here, count, size, offset, _ = fields
    if disk in (0, 0xFFFF) and first_disk in (0, 0xFFFF):
        locator = position - LOCATOR64.size
        if locator >= 0 and file.data[locator : locator + 4] == LOCATOR64_MAGIC:
            return _end64_of(file, locator, comment)
        if here == count:
            return _End(count, size, offset, position, comment)
    raise FormatError(file.path, "a zip archive in several parts", offset=position)


def _end64_of(file: MappedFile, locator: int, comment: bytes) -> _End:
    _, disk, position, disks = LOCATOR64.unpack(file.data[locator : locator + LOCATOR64.size])
    if position + END64.size > locator or file.data[position : position + 4] != END64_MAGIC:
        raise FormatError(file.path, "zip64 end record not where it should be", offset=locator)
    _, _, _, _, disk_here, first_disk, here, count, size, offset = END64.unpack(
        file.data[position : position + END64.size]
    )
    if disk or disks > 1 or disk_here or first_disk or here != count:
        raise FormatError(file.path, "a zip archive in several parts", offset=position)
    return _End(count, size, offset, position, comment)


def _central_entry(file: MappedFile, position: int, end: _End) -> tuple[ZipEntry, int, int]:
    """One directory record: the entry, where its local header starts, where the next record starts."""
    stop = end.offset + end.size
    if position + CENTRAL.size > stop:
        raise FormatError(file.path, "zip directory is cut off", offset=position)
    fields = CENTRAL.unpack(file.data[position : position + CENTRAL.size])
    magic, _, _, flags, method, _, _, crc, packed, size, name_length, extra_length, comment_length = fields[
        :13
    ]
    header = fields[16]
    names = position + CENTRAL.size
    following = names + name_length + extra_length + comment_length
    if magic != CENTRAL_MAGIC or following > stop:
        raise FormatError(file.path, "damaged record in the zip directory", offset=position)
    name = _decoded(file, file.data[names : names + name_length], position)
    if flags & _ENCRYPTED:
        raise FormatError(file.path, f"zip entry {name!r} is encrypted", offset=position)
    extra = file.data[names + name_length : names + name_length + extra_length]
    size, packed, header = _zip64_values(file, name, extra, (size, packed, header))
    offset = _data_offset(file, name, header, names_raw=file.data[names : names + name_length])
    if offset + packed > end.offset or (method == STORED and packed != size):
        raise FormatError(file.path, f"zip entry {name!r} does not fit into the file", offset=header)
    return ZipEntry(name, method, crc, packed, size, offset, fields[15]), header, following


def _decoded(file: MappedFile, raw: bytes, position: int) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise FormatError(file.path, "zip entry name is not UTF-8", offset=position) from error


def _zip64_values(
    file: MappedFile, name: str, extra: bytes, values: tuple[int, int, int]
) -> tuple[int, int, int]:
    """Replace each of (size, packed, header offset) that does not fit 32 bits by its zip64 value."""
    if 0xFFFFFFFF not in values:
        return values
    field, position = b"", 0
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, position)
        if kind == 1:
            field = extra[position + 4 : position + 4 + length]
        position += 4 + length
    wide = list(values)
    for index, value in enumerate(values):
        if value == 0xFFFFFFFF:
            if len(field) < 8:
                raise FormatError(file.path, f"zip entry {name!r} lacks its 64-bit sizes")
            wide[index], field = int.from_bytes(field[:8], "little"), field[8:]
    return wide[0], wide[1], wide[2]


def _data_offset(file: MappedFile, name: str, header: int, *, names_raw: bytes) -> int:
    if header + LOCAL.size > file.size:
        raise FormatError(file.path, f"zip entry {name!r} lies outside the file", offset=header)
    fields = LOCAL.unpack(file.data[header : header + LOCAL.size])
    start = header + LOCAL.size
    if fields[0] != LOCAL_MAGIC or file.data[start : start + fields[9]] != names_raw:
        raise FormatError(file.path, f"zip entry {name!r} is not where the directory says", offset=header)
    return int(start + fields[9] + fields[10])


def _refuse_overlap(file: MappedFile, spans: list[tuple[int, int, str]]) -> None:
    for (_, stop, name), (start, _, other) in itertools.pairwise(spans):
        if start < stop:
            raise FormatError(file.path, f"zip entries {name!r} and {other!r} overlap", offset=start)
