"""The registry without its schema: light rows from a compiled copy, for commands that must start at once.

Importing pydantic and building its models takes longer than all of ``ckptkit list``. So the checked, merged
entries are kept as JSON in the cache folder, bound to this version and to path, size and times of every
registry file; when any of these changes, or the copy is damaged, the files are loaded and checked again.
"""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptkit._version import __version__
from ckptkit.registry.paths import cache_folder, registry_files
from ckptkit.registry.query import (
    ENTRY_FIELDS,
    Catalogue,
    DeviationFacts,
    EntryFacts,
    ProvenanceFacts,
    SourceFacts,
)

if TYPE_CHECKING:
    from ckptkit.registry.query import Families


class SourceRow(SourceFacts):
    """A source with the attributes of `ckptkit.registry.Source`."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self.__dict__.update(fields)


class ProvenanceRow(ProvenanceFacts):
    """A provenance with the attributes of `ckptkit.registry.HashProvenance`."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self.__dict__.update(fields)


class DeviationRow(DeviationFacts):
    """A known deviation with the attributes of `ckptkit.registry.KnownDeviation`."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self.__dict__.update(fields)


class Row(EntryFacts):
    """An entry with the attributes of `ckptkit.registry.Entry`, made without checking.

    Parameters
    ----------
    fields : dict
        Every field of a checked entry, as plain JSON values.
    """

    def __init__(self, fields: dict[str, Any]) -> None:
        self.fields = fields
        sources = tuple(SourceRow(source) for source in fields["sources"])
        provenance = fields["hash_provenance"] and ProvenanceRow(fields["hash_provenance"])
        deviations = tuple(DeviationRow(known) for known in fields["known_deviations"])
        self.__dict__.update(fields, sources=sources, hash_provenance=provenance, known_deviations=deviations)


def load_rows(overlays: Sequence[Path] = (), families: Callable[[], Families] = lambda: {}) -> Catalogue[Row]:
    """Return the entries of the built-in registry, ``CKPTKIT_REGISTRY`` and ``overlays`` as light rows.

    Parameters
    ----------
    overlays, families
        As for `ckptkit.registry.load_registry`.

    Raises
    ------
    RegistryError, NotFoundError, StorageError
        As `ckptkit.registry.load_registry`.
    """
    files = registry_files(overlays)
    identity = _identity(files)
    compiled = _compiled_path(files)
    rows = _read(compiled, identity) if identity else None
    if rows is None:
        rows = _checked_rows(overlays, families)
        # A file saved while it was being read must not be remembered under its new identity.
        if identity and identity == _identity(files):
            _write(compiled, identity, rows)
    return Catalogue(Row(fields) for fields in rows)


def _checked_rows(overlays: Sequence[Path], families: Callable[[], Families]) -> list[dict[str, Any]]:
    from ckptkit.registry.loading import load_registry

    return [entry.model_dump(mode="json") for entry in load_registry(overlays, families).values()]


def _identity(files: Sequence[Path]) -> str:
    """Everything the rows depend on; empty when a file is missing, which the full load then reports."""
    parts = [__version__, ",".join(ENTRY_FIELDS)]
    for path in files:
        try:
            stat = path.stat()
        except OSError:
            return ""
        # The change time tells a file that was replaced by one of the same size and modification time.
        parts += [str(path.absolute()), str(stat.st_size), str(stat.st_mtime_ns), str(stat.st_ctime_ns)]
    return "\n".join(parts)


def _compiled_path(files: Sequence[Path]) -> Path:
    """One name for one list of files: an edit replaces the copy instead of leaving another."""
    names = "\n".join([__version__, *(str(path.absolute()) for path in files)])
    return cache_folder() / f"registry-{zlib.crc32(os.fsencode(names)):08x}.json"


def _read(path: Path, identity: str) -> list[dict[str, Any]] | None:
    """Return the rows of the compiled copy; None when there is none for this identity, or it is damaged."""
    try:
        head, _, body = path.read_text(encoding="utf-8").partition("\n")
        if json.loads(head) != {"identity": identity, "crc32": zlib.crc32(body.encode())}:
            return None
        rows: list[dict[str, Any]] = json.loads(body)
    except (OSError, ValueError, RecursionError):  # a damaged copy is made again
        return None
    return rows


def _write(path: Path, identity: str, rows: list[dict[str, Any]]) -> None:
    """Keep the rows for the next start; where the folder cannot be written, do without."""
    body = json.dumps(rows, ensure_ascii=False, separators=(",", ":"))
    head = json.dumps({"identity": identity, "crc32": zlib.crc32(body.encode())})
    temporary = path.with_name(f".{path.name}-{os.getpid()}.part")
    from ckptkit.formats.staging import move

    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_text(f"{head}\n{body}", encoding="utf-8")
            move(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
