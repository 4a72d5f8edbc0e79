"""Behaviour settings: what changes a model's output but no tensor's shape, and who says it.

In order of precedence: the user, the registry entry, the file's own metadata, the family's default. A
setting without default is never guessed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptkit.base.errors import FormatError, UsageError
from ckptkit.families.base import MUST_BE_TOLD, Family

if TYPE_CHECKING:
    from ckptkit.registry import Entry


def known_settings(
    family: Family,
    *,
    told: Mapping[str, Any] | None = None,
    entry: Entry | None = None,
    metadata: Mapping[str, str] | None = None,
    path: str | Path = "the file",
) -> dict[str, Any]:
    """What is said of a checkpoint's settings, without any default.

    Parameters
    ----------
    family : Family
    told : mapping of str to Any, optional
        What the user says.
    entry : Entry, optional
        The registry entry the checkpoint belongs to; a field that is None says nothing.
    metadata : mapping of str to str, optional
        What the file says of itself, each setting as JSON.
    path : str or Path
        The file, for errors.

    Raises
    ------
    UsageError
        When the family has no setting that is told, or one cannot have the value.
    FormatError
        When the file's metadata give a value that the setting cannot have.
    """
    told, metadata = told or {}, metadata or {}
    for key in told:
        if key not in family.behaviour:
            raise UsageError(
                f"family {family.name} has no setting {key}",
                hint="its settings are " + ", ".join(family.behaviour),
            )
    said = {}
    for key in family.behaviour:
        by_entry = getattr(entry, key, None)
        if key in told:
            said[key] = told[key]
        elif by_entry is not None:
            said[key] = by_entry
        elif key in metadata:
            said[key] = setting_of_file(family, key, metadata[key], path)
            continue
        else:
            continue
        family.check_setting(key, said[key])
    return said


def setting_of_file(family: Family, key: str, text: str, path: str | Path) -> Any:
    """A setting that a file's metadata give as JSON.

    Raises
    ------
    FormatError
        When it is no value that the setting can have.
    """
    try:
        value = json.loads(text)
        family.check_setting(key, value)
    except (ValueError, RecursionError, UsageError) as error:
        raise FormatError(path, f"its metadata says {key} is {text[:40]!r}, which is no setting") from error
    return value


def missing_settings(family: Family, said: Mapping[str, Any]) -> list[str]:
    """Settings that have no default and that nobody has said."""
    return [key for key, default in family.behaviour.items() if default is MUST_BE_TOLD and key not in said]


def resolve_settings(family: Family, said: Mapping[str, Any], *, name: object) -> dict[str, Any]:
    """Every setting of a model to build: as said, else the default.

    Parameters
    ----------
    family : Family
    said : mapping of str to Any
        See `known_settings`.
    name : object
        What the model is of, for errors.

    Raises
    ------
    UsageError
        When a setting that has no default is not said.
    """
    for key in missing_settings(family, said):
        raise UsageError(
            f"{name}: {key} is not known, and it changes what the model computes",
            hint=f"name the registry entry, or give --set {key}=true or =false; "
            "'ckptkit show ID' tells what each file needs",
        )
    return {**family.behaviour, **said}
