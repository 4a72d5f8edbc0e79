"""A safe walk over a tar archive: nothing that could leave its folder, nothing without bound.

Used by the TensorFlow reader (to read a ``.tar.gz`` directly), by the store (to unpack one) and by whatever
reads members of a plain one in place. An archive is read once, front to back; the first bytes say
whether it is plain, or packed by gzip, bzip2, xz or zstd.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import re
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from ckptkit.base.budget import Budget
from ckptkit.base.errors import FormatError, MissingDependencyError, NotFoundError
from ckptkit.base.files import storage_error
from ckptkit.base.text import counted
from ckptkit.formats.base import PACKERS, Sample
from ckptkit.formats.foreign import Foreign
from ckptkit.formats.members import DEFAULT_LIMITS, Limits, MemberNames, MemberStream, SafeMember

READ_BYTES = 256 << 10
TAR_BLOCK = 512
_HEADER_STEPS, _BYTES_A_STEP = 50, 2
_DIGITS = re.compile(rb"[0-9]{20,}")
_MOST_DIGITS = 255  # as a file's name may have
_XZ_MEMORY = 256 << 20  # the largest preset of xz asks for 65 MB to decompress
_ZSTD_WINDOW_LOG = 27  # 128 MiB, what zstd itself takes by default


def is_archive(head: bytes) -> bool:
    """Whether a file whose first 262 bytes are ``head`` may be a tar archive, compressed or not."""
    return _compression(head) is not None or head[257:262] == b"ustar"


def _compression(head: bytes) -> str | None:
    return next((name for name, mark in PACKERS.items() if head.startswith(mark)), None)


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class _GzipStream:
    """Decompressed bytes of a gzip file; isal's inflate took half the time of zlib's on weights."""

    def __init__(self, raw: BinaryIO) -> None:
        opened: Any = gzip.GzipFile
        damage: Any = zlib.error
        with contextlib.suppress(ImportError):  # a platform isal is not built for
            from isal import igzip, isal_zlib

            opened, damage = igzip.IGzipFile, isal_zlib.error
        self._stream: _Readable = opened(fileobj=raw, mode="rb")
        self._damage: type[Exception] = damage

    def read(self, size: int, /) -> bytes:
        """Up to ``size`` bytes, none at the end; EOFError if cut short, ValueError or OSError if damaged."""
        try:
            return self._stream.read(size)
        except self._damage as error:
            raise ValueError(str(error)) from error


class _BlockStream:
    """Decompressed bytes of a bzip2, xz or zstd file, memory bounded (headers may ask for gigabytes)."""

    def __init__(self, raw: BinaryIO, kind: str) -> None:
        self._raw = raw
        self._fresh, self._damage = _decoder(kind)
        self._decoder = self._fresh()

    def read(self, size: int, /) -> bytes:
        """Up to ``size`` bytes, none at the end; EOFError if cut short, ValueError or OSError if damaged."""
        while True:
            data = b""
            if self._decoder.eof:
                data = self._decoder.unused_data.lstrip(b"\0")  # streams may be padded with zeros
                while not data:
                    following = self._raw.read(READ_BYTES)
                    if not following:
                        return b""
                    data = following.lstrip(b"\0")
                self._decoder = self._fresh()
            elif self._decoder.needs_input:
                data = self._raw.read(READ_BYTES)
                if not data:
                    raise EOFError
            try:
                piece: bytes = self._decoder.decompress(data, size)
            except self._damage as error:
                raise ValueError(str(error)) from error
            if piece:
                return piece


def _decoder(kind: str) -> tuple[Callable[[], Any], type[Exception]]:
    """What makes a decompressor of a kind, and what that raises for damage."""
    if kind == "xz":
        import lzma  # not in every build of Python

        make = partial(lzma.LZMADecompressor, format=lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)
        return make, lzma.LZMAError
    if kind == "zstd":
        zstd = _zstd_module()
        options = {zstd.DecompressionParameter.window_log_max: _ZSTD_WINDOW_LOG}
        return partial(zstd.ZstdDecompressor, options=options), zstd.ZstdError
    import bz2

    return bz2.BZ2Decompressor, EOFError  # bz2 raises OSError, which says enough


def _zstd_module() -> Any:
    """Python's own since 3.14; before, the same from PyPI (cramjam cannot decompress piece by piece)."""
    try:
        if sys.version_info >= (3, 14):
            from compression import zstd
        else:
            from backports import zstd
    except ImportError as error:
        raise MissingDependencyError("archives packed with zstd", "backports.zstd") from error
    return zstd


def decompressed(path: Path, raw: BinaryIO) -> _Readable:
    """Undo the compression of an open file, whatever it is; FormatError when it is not an archive."""
    head = raw.read(TAR_BLOCK)
    raw.seek(0)
    if not is_archive(head):
        found = Foreign.of(Sample(path, head), containers=True)
        what = f"{found.what}, not a tar archive" if found else "not a tar archive"
        hint = found.hint if found else None
        raise FormatError(path, f"is {what}", hint=hint or "fetch it again, or check the URL it came from")
    kind = _compression(head)
    if kind is None:
        return raw
    return _GzipStream(raw) if kind == "gzip" else _BlockStream(raw, kind)


def packer_of_a_single_file(path: Path) -> tuple[str, bytes] | None:
    """What a file is packed with that holds one file instead of a tar archive, and how that one begins."""
    with path.open("rb") as raw:
        packer = _compression(raw.read(TAR_BLOCK))
        if packer is None:
            return None
        raw.seek(0)
        try:
            inside = decompressed(path, raw).read(TAR_BLOCK)
        except (EOFError, OSError, ValueError, zlib.error, MemoryError):
            return None  # reading it as an archive says what is damaged
        except MissingDependencyError:
            if ".tar." in path.name or path.name.endswith(".tzst"):
                raise
            return packer, b""
    if not inside.strip(b"\0"):
        return None  # the end mark of an empty archive
    try:
        tarfile.TarInfo.frombuf(inside.ljust(TAR_BLOCK, b"\0"), "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return packer, inside
    return None


class TarStream:
    """The decompressed archive, read forward only; counts, and gives up at the limits.

    tarfile reads headers through `read`, which a budget bounds: what a header claims to be long may not be
    loaded into memory. Members' bytes are read, or skipped, without that budget.
    """

    def __init__(self, path: Path, raw: BinaryIO, source: _Readable, limits: Limits) -> None:
        self._path = path
        self._raw = raw
        self._source = source
        self._limits = limits
        self._position = 0
        self._returned = memoryview(b"")
        self.budget = 0
        self.last_header = b""
        self._steps = Budget(_size_of(raw), self._refused)

    def _refused(self, reason: str) -> FormatError:
        return FormatError(self._path, reason)

    def tell(self) -> int:
        """Bytes produced so far."""
        return self._position

    def read(self, size: int) -> bytes:
        """Read header bytes, within the budget."""
        if not 0 <= size <= self.budget:
            raise FormatError(self._path, f"a member's headers claim {size} bytes", offset=self._position)
        self.budget -= size
        self._steps.spend(steps=_HEADER_STEPS if size == TAR_BLOCK else size // _BYTES_A_STEP)
        self.last_header = self.read_exactly(size)
        self._steps.spend(steps=search_steps(self._path, self.last_header))
        return self.last_header

    def seek(self, target: int) -> int:
        """Skip forward."""
        if target < self._position:
            raise FormatError(self._path, "a member's size is negative or too large", offset=self._position)
        self._skip_to(target)
        return target

    def _skip_to(self, target: int) -> None:
        while target > self._position:
            if not self.read_some(min(READ_BYTES, target - self._position)):
                raise FormatError(self._path, "truncated inside a member", offset=self._position)

    def begin_entry(self) -> None:
        """Grant the next member its budget of header bytes."""
        self.budget = self._limits.header_bytes

    def begins_again(self) -> bool:
        """Skip the zeros after an end mark; whether anything follows them."""
        begin = self._position
        while piece := self.read_exactly(READ_BYTES):
            if self._position - begin > self._limits.padding_bytes:
                raise FormatError(
                    self._path,
                    f"more than {self._limits.padding_bytes:,} zero bytes after its end mark",
                    offset=begin,
                )
            if rest := piece.lstrip(b"\0"):
                at = (len(piece) - len(rest)) // TAR_BLOCK * TAR_BLOCK
                self._returned = memoryview(piece)[at:]
                self._position -= len(self._returned)
                return True
        return False

    def read_exactly(self, size: int) -> bytes:
        """Read ``size`` bytes, fewer only at the end."""
        pieces = []
        while size > 0 and (piece := self.read_some(min(size, READ_BYTES))):
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)

    def read_some(self, size: int) -> bytes:
        """Read at least one byte and at most ``size``; none at the end."""
        if self._returned:
            piece, self._returned = bytes(self._returned[:size]), self._returned[size:]
            self._position += len(piece)
            return piece
        try:
            piece = self._source.read(size)
        except EOFError as error:
            raise FormatError(self._path, "truncated: the compressed data ends early") from error
        except OSError as error:
            if error.errno is not None:
                raise storage_error(error, self._path) from error
            # without a number it is gzip or bz2 saying "damaged"
            raise FormatError(
                self._path, f"damaged compressed data: {error}", offset=self._position
            ) from error
        except (ValueError, zlib.error, MemoryError) as error:
            raise FormatError(
                self._path, f"damaged compressed data: {error}", offset=self._position
            ) from error
        self._position += len(piece)
        if self._position > self._limits.total_bytes:
            raise FormatError(self._path, f"unpacks to more than {self._limits.total_bytes} bytes")
        expanded = self._position > self._limits.ratio_from_bytes
        if expanded and self._position > self._limits.ratio * max(1, self._raw.tell()):
            raise FormatError(
                self._path, f"expands more than {self._limits.ratio} times: a decompression bomb"
            )
        return piece


def _size_of(raw: BinaryIO) -> int:
    """Bytes of an archive as it came; more than any has where it is still coming."""
    try:
        return os.fstat(raw.fileno()).st_size
    except (OSError, AttributeError):
        return sys.maxsize


def search_steps(path: Path, header: bytes) -> int:
    """Steps that `tarfile` may take to search the records of a header, beyond one for some of its bytes.

    Before Python 3.11.10 and 3.12.6 it looks for numbers in a time that is the square of the longest one
    (CVE-2024-6232).
    """
    steps = 0
    for found in _DIGITS.finditer(header):
        length = found.end() - found.start()
        if length > _MOST_DIGITS:
            raise FormatError(path, f"a member's headers hold a number of {counted(length, 'digit')}")
        steps += length * length // 128
    return steps


def tar_entries(path: Path, headers: TarStream, *, errors: str = "strict") -> Iterator[tarfile.TarInfo]:
    """Walk over the members of a tar archive, and of any that follow it (``cat a.tar b.tar``)."""
    yield from _entries_to_end_mark(path, headers, errors)
    while headers.begins_again():
        begin = headers.tell()
        entries = _entries_to_end_mark(path, headers, errors)
        if (first := next(entries, None)) is None:
            raise FormatError(path, "what follows the end mark is not a tar archive", offset=begin)
        yield first
        yield from entries


def members_in_place(path: Path, file: BinaryIO, *, most: int) -> Iterator[tarfile.TarInfo]:
    """The files of a plain archive, from header to header; `offset_data` of each is where its bytes are."""
    size = file.seek(0, os.SEEK_END)
    headers = _InPlace(path, file, file, Limits(total_bytes=sys.maxsize, padding_bytes=sys.maxsize))
    for count, member in enumerate(tar_entries(path, headers, errors="surrogateescape")):
        if count == most:
            raise FormatError(path, f"more than {most:,} members")
        if member.isdir():
            continue
        if not member.isfile() or member.issparse():
            what = "a link" if member.issym() or member.islnk() else "not a plain file"
            raise FormatError(path, f"member {member.name[:200]!r} is {what}, which is refused")
        if member.offset_data + member.size > size:
            raise FormatError(path, "truncated inside a member", offset=member.offset_data)
        yield member


class _InPlace(TarStream):
    """A plain archive of which headers alone are read; others may read the file in between."""

    def _skip_to(self, target: int) -> None:
        self._position, self._returned = target, memoryview(b"")

    def read_some(self, size: int) -> bytes:
        """Read from where the last header ended."""
        self._raw.seek(self._position)
        return super().read_some(size)


def _entries_to_end_mark(path: Path, headers: TarStream, errors: str) -> Iterator[tarfile.TarInfo]:
    begin = headers.tell()
    archive: tarfile.TarFile | None = None
    empty = True
    while True:
        headers.begin_entry()
        try:
            if archive is None:
                archive = tarfile.TarFile(fileobj=headers, mode="r", encoding="utf-8", errors=errors)  # type: ignore[arg-type]
                empty = archive.firstmember is None  # type: ignore[attr-defined]
            entry = None if empty else archive.next()
        # a hostile header brings tarfile to any of these (RecursionError: headers about headers)
        except (tarfile.TarError, ValueError, OverflowError, IndexError, KeyError, RecursionError) as error:
            raise FormatError(path, f"damaged tar header: {error}", offset=headers.tell()) from error
        if entry is None:
            break
        archive.members.clear()  # type: ignore[attr-defined]  # it would keep all of them, with their headers
        _refuse_two_meanings(path, entry, archive, headers.last_header)
        yield entry
    last = headers.last_header
    if begin and empty:
        return  # the caller says what it is
    if last.strip(b"\0"):
        raise FormatError(path, "damaged tar header", offset=headers.tell() - len(last))
    if len(last) < TAR_BLOCK:
        raise FormatError(path, "truncated: the archive has no end mark", offset=headers.tell())


def _refuse_two_meanings(path: Path, entry: tarfile.TarInfo, archive: tarfile.TarFile, header: bytes) -> None:
    """Refuse a member that programs take for different ones: its records or its header have two readings."""
    shown = repr(entry.name[:200])
    if not archive.pax_headers.keys().isdisjoint(_OF_ONE_MEMBER):
        raise FormatError(path, f"member {shown}: a global header with a name or size of its own")
    if len(header) != TAR_BLOCK:
        return
    stored = header[124:136].strip(b" \0")
    size = int(stored, 8) if re.fullmatch(rb"[0-7]+", stored) else None
    if "size" in entry.pax_headers and entry.size < _LARGEST_OCTAL and size != entry.size:
        raise FormatError(path, f"member {shown}: two sizes, {entry.size} and {size}")
    if header[257:263] != b"ustar\0" and header[345:500].strip(b"\0"):
        raise FormatError(path, f"member {shown}: half of a name where its kind of header has none")
    if entry.isdir() and entry.size:
        raise FormatError(path, f"member {shown}: a folder of {entry.size} bytes")
    if entry.type == tarfile.REGTYPE and entry.name.endswith("/"):
        raise FormatError(path, f"member {shown}: a file with the name of a folder")


_OF_ONE_MEMBER = frozenset(
    {"path", "linkpath", "size", "GNU.sparse.name", "GNU.sparse.size", "GNU.sparse.realsize"}
)
_LARGEST_OCTAL = 1 << 33
"""Sizes that do not fit in a header, which has then any number."""


# -- members -----------------------------------------------------------------------------------------------


def iter_safe_members(
    path: Path, *, limits: Limits = DEFAULT_LIMITS, source: BinaryIO | None = None
) -> Iterator[tuple[SafeMember, BinaryIO | None]]:
    """Walk over the files and folders of a tar archive in their order."""
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
            body = MemberStream(_contents(path, stream, member))
            yield member, io.BufferedReader(body, READ_BYTES)
            body.expire()


def _contents(path: Path, stream: TarStream, member: SafeMember) -> Iterator[bytes]:
    left = member.size
    while left:
        piece = stream.read_some(min(READ_BYTES, left))
        if not piece:
            raise FormatError(path, f"truncated inside {member.name!r}")
        left -= len(piece)
        yield piece


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
