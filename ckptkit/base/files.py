"""Files and folders: read what others may have put there, and write a file whole or not at all.

Reading: what is not a regular file is never waited for; nothing that a link leads to is removed or renamed.

Writing (`StagedFile`): bytes go to a temporary name beside the target, are synced, and renamed. The temporary
file is held under an advisory lock while its writer lives, so the next run can tell an orphan (its writer
was killed) from a file that somebody is writing right now, and sweeps the orphans away. What the target is
decides how it is written, whatever option named it:

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
import itertools
import os
import queue
import re
import select
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

from ckptkit.base.errors import StorageError, UsageError
from ckptkit.base.home import ENVIRONMENT as HOME_VARIABLE
from ckptkit.base.home import home_folders
from ckptkit.base.writers import has_token, is_gone, new_writer, release

if TYPE_CHECKING:
    import tempfile

    from typing_extensions import Self

try:
    import fcntl
except ImportError:  # Windows: no advisory locks, so orphans are left for the user to remove
    fcntl = None  # type: ignore[assignment]


_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFLNK: "a link",
}
_MOST_FOLDERS = 250
_OF_THIS_PROCESS = ("/dev/stdin", "/dev/fd/", "/proc/self/fd/")


def kind_of(mode: int) -> str:
    """What a path is, out of its ``st_mode``, as messages name it."""
    return _KINDS.get(stat.S_IFMT(mode), "a regular file")


_OS_REASONS = {
    errno.ENOSPC: ("no space left on the disk", "free some space or {}"),
    errno.EDQUOT: ("disk quota used up", "free some space or {}"),
    errno.EFBIG: ("file too large for this file system or process limit", "{}"),
    errno.EROFS: ("read-only file system", "{}"),
    errno.EACCES: ("permission denied", "check who may write there, or {}"),
    errno.EPERM: ("operation not permitted", "check who may write there, or {}"),
}


def storage_error(error: OSError, path: str | Path) -> StorageError:
    """Turn an operating-system error about ``path`` into one line that says what to do.

    >>> import errno
    >>> str(storage_error(OSError(errno.ENOSPC, "x"), "out.safetensors"))
    'out.safetensors: no space left on the disk; free some space or choose another place'
    """
    reason, hint = _OS_REASONS.get(error.errno or 0, (error.strerror or str(error), None))
    name = os.fspath(path)
    if error.errno in {errno.EACCES, errno.EPERM} and _is_unreadable_file(name):
        hint = "check who may read it"
    elif error.errno == errno.ENOENT and not Path(name).absolute().parent.is_dir():
        reason, hint = "its folder is not there and cannot be created", "{}"
    return StorageError(f"{path}: {reason}", hint=hint and hint.format(_another_place(name)))


def _is_unreadable_file(name: str) -> bool:
    with contextlib.suppress(OSError):  # in a folder that may not be looked into
        return Path(name).is_file() and not os.access(name, os.R_OK)
    return False


def _another_place(path: str) -> str:
    try:
        cached = any(Path(path).is_relative_to(folder) for folder in home_folders())
    except UsageError:
        cached = False
    return f"set {HOME_VARIABLE} to another folder" if cached else "choose another place"


@contextlib.contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn OSError into a StorageError that names ``path``."""
    try:
        yield
    except OSError as error:
        raise storage_error(error, path) from error


def open_fd(path: str | Path, flags: int, *, links: bool = True, folder: int | None = None) -> int:
    """Open a regular file, whatever others may have put there; a pipe without a writer is not waited for.

    ``links`` says whether ``path`` itself may be a link to one; ``folder`` is the descriptor of the folder
    that ``path`` begins in.
    """
    for name in ("O_BINARY", "O_CLOEXEC", "O_NONBLOCK", *(() if links else ("O_NOFOLLOW",))):
        flags |= getattr(os, name, 0)
    fd = os.open(path, flags, 0o666, dir_fd=folder)
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        os.close(fd)
        what = f"{kind_of(mode)} where a regular file is needed"
        raise OSError(errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL, what, str(path))
    return fd


def open_regular(
    path: str | Path, *, links: bool = True, folder: int | None = None, buffering: int = -1
) -> BinaryIO:
    """Open a regular file to read; see `open_fd`.

    >>> open_regular("/dev/null")
    Traceback (most recent call last):
        ...
    OSError: [Errno 22] a device where a regular file is needed: '/dev/null'
    """
    return os.fdopen(open_fd(path, os.O_RDONLY, links=links, folder=folder), "rb", buffering)


def open_named(path: str | Path) -> BinaryIO:
    """Open a file that a user names: as `open_regular`, or what the user's shell made for this process.

    That is standard input, and the pipe of ``<(command)``, which is called ``/dev/fd/63`` or so.
    """
    if os.fspath(path).startswith(_OF_THIS_PROCESS):
        return open(path, "rb")  # noqa: PTH123 (a file name is what is meant)
    return open_regular(path)


def read_regular(path: str | Path, most: int, *, links: bool = True) -> bytes:
    """All bytes of a regular file that has at most ``most``."""
    with open_regular(path, links=links) as file:
        return _read(file, most, path)


def _read(file: BinaryIO, most: int, path: str | Path) -> bytes:
    content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"more than {most:,} bytes", str(path))
    return content


def regular_status(path: str | Path) -> os.stat_result | None:
    """The status of a regular file; None where there is none, or something else."""
    try:
        status = os.stat(path)  # noqa: PTH116 (`ckptkit list` asks it of every entry)
    except (OSError, ValueError):
        return None
    return status if stat.S_ISREG(status.st_mode) else None


def is_own_folder(path: str | Path) -> bool:
    """Whether a path is a folder itself, not a link to one."""
    status = _own_status(path)
    return status is not None and _is_folder(status)


def is_own_file(path: str | Path) -> bool:
    """Whether a path is a regular file itself, not a link to one."""
    status = _own_status(path)
    return status is not None and stat.S_ISREG(status.st_mode)


def _own_status(path: str | Path) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except (OSError, ValueError):
        return None


def _is_folder(status: os.stat_result) -> bool:
    """Whether it is a folder; a junction of Windows does not count."""
    return stat.S_ISDIR(status.st_mode) and not getattr(status, "st_reparse_tag", 0)


def files_below(folder: str | Path) -> Iterator[os.DirEntry[str]]:
    """Everything in a folder and its folders but those themselves, by name; no link is followed."""
    waiting = [str(folder)]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError:
            continue
        waiting += [entry.path for entry in reversed(found) if entry.is_dir(follow_symlinks=False)]
        yield from (entry for entry in found if not entry.is_dir(follow_symlinks=False))


def resolved(path: Path) -> Path:
    """Where a path leads, through links; as it is where they lead round in a circle."""
    try:
        return Path(os.path.realpath(path))
    except (OSError, RecursionError):
        return path.absolute()


def make_folders(path: Path) -> None:
    """Make a folder and those that it is in, where they are not there; pathlib does it by recursion."""
    missing = [path]
    while not os.path.lexists(missing[-1].parent) and missing[-1].parent != missing[-1]:
        missing.append(missing[-1].parent)
        if len(missing) > _MOST_FOLDERS:
            what = f"more than {_MOST_FOLDERS} folders to make, each in the other"
            raise OSError(errno.ENAMETOOLONG, what, str(path))
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)


# -- folders held open ---------------------------------------------------------------------------------------


HAS_DIR_FD = (
    {os.open, os.rename, os.unlink, os.rmdir, os.stat} <= os.supports_dir_fd
    and os.scandir in os.supports_fd
    and hasattr(os, "O_NOFOLLOW")
)
"""Whether a folder can be held while names in it change; Windows cannot, and looks before each step."""
_DEEPEST = 50
"""Folders in each other that are held open at once; what is deeper is brought up first."""
_FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0)


class Folder:
    """A folder held open: what is done with a name in it is done there, wherever its path leads by now."""

    def __init__(self, path: Path, *, below: Path) -> None:
        self.path = below
        self._fd = os.open(below, _FOLDER) if HAS_DIR_FD else None
        try:
            for name in path.relative_to(below).parts:
                inner = self.folder(name)
                self.close()
                self.path, self._fd = inner.path, inner._fd
        except BaseException:
            self.close()
            raise

    def _at(self, name: str) -> tuple[str | Path, int | None]:
        """A name in it as the system's calls take it: by descriptor, or by path where none is held."""
        return (name, self._fd) if HAS_DIR_FD else (self.path / name, None)

    def folder(self, name: str) -> Folder:
        """Open a folder in this one."""
        inner = Folder.__new__(Folder)
        inner.path, inner._fd = self.path / name, None
        if HAS_DIR_FD:
            inner._fd = os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=self._fd)
        elif not is_own_folder(inner.path):
            raise NotADirectoryError(errno.ENOTDIR, "not a folder", str(inner.path))
        return inner

    def names(self) -> list[str]:
        """All names in it, sorted."""
        with os.scandir(self.path if self._fd is None else self._fd) as entries:
            return sorted(entry.name for entry in entries)

    def status(self, name: str) -> os.stat_result:
        """The status of a name; of a link itself."""
        where, fd = self._at(name)
        return os.stat(where, dir_fd=fd, follow_symlinks=False)

    def read(self, name: str, most: int, *, whole: bool = True) -> bytes:
        """All bytes of a regular file of at most ``most`` bytes, or the first bytes of any."""
        where, fd = self._at(name)
        with open_regular(where, links=False, folder=fd) as file:
            return _read(file, most, self.path / name) if whole else file.read(most)

    def rename(self, old: str, new: str, into: Folder | None = None) -> None:
        """Give a name another, here or in another folder; nothing may have that."""
        (source, fd), (target, target_fd) = self._at(old), (into or self)._at(new)
        os.rename(source, target, src_dir_fd=fd, dst_dir_fd=target_fd)

    def has(self, name: str) -> bool:
        """Whether anything has this name."""
        try:
            self.status(name)
        except OSError:
            return False
        return True

    def has_file(self, name: str) -> bool:
        """Whether a regular file has this name."""
        try:
            return stat.S_ISREG(self.status(name).st_mode)
        except OSError:
            return False

    def holds(self, name: str, folder: Folder) -> bool:
        """Whether an open folder is the one of this name."""
        if folder._fd is None:
            return is_own_folder(self.path / name)
        with contextlib.suppress(OSError):
            return os.path.samestat(self.status(name), os.fstat(folder._fd))
        return False

    def remove(self, name: str) -> None:
        """Remove a file, a link, or a folder with everything in it; what refuses and other mounts stay."""
        self._remove(name, Folder.clear)

    def _remove(self, name: str, clear: Callable[[Folder], None]) -> None:
        where, fd = self._at(name)
        if not _is_folder(self.status(name)):
            os.unlink(where, dir_fd=fd)
            return
        with self.folder(name) as inner:
            if _mount(inner._fd) != _mount(self._fd):  # another file system, or another part of this one
                raise OSError(errno.EBUSY, "something is mounted there", str(inner.path))
            clear(inner)
        os.rmdir(where, dir_fd=fd)

    def clear(self) -> None:
        """Remove everything in it; what refuses is left."""
        self._clear(self, 0, itertools.count())

    def _clear(self, top: Folder, depth: int, numbers: Iterator[int]) -> None:
        left: set[str] = set()
        while names := [name for name in self.names() if name not in left]:
            for name in names:
                try:
                    if depth == _DEEPEST and _is_folder(self.status(name)):
                        self.rename(name, f".ckptkit-deep-{next(numbers)}", top)
                    else:
                        self._remove(name, lambda inner: inner._clear(top, depth + 1, numbers))
                except OSError:
                    left.add(name)
            if self is not top:
                return

    def close(self) -> None:
        """Let it go."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def remove_tree(path: Path) -> None:
    """Remove a folder; what refuses, and what a link in its place leads to, is left."""
    with contextlib.suppress(OSError), Folder(path.parent, below=path.parent) as parent:
        parent.remove(path.name)


def _mount(fd: int | None) -> tuple[int, bytes]:
    """What tells mounts apart: the device and, on Linux, the mount's number; nothing where none is held."""
    if fd is None:
        return 0, b""
    with contextlib.suppress(OSError), Path(f"/proc/self/fdinfo/{fd}").open("rb") as info:
        return os.fstat(fd).st_dev, next((line for line in info if line.startswith(b"mnt_id:")), b"")
    return os.fstat(fd).st_dev, b""


# -- what some mounts cannot do ------------------------------------------------------------------------------


UNSUPPORTED = frozenset(
    {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ESPIPE, errno.EPERM, errno.EXDEV}
)
"""What network, FUSE and overlay file systems answer to calls that they do not have."""
_BUSY = frozenset({errno.EBUSY, errno.ETXTBSY})
_BUSY_SECONDS = (0.05, 0.1, 0.2, 0.4, 0.8)
_LOCK_SECONDS = 5.0
"""How long a lock may take to say whether it is free: NFS without its lock service never says."""
_CONTENDED = frozenset({errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK})
_O_BINARY = getattr(os, "O_BINARY", 0)


def sync_file(fd: int, *, only_data: bool = False) -> None:
    """Bring a file's bytes to the disk, where the file system knows how."""
    try:
        (os.fdatasync if only_data and hasattr(os, "fdatasync") else os.fsync)(fd)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise


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
    if not _rename(source, target):
        _move_by_hand(source, target)


def _rename(source: Path, target: Path) -> bool:
    """Rename, again and again while a name is busy; returns whether the file system knows how."""
    for seconds in (*_BUSY_SECONDS, 0.0):
        try:
            (source.rename if source.is_dir() else source.replace)(target)
            break
        except OSError as error:
            if error.errno in UNSUPPORTED:
                return False
            if error.errno not in _BUSY or not seconds:
                raise
            time.sleep(seconds)
    return True


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
                shutil.copyfileobj(old, new, PIECE_BYTES)
                new.flush()
                sync_file(new.fileno())
        except BaseException:
            target.unlink(missing_ok=True)
            raise
        copy_mode(source, target)
        with contextlib.suppress(OSError):
            os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
    source.unlink()


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


_without_answer: set[int] = set()
"""Devices whose locks gave no answer."""


def flock(fd: int, operation: int) -> None:
    """Lock as `fcntl.flock` does; no answer in time is that of a file system without locks."""
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
        raise OSError(errno.ENOLCK, "file locking does not respond")
    if answer[0] is not None:
        raise answer[0]


def try_lock(fd: int) -> bool | None:
    """Take a lock; whether we hold it now, None where there are no locks."""
    if fcntl is None:
        return None
    try:
        flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in _CONTENDED else None
    return True


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
        while (held := try_lock(fd)) is False and time.monotonic() < end:
            time.sleep(0.005)
        yield bool(held)
    finally:
        os.close(fd)


# -- temporary files -----------------------------------------------------------------------------------------


TEMPORARY = ".ckptkit-"
"""Names of temporary files begin so: never a checkpoint's."""
_SUFFIX = ".part"
_TOKEN = "[0-9a-f]" * 12
_ASIDE = ".old"
_TEMPORARY_NAME = re.compile(rf"{re.escape(TEMPORARY)}{_TOKEN}-.*(?:\.part.*|\.old)", re.DOTALL)
_LONG_NAME = 140
"""Bytes of a name, beyond which it has a digest of the final one: eCryptfs takes 143, others 255."""


def new_token() -> str:
    """Return what tells the temporary files of one writer from those of another."""
    return os.urandom(6).hex()


def temporary_path(final: Path, ending: str, token: str) -> Path:
    """Where a file is until it is renamed.

    >>> temporary_path(Path("m.index"), ".index", "0a1b2c3d4e5f").name
    '.ckptkit-0a1b2c3d4e5f-m.part.index'
    """
    return final.parent / f"{TEMPORARY}{token}-{_in_temporary(final, _SUFFIX + ending, ending)}"


def aside_path(final: Path, token: str) -> Path:
    """Where an earlier file is from its removal's beginning to its end."""
    return final.parent / f"{TEMPORARY}{token}-{_in_temporary(final, _ASIDE)}"


def aside_paths(final: Path) -> list[Path]:
    """The files of that name whose removal was begun."""
    import glob

    return sorted(final.parent.glob(f"{TEMPORARY}{_TOKEN}-{glob.escape(_in_temporary(final, _ASIDE))}"))


def _in_temporary(final: Path, last: str, ending: str = "") -> str:
    """Split a temporary name into the final one and its suffix."""
    stem = final.name.removesuffix(ending)
    if len(os.fsencode(f"{TEMPORARY}{'0' * 12}-{stem}{last}")) > _LONG_NAME:
        import hashlib

        stem = hashlib.sha256(os.fsencode(stem)).hexdigest()[:32]
    return stem + last


def is_temporary(path: Path) -> bool:
    """Whether a file has a name of `temporary_path`."""
    return _TEMPORARY_NAME.fullmatch(path.name) is not None


def is_held(path: Path) -> bool | None:
    """Whether the writer of a temporary file is still running; None where there are no locks to tell by."""
    if fcntl is None:
        return None
    with contextlib.suppress(OSError):
        fd = open_fd(path, os.O_RDONLY, links=False)
        try:
            flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
    return None


def _create(final: Path, ending: str, token: str) -> tuple[Path, int]:
    """Make a temporary file, locked before it gets the name that sweeps look for: so none takes it."""
    path = temporary_path(final, ending, token or new_token())
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | _O_BINARY | getattr(os, "O_CLOEXEC", 0)
    if fcntl is None:
        return path, os.open(path, flags, 0o666)
    writer = new_writer()  # what tells, while there is no lock, that somebody is at work
    unlocked = path.with_name(f"{TEMPORARY}{writer}{_SUFFIX}")
    fd = os.open(unlocked, flags, 0o666)
    try:
        try_lock(fd)  # where each lock counts as held, no sweep gets it either
        if not _rename(unlocked, path):
            return unlocked, fd
    except BaseException:
        os.close(fd)
        unlocked.unlink(missing_ok=True)
        raise
    release(writer)
    return path, fd


def _is_at(fd: int, path: Path) -> bool:
    """Whether an open file still has that name."""
    try:
        return os.path.samestat(os.fstat(fd), path.lstat())
    except OSError:
        return False


def _sweep_orphans(final: Path, ending: str) -> None:
    """Remove temporary files of ``final`` whose writer is gone."""
    if fcntl is None:
        return
    import glob

    name = glob.escape(_in_temporary(final, _SUFFIX + ending, ending))
    for path in final.parent.glob(f"{TEMPORARY}{_TOKEN}-{name}"):
        _remove_unlocked(path)
    for path in final.parent.glob(f"{TEMPORARY}*{_SUFFIX}"):
        if has_token(path) and is_gone(path):
            _remove_unlocked(path)


def _remove_unlocked(path: Path) -> None:
    """Remove a temporary file whose lock can be had: its writer is gone."""
    with contextlib.suppress(OSError):
        fd = open_fd(path, os.O_RDWR, links=False)
        try:
            if try_lock(fd) and _is_at(fd, path):
                path.unlink()
        finally:
            os.close(fd)


# -- what a target is ----------------------------------------------------------------------------------------


_READER_SECONDS = 2.0
"""How long a named pipe may be without its reader, which a shell may start at the same time."""


@dataclass(frozen=True)
class _Place:
    """Where the bytes go: the path that a rename replaces, or the stream that they are written into."""

    path: Path
    stream: bool = False  # whether it is written into
    descriptor: int | None = None  # of the open file of this process that it is


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
            raise UsageError(f"{path} is a broken link", hint="name another file") from None
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


def refuse_existing(path: Path, *, force: bool) -> None:
    """Refuse, before any work, what `StagedFile` would."""
    _allowed(path, force=force)


def refuse_streams(path: Path) -> None:
    """Refuse a device, a pipe or a link for a checkpoint of several files."""
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
                    f"{place.path} is a named pipe without a reader", hint="start its reader first"
                ) from error
            time.sleep(0.02)
    mode = os.fstat(fd).st_mode
    if not (stat.S_ISCHR(mode) or stat.S_ISFIFO(mode)):
        os.close(fd)
        raise OSError(errno.EBUSY, "was replaced in the meantime", str(place.path))
    if os.name != "nt":
        os.set_blocking(fd, True)
    return fd


def _pour(source: int, into: int) -> None:
    """Write all of a file into a stream."""
    offset = 0
    while True:
        os.lseek(source, offset, os.SEEK_SET)
        piece = os.read(source, PIECE_BYTES)
        if not piece:
            return
        offset += len(piece)
        view = memoryview(piece)
        while view:
            try:
                view = view[os.write(into, view) :]
            except BlockingIOError:  # somebody who shares it made it so
                select.select([], [into], [])


# -- a file that is whole or not there -----------------------------------------------------------------------


_SYNC_EVERY = 64 << 20
"""Bytes after which the disk is set to work: waiting for all of a file at its end took a third longer."""
PIECE_BYTES = 1 << 20
"""Bytes per system call: with 2 MB, Linux 6.18 looks for huge pages and took 2.5 times as long."""


_WAITING = 8
"""Calls of a background thread that may wait or run, and so pieces of a file that are in memory."""


class BackgroundThread:
    """One thread that makes calls in the order they were given; the giver waits when too many wait.

    >>> seen: list[int] = []
    >>> thread = BackgroundThread("example")
    >>> for number in range(3):
    ...     thread.submit(seen.append, number)
    >>> thread.wait()
    >>> thread.close()
    >>> seen
    [0, 1, 2]
    """

    def __init__(self, name: str, most: int = _WAITING) -> None:
        self._name = name
        self._most = most
        self._free: queue.SimpleQueue[None] = queue.SimpleQueue()
        for _ in range(most):
            self._free.put(None)
        self._calls: queue.SimpleQueue[tuple[Callable[..., Any], tuple[Any, ...]] | None] = (
            queue.SimpleQueue()
        )
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def submit(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Have a call made; waits while too many are under way."""
        self._free.get()
        self._hand_over(function, arguments)

    def submit_if_idle(self, function: Callable[..., Any], *arguments: Any) -> bool:
        """Have a call made unless too many are under way; returns whether it will be made."""
        try:
            self._free.get_nowait()
        except queue.Empty:
            return False
        self._hand_over(function, arguments)
        return True

    def _hand_over(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=f"ckptkit-{self._name}", daemon=True)
            self._thread.start()
        self._calls.put((function, arguments))

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            function, arguments = call
            try:
                if self._error is None:
                    function(*arguments)
            except BaseException as error:  # raised again by `wait`, in the thread that asked
                self._error = error
            finally:
                del call, arguments
                self._free.put(None)

    def wait(self) -> None:
        """Wait until every call was made; raises the error of the first that failed, every time."""
        for _ in range(self._most):
            self._free.get()
        for _ in range(self._most):
            self._free.put(None)
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """End the thread after the pending calls; errors are ignored."""
        if self._thread is not None:
            self._calls.put(None)
            self._thread.join()
            self._thread = None


class StagedFile:
    """One output file, invisible under its final name until `commit`."""

    def __init__(
        self,
        final: Path,
        *,
        force: bool = False,  # replace an existing file
        ending: str = "",  # of the final name, which the temporary one shall have too
        token: str = "",  # from `new_token`; the files of one checkpoint share it
        plain: bool = False,  # nothing but a regular file: one of several, or one that is read back
        own: bool = False,  # the name is ckptkit's own: plain, but a link there is replaced
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
        self._syncer = BackgroundThread("sync", 1)
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

    def write_at(self, data: Any, offset: int) -> None:
        """Write all of ``data`` at ``offset``, whatever the current position."""
        view = memoryview(data).cast("B") if memoryview(data).nbytes else memoryview(b"")
        self._unsynced += len(view)  # two threads may lose a count here: it only decides when to begin
        with translated(self.final):
            while view:
                written = _pwrite(self._fd, view[:PIECE_BYTES], offset)
                view, offset = view[written:], offset + written
        if self._unsynced >= _SYNC_EVERY and self._syncer.submit_if_idle(sync_file, self._fd):
            self._unsynced = 0

    def skip_to(self, position: int) -> None:
        """Leave a hole of zeros up to ``position``, and go on from there."""
        self._position = position

    def sync(self) -> None:
        """Bring the bytes to the disk."""
        with translated(self.final):
            self._syncer.wait()  # the system tells of an error only once, to whoever synced
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

    def take_back(self) -> None:
        """Remove the file under its final name, after `rename`."""
        self.final.unlink(missing_ok=True)

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

    def _leave_stream(self) -> None:
        if self._into is not None:
            into, self._into = self._into, None
            os.close(into)
        if self._scratch is not None:
            self._scratch.cleanup()

    def _close(self) -> None:
        if self._open:
            self._open = False
            self._syncer.close()  # it uses the descriptor
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
    syncer = BackgroundThread("sync", len(files))
    try:
        for file in files:
            syncer.submit(file.sync)
        check(path)
        syncer.wait()
    finally:
        syncer.close()
