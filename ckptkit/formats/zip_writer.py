"""Write zip archives of stored entries whose data is aligned, as a stream of known sizes.

Deterministic: no clock, no host, no random padding. Archives beyond 4 GB or 65535 entries get zip64 records.
Source of the layout: PKWARE's APPNOTE 6.3.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, replace
from typing import Any

from ckptkit.formats.staging import StagedFile
from ckptkit.formats.zip_directory import (
    CENTRAL,
    CENTRAL_MAGIC,
    END,
    END64,
    END64_MAGIC,
    END_MAGIC,
    LOCAL,
    LOCAL_MAGIC,
    LOCATOR64,
    LOCATOR64_MAGIC,
    STORED,
)

ALIGNMENT = 64
"""What torch.save uses too: whole cache lines, and any vector load."""

WIDE = 0xFFFFFFFF
"""Sizes and offsets from here on need zip64 fields."""

_WIDE_COUNT = 0xFFFF
_DOS_DATE = (1 << 5) | 1  # 1980-01-01, the earliest a zip can say
_UTF8 = 0x800
_VERSION, _VERSION64 = 20, 45
_PADDING_ID = 0x4246  # "FB", the extra field in which torch.save puts its padding
_ZIP64_ID = 1


@dataclass(frozen=True)
class _Member:
    name: bytes
    flags: int
    size: int
    header: int
    crc32: int = 0


class ZipWriter:
    """Entries one after the other into a staged file.

    Parameters
    ----------
    file : StagedFile
        Receives the archive; the caller commits or discards it.
    """

    def __init__(self, file: StagedFile) -> None:
        self._file = file
        self._members: list[_Member] = []
        self._open: _Member | None = None

    def add(self, name: str, data: bytes) -> None:
        """Write a small entry at once."""
        self.begin(name, len(data))
        if data:
            self.feed(data)
        self.end()

    def begin(self, name: str, size: int) -> None:
        """Start an entry of exactly ``size`` bytes; its data begins at a multiple of `ALIGNMENT`."""
        flags = 0 if name.isascii() else _UTF8
        self._open = _Member(name.encode(), flags, size, self._file.position)
        self._file.append(self._local_header(self._open))

    def feed(self, data: Any) -> None:
        """Write the next bytes (anything with a contiguous buffer) of the entry."""
        assert self._open is not None
        self._open = replace(self._open, crc32=zlib.crc32(data, self._open.crc32))
        self._file.append(data)

    def end(self) -> None:
        """Finish the entry: its CRC-32, known only now, goes into the header before it."""
        member = self._open
        assert member is not None
        self._open = None
        self._file.write_at(struct.pack("<I", member.crc32), member.header + 14)
        self._members.append(member)

    def close(self, comment: bytes = b"") -> None:
        """Write the directory."""
        start = self._file.position
        for member in self._members:
            self._file.append(_central_record(member))
        size, count = self._file.position - start, len(self._members)
        if start >= WIDE or size >= WIDE or count >= _WIDE_COUNT:
            where = self._file.position
            self._file.append(
                END64.pack(
                    END64_MAGIC, END64.size - 12, _VERSION64, _VERSION64, 0, 0, count, count, size, start
                )
            )
            self._file.append(LOCATOR64.pack(LOCATOR64_MAGIC, 0, where, 1))
        few = min(count, _WIDE_COUNT)
        self._file.append(
            END.pack(END_MAGIC, 0, 0, few, few, _narrow(size), _narrow(start), len(comment)) + comment
        )

    def _local_header(self, member: _Member) -> bytes:
        wide = member.size >= WIDE
        size = 0xFFFFFFFF if wide else member.size
        extra = struct.pack("<HHQQ", _ZIP64_ID, 16, member.size, member.size) if wide else b""
        extra += _padding(member.header + LOCAL.size + len(member.name) + len(extra))
        version = _VERSION64 if wide else _VERSION
        names = (len(member.name), len(extra))
        header = LOCAL.pack(LOCAL_MAGIC, version, member.flags, STORED, 0, _DOS_DATE, 0, size, size, *names)
        return header + member.name + extra


def _padding(position: int) -> bytes:
    """An extra field that moves what follows it to a multiple of `ALIGNMENT`."""
    length = -position % ALIGNMENT
    if length == 0:
        return b""
    if length < 4:  # the field itself takes four bytes
        length += ALIGNMENT
    return struct.pack("<HH", _PADDING_ID, length - 4) + bytes(length - 4)


def _narrow(value: int) -> int:
    return 0xFFFFFFFF if value >= WIDE else value


def _central_record(member: _Member) -> bytes:
    size, header = _narrow(member.size), _narrow(member.header)
    wide = [member.size, member.size] if member.size >= WIDE else []
    wide += [member.header] if member.header >= WIDE else []
    extra = struct.pack(f"<HH{len(wide)}Q", _ZIP64_ID, 8 * len(wide), *wide) if wide else b""
    version = _VERSION64 if wide else _VERSION
    lengths = (len(member.name), len(extra), 0)
    fields = (version, version, member.flags, STORED, 0, _DOS_DATE, member.crc32, size, size, *lengths)
    return CENTRAL.pack(CENTRAL_MAGIC, *fields, 0, 0, 0, header) + member.name + extra
