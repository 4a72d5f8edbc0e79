"""From registry files to checked entries: heads, overlays, and every fault of a file at once."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from string import ascii_letters, digits
from typing import Any, NoReturn

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from ckptkit.base.errors import NotFoundError, RegistryError, UsageError
from ckptkit.base.files import translated
from ckptkit.base.home import home_folders, listed_paths, user_path
from ckptkit.base.urls import scrubbed
from ckptkit.registry import document
from ckptkit.registry.document import Document, Location, bounded, parse
from ckptkit.registry.query import Registry, nearest
from ckptkit.registry.schema import (
    BUILT_IN_FORMATS,
    NOT_SHARED,
    NULL_WHEN_SHARED,
    Entry,
    Families,
    HashProvenance,
    Source,
    entry_model,
)

MAX_FILE_SIZE = 16_000_000
"""Bytes; the built-in registry has 40,000."""

_MOST_FAULTS = 500
"""After so many a file is looked at no further."""
_LONGEST_NAME = 100
_TOP_LEVEL = ("notes", "families", "entries")
_KEYS_INSIDE = {"sources": Source.model_fields, "hash_provenance": HashProvenance.model_fields}


_PACKAGE = Path(__file__).resolve().parent.parent


def built_in_path() -> Path:
    """Return the registry that ckptkit comes with: inside the wheel, or at the root of a source tree."""
    inside = _PACKAGE / "registry.yaml"
    return inside if inside.exists() else _PACKAGE.parent / "registry.yaml"


def in_source_tree() -> bool:
    """Whether ckptkit runs from a checkout, whose registry.yaml is there to be edited."""
    return built_in_path().with_name("pyproject.toml").exists()


_URL = re.compile(r"[a-z][a-z0-9]{0,15}://", re.IGNORECASE)
_PIN = re.compile(r"#sha256=[0-9a-f]{64}", re.IGNORECASE)
_PINNED = re.compile(r"[a-z][a-z0-9]{0,15}://[^\s#]+#sha256=[0-9a-f]{64}", re.IGNORECASE)
_FOLDER = "registries"
_VARIABLE = "CKPTKIT_REGISTRY"


def is_url(given: str | Path) -> bool:
    """Whether a registry is named by a URL, rather than by a path."""
    return isinstance(given, str) and _URL.match(given) is not None


def cached_registry(url: str) -> Path:
    """Where the text of a registry at a URL is kept, named by its sha256; the file need not exist.

    A file that does not have that sha256 any more is removed.
    """
    if _PINNED.fullmatch(url) is None:
        raise UsageError(
            f"{scrubbed(url)}: a registry at a URL needs its sha256, so that it cannot change unnoticed",
            hint="end the URL with #sha256= and the 64 digits that sha256sum prints of the file",
        )
    name = f"{url.rpartition('=')[2].lower()}.yaml"
    paths = [folder / _FOLDER / name for folder in home_folders()]
    return next(filter(_is_intact, paths), paths[0])


def is_cached_registry(path: Path) -> bool:
    """Whether a file is the cached text of a registry at a URL."""
    return path.parent in [folder / _FOLDER for folder in home_folders()]


def _is_intact(path: Path) -> bool:
    """Whether a cached text has the sha256 of its name."""
    from ckptkit.base.checksums import hash_file

    if not path.is_file():
        return False
    if hash_file(path, ("sha256",)).sha256 == path.stem:
        return True
    with translated(path):
        path.unlink()
    return False


def environment_registries() -> list[str | Path]:
    """What ``CKPTKIT_REGISTRY`` lists: paths, and URLs with their sha256."""
    text = os.environ.get(_VARIABLE, "")
    found: list[str | Path] = []
    start = 0
    for pin in _PIN.finditer(text):
        scheme_end = text.find("://", start, pin.start())
        if scheme_end < 0:
            continue  # a file of that name
        scheme_start = start + len(text[start:scheme_end].rstrip(ascii_letters + digits))
        found += [*_paths_in(text[start:scheme_start]), text[scheme_start : pin.end()]]
        start = pin.end()
    return [*found, *_paths_in(text[start:])] if found else list(listed_paths(_VARIABLE))


def _paths_in(text: str) -> list[Path]:
    return [user_path(path) for path in text.strip().split(os.pathsep) if path]


def environment_files() -> list[Path]:
    """The files that ``CKPTKIT_REGISTRY`` lists, those of URLs in the cache."""
    return [cached_registry(one) if isinstance(one, str) else one for one in environment_registries()]


def registry_files(overlays: Sequence[Path] = ()) -> list[Path]:
    """Every registry file in the order of loading: a later one overrides an earlier one, by id."""
    return [built_in_path(), *environment_files(), *overlays]


def load_registry(
    overlays: Sequence[Path] = (), families: Callable[[bool], Families] = lambda _plugins: {}
) -> Registry:
    """Load the built-in registry, then ``CKPTKIT_REGISTRY``, then ``overlays``.

    An entry of a later file that has a known id changes the fields it gives and keeps the others; lists
    (``sources``) are replaced as a whole. A ``families`` head speaks for the entries of its own file only.
    """
    files = registry_files(overlays)
    return load_texts([(path, read_text(path)) for path in files], families(len(files) > 1))


def load_texts(
    texts: Sequence[tuple[Path, str]], families: Families | None = None, *, of_family: bool = True
) -> Registry:
    """Load registry files whose text is at hand; `load_registry` says how they combine.

    ``of_family`` asks whether variant, layout and format of each entry are its family's, too.
    """
    given: dict[str, dict[str, Any]] = {}
    entries: dict[str, Entry] = {}
    counts = []
    built_in = built_in_path()
    for path, text in texts:
        parsed = _built_in(text) if path == built_in else parse(text)
        checked = _Layer(path, parsed, given, families or {}, of_family).entries()
        entries.update((entry.id, entry) for entry in checked)
        counts.append(len(checked))
    return Registry(entries.values(), [path for path, _ in texts], counts)


@lru_cache(maxsize=1)
def _built_in(text: str) -> Document:
    """The built-in registry; every call of ckptkit from Python loads it, and parsing is most of that."""
    return parse(text)


def read_text(path: Path) -> str:
    """Text of a registry file, newlines as they are."""
    absent = NotFoundError(f"{path}: no such registry file", hint="check --registry and CKPTKIT_REGISTRY")
    text, _ = document.read_text(path, MAX_FILE_SIZE, absent, lambda fault: RegistryError(path, [fault]))
    return text


@dataclass
class _Layer:
    """One file on top of those before it."""

    path: Path
    document: Document
    below: dict[str, dict[str, Any]]  # what the files before gave; changed by `entries`
    families: Families  # what entries are checked against; empty for nothing
    of_family: bool
    faults: list[tuple[int, str]] = field(default_factory=list)

    @cached_property
    def model(self) -> type[Entry]:
        """The model of an entry."""
        return entry_model(self.families)

    def entries(self) -> list[Entry]:
        """Return the checked entries of this file; raise RegistryError with every fault of it."""
        self.faults += self.document.faults
        root = self.document.value
        if not isinstance(root, dict):
            if not self.faults:
                self._fault((), "a registry is a mapping with the key 'entries'")
            self._refuse()
        for key in root:
            if key not in _TOP_LEVEL:
                self._fault((key,), f"unknown key {key!r}{_suggestion(key, _TOP_LEVEL)}")
        self._check_notes(root.get("notes"))
        heads = self._heads(root.get("families"))
        checked = self._checked(root, heads)
        if self.faults:
            self._refuse()
        return checked

    def _refuse(self) -> NoReturn:
        unique = dict.fromkeys(sorted(self.faults, key=lambda fault: fault[0]))
        raise RegistryError(self.path, [f"line {line}: {bounded(what)}" for line, what in unique])

    def _fault(self, location: Location, what: str) -> None:
        self.faults.append((self.document.line(*location), what))
        if len(self.faults) >= _MOST_FAULTS:
            self._refuse()

    def _check_notes(self, notes: Any) -> None:
        if notes is not None and not isinstance(notes, dict):
            self._fault(("notes",), "'notes' is a mapping from a name to a sentence")
            return
        for name, text in (notes or {}).items():
            if not isinstance(text, str):
                self._fault(("notes", name), f"note {name!r} must be text")

    def _heads(self, families: Any) -> dict[str, dict[str, Any]]:
        """Return the shared fields by family."""
        if families is None:
            return {}
        if not isinstance(families, dict):
            self._fault(
                ("families",), "'families' is a mapping from a family to the fields its entries share"
            )
            return {}
        heads: dict[str, dict[str, Any]] = {}
        for family, shared in families.items():
            if not isinstance(shared, dict):
                self._fault(("families", family), f"family {family!r} must be a mapping of fields")
                continue
            heads[family] = {
                name: value for name, value in shared.items() if self._may_be_shared(family, name, value)
            }
        return heads

    def _may_be_shared(self, family: str, name: str, value: Any) -> bool:
        if name not in self.model.model_fields and self.families:
            what = f"family {family!r}: unknown key {name!r}{_suggestion(name, self.model.model_fields)}"
        elif name in NOT_SHARED or (name in NULL_WHEN_SHARED and value is not None):
            what = f"family {family!r}: {name!r} belongs to a single entry"
        else:
            return True
        self._fault(("families", family, name), what)
        return False

    def _checked(self, root: dict[str, Any], heads: dict[str, dict[str, Any]]) -> list[Entry]:
        rows = root.get("entries")
        if not isinstance(rows, list):
            self._fault(("entries",), "'entries' is a list of entries, each a mapping that begins '- id: …'")
            return []
        checked = []
        first_lines: dict[str, int] = {}
        for index, row in enumerate(rows):
            entry = self._entry(index, row, heads, first_lines)
            if entry is not None:
                checked.append(entry)
        return checked

    def _entry(
        self, index: int, row: Any, heads: dict[str, dict[str, Any]], first_lines: dict[str, int]
    ) -> Entry | None:
        if not isinstance(row, dict):
            self._fault(("entries", index), f"entry {index + 1} is not a mapping of fields")
            return None
        key = row.get("id")
        if isinstance(key, str):
            if key in first_lines:
                self._fault(
                    ("entries", index, "id"),
                    f"id {key!r} is given twice (first on line {first_lines[key]})",
                )
                return None
            first_lines[key] = self.document.line("entries", index, "id")
        earlier = self.below.get(key, {}) if isinstance(key, str) else {}
        family = row.get("family", earlier.get("family"))
        head = heads.get(family, {}) if isinstance(family, str) else {}
        merged = {**earlier, **head, **row}
        try:
            entry = self.model.model_validate(merged)
        except ValidationError as error:
            label = f"entry {key!r}" if isinstance(key, str) else f"entry {index + 1}"
            for detail in error.errors(include_url=False):
                self._explain(detail, index, row, label, family if detail["loc"][0] in head else None)
            return None
        self._check_family(entry, index, row, head)
        self.below[entry.id] = merged
        return entry

    def _check_family(self, entry: Entry, index: int, row: dict[str, Any], head: dict[str, Any]) -> None:
        """List what its family does not have; what the file's head says is at fault once, in the head."""
        for name, what in family_faults(entry, self.families) if self.families and self.of_family else []:
            if name not in row and name in head:
                self._fault(("families", entry.family, name), f"family {entry.family!r}: {name}: {what}")
            else:
                self._fault(("entries", index, name), f"entry {entry.id!r}: {name}: {what}")

    def _explain(
        self, detail: ErrorDetails, index: int, row: dict[str, Any], label: str, family: Any
    ) -> None:
        """Turn one finding of pydantic into a fault with its line."""
        # Errors inside a union carry the branch in their location; the file has no such level.
        location = tuple(part for part in detail["loc"] if part not in {"tuple", "nullable"})
        name = str(location[-1])
        inherited = location[0] not in row and family is not None
        place: Location = ("families", family) if inherited else ("entries", index)
        where = f"family {family!r}" if inherited else label
        if detail["type"] == "extra_forbidden":
            known = _KEYS_INSIDE.get(str(location[0]), self.model.model_fields)
            what = f"unknown key {name!r}{_suggestion(name, known)}"
        elif detail["type"] == "missing":
            what = f"{_dotted(location)} is missing"
        elif detail["type"] == "too_short" and detail.get("input"):
            return  # the items themselves are at fault, and say so
        else:
            what = f"{_dotted(location)}: {_sentence(detail)}"
        self._fault((*place, *location), f"{where}: {what}")


def family_faults(entry: Entry, families: Families) -> list[tuple[str, str]]:
    """Say what an entry has that its family does not: the field, and what is wrong there."""
    if entry.serves == "container":
        return []  # whatever the model is, the file is carried as it is
    if entry.family not in families:
        known = _suggestion(entry.family, families) or _one_of(families)
        return [("family", f"unknown family {entry.family!r}{known}")]
    facts = families[entry.family]
    faults = []
    for name, value in (("variant", entry.variant), ("layout", entry.layout)):
        own = facts.known(name)
        if value in own:
            continue
        owner = next((other for other, others in families.items() if value in others.known(name)), None)
        if owner is not None:
            what = f"{value!r} is a {name} of family {owner!r}, not of {entry.family!r}"
        else:
            known = _suggestion(value, own) or _one_of(own)
            what = f"unknown {name} {value!r} of family {entry.family!r}{known}"
        faults.append((name, what))
    formats = facts.formats.get(entry.layout)
    if formats is not None and entry.format in BUILT_IN_FORMATS and entry.format not in formats:
        faults.append(
            ("format", f"{entry.format!r} does not support layout {entry.layout!r}{_one_of(formats)}")
        )
    return faults


def _dotted(location: Location) -> str:
    """Write a location as people do: sources[0].url."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return text.lstrip(".")


def _sentence(detail: ErrorDetails) -> str:
    """Say what pydantic found in one line, with the value where it helps."""
    message = detail["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    value = detail.get("input")
    if isinstance(value, (str, int, float)):
        shown = repr(value[:60] if isinstance(value, str) else value)
        return f"{message}, found {shown if len(shown) <= 60 else shown[:57] + '…'}"
    return message


def _one_of(known: Iterable[str]) -> str:
    return f" (one of {', '.join(known)})"


def _suggestion(name: str, known: Iterable[str]) -> str:
    close = nearest(name, known, count=1) if len(name) <= _LONGEST_NAME else []
    return f" (did you mean {close[0]!r}?)" if close else ""
