"""The one way to write a file: it either stands whole under its final name or does not exist.

Bytes go to a temporary name beside the target, are synced, and renamed. The temporary file is held under
an advisory lock while its writer lives, so the next run can tell an orphan (its writer was killed) from a
file that somebody is writing right now, and sweeps the orphans away.

What the target is decides how it is written, whatever option named it:

* nothing yet, or a regular file (with ``force``): the rename puts the new file there; other hard links of
  the old one keep the old bytes, and its mode is not taken over;
* a link: followed, so that it stays a link and the file that it leads to is replaced; one that leads
  nowhere, and any for a checkpoint of several files, is refused;
* a character device, a named pipe, an open file of this process (``/dev/stdout``): the finished bytes are
  written into it, with no ``force``, for nothing is replaced;
* a folder, a block device, a socket: refused.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import select
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ckptkit.base.errors import StorageError, UsageError, storage_error
from ckptkit.base.files import kind_of, make_folders

if TYPE_CHECKING:
    import tempfile

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
_TOKEN = "[0-9a-f]" * 12
_ASIDE = ".old"
_TEMPORARY_NAME = re.compile(rf"{re.escape(TEMPORARY)}{_TOKEN}-.*(?:\.part.*|\.old)", re.DOTALL)
_LONG_NAME = 140
"""Bytes of a name, beyond which a digest stands for the final one in it: eCryptfs takes 143, others 255."""
_CREATING = 5
"""How often a temporary file is made anew when others sweep it before its lock is held."""
_SWEEPING = (0.002, 0.01, 0.02)


class StagedFile:
    """One output file, invisible under its final name until `commit`.

    Parameters
    ----------
    final : Path
        Where the file will stand, or what it is written into. Its folder is created.
    force : bool
        Whether an existing file may be replaced.
    ending : str
        End of the final name that shall be the end of the temporary one too.
    token : str
        From `new_token`; files with the same one, and final names that differ in ``ending`` only, make one
        checkpoint that can be opened by its prefix before it is renamed.
    plain : bool
        Take nothing but a regular file or nothing at all: for one of several files, or what is read back.
    own : bool
        The name is ckptkit's own, in a folder of its own: plain, but a link there is replaced.

    Attributes
    ----------
    temporary : Path
        Where it can be read until `rename`.

    Raises
    ------
    UsageError
        When ``final`` exists and ``force`` is false, or is of a kind that is not written to.
    StorageError
        When the disk refuses: full, read-only, not permitted. When nobody reads a named pipe.
    """

    def __init__(
        self,
        final: Path,
        *,
        force: bool = False,
        ending: str = "",
        token: str = "",
        plain: bool = False,
        own: bool = False,
    ) -> None:
        self.final = final
        self._plain, self._own = plain or own, own
        self._place = _allowed(final, force=force, plain=self._plain, own=own)
        self._into: int | None = None
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        with translated(final):
            place = self._place.path
            if self._place.stream:
                self._into = _open_stream(self._place)
                import tempfile

                self._scratch = tempfile.TemporaryDirectory(prefix="ckptkit-through-")
                place = Path(self._scratch.name, "whole" + ending)
            try:
                make_folders(place.parent)
                _sweep_orphans(place, ending)
                self.temporary, self._fd = _create(place, ending, token)
            except BaseException:
                self._leave_stream()
                raise
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
        if self._into is None:
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
        """Give the file its final name (call `sync` first), or write it into the device or pipe there."""
        with translated(self.final):
            if self._into is not None:
                _pour(self._fd, self._into)
                self.discard()
                return self.final
            if not self._own:  # long work may lie between: it must be a regular file still
                _allowed(self._place.path, force=True, plain=True)
            if os.name == "nt":  # an open file cannot be renamed there
                self._close()
            move(self.temporary, self._place.path)
            self._close()
            sync_folder(self._place.path.parent)
        return self.final

    @property
    def is_stream(self) -> bool:
        """Whether the file is written into a device or a pipe, and replaces nothing."""
        return self._into is not None

    def commit(self) -> Path:
        """Sync and rename."""
        self.sync()
        return self.rename()

    def discard(self) -> None:
        """Remove the temporary file; harmless after `commit`."""
        if self._open:
            self._close()
            self.temporary.unlink(missing_ok=True)
            self._leave_stream()

    def _await_sync(self) -> None:
        """Wait for the sync under way, and raise its error: the system tells of it only once."""
        if self._syncing is not None:
            syncing, self._syncing = self._syncing, None
            with translated(self.final):
                syncing.result()

    def _leave_stream(self) -> None:
        if self._into is not None:
            into, self._into = self._into, None
            os.close(into)
        if self._scratch is not None:
            self._scratch.cleanup()

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
    return final.parent / f"{TEMPORARY}{token}-{_in_temporary(final, _SUFFIX + ending, ending)}"


def aside_path(final: Path, token: str) -> Path:
    """Where an earlier file lies from its removal's beginning to its end."""
    return final.parent / f"{TEMPORARY}{token}-{_in_temporary(final, _ASIDE)}"


def aside_paths(final: Path) -> list[Path]:
    """The files of that name whose removal was begun."""
    import glob

    return sorted(final.parent.glob(f"{TEMPORARY}{_TOKEN}-{glob.escape(_in_temporary(final, _ASIDE))}"))


def _in_temporary(final: Path, last: str, ending: str = "") -> str:
    """What a temporary name says of the final one, and how it ends."""
    stem = final.name.removesuffix(ending)
    if len(os.fsencode(f"{TEMPORARY}{'0' * 12}-{stem}{last}")) > _LONG_NAME:
        import hashlib

        stem = hashlib.sha256(os.fsencode(stem)).hexdigest()[:32]
    return stem + last


def is_temporary(path: Path) -> bool:
    """Whether a file has a name of `temporary_path`."""
    return _TEMPORARY_NAME.fullmatch(path.name) is not None


def refuse_existing(path: Path, *, force: bool) -> None:
    """Refuse, before any work, what `StagedFile` would.

    Raises
    ------
    UsageError
        When ``path`` exists and ``force`` is false, or is of a kind that is not written to.
    StorageError
        When it cannot be looked at.
    """
    _allowed(path, force=force)


def refuse_streams(path: Path) -> None:
    """Refuse a device, a pipe or a link for a checkpoint of several files.

    Raises
    ------
    UsageError
        ``path`` is one.
    """
    _allowed(path, force=True, plain=True)


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


# -- what a target is ----------------------------------------------------------------------------------------

_READER_SECONDS = 2.0
"""How long a named pipe may be without its reader, which a shell may start at the same time."""


@dataclass(frozen=True)
class _Place:
    """Where the bytes go: the path that a rename replaces, or the stream that they are written into.

    Attributes
    ----------
    path : Path
    stream : bool
        Whether it is written into.
    descriptor : int or None
        Of the open file of this process that it is.
    """

    path: Path
    stream: bool = False
    descriptor: int | None = None


def _allowed(path: Path, *, force: bool, plain: bool = False, own: bool = False) -> _Place:
    """What a target is, see the top of this file; raises UsageError where it may not be written."""
    with translated(path):
        try:
            itself = path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return _Place(path)
        is_link = stat.S_ISLNK(itself.st_mode)
        if is_link and own:
            return _Place(path)
        if is_link and plain:
            raise UsageError(f"{path} is a link", hint="name another file")
        try:
            mode = path.stat().st_mode if is_link else itself.st_mode
        except (FileNotFoundError, NotADirectoryError):
            raise UsageError(f"{path} is a link that leads nowhere", hint="name another file") from None
        place = _Place(path)
        if is_link:
            place = _Place(Path(os.path.realpath(path)), descriptor=open_file_of(path))
        if not plain and (stat.S_ISCHR(mode) or stat.S_ISFIFO(mode) or place.descriptor is not None):
            return _Place(path, True, place.descriptor)
        if not stat.S_ISREG(mode) or (is_link and not path.samefile(place.path)):
            what = "a block device" if stat.S_ISBLK(mode) else kind_of(mode)
            what = "a link to a file without a name" if stat.S_ISREG(mode) else what
            raise UsageError(f"{path} is {what}", hint="name another file")
    if not force:
        raise UsageError(f"{path} exists already", hint="give --force to replace it, or another --output")
    return place


def open_file_of(path: Path) -> int | None:
    """The number of the open file of this process that a path names, as ``/dev/stdout`` does."""
    own = re.compile(rf"(?:/proc/{os.getpid()}(?:/task/\d+)?|/dev)/fd")
    for _ in range(40):
        folder = os.path.realpath(path.parent)
        if own.fullmatch(folder) and path.name.isdecimal():
            return int(path.name)
        try:
            path = Path(folder, os.readlink(Path(folder, path.name)))  # noqa: PTH115
        except OSError:
            return None
    return None


def _open_stream(place: _Place) -> int:
    """Open a device or a pipe to write, and never wait for more than some seconds."""
    if place.descriptor is not None:
        return os.dup(place.descriptor)
    flags = os.O_WRONLY | _O_BINARY
    for name in ("O_NONBLOCK", "O_NOCTTY", "O_CLOEXEC"):
        flags |= getattr(os, name, 0)
    end = time.monotonic() + _READER_SECONDS
    while True:
        try:
            fd = os.open(place.path, flags)
            break
        except OSError as error:
            if error.errno != errno.ENXIO or not stat.S_ISFIFO(place.path.stat().st_mode):
                raise
            if time.monotonic() > end:
                raise StorageError(
                    f"{place.path} is a named pipe that nobody reads", hint="start its reader first"
                ) from error
            time.sleep(0.02)
    mode = os.fstat(fd).st_mode
    if not (stat.S_ISCHR(mode) or stat.S_ISFIFO(mode)):
        os.close(fd)
        raise OSError(errno.EBUSY, "was replaced meanwhile", str(place.path))
    if os.name != "nt":
        os.set_blocking(fd, True)
    return fd


def _pour(source: int, into: int) -> None:
    """Write all of a file into a stream."""
    offset = 0
    while True:
        os.lseek(source, offset, os.SEEK_SET)
        piece = os.read(source, _WRITE_BYTES)
        if not piece:
            return
        offset += len(piece)
        view = memoryview(piece)
        while view:
            try:
                view = view[os.write(into, view) :]
            except BlockingIOError:  # somebody who shares it made it so
                select.select([], [into], [])


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
    file by file: then a process that is killed may leave a part of it. No device, pipe or socket is replaced.
    """
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        mode = target.lstat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode) or stat.S_ISDIR(mode)):
            raise FileExistsError(errno.EEXIST, f"{kind_of(mode)} is there", str(target))
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


_CONTENDED = frozenset({errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK})


def _try_lock(fd: int) -> bool | None:
    """Take a lock; whether we hold it now, None where there are no locks."""
    if fcntl is None:
        return None
    try:
        flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in _CONTENDED else None
    return True


def _create(final: Path, ending: str, token: str) -> tuple[Path, int]:
    """Make a temporary file that no sweep takes: it is locked, and then seen to be there still."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | _O_BINARY | getattr(os, "O_CLOEXEC", 0)
    for left in reversed(range(_CREATING)):
        path = temporary_path(final, ending, token or new_token())
        fd = os.open(path, flags, 0o666)
        try:
            held = _try_lock(fd)
            for seconds in _SWEEPING:
                if held is False:  # by a sweep, which ends at once, or where every lock is said to be held
                    time.sleep(seconds)
                    held = _try_lock(fd)
            if (held is not False or token or not left) and os.path.lexists(path):
                return path, fd
            path.unlink(missing_ok=True)
        except BaseException:
            path.unlink(missing_ok=True)
            os.close(fd)
            raise
        os.close(fd)
    raise FileNotFoundError(errno.ENOENT, "its temporary file is taken away again and again", str(final))


def _is_at(fd: int, path: Path) -> bool:
    """Whether an open file still has that name."""
    try:
        return os.path.samestat(os.fstat(fd), path.lstat())
    except OSError:
        return False


def _unlink_if(fd: int, path: Path) -> None:
    if _is_at(fd, path):
        with contextlib.suppress(OSError):
            path.unlink()


def _open_temporary(path: Path, flags: int) -> int:
    """Open what has the name of a temporary file, which others may have put there."""
    fd = os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "no regular file", str(path))
    return fd


def is_held(path: Path) -> bool | None:
    """Whether the writer of a temporary file lives; None where there are no locks to tell by."""
    if fcntl is None:
        return None
    with contextlib.suppress(OSError):
        fd = _open_temporary(path, os.O_RDONLY)
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
    import glob

    said = glob.escape(_in_temporary(final, _SUFFIX + ending, ending))
    for path in final.parent.glob(f"{TEMPORARY}{_TOKEN}-{said}"):
        with contextlib.suppress(OSError):
            fd = _open_temporary(path, os.O_RDWR)
            try:
                if _try_lock(fd):
                    _unlink_if(fd, path)
            finally:
                os.close(fd)


_ALONE_SECONDS = 10.0
"""How long to wait for another commit in the folder: it takes milliseconds, or its process was stopped."""


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[bool]:
    """Keep other commits of several files out of a folder; yields whether that is sure."""
    if fcntl is None:
        yield False
        return
    held: bool | None = None
    try:
        fd = os.open(folder, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    except OSError:  # may be written to, but not read
        yield False
        return
    try:
        end = time.monotonic() + _ALONE_SECONDS
        while (held := _try_lock(fd)) is False and time.monotonic() < end:
            time.sleep(0.005)
        yield bool(held)
    finally:
        os.close(fd)


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
