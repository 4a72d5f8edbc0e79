"""The registry: every published checkpoint, loaded from YAML, queried, and written back.

The face of the package, loaded on first use.

Examples
--------
>>> from ckptkit.registry import load_registry
>>> registry = load_registry()
>>> registry["moat2-384-noposemb"].published_params
'73.2M'
>>> [entry.id for entry in registry.find(family="moat", max_params="5M")]
['tiny-moat0-256', 'tiny-moat0-256-noposemb']
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ckptkit.registry.edit import Addition, Pin, add_entry, pin, pin_many, preview_addition, preview_pins
    from ckptkit.registry.loading import Registry, load_registry, load_texts
    from ckptkit.registry.paths import built_in_path, in_source_tree, registry_files
    from ckptkit.registry.query import (
        Catalogue,
        DeviationFacts,
        EntryFacts,
        Families,
        FamilyFacts,
        SourceFacts,
    )
    from ckptkit.registry.schema import (
        Entry,
        HashProvenance,
        KnownDeviation,
        Source,
        entry_model,
        json_schema,
    )

_HOMES = {
    "Addition": "edit",
    "Catalogue": "query",
    "DeviationFacts": "query",
    "Entry": "schema",
    "EntryFacts": "query",
    "Families": "query",
    "FamilyFacts": "query",
    "HashProvenance": "schema",
    "KnownDeviation": "schema",
    "Pin": "edit",
    "Registry": "loading",
    "Source": "schema",
    "SourceFacts": "query",
    "add_entry": "edit",
    "built_in_path": "paths",
    "entry_model": "schema",
    "in_source_tree": "paths",
    "json_schema": "schema",
    "load_registry": "loading",
    "load_texts": "loading",
    "pin": "edit",
    "pin_many": "edit",
    "preview_addition": "edit",
    "preview_pins": "edit",
    "registry_files": "paths",
}

__all__ = [
    "Addition",
    "Catalogue",
    "DeviationFacts",
    "Entry",
    "EntryFacts",
    "Families",
    "FamilyFacts",
    "HashProvenance",
    "KnownDeviation",
    "Pin",
    "Registry",
    "Source",
    "SourceFacts",
    "add_entry",
    "built_in_path",
    "entry_model",
    "in_source_tree",
    "json_schema",
    "load_registry",
    "load_texts",
    "pin",
    "pin_many",
    "preview_addition",
    "preview_pins",
    "registry_files",
]


def __getattr__(name: str) -> Any:
    """Import the module that holds ``name`` when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
