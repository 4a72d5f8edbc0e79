"""Files that either stand whole under their final name or do not exist.

Bytes go to a temporary name beside the target, are synced, and renamed. The temporary file is held under
an advisory lock while its writer lives, so the next run can tell an orphan (its writer was killed) from a
file that somebody is writing right now, and sweeps the orphans away.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ckptkit.errors import UsageError, storage_error

if TYPE_CHECKING:
    from typing_extensions import Self

try:
    import fcntl
except ImportError:  # Windows: no advisory locks, so orphans are left for the user to remove
    fcntl = None  # type: ignore[assignment]

_SYNC_EVERY = 64 << 20
"""Bytes after which the disk is set to work: waiting for all of a file at its end took a third longer."""
_WRITE_BYTES = 1 << 20
"""Bytes per system call: with 2 MB, Linux 6.18 looks for huge pages and took 2.5 times as long."""
TEMPORARY = ".ckptkit-"
"""Names of temporary files begin so: they are nobody's checkpoints."""
_SUFFIX = ".part"
_TEMPORARY_NAME = re.compile(rf"{re.escape(TEMPORARY)}[0-9a-f]{{12}}-.*{re.escape(_SUFFIX)}.*", re.DOTALL)


class StagedFile:
    """One output file, invisible under its final name until `commit`.

    Parameters
    ----------
    final : Path
        Where the file will stand. Its folder is created.
    force : bool
        Whether an existing file may be replaced.
    ending : str
        End of the final name that shall be the end of the temporary one too.
    token : str
        From `new_token`; files with the same one, and final names that differ in ``ending`` only, make one
        checkpoint that can be opened by its prefix before it is renamed.

    Attributes
    ----------
    temporary : Path
        Where it can be read until `rename`.

    Raises
    ------
    UsageError
        When ``final`` exists and ``force`` is false.
    StorageError
        When the disk refuses: full, read-only, not permitted.
    """

    def __init__(self, final: Path, *, force: bool = False, ending: str = "", token: str = "") -> None:
        self.final = final
        refuse_existing(final, force=force)
        with translated(final):
            final.parent.mkdir(parents=True, exist_ok=True)
            _sweep_orphans(final, ending)
            self.temporary = temporary_path(final, ending, token or new_token())
            self._fd = os.open(self.temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | _O_BINARY, 0o666)
            _lock(self._fd)
        self._position = 0
        self._syncer = ThreadPoolExecutor(1)
        self._syncing: Future[None] | None = None
        self._starting_sync = threading.Lock()
        self._unsynced = 0
        self._open = True

    @property
    def position(self) -> int:
        """Where the next `append` goes: bytes from the start."""
        return self._position

    def append(self, data: Any) -> None:
        """Write at the current end: ``bytes``, or anything with a contiguous buffer."""
        self.write_at(data, self._position)
        self._position += memoryview(data).nbytes

    def _sync_behind(self) -> None:
        """Have the disk begin while the rest is being made."""
        if self._syncing is None or self._syncing.done():
            self._await_sync()
            self._unsynced = 0
            self._syncing = self._syncer.submit(sync_file, self._fd)

    def write_at(self, data: Any, offset: int) -> None:
        """Write all of ``data`` at ``offset``, whatever the current position."""
        view = memoryview(data).cast("B") if memoryview(data).nbytes else memoryview(b"")
        self._unsynced += len(view)  # two threads may lose a count here: it only decides when to begin
        with translated(self.final):
            while view:
                written = _pwrite(self._fd, view[:_WRITE_BYTES], offset)
                view, offset = view[written:], offset + written
        if self._unsynced >= _SYNC_EVERY and self._starting_sync.acquire(blocking=False):
            try:
                self._sync_behind()
            finally:
                self._starting_sync.release()

    def skip_to(self, position: int) -> None:
        """Leave a hole of zeros up to ``position``, and go on from there."""
        self._position = position

    def sync(self) -> None:
        """Bring the bytes to the disk."""
        self._await_sync()
        self.trim()
        with translated(self.final):
            sync_file(self._fd)

    def trim(self) -> None:
        """Give a file that ends in a hole its whole length."""
        with translated(self.final):
            if os.fstat(self._fd).st_size < self._position:
                try:
                    os.ftruncate(self._fd, self._position)
                except OSError as error:
                    if error.errno not in UNSUPPORTED:
                        raise
                    _pwrite(self._fd, memoryview(b"\0"), self._position - 1)

    def rename(self) -> Path:
        """Give the file its final name (call `sync` first)."""
        with translated(self.final):
            if os.name == "nt":  # an open file cannot be renamed there
                self._close()
            move(self.temporary, self.final)
            self._close()
            sync_folder(self.final.parent)
        return self.final

    def commit(self) -> Path:
        """Sync and rename."""
        self.sync()
        return self.rename()

    def commit_checked(self, check: Callable[[Path], None] | None) -> Path:
        """Sync, have the result checked under its temporary name meanwhile, and rename.

        Parameters
        ----------
        check : callable, optional
            Given the temporary path; what it raises keeps the file from its final name.
        """
        sync_checked([self], check, self.temporary)
        return self.rename()

    def discard(self) -> None:
        """Remove the temporary file; harmless after `commit`."""
        if self._open:
            self._close()
            self.temporary.unlink(missing_ok=True)

    def _await_sync(self) -> None:
        """Wait for the sync under way, and raise its error: the system tells of it only once."""
        if self._syncing is not None:
            syncing, self._syncing = self._syncing, None
            with translated(self.final):
                syncing.result()

    def _close(self) -> None:
        if self._open:
            self._open = False
            self._syncer.shutdown()  # it uses the descriptor
            os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()


def sync_checked(files: Sequence[StagedFile], check: Callable[[Path], None] | None, path: Path) -> None:
    """Sync files, and have the result, which can be opened at ``path``, checked meanwhile."""
    if check is None:
        for file in files:
            file.sync()
        return
    for file in files:
        file.trim()
    with ThreadPoolExecutor(1) as syncer:
        syncing = [syncer.submit(file.sync) for file in files]
        check(path)
        for sync in syncing:
            sync.result()


def new_token() -> str:
    """Return what tells the temporary files of one writer from those of another."""
    return os.urandom(6).hex()


def temporary_path(final: Path, ending: str, token: str) -> Path:
    """Where a file lies until it is renamed.

    Parameters
    ----------
    final : Path
    ending : str
        End of its name that stays the end.
    token : str
        From `new_token`.

    Examples
    --------
    >>> temporary_path(Path("m.index"), ".index", "0a1b2c3d4e5f").name
    '.ckptkit-0a1b2c3d4e5f-m.part.index'
    """
    return final.parent / f"{TEMPORARY}{token}-{final.name.removesuffix(ending)}{_SUFFIX}{ending}"


def is_temporary(path: Path) -> bool:
    """Whether a file has a name of `temporary_path`."""
    return _TEMPORARY_NAME.fullmatch(path.name) is not None


def refuse_existing(path: Path, *, force: bool) -> None:
    """Raise UsageError when ``path`` exists and ``force`` is false."""
    if path.exists() and not force:
        raise UsageError(f"{path} exists already", hint="give --force to replace it, or another --output")


def refuse_not_utf8(path: Path, by: str) -> None:
    """Raise UsageError when ``path`` is not UTF-8, for a library that takes no other path."""
    try:
        os.path.abspath(path).encode()  # noqa: PTH100 (resolve() would follow a link)
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{path}: this path is not UTF-8, and {by} takes only paths that are",
            hint="rename the folder or the file, or use another one",
        ) from error


@contextlib.contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn OSError into a StorageError that names ``path``."""
    try:
        yield
    except OSError as error:
        raise storage_error(error, path) from error


_O_BINARY = getattr(os, "O_BINARY", 0)


_positioning = threading.Lock()


def _pwrite(fd: int, view: memoryview, offset: int) -> int:
    if hasattr(os, "pwrite"):
        try:
            return os.pwrite(fd, view, offset)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
    with _positioning:  # Windows, and some FUSE file systems
        os.lseek(fd, offset, os.SEEK_SET)
        return os.write(fd, view)


# -- what some mounts cannot do ------------------------------------------------------------------------------

UNSUPPORTED = frozenset(
    {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ESPIPE, errno.EPERM, errno.EXDEV}
)
"""What network, FUSE and overlay file systems answer to calls that they do not have."""
_BUSY = frozenset({errno.EBUSY, errno.ETXTBSY})
_BUSY_SECONDS = (0.05, 0.1, 0.2, 0.4, 0.8)
_LOCK_SECONDS = 5.0
"""How long a lock may take to say whether it is free: NFS without its lock service never says."""


def sync_file(fd: int, *, only_data: bool = False) -> None:
    """Bring a file's bytes to the disk, where the file system knows how."""
    try:
        (os.fdatasync if only_data and hasattr(os, "fdatasync") else os.fsync)(fd)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise


def copy_mode(source: Path, target: Path) -> None:
    """Give a file the permissions of another, where the file system has any."""
    with contextlib.suppress(OSError):
        target.chmod(source.stat().st_mode & 0o7777)


def move(source: Path, target: Path) -> None:
    """Give a file or a folder another name; a file in the target's place is replaced.

    One rename wherever that works. Where it does not, a file is linked or, at worst, copied, and a folder
    file by file: then a process that is killed may leave a part of it.
    """
    for seconds in (*_BUSY_SECONDS, 0.0):
        try:
            (source.rename if source.is_dir() else source.replace)(target)
        except OSError as error:
            if error.errno in _BUSY and seconds:
                time.sleep(seconds)
                continue
            if error.errno not in UNSUPPORTED:
                raise
            _move_by_hand(source, target)
        return


def _move_by_hand(source: Path, target: Path) -> None:
    if source.is_dir():
        target.mkdir()
        for child in sorted(source.iterdir()):
            _move_by_hand(child, target / child.name)
        source.rmdir()
        return
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        status = source.stat()
        try:
            with source.open("rb") as old, target.open("xb") as new:
                shutil.copyfileobj(old, new, _WRITE_BYTES)
                new.flush()
                sync_file(new.fileno())
        except BaseException:
            target.unlink(missing_ok=True)
            raise
        copy_mode(source, target)
        with contextlib.suppress(OSError):
            os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
    source.unlink()


_without_answer: set[int] = set()
"""Devices whose locks gave no answer."""


def flock(fd: int, operation: int) -> None:
    """Lock as `fcntl.flock` does; no answer in time is the answer of a file system without locks."""
    device = os.fstat(fd).st_dev
    answer: list[OSError | None] = []

    def ask() -> None:
        try:
            fcntl.flock(fd, operation)
        except OSError as error:
            answer.append(error)
        else:
            answer.append(None)

    if device not in _without_answer:
        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        for _ in range(2):  # a process that was stopped meanwhile hears the answer in the second half
            thread.join(_LOCK_SECONDS / 2)
    if not answer:
        _without_answer.add(device)
        raise OSError(errno.ENOLCK, "locks give no answer")
    if answer[0] is not None:
        raise answer[0]


def _lock(fd: int) -> None:
    if fcntl is not None:
        with contextlib.suppress(OSError):  # a file system without locks
            flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_held(path: Path) -> bool | None:
    """Whether the writer of a temporary file lives; None where there are no locks to tell by."""
    if fcntl is None:
        return None
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_RDONLY)
        try:
            flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
    return None


def _sweep_orphans(final: Path, ending: str) -> None:
    """Remove temporary files of ``final`` whose writer is gone."""
    if fcntl is None:
        return
    stem = _escape_glob(final.name.removesuffix(ending))
    for path in final.parent.glob(f"{TEMPORARY}*-{stem}{_SUFFIX}{_escape_glob(ending)}"):
        with contextlib.suppress(OSError):
            fd = os.open(path, os.O_RDWR)
            try:
                flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
            finally:
                os.close(fd)


def _escape_glob(name: str) -> str:
    import glob

    return glob.escape(name)


def sync_folder(folder: Path) -> None:
    """Make the rename itself durable, where the platform can."""
    if os.name == "nt":
        return
    with contextlib.suppress(OSError):
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
