"""Unpacking an archive so that its folder is there whole or not at all.

What may be in an archive is decided by its walker (`ckptkit.formats.tar` for tar, whatever compresses
it, `ckptkit.formats.zip` for zip): no member leaves the folder, is a link or a device, has the name of
another, or is larger than bounded. Files and folders get the modes that the umask gives, never the archive's.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ckptkit.base.errors import FormatError
from ckptkit.base.files import (
    files_below,
    open_regular,
    read_regular,
    regular_status,
    remove_tree,
    sync_file,
    translated,
)
from ckptkit.base.folders import StagedFolder
from ckptkit.base.writers import has_token, is_gone
from ckptkit.formats.members import SafeMember
from ckptkit.formats.tar import iter_safe_members as tar_members
from ckptkit.formats.zip import is_zip
from ckptkit.formats.zip import iter_safe_members as zip_members
from ckptkit.store.cache import Home, Record
from ckptkit.store.partial import Partial

MARKER = ".ckptkit-unpacked.json"
"""Hidden file in an unpacked folder: which archive it came from and what was in it."""

_MARKER_BYTES = 64 << 20
UNPACKING = ".ckptkit-unpacking-"
"""What the names of folders that are being unpacked began with before `ckptkit.base.folders` named them."""
_OLD_ORPHAN = re.compile(rf"{re.escape(UNPACKING)}.*-[0-9a-f]{{12}}")
"""As ckptkit 0.1.0 called them."""
_COPY = 1 << 20
_SYNCERS = 16
"""Threads that bring files to the disk: together they took a twentieth of the time that one takes."""
_ARCHIVES = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst", ".tar", ".zip")
_TORCH_NAMES = (".pth.tar", ".pt.tar", ".ckpt.tar")


def is_archive_name(name: str) -> bool:
    """Whether a published file of this name is an archive to unpack.

    >>> is_archive_name("moat0.tar.gz"), is_archive_name("moat0.zip"), is_archive_name("moganet.pth.tar")
    (True, True, False)
    """
    lower = name.lower()
    return lower.endswith(_ARCHIVES) and not lower.endswith(_TORCH_NAMES)


class UnpackedFolder(StagedFolder):
    """An archive unpacked under a temporary name, until `commit`."""

    def __init__(
        self,
        archive: Path,
        folder: Path,
        *,
        shown: Path | None = None,  # what messages call an archive that has a temporary name itself
        sha256: str = "",  # of the archive, for the marker; may be set later
        source: BinaryIO | None = None,  # where a tar archive's bytes are read from instead
    ) -> None:
        for orphan in folder.parent.glob(f"{UNPACKING}{folder.name}-*"):
            if (has_token(orphan) or _OLD_ORPHAN.fullmatch(orphan.name)) and is_gone(orphan):
                remove_tree(orphan)
        super().__init__(folder)
        self.sha256 = sha256
        self._archive = (shown or archive).name
        self._sizes: dict[str, int] = {}
        try:
            self._fill(archive, source)
        except FormatError as error:
            self.discard()
            raise FormatError(shown or archive, error.reason, offset=error.offset, hint=error.hint) from error
        except BaseException:
            self.discard()
            raise

    def _fill(self, archive: Path, source: BinaryIO | None) -> None:
        for member, content in archive_members(archive, source):
            if member.name.casefold() == MARKER:
                raise FormatError(archive, f"member {MARKER!r} has a name that ckptkit uses itself")
            target = self.path.joinpath(*member.name.split("/"))
            if member.is_folder:
                with translated(self.final / member.name):
                    target.mkdir(parents=True, exist_ok=True)
            elif content is not None:
                self._sizes[member.name] = self._write(target, content, self.final / member.name)
        if not self._sizes:
            raise FormatError(archive, "the archive holds no file")

    @staticmethod
    def _write(target: Path, content: BinaryIO, shown: Path) -> int:
        size = 0
        with translated(shown):
            target.parent.mkdir(parents=True, exist_ok=True)
            stream = target.open("xb")
        with stream:
            while piece := content.read(_COPY):
                with translated(shown):
                    stream.write(piece)
                size += len(piece)
            with translated(shown):
                stream.flush()
        return size

    def _sync(self) -> None:
        """Bring all files to the disk: the folder must not have its name before."""
        with ThreadPoolExecutor(_SYNCERS) as pool:
            for syncing in [pool.submit(self._sync_member, name) for name in self._sizes]:
                syncing.result()

    def _sync_member(self, name: str) -> None:
        with translated(self.final / name):
            fd = os.open(self.path / name, os.O_RDWR)
            try:
                sync_file(fd)
            finally:
                os.close(fd)

    def commit(self) -> Path:
        """Put the folder in place of an earlier one."""
        self._sync()
        marker = {"archive": self._archive, "sha256": self.sha256, "files": self._sizes}
        self.write_text(MARKER, json.dumps(marker, indent=2))
        return super().commit()


def archive_members(
    archive: Path, source: BinaryIO | None = None
) -> Iterator[tuple[SafeMember, BinaryIO | None]]:
    """Walk over an archive by its content, whatever its name says; only tar may come from a ``source``."""
    if source is not None:
        return tar_members(archive, source=source)
    head = b""
    with contextlib.suppress(OSError), open_regular(archive) as stream:  # the walker says what is wrong
        head = stream.read(4)
    return zip_members(archive) if is_zip(head) else tar_members(archive)


def unpack(archive: Path, folder: Path, *, sha256: str = "") -> Path:
    """Unpack ``archive`` as ``folder``, replacing an earlier one."""
    with UnpackedFolder(archive, folder, sha256=sha256) as staged:
        return staged.commit()


@dataclass(frozen=True)
class Marker:
    """What an unpacked folder says of itself: the archive's checksum, and the size of each file."""

    sha256: str
    files: Mapping[str, int]

    def is_whole(self, folder: Path) -> bool:
        """Whether all the files are there."""
        for name, size in self.files.items():
            status = regular_status(folder / name)
            if status is None or status.st_size != size:
                return False
        return True


def read_marker(folder: Path) -> Marker | None:
    """What an unpacked folder says of itself; None if it says nothing valid."""
    try:
        value: Any = json.loads(read_regular(folder / MARKER, _MARKER_BYTES))
        marker = Marker(value["sha256"], dict(value["files"]))
        sound = isinstance(marker.sha256, str) and all(
            type(size) is int and size >= 0 and _stays_inside(name) for name, size in marker.files.items()
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return marker if sound else None


def _stays_inside(name: str) -> bool:
    return not ({"", ".", ".."} & set(name.split("/"))) and "\\" not in name and "\0" not in name


def is_unpacked(folder: Path, sha256: str) -> bool:
    """Whether ``folder`` was unpacked from the archive with this checksum and has all its files still."""
    marker = read_marker(folder)
    return marker is not None and marker.sha256 == sha256 and marker.is_whole(folder)


def checkpoint_in(folder: Path) -> Path:
    """What to convert in an unpacked folder."""
    files = [Path(entry.path) for entry in files_below(folder) if entry.is_file() and entry.name != MARKER]
    indexes = [path for path in files if path.suffix == ".index" and not path.name.startswith(".")]
    if len(indexes) == 1:
        return indexes[0].parent
    visible = [path for path in files if not path.name.startswith(".")]
    return visible[0] if len(visible) == 1 and not indexes else folder


def checkpoint_of(home: Home, record: Record) -> Path | None:
    """What to convert of a cached file: itself, or what it was unpacked to; None where that is not there."""
    if not is_archive_name(record.file):
        return home.artefact(record)
    folders = home.candidate_paths(home.unpacked_folder(record.id))
    folder = next((folder for folder in folders if is_unpacked(folder, record.sha256)), None)
    return folder and checkpoint_in(folder)


def remove_folder(folder: Path) -> None:
    """Remove a folder that belongs to an artefact no longer here, if it was unpacked here."""
    if os.path.lexists(folder / MARKER):
        with translated(folder), contextlib.suppress(FileNotFoundError):
            remove_tree(folder)


# -- while the archive still arrives -------------------------------------------------------------------------
#
# So that the two take little longer than the slower of them. What is unpacked early keeps its temporary name
# until the whole archive has arrived and every checksum holds. Whatever goes wrong here does not matter: the
# archive is then unpacked after the download, and what is wrong with it is found, and reported, there.

FROM_BYTES = 16 << 20
"""Smaller archives are unpacked before a thread would have started."""

_LOOK_EVERY = 0.01


class EarlyUnpack:
    """One archive on its way; `drop` it in the end, whatever happened."""

    def __init__(self, partial: Partial, folder: Path, *, enabled: bool = True) -> None:
        self._partial = partial
        self._folder = folder
        # Windows does not let a file be renamed or removed while it is read.
        self._enabled = enabled and is_archive_name(partial.name) and os.name != "nt"
        self._growing: _Growing | None = None
        self._thread: threading.Thread | None = None
        self._staged: UnpackedFolder | None = None

    def begin(self, size: int | None) -> None:
        """Unpack what arrives from now on, where the file is an archive that is worth it."""
        if not self._enabled or size is None or size < FROM_BYTES:
            return
        self.drop()
        with contextlib.suppress(OSError, ValueError):
            self._growing = _Growing(self._partial.path)
            self._thread = threading.Thread(target=self._unpack, args=(self._growing,), daemon=True)
            self._thread.start()

    def _unpack(self, growing: _Growing) -> None:
        source: Any = io.BufferedReader(growing, 1 << 20)
        # Anything at all: it is found again, and reported, when the archive is unpacked after the download.
        with contextlib.suppress(Exception):
            shown = self._partial.folder / self._partial.name
            self._staged = UnpackedFolder(growing.path, self._folder, shown=shown, source=source)

    def take(self, sha256: str) -> UnpackedFolder | None:
        """Return what is unpacked, for the caller to commit or discard; None if it must be done again."""
        if self._growing is None or not self._growing.is_still(self._partial.path):
            self.drop()
            return None
        self._growing.complete()
        self._join()
        staged, self._staged = self._staged, None
        if staged is not None:
            staged.sha256 = sha256
        return staged

    def drop(self) -> None:
        """Stop, and remove what was unpacked."""
        if self._growing is not None:
            self._growing.drop()
        self._join()
        if self._staged is not None:
            self._staged.discard()
            self._staged = None

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
        if self._growing is not None:
            self._growing.close()
        self._thread, self._growing = None, None


class _DroppedError(Exception):
    """Nobody wants the rest."""


class _Growing(io.RawIOBase):
    """A file that is still being written at its end, read as if it were whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stream: BinaryIO | io.FileIO = open_regular(path, links=False, buffering=0)
        self._wake = threading.Event()
        self._complete = False
        self._dropped = False

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, position: int, whence: int = os.SEEK_SET, /) -> int:
        return self._stream.seek(position, whence)

    def readinto(self, buffer: Any, /) -> int:
        position = self._stream.tell()
        while True:
            complete = self._complete  # asked before the size: what is complete grows no more
            there = os.fstat(self._stream.fileno()).st_size - position
            if self._dropped:
                raise _DroppedError
            if there > 0 or complete:
                break
            self._wake.wait(_LOOK_EVERY)
        with memoryview(buffer) as view:
            return self._stream.readinto(view[: max(there, 0)]) or 0  # type: ignore[union-attr]

    def is_still(self, path: Path) -> bool:
        """Whether this is the file of that name, not one that another has taken the place of."""
        try:
            return os.path.samestat(os.fstat(self._stream.fileno()), path.stat())
        except (OSError, ValueError):
            return False

    def complete(self) -> None:
        """Say that nothing more will be written."""
        self._complete = True
        self._wake.set()

    def drop(self) -> None:
        """Signal that the rest is no longer wanted."""
        self._dropped = True
        self._wake.set()

    def close(self) -> None:
        self._stream.close()
        super().close()
