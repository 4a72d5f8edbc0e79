"""Taking entries out of a cache folder while others read and write there.

The entry's lock is held, what somebody writes is left, and each folder gets another name before the first
file of it goes: under its final name it is there whole or not at all, whenever the process is killed. Only
what ckptkit put there goes, and nothing that a link leads to: each folder is held open from the look at what
is in it until it is gone (`ckptkit.base.files.Folder`).
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ckptkit.base.errors import storage_error
from ckptkit.base.files import UNSUPPORTED, Folder, is_own_folder, regular_status
from ckptkit.base.home import is_writable
from ckptkit.base.locks import hold, new_writer, release
from ckptkit.store.cache import KINDS, Home
from ckptkit.store.inventory import (
    REMOVING,
    bears_mark,
    is_being_written,
    is_own,
    last_used,
    leftovers,
    own_holdings,
    tree_size,
)


@dataclass(frozen=True)
class Removal:
    """What became of one entry.

    Attributes
    ----------
    id : str
    freed : int
        Bytes that are gone, or would be.
    removed : tuple of Path
        Folders that are gone, or would be.
    kept : tuple of str
        Why something is still there, one sentence each.
    """

    id: str
    freed: int
    removed: tuple[Path, ...] = ()
    kept: tuple[str, ...] = ()


def remove(
    home: Home,
    id: str,
    *,
    converted_only: bool = False,
    dry_run: bool = False,
    unless_used_after: float | None = None,
) -> Removal:
    """Remove what a cache holds of one entry, in the folder that is written to.

    Parameters
    ----------
    home : Home
        Of several folders only the one that the entry is written to is cleared.
    id : str
    converted_only : bool
        Only its conversions.
    dry_run : bool
        Say what would go.
    unless_used_after : float, optional
        Leave it when it was used later than this, in seconds since 1970.

    Raises
    ------
    StorageError
        When the lock file cannot be made.
    """
    single = home.at(id)
    wanted = ("converted",) if converted_only else KINDS
    kinds = [kind for kind in wanted if is_own(single, kind, id)]
    there = [single.path / kind / id for kind in kinds]
    foreign = [f"{id}: {said}" for said in _foreign(single, id, wanted, kinds)]
    if not there or single.links(kinds=("locks",)):
        return Removal(id, 0, kept=tuple(foreign))
    locked = regular_status(single.lock_path(id)) is not None
    if dry_run:
        if locked:
            with hold(single.lock_path(id), wait=False) as outcome:
                if outcome == "taken":
                    return Removal(id, 0, kept=(f"{id}: another process is at it; left as it is",))
        kept = foreign + [f"{id}: {path} is being written" for path in there if _is_busy(path)]
        free = [path for path in there if not _is_busy(path)]
        return Removal(id, sum(map(tree_size, free)), tuple(free), tuple(kept))
    with hold(single.lock_path(id), wait=False) as outcome:
        if outcome == "taken":
            return Removal(id, 0, kept=(f"{id}: another process is at it; left as it is",))
        if unless_used_after is not None and last_used(home, single, id) > unless_used_after:
            return Removal(id, 0, kept=(f"{id}: was used just now; left as it is",))
        taken = [_take_away(single, kind, id, locked) for kind in kinds]
    removal = Removal(
        id,
        sum(freed for freed, _ in taken),
        tuple(path for path, (_, fault) in zip(there, taken, strict=True) if not fault),
        (*foreign, *(f"{id}: {fault}" for _, fault in taken if fault)),
    )
    if not converted_only and not any(fault for _, fault in taken):
        with contextlib.suppress(OSError), Folder(single.path / "used", below=single.path) as used:
            used.remove(id)
    return removal


def prune(
    home: Home,
    *,
    older_than: float | None = None,
    max_size: int | None = None,
    by_hand: bool = False,
    dry_run: bool = False,
    now: Callable[[], float] = time.time,
) -> Iterator[Removal]:
    """Remove whole entries, the one that was used longest ago first, from the folders they are written to.

    Parameters
    ----------
    home : Home
    older_than : float, optional
        Remove what nobody used for so many seconds.
    max_size : int, optional
        Remove until everything together has at most so many bytes.
    by_hand : bool
        Also what was imported by hand, which no fetch brings back.
    dry_run : bool
        Say what would go.
    now : callable
        The clock, in seconds since 1970.

    Yields
    ------
    Removal
        Of each entry that it tried to remove.
    """
    held = own_holdings(home)
    total = sum(entry.size for entry in held)
    for entry in sorted(held, key=lambda entry: entry.used):
        is_old = older_than is not None and now() - entry.used > older_than
        if not is_old and (max_size is None or total <= max_size):
            return
        if entry.by_hand and not by_hand:
            yield Removal(entry.id, 0, kept=(f"{entry.id}: was imported by hand; left as it is",))
            continue
        removal = remove(home, entry.id, dry_run=dry_run, unless_used_after=entry.used)
        total -= min(removal.freed, entry.size)  # records count nothing in an entry's size
        yield removal


def sweep(home: Home) -> int:
    """Remove what processes left that were killed while removing or unpacking; returns bytes freed."""
    freed = 0
    for single in home.homes:
        for path in leftovers(single) if is_writable(single.path) else ():
            size = tree_size(path)
            with contextlib.suppress(OSError), Folder(path.parent, below=single.path) as folder:
                folder.remove(path.name)
            freed += size - tree_size(path)
    return freed


def _foreign(home: Home, id: str, wanted: Sequence[str], own: Sequence[str]) -> Iterator[str]:
    """Why something of an entry's name is left: it is a link, or nothing in it is of ckptkit."""
    for kind in wanted:
        path = home.path / kind / id
        if kind in own or not is_own_folder(path.parent) or not os.path.lexists(path):
            continue
        if path.is_symlink():
            yield f"{path} is a link; left as it is"
        elif path.is_dir() and any(path.iterdir()):
            yield f"{path} was not made by ckptkit; left as it is"


def _take_away(home: Home, kind: str, id: str, locked: bool) -> tuple[int, str]:
    """Rename a folder, then delete it; returns bytes freed and why something is still there, if so."""
    path = home.path / kind / id
    if _is_busy(path):
        return 0, f"{path} is being written; left as it is"
    writer = new_writer()
    try:
        with Folder(path.parent, below=home.path) as parent, parent.folder(id) as folder:
            if not bears_mark(folder, kind, id, locked=locked):
                return 0, f"{path} was not made by ckptkit; left as it is"
            return _take_out(parent, folder, id, f"{REMOVING}{id}-{writer}")
    except FileNotFoundError:
        return 0, ""
    except OSError as error:  # on Windows: a file in it is open somewhere
        return 0, f"{storage_error(error, path).message}; left as it is"
    finally:
        release(writer)


def _take_out(parent: Folder, folder: Folder, id: str, aside: str) -> tuple[int, str]:
    """Rename and delete a folder that is held open."""
    path = parent.path / id
    try:
        parent.rename(id, aside)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        aside = id  # nothing can be renamed here: it goes where it is
    if not parent.holds(aside, folder):
        if aside != id and not parent.has(id):
            parent.rename(aside, id)
        return 0, f"{path} was replaced meanwhile; left as it is"
    if _is_busy(parent.path / aside) and aside != id and not parent.has(id):  # somebody began in between
        parent.rename(aside, id)
        return 0, f"{path} is being written; left as it is"
    size = tree_size(parent.path / aside)
    with contextlib.suppress(OSError):
        parent.remove(aside)
    left = tree_size(parent.path / aside)
    fault = (
        f"{parent.path / aside} could not be removed whole: {left:,} bytes are left"
        if parent.has(aside)
        else ""
    )
    return size - left, fault


def _is_busy(folder: Path) -> bool:
    """Whether a temporary file directly in a folder is being written."""
    return any(is_being_written(path) for path in folder.glob(".*") if path.is_file())
