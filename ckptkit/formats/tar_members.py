"""A safe walk over a tar archive: nothing that could leave its folder, nothing without bound.

Used by the TensorFlow reader (to read a ``.tar.gz`` directly) and by the store (to unpack one). The
archive is read once, front to back; plain, gzip, bzip2, xz and zstd are told apart by their first bytes.
"""

from __future__ import annotations

import contextlib
import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ckptkit.base.errors import FormatError, NotFoundError, storage_error
from ckptkit.formats.member_names import MemberNames
from ckptkit.formats.tar_stream import (
    DEFAULT_LIMITS,
    READ_BYTES,
    TarLimits,
    TarStream,
    decompressed,
    tar_entries,
)

__all__ = ["DEFAULT_LIMITS", "SafeMember", "TarLimits", "iter_safe_members"]


@dataclass(frozen=True)
class SafeMember:
    """A file or folder of an archive, its name checked.

    Attributes
    ----------
    name : str
        Relative, with ``/`` between parts, no ``.`` or ``..`` among them.
    size : int
        Bytes; 0 for a folder.
    is_folder : bool
        Folders have no bytes.
    """

    name: str
    size: int
    is_folder: bool


def iter_safe_members(
    path: Path, *, limits: TarLimits = DEFAULT_LIMITS, source: BinaryIO | None = None
) -> Iterator[tuple[SafeMember, BinaryIO | None]]:
    """Walk over the files and folders of a tar archive in the order they stand.

    Parameters
    ----------
    path : Path
        ``.tar``, ``.tar.gz``, ``.tar.bz2``, ``.tar.xz`` or ``.tar.zst``, whatever it is called.
    limits : TarLimits
        When to give up.
    source : BinaryIO, optional
        Where the archive's bytes are read from when not from ``path``, which then only names it.

    Yields
    ------
    member : SafeMember
        What stands there.
    stream : BinaryIO or None
        A file's bytes, to be read before the walk goes on; None for a folder.

    Raises
    ------
    FormatError
        When the file is no tar archive, is truncated or damaged, or has a member that is a link, device or
        pipe, that has an absolute name or one with ``..``, whose name occurs twice (letter case aside), or
        that breaks a limit. Members yielded before may be fine; nobody should use them without the rest.
    NotFoundError
        When there is no such file.
    """
    with contextlib.ExitStack() as stack:
        try:
            raw = source or stack.enter_context(path.open("rb"))
            unpacked = decompressed(path, raw)
        except FileNotFoundError as error:
            raise NotFoundError(f"{path}: no such file") from error
        except OSError as error:
            raise storage_error(error, path) from error
        stream = TarStream(path, raw, unpacked, limits)
        names = MemberNames(path)
        for count, entry in enumerate(tar_entries(path, stream)):
            if count == limits.members:
                raise FormatError(path, f"more than {limits.members} members")
            member = _checked(path, entry, names)
            if member is None:
                continue
            if member.is_folder:
                yield member, None
                continue
            body = _MemberStream(path, stream, member)
            yield member, io.BufferedReader(body, READ_BYTES)
            body.expire()


class _MemberStream(io.RawIOBase):
    """Bytes of one member."""

    def __init__(self, path: Path, stream: TarStream, member: SafeMember) -> None:
        self._path = path
        self._stream = stream
        self._member = member
        self._remaining = member.size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), self._remaining)
        piece = self._stream.read_some(wanted) if wanted else b""
        if wanted and not piece:
            raise FormatError(self._path, f"truncated inside {self._member.name!r}")
        buffer[: len(piece)] = piece
        self._remaining -= len(piece)
        return len(piece)

    def expire(self) -> None:
        """The walk goes on: nothing more may be read here."""
        self._remaining = 0


def _checked(path: Path, entry: tarfile.TarInfo, names: MemberNames) -> SafeMember | None:
    """The member if it is safe; None for the archive's own root folder."""
    shown = repr(entry.name[:200])
    if entry.issym() or entry.islnk():
        raise FormatError(path, f"member {shown} is a link, which is refused")
    is_file = entry.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not entry.issparse()
    if not is_file and not entry.isdir():
        raise FormatError(path, f"member {shown} is neither a file nor a folder, which is refused")
    if entry.size < 0:
        raise FormatError(path, f"member {shown} has a negative size")
    name = names.claim(entry.name, is_folder=entry.isdir())
    return SafeMember(name, entry.size if is_file else 0, entry.isdir()) if name else None
