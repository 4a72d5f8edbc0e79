"""The part of a file that has arrived: a temporary file bound to the server's identity of the whole.

Beside the final name stand ``.<file>.<tag>.part`` and ``.<file>.<tag>.part.json``. The tag is drawn from the
source and its identity, and the JSON says what that identity is, so that bytes of two different files can
never be joined. Only the holder of the entry's lock touches them.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ckptkit.errors import StorageError, storage_error
from ckptkit.formats.staging import sync_folder, translated
from ckptkit.store.cache import write_json
from ckptkit.store.integrity import Digests, Promise, StreamHasher
from ckptkit.store.transport import Identity

_PIECE = 1 << 20
_HEAD = 512
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_O_BINARY = getattr(os, "O_BINARY", 0)


class Partial:
    """What has arrived of one file from one source.

    Parameters
    ----------
    folder : Path
        Where the file will stand; created when the first byte comes.
    name : str
        Its final name there.
    source : str
        The URL it comes from.

    Attributes
    ----------
    identity : Identity or None
        What the server said of the whole file; None before the first answer.
    promises : tuple of Promise
        Checksums the server promised with that identity.
    joined : bool
        Whether the bytes come from more than one response.
    head : bytes
        The first bytes, up to 512, to see by what kind of file it is.
    """

    def __init__(self, folder: Path, name: str, source: str) -> None:
        self.folder = folder
        self.name = name
        self.identity: Identity | None = None
        self.promises: tuple[Promise, ...] = ()
        self.joined = False
        self.head = b""
        self._source = hashlib.sha256(source.encode()).hexdigest()
        self._path: Path | None = None
        self._fd: int | None = None
        self._hasher = StreamHasher()

    @property
    def size(self) -> int:
        """Bytes present, all of them hashed."""
        return self._hasher.size

    @property
    def path(self) -> Path:
        """The temporary file."""
        if self._path is None:
            raise ValueError("nothing has arrived yet")
        return self._path

    def digests(self) -> Digests:
        """Checksums of the bytes present."""
        return self._hasher.digests()

    def pick_up(self, advance: Callable[[int], None] | None = None) -> None:
        """Continue what an earlier run left of this source, if it left anything sound; hashes those bytes."""
        for sidecar in self.folder.glob(f".{glob.escape(self.name)}.*.part.json"):
            identity, promises, source = _read_sidecar(sidecar)
            path = sidecar.with_suffix("")
            if source != self._source or identity is None or path.name != self._file_name(identity):
                continue
            size = _size(path)
            if size == 0 or identity.size is None or size > identity.size:
                continue
            # Of a whole file the last byte is asked for again: the answer tells whether it is still this one.
            keep = min(size, identity.size - 1)
            with translated(path):
                self._fd = os.open(path, os.O_RDWR | _O_BINARY)
                self._path, self.identity, self.promises = path, identity, promises
                os.ftruncate(self._fd, keep)
                while piece := os.read(self._fd, _PIECE):
                    self._count(piece)
                    if advance:
                        advance(len(piece))
            self.joined = True
            return

    def begin(self, identity: Identity, promises: tuple[Promise, ...]) -> None:
        """Start from the first byte, of the file with this identity."""
        self.discard()
        self.identity, self.promises, self.joined = identity, promises, False
        path = self.folder / self._file_name(identity)
        with translated(self.folder / self.name):
            self.folder.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
        if identity.can_resume:
            write_json(
                path.with_name(f"{path.name}.json"),
                {
                    "source": self._source,
                    "identity": asdict(identity),
                    "promises": [asdict(promise) for promise in promises],
                },
            )
        with translated(self.folder / self.name):
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _O_BINARY, 0o666)
        self._path = path

    def append(self, data: bytes) -> None:
        """Write bytes at the end and hash them.

        Raises
        ------
        StorageError
            When the disk refuses; where it is full the part is removed, so as not to leave the disk full.
        """
        assert self._fd is not None
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError as error:
            if error.errno in _FULL:
                self.discard()
            raise storage_error(error, self.folder / self.name) from error
        self._count(data)

    def _count(self, data: bytes) -> None:
        self._hasher.update(data)
        if len(self.head) < _HEAD:
            self.head += data[: _HEAD - len(self.head)]

    def close(self) -> None:
        """Close the file and leave it for a later run, if that could continue it."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
            if not (self.identity and self.identity.can_resume):
                self.discard()

    def discard(self) -> None:
        """Forget everything that has arrived."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)
                self._path.with_name(f"{self._path.name}.json").unlink(missing_ok=True)
        self._path, self.identity, self.promises, self.joined = None, None, (), False
        self._hasher, self.head = StreamHasher(), b""

    def sync(self) -> int:
        """Bring the bytes to the disk; returns the file's modification time in nanoseconds."""
        assert self._fd is not None
        with translated(self.folder / self.name):
            os.fsync(self._fd)
            return os.fstat(self._fd).st_mtime_ns

    def rename(self) -> Path:
        """Give the file its final name, and remove what is left of this and other tries."""
        final = self.folder / self.name
        path = self.path
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
        with translated(final):
            path.replace(final)
            sync_folder(self.folder)
        self._path = None
        for pattern in (".*.part", ".*.part.json"):
            for left in self.folder.glob(pattern):
                with contextlib.suppress(OSError):
                    left.unlink()
        return final

    def _file_name(self, identity: Identity) -> str:
        text = json.dumps([self._source, asdict(identity)], sort_keys=True)
        return f".{self.name}.{hashlib.sha256(text.encode()).hexdigest()[:16]}.part"


def require_space(folder: Path, needed: int, name: str) -> None:
    """Refuse before the first byte what cannot fit.

    Raises
    ------
    StorageError
        Naming how much is needed and how much is free.
    """
    import shutil

    existing = folder
    while not existing.exists():
        existing = existing.parent
    with contextlib.suppress(OSError):
        free = shutil.disk_usage(existing).free
        if needed > free:
            raise StorageError(
                f"{folder / name}: needs {needed:,} more bytes, but {free:,} are free",
                hint="free some space or set CKPTKIT_HOME to another place",
            )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() and not path.is_symlink() else 0
    except OSError:
        return 0


def _read_sidecar(path: Path) -> tuple[Identity | None, tuple[Promise, ...], str]:
    """Identity, promises and source digest; no identity where the file is damaged."""
    try:
        value: Any = json.loads(path.read_bytes())
        identity = Identity(**value["identity"])
        promises = tuple(Promise(**promise) for promise in value["promises"])
        source = value["source"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None, (), ""
    texts = (identity.etag, identity.generation, identity.last_modified)
    sound = (
        all(text is None or isinstance(text, str) for text in texts)
        and isinstance(identity.size, int)
        and all(isinstance(part, str) for promise in promises for part in asdict(promise).values())
        and all(promise.algorithm in ("sha256", "md5", "crc32c") for promise in promises)
    )
    return (identity if sound else None), promises, str(source)
