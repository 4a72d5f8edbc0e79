"""Files and folders that others may have put there.

What is no regular file is never waited for, and nothing that a link leads to is removed or renamed.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from typing_extensions import Self

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


def open_regular(
    path: str | Path, *, links: bool = True, folder: int | None = None, buffering: int = -1
) -> BinaryIO:
    """Open a regular file to read; opening a pipe that nobody writes to would wait for ever.

    ``links`` says whether ``path`` itself may be a link to one; ``folder`` is the descriptor of the folder
    that ``path`` begins in.

    Raises
    ------
    OSError
        Of the system; with ``EINVAL`` and what it is where it is not a regular file.

    Examples
    --------
    >>> open_regular("/dev/null")
    Traceback (most recent call last):
        ...
    OSError: [Errno 22] a device where a regular file is needed: '/dev/null'
    """
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    flags |= getattr(os, "O_NONBLOCK", 0) | (0 if links else getattr(os, "O_NOFOLLOW", 0))
    fd = os.open(path, flags, dir_fd=folder)
    try:
        mode = os.fstat(fd).st_mode
        if not stat.S_ISREG(mode):
            what = f"{kind_of(mode)} where a regular file is needed"
            raise OSError(errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL, what, str(path))
        return os.fdopen(fd, "rb", buffering)
    except BaseException:
        os.close(fd)
        raise


def make_folders(path: Path) -> None:
    """Make a folder and those that it is in, where they are not there; pathlib does it by recursion.

    Raises
    ------
    OSError
        Of the system; with ``ENAMETOOLONG`` where more are missing than anybody means.
    """
    missing = [path]
    while not os.path.lexists(missing[-1].parent) and missing[-1].parent != missing[-1]:
        missing.append(missing[-1].parent)
        if len(missing) > _MOST_FOLDERS:
            what = f"more than {_MOST_FOLDERS} folders to make, each in the other"
            raise OSError(errno.ENAMETOOLONG, what, str(path))
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)


def resolved(path: Path) -> Path:
    """Where a path leads, through links; as it stands where they lead round in a circle."""
    try:
        return Path(os.path.realpath(path))
    except (OSError, RecursionError):
        return path.absolute()


def open_named(path: str | Path) -> BinaryIO:
    """Open a file that a user names: as `open_regular`, or what the user's shell made for this process.

    That is standard input, and the pipe of ``<(command)``, which is called ``/dev/fd/63`` or so.
    """
    if os.fspath(path).startswith(_OF_THIS_PROCESS):
        return open(path, "rb")  # noqa: PTH123 (a file name is what is meant)
    return open_regular(path)


def read_regular(path: str | Path, most: int, *, links: bool = True) -> bytes:
    """All bytes of a regular file that has at most ``most``.

    Raises
    ------
    OSError
        As `open_regular`; ``EFBIG`` where there are more.
    """
    with open_regular(path, links=links) as file:
        return _read(file, most, path)


def _read(file: BinaryIO, most: int, path: str | Path) -> bytes:
    content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"more than {most:,} bytes", str(path))
    return content


def regular_status(path: str | Path) -> os.stat_result | None:
    """What the system says of a regular file; None where there is none, or something else."""
    try:
        status = os.stat(path)  # noqa: PTH116 (`ckptkit list` asks it of every entry)
    except (OSError, ValueError):
        return None
    return status if stat.S_ISREG(status.st_mode) else None


def is_own_folder(path: str | Path) -> bool:
    """Whether a path is a folder itself, not a link to one."""
    try:
        return _is_folder(os.lstat(path))
    except (OSError, ValueError):
        return False


def is_own_file(path: str | Path) -> bool:
    """Whether a path is a regular file itself, not a link to one."""
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except (OSError, ValueError):
        return False


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


# -- what is removed or renamed ------------------------------------------------------------------------------

HAS_DIR_FD = (
    {os.open, os.rename, os.unlink, os.rmdir, os.stat} <= os.supports_dir_fd
    and os.scandir in os.supports_fd
    and hasattr(os, "O_NOFOLLOW")
)
"""Whether a folder can be held while names in it change; Windows cannot, and looks before each step."""
_DEEPEST = 50
"""Folders in each other that are held open at once; what lies deeper is brought up first."""


class Folder:
    """A folder held open: what is done with a name in it is done there, wherever its path leads by now.

    Parameters
    ----------
    path : Path
        Each name of it below ``below`` must be a folder and no link.
    below : Path
        Trusted; it may be a link itself.

    Raises
    ------
    OSError
        ``ENOTDIR`` or ``ELOOP`` where something on the way is a link, or not a folder.
    """

    def __init__(self, path: Path, *, below: Path) -> None:
        self.path = below
        self._fd = os.open(below, _FOLDER) if HAS_DIR_FD else -1
        try:
            for name in path.relative_to(below).parts:
                self._enter(name)
        except BaseException:
            self.close()
            raise

    def _enter(self, name: str) -> None:
        inner = self.folder(name)
        self._fd, inner._fd, self.path = inner._fd, self._fd, inner.path
        inner.close()

    def folder(self, name: str) -> Folder:
        """Open a folder in this one."""
        inner = Folder.__new__(Folder)
        inner.path, inner._fd = self.path / name, -1
        if HAS_DIR_FD:
            inner._fd = os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=self._fd)
        elif not is_own_folder(inner.path):
            raise NotADirectoryError(errno.ENOTDIR, "not a folder", str(inner.path))
        return inner

    def names(self) -> list[str]:
        """All names in it, sorted."""
        with os.scandir(self._fd if HAS_DIR_FD else self.path) as entries:
            return sorted(entry.name for entry in entries)

    def status(self, name: str) -> os.stat_result:
        """What the system says of a name; of a link itself."""
        if HAS_DIR_FD:
            return os.stat(name, dir_fd=self._fd, follow_symlinks=False)
        return os.lstat(self.path / name)

    def read(self, name: str, most: int) -> bytes:
        """All bytes of a regular file that has at most ``most``; see `read_regular`."""
        if not HAS_DIR_FD:
            return read_regular(self.path / name, most, links=False)
        with open_regular(name, links=False, folder=self._fd) as file:
            return _read(file, most, self.path / name)

    def rename(self, old: str, new: str) -> None:
        """Give a name another; nothing may have that."""
        if HAS_DIR_FD:
            os.rename(old, new, src_dir_fd=self._fd, dst_dir_fd=self._fd)
        else:
            (self.path / old).rename(self.path / new)

    def has(self, name: str) -> bool:
        """Whether anything has this name."""
        try:
            self.status(name)
        except OSError:
            return False
        return True

    def holds(self, name: str, folder: Folder) -> bool:
        """Whether an open folder is the one of this name."""
        if not HAS_DIR_FD:
            return is_own_folder(self.path / name)
        with contextlib.suppress(OSError):
            return os.path.samestat(self.status(name), os.fstat(folder._fd))
        return False

    def remove(self, name: str) -> None:
        """Remove a file, a link, or a folder with everything in it; what refuses, and other mounts, is left.

        Raises
        ------
        OSError
            When it is still there.
        """
        if not _is_folder(self.status(name)):
            if HAS_DIR_FD:
                os.unlink(name, dir_fd=self._fd)
            else:
                (self.path / name).unlink()
        elif not HAS_DIR_FD:
            shutil.rmtree(self.path / name)
        else:
            with self.folder(name) as inner:
                self._refuse_mount(inner)
                inner.clear()
            os.rmdir(name, dir_fd=self._fd)

    def clear(self) -> None:
        """Remove everything in it; what refuses is left."""
        if HAS_DIR_FD:
            self._clear(self, 0, itertools.count())
            return
        for name in self.names():
            with contextlib.suppress(OSError):
                self.remove(name)

    def _clear(self, top: Folder, depth: int, numbers: Iterator[int]) -> None:
        left: set[str] = set()
        while names := [name for name in self.names() if name not in left]:
            for name in names:
                try:
                    if not _is_folder(self.status(name)):
                        os.unlink(name, dir_fd=self._fd)
                        continue
                    if depth == _DEEPEST:
                        up = f".ckptkit-deep-{next(numbers)}"
                        os.rename(name, up, src_dir_fd=self._fd, dst_dir_fd=top._fd)
                        continue
                    with self.folder(name) as inner:
                        self._refuse_mount(inner)
                        inner._clear(top, depth + 1, numbers)
                    os.rmdir(name, dir_fd=self._fd)
                except OSError:
                    left.add(name)
            if self is not top:
                return

    def _refuse_mount(self, inner: Folder) -> None:
        """Raise where another file system, or another part of this one, is mounted."""
        if _mount(inner._fd) != _mount(self._fd):
            raise OSError(errno.EBUSY, "something is mounted there", str(inner.path))

    def close(self) -> None:
        """Let it go."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


_FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0)


def _is_folder(status: os.stat_result) -> bool:
    """Whether it is a folder; a junction of Windows is none."""
    return stat.S_ISDIR(status.st_mode) and not getattr(status, "st_reparse_tag", 0)


def _mount(fd: int) -> tuple[int, bytes]:
    """What tells mounts apart: the device and, on Linux, the mount's number."""
    with contextlib.suppress(OSError), Path(f"/proc/self/fdinfo/{fd}").open("rb") as info:
        return os.fstat(fd).st_dev, next((line for line in info if line.startswith(b"mnt_id:")), b"")
    return os.fstat(fd).st_dev, b""
