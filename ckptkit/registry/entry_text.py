"""An entry as YAML text: written anew at the end of a file's list, or changed where it stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ckptkit.base.errors import UsageError, command
from ckptkit.base.text import escaped, yaml_text
from ckptkit.registry.document import parse
from ckptkit.registry.schema import Entry
from ckptkit.registry.spans import (
    Replacement,
    Span,
    appended,
    behind_line,
    edited,
    entry_list,
    entry_places,
    newline_of,
)


def by_hand(path: Path) -> str:
    """What to do where a file cannot be edited in place."""
    return f"change the file by hand, and check it. {command('registry', 'validate', path)}"


_ORDER = {name: place for place, name in enumerate(Entry.model_fields)}
_SETTINGS = _ORDER["weights"] + 0.5


def row_of(text: str, id: str) -> dict[str, Any] | None:
    """Fields that a registry's text itself gives an entry; None where it has no such entry."""
    root = parse(text).value
    rows = root.get("entries") if isinstance(root, dict) else None
    found = (row for row in rows or () if isinstance(row, dict) and row.get("id") == id)
    return next(found, None)


def _place(name: str) -> float:
    """Where a field is written; the settings of models, which this room does not know, after the weights."""
    return _ORDER.get(name, _SETTINGS)


def with_new_entry(text: str, id: str, fields: Mapping[str, Any], path: Path) -> str:
    """Return ``text`` with an entry at the end of the list, its fields in the schema's order.

    Parameters
    ----------
    text : str
        A valid registry that lacks the entry.
    id : str
    fields : mapping of str to Any
        Names and plain values, the sources among them.
    path : Path
        For messages.

    Raises
    ------
    UsageError
        When the list cannot be edited in place.
    """
    entries = entry_list(text, path, hint=by_hand(path))
    inline = entries.flow and bool(entries.children)
    body = [_field("id", id, inline=inline)]
    for name in sorted(fields, key=_place):
        if name == "sources" and fields[name] and not inline:
            indent = _indent_of_sources(entries)
            body.append("sources:")
            for source in fields[name]:
                body += _dashed(source, indent)
        else:
            body.append(_field(name, fields[name], inline=inline))
    return edited(text, appended(text, entries, [body], newline_of(text)))


def with_changed_entry(text: str, id: str, fields: Mapping[str, Any], path: Path) -> str:
    """Return ``text`` with the fields of an entry that differ brought up to date where they stand.

    Raises
    ------
    UsageError
        When one of them is written in a way that cannot be edited in place.
    """
    row = row_of(text, id) or {}
    entry = entry_places(entry_list(text, path, hint=by_hand(path)))[id]
    newline = newline_of(text)
    edits: list[Replacement] = []
    missing: dict[str, Any] = {}
    for name, new in fields.items():
        value = entry.get(name)
        if name in row and row[name] == new:
            continue
        if value is None:
            missing[name] = new
        elif value.block_scalar or value.kind == "alias":
            raise UsageError(
                f"{path}: line {value.line}: {name} of {id!r} is written as an alias or a text block",
                hint="write a plain value (or null) there, then add it again",
            )
        elif name == "sources" and value.kind == "sequence":
            edits += _changed_sources(text, value, new, newline, path)
        else:
            blank = "" if value.start == 0 or text[value.start - 1].isspace() else " "
            edits.append((value.start, value.end, blank + _value(name, new, inline=entry.flow)))
    return edited(text, [*edits, *_insertions(text, entry, missing, newline)])


def written(value: Any, *, inline: bool = True) -> str:
    r"""Return a plain value as YAML on one line; text is quoted only where it must be.

    Parameters
    ----------
    value : object
        Text, number, bool, None, or mappings and lists of them.
    inline : bool
        Whether it shall stand between braces or brackets, where less is plain.

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
    return escaped(value, "yaml") if name == "sha256" else written(value, inline=inline)


def _field(name: str, value: Any, *, inline: bool) -> str:
    return f"{name}: {_value(name, value, inline=inline)}"


def _dashed(source: Mapping[str, Any], indent: int) -> list[str]:
    """Lines of one item of a list of sources."""
    first, *rest = (_field(name, value, inline=False) for name, value in source.items())
    blank = " " * indent
    return [f"{blank}- {first}", *(f"{blank}  {line}" for line in rest)]


def _indent_of_sources(entries: Span) -> int:
    """How far the dashes of sources stand behind their key, as the first entry that shows it has it."""
    for entry in entries.children:
        sources = entry.get("sources")
        if sources is not None and sources.kind == "sequence" and not (sources.flow or entry.flow):
            return sources.column - entry.children[0].column
    return 2


def _insertions(text: str, entry: Span, missing: Mapping[str, Any], newline: str) -> list[Replacement]:
    """Put new fields into an entry, each behind the last one that comes before it in the schema."""
    behind: dict[int, list[str]] = {}
    pairs = list(entry.pairs())
    for name in sorted(missing, key=_place):
        before = [n for n, (key, _) in enumerate(pairs) if _place(key.value) < _place(name)]
        behind.setdefault(max(before), []).append(_field(name, missing[name], inline=entry.flow))
    edits = []
    for place, lines in behind.items():
        end = pairs[place][1].end
        if entry.flow:
            edits.append((end, end, "".join(f", {line}" for line in lines)))
        else:
            indent = " " * entry.children[0].column
            edits.append(behind_line(text, end, [indent + line for line in lines], newline))
    return edits


def _changed_sources(
    text: str, value: Span, sources: Sequence[Mapping[str, Any]], newline: str, path: Path
) -> list[Replacement]:
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
        return [behind_line(text, value.end, lines, newline)] if lines else []
    end = _end_of_line(text, value.end)
    if any(line.lstrip().startswith("#") for line in text[value.start : end].splitlines()):
        raise UsageError(
            f"{path}: line {value.line}: comments stand between the sources, and would be lost",
            hint=by_hand(path),
        )
    lines = []
    for source in sources:
        item = items.get(source["url"])
        if item is None:
            lines += [indent + line for line in _dashed(source, 0)]
        else:
            lines.append(f"{indent}- {text[item.start : _end_of_line(text, item.end)]}")
    return [(value.start, end, newline.join(lines)[value.column :])]


def _end_of_line(text: str, position: int) -> int:
    """Where the line that holds ``position`` ends, before its newline."""
    end = text.find("\n", position)
    end = len(text) if end < 0 else end
    return end - 1 if text[end - 1 : end] == "\r" else end
