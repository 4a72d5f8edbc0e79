"""The registry: every published checkpoint, loaded from YAML, queried, and written back.

Each module is imported on first use: whoever converts a file needs no YAML.

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
    from ckptkit.registry.loading import (
        built_in_path,
        in_source_tree,
        load_registry,
        load_texts,
        registry_files,
    )
    from ckptkit.registry.query import Registry
    from ckptkit.registry.schema import (
        Entry,
        Families,
        FamilyFacts,
        HashProvenance,
        KnownDeviation,
        Source,
        entry_model,
        json_schema,
    )

_HOMES = {
    "Addition": "edit",
    "Entry": "schema",
    "Families": "schema",
    "FamilyFacts": "schema",
    "HashProvenance": "schema",
    "KnownDeviation": "schema",
    "Pin": "edit",
    "Registry": "query",
    "Source": "schema",
    "add_entry": "edit",
    "built_in_path": "loading",
    "entry_model": "schema",
    "in_source_tree": "loading",
    "json_schema": "schema",
    "load_registry": "loading",
    "load_texts": "loading",
    "pin": "edit",
    "pin_many": "edit",
    "preview_addition": "edit",
    "preview_pins": "edit",
    "registry_files": "loading",
}

__all__ = [
    "Addition",
    "Entry",
    "Families",
    "FamilyFacts",
    "HashProvenance",
    "KnownDeviation",
    "Pin",
    "Registry",
    "Source",
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
