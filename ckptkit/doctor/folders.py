"""The places ckptkit reads and writes: cache folders, lock file, registry files."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ckptkit.base.errors import CkptkitError, storage_error
from ckptkit.base.files import TEMPORARY
from ckptkit.base.home import NOWHERE, home_folders, is_writable
from ckptkit.base.locks import hold
from ckptkit.base.text import human_bytes
from ckptkit.doctor.findings import Finding, Verdict
from ckptkit.store.cache import KINDS
from ckptkit.store.lockfile import LockFile

if TYPE_CHECKING:
    from ckptkit.registry import Registry

LITTLE_SPACE = 2_000_000_000
"""Bytes: the largest published files have some two gigabytes, unpacked once more."""
_TOO_LITTLE = 100_000_000
_COUNTING_SECONDS = 3.0
_ANOTHER = "set CKPTKIT_HOME to another folder"


def examine_folders() -> list[Finding]:
    """Look at each cache folder: there, writable, room, locks, letters."""
    first, *others = home_folders()
    return [*_examine_home(first), *(finding for other in others for finding in _examine_shared(other))]


def _examine_home(folder: Path) -> list[Finding]:
    """The folder that is written to."""
    if folder == NOWHERE:
        said = "there is none, for no home folder is known (HOME is not set)"
        return [Finding("cache", "folder", "problem", said, "set CKPTKIT_HOME to a folder")]
    if folder.exists() and not folder.is_dir():
        return [Finding("cache", "folder", "problem", f"{folder} is a file", _ANOTHER)]
    if not is_writable(folder):
        said = f"{folder} cannot be written" + ("" if folder.exists() else " and is not there")
        return [Finding("cache", "folder", "problem", said, f"{_ANOTHER}, or change who may write there")]
    if not folder.exists():
        said = f"{folder}, made when first needed"
        return [Finding("cache", "folder", "ok", said), _space(folder)]
    size = Finding("cache", "folder", "ok", f"{folder}, holds {_size(folder)}")
    return [size, *_closed(folder), _space(folder), *_file_system(folder)]


def _closed(folder: Path) -> list[Finding]:
    """Folders below that somebody else made and that cannot be written."""
    closed = [name for name in (*KINDS, "locks") if not is_writable(folder / name)]
    if not closed:
        return []
    said = f"{folder} can be written, but not {', '.join(closed)} in it: entries go to the next folder"
    advice = "CKPTKIT_HOME may list another folder behind it; 'chmod -R g+w' by their owner opens them"
    return [Finding("cache", "shared folder", "note", said, advice)]


def _examine_shared(folder: Path) -> list[Finding]:
    """A folder that is only read."""
    if not folder.is_dir():
        said, advice = f"{folder} is not there", "check CKPTKIT_HOME"
        return [Finding("cache", "shared folder", "note", said, advice)]
    if not os.access(folder, os.R_OK | os.X_OK):
        said, advice = f"{folder} cannot be read", "ask whoever it belongs to"
        return [Finding("cache", "shared folder", "note", said, advice)]
    return [Finding("cache", "shared folder", "ok", f"{folder}, holds {_size(folder)}")]


def _space(folder: Path) -> Finding:
    """Room on the disk, in the nearest folder that is there."""
    there = folder
    while not there.exists():
        there = there.parent
    try:
        free = shutil.disk_usage(there).free
    except OSError as error:
        return Finding("cache", "free space", "note", str(storage_error(error, there)))
    verdict: Verdict = "ok"
    advice = ""
    if free < LITTLE_SPACE:
        verdict = "note" if free >= _TOO_LITTLE else "problem"
        advice = f"free some space ('ckptkit cache prune'), or {_ANOTHER}"
    return Finding("cache", "free space", verdict, human_bytes(free), advice)


def _file_system(folder: Path) -> list[Finding]:
    """Whether locks exclude, and whether capitals count: tried in a temporary folder."""
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=f"{TEMPORARY}doctor-") as name:
            tried = Path(name)
            return [_locks(tried / "lock"), _letters(tried)]
    except (OSError, CkptkitError) as error:
        said = str(error if isinstance(error, CkptkitError) else storage_error(error, folder))
        return [Finding("cache", "writing", "problem", said, _ANOTHER)]


def _locks(path: Path) -> Finding:
    with hold(path) as first, hold(path, wait=False) as second:
        if (first, second) == ("held", "taken"):
            return Finding("cache", "locks", "ok", "work")
    said = "this file system has no working locks, so two processes may download the same file twice"
    return Finding("cache", "locks", "note", said, f"{_ANOTHER}, on a local disk")


def _letters(folder: Path) -> Finding:
    (folder / "letters").touch()
    if (folder / "LETTERS").exists():
        said = "capital and small letters are the same in names here; no two ids differ by that alone"
        return Finding("cache", "names", "ok", said)
    return Finding("cache", "names", "ok", "capital and small letters differ")


def _size(folder: Path) -> str:
    """Size of everything in a folder, for people; what was counted in a few seconds."""
    total, ends = 0, time.monotonic() + _COUNTING_SECONDS
    for place, _, files in os.walk(folder):
        for file in files:
            try:
                total += os.stat(os.path.join(place, file), follow_symlinks=False).st_size  # noqa: PTH116, PTH118
            except OSError:  # gone meanwhile
                continue
        if time.monotonic() > ends:
            return f"more than {human_bytes(total)}"
    return human_bytes(total)


def examine_trust() -> Finding:
    """Look at the lock file of what was fetched before."""
    trust = LockFile.default()
    try:
        trust.files("")
    except CkptkitError as error:
        return Finding("cache", "lock file", "problem", error.message, error.hint or "")
    if not is_writable(trust.path.parent) or (trust.path.exists() and not os.access(trust.path, os.W_OK)):
        said = f"{trust.path} cannot be written, so checksums of new files are not remembered there"
        return Finding("cache", "lock file", "note", said, "set CKPTKIT_TRUST to another file")
    there = "" if trust.path.exists() else ", made with the first fetch"
    return Finding("cache", "lock file", "ok", f"{trust.path}{there}")


def examine_registries(overlays: Sequence[Path]) -> tuple[list[Finding], Registry | None]:
    """Load the registry files, each on top of those before it.

    Returns
    -------
    findings : list of Finding
    registry : Registry or None
        Of the files that could be loaded; None where not even the built-in one could.
    """
    from ckptkit.families import registry_families
    from ckptkit.registry import load_texts, registry_files
    from ckptkit.registry.loading import read_text

    findings: list[Finding] = []
    texts: list[tuple[Path, str]] = []
    registry: Registry | None = None
    for path in registry_files(overlays):
        try:
            more = [*texts, (path, read_text(path))]
            loaded = load_texts(more, registry_families())
        except CkptkitError as error:
            findings.append(Finding("registry", path.name, "problem", error.message, error.hint or ""))
            continue
        added = len(loaded) - (len(registry) if registry is not None else 0)
        texts, registry = more, loaded
        entries = "1 entry" if added == 1 else f"{added} entries"
        findings.append(Finding("registry", path.name, "ok", f"{path}, {entries} of its own"))
    return findings, registry
