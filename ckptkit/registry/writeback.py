"""Writing an observed checksum into a registry file, and leaving every other byte as it was.

The text is edited where the YAML events say the values stand; comments, order, blank lines and quoting
elsewhere are never touched. Before the file is replaced, the edited text is loaded again and compared with
what was loaded before: nothing but the pinned fields may have changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ckptkit.base.errors import NotFoundError, RegistryError, UsageError
from ckptkit.base.files import StagedFile, copy_mode, resolved
from ckptkit.base.urls import Url
from ckptkit.registry.loading import load_texts, read_text
from ckptkit.registry.paths import built_in_path
from ckptkit.registry.query import Families
from ckptkit.registry.spans import PINNED_FIELDS, Pin, pinned_text

EMPTY_OVERLAY = (
    "# A registry on top of ckptkit's own: fields given here override those of the same id.\nentries: []\n"
)


@dataclass(frozen=True)
class Edit:
    """What pinning, or adding an entry, does to a file.

    Parameters
    ----------
    path : Path
        The registry file.
    before, after : str
        Its text; ``before`` is empty when the file is to be made.
    """

    path: Path
    before: str
    after: str

    @property
    def changes(self) -> bool:
        """Whether anything would be different."""
        return self.before != self.after

    def diff(self) -> str:
        """Return the change as a unified diff."""
        from difflib import unified_diff

        name = str(self.path)
        lines = unified_diff(
            self.before.splitlines(keepends=True), self.after.splitlines(keepends=True), name, name, n=2
        )
        return "".join(line if line.endswith("\n") else line + "\n" for line in lines)

    def write(self) -> None:
        """Put the new text in the file's place in one step, with the old file's mode.

        Raises
        ------
        UsageError
            When somebody else changed the file meanwhile.
        StorageError
            When the file cannot be written; it is then as it was.
        """
        path = self.path
        with StagedFile(path, force=True, plain=True) as file:
            file.append(self.after.encode())
            if path.exists():
                copy_mode(path, file.temporary)
            file.sync()
            if (read_text(path) if path.exists() else "") != self.before:
                raise UsageError(f"{path}: was changed by someone else meanwhile", hint="run it again")
            file.rename()


def pin(
    path: Path,
    id: str,
    *,
    sha256: str,
    size: int,
    observed_at: str,
    url: str,
    below: Sequence[Path] | None = None,
    families: Families | None = None,
) -> bool:
    """Write one observed checksum into a registry file; see `pin_many`.

    Returns
    -------
    bool
        Whether the file changed.
    """
    return pin_many(path, [Pin(id, sha256, size, observed_at, url)], below=below, families=families)


def pin_many(
    path: Path, pins: Sequence[Pin], *, below: Sequence[Path] | None = None, families: Families | None = None
) -> bool:
    """Write observed checksums into a registry file, all of them or none.

    Parameters
    ----------
    path : Path
        A registry file; made when it does not exist. An id that it lacks is appended with these fields only.
    pins : sequence of Pin
    below : sequence of Path, optional
        The registry files it stands on: by default the built-in one, unless ``path`` is that.
    families : Families, optional
        What entries are checked against: `ckptkit.families.registry_families`.

    Returns
    -------
    bool
        Whether the file changed; pinning the same again changes nothing.

    Raises
    ------
    RegistryError
        When the file has faults, or would have.
    UsageError
        When an entry is written in a way that cannot be edited in place.
    StorageError
        When the file cannot be written; it is then as it was.
    """
    edit = preview_pins(path, pins, below=below, families=families)
    if edit.changes:
        edit.write()
    return edit.changes


def preview_pins(
    path: Path, pins: Sequence[Pin], *, below: Sequence[Path] | None = None, families: Families | None = None
) -> Edit:
    """Return what `pin_many` would do, checked in the same way, without writing."""
    path = resolved(path)  # a link stays a link to the edited file
    before = read_text(path) if path.exists() else ""
    base = [(file, read_text(file)) for file in files_below(path, below)]
    start = before or EMPTY_OVERLAY
    old = load_texts([*base, (path, start)], families, of_family=False)
    for wanted in pins:
        if wanted.id not in old:
            raise NotFoundError(f"no entry {wanted.id!r} to pin", hint="see 'ckptkit list'")
    after = pinned_text(start, pins, path)
    try:
        new = load_texts([*base, (path, after)], families, of_family=False)
    except RegistryError as error:
        raise UsageError(
            f"{path}: cannot be edited in place: {error.faults[0]}", hint="write the checksum by hand"
        ) from error
    expected = {key: entry.model_dump() for key, entry in old.items()}
    for wanted in pins:
        expected[wanted.id].update(wanted.fields())
        seen = expected[wanted.id]["hash_provenance"]
        expected[wanted.id]["hash_provenance"] = {**seen, "url": Url(seen["url"])}  # as the registry reads it
    if {key: entry.model_dump() for key, entry in new.items()} != expected:
        raise UsageError(
            f"{path}: cannot be edited in place without changing more", hint="write the checksum by hand"
        )
    return Edit(path, before, after)


def files_below(path: Path, below: Sequence[Path] | None) -> Sequence[Path]:
    """Return the registry files that one stands on: as told, else the built-in one, unless it is that."""
    if below is not None:
        return below
    return [] if path == resolved(built_in_path()) else [built_in_path()]


__all__ = ["PINNED_FIELDS", "Edit", "Pin", "pin", "pin_many", "preview_pins"]
