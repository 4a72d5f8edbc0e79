"""Editing a registry file: pinning a checksum, adding an entry, and leaving every other byte as it was.

The text is edited where the YAML events say that values are; comments, order, blank lines and quoting
elsewhere are never touched. Before a file is replaced, the edited text is loaded again and compared with what
was loaded before: the entries edited must have what was wanted, and no other entry may have changed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import ValidationError

from ckptkit.base.errors import IntegrityError, NotFoundError, RegistryError, UsageError, command
from ckptkit.base.files import StagedFile, copy_mode, resolved
from ckptkit.base.text import escaped, yaml_text
from ckptkit.base.urls import full_url
from ckptkit.registry.document import parse
from ckptkit.registry.loading import built_in_path, load_texts, read_text
from ckptkit.registry.query import Registry
from ckptkit.registry.schema import Entry, Families

EMPTY_OVERLAY = (
    "# A registry on top of ckptkit's own: fields given here override those of the same id.\nentries: []\n"
)


@dataclass(frozen=True)
class Edit:
    """What pinning, or adding an entry, does to a file."""

    path: Path
    before: str  # empty when the file is to be made
    after: str

    @property
    def changes(self) -> bool:
        """Whether anything would be different."""
        return self.before != self.after

    def diff(self) -> str:
        """Return the change as a unified diff."""
        from difflib import unified_diff

        name = str(self.path)
        lines = unified_diff(
            self.before.splitlines(keepends=True), self.after.splitlines(keepends=True), name, name, n=2
        )
        return "".join(line if line.endswith("\n") else line + "\n" for line in lines)

    def write(self) -> None:
        """Put the new text in the file's place in one step, with the old file's mode."""
        if not self.changes:
            return
        with StagedFile(self.path, force=True, plain=True) as file:
            file.append(self.after.encode())
            if self.path.exists():
                copy_mode(self.path, file.temporary)
            file.sync()
            if _text_of(self.path) != self.before:
                raise UsageError(
                    f"{self.path}: was changed by another program in the meantime", hint="run it again"
                )
            file.rename()


def _text_of(path: Path) -> str:
    return read_text(path) if path.exists() else ""


def _by_hand(path: Path) -> str:
    return f"change the file by hand, and check it. {command('registry', 'validate', path)}"


class _File:
    """A registry file to edit, on top of others: as given, else of the built-in one, unless it is that."""

    def __init__(self, path: Path, below: Sequence[Path] | None, families: Families | None) -> None:
        self.path = resolved(path)  # a link stays a link to the edited file
        self.before = _text_of(self.path)
        self.start = self.before or EMPTY_OVERLAY
        if below is None:
            below = [] if self.path == resolved(built_in_path()) else [built_in_path()]
        self.below = [(file, read_text(file)) for file in below]
        self._families = families
        self.entries = self._loaded(self.start)

    def _loaded(self, text: str) -> Registry:
        return load_texts([*self.below, (self.path, text)], self._families, of_family=False)

    def edited(
        self, changes: Mapping[str, Mapping[str, Any]], kept: Collection[str]
    ) -> tuple[Edit, Registry]:
        """Give entries these fields; refuse an edit after which anything else would be read differently.

        Of the entries in ``kept`` all other fields must stay.
        """
        edit = Edit(self.path, self.before, with_entries(self.start, changes, self.path))
        new = self._loaded(edit.after)
        unchanged = all(new.get(key) == entry for key, entry in self.entries.items() if key not in changes)
        if not (
            unchanged
            and new.keys() == self.entries.keys() | changes.keys()
            and all(
                _has(new[key], self.entries[key] if key in kept else new[key], fields)
                for key, fields in changes.items()
            )
        ):
            raise UsageError(
                f"{self.path}: cannot be edited in place without changing more", hint=_by_hand(self.path)
            )
        return edit, new


def _has(entry: Entry, start: Entry, fields: Mapping[str, Any]) -> bool:
    """Whether an entry is another one with these fields."""
    try:
        return entry == type(start).model_validate({**start.model_dump(), **fields})
    except ValidationError:  # what was valid in the file is not with these fields, so they are not there
        return False


@dataclass(frozen=True)
class Pin:
    """What was observed of an entry's file."""

    id: str
    sha256: str  # 64 lower-case hex digits
    size: int  # bytes
    observed_at: str  # ISO 8601 with its zone
    url: str
    note: str | None = None  # which of the server's checksums were compared with it, for one
    companions: tuple[Mapping[str, Any], ...] = ()  # fields of each, its sha256 and size as observed

    def fields(self) -> dict[str, Any]:
        """Return the pinned fields as an `Entry` holds them."""
        provenance = {"observed_at": self.observed_at, "url": self.url, "note": self.note}
        pinned = {"sha256": self.sha256, "size": self.size, "hash_provenance": provenance}
        return {**pinned, "companions": [*self.companions]} if self.companions else pinned


def preview_pins(
    path: Path, pins: Sequence[Pin], *, below: Sequence[Path] | None = None, families: Families | None = None
) -> Edit:
    """The edit that writes observed checksums into a registry file, checked as if it were done.

    The file is made when it does not exist; an id that it lacks is appended with these fields only. ``below``
    are the registry files it is on top of, by default the built-in one.
    """
    file = _File(path, below, families)
    for wanted in pins:
        if wanted.id not in file.entries:
            raise NotFoundError(f"no entry {wanted.id!r} to pin", hint="see 'ckptkit list'")
    changes = {wanted.id: wanted.fields() for wanted in pins}
    try:
        return file.edited(changes, kept=changes)[0]
    except RegistryError as error:
        raise UsageError(
            f"{file.path}: cannot be edited in place: {error.faults[0]}", hint=_by_hand(file.path)
        ) from error


@dataclass(frozen=True)
class Addition:
    """What adding an entry comes to."""

    edit: Edit
    entry: Entry  # as it will be read, with what the file's head and the registries below give
    updates: bool = False  # whether the file has this entry already, whose fields are updated
    overrides: Path | None = None  # the registry below that has this entry, which keeps the fields not given


def preview_addition(
    path: Path,
    id: str,
    urls: Sequence[str],
    fields: Mapping[str, Any] | None = None,
    *,
    below: Sequence[Path] | None = None,
    families: Families | None = None,
    force: bool = False,
) -> Addition:
    """What adding an entry to a registry file would do, checked as if it were done.

    ``urls`` are where the file can be had, best first; what is known of a source stays with its URL. An entry
    known nowhere else that is given no display name is called by its id. ``force`` updates the fields of an
    entry that the file has already, and replaces another checksum.
    """
    file = _File(path, below, families)
    updates = id in _rows(file.start)
    if updates and not force:
        raise UsageError(f"{file.path} has an entry {id!r} already", hint="give --force to update its fields")
    known = file.entries.get(id)
    wanted = _wanted(id, urls, fields or {}, known)
    pinned = known.sha256 if known else None
    if not force and pinned not in (None, wanted.get("sha256", pinned)):
        raise IntegrityError(
            f"{id}: the file has sha256 {wanted['sha256']}, but {pinned} is pinned",
            hint="--force replaces the pinned one, if the file is the right one",
        )
    try:
        edit, new = file.edited({id: wanted}, kept=(id,) if updates else ())
    except RegistryError as error:
        raise _explained(file.path, id, error) from error
    overrides = next((below for below, text in reversed(file.below) if id in _rows(text)), None)
    return Addition(edit, new[id], updates, overrides)


def _wanted(id: str, urls: Sequence[str], fields: Mapping[str, Any], known: Entry | None) -> dict[str, Any]:
    """Every field to write: those given, and the sources."""
    noted = {
        (url := full_url(source.url)): {**source.model_dump(exclude_defaults=True), "url": url}
        for source in (known.sources if known else ())
    }
    wanted = {**fields, "sources": [noted.get(url, {"url": url}) for url in dict.fromkeys(urls)]}
    return wanted if known else {"display_name": id, **wanted}


def _explained(path: Path, id: str, error: RegistryError) -> UsageError:
    """Say what the entry lacks or has wrong; the file had no fault before."""
    label = f"entry {id!r}: "
    elsewhere = next((fault for fault in error.faults if label not in fault), None)
    if elsewhere is not None:
        return UsageError(f"{path}: cannot be edited in place: {elsewhere}", hint=_by_hand(path))
    faults = [fault.partition(label)[2] for fault in error.faults]
    lacking = any(fault.endswith(" is missing") for fault in faults)
    hint = (
        "say it, or give the file itself with --checkpoint FILE"
        if lacking
        else "see 'ckptkit registry schema'"
    )
    return UsageError(f"{id}: cannot be added: {'; '.join(faults)}", hint=hint)


# -- entries as text -----------------------------------------------------------------------------------------

_ORDER = {name: place for place, name in enumerate(Entry.model_fields)}
_SETTINGS = _ORDER["weights"] + 0.5


def _place(name: str) -> float:
    """Where a field is written; the settings of models, which this room does not know, after the weights."""
    return _ORDER.get(name, _SETTINGS)


def _rows(text: str) -> dict[Any, dict[str, Any]]:
    """Fields that a registry's text itself gives to its entries, by id."""
    root = parse(text).value
    rows = root.get("entries") if isinstance(root, dict) else None
    return {row.get("id"): row for row in rows or () if isinstance(row, dict)}


def with_entries(text: str, changes: Mapping[str, Mapping[str, Any]], path: Path) -> str:
    """Return the text of a registry with fields of its entries changed, and entries it lacks appended.

    Refuses what is written in a way that cannot be edited in place; ``path`` is for messages.
    """
    entries = _spans(text).get("entries")
    if entries is None or entries.kind != "sequence":
        raise UsageError(f"{path}: 'entries' is not a list in this place", hint=_by_hand(path))
    places = {found.value: entry for entry in entries.children if (found := entry.get("id")) is not None}
    rows = _rows(text)
    edits: list[_Replacement] = []
    bodies: list[list[str]] = []
    for id, fields in changes.items():
        if id in places:
            edits += _changed(text, places[id], rows.get(id, {}), fields, path)
        else:
            bodies.append(_body(entries, {"id": id, **fields}))
    return _edited(text, [*edits, *_appended(text, entries, bodies)])


def _changed(
    text: str, entry: _Span, row: Mapping[str, Any], fields: Mapping[str, Any], path: Path
) -> list[_Replacement]:
    """Bring the fields of an entry that differ up to date where they are."""
    edits: list[_Replacement] = []
    missing: dict[str, Any] = {}
    for name, new in fields.items():
        value = entry.get(name)
        if name in row and row[name] == _plain(new):
            continue
        if value is None:
            missing[name] = new
        elif value.block_scalar or value.kind == "alias":
            what = f"{name} of {row.get('id')!r}"
            raise UsageError(
                f"{path}: line {value.line}: {what} is written as an alias or a text block",
                hint="write a plain value (or null) there, then run this again",
            )
        elif name == "sources" and value.kind == "sequence":
            edits += _changed_sources(text, value, new, path)
        elif name == "companions" and new and value.children and not value.flow:
            lines = [" " * value.column + line for item in new for line in _dashed(item, 0)]
            edits.append((value.start, value.end, _newline(text).join(lines)[value.column :]))
        else:
            blank = "" if value.start == 0 or text[value.start - 1].isspace() else " "
            edits.append((value.start, value.end, blank + _value(name, new, inline=entry.flow)))
    return [*edits, *_insertions(text, entry, missing)]


def _plain(value: Any) -> Any:
    """A value as it is written: what is None in a mapping is left out."""
    return {k: v for k, v in value.items() if v is not None} if isinstance(value, Mapping) else value


def _body(entries: _Span, fields: Mapping[str, Any]) -> list[str]:
    """Lines of a new entry, its fields in the schema's order."""
    inline = entries.flow and bool(entries.children)
    body = []
    for name in sorted(fields, key=_place):
        if name in ("sources", "companions") and fields[name] and not inline:
            indent = _indent_of_sources(entries)
            body.append(f"{name}:")
            for item in fields[name]:
                body += _dashed(item, indent)
        else:
            body.append(_field(name, fields[name], inline=inline))
    return body


def written(value: Any, *, inline: bool = True) -> str:
    r"""Return a plain value as YAML on one line; text is quoted only where it must be.

    Examples
    --------
    >>> print(written("Apache-2.0"), written("224"), written("a\nb"), written(83.0), written(None))
    Apache-2.0 "224" "a\nb" 83.0 null
    >>> written("https://a.org/x", inline=False)
    'https://a.org/x'
    >>> print(written({"url": "https://a.org/x", "bn_statistics": True}))
    {url: "https://a.org/x", bn_statistics: true}
    """
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{written(key)}: {written(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(written, value)) + "]"
    text = yaml_text([value], default_flow_style=True)[1:-2] if inline else yaml_text({"k": value})[3:-1]
    return escaped(value, "yaml") if isinstance(value, str) and text != value else text


def _value(name: str, value: Any, *, inline: bool) -> str:
    """Text of a field's value; a checksum is always quoted, for one without a letter would be a number."""
    if name in ("sha256", "md5") and value:
        return escaped(value, "yaml")
    if name == "hash_provenance" and value:
        pairs = _plain(value).items()
        return "{" + ", ".join(f"{key}: {escaped(str(text), 'yaml')}" for key, text in pairs) + "}"
    return written(value, inline=inline)


def _field(name: str, value: Any, *, inline: bool) -> str:
    return f"{name}: {_value(name, value, inline=inline)}"


def _dashed(item: Mapping[str, Any], indent: int) -> list[str]:
    """Lines of one item of a list of sources or companions."""
    first, *rest = (_field(name, value, inline=False) for name, value in item.items())
    blank = " " * indent
    return [f"{blank}- {first}", *(f"{blank}  {line}" for line in rest)]


def _indent_of_sources(entries: _Span) -> int:
    """How far the dashes of sources are indented from their key, as in the first entry that shows it."""
    for entry in entries.children:
        sources = entry.get("sources")
        if sources is not None and sources.kind == "sequence" and not (sources.flow or entry.flow):
            return sources.column - entry.children[0].column
    return 2


def _insertions(text: str, entry: _Span, missing: Mapping[str, Any]) -> list[_Replacement]:
    """Put new fields into an entry, each after the last one that comes before it in the schema."""
    after: dict[int, list[str]] = {}
    pairs = list(entry.pairs())
    for name in sorted(missing, key=_place):
        before = [n for n, (key, _) in enumerate(pairs) if _place(key.value) < _place(name)]
        after.setdefault(max(before), []).append(_field(name, missing[name], inline=entry.flow))
    edits = []
    for place, lines in after.items():
        end = pairs[place][1].end
        if entry.flow:
            edits.append((end, end, "".join(f", {line}" for line in lines)))
        else:
            indent = " " * entry.children[0].column
            edits.append(_after_line(text, end, [indent + line for line in lines]))
    return edits


def _changed_sources(
    text: str, value: _Span, sources: Sequence[Mapping[str, Any]], path: Path
) -> list[_Replacement]:
    """Bring a list of sources up to date; those that stay keep their text."""
    items = {url.value: item for item in value.children if (url := item.get("url")) is not None}
    if value.flow:
        parts = [
            text[items[url].start : items[url].end] if (url := source["url"]) in items else written(source)
            for source in sources
        ]
        return [(value.start, value.end, "[" + ", ".join(parts) + "]")]
    indent = " " * value.column
    urls = [source["url"] for source in sources]
    if len(items) == len(value.children) and urls[: len(items)] == list(items):  # further ones, if any
        lines = [indent + line for source in sources[len(items) :] for line in _dashed(source, 0)]
        return [_after_line(text, value.end, lines)] if lines else []
    end = _end_of_line(text, value.end)
    if any(line.lstrip().startswith("#") for line in text[value.start : end].splitlines()):
        raise UsageError(
            f"{path}: line {value.line}: comments between the sources would be lost",
            hint=_by_hand(path),
        )
    lines = []
    for source in sources:
        item = items.get(source["url"])
        if item is None:
            lines += [indent + line for line in _dashed(source, 0)]
        else:
            lines.append(f"{indent}- {text[item.start : _end_of_line(text, item.end)]}")
    return [(value.start, end, _newline(text).join(lines)[value.column :])]


def _end_of_line(text: str, position: int) -> int:
    """Where the line that holds ``position`` ends, before its newline."""
    end = text.find("\n", position)
    end = len(text) if end < 0 else end
    return end - 1 if text[end - 1 : end] == "\r" else end


def _newline(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"


def _edited(text: str, edits: Sequence[_Replacement]) -> str:
    """Return ``text`` with all replacements made; of several at one place the first comes first."""
    parts, done = [], 0
    for start, end, replacement in sorted(edits, key=lambda edit: edit[0]):
        parts += [text[done:start], replacement]
        done = max(done, end)
    return "".join([*parts, text[done:]])


def _after_line(text: str, position: int, lines: list[str]) -> _Replacement:
    """Put new lines after the line that holds ``position``, so that a comment at its end stays with it."""
    end, newline = text.find("\n", position), _newline(text)
    block = newline.join(lines)
    if end < 0:
        return len(text), len(text), newline + block
    return end + 1, end + 1, block + newline


def _appended(text: str, entries: _Span, bodies: Sequence[list[str]]) -> list[_Replacement]:
    """New entries at the end of the list, each given as the lines of its fields."""
    if not bodies:
        return []
    if entries.flow and entries.children:
        end = entries.children[-1].end
        return [(end, end, "".join(", {" + ", ".join(body) + "}" for body in bodies))]
    column = 2 if entries.flow else entries.column
    lines: list[str] = []
    for body in bodies:
        first, *rest = body
        blank = [""] if lines or entries.children else []
        lines += [*blank, " " * column + f"- {first}", *(" " * (column + 2) + line for line in rest)]
    if not entries.children:  # entries: []
        start = len(text[: entries.start].rstrip(" "))
        return [(start, entries.end, "".join(_newline(text) + line for line in lines))]
    return [_after_line(text, entries.end, lines)]


# -- where values are in the text ----------------------------------------------------------------------------

_Kind = Literal["scalar", "alias", "mapping", "sequence"]
_Replacement = tuple[int, int, str]
"""Start and end of what goes, in characters, and what comes there."""


@dataclass
class _Span:
    """A value and where it is, in characters from the start of the text.

    An alias is a leaf at its own place, which the nodes of a YAML tree do not tell.
    """

    kind: _Kind
    start: int
    end: int
    column: int
    line: int
    value: str = ""
    flow: bool = False
    block_scalar: bool = False
    children: list[_Span] = field(default_factory=list)

    def pairs(self) -> Iterator[tuple[_Span, _Span]]:
        """Keys and values of a mapping."""
        return zip(self.children[::2], self.children[1::2], strict=True)

    def get(self, key: str) -> _Span | None:
        """Value of a key of a mapping."""
        if self.kind != "mapping":
            return None
        return next((value for name, value in self.pairs() if name.value == key), None)


def _spans(text: str) -> _Span:
    """Tree of the first document of ``text``, which is known to be valid YAML."""
    root = _Span("sequence", 0, 0, 0, 0)
    stack = [root]
    # The pure-Python scanner counts characters of this very text; libyaml counts without a byte-order mark.
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
            kind: _Kind = "mapping" if isinstance(event, yaml.MappingStartEvent) else "sequence"
            span = _span_of(event, kind)
            span.flow = bool(event.flow_style)
            stack[-1].children.append(span)
            stack.append(span)
        elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            span = stack.pop()
            # A block collection "ends" at the next token, after comments that are not its own.
            span.end = (
                _span_of(event, span.kind).end if span.flow or not span.children else span.children[-1].end
            )
        elif isinstance(event, yaml.AliasEvent):
            stack[-1].children.append(_span_of(event, "alias"))
        elif isinstance(event, yaml.ScalarEvent):
            span = _span_of(event, "scalar")
            span.value = event.value
            span.block_scalar = event.style in {"|", ">"}
            span.end = span.start + len(text[span.start : span.end].rstrip())
            stack[-1].children.append(span)
    return root.children[0]


def _span_of(event: Any, kind: _Kind) -> _Span:
    start = event.start_mark
    return _Span(kind, start.index, event.end_mark.index, start.column, start.line + 1)
