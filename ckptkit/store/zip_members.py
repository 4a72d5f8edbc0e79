"""A safe walk over a zip archive, by the same rules as `ckptkit.formats.tar_members` has for tar.

The directory is checked against the file first (`ckptkit.formats.zip_directory`): encrypted, overlapping and
misplaced members are refused there. What is in it is read with every size bounded by what the directory says.
"""

from __future__ import annotations

import contextlib
import io
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ckptkit.base.checksums import crc32
from ckptkit.base.errors import FormatError
from ckptkit.formats.mapped_file import MappedFile
from ckptkit.formats.member_names import MemberNames
from ckptkit.formats.tar_members import DEFAULT_LIMITS, SafeMember, TarLimits
from ckptkit.formats.zip_directory import (
    DEFLATED,
    END_MAGIC,
    LOCAL_MAGIC,
    STORED,
    ZipEntry,
    read_directory,
)

_READ = 256 << 10


def is_zip(head: bytes) -> bool:
    """Whether a file that begins with these bytes is a zip archive (an empty one begins with its end)."""
    return head.startswith((LOCAL_MAGIC, END_MAGIC))


def iter_safe_zip_members(
    path: Path, *, limits: TarLimits = DEFAULT_LIMITS
) -> Iterator[tuple[SafeMember, BinaryIO | None]]:
    """Walk over the files and folders of a zip archive in the order of its directory.

    Parameters
    ----------
    path : Path
        The archive.
    limits : TarLimits
        When to give up.

    Yields
    ------
    member : SafeMember
        What stands there.
    stream : BinaryIO or None
        A file's bytes, to be read before the walk goes on; None for a folder. Read to its end, it has
        compared size and CRC-32.

    Raises
    ------
    FormatError
        When the archive is damaged, encrypted, or has members that overlap, are links or devices, are packed
        in another way than stored or deflated, have unsafe names or the same, or that break a limit.
    NotFoundError
        When there is no such file.
    """
    with contextlib.closing(MappedFile(path)) as file:
        entries = list(read_directory(file).entries.values())
        _refuse_excess(file, entries, limits)
        names = MemberNames(path)
        for member, entry in [(_checked(file, entry, names), entry) for entry in entries]:
            if member is None:
                continue
            if member.is_folder:
                yield member, None
                continue
            body = _MemberStream(file, entry)
            yield member, io.BufferedReader(body, _READ)
            body.expire()


def _refuse_excess(file: MappedFile, entries: list[ZipEntry], limits: TarLimits) -> None:
    if len(entries) > limits.members:
        raise FormatError(file.path, f"more than {limits.members} members")
    total = sum(entry.size for entry in entries)
    if total > limits.total_bytes:
        raise FormatError(file.path, f"unpacks to more than {limits.total_bytes} bytes")
    if total > max(limits.ratio_from_bytes, limits.ratio * file.size):
        raise FormatError(file.path, f"expands more than {limits.ratio} times: a decompression bomb")


def _checked(file: MappedFile, entry: ZipEntry, names: MemberNames) -> SafeMember | None:
    """The member if it is safe; None for the archive's own root folder."""
    shown = repr(entry.name[:200])
    path = entry.name.replace("\\", "/")  # as PowerShell and .NET before 4.6.1 write them
    kind = stat.S_IFMT(entry.attributes >> 16)  # zero where the archive was not made by Unix
    is_folder = path.endswith("/")
    if kind == stat.S_IFLNK:
        raise FormatError(file.path, f"member {shown} is a link, which is refused")
    if kind not in (0, stat.S_IFDIR if is_folder else stat.S_IFREG) or (is_folder and entry.size):
        raise FormatError(file.path, f"member {shown} is neither a file nor a folder, which is refused")
    if entry.method not in (STORED, DEFLATED):
        raise FormatError(
            file.path,
            f"member {shown} is packed by method {entry.method}, which is not supported: unpack it with "
            "another program, and give the checkpoint in it by its path",
        )
    name = names.claim(path, is_folder=is_folder)
    return SafeMember(name, entry.size, is_folder) if name else None


class _MemberStream(io.RawIOBase):
    """Bytes of one member, as many as the directory says and with the CRC-32 it says."""

    def __init__(self, file: MappedFile, entry: ZipEntry) -> None:
        self._file = file
        self._entry = entry
        self._position = entry.offset
        self._remaining = entry.size
        self._crc = 0
        self._inflater = zlib.decompressobj(-zlib.MAX_WBITS) if entry.method == DEFLATED else None
        self._tail = b""
        self._ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), self._remaining)
        piece = self._piece(wanted) if wanted else b""
        if wanted and not piece:
            raise self._damaged("ends early")
        buffer[: len(piece)] = piece
        self._remaining -= len(piece)
        self._crc = crc32(piece, self._crc)
        if not self._remaining and not self._ended:
            self._end()
        return len(piece)

    def expire(self) -> None:
        """The walk goes on: nothing more may be read here."""
        self._remaining, self._ended = 0, True

    def _packed(self) -> bytes:
        stop = min(self._position + _READ, self._entry.offset + self._entry.packed)
        piece = self._file.data[self._position : stop]
        self._file.release(self._position, stop - self._position)
        self._position = stop
        return piece

    def _piece(self, wanted: int) -> bytes:
        if self._inflater is None:
            stop = min(self._position + wanted, self._entry.offset + self._entry.packed)
            piece, self._position = self._file.data[self._position : stop], stop
            return piece
        while not self._inflater.eof:
            packed = self._tail or self._packed()
            try:
                piece = self._inflater.decompress(packed, wanted)
            except zlib.error as error:
                raise self._damaged(str(error)) from error
            self._tail = self._inflater.unconsumed_tail
            if piece:
                return piece
            if not packed:
                break
        return b""

    def _end(self) -> None:
        """Compare what came with what was said: nothing may be left, and the checksum must be right."""
        self._ended = True
        if self._inflater is not None and (self._piece(1) or not self._inflater.eof):
            raise self._damaged("is longer than its size says")
        if self._crc != self._entry.crc32:
            raise self._damaged(f"has CRC-32 {self._crc:08x}, not {self._entry.crc32:08x}")

    def _damaged(self, what: str) -> FormatError:
        name = repr(self._entry.name[:200])
        return FormatError(self._file.path, f"damaged member {name}: {what}", offset=self._entry.offset)
