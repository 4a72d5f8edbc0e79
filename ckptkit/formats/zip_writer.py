"""Write zip archives of stored entries whose data is aligned and whose sizes are known beforehand.

Deterministic: no clock, no host, no random padding. Archives beyond 4 GB or 65535 entries get zip64 records.
Source of the layout: PKWARE's APPNOTE 6.3.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ckptkit.base.checksums import crc32, crc32c
from ckptkit.base.files import StagedFile
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


@dataclass
class Member:
    """One entry of an archive being written.

    Parameters
    ----------
    name : bytes
    flags : int
    size : int
        Bytes of data.
    header : int
        Where its local header begins in the file.
    crc32 : int
        Of its data, once that is known.
    """

    name: bytes
    flags: int
    size: int
    header: int
    crc32: int = 0

    @property
    def extra(self) -> bytes:
        """Extra fields of the local header; the last of them moves the data to a multiple of `ALIGNMENT`."""
        wide = struct.pack("<HHQQ", _ZIP64_ID, 16, self.size, self.size) if self.size >= WIDE else b""
        return wide + _padding(self.header + LOCAL.size + len(self.name) + len(wide))

    @property
    def data(self) -> int:
        """Where its data begins in the file."""
        return self.header + LOCAL.size + len(self.name) + len(self.extra)

    def local_header(self) -> bytes:
        """What stands before its data."""
        version, size = (_VERSION64, 0xFFFFFFFF) if self.size >= WIDE else (_VERSION, self.size)
        extra = self.extra
        fields = (version, self.flags, STORED, 0, _DOS_DATE, self.crc32, size, size)
        return LOCAL.pack(LOCAL_MAGIC, *fields, len(self.name), len(extra)) + self.name + extra


class ZipWriter:
    """Entries one after the other in a staged file, whose sizes are known before their data.

    Entries that are reserved may be filled in any order and by several threads at once.

    Parameters
    ----------
    file : StagedFile
        Receives the archive; the caller commits or discards it.
    """

    def __init__(self, file: StagedFile) -> None:
        self._file = file
        self._members: list[Member] = []
        self._position = 0

    def add(self, name: str, data: bytes) -> None:
        """Write a small entry at once."""
        self.fill(self.reserve(name, len(data)), [data])

    def reserve(self, name: str, size: int) -> Member:
        """Keep the next place for an entry of ``size`` bytes; its data lies at a multiple of `ALIGNMENT`."""
        flags = 0 if name.isascii() else _UTF8
        member = Member(name.encode(), flags, size, self._position)
        self._position = member.data + size
        self._members.append(member)
        return member

    def fill(self, member: Member, pieces: Iterable[Any], *, head: bytes = b"") -> int:
        """Write the data of an entry, and before it its header, which holds the CRC-32 of the data.

        Parameters
        ----------
        member : Member
            From `reserve`.
        pieces : iterable
            Anything with contiguous buffers; with ``head``, of the entry's size in all.
        head : bytes
            Data before the pieces.

        Returns
        -------
        int
            crc32c (not CRC-32) of the pieces.
        """
        castagnoli = 0
        offset = member.data + len(head)
        member.crc32 = crc32(head)
        for piece in pieces:
            member.crc32 = crc32(piece, member.crc32)
            castagnoli = crc32c(piece, castagnoli)
            self._file.write_at(piece, offset)
            offset += memoryview(piece).nbytes
        self._file.write_at(member.local_header() + head, member.header)
        return castagnoli

    def close(self, comment: bytes = b"") -> None:
        """Write the directory."""
        self._file.skip_to(self._position)
        start = self._position
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
        few = 0xFFFF if count >= _WIDE_COUNT else count
        self._file.append(
            END.pack(END_MAGIC, 0, 0, few, few, _narrow(size), _narrow(start), len(comment)) + comment
        )


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


def _central_record(member: Member) -> bytes:
    size, header = _narrow(member.size), _narrow(member.header)
    wide = [member.size, member.size] if member.size >= WIDE else []
    wide += [member.header] if member.header >= WIDE else []
    extra = struct.pack(f"<HH{len(wide)}Q", _ZIP64_ID, 8 * len(wide), *wide) if wide else b""
    version = _VERSION64 if wide else _VERSION
    lengths = (len(member.name), len(extra), 0)
    fields = (version, version, member.flags, STORED, 0, _DOS_DATE, member.crc32, size, size, *lengths)
    return CENTRAL.pack(CENTRAL_MAGIC, *fields, 0, 0, 0, header) + member.name + extra
