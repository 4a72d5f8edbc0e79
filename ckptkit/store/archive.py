"""Unpacking an archive so that its folder is there whole or not at all.

What may be in an archive is decided by the one walker, `ckptkit.formats.tar_members.iter_safe_members`:
no member leaves the folder, is a link or a device, or is larger than bounded.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

from ckptkit.errors import FormatError
from ckptkit.formats.staging import sync_folder, translated

if TYPE_CHECKING:
    from typing_extensions import Self

MARKER = ".ckptkit-unpacked.json"
"""Hidden file in an unpacked folder: which archive it came from and what was in it."""

_PREFIX = ".ckptkit-unpacking-"
_COPY = 1 << 20
_ARCHIVES = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar")
_TORCH_NAMES = (".pth.tar", ".pt.tar", ".ckpt.tar")


def is_archive_name(name: str) -> bool:
    """Whether a published file of this name is an archive to unpack.

    Examples
    --------
    >>> is_archive_name("moat0.tar.gz"), is_archive_name("moganet.pth.tar")
    (True, False)
    """
    lower = name.lower()
    return lower.endswith(_ARCHIVES) and not lower.endswith(_TORCH_NAMES)


class StagedFolder:
    """An archive unpacked under a temporary name, until `commit`.

    Parameters
    ----------
    archive : Path
        The archive file.
    folder : Path
        Where the folder will stand. Hold the entry's lock: orphans of earlier runs are removed.
    shown : Path, optional
        What messages call the archive while it still has a temporary name itself.
    sha256 : str
        The archive's checksum, kept in the folder's marker.

    Raises
    ------
    FormatError
        When the archive is damaged or refused; nothing of it is left.
    StorageError
        When the disk refuses.
    """

    def __init__(self, archive: Path, folder: Path, *, shown: Path | None = None, sha256: str = "") -> None:
        self.folder = folder
        with translated(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            for orphan in folder.parent.glob(f"{_PREFIX}{folder.name}-*"):
                shutil.rmtree(orphan, ignore_errors=True)
            self._temporary = folder.parent / f"{_PREFIX}{folder.name}-{secrets.token_hex(6)}"
            self._temporary.mkdir()
        try:
            self._fill(archive, sha256)
        except FormatError as error:
            self.discard()
            raise FormatError(shown or archive, error.reason, offset=error.offset, hint=error.hint) from error
        except BaseException:
            self.discard()
            raise

    def _fill(self, archive: Path, sha256: str) -> None:
        from ckptkit.formats.tar_members import iter_safe_members

        sizes: dict[str, int] = {}
        for member, content in iter_safe_members(archive):
            if member.name == MARKER:
                raise FormatError(archive, f"member {MARKER!r} has a name that ckptkit uses itself")
            target = self._temporary.joinpath(*member.name.split("/"))
            if member.is_folder:
                with translated(self.folder / member.name):
                    target.mkdir(parents=True, exist_ok=True)
            elif content is not None:
                sizes[member.name] = self._write(target, content, self.folder / member.name)
        if not sizes:
            raise FormatError(archive, "the archive holds no file")
        marker = json.dumps({"archive": archive.name, "sha256": sha256, "files": sizes}, indent=2).encode()
        with translated(self.folder), (self._temporary / MARKER).open("xb") as stream:
            stream.write(marker)
            os.fsync(stream.fileno())

    @staticmethod
    def _write(target: Path, content: BinaryIO, shown: Path) -> int:
        size = 0
        with translated(shown):
            target.parent.mkdir(parents=True, exist_ok=True)
            stream = target.open("xb")
        with stream:
            while piece := content.read(_COPY):
                with translated(shown):
                    stream.write(piece)
                size += len(piece)
            with translated(shown):
                stream.flush()
                os.fsync(stream.fileno())
        return size

    def commit(self) -> Path:
        """Put the folder in place of an earlier one."""
        with translated(self.folder):
            old = self._temporary.with_name(f"{self._temporary.name}.old")
            if self.folder.exists():
                self.folder.rename(old)
            self._temporary.rename(self.folder)
            sync_folder(self.folder.parent)
            shutil.rmtree(old, ignore_errors=True)
        return self.folder

    def discard(self) -> None:
        """Remove what is not committed."""
        shutil.rmtree(self._temporary, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()


def unpack(archive: Path, folder: Path, *, sha256: str = "") -> Path:
    """Unpack ``archive`` as ``folder``, replacing an earlier one.

    Raises
    ------
    FormatError
        When the archive is damaged, hostile or too large; ``folder`` is then as before.
    StorageError
        When the disk refuses.
    """
    with StagedFolder(archive, folder, sha256=sha256) as staged:
        return staged.commit()


def is_unpacked(folder: Path, sha256: str) -> bool:
    """Whether ``folder`` was unpacked from the archive with this checksum and has all its files still."""
    try:
        marker: Any = json.loads((folder / MARKER).read_bytes())
        files = marker["files"]
        return marker["sha256"] == sha256 and all(
            (folder / name).stat().st_size == size for name, size in files.items()
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return False


def checkpoint_in(folder: Path) -> Path:
    """What to convert in an unpacked folder.

    Returns
    -------
    Path
        The folder that holds the only ``.index`` file; else the only file; else ``folder`` itself.
    """
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != MARKER]
    indexes = [path for path in files if path.suffix == ".index" and not path.name.startswith(".")]
    if len(indexes) == 1:
        return indexes[0].parent
    visible = [path for path in files if not path.name.startswith(".")]
    return visible[0] if len(visible) == 1 and not indexes else folder


def remove_folder(folder: Path) -> None:
    """Remove a folder that belongs to an artefact no longer here."""
    with translated(folder), contextlib.suppress(FileNotFoundError):
        shutil.rmtree(folder)
