"""Checksum: whether these are the bytes that were published."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ckptkit.compare.verify.report import CHECKSUM, Check
from ckptkit.store.integrity import Digests, hash_file

if TYPE_CHECKING:
    from ckptkit.registry import Entry
    from ckptkit.workspace import Located, Progress

_NOT_PUBLISHED = "no checksum is published for it, so the first fetch was taken on trust"


def check_checksum(located: Located, progress: Progress) -> Check:
    """Compare the published file with the registry's pin, the lock file and the record of its first fetch.

    Parameters
    ----------
    located : Located
        The checkpoint; its artefact is hashed, or, for a file of the user's own, the file itself.
    progress : Progress
        Opens a display of the bytes hashed.

    Raises
    ------
    StorageError
        When the file cannot be read.
    """
    if located.artefact is None or located.entry is None:
        return _check_own_file(located.path, progress)
    found = _hash(located.artefact, progress)
    faults = _faults(found, located.entry, located)
    if faults:
        return Check(CHECKSUM, "failed", f"{located.artefact.name} has other bytes than it should", faults)
    is_what = f"sha256 {found.sha256}, {found.size:,} bytes: "
    kept = f"; the server's {' and '.join(located.server_hashes)} held" if located.server_hashes else ""
    if located.entry.sha256 is not None:
        return Check(CHECKSUM, "ok", f"{is_what}as pinned in the registry{kept}")
    if located.trusted is not None:
        says = f"as first fetched ({_NOT_PUBLISHED}; remembered in {located.trusted.origin}{kept})"
        return Check(CHECKSUM, "ok", is_what + says)
    if located.sha256 is not None:
        return Check(CHECKSUM, "ok", f"{is_what}as first fetched ({_NOT_PUBLISHED}{kept})")
    return Check(CHECKSUM, "skipped", is_what + "nothing pinned and no record of its fetch to compare with")


def _faults(found: Digests, entry: Entry, located: Located) -> tuple[str, ...]:
    recorded, trusted = located.sha256, located.trusted
    faults = []
    if entry.sha256 not in (None, found.sha256):
        faults.append(f"sha256 is {found.sha256}, but the registry says {entry.sha256}")
    if entry.size not in (None, found.size):
        faults.append(f"{found.size:,} bytes, but the registry says {entry.size:,}")
    if recorded not in (None, found.sha256):
        faults.append(f"sha256 is {found.sha256}, but at its first fetch it was {recorded}")
    if trusted is not None and entry.sha256 is None and trusted.value not in (found.sha256, recorded):
        faults.append(f"sha256 is {found.sha256}, but {trusted.origin} says {trusted.value}")
    return tuple(faults)


def _check_own_file(path: Path, progress: Progress) -> Check:
    if not path.is_file():
        return Check(CHECKSUM, "skipped", "several files, and no registry entry to compare them with")
    found = _hash(path, progress)
    return Check(
        CHECKSUM,
        "skipped",
        f"sha256 {found.sha256}, {found.size:,} bytes: no registry entry to compare it with",
    )


def _hash(path: Path, progress: Progress) -> Digests:
    size = path.stat().st_size if path.is_file() else None
    with progress(f"hashing {path.name}", size) as advance:
        return hash_file(path, advance=advance)
