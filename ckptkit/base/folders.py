"""A folder that is whole under its final name, or not there."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Collection
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from ckptkit.base.errors import StorageError, UsageError, listed
from ckptkit.base.files import (
    TEMPORARY,
    alone_in,
    make_folders,
    move,
    remove_tree,
    sync_file,
    sync_folder,
    translated,
)
from ckptkit.base.writers import is_gone, new_writer, release

if TYPE_CHECKING:
    from typing_extensions import Self

_SHOWN = 3
_LONG_NAME = 120
_THERE = frozenset({errno.EEXIST, errno.ENOTEMPTY})
NEW = f"{TEMPORARY}new-"
OLD = f"{TEMPORARY}old-"
"""What the names of a folder that is being filled, and of one that is being replaced, begin with."""


class StagedFolder:
    """A folder being filled beside its final place; use as a context manager.

    Leaving the ``with`` block without `commit` removes it. What a killed writer left is swept away, or put
    back where it had moved it, by the next writer of the same folder.
    """

    def __init__(
        self,
        final: Path,
        *,
        force: bool = False,
        owned: Collection[str] | None = None,
        filled: Path | None = None,  # the folder, where there is one already
    ) -> None:
        self.final = final
        self._place = Path(os.path.abspath(final))  # noqa: PTH100 - resolve() would follow a link
        with translated(final):
            _sweep(self._place)
        if owned is not None:  # a folder that may hold others' files
            refuse_replacement(final, force=force, owned=owned)
        with translated(final):
            make_folders(self._place.parent)
            self._writer = new_writer()
            self.path = filled or self._place.with_name(f"{NEW}{self._writer}+{short_name(self._place.name)}")
            if filled is None:
                self.path.mkdir()

    def write_text(self, name: str, text: str) -> None:
        """Write one of the folder's files, UTF-8 with plain line ends, and bring it to the disk."""
        with translated(self.final / name), (self.path / name).open("xb") as file:
            file.write(text.encode(errors="backslashreplace"))
            file.flush()
            sync_file(file.fileno())

    def commit(self) -> Path:
        """Give the folder its final name, in place of an earlier one.

        Two renames replace an earlier folder: between them there is none, but never a mixture.
        """
        with translated(self.final), alone_in(self._place.parent):
            sync_folder(self.path)
            while not self._took_the_place():
                pass  # where locks do not exclude, another writer's came between the two renames
            sync_folder(self._place.parent)
        return self.final

    def _took_the_place(self) -> bool:
        old = self._place.with_name(f"{OLD}{self._writer}+{short_name(self._place.name)}")
        moved = False
        with contextlib.suppress(FileNotFoundError):
            move(self._place, old)
            moved = True
        try:
            move(self.path, self._place)
        except OSError as error:
            if error.errno in _THERE:
                remove_tree(old)
                return False
            if moved:
                move(old, self._place)
            raise
        remove_tree(old)
        return True

    def discard(self) -> None:
        """Remove what was not committed; harmless afterwards."""
        remove_tree(self.path)
        release(self._writer)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()


def short_name(name: str) -> str:
    """A folder's name, or a digest of it where a temporary one with it would be too long."""
    return name if len(os.fsencode(name)) <= _LONG_NAME else hashlib.sha256(os.fsencode(name)).hexdigest()


def _sweep(place: Path) -> None:
    """Remove what writers of this folder left that live no more."""
    for orphan in place.parent.glob(f"{TEMPORARY}*"):
        if not (orphan.name.startswith((NEW, OLD)) and orphan.name.endswith(f"+{short_name(place.name)}")):
            continue
        if not is_gone(orphan):
            continue
        if orphan.name.startswith(OLD) and not place.exists():  # killed between the two renames
            with contextlib.suppress(FileNotFoundError):  # somebody else did it
                move(orphan, place)
        else:
            remove_tree(orphan)


def refuse_replacement(final: Path, *, force: bool, owned: Collection[str]) -> None:
    """Refuse to write a folder over something that must not be replaced."""
    if final.is_dir() and not final.is_symlink():
        try:
            names = sorted(path.name for path in final.iterdir())
        except FileNotFoundError:  # another writer is about to replace it
            names = []
        except OSError as error:
            raise StorageError(f"{final}: {error.strerror}") from error
        strangers = [name for name in names if name not in owned]
        if strangers:
            shown = listed(strangers, _SHOWN)
            raise UsageError(
                f"{final} exists and holds {shown}, which ckptkit did not write",
                hint="give another --output, or move those away",
            )
        if names and not force:
            raise UsageError(
                f"{final} exists already", hint="give --force to replace it, or another --output"
            )
    elif final.exists() or final.is_symlink():
        raise UsageError(f"{final} exists already and is not a folder", hint="give another --output")
