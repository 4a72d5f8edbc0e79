"""Settings of models: what changes the output but no tensor's shape, and who says it.

In order of precedence: the user, the registry entry, the file's own metadata, the family's default. A setting
without default is never guessed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from ckptkit.base.errors import FormatError, UsageError

if TYPE_CHECKING:
    from ckptkit.families.base import Family
    from ckptkit.registry import Entry


class Settings(BaseModel):
    """The settings of a family, each with its type, its description and its default.

    A field without default is one that nobody may guess: both values are in use, and no tensor tells which. A
    string in a field's metadata says what it takes, for messages.
    """

    model_config = ConfigDict(extra="forbid", strict=True, validate_assignment=True)


def known_settings(
    family: Family,
    *,
    told: Mapping[str, Any] | None = None,
    entry: Entry | None = None,
    metadata: Mapping[str, str] | None = None,
    path: str | Path = "the file",
) -> dict[str, Any]:
    """What is known of a checkpoint's settings, without any default.

    ``told`` is the user's word; ``metadata`` the file's, each setting as JSON.
    A value that a setting cannot have is a UsageError, or a FormatError where the file says it.
    """
    told, metadata = told or {}, metadata or {}
    for key in told:
        if key not in family.setting_names:
            raise UsageError(
                f"family {family.name} has no setting {key}",
                hint="its settings are " + ", ".join(family.setting_names),
            )
    known = {}
    for key in family.setting_names:
        by_entry = entry.settings.get(key) if entry else None
        if key in told:
            family.check_setting(key, told[key])
            known[key] = told[key]
        elif by_entry is not None:
            family.check_setting(key, by_entry)
            known[key] = by_entry
        elif key in metadata:
            known[key] = setting_of_file(family, key, metadata[key], path)
    return known


def setting_of_file(family: Family, key: str, text: str, path: str | Path) -> Any:
    """A setting that a file's metadata give as JSON."""
    try:
        value = json.loads(text)
        family.check_setting(key, value)
    except (ValueError, RecursionError, UsageError) as error:
        raise FormatError(path, f"its metadata says {key} is {text[:40]!r}, which is no setting") from error
    return value


def missing_settings(family: Family, known: Mapping[str, Any]) -> list[str]:
    """Settings that have no default and that nobody has said."""
    return [key for key in family.required_settings if key not in known]


def takes(family: Family, key: str) -> str:
    """What values a setting can have, in a phrase."""
    field = family.settings.model_fields[key]
    if field.annotation is bool:
        return "true or false"
    return next((phrase for phrase in field.metadata if isinstance(phrase, str)), "another value")


def set_option(family: Family, key: str) -> str:
    """How a setting is given on the command line: ``--set key=true or =false``."""
    values = "true or =false" if family.settings.model_fields[key].annotation is bool else "VALUE"
    return f"--set {key}={values}"


def resolve_settings(family: Family, known: Mapping[str, Any], *, name: object) -> dict[str, Any]:
    """Every setting of a model to build: as known, else the default; ``name`` is what the model is of."""
    for key in missing_settings(family, known):
        raise UsageError(
            f"{name}: {key} is not known, and it changes what the model computes",
            hint=f"name the registry entry, or give {set_option(family, key)}; "
            "'ckptkit show ID' tells what each file needs",
        )
    return {**family.default_settings, **known}
