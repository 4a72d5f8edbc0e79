"""Files that others may have put there: opened only where they are regular files, and never waited for."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFLNK: "a link",
}


_OF_THIS_PROCESS = ("/dev/stdin", "/dev/fd/", "/proc/self/fd/")


def kind_of(mode: int) -> str:
    """What a path is, out of its ``st_mode``, as messages name it."""
    return _KINDS.get(stat.S_IFMT(mode), "a regular file")


def open_regular(path: str | Path, *, links: bool = True) -> BinaryIO:
    """Open a regular file to read; opening a pipe that nobody writes to would wait for ever.

    ``links`` says whether ``path`` itself may be a link to one.

    Raises
    ------
    OSError
        Of the system; with ``EINVAL`` and what it is where it is no regular file.

    Examples
    --------
    >>> open_regular("/dev/null")
    Traceback (most recent call last):
        ...
    OSError: [Errno 22] a device where a regular file is needed: '/dev/null'
    """
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    flags |= getattr(os, "O_NONBLOCK", 0) | (0 if links else getattr(os, "O_NOFOLLOW", 0))
    fd = os.open(path, flags)
    try:
        mode = os.fstat(fd).st_mode
        if not stat.S_ISREG(mode):
            what = f"{kind_of(mode)} where a regular file is needed"
            raise OSError(errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL, what, str(path))
        return os.fdopen(fd, "rb")
    except BaseException:
        os.close(fd)
        raise


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
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"more than {most:,} bytes", str(path))
    return content
