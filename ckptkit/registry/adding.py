"""Adding an entry to a registry file of one's own, and leaving every other byte as it was.

As with a pin, the text is edited where the YAML events say things stand, then loaded again and compared with
what was loaded before: the entry must say what was asked for, and no other entry may have changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ckptkit.base.errors import IntegrityError, RegistryError, UsageError
from ckptkit.base.files import resolved
from ckptkit.base.urls import full_url
from ckptkit.registry.entry_text import by_hand, row_of, with_changed_entry, with_new_entry
from ckptkit.registry.loading import Registry, load_texts, read_text
from ckptkit.registry.query import Families
from ckptkit.registry.schema import Entry
from ckptkit.registry.writeback import EMPTY_OVERLAY, Edit, files_below

_Texts = list[tuple[Path, str]]
_SEE_SCHEMA = "see 'ckptkit registry schema'"


@dataclass(frozen=True)
class Addition:
    """What adding an entry comes to.

    Parameters
    ----------
    edit : Edit
        What changes in the file.
    entry : Entry
        The entry as it will be read, with what the file's ``families`` head and the registries below give.
    updates : bool
        Whether the file holds an entry of this id already, whose fields are updated.
    overrides : Path or None
        The registry below that holds an entry of this id, which keeps the fields not given here.
    """

    edit: Edit
    entry: Entry
    updates: bool = False
    overrides: Path | None = None


def add_entry(
    path: Path,
    id: str,
    urls: Sequence[str],
    fields: Mapping[str, Any] | None = None,
    *,
    below: Sequence[Path] | None = None,
    families: Families | None = None,
    force: bool = False,
) -> Addition:
    """Write an entry into a registry file, which then loads; see `preview_addition`.

    Raises
    ------
    StorageError
        When the file cannot be written; it is then as it was.
    """
    addition = preview_addition(path, id, urls, fields, below=below, families=families, force=force)
    if addition.edit.changes:
        addition.edit.write()
    return addition


def preview_addition(
    path: Path,
    id: str,
    urls: Sequence[str],
    fields: Mapping[str, Any] | None = None,
    *,
    below: Sequence[Path] | None = None,
    families: Families | None = None,
    force: bool = False,
) -> Addition:
    """Return what adding an entry would do, checked as if it were done, without writing.

    Parameters
    ----------
    path : Path
        A registry file; made when it does not exist.
    id : str
    urls : sequence of str
        Where the file can be had, best first. What is known of a source of the entry stays with its URL.
    fields : mapping of str to Any, optional
        Further fields of `Entry`, as plain values. An entry that is known nowhere else and is given no
        display name is called by its id.
    below : sequence of Path, optional
        The registry files it stands on: by default the built-in one, unless ``path`` is that.
    families : Families, optional
        What entries are checked against: `ckptkit.families.registry_families`.
    force : bool
        Update the fields of an entry that the file holds already; replace another checksum.

    Raises
    ------
    RegistryError
        When the file has faults.
    UsageError
        When the file holds the entry already, when the entry would have faults, or when the text cannot be
        edited in place.
    IntegrityError
        When another checksum is pinned for the entry.
    """
    path = resolved(path)  # a link stays a link to the edited file
    before = read_text(path) if path.exists() else ""
    start = before or EMPTY_OVERLAY
    base = [(file, read_text(file)) for file in files_below(path, below)]
    old = load_texts([*base, (path, start)], families, of_family=False)
    updates = row_of(start, id) is not None
    if updates and not force:
        raise UsageError(f"{path} has an entry {id!r} already", hint="give --force to update its fields")
    known = old.get(id)
    wanted = _wanted(id, urls, fields or {}, known)
    pinned = known.sha256 if known else None
    if not force and pinned not in (None, wanted.get("sha256", pinned)):
        raise IntegrityError(
            f"{id}: the file has sha256 {wanted['sha256']}, but {pinned} is pinned",
            hint="--force replaces the pinned one, if the file is the right one",
        )
    edit_text = with_changed_entry if updates else with_new_entry
    edit = Edit(path, before, edit_text(start, id, wanted, path))
    if updates and edit.after == before:
        entry = old[id]
    else:
        entry = _checked(edit, base, old, id, wanted, families=families, updates=updates)
    overrides = next((file for file, text in reversed(base) if row_of(text, id) is not None), None)
    return Addition(edit, entry, updates, overrides)


def _wanted(id: str, urls: Sequence[str], fields: Mapping[str, Any], known: Entry | None) -> dict[str, Any]:
    """Every field to write: those given, and the sources."""
    noted = (
        {
            (url := full_url(source.url)): {**source.model_dump(exclude_defaults=True), "url": url}
            for source in known.sources
        }
        if known
        else {}
    )
    wanted = {**fields, "sources": [noted.get(url, {"url": url}) for url in dict.fromkeys(urls)]}
    if known is None:
        wanted.setdefault("display_name", id)
    return wanted


def _checked(
    edit: Edit,
    base: _Texts,
    old: Registry,
    id: str,
    wanted: Mapping[str, Any],
    *,
    families: Families | None,
    updates: bool,
) -> Entry:
    """Load the edited text; the entry in it, after a look whether it and it alone changed."""
    try:
        new = load_texts([*base, (edit.path, edit.after)], families, of_family=False)
    except RegistryError as error:
        raise _explained(edit.path, id, error) from error
    others = {key: entry for key, entry in new.items() if key != id}
    start = old[id] if updates else new[id]
    try:
        as_asked = new[id] == type(start).model_validate({**start.model_dump(), **wanted})
    except ValidationError:  # what was valid in the file is not with what was asked for, so it is not there
        as_asked = False
    if not as_asked or others != {key: entry for key, entry in old.items() if key != id}:
        raise UsageError(
            f"{edit.path}: cannot be edited in place without changing more", hint=by_hand(edit.path)
        )
    return new[id]


def _explained(path: Path, id: str, error: RegistryError) -> UsageError:
    """Say what the entry lacks or has wrong; the file had no fault before."""
    label = f"entry {id!r}: "
    elsewhere = next((fault for fault in error.faults if label not in fault), None)
    if elsewhere is not None:
        return UsageError(f"{path}: cannot be edited in place: {elsewhere}", hint=by_hand(path))
    faults = [fault.partition(label)[2] for fault in error.faults]
    lacking = any(fault.endswith(" is missing") for fault in faults)
    hint = "say it, or give the file itself with --checkpoint FILE" if lacking else _SEE_SCHEMA
    return UsageError(f"{id}: cannot be added: {'; '.join(faults)}", hint=hint)
