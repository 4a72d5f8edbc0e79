"""Members of archives: names that may become files here, bounds of a walk, and the bytes of one member."""

from __future__ import annotations

import io
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckptkit.base.budget import MAX_RATIO
from ckptkit.base.errors import FormatError

_MAX_NAME = 1024
_MAX_MEMBER = 60_000  # bytes; the length is a number below 65,536
_MAX_COMPONENT = 255  # bytes; what common file systems hold
_DRIVE = re.compile(r"[A-Za-z]:")
# Windows drops dots and blanks at the end, keeps streams behind a colon, and has devices in every folder.
_WINDOWS = re.compile(
    r'.*[. ]|.*[<>:"|?*].*|(?:con|prn|aux|nul|com\d|lpt\d|conin\$|conout\$)(?:\..*)?', re.I | re.S
)


def unsafe_name(name: str) -> str | None:
    """Why a name that only leads to a member would be unsafe as a path; None where it is not.

    Examples
    --------
    >>> unsafe_name("block/0/../kernel"), unsafe_name("block.0/kernel:0")
    ("leaves its folder ('..')", None)
    """
    if ".." in name.replace("\\", "/").split("/"):
        return "leaves its folder ('..')"
    if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:[\\/]", name):
        return "has an absolute name"
    if "\0" in name:
        return "has a zero byte in its name"
    return "has too long a name" if len(name.encode()) > _MAX_MEMBER else None


class MemberNames:
    """Names seen so far, compared as a file system that ignores letter case and accents' coding would."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._files: set[str] = set()
        self._folders: set[str] = set()

    def claim(self, name: str, *, is_folder: bool) -> str:
        """Check a member's name against what is safe and against the names before it.

        Examples
        --------
        >>> names = MemberNames(Path("a.tar"))
        >>> names.claim("./a//b", is_folder=False)
        'a/b'
        >>> names.claim("A/B", is_folder=False)
        Traceback (most recent call last):
            ...
        ckptkit.base.errors.FormatError: a.tar: two members want the name 'A/B' (letter case aside)
        """
        parts = self._parts(name)
        if parts:
            self._take(parts, is_folder=is_folder)
        elif not is_folder:
            raise FormatError(self._path, "a member has no name")
        return "/".join(parts)

    def _parts(self, name: str) -> list[str]:
        shown = repr(name[:200])
        if len(name) > _MAX_NAME:
            raise FormatError(self._path, f"member {shown}: the name is too long")
        if not name.isprintable() or "\\" in name:
            raise FormatError(self._path, f"member {shown}: unsafe characters in the name")
        if name.startswith("/") or _DRIVE.match(name):
            raise FormatError(self._path, f"member {shown} has an absolute name, which is refused")
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if ".." in parts:
            raise FormatError(self._path, f"member {shown} leaves its folder ('..'), which is refused")
        if any(len(part.encode(errors="surrogatepass")) > _MAX_COMPONENT for part in parts):
            raise FormatError(self._path, f"member {shown}: the name is too long")
        if any(_WINDOWS.fullmatch(part) for part in parts):
            raise FormatError(self._path, f"member {shown}: a name that Windows takes for another")
        return parts

    def _take(self, parts: list[str], *, is_folder: bool) -> None:
        folded = [_folded(part) for part in parts]
        above = {"/".join(folded[:depth]) for depth in range(1, len(folded))}
        name = "/".join(folded)
        taken = name in self._files or (name in self._folders and not is_folder)
        if taken or not above.isdisjoint(self._files):
            raise FormatError(
                self._path, f"two members want the name {'/'.join(parts)!r} (letter case aside)"
            )
        self._folders |= above
        (self._folders if is_folder else self._files).add(name)


def _folded(part: str) -> str:
    """Without letter case or ways to code an accent; folding can undo the normal form: it is made twice."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", part).casefold())


@dataclass(frozen=True)
class SafeMember:
    """A file or folder of an archive, its name checked."""

    name: str  # relative, with ``/`` between parts, no ``.`` or ``..`` among them
    size: int  # bytes; 0 for a folder
    is_folder: bool


@dataclass(frozen=True)
class Limits:
    """Bounds of a walk; generous for checkpoints of many gigabytes, far from what a bomb needs."""

    members: int = 20_000  # files and folders in the archive
    total_bytes: int = 256 << 30  # size of the archive when decompressed
    # decompressed size over compressed size may not exceed ``ratio`` once ``ratio_from_bytes`` have been
    # produced (weights hardly compress at all; a small file of zeros is harmless)
    ratio: int = MAX_RATIO
    ratio_from_bytes: int = 256 << 20
    header_bytes: int = 1 << 20  # what one member of a tar may spend on its headers (long names, pax records)
    padding_bytes: int = 64 << 20  # zeros after the end mark of a tar, which pads to records of 10 kB


DEFAULT_LIMITS = Limits()


class MemberStream(io.RawIOBase):
    """The bytes of one member, which come in pieces, as a stream."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer as far as the piece at hand goes; 0 at the end."""
        if not self._rest:
            self._rest = memoryview(next(self._pieces, b""))
        taken = self._rest[: len(buffer)]
        buffer[: len(taken)] = taken
        self._rest = self._rest[len(taken) :]
        return len(taken)

    def expire(self) -> None:
        """The walk goes on: nothing more may be read here."""
        self._pieces, self._rest = iter(()), memoryview(b"")
