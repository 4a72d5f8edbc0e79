"""Settings of models: what changes the output but no tensor's shape, what each can be, and who says it.

In order of precedence: the user, the registry entry, the file's own metadata, the family's default. A setting
without default is never guessed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ckptkit.base.errors import FormatError, UsageError

if TYPE_CHECKING:
    from pydantic import BaseModel

    from ckptkit.families.base import Family
    from ckptkit.registry import Entry


REQUIRED = object()
"""Default of a setting that nobody may guess: several values are in use, and no tensor tells which."""


@dataclass(frozen=True)
class Setting:
    """What a setting can be, and what it is where nobody says it.

    The pydantic model of a family's settings follows from these. They do without pydantic, whose import
    takes as long as a small conversion.
    """

    type: Any  # as in a pydantic model; ranges from `annotated_types`: ``Annotated[int, Ge(2), Le(3)]``
    description: str
    default: Any = REQUIRED
    takes: str = "another value"  # what it can be, in a phrase for messages
    check: Callable[[Any], object] | None = None  # raises ValueError for what the type cannot rule out
    title: str | None = None

    @property
    def required(self) -> bool:
        """Whether it has no default."""
        return self.default is REQUIRED

    @property
    def is_switch(self) -> bool:
        """Whether it is true or false."""
        return self.type is bool

    @property
    def kind(self) -> Any:
        """Its type with its check, as pydantic takes it."""
        from pydantic import AfterValidator

        return Annotated[self.type, AfterValidator(self._checked)] if self.check else self.type

    def _checked(self, value: Any) -> Any:
        assert self.check is not None
        self.check(value)
        return value


def settings_model(name: str, settings: Mapping[str, Setting]) -> type[BaseModel]:
    """The pydantic model of some settings, strict and closed."""
    from pydantic import ConfigDict, Field, create_model

    fields: dict[str, Any] = {}
    for key, setting in settings.items():
        default = ... if setting.required else setting.default
        fields[key] = (setting.kind, Field(default, title=setting.title, description=setting.description))
    config = ConfigDict(extra="forbid", strict=True, validate_assignment=True)
    return create_model(name, __config__=config, **fields)


def known_settings(
    family: Family,
    *,
    given: Mapping[str, Any] | None = None,
    entry: Entry | None = None,
    metadata: Mapping[str, str] | None = None,
    path: str | Path = "the file",
) -> dict[str, Any]:
    """What is known of a checkpoint's settings, without any default.

    ``given`` is the user's word; ``metadata`` the file's, each setting as JSON.
    A value that a setting cannot have is a UsageError, or a FormatError where the file says it.
    """
    given, metadata, by_entry = given or {}, metadata or {}, entry.settings if entry else {}
    for key in given:
        if key not in family.setting_names:
            raise UsageError(
                f"family {family.name} has no setting {key}",
                hint="its settings are " + ", ".join(family.setting_names),
            )
    known = {}
    for key in family.setting_names:
        if key in given:
            family.check_setting(key, given[key])
            known[key] = given[key]
        elif by_entry.get(key) is not None:
            family.check_setting(key, by_entry[key])
            known[key] = by_entry[key]
        elif key in metadata:
            known[key] = setting_of_file(family, key, metadata[key], path)
    return known


def setting_of_file(family: Family, key: str, text: str, path: str | Path) -> Any:
    """A setting that a file's metadata give as JSON."""
    try:
        value = json.loads(text)
        family.check_setting(key, value)
    except (ValueError, RecursionError, UsageError) as error:
        raise FormatError(
            path, f"its metadata says {key} is {text[:40]!r}, which is not a valid value"
        ) from error
    return value


def missing_settings(family: Family, known: Mapping[str, Any]) -> list[str]:
    """Settings that have no default and were not given."""
    return [key for key in family.required_settings if key not in known]


def takes(family: Family, key: str) -> str:
    """What values a setting can have, in a phrase."""
    setting = family.settings[key]
    return "true or false" if setting.is_switch else setting.takes


def set_option(family: Family, key: str) -> str:
    """How a setting is given on the command line: ``--set key=true or =false``."""
    values = "true or =false" if family.settings[key].is_switch else "VALUE"
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
