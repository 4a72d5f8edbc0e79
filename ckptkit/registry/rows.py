"""The registry without its schema: light rows, for commands that must start at once.

Importing pydantic and building its models takes longer than all of ``ckptkit list``. The built-in registry is
a part of this package, which the tests check against the schema; so its rows are read without. As soon as
there is another registry, all are loaded and checked. No copy of what was read is kept anywhere: whoever can
write it decides what the registry has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptkit.base.urls import Url
from ckptkit.registry.paths import registry_files
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


_FIELDS: dict[str, Any] = {**dict.fromkeys(ENTRY_FIELDS), "required": False, "known_deviations": []}
_SOURCE: dict[str, Any] = {"url": None, "note": "", "bn_statistics": None, "manual": False}
_PROVENANCE: dict[str, Any] = {"observed_at": None, "url": None, "note": None}


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
    rows = _unchecked(files[0]) if len(files) == 1 else None
    if rows is None:
        from ckptkit.registry.loading import load_registry

        rows = [entry.model_dump(mode="json") for entry in load_registry(overlays, families).values()]
    return Catalogue(Row(fields) for fields in rows)


def _unchecked(path: Path) -> list[dict[str, Any]] | None:
    """Entries of the built-in registry; None where its text has a fault, which the full load explains."""
    from ckptkit.registry.document import parse

    try:
        document = parse(path.read_text(encoding="utf-8"))
        heads = dict(document.value.get("families") or {})
        rows = [_row({**heads.get(row.get("family"), {}), **row}) for row in document.value["entries"]]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
    return None if document.faults else rows


def _row(given: dict[str, Any]) -> dict[str, Any]:
    row = _with_urls({**_FIELDS, **given}, "config_url", "log_url")
    row["sources"] = [_with_urls({**_SOURCE, **source}, "url") for source in row["sources"]]
    if row["hash_provenance"]:
        row["hash_provenance"] = _with_urls({**_PROVENANCE, **row["hash_provenance"]}, "url")
    return row


def _with_urls(fields: dict[str, Any], *names: str) -> dict[str, Any]:
    return fields | {name: Url(fields[name]) for name in names if fields[name] is not None}
