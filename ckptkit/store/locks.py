"""A lock file that excludes processes and threads, and never hangs where the file system has no locks.

On POSIX it is ``flock``, on Windows the `filelock` package's. A network file system may refuse ``flock``
(Lustre without ``-o flock``, NFS without its lock service). A file that merely exists in its stead would have
to be broken when its maker was killed, and nobody can tell that from a slow download on another machine. So
there the work goes on without a lock: writers' tokens (`ckptkit.store.writers`) keep their bytes apart, and
the worst that happens is that two of them download the same file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from ckptkit.base.files import kind_of, make_folders
from ckptkit.base.staging import flock, translated

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

Outcome = Literal["held", "taken", "no locks"]
_CONTENDED = frozenset({errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK})
_POLL_SECONDS = 0.05
_SAFELY = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
"""No link is followed, no pipe waited for."""


@contextlib.contextmanager
def hold(path: Path, *, wait: bool = True, waiting: Callable[[], None] | None = None) -> Iterator[Outcome]:
    """Hold a lock file while the block runs.

    The file stays: unlinking one that others wait for would give each of them a lock of its own.

    Parameters
    ----------
    path : Path
        The lock file; it and its folder are made where need be.
    wait : bool
        Whether to wait for somebody else's; otherwise the block runs with ``"taken"``.
    waiting : callable, optional
        Called once before waiting.

    Yields
    ------
    {"held", "taken", "no locks"}

    Raises
    ------
    StorageError
        When the lock file cannot be made.
    """
    with translated(path):
        make_folders(path.parent)
    if fcntl is None:
        with _hold_on_windows(path, wait, waiting) as outcome:
            yield outcome
        return
    with translated(path):
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | _SAFELY, 0o666)
        except PermissionError:  # somebody else made it: to lock it, reading it is enough
            fd = os.open(path, os.O_RDONLY | _SAFELY)
        mode = os.fstat(fd).st_mode
        if not stat.S_ISREG(mode):
            os.close(fd)
            raise OSError(errno.EINVAL, f"{kind_of(mode)} where a lock file is needed; remove it")
    try:
        outcome = _try(fd)
        if outcome == "taken" and wait:
            if waiting:
                waiting()
            while outcome == "taken":  # polled, so that Ctrl+C ends it in any thread
                time.sleep(_POLL_SECONDS)
                outcome = _try(fd)
        yield outcome
    finally:
        os.close(fd)  # and with it the lock


def _try(fd: int) -> Outcome:
    try:
        flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return "taken" if error.errno in _CONTENDED else "no locks"
    return "held"


@contextlib.contextmanager
def _hold_on_windows(path: Path, wait: bool, waiting: Callable[[], None] | None) -> Iterator[Outcome]:
    import filelock

    lock = filelock.FileLock(str(path), thread_local=False)
    with translated(path):
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            if wait:
                if waiting:
                    waiting()
                lock.acquire()
    try:
        yield "held" if lock.is_locked else "taken"
    finally:
        lock.release()
