"""Zip archives: a directory whose every number is checked against the file, and a writer of stored entries.

PyTorch files and npz files are zip archives; most entries are stored, so a tensor is a range of the file.
What is written is deterministic (no clock, no host, no random padding), aligned, and gets zip64 records
beyond 4 GB or 65535 entries. Source of the layout: PKWARE's APPNOTE 6.3 (sections 4.3.7, 4.3.12, 4.3.14 to
4.3.16, 4.5.3).
"""

from __future__ import annotations

import contextlib
import io
import posixpath
import stat
import struct
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, zip_longest
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO

from ckptkit.base.budget import Budget
from ckptkit.base.checksums import crc32, crc32c
from ckptkit.base.errors import FormatError
from ckptkit.base.files import StagedFile
from ckptkit.base.text import counted
from ckptkit.formats.mapped_file import MappedFile
from ckptkit.formats.members import DEFAULT_LIMITS, Limits, MemberNames, MemberStream, SafeMember

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

DESCRIPTOR_MAGIC = b"PK\x07\x08"
_DESCRIPTORS = {12: "<0s3I", 16: "<4s3I", 20: "<0sI2Q", 24: "<4sI2Q"}
"""What may follow a member's data, by its length: a mark perhaps, CRC-32, sizes of 32 or 64 bits."""

STORED, DEFLATED = 0, 8
MAX_ENTRIES = 200_000
_MAX_COMMENT = 0xFFFF
_WIDE = 0xFFFFFFFF
"""In place of a size or an offset: a zip64 field has it."""

_ENCRYPTED = 0x1 | 0x40 | 0x2000
_STREAMED, _UTF8 = 0x8, 0x800
_SAME_FLAGS = _ENCRYPTED | _UTF8
_ZIP64, _OTHER_NAME = 1, 0x7075
READ_BYTES = 256 << 10
_KEPT_PAGES = 32 << 20
_DAMAGED = "the file is damaged: fetch it again"

ALIGNMENT = 64
"""What torch.save uses too: whole cache lines, and any vector load."""

_LARGE, _MANY = _WIDE, 0xFFFF
"""Sizes and offsets, and numbers of entries, that are written in zip64 records."""

_DOS_DATE = (1 << 5) | 1  # 1980-01-01, the earliest a zip can say
_VERSION, _VERSION64 = 20, 45
_PADDING_ID = 0x4246  # "FB", the extra field in which torch.save puts its padding


# -- reading -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ZipEntry:
    """One member: where its bytes are and what they should be."""

    name: str  # path inside the archive
    method: int  # 0 stored, 8 deflated
    crc32: int  # of the uncompressed bytes
    packed: int  # bytes in the file
    size: int  # bytes when unpacked
    offset: int  # where the member's data starts in the file
    attributes: int = 0  # where Unix wrote them, its mode is in the upper 16 bits
    flags: int = 0
    header: int = 0  # where the member's own header starts in the file

    @property
    def end(self) -> int:
        """Where its data ends in the file."""
        return self.offset + self.packed

    @property
    def is_utf8(self) -> bool:
        """Whether the archive says so of its name, or it is ASCII; else programs guess."""
        return bool(self.flags & _UTF8) or self.name.isascii()


@dataclass(frozen=True)
class ZipDirectory:
    """All members of an archive by name, in directory order, and the archive's comment."""

    entries: dict[str, ZipEntry]
    comment: bytes


class CheckedMembers:
    """Compares members with their CRC-32, each once: nothing of a member is to be used before `require`."""

    def __init__(self, file: MappedFile, directory: ZipDirectory, *, may_lack: bool = False) -> None:
        self._file = file
        self._directory = directory
        self._checked: set[str] = set()
        self._lock = Lock()
        self._lacks = may_lack and not any(entry.crc32 for entry in directory.entries.values())

    def require(self, entry: ZipEntry, what: str = "") -> bool:
        """Whether a member has a checksum, which holds; ``what`` is in it, for errors."""
        if entry.name in self._checked:
            return True
        if self._lacks and entry.size:
            return False
        if entry.packed <= _KEPT_PAGES:  # so that threads need not wait for each other
            self._compare(entry, what)
        else:
            with self._lock:
                if entry.name not in self._checked:
                    self._compare(entry, what)
        self._checked.add(entry.name)
        return True

    def inflated(self, entry: ZipEntry) -> Iterator[bytes]:
        """Unpack a deflated member piece by piece; it is checked at its end, raising as `require`."""
        yield from contents(self._file, entry)
        self._checked.add(entry.name)

    def require_all(self) -> None:
        """Check every member that has not been checked; FormatError for the first that is damaged."""
        for entry in self._directory.entries.values():
            if entry.method in (STORED, DEFLATED):
                self.require(entry)
                self._file.release(entry.offset, entry.packed)

    def _compare(self, entry: ZipEntry, what: str) -> None:
        if entry.method == STORED:
            found = self._file.checksum(crc32, entry.offset, entry.packed, keep=entry.packed <= _KEPT_PAGES)
            _require_crc32(self._file, entry, found, what)
        else:
            deque(contents(self._file, entry), 0)


def check_members(path: Path) -> None:
    """Compare every member of a zip archive with its CRC-32, where checksums were kept."""
    with contextlib.closing(MappedFile(path)) as file:
        CheckedMembers(file, read_directory(file), may_lack=True).require_all()


def damaged(file: MappedFile, entry: ZipEntry, reason: str, what: str = "") -> FormatError:
    """The refusal of a member that is not as the archive says; ``what`` is in it."""
    what = what or f"damaged member {entry.name[:200]!r}"
    return file.fault(f"{what}: {reason}", offset=entry.offset, hint=_DAMAGED)


def contents(file: MappedFile, entry: ZipEntry) -> Iterator[bytes]:
    """Bytes of a member piece by piece, no more than its size; its CRC-32 is compared at its end."""
    left, found = entry.size, 0
    stored = entry.method == STORED
    try:
        for piece in _windows(file, entry) if stored else _inflated(file, entry):
            left -= len(piece)
            if left < 0:
                break
            found = crc32(piece, found)
            yield piece
    except ValueError as error:
        raise damaged(file, entry, str(error)) from error
    if left:
        raise damaged(file, entry, f"unpacks to {'more' if left < 0 else 'fewer'} than {entry.size} bytes")
    _require_crc32(file, entry, found)


def _inflated(file: MappedFile, entry: ZipEntry) -> Iterator[bytes]:
    return file.inflated(entry.offset, entry.packed, -zlib.MAX_WBITS)


def _windows(file: MappedFile, entry: ZipEntry) -> Iterator[bytes]:
    stop = entry.offset + entry.packed
    for start in range(entry.offset, stop, READ_BYTES):
        window = file.data[start : min(start + READ_BYTES, stop)]
        yield window
        file.release(start, len(window))


def _require_crc32(file: MappedFile, entry: ZipEntry, found: int, what: str = "") -> None:
    if found != entry.crc32:
        reason = f"CRC-32 is {found:08x}, the archive says {entry.crc32:08x}"
        raise damaged(file, entry, reason, what)


@dataclass(frozen=True)
class _End:
    """The numbers in the records at the end of an archive, and where they begin."""

    count: int
    size: int
    offset: int
    stop: int
    comment: bytes


def read_directory(file: MappedFile, later: Callable[[str], bool] = lambda _name: False) -> ZipDirectory:
    """Read and check the directory of an archive.

    ``later`` picks members that nobody looks at before tensors are read: a far file, of which none are, is
    not asked for the header of each.

    Every byte of the file must belong to a member, to the directory or to the comment: some programs look for
    members from the beginning, some from the end, and all of them shall find the same.
    """
    end = _find_end(file)
    if end.count > MAX_ENTRIES:
        raise file.fault(f"zip directory of {counted(end.count, 'entry')}, more than {MAX_ENTRIES}")
    excess = end.stop - end.offset - end.size
    if excess < 0 or end.count * CENTRAL.size > end.size:
        raise file.fault("zip directory does not fit into the file", offset=end.offset)
    if excess:
        raise file.fault(
            f"{excess} bytes that the end of the zip archive does not account for: "
            "something was put into the file",
            offset=end.offset,
        )
    budget = Budget(file.size, partial(FormatError, file.path))
    entries: dict[str, ZipEntry] = {}
    plain: set[str] = set()
    position = end.offset
    for _ in range(end.count):
        entry, position = _member(file, position, end, later)
        budget.spend(nodes=1, names=len(entry.name), steps=8)
        path = plain_name(entry.name)
        if path in plain:
            what = f"are called {path!r}" if entry.name in entries else f"have the path {path!r}"
            raise file.fault(f"two zip entries {what}")
        entries[entry.name] = entry
        plain.add(path)
    if position != end.stop:
        raise file.fault(
            f"{end.stop - position} bytes between the zip directory and its end", offset=position
        )
    _refuse_other_bytes(file, sorted(entries.values(), key=lambda entry: (entry.header, entry.end)), end)
    return ZipDirectory(entries, end.comment)


def ends_as_zip(tail: bytes, size: int) -> bool:
    """Whether a file of ``size`` bytes that ends with ``tail`` ends as a zip archive does."""
    position = len(tail)
    while (position := tail.rfind(END_MAGIC, 0, position)) >= 0:
        if _is_end(tail, position, size - len(tail)):
            return True
    return False


def _is_end(data: bytes, position: int, base: int) -> bool:
    """Whether an end record could be meant, rather than four bytes that look like its mark."""
    if position + END.size > len(data):
        return False
    _, disk, first_disk, here, count, size, offset, length = END.unpack_from(data, position)
    one_disk = disk in (0, 0xFFFF) and first_disk in (0, 0xFFFF) and here == count
    fits = position + END.size + length <= len(data)
    wide = _WIDE in (size, offset) or count == 0xFFFF
    return bool(one_disk and fits and (wide or offset + size <= base + position))


def _find_end(file: MappedFile) -> _End:
    data, lowest = file.data, max(0, file.size - END.size - _MAX_COMMENT)
    position = file.size
    while (position := data.rfind(END_MAGIC, lowest, position)) >= 0:
        if position + END.size <= file.size:
            *_, length = fields = END.unpack(data[position : position + END.size])
            if position + END.size + length == file.size:
                comment = data[position + END.size : file.size]
                if ends_as_zip(comment, file.size):
                    raise file.fault("a zip archive with a second end in its comment", offset=position)
                return _end_of(file, position, fields, comment)
    raise file.fault(
        "a zip archive without its end: the file is truncated, or something follows it",
        hint="fetch or copy it again",
    )


def _end_of(file: MappedFile, position: int, fields: tuple[Any, ...], comment: bytes) -> _End:
    _, disk, first_disk, here, count, size, offset, _ = fields
    if disk in (0, 0xFFFF) and first_disk in (0, 0xFFFF):
        locator = position - LOCATOR64.size
        if locator >= 0 and file.data[locator : locator + 4] == LOCATOR64_MAGIC:
            return _end64_of(file, locator, (here, count, size, offset), comment)
        if here == count:
            return _End(count, size, offset, position, comment)
    raise file.fault("a zip archive in several parts", offset=position)


def _end64_of(file: MappedFile, locator: int, narrow: tuple[int, int, int, int], comment: bytes) -> _End:
    _, disk, position, disks = LOCATOR64.unpack(file.data[locator : locator + LOCATOR64.size])
    # Some programs follow the locator, some look right before it.
    if position + END64.size != locator or file.data[position : position + 4] != END64_MAGIC:
        raise file.fault("zip64 end record not where it should be", offset=locator)
    _, length, _, _, disk_here, first_disk, *wide = END64.unpack(file.data[position:locator])
    here, count, size, offset = wide
    if disk or disks > 1 or disk_here or first_disk or here != count:
        raise file.fault("a zip archive in several parts", offset=position)
    limits = (0xFFFF, 0xFFFF, _WIDE, _WIDE)
    if length != END64.size - 12 or any(
        one not in (other, limit) for one, other, limit in zip(narrow, wide, limits, strict=True)
    ):
        raise file.fault("a zip archive with two ends that disagree", offset=position)
    return _End(count, size, offset, position, comment)


def _member(file: MappedFile, position: int, end: _End, later: Callable[[str], bool]) -> tuple[ZipEntry, int]:
    """The member of a record, compared with the header before its data; and where the next record is."""
    names = position + CENTRAL.size
    if names > end.stop:
        raise file.fault("zip directory is cut off", offset=position)
    magic, _, _, flags, method, _, _, crc, packed, size, *lengths, disk, _, attributes, header = (
        CENTRAL.unpack(file.data[position:names])
    )
    following = names + sum(lengths)
    if magic != CENTRAL_MAGIC or following > end.stop or disk not in (0, 0xFFFF):
        raise file.fault("damaged record in the zip directory", offset=position)
    raw = file.data[names : names + lengths[0]]
    name = _decoded(file, raw, position)
    if flags & _ENCRYPTED:
        raise file.fault(f"zip entry {name!r} is encrypted", offset=position)
    extra = file.data[names + lengths[0] : following - lengths[2]]
    size, packed, header = _wide_values(file, name, extra, (size, packed, header))
    start = header + LOCAL.size
    if start > file.size:
        raise file.fault(f"zip entry {name!r} is outside the file", offset=header)
    if file.is_far and later(name):  # where it begins at the earliest
        entry = ZipEntry(name, method, crc, packed, size, start + len(raw), attributes, flags, header)
        return _fitting(file, entry, end), following
    local = LOCAL.unpack(file.data[header:start])
    offset = start + local[9] + local[10]
    if local[0] != LOCAL_MAGIC or file.data[start : start + local[9]] != raw:
        raise file.fault(f"zip entry {name!r} is not where the directory says", offset=header)
    entry = ZipEntry(name, method, crc, packed, size, offset, attributes, flags, header)
    _compare_headers(file, _fitting(file, entry, end), local, file.data[start + local[9] : offset])
    return entry, following


def _fitting(file: MappedFile, entry: ZipEntry, end: _End) -> ZipEntry:
    if entry.end > end.offset or (entry.method == STORED and entry.packed != entry.size):
        raise file.fault(f"zip entry {entry.name!r} does not fit into the file", offset=entry.header)
    return entry


def _compare_headers(file: MappedFile, entry: ZipEntry, local: tuple[Any, ...], extra: bytes) -> None:
    """Refuse a member that its own header describes in another way than the directory."""
    _, _, flags, method, _, _, crc, packed, size, *_ = local
    size, packed, _ = _wide_values(file, entry.name, extra, (size, packed, 0), is_local=True)
    later = bool(flags & entry.flags & _STREAMED)  # what was not known yet follows the data, or is zero
    found = ((crc, entry.crc32), (packed, entry.packed), (size, entry.size))
    differs = any(one != other and not (later and one in (0, _WIDE)) for one, other in found)
    if differs or method != entry.method or (flags ^ entry.flags) & _SAME_FLAGS:
        raise file.fault(
            f"zip entry {entry.name!r}: its own header and the directory disagree", offset=entry.offset
        )


def _decoded(file: MappedFile, raw: bytes, position: int) -> str:
    try:
        name = raw.decode()
    except UnicodeDecodeError as error:
        raise file.fault("zip entry name is not UTF-8", offset=position) from error
    if "\0" in name:
        raise file.fault("zip entry name with a zero byte, where some end it", offset=position)
    return name


def plain_name(name: str) -> str:
    """A name as a file system would take it."""
    if "\\" not in name and "." not in name and "//" not in name:
        return name
    return posixpath.normpath("/" + name.replace("\\", "/")).lstrip("/") or name


def _extra_fields(extra: bytes) -> Iterator[tuple[int, bytes]]:
    position = 0
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, position)
        yield kind, extra[position + 4 : position + 4 + length]
        position += 4 + length


def _wide_values(
    file: MappedFile, name: str, extra: bytes, values: tuple[int, int, int], *, is_local: bool = False
) -> tuple[int, int, int]:
    """Replace each of (size, packed, header offset) that does not fit 32 bits by its zip64 value."""
    if not extra and _WIDE not in values:
        return values
    fields = list(_extra_fields(extra))
    if any(kind == _OTHER_NAME and field[5:] != name.encode() for kind, field in fields):
        raise file.fault(f"zip entry {name!r} has another name in an extra field")
    found = [field for kind, field in fields if kind == _ZIP64]
    if not found and (_WIDE not in values or is_local):
        return values
    if len(found) != 1:
        raise file.fault(f"zip entry {name!r} lacks its 64-bit sizes, or has them twice")
    numbers = [int.from_bytes(found[0][at : at + 8], "little") for at in range(0, len(found[0]) // 8 * 8, 8)]
    wide = [index for index, value in enumerate(values) if value == _WIDE]
    if not wide and numbers[:3] == list(values[: len(numbers[:3])]):  # the same values twice
        return values
    if len(numbers) < len(wide) or (not is_local and len(numbers) > len(wide)):
        raise file.fault(f"zip entry {name!r}: its sizes of 32 and of 64 bits disagree")
    result = list(values)
    for index, number in zip(wide, numbers, strict=False):
        result[index] = number
    return result[0], result[1], result[2]


def _refuse_other_bytes(file: MappedFile, entries: list[ZipEntry], end: _End) -> None:
    """Members must follow each other from the first byte of the file to the directory."""
    for entry, following in pairwise(entries):
        if following.header < entry.end:
            reason = f"zip entries {entry.name!r} and {following.name!r} overlap"
            raise file.fault(reason, offset=following.header)
    if file.is_far:
        return
    gaps = [(entry.header, f"zip entry {entry.name!r}") for entry in entries]
    reached, last = 0, None
    for (start, where), entry in zip_longest([*gaps, (end.offset, "zip directory")], entries):
        if start != reached and not (last and _is_descriptor(file, last, reached, start)):
            reason = f"{start - reached} bytes that belong to no zip entry before the {where}"
            raise file.fault(reason, offset=reached)
        if entry:
            reached, last = entry.end, entry


def _is_descriptor(file: MappedFile, entry: ZipEntry, start: int, stop: int) -> bool:
    """Whether the bytes after a member's data repeat its directory record."""
    form = _DESCRIPTORS.get(stop - start)
    if form is None or not entry.flags & _STREAMED:
        return False
    mark, *fields = struct.unpack(form, file.data[start:stop])
    return mark in (b"", DESCRIPTOR_MAGIC) and fields == [entry.crc32, entry.packed, entry.size]


# -- a safe walk -------------------------------------------------------------------------------------------


def is_zip(head: bytes) -> bool:
    """Whether a file that begins with these bytes is a zip archive (an empty one begins with its end)."""
    return head.startswith((LOCAL_MAGIC, END_MAGIC))


def iter_safe_members(
    path: Path, *, limits: Limits = DEFAULT_LIMITS
) -> Iterator[tuple[SafeMember, BinaryIO | None]]:
    """Walk over the files and folders of an archive in the order of its directory."""
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
            body = MemberStream(contents(file, entry))
            yield member, io.BufferedReader(body, READ_BYTES)
            body.expire()
            file.release(entry.offset, entry.packed)


def _refuse_excess(file: MappedFile, entries: list[ZipEntry], limits: Limits) -> None:
    if len(entries) > limits.members:
        raise file.fault(f"more than {limits.members} members")
    total = sum(entry.size for entry in entries)
    if total > limits.total_bytes:
        raise file.fault(f"unpacks to more than {limits.total_bytes} bytes")
    if total > max(limits.ratio_from_bytes, limits.ratio * file.size):
        raise file.fault(f"expands more than {limits.ratio} times: a decompression bomb")


def _checked(file: MappedFile, entry: ZipEntry, names: MemberNames) -> SafeMember | None:
    """The member if it is safe; None for the archive's own root folder."""
    shown = repr(entry.name[:200])
    path = entry.name.replace("\\", "/")  # as PowerShell and .NET before 4.6.1 write them
    kind = stat.S_IFMT(entry.attributes >> 16)  # zero where the archive was not made by Unix
    is_folder = path.endswith("/")
    if kind == stat.S_IFLNK:
        raise file.fault(f"member {shown} is a link, which is refused")
    if kind not in (0, stat.S_IFDIR if is_folder else stat.S_IFREG) or (is_folder and entry.size):
        raise file.fault(f"member {shown} is neither a file nor a folder, which is refused")
    if entry.method not in (STORED, DEFLATED):
        raise file.fault(
            f"member {shown} is packed by method {entry.method}, which is not supported: unpack it with "
            "another program, and give the checkpoint in it by its path"
        )
    name = names.claim(path, is_folder=is_folder)
    return SafeMember(name, entry.size, is_folder) if name else None


# -- writing -----------------------------------------------------------------------------------------------


@dataclass
class Member:
    """One entry of an archive being written."""

    name: bytes
    flags: int
    size: int  # bytes of data
    header: int  # where its local header begins in the archive
    crc32: int = 0  # of its data, once that is known
    base: int = 0  # where the archive begins in the file

    @property
    def extra(self) -> bytes:
        """Extra fields of the local header; the last of them moves the data to a multiple of `ALIGNMENT`."""
        wide = struct.pack("<HHQQ", _ZIP64, 16, self.size, self.size) if self.size >= _LARGE else b""
        return wide + _padding(self.base + self.header + LOCAL.size + len(self.name) + len(wide))

    @property
    def data(self) -> int:
        """Where its data begins in the archive."""
        return self.header + LOCAL.size + len(self.name) + len(self.extra)

    def local_header(self) -> bytes:
        """What comes before its data."""
        version, size = (_VERSION64, _WIDE) if self.size >= _LARGE else (_VERSION, self.size)
        extra = self.extra
        fields = (version, self.flags, STORED, 0, _DOS_DATE, self.crc32, size, size)
        return LOCAL.pack(LOCAL_MAGIC, *fields, len(self.name), len(extra)) + self.name + extra


class ZipWriter:
    """Entries one after the other in a staged file, whose sizes are known before their data.

    Entries that are reserved may be filled in any order and by several threads at once. ``base`` is where
    the archive begins, for a file of several. Without a file nothing is written, and the sizes are the same.
    """

    def __init__(self, file: StagedFile | None, base: int = 0) -> None:
        self._file = file
        self._base = base
        self._members: list[Member] = []
        self._position = 0

    def add(self, name: str, data: bytes) -> None:
        """Write a small entry at once."""
        self.fill(self.reserve(name, len(data)), [data])

    def reserve(self, name: str, size: int) -> Member:
        """Keep the next place for an entry of ``size`` bytes; its data is at a multiple of `ALIGNMENT`."""
        flags = 0 if name.isascii() else _UTF8
        member = Member(name.encode(), flags, size, self._position, base=self._base)
        self._position = member.data + size
        self._members.append(member)
        return member

    def fill(self, member: Member, pieces: Iterable[Any], *, head: bytes = b"") -> int:
        """Write the data of an entry and its header, which holds the CRC-32; returns crc32c of the pieces."""
        castagnoli = 0
        offset = self._base + member.data + len(head)
        member.crc32 = crc32(head)
        for piece in pieces:
            member.crc32 = crc32(piece, member.crc32)
            castagnoli = crc32c(piece, castagnoli)
            self._write(piece, offset)
            offset += memoryview(piece).nbytes
        self._write(member.local_header() + head, self._base + member.header)
        return castagnoli

    def _write(self, data: Any, offset: int) -> None:
        if self._file is not None:
            self._file.write_at(data, offset)

    @property
    def nbytes(self) -> int:
        """Bytes of the archive with its directory."""
        return self._position + len(self._directory(b""))

    def close(self, comment: bytes = b"") -> None:
        """Write the directory."""
        assert self._file is not None
        self._file.skip_to(self._base + self._position)
        self._file.append(self._directory(comment))

    def _directory(self, comment: bytes) -> bytes:
        start = self._position
        records = b"".join(map(_central_record, self._members))
        size, count = len(records), len(self._members)
        if start >= _LARGE or size >= _LARGE or count >= _MANY:
            records += END64.pack(
                END64_MAGIC, END64.size - 12, _VERSION64, _VERSION64, 0, 0, count, count, size, start
            )
            records += LOCATOR64.pack(LOCATOR64_MAGIC, 0, start + size, 1)
        few = 0xFFFF if count >= _MANY else count
        end = END.pack(END_MAGIC, 0, 0, few, few, _narrow(size), _narrow(start), len(comment))
        return records + end + comment


def _padding(position: int) -> bytes:
    """An extra field that moves what follows it to a multiple of `ALIGNMENT`."""
    length = -position % ALIGNMENT
    if length == 0:
        return b""
    if length < 4:  # the field itself takes four bytes
        length += ALIGNMENT
    return struct.pack("<HH", _PADDING_ID, length - 4) + bytes(length - 4)


def _narrow(value: int) -> int:
    return _WIDE if value >= _LARGE else value


def _central_record(member: Member) -> bytes:
    size, header = _narrow(member.size), _narrow(member.header)
    wide = [member.size, member.size] if member.size >= _LARGE else []
    wide += [member.header] if member.header >= _LARGE else []
    extra = struct.pack(f"<HH{len(wide)}Q", _ZIP64, 8 * len(wide), *wide) if wide else b""
    version = _VERSION64 if wide else _VERSION
    lengths = (len(member.name), len(extra), 0)
    fields = (version, version, member.flags, STORED, 0, _DOS_DATE, member.crc32, size, size, *lengths)
    return CENTRAL.pack(CENTRAL_MAGIC, *fields, 0, 0, 0, header) + member.name + extra
