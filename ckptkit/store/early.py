"""Unpacking an archive while it still arrives, so that the two take little longer than the slower of them.

What is unpacked early keeps its temporary name until the whole archive has arrived and every checksum holds.
Whatever goes wrong here is no matter: the archive is then unpacked after the download, and what is wrong with
it is found, and said, there.
"""

from __future__ import annotations

import contextlib
import io
import os
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any, BinaryIO

from ckptkit.base.files import open_regular
from ckptkit.store.archive import StagedFolder, is_archive_name
from ckptkit.store.download import Advance, Progress
from ckptkit.store.partial import Partial

FROM_BYTES = 16 << 20
"""Smaller archives are unpacked before a thread would have started."""

_LOOK_EVERY = 0.01


class EarlyUnpack:
    """One archive on its way; `drop` it in the end, whatever happened.

    Parameters
    ----------
    partial : Partial
        Where it arrives.
    folder : Path
        Where the unpacked folder will stand.
    enabled : bool
        False where the part is not written from its beginning to its end.
    """

    def __init__(self, partial: Partial, folder: Path, *, enabled: bool = True) -> None:
        self._partial = partial
        self._folder = folder
        # Windows lets nobody rename or remove a file that somebody reads.
        self._enabled = enabled and is_archive_name(partial.name) and os.name != "nt"
        self._growing: _Growing | None = None
        self._thread: threading.Thread | None = None
        self._staged: StagedFolder | None = None

    def watching(self, progress: Progress | None) -> Progress | None:
        """Return a progress display that also starts the unpacking, when the first bytes are to come."""
        if not self._enabled:
            return progress

        @contextlib.contextmanager
        def started(name: str, total: int | None) -> Generator[Advance]:
            if total is not None and total >= FROM_BYTES:
                self._start()
            with progress(name, total) if progress else contextlib.nullcontext(lambda _step: None) as advance:
                yield advance

        return started

    def _start(self) -> None:
        self.drop()
        with contextlib.suppress(OSError, ValueError):
            self._growing = _Growing(self._partial.path)
            self._thread = threading.Thread(target=self._unpack, args=(self._growing,), daemon=True)
            self._thread.start()

    def _unpack(self, growing: _Growing) -> None:
        source: Any = io.BufferedReader(growing, 1 << 20)
        # Anything at all: it is found again, and said, when the archive is unpacked after the download.
        with contextlib.suppress(Exception):
            shown = self._partial.folder / self._partial.name
            self._staged = StagedFolder(growing.path, self._folder, shown=shown, source=source)

    def take(self, sha256: str) -> StagedFolder | None:
        """Return what is unpacked, for the caller to commit or discard; None where it has to be done anew.

        Parameters
        ----------
        sha256 : str
            Of the archive, which must have arrived whole.
        """
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
        """Say that nobody wants the rest."""
        self._dropped = True
        self._wake.set()

    def close(self) -> None:
        self._stream.close()
        super().close()
