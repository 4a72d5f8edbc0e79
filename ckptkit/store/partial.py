"""The part of a file that has arrived: a temporary file bound to the server's identity of the whole.

Beside the final name are ``.<file>.<tag>.<writer>.part`` and ``….part.json``. The tag is drawn from the
source and its identity, and the JSON says what that identity is, so that bytes of two different files can
never be joined. Only the holder of the entry's lock touches them; where locks do not exclude, the writer's
token (`ckptkit.base.writers`) keeps two of them from ever writing to one file.

Below its first line the JSON file has a mark for each write, made before it: the part's length after that
write, and its crc32c up to there. After a power cut a part may have its length, and zeros where bytes were
lost: a later run goes on behind the last mark that holds, and keeps no byte that no mark vouches for.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import mmap
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import takewhile
from pathlib import Path
from typing import Any

from ckptkit.base.checksums import (
    BackgroundHasher,
    Digests,
    ExpectedChecksum,
    crc32c,
    hash_file,
)
from ckptkit.base.errors import StorageError
from ckptkit.base.files import (
    TEMPORARY,
    BackgroundThread,
    is_own_file,
    make_folders,
    move,
    open_fd,
    read_regular,
    regular_status,
    storage_error,
    sync_file,
    sync_folder,
    translated,
)
from ckptkit.base.urls import public_url
from ckptkit.base.writers import has_token, is_gone, new_writer, release
from ckptkit.store.cache import refuse_planted, write_json
from ckptkit.store.openers import Identity

_MARK = re.compile(rb"(\d{1,18}) ([0-9a-f]{8})")
_KEPT_FREE = 1 << 30
"""Bytes that a file of unknown size leaves free on the disk, or a twentieth of it where that is less."""
_MOST_MARKS = 256 << 20
_HEADER = re.compile(r"[\x20-\x7e\x80-\xff]{0,8192}")
"""What a header may hold."""
_HEAD = 512
_LONG_NAME = 140
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_O_BINARY = getattr(os, "O_BINARY", 0)
_HAS_WRITEV = hasattr(os, "writev")
_SYNC_EVERY = 64 << 20
"""Bytes after which the disk is set to work behind the receiving, so that little is left to wait for."""
_PAGE = mmap.PAGESIZE
_AT_ONCE = 1 << 18
"""Most bytes of a system call: with 1 MiB, Linux 6.18's ext4 took two to three times the processor time."""


class Partial:
    """What has arrived of one file from one source."""

    def __init__(self, folder: Path, name: str, source: str, kinds: Iterable[str] = ()) -> None:
        self.folder = folder  # where the file will be; made when the first byte comes
        self.name = name  # its final name there
        self.identity: Identity | None = None  # what the server stated of the whole file
        self.expected: tuple[ExpectedChecksum, ...] = ()  # checksums the server stated with that identity
        self.joined = False  # whether the bytes come from more than one response
        self.head = b""  # the first bytes, to see by what kind of file it is
        self._kinds = frozenset(kinds)  # checksums to take besides those that the server states
        self._source = hashlib.sha256(os.fsencode(public_url(source))).hexdigest()
        self._path: Path | None = None
        self._fd: int | None = None
        self._marks_fd: int | None = None
        self._crc = 0
        self._writer = ""
        self._hasher = BackgroundHasher(self._kinds)
        self._syncer = BackgroundThread("sync", 1)
        self._written = self._unsynced = 0
        self._rest = b""

    @property
    def size(self) -> int:
        """Bytes present; between `append` and `flush` less than a page of them is still in memory."""
        return self._hasher.size

    @property
    def path(self) -> Path:
        """The temporary file."""
        if self._path is None:
            raise ValueError("nothing has arrived yet")
        return self._path

    def digests(self) -> Digests:
        """Checksums of the bytes present: sha256, and the kinds wanted or stated; empty text for others."""
        stated = {*self._kinds, *(checksum.algorithm for checksum in self.expected)}
        if stated <= self._hasher.algorithms:
            return self._hasher.digests()
        self.flush()  # stated by a later answer only: these kinds were not taken while the bytes came
        return hash_file(self.path)

    def resume(self) -> None:
        """Continue what an earlier run left of this source, if it left anything sound; hashes those bytes."""
        for final in (self.folder / self.name, self.folder / f"{self.name}.json"):
            refuse_planted(final)
        for sidecar in self.folder.glob(f".{glob.escape(_stem(self.name))}.*.part.json"):
            identity, expected, source, marks = _read_sidecar(sidecar)
            path = sidecar.with_suffix("")
            if source != self._source or identity is None or not self._is_of(path, identity):
                continue
            size = _size(path)
            if size == 0 or identity.size is None or size > identity.size:
                continue
            claimed = self._claim(path, identity)
            if claimed is None:
                continue
            self._path, self.identity, self.expected = claimed, identity, expected
            self._hasher = BackgroundHasher([*self._kinds, *(checksum.algorithm for checksum in expected)])
            with translated(claimed):
                self._fd = _open_own(claimed, os.O_RDWR)
                # Of a whole file the last byte is asked for again: the answer tells whether it is still this.
                kept = self._read_marked(marks, identity.size - 1)
                with contextlib.suppress(OSError):  # what comes behind is written over
                    os.ftruncate(self._fd, self._written)
            if not self._written:
                self.discard()
                continue
            self._write_sidecar(kept)
            self.joined = True
            return

    def _read_marked(self, marks: list[tuple[int, int]], most: int) -> list[tuple[int, int]]:
        """Take the bytes that marks vouch for, up to ``most``; returns the marks of what is taken."""
        assert self._fd is not None
        kept: list[tuple[int, int]] = []
        for end, wanted in marks:
            if not 0 < end - self._written <= _AT_ONCE:
                break
            piece = _read_exactly(self._fd, end - self._written)
            if len(piece) < end - self._written or crc32c(piece, self._crc) != wanted:
                break
            piece = piece[: most - self._written]
            self._crc = crc32c(piece, self._crc)
            self._written += len(piece)
            self._count(piece)
            kept.append((self._written, self._crc))
            if self._written == most:
                break
        os.lseek(self._fd, self._written, os.SEEK_SET)
        return kept

    def begin(self, identity: Identity, expected: tuple[ExpectedChecksum, ...]) -> None:
        """Start from the first byte, of the file with this identity."""
        self.discard()
        self.identity, self.expected, self.joined = identity, expected, False
        self._hasher = BackgroundHasher([*self._kinds, *(checksum.algorithm for checksum in expected)])
        path = self._own_path(identity)
        with translated(self.folder / self.name):
            make_folders(self.folder)
        self._path = path
        try:
            if identity.can_resume:
                self._write_sidecar([])
            with translated(self.folder / self.name):
                self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _O_BINARY, 0o666)
        except BaseException:
            self.discard()
            raise

    def _write_sidecar(self, marks: list[tuple[int, int]]) -> None:
        """Write the file beside the part, and open it for further marks."""
        assert self._path is not None and self.identity is not None
        path = self._path.with_name(f"{self._path.name}.json")
        header = {
            "source": self._source,
            "identity": asdict(self.identity),
            "promises": [asdict(checksum) for checksum in self.expected],
        }
        write_json(path, "".join([json.dumps(header), "\n", *(f"{end} {crc:08x}\n" for end, crc in marks)]))
        with translated(self.folder / self.name):
            self._marks_fd = _open_own(path, os.O_WRONLY | os.O_APPEND)

    def append(self, data: bytes | memoryview) -> None:
        """Put bytes at the end and hash them.

        They are hashed by a thread of its own, so they must not change any more.
        Only whole pages are written: Linux 6.18's ext4 took three times as long to append what ended in the
        middle of one. The rest waits for the next bytes or for `flush`.
        """
        view = memoryview(data)
        over = (self._written + len(self._rest) + len(view)) % _PAGE
        if over < len(self._rest) + len(view):
            whole = len(view) - over
            self._write(self._rest, view[:whole])
            self._rest = bytes(view[whole:])
        else:
            self._rest += view
        self._count(data)

    def flush(self) -> None:
        """Write what `append` has kept back: after a response, so that a kill loses nothing of it."""
        rest, self._rest = self._rest, b""
        if rest:
            self._write(rest)

    def _write(self, *parts: bytes | memoryview) -> None:
        assert self._fd is not None
        try:
            for pieces in _at_once(*parts):
                self._mark(pieces)
                while pieces:
                    written = os.writev(self._fd, pieces) if _HAS_WRITEV else os.write(self._fd, pieces[0])
                    self._written += written
                    self._unsynced += written
                    while pieces and written >= len(pieces[0]):
                        written -= len(pieces.pop(0))
                    if pieces:
                        pieces[0] = pieces[0][written:]
        except OSError as error:
            self._rest = b""
            if error.errno in _FULL:
                self.discard()
            raise storage_error(error, self.folder / self.name) from error
        if self._unsynced >= _SYNC_EVERY and self._syncer.submit_if_idle(_sync_data, self._fd):
            self._unsynced = 0

    def _mark(self, pieces: list[memoryview]) -> None:
        """Say what the next write will make of the file."""
        if self._marks_fd is not None:
            for piece in pieces:
                self._crc = crc32c(piece, self._crc)
            end = self._written + sum(map(len, pieces))
            os.write(self._marks_fd, b"%d %08x\n" % (end, self._crc))

    def _count(self, data: bytes | memoryview) -> None:
        self._hasher.update(data)
        if len(self.head) < _HEAD:
            self.head += data[: _HEAD - len(self.head)]

    def _close_file(self) -> None:
        """End the threads, then close the file that one of them syncs, and the one with its marks."""
        self._hasher.close()
        self._syncer.close()
        for fd in (self._fd, self._marks_fd):
            if fd is not None:
                os.close(fd)
        self._fd = self._marks_fd = None

    def close(self) -> None:
        """Close the file and leave it for a later run, if that could continue it."""
        if self._fd is not None:
            with contextlib.suppress(StorageError):
                self.flush()
        if self._fd is not None:
            self._close_file()
            if not (self._written and self.identity and self.identity.can_resume):
                self.discard()
        release(self._writer)

    def discard(self) -> None:
        """Forget everything that has arrived."""
        self._close_file()
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)
                self._path.with_name(f"{self._path.name}.json").unlink(missing_ok=True)
        release(self._writer)
        self._path, self.identity, self.expected, self.joined = None, None, (), False
        self._hasher, self._syncer, self.head = BackgroundHasher(), BackgroundThread("sync", 1), b""
        self._written, self._unsynced, self._rest, self._crc = 0, 0, b"", 0

    def sync(self) -> int:
        """Bring the bytes to the disk; returns the file's modification time in nanoseconds."""
        self.flush()
        assert self._fd is not None
        with translated(self.folder / self.name):
            self._syncer.wait()  # the system tells of an error only once, to whoever synced
            sync_file(self._fd)
            return os.fstat(self._fd).st_mtime_ns

    def rename(self) -> Path:
        """Give the file its final name, and remove what is left of this and other tries that are over."""
        final = self.folder / self.name
        path = self.path
        self._close_file()
        with translated(final):
            move(path, final)
            sync_folder(self.folder)
        self._path = None
        release(self._writer)
        for pattern in (".*.part", ".*.part.json"):
            for left in self.folder.glob(pattern):
                # A record that another writer is about to rename has no token; `StagedFile` sweeps those.
                ours = has_token(left) or not left.name.startswith(TEMPORARY)
                if ours and is_own_file(left) and is_gone(left):
                    with contextlib.suppress(OSError):
                        left.unlink()
        return final

    def _own_path(self, identity: Identity) -> Path:
        """Return a name that no other writer uses."""
        self._writer = new_writer()
        return self.folder / f"{self._beginning(identity)}{self._writer}.part"

    def _claim(self, path: Path, identity: Identity) -> Path | None:
        """Take over a part whose writer is gone: of several that try, the rename lets one win."""
        if not is_gone(path):
            return None
        own = self._own_path(identity)
        try:
            path.rename(own)
            path.with_name(f"{path.name}.json").rename(own.with_name(f"{own.name}.json"))
        except OSError:
            release(self._writer)
            return None
        return own

    def _is_of(self, path: Path, identity: Identity) -> bool:
        return path.name.startswith(self._beginning(identity)) and path.name.endswith(".part")

    def _beginning(self, identity: Identity) -> str:
        """What the names of the parts of this file from this source begin with."""
        text = json.dumps([self._source, asdict(identity)], sort_keys=True)
        return f".{_stem(self.name)}.{hashlib.sha256(text.encode()).hexdigest()[:16]}."


def require_space(folder: Path, needed: int, name: str, *, keep: bool = False) -> None:
    """Refuse before the first byte what cannot fit; ``keep`` leaves others some space as well."""
    import shutil

    existing = folder
    while not existing.exists():
        existing = existing.parent
    with contextlib.suppress(OSError):
        total, _, free = shutil.disk_usage(existing)
        needed += min(_KEPT_FREE, total // 20) if keep else 0
        if total and needed > free:  # some mounts do not say how large they are
            raise StorageError(
                f"{folder / name}: needs {needed:,} more bytes, but {free:,} are free",
                hint="free some space or set CKPTKIT_HOME to another place",
            )


def _stem(name: str) -> str:
    """Begin a part's name: the file's own, unless the rest would make it longer than file systems allow."""
    return (
        name if len(os.fsencode(name)) <= _LONG_NAME else hashlib.sha256(os.fsencode(name)).hexdigest()[:32]
    )


def _at_once(*parts: bytes | memoryview) -> Iterator[list[memoryview]]:
    """Divide bytes into what is good to write at once."""
    pieces: list[memoryview] = []
    room = _AT_ONCE
    for part in parts:
        left = memoryview(part)
        while left:
            pieces.append(left[:room])
            room -= len(pieces[-1])
            left = left[len(pieces[-1]) :]
            if not room:
                yield pieces
                pieces, room = [], _AT_ONCE
    if pieces:
        yield pieces


def _read_exactly(fd: int, size: int) -> bytes:
    """Read ``size`` bytes, fewer only at the end."""
    pieces = []
    while size and (piece := os.read(fd, size)):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def _sync_data(fd: int) -> None:
    """Bring a file's bytes to the disk."""
    sync_file(fd, only_data=True)


def _open_own(path: Path, flags: int) -> int:
    """Open a regular file that has no other name and is not a link, to write to it."""
    fd = open_fd(path, flags, links=False)
    if os.fstat(fd).st_nlink > 1:
        os.close(fd)
        raise OSError(errno.EINVAL, "not a file of its own", str(path))
    return fd


def _size(path: Path) -> int:
    status = None if path.is_symlink() else regular_status(path)
    return status.st_size if status and status.st_nlink == 1 else 0


def _read_sidecar(
    path: Path,
) -> tuple[Identity | None, tuple[ExpectedChecksum, ...], str, list[tuple[int, int]]]:
    """Identity, checksums, source digest and marks; no identity where the file is damaged."""
    try:
        first, *lines = read_regular(path, _MOST_MARKS, links=False).split(b"\n")
        value: Any = json.loads(first)
        identity = Identity(**value["identity"])
        expected = tuple(ExpectedChecksum(**checksum) for checksum in value["promises"])
        source = value["source"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None, (), "", []
    texts = (identity.etag, identity.generation, identity.last_modified)
    sound = (
        all(text is None or (isinstance(text, str) and _HEADER.fullmatch(text)) for text in texts)
        and type(identity.size) is int
        and 0 < identity.size < 1 << 63
        and all(isinstance(part, str) for checksum in expected for part in asdict(checksum).values())
        and all(checksum.algorithm in ("sha256", "md5", "crc32c") for checksum in expected)
        and all(re.fullmatch("[0-9a-f]{8,64}", checksum.value) for checksum in expected)
    )
    marks = [(int(m[1]), int(m[2], 16)) for m in takewhile(bool, map(_MARK.fullmatch, lines)) if m]
    return (identity if sound else None), expected, str(source), marks
